"""Every numeric figure: how it is computed, what it means, and where besides `chunkd stats` it is used.

To add a figure, add a row here: `stats --json`, its metric, its condition and its change over a day follow from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from chunkd.figures import net_saving

if TYPE_CHECKING:
    from chunkd.figures.totals import Totals


class Figure(NamedTuple):
    """`meaning` is the metric's help text; a figure without one has no metric. `of` computes the figure from the
    totals. Without `of` it is the total of its name, or the totals do not have it.

    `is_gated`: `stats --fail-if` compares it. `is_kept`: `history` shows it, and `stats` its changes.
    """

    meaning: str
    of: Callable[[Totals], Any] | None = None
    is_kept: bool = False
    is_gated: bool = False
    is_ratio: bool = False


def _redundancy(totals: Totals) -> float | None:
    return 1 - totals.unique_bytes / totals.uncompressed_bytes if totals.uncompressed_bytes else None


def _mean_chunk_bytes(totals: Totals) -> float | None:
    return totals.uncompressed_bytes / totals.chunks if totals.chunks else None


def _net(name: str) -> Callable[[Totals], Any]:
    return lambda totals: net_saving.figures(totals)[name]


def _part(name: str) -> Callable[[Totals], Any]:
    return lambda totals: net_saving.parts(totals)[name]


FIGURES: dict[str, Figure] = {
    "blobs": Figure("Verified digests, each once.", lambda totals: totals.layers + totals.others, is_kept=True),
    "layers": Figure("Blobs that are gzip, zstd or tar streams.", is_kept=True),
    "stored_bytes": Figure("Size on disk of all blobs.", is_kept=True),
    "layer_stored_bytes": Figure("Size on disk of the layers.", is_kept=True),
    "uncompressed_bytes": Figure("What the layers decompress to.", is_kept=True),
    "chunks": Figure("Chunks of all layers.", is_kept=True),
    "unique_chunks": Figure("Chunks that differ.", is_kept=True),
    "unique_bytes": Figure("Bytes of the chunks that differ, uncompressed.", is_kept=True),
    "redundancy": Figure(
        "1 - unique / uncompressed bytes; none when there is no layer.",
        _redundancy,
        is_kept=True,
        is_gated=True,
        is_ratio=True,
    ),
    "mean_chunk_bytes": Figure("", _mean_chunk_bytes),
    "recompressed_bytes": Figure(
        "What the unique chunks would take, each compressed.", _net("recompressed_bytes"), is_kept=True
    ),
    "recompressed_error_bytes": Figure("Half of the 95 % interval of that estimate.", _net("recompressed_error_bytes")),
    "index_overhead_bytes": Figure("What a chunk store's own index would take.", net_saving.index_overhead_bytes),
    "codec_saving_bytes": Figure(
        "The part of the net saving that one zstd frame a chunk has, with nothing shared.", _part("codec_saving_bytes")
    ),
    "deduplication_saving_bytes": Figure(
        "The part of the net saving that sharing these frames has.", _part("deduplication_saving_bytes")
    ),
    "net_bytes": Figure("What a chunk store would save of what the layers take now.", _net("net_bytes"), is_kept=True),
    "net": Figure(
        "The same as a part of what the layers take now; none when there is no layer.",
        _net("net"),
        is_kept=True,
        is_gated=True,
        is_ratio=True,
    ),
    "break_even_unique": Figure(
        "Unique / uncompressed bytes at which nothing would be saved.", _net("break_even_unique"), is_ratio=True
    ),
    "measured_chunks": Figure("Unique chunks that were compressed for the estimate."),
    "pending_blobs": Figure("Blobs that are seen and in no figure yet.", is_gated=True),
    "pending_bytes": Figure("Stored bytes of those."),
    "failed_blobs": Figure(
        "Blobs that do not match their name, do not decompress, or break a cap.", is_kept=True, is_gated=True
    ),
    "failed_bytes": Figure("Stored bytes of those.", is_kept=True),
    "archived_blobs": Figure("Blobs in a bucket's archive, which can't be read."),
    "archived_bytes": Figure("Stored bytes of those."),
    "unlisted_folders": Figure("Folders that could not be listed.", is_gated=True),
    "index_bytes": Figure("Size of the index on disk."),
}

GATED = tuple(name for name, figure in FIGURES.items() if figure.is_gated)
KEPT = tuple(name for name, figure in FIGURES.items() if figure.is_kept)
# For each figure, the name of its metric (after `chunkd_`) and the help text.
METRICS = {
    name: (f"{name}_ratio" if figure.is_ratio else name, figure.meaning)
    for name, figure in FIGURES.items()
    if figure.meaning
}


def value_of(name: str, totals: Totals) -> Any:
    """A figure computed from the totals; None if they do not determine it, or one of them was not counted yet."""
    of = FIGURES[name].of
    try:
        return getattr(totals, name) if of is None else of(totals)
    except AttributeError as error:
        from chunkd.figures.totals import TOTALS  # late: whoever asks a daemon needs the names alone

        if error.obj is totals and error.name in TOTALS:
            return None
        raise
