"""What `chunkd diff` prints for people: pure functions from its JSON object to lines, as in `image_tables`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from chunkd.cli.image_tables import some_of
from chunkd.figures.words import bytes_text, count_text, shown, wrapped

Row = Mapping[str, Any]

LAYERS_SHOWN = 40
DIGEST_CHARACTERS = 19
MEASURED_BY = {
    "set": "",
    "decoded": "Exact: the layers were decoded.",
    "image": "Estimated from the image's measured chunks (too few of the missing are); --measure is exact.",
    "cache": "Estimated from all measured chunks (too few of the image's are); --measure is exact.",
}


class Link(NamedTuple):
    """A way to a registry, over which `parallel` requests are under way at once."""

    bits_per_s: int
    latency_ms: int
    parallel: int

    def seconds(self, size_bytes: int, requests: int) -> float:
        """A latency for each round of requests, and the time of the bytes."""
        return 8 * size_bytes / self.bits_per_s + -(-requests // self.parallel) * self.latency_ms / 1000


def with_seconds(reply: Row, link: Link) -> dict[str, Any]:
    """The reply with the seconds of each scheme in `link`. What is moved as chunks also takes a request for each recipe
    and for each blob that is moved whole.
    """
    chunks, layers = reply["chunks"], reply["layers"]
    found: dict[str, Any] = {"layers_s": link.seconds(layers["stored_bytes"], layers["blobs"])}
    if chunks and chunks["total_bytes"] is not None:
        more = chunks["whole_blobs"] + len(reply["by_layer"])
        rest_bytes = chunks["recipe_bytes"] + chunks["whole_bytes"]
        found |= {
            "single_s": link.seconds(chunks["total_bytes"], chunks["missing"] + more),
            "runs_s": link.seconds(chunks["total_bytes"], chunks["runs"] + more),
            "ranges_s": [link.seconds(one["bytes"] + rest_bytes, one["ranges"] + more) for one in chunks["ranges"]],
        }
    return {**reply, "link": found}


def diff_lines(reply: Row, source: str) -> Iterator[str]:
    """The two schemes, the cheaper of the two, the requests, and where the bytes are."""
    pulled, layers, chunks, seconds = reply["pulled"], reply["layers"], reply["chunks"], reply.get("link", {})
    yield from wrapped(source)
    has = some_of(reply["from_names"] or reply["from"]) if reply["from"] else "nothing"
    platform = f"for {shown(reply['platform'])}" if reply["platform"] else "all platforms"
    size = f"{bytes_text(pulled['stored_bytes'])} in {count_text(pulled['layers'], 'layer')}, {platform}"
    yield from wrapped(f"A client that has {has} and pulls {some_of(reply['to_names'] or [reply['to']])} ({size})")
    yield _scheme(
        "as layers today", layers["stored_bytes"], count_text(layers["missing"], "layer"), _s(seconds, "layers_s")
    )
    yield from _partial(reply["partial"])
    if chunks is None:
        return
    if chunks["total_bytes"] is None:
        yield from wrapped(
            f"  {count_text(chunks['missing'], 'chunk')} before compression: {bytes_text(chunks['bytes'])}"
        )
        yield from wrapped("  Nothing was measured, so what they take compressed is unknown; --measure finds out.")
    else:
        said = f"{count_text(chunks['missing'], 'chunk')}, {count_text(chunks['runs'], 'run')}"
        error = _error(chunks["recompressed_error_bytes"])
        than = than_layers(chunks["total_bytes"], layers["stored_bytes"])
        yield _scheme("as chunks", chunks["total_bytes"], error, said, than)
        cheaper = reply["cheaper"]
        whole = f"{cheaper['whole_layers']:,} of {count_text(len(reply['by_layer']), 'layer')} whole"
        yield _scheme("cheaper per layer", cheaper["bytes"], _error(cheaper["error_bytes"]), whole)
        yield from _requests(chunks, seconds)
        if MEASURED_BY[reply["measured_by"]]:
            yield from wrapped(f"  {MEASURED_BY[reply['measured_by']]}")
    yield ""
    yield from _by_layer(reply)


def _scheme(label: str, size_bytes: int, *said: str) -> str:
    return f"  {label:<18}{bytes_text(size_bytes):>11}   {'; '.join(filter(None, said))}".rstrip()


def _error(error_bytes: int | None) -> str:
    return f"give or take {bytes_text(error_bytes)}" if error_bytes else ""


def _s(seconds: Row, name: str) -> str:
    return f"{seconds[name]:.1f} s" if name in seconds else ""


def than_layers(size_bytes: int, layers_bytes: int) -> str:
    if not layers_bytes:
        return ""
    percent = 100 * (layers_bytes - size_bytes) / layers_bytes
    return f"{abs(percent):.0f} % {'less' if percent >= 0 else 'MORE than as layers'}"


def _partial(partial: Row) -> Iterator[str]:
    if partial["to"]:
        yield from wrapped(
            f"  {count_text(partial['to'], 'blob')} of the image that the client lacks are not here"
            f" ({bytes_text(partial['to_bytes'])} as claimed), so its chunks are unknown."
        )
    if partial["from"]:
        yield from wrapped(
            f"  {count_text(partial['from'], 'blob')} that the client has are not here:"
            " their chunks may count as missing."
        )


def _requests(chunks: Row, seconds: Row) -> Iterator[str]:
    """The curve: a line for each way to ask for the chunks, with what the gaps add."""
    rows = [
        (chunks["missing"], "one for each chunk", _s(seconds, "single_s")),
        (chunks["runs"], "runs", _s(seconds, "runs_s")),
    ]
    for at, one in enumerate(chunks["ranges"]):
        if one["gap_bytes"] != 0:  # with no gap they are the runs
            gaps = "any gap" if one["gap_bytes"] is None else f"gaps up to {bytes_text(one['gap_bytes'])}"
            more = bytes_text(one["bytes"] - chunks["recompressed_bytes"])
            took_s = f"{seconds['ranges_s'][at]:.1f} s" if "ranges_s" in seconds else ""
            rows.append((one["ranges"], f"ranges, {gaps}: +{more}", took_s))
    for at, (count, *words) in enumerate(rows):
        yield f"  {'requests' if at == 0 else '':<18}{count:>11,}   {'; '.join(filter(None, words))}"


def _by_layer(reply: Row) -> Iterator[str]:
    rows = reply["by_layer"]
    if rows:
        yield f"{'AS LAYER':>11}{'AS CHUNKS':>13}{'MISSING':>10}{'RUNS':>8}  LAYER"
    for row in rows[:LAYERS_SHOWN]:
        as_chunks = "unknown"
        if row["recompressed_bytes"] is not None:
            as_chunks = bytes_text(row["recompressed_bytes"] + row["recipe_bytes"])
        counts = f"{row['missing']:>10,}{row['runs']:>8,}"
        yield f"{bytes_text(row['stored_bytes']):>11}{as_chunks:>13}{counts}  {row['digest'][:DIGEST_CHARACTERS]}"
    if len(rows) > LAYERS_SHOWN:
        yield f"and {count_text(len(rows) - LAYERS_SHOWN, 'layer')} more: see `by_layer` with --json"
    chunks = reply["chunks"]
    if chunks["whole_blobs"]:
        what = (
            f"{count_text(chunks['whole_blobs'], 'blob')} moved whole either way (manifests, configs, what is not cut)"
        )
        yield f"{bytes_text(chunks['whole_bytes']):>11}  {what}"
