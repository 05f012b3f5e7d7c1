"""Asking a daemon, or the index where none answers. It must not know what is done with the answer."""
