"""What was asked for, and by whom: flags, environment, files and defaults. It must not know the index or a daemon."""
