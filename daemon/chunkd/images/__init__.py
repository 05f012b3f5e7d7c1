"""Which image holds what, and its figures. It does no I/O: blobs, names and recipes come to it as values. It must not
know a source's files, the ingest or LMDB.
"""
