"""Layers read again, beside the index: where their copies come from. It must not know the writer (`ingest`) or the
daemon, and changes no figure.
"""
