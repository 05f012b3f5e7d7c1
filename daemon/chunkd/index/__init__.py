"""The LMDB environment and its records: what is known of blobs, places and chunks. It must not know a cache's files."""
