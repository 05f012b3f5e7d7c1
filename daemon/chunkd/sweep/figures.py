"""The reply of a sweep: what each rule would keep, and what the baselines would, over the layers that have a result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from chunkd.errors import BadIndex, TooManyImages
from chunkd.figures.net_saving import DEVIATIONS_95
from chunkd.images.read import Reading as Images
from chunkd.images.read import read as read_images
from chunkd.index.storage.environment import reading as reading_index
from chunkd.sweep import sums, updates
from chunkd.sweep.question import Share
from chunkd.sweep.results import Result, Results
from chunkd.sweep.tally import Tally

# With fewer layers at level 19 there is no error.
_LEAST_LAYERS = 4
_MOST_BAD_SHOWN = 1000
_LEVELS = (3, 19)
# Which figure decides, and whether more of it is better.
_BEST = {"net": ("net", 1), "update_bytes": ("median_update_bytes", -1)}


def reply(
    swept: Tally, results: Results, share: Share, show: Callable[[int, int], object] = lambda *_: None
) -> dict[str, Any]:
    """The object of `sweep --json`. `show` is called with how many rules are done, and how many there are."""
    layers = swept.layer_results()
    images, why = _images(swept, layers, share)
    by_digest = {layer.digest: layer for layer in layers}
    question, shifts = results.question, swept.shifts
    rows = []
    for at, profile in enumerate(question.profiles):
        show(at, len(question.rules))
        totals = swept.totals[at]
        found = sums.summed(results, layers, at, totals, shifts[at])
        update = updates.Update(None, None)
        if images is not None and not shifts[at]:
            counts = {digest: swept.kept[digest][at] for digest in by_digest}
            update = updates.update(images, results, by_digest, counts, at, found.sample)
        figures = sums.figures(found)
        rows.append(
            {
                "name": profile.name,
                "parameters": profile.parameters,
                "per_file": profile.per_file,
                "layers_read": str(share),
                "mean_chunk_bytes": totals.bytes / totals.chunks if totals.chunks else None,
                "chunks": totals.chunks,
                "chunk_bytes": totals.bytes,
                "hole_bytes": totals.hole_bytes,
                "unique_chunks": found.unique_chunks,
                "unique_bytes": found.unique_bytes,
                "unique_error_bytes": found.unique_error_bytes,
                "unique_one_in": found.one_in,
                "median_update_bytes": update.bytes,
                "median_update_ranges": update.ranges,
            }
            | figures
        )
    show(len(rows), len(rows))
    as_layers = updates.update_as_layers(images) if images is not None else updates.Update(None, None)
    stored_bytes = sum(layer.stored_bytes for layer in layers)
    return {
        "complete": swept.is_complete and not swept.layers.problems,
        "layers_share": str(share),
        "layers": counted(swept, layers),
        "layer_stored_bytes": stored_bytes,
        "uncompressed_bytes": sum(layer.finding.uncompressed_bytes for layer in layers),
        "measure": {"one_in": question.measure.one_in, "level": question.measure.level},
        "updates_unknown": why,
        "baselines": {
            "layers": {
                "layers_read": str(share),
                "layers": len(layers),
                "stored_bytes": stored_bytes,
                "median_update_bytes": as_layers.bytes,
                "median_update_ranges": as_layers.ranges,
            },
            "zstd": [_zstd(layers, level, stored_bytes) | {"layers_read": str(share)} for level in _LEVELS],
        },
        "rules": rows,
        "best": {name: _best(rows, *by) for name, by in _BEST.items()},
    }


def counted(swept: Tally, layers: Sequence[Result]) -> dict[str, Any]:
    """How many layers there are and were read, and what is wrong with others."""
    bad = {str(digest): why for digest, why in swept.bad.items()}
    undecodable = {
        str(digest): result.finding.reason
        for digest, result in swept.found.items()
        if result.finding.kind == "undecodable"
    }
    damaged = [(str(layer.digest), layer.finding.damaged) for layer in layers if layer.finding.damaged]
    return {
        "wanted": len(swept.layers.layers),
        "found": len(layers),
        "left": swept.progress().layers_left,
        "from_earlier_runs": swept.from_disk,
        "others": sum(result.finding.kind == "other" for result in swept.found.values()),
        "bad": _named(sorted((bad | undecodable).items())),
        "damaged_tars": _named(damaged),
        "problems": swept.layers.problems[:_MOST_BAD_SHOWN],
    }


def _named(reasons: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"digest": name, "reason": why} for name, why in reasons[:_MOST_BAD_SHOWN]]


def _best(rows: Sequence[dict[str, Any]], figure: str, sign: int) -> str | None:
    """The rule with the most of a figure, or the least if the sign is negative; None where it is not known."""
    known = [row for row in rows if row[figure] is not None]
    best: str | None = max(known, key=lambda row: sign * row[figure])["name"] if known else None
    return best


def _images(swept: Tally, layers: Sequence[Result], share: Share) -> tuple[Images | None, str | None]:
    """The images of the index, or why updates are unknown."""
    if not share.is_whole:
        return None, f"only {share} of the layers are read"
    if not swept.is_complete:
        return None, "not all layers have been read"
    if swept.layers.state_dir is None:
        return None, "the caches were listed, and there is no index that says which images they have"
    try:
        with reading_index(swept.layers.state_dir) as store, store.snapshot() as txn:
            images = read_images(store, txn)
    except (BadIndex, TooManyImages) as error:
        return None, str(error)
    return updates.known(images, {layer.digest: layer for layer in layers}), None


def _zstd(layers: Sequence[Result], level: int, stored_bytes: int) -> dict[str, Any]:
    """The layers as one zstd frame each: exact at level 3, and at another level by the ratio over the picked ones."""
    pairs = [
        (layer.finding.zstd_3_bytes, layer.finding.zstd_3_bytes if level == 3 else layer.finding.zstd_19_bytes)
        for layer in layers
    ]
    all_x = [x for x, _ in pairs if x is not None]
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    size_bytes = error_bytes = None
    if known and len(all_x) == len(layers):
        size_bytes, error_bytes = _by_ratio(known, len(layers), sum(all_x))
    return {
        "level": level,
        "layers_measured": len(known),
        "bytes": size_bytes,
        "error_bytes": error_bytes,
        "net_bytes": None if size_bytes is None else stored_bytes - size_bytes,
        "net": None if size_bytes is None or not stored_bytes else (stored_bytes - size_bytes) / stored_bytes,
    }


def _by_ratio(known: Sequence[tuple[int, int]], count: int, x_bytes: int) -> tuple[int, int | None]:
    """The sum of y over `count` layers of which the sum of x is `x_bytes`, and half of its 95 % interval.

    The ratio estimator of `net_saving`, with Student's distribution in place of the normal one, as there are few.
    """
    n, x, y = len(known), sum(one for one, _ in known), sum(one for _, one in known)
    if n == count:
        return y, 0
    ratio = y / x
    if n < _LEAST_LAYERS:
        return round(ratio * x_bytes), None
    squares = sum((one - ratio * of) ** 2 for of, one in known)
    deviation = x_bytes / x * math.sqrt(n * (1 - n / count) * squares / (n - 1))
    return round(ratio * x_bytes), math.ceil(_student_95(n - 1) * deviation)


def _student_95(degrees: int) -> float:
    """Cornish and Fisher's expansion, which is right to 1 % from 3 degrees of freedom on."""
    z = DEVIATIONS_95
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )
