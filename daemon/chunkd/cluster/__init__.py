"""A scan into a store, in tasks that any machine may carry out. It may know sources, workers and stores, and must not
know the daemon, its writer, an index that is written, nor LMDB.
"""
