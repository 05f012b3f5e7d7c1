"""Layers read again, beside the index: which chunks would save most. It must not know the writer (`ingest`) or the
daemon, and changes no figure.
"""
