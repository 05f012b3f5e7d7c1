"""Reads one blob and returns its finding, in a confined process of its own. It must not know the index, a source or
LMDB; only `spawn` and `starter` make its processes.
"""
