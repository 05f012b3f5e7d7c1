"""The one writer: it holds what a cache has against the index, and decides what counts. It must not know who asks."""
