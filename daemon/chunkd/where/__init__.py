"""Layers read again to say where the copies are: which files and packages they are in, and why. It must not know the
writer (`ingest`) or the daemon, and writes nothing.
"""
