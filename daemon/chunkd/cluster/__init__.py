"""A scan or a sweep into a store, in tasks that any machine may carry out. It may know sources, workers, stores and
sweeps, and must not know the daemon, its writer, an index that is written, nor LMDB.
"""
