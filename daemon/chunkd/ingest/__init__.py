"""The one writer: it compares what a cache has with the index, and decides what counts. It must not know who asks."""
