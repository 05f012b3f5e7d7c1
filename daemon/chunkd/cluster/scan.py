"""A scan into a store: what no finished segment has is dealt out in tasks, and a snapshot says what the source holds.

A run keeps nothing of its own: which digests the store has decides what is left to do. So any number of runs may be
killed, or work at the same time, and the next one goes on.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chunkd.cluster.engine import Engine
from chunkd.cluster.listing import Held, Where, listed, shown_as, sizes, source_id
from chunkd.cluster.task import versions
from chunkd.cluster.tasks import Hands, Progress, Shard, carried_out, split
from chunkd.errors import CacheUnusable
from chunkd.fleet import export, snapshot
from chunkd.fleet.key import Key
from chunkd.fleet.segment import SegmentRules, digest_bytes, read_blobs
from chunkd.fleet.snapshot import Facts
from chunkd.fleet.store import Store
from chunkd.index import records
from chunkd.model import Digest


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a scan did and found, in blobs. `listed` is the sum of the others from `counted` on; `read`, `segments` and
    `reused` are what was done by this run and what had been done before. `source` and `moment` are those of the
    snapshot, "" where this run made none.
    """

    source: str
    moment: str
    read: int
    read_bytes: int
    segments: int
    reused: int
    listed: int
    counted: int
    failed: int
    archived: int
    pending: int
    unrecognised: int
    unlisted_folders: int
    unread: Mapping[str, int]
    peak_task_bytes: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be scanned, and how. `key_file` is the path on all machines of the key that hides digests, or ""."""

    path: str
    name: str
    rules: records.Rules
    hands: Hands
    shard: Shard | None = None
    retry_failed: bool = False
    key_file: str = ""


def scan(asked: Asked, store: Store, start: Callable[[], Engine], progress: Progress = lambda *_: None) -> Scanned:
    """Bring the store up to date with a source. `start` makes the engine, if there is something to do.

    Raises CacheUnusable where there is no blob, as something may be unmounted, TaskFailed, RulesDiffer, StoreUnusable,
    SegmentBad, KeyUnusable, what the engine raises, and OSError where the source can't be listed.
    """
    key = Key(asked.key_file) if asked.key_file else None
    rules = SegmentRules.of(asked.rules, key)
    store.begin(rules.params, rules.key)
    held = listed(asked.path, with_names=key is None)
    if not held.blobs:
        raise CacheUnusable(asked.path, "has no blob; if it is meant to, mount it, or name the folder of the blobs")
    if asked.shard:
        held.blobs = {digest: places for digest, places in held.blobs.items() if asked.shard.has(digest)}
    known = done(store, rules, held.blobs, key)
    left = {
        digest: places
        for digest, places in held.blobs.items()
        if digest not in known or (asked.retry_failed and known[digest][1] in ("failed", "archived"))
    }
    all_bytes, left_bytes = (sum(size for _, size in sizes(blobs)) for blobs in (held.blobs, left))
    reused, blobs_left = len(held.blobs) - len(left), len(left)
    task = {
        "kind": "scan", "source": asked.path, "store": store.path, "rules": rules.pack().decode(),
        "versions": versions(), "courtesy": asked.hands.courtesy, "workers": asked.hands.workers,
        "key_file": asked.key_file,
    }  # fmt: skip

    def task_of(digests: list[Digest]) -> dict[str, Any]:
        return {**task, "blobs": [(*digest, left[digest]) for digest in digests]}

    tasks = list(split(sorted(sizes(left), key=lambda one: (-one[1], one[0])), asked.hands.processes))
    read, segments, unread, peak_bytes = Counter[str](), 0, Counter[str](), 0
    for digests, said in itertools.chain.from_iterable(carried_out(tasks, task_of, start)):
        read.update(said["read"])
        unread.update(said["unread"])
        segments += len(said["segments"])
        peak_bytes = max(peak_bytes, said["peak_bytes"])
        for algorithm, hex_digits in said["vanished"]:
            held.blobs.pop(Digest(algorithm, hex_digits), None)
        blobs_left -= len(digests)
        left_bytes -= sum(size for _, size in sizes({digest: left[digest] for digest in digests}))
        progress(all_bytes - left_bytes, all_bytes, blobs_left)
    known = done(store, rules, held.blobs, key)
    kinds = Counter(kind for _, kind, _, _ in known.values())
    source, moment = "", ""
    if asked.shard is None:
        source = source_id(asked.path, asked.name)
        moment = _put_snapshot(asked, store, rules, held, known, unread)
    pending = len(held.blobs) - len(known)
    return Scanned(
        source, moment, read["blobs"], read["bytes"], segments, reused,
        len(held.blobs) + held.unrecognised, kinds["layer"] + kinds["other"], kinds["failed"], kinds["archived"],
        pending, held.unrecognised, held.unlisted_folders, unread, peak_bytes,
    )  # fmt: skip


def done(
    store: Store, rules: SegmentRules, blobs: Mapping[Digest, Sequence[Where]], key: Key | None = None
) -> dict[Digest, export.Held]:
    """Those of the blobs that a finished segment of the store has, by these rules, as rows of a snapshot.

    By other caps or another decoder a blob that was counted is still what it was, and one that failed is not. A blob
    that is counted in one segment and failed in another is counted.
    """
    listed = {digest_bytes(digest, key): (digest, {one.stored_bytes for one in of}) for digest, of in blobs.items()}
    found: dict[Digest, export.Held] = {}
    for segment in store.names("segments", ".blobs.parquet"):
        own, table, _ = read_blobs(store, segment)
        if (own.params, own.measure, own.key, own.mixed_library) != (rules.params, rules.measure, rules.key, False):
            continue
        alike = (own.caps, own.decoder) == (rules.caps, rules.decoder)
        columns = (table[name].to_pylist() for name in ("digest", "kind", "stored_bytes"))
        for packed, kind, size in zip(*columns, strict=True):
            digest, stored_bytes = listed.get(packed, (None, ()))
            if digest is None or size not in stored_bytes:
                continue
            counts = kind in ("layer", "other")
            if (counts or alike) and (digest not in found or (counts and found[digest][1] not in ("layer", "other"))):
                found[digest] = (packed, kind, size, segment)
    return found


def _put_snapshot(
    asked: Asked, store: Store, rules: SegmentRules, held: Held, known: Mapping[Digest, export.Held],
    unread: Mapping[str, int],
) -> str:  # fmt: skip
    pending = {digest: places for digest, places in held.blobs.items() if digest not in known}
    most = snapshot.MOST_NAME_CHARACTERS
    problems = [f"{count} blobs: {why}"[:most] for why, count in unread.items()]
    if held.unlisted_folders:
        problems.append(f"{held.unlisted_folders} of its folders could not be listed")
    if held.unread_names:
        problems.append(f"names could not be read in {held.unread_names} places")
    source = source_id(asked.path, asked.name)
    facts = Facts(
        shown_as(asked.path, asked.name)[:most], held.as_of_ns, held.as_of_ns, held.names_as_of_ns,
        pending_blobs=len(pending), pending_bytes=sum(size for _, size in sizes(pending)),
        unlisted_folders=held.unlisted_folders, problems=tuple(problems[-snapshot.MOST_PROBLEMS :]),
        unrecognised=held.unrecognised,
    )  # fmt: skip
    # Somebody may be about to remove what no snapshot refers to yet.
    for segment in {segment for _, _, _, segment in known.values()}:
        store.keep_segment(segment)
    moment = snapshot.put(store, source, time.time_ns(), facts, rules, list(known.values()), held.names)
    export.tidy(store, source)
    return moment


def to_json(scanned: Scanned) -> dict[str, Any]:
    """The object of `chunkd scan --store --json`."""
    return {**asdict(scanned), "unread": dict(scanned.unread)}
