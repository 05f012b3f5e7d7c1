"""One exact figure for many hosts: recipes in a store that hosts share, and the figures of all of them together. It may
read an index, and must not know who writes one (the daemon, sources, ingest), nor LMDB.
"""
