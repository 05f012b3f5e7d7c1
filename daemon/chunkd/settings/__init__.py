"""The settings and where each came from: flag, variable, file or default. It must not know the index or a daemon."""
