"""Where blobs lie: layouts, listings, events and file systems. It must not know the index."""
