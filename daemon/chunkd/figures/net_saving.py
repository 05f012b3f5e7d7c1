"""What a chunk store of the same layers would take: which chunks the estimate uses, and its exact arithmetic.

The sum of recompressed lengths over all unique chunks is estimated from those that were measured, by the ratio
estimator and its linearised variance (Cochran, "Sampling Techniques", 3rd edition, 1977, sections 6.2 to 6.4). A few
chunks that do not compress hide easily from a sample of many that do, and the interval would then be too narrow. So two
such chunks more are assumed to be in each sample, for the interval alone: as Agresti and Coull add two successes,
"Approximate Is Better than 'Exact' for Interval Estimation of Binomial Proportions" (The American Statistician 52,
1998).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from chunkd.figures.totals import Sample

# What a store keeps for each unique chunk besides its bytes, after restic: an entry of a pack's header is type 1,
# length 4, uncompressed length 4 and SHA-256 32 bytes (its doc/design.rst, "Pack Format").
STORE_BYTES_A_UNIQUE_CHUNK = 41
# And for each chunk of each layer, after casync: an entry of a .caibx is offset 8 and hash 32 bytes (its caformat.h).
STORE_BYTES_A_CHUNK = 40
# 95 % of a normal distribution lie within this many standard deviations.
DEVIATIONS_95 = 1.96
# With fewer measured chunks the interval would mean nothing (Cochran, section 6.4: more than 30 in the sample).
LEAST_MEASURED = 31
# So many chunks that do not compress may hide from a sample (see above).
ASSUMED = 2


class Estimate(NamedTuple):
    """`error_bytes` is half of a 95 % interval. A value is None if too few chunks were measured for it."""

    recompressed_bytes: int | None
    error_bytes: int | None


def estimate(sample: Sample, unique_chunks: int, unique_bytes: int) -> Estimate:
    """The recompressed bytes of all unique chunks: `unique_bytes * y / x`, exact when every chunk was measured.

    N chunks have X bytes, and n of them, with x bytes, were measured. The variance is
    `(X / x)^2 * n * (1 - n / N) * s^2`, with `s^2` the sum of `(y - R x)^2` over `n - 1` and `R = y / x`. That sum has
    ASSUMED chunks more, which do not compress and whose `x^2` is the sample's mean. It is computed in integers up to
    the root, so that no digit cancels.
    """
    n, x, y, xx, xy, yy = sample
    if n == unique_chunks:
        return Estimate(y, 0)
    if not n:
        return Estimate(None, None)
    recompressed_bytes = (2 * unique_bytes * y + x) // (2 * x)
    if n < LEAST_MEASURED:
        return Estimate(recompressed_bytes, None)
    squares = n * (yy * x * x - 2 * x * y * xy + y * y * xx)  # the sum of (y - R x)^2, times n x^2
    squares += ASSUMED * (x - y) ** 2 * xx  # (x - R x)^2 of those that are assumed, times n x^2
    variance = unique_bytes**2 * (unique_chunks - n) * squares // (x**4 * unique_chunks * (n - 1))
    return Estimate(recompressed_bytes, math.ceil(DEVIATIONS_95 * math.sqrt(variance)))


class Sums(Protocol):
    """The part of `figures.totals.Totals` that is needed here."""

    @property
    def layer_stored_bytes(self) -> int: ...
    @property
    def uncompressed_bytes(self) -> int: ...
    @property
    def chunks(self) -> int: ...
    @property
    def unique_chunks(self) -> int: ...
    @property
    def unique_bytes(self) -> int: ...
    @property
    def sample(self) -> Sample: ...
    @property
    def measured_copies(self) -> tuple[int, int]: ...


def parts(totals: Sums) -> dict[str, int | None]:
    """The net saving in three parts, `net_bytes` = `codec_saving_bytes` + `deduplication_saving_bytes` -
    `index_overhead_bytes`. Each is None where nothing was measured.

    The codec's part is what changes if every chunk of every layer is a zstd frame of its own and nothing is shared:
    `uncompressed_bytes * y / x` over all copies of the measured chunks. It is below 0 if frames of single chunks take
    more than the layers do. What sharing saves of these frames is the part of the deduplication.
    """
    x, y = totals.measured_copies
    unique_bytes = estimate(totals.sample, totals.unique_chunks, totals.unique_bytes).recompressed_bytes
    if unique_bytes is None:
        return {"codec_saving_bytes": None, "deduplication_saving_bytes": None}
    unshared_bytes = (2 * totals.uncompressed_bytes * y + x) // (2 * x) if x else 0
    return {
        "codec_saving_bytes": totals.layer_stored_bytes - unshared_bytes,
        "deduplication_saving_bytes": unshared_bytes - unique_bytes,
    }


def index_overhead_bytes(totals: Sums) -> int:
    """What a chunk store's own index would take."""
    return STORE_BYTES_A_UNIQUE_CHUNK * totals.unique_chunks + STORE_BYTES_A_CHUNK * totals.chunks


def figures(totals: Sums) -> dict[str, Any]:
    """The figures of the net saving by name; None where nothing was measured, or there is no layer.

    `break_even_unique` is the share of unique bytes at which `net_bytes` would be 0 with this ratio and this index.
    """
    found = estimate(totals.sample, totals.unique_chunks, totals.unique_bytes)
    overhead_bytes = index_overhead_bytes(totals)
    net_bytes = net = break_even = None
    if found.recompressed_bytes is not None:
        net_bytes = totals.layer_stored_bytes - found.recompressed_bytes - overhead_bytes
        if totals.layer_stored_bytes:
            net = net_bytes / totals.layer_stored_bytes
        if found.recompressed_bytes:
            room_bytes = totals.layer_stored_bytes - overhead_bytes
            break_even = room_bytes * totals.unique_bytes / (found.recompressed_bytes * totals.uncompressed_bytes)
    return {
        "recompressed_bytes": found.recompressed_bytes,
        "recompressed_error_bytes": found.error_bytes,
        "index_overhead_bytes": overhead_bytes,
        "net_bytes": net_bytes,
        "net": net,
        "break_even_unique": break_even,
        "measured_chunks": totals.sample.chunks,
    }
