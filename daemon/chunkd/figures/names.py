"""Which figures of `chunkd stats --json` are used where else: the one list for the gate, the history and the metrics.

A figure that is new is added here by its name, and then has its condition, its change over a day, and its metric.
"""

from __future__ import annotations

# What `stats --fail-if` compares with a number.
GATED = ("net", "redundancy", "pending_blobs", "failed_blobs", "unlisted_folders")
# What `chunkd history` shows, and `stats` the changes of: figures that follow from the totals alone.
KEPT = (
    "blobs",
    "layers",
    "stored_bytes",
    "layer_stored_bytes",
    "uncompressed_bytes",
    "chunks",
    "unique_chunks",
    "unique_bytes",
    "redundancy",
    "recompressed_bytes",
    "net_bytes",
    "net",
    "failed_blobs",
    "failed_bytes",
)
# The metric of a figure, after `chunkd_`, and what it says.
METRICS = {
    "blobs": ("blobs", "Verified digests, each once."),
    "layers": ("layers", "Blobs that are gzip, zstd or tar streams."),
    "stored_bytes": ("stored_bytes", "Size on disk of all blobs."),
    "layer_stored_bytes": ("layer_stored_bytes", "Size on disk of the layers."),
    "uncompressed_bytes": ("uncompressed_bytes", "What the layers decompress to."),
    "chunks": ("chunks", "Chunks of all layers."),
    "unique_chunks": ("unique_chunks", "Chunks that differ."),
    "unique_bytes": ("unique_bytes", "Bytes of the chunks that differ, uncompressed."),
    "redundancy": ("redundancy_ratio", "1 - unique / uncompressed bytes; none when there is no layer."),
    "recompressed_bytes": ("recompressed_bytes", "What the unique chunks would take, each compressed."),
    "recompressed_error_bytes": ("recompressed_error_bytes", "Half of the 95 % interval of that estimate."),
    "index_overhead_bytes": ("index_overhead_bytes", "What a chunk store's own index would take."),
    "net_bytes": ("net_bytes", "What a chunk store would save of what the layers take now."),
    "net": ("net_ratio", "The same as a part of what the layers take now; none when there is no layer."),
    "break_even_unique": ("break_even_unique_ratio", "Unique / uncompressed bytes at which nothing would be saved."),
    "measured_chunks": ("measured_chunks", "Unique chunks that were compressed for the estimate."),
    "pending_blobs": ("pending_blobs", "Blobs that are seen and in no figure yet."),
    "pending_bytes": ("pending_bytes", "Stored bytes of those."),
    "failed_blobs": ("failed_blobs", "Blobs that do not match their name, do not decompress, or break a cap."),
    "failed_bytes": ("failed_bytes", "Stored bytes of those."),
    "index_bytes": ("index_bytes", "Size of the index on disk."),
}
