"""A fleet in a test: what exports of hosts leave in a store, and one index that has the blobs of all of them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chunkd.fleet import merge, segment, snapshot
from chunkd.fleet.key import Key
from chunkd.fleet.segment import Entry, SegmentRules, digest_bytes
from chunkd.fleet.snapshot import Facts
from chunkd.fleet.store import Store
from chunkd.index.records import Rules
from chunkd.model import Blob, Recipe
from chunkd.queries.read import read_stats
from indexing import Bench, add, digest_of, recounted
from stores import Blobs, entries_of

# What the figures of a fleet do not have from one index.
OWN_FIELDS = {
    *(
        "as_of",
        "scanned_at",
        "watching",
        "scanning",
        "scans",
        "settled",
        "changes",
        "index_bytes",
        "caches",
        "warnings",
    ),
    *("pending_blobs", "pending_bytes", "fleet"),
}
SECOND_NS = 1_000_000_000


def source_of(host: int) -> str:
    return str(uuid.UUID(int=host + 1, version=4))


def put_host(
    store: Store, host: int, batches: Sequence[Sequence[Entry]], rules: Rules = Rules(), key: Key | None = None,  # noqa: B008
    as_of_s: int = 1_700_000_000,
) -> list[str]:  # fmt: skip
    """What the exports of a host leave in the store: a segment for each batch, and a snapshot."""
    held = []
    segments = []
    for entries in batches:
        made = segment.write(store, rules, entries, key)
        segments.append(made)
        held += [(digest_bytes(blob.digest, key), blob.state, blob.stored_bytes, made) for blob, _, _ in entries]
    facts = Facts(f"host-{host}", as_of_s * SECOND_NS, as_of_s * SECOND_NS, pending_blobs=0, pending_bytes=0)
    moments = snapshot.moments(store, source_of(host))
    at_ns = int(moments[-1]) + 1 if moments else 1
    snapshot.put(store, source_of(host), at_ns, facts, SegmentRules.of(rules, key), held, [])
    return segments


def failed(number: int, stored_bytes: int) -> Entry:
    return Blob(digest_of(number), "failed", stored_bytes, reason="a test", tries=1), Recipe(), b""


def merged(store: Store, least_as_of_ns: int = 0) -> dict[str, Any]:
    return merge.merge(store, merge.sources_of(store, least_as_of_ns))


def figures(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in OWN_FIELDS}


def of_one_index(state_dir: Path, blobs: Blobs) -> dict[str, Any]:
    """The figures of an index that has all these blobs."""
    with recounted(state_dir) as bench:
        fill(bench, blobs)
        return figures(read_stats(bench.index.store).to_json())


def fill(bench: Bench, blobs: Blobs) -> None:
    with bench.index.transaction() as change:
        for number, chunks in blobs.items():
            add(change, number, chunks)


def split(blobs: Blobs, numbers: Iterable[int]) -> list[Entry]:
    return entries_of({number: blobs[number] for number in numbers})
