"""Which image holds what, and its figures, from blobs, names and recipes as values. `read` alone reads an index. It
must not know a source's files, the ingest or LMDB.
"""
