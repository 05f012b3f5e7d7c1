"""A cache in object storage: a bucket as a `Source`, and the process that reads it for the workers. It must not know
the index, and is imported only where a cache is a URL.
"""
