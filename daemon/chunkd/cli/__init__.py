"""The commands: flags in, text or JSON and an exit code out. No other wing may import it."""
