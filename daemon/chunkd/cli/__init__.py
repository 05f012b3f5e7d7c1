"""The commands: flags in, text or JSON and an exit code out. Nothing else may know it."""
