"""One blob to its finding, in a process of its own that is confined. It must not know the index, a source or LMDB;
only `spawn` makes its processes.
"""
