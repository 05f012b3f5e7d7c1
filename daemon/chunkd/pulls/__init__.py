"""What a registry served, by its logs, and what layers and chunks would have moved instead. `read` alone reads an
index, `log_files` alone a file. It must not know the ingest, sources or LMDB, and no client's address leaves it.
"""
