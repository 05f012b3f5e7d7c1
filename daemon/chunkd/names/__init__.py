"""Reads which names images have, from what registries and containerd keep beside their blobs. It must not know the
index, and a name, which is hostile text, must never be opened as a path.
"""
