"""Reads of the index, each in a short transaction of its own. It must not know whether a daemon runs."""
