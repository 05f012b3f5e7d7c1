"""Scans and sweeps into a store, and merges of one, in tasks that any machine may carry out. It may know sources,
workers, stores and sweeps, and must not know the daemon, its writer, an index that is written, nor LMDB.
"""
