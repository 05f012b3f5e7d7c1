"""The figures of all sources of a store together: what one index would say that had the blobs of all of them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chunkd.errors import ChunkdError
from chunkd.figures.stats import Stats
from chunkd.figures.totals import TOTALS, Totals
from chunkd.fleet import snapshot
from chunkd.fleet.snapshot import Snapshot
from chunkd.fleet.store import Store
from chunkd.fleet.tables import MEMORY_BYTES, Measured, Range, Tables
from chunkd.model import MeasureRule
from chunkd.queries.read import moment

# Bytes of segments that are done, those of all segments, and how many ranges of hashes are left.
Progress = Callable[[int, int, int], None]


class NothingToMerge(ChunkdError):
    exit_code = 3

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"store {path}: {why}; run `chunkd export {path}` on the hosts")


@dataclass(frozen=True, slots=True)
class Sources:
    """The snapshots that count, and those that do not: (source, its name, as of, why not)."""

    counted: tuple[Snapshot, ...]
    left_out: tuple[tuple[str, str, str | None, str], ...]

    @property
    def names(self) -> list[str]:
        """A name for each snapshot that counts, each once: with the beginning of its id where two have the same."""
        many = Counter(one.facts.name for one in self.counted)
        return [
            one.facts.name if many[one.facts.name] == 1 else f"{one.facts.name} ({one.source[:8]})"
            for one in self.counted
        ]


def sources_of(store: Store, least_as_of_ns: int = 0) -> Sources:
    """The latest snapshot of each source; those as of an earlier time are left out.

    Raises RulesDiffer unless all were made by the store's rules, NothingToMerge, and SegmentBad.
    """
    store.rules()  # raises if it is not a store
    counted: list[Snapshot] = []
    left_out: list[tuple[str, str, str | None, str]] = []
    for source in snapshot.sources(store):
        found = snapshot.latest(store, source)
        if found is None:
            left_out.append((source, "", None, "it has no snapshot yet"))
        elif found.facts.as_of_ns < least_as_of_ns:
            left_out.append((source, found.facts.name, moment(found.facts.as_of_ns), "it is too old"))
        else:
            counted.append(found)
    if not counted:
        raise NothingToMerge(store.path, "all of its sources are too old" if left_out else "it has no source yet")
    for one in counted:
        store.check(one.rules.params, one.rules.key, f"the source {one.facts.name} ({one.source}) has")
    return Sources(tuple(counted), tuple(left_out))


# What sums the chunks of a store's ranges up: the sums of each range, in any order.
Summed = Callable[[Tables, Sequence[Range], int, Measured], Iterable[Mapping[str, int]]]


def summed_here(
    tables: Tables, ranges: Sequence[Range], max_bytes: int, measured: Measured
) -> Iterator[dict[str, int]]:
    """One range after the other, in this process."""
    return (tables.chunk_sums(low, high, max_bytes, measured) for low, high in ranges)


def merge(
    store: Store, sources: Sources, memory_bytes: int = MEMORY_BYTES, progress: Progress = lambda *_: None,
    summed: Summed = summed_here,
) -> dict[str, Any]:  # fmt: skip
    """The object of `chunkd merge --json`: that of `chunkd stats --json`, and `fleet`.

    Raises BlobsMissing, SegmentBad, SegmentsDisagree and StoreTooLarge, and what `summed` does.
    """
    counted = sources.counted
    params = counted[0].rules.params
    measured, rule, warnings = measured_alike(sources)
    with loaded(store, sources, memory_bytes) as tables:
        tables.check_rows_files()
        sums: Counter[str] = Counter()
        ranges = list(tables.ranges())
        for done, of_range in enumerate(summed(tables, ranges, params.max_bytes, measured), 1):
            sums.update(of_range)
            progress(tables.rows_bytes * done // len(ranges), tables.rows_bytes, len(ranges) - done)
        tables.check_sums(sums, params.max_bytes)
        found = tables.blob_sums() | sums
        held = tables.source_sums()
    known = (name for name in TOTALS if measured.is_known or not name.startswith("measured_"))
    pending = [(one.facts.pending_blobs, one.facts.pending_bytes) for one in counted]
    stats = Stats(
        Totals.of({name: found.get(name, 0) for name in known}),
        _sum(blobs for blobs, _ in pending), _sum(size for _, size in pending),
        _oldest(one.facts.as_of_ns for one in counted), _oldest(one.facts.scanned_at_ns for one in counted),
        watching=False, index_bytes=0, params=params, caps=counted[0].rules.caps, caches=(), measure=rule,
        warnings=(*warnings, *_problems(sources)), unlisted_folders=_sum(one.facts.unlisted_folders for one in counted),
    ).to_json()  # fmt: skip
    stats |= {"index_bytes": None, "scanning": False, "scans": 0, "settled": None}
    stats["params"]["caps"] = _only([dataclasses.asdict(one.rules.caps) for one in counted])
    stats["params"]["measure"] = stats["params"]["measure"] if measured.is_known else None
    fleet = fleet_of(sources, held)
    return stats | {"fleet": fleet | {"waterfall": _waterfall(fleet["sources"], stats)}}


@contextlib.contextmanager
def loaded(store: Store, sources: Sources, memory_bytes: int = MEMORY_BYTES) -> Iterator[Tables]:
    """The blobs of the sources, and which segments have them. Raises BlobsMissing, SegmentBad and SegmentsDisagree."""
    with Tables(store, memory_bytes) as tables:
        segments = [tables.add_snapshot(number, one) for number, one in enumerate(sources.counted)]
        for segment in sorted(set().union(*segments)):
            tables.add_segment(segment)
        tables.choose(sources.names)
        yield tables


def fleet_of(sources: Sources, held: Mapping[int, tuple[int, int, int]]) -> dict[str, Any]:
    """The sources that count and those that do not; `held` is `Tables.source_sums`."""
    counted = enumerate(zip(sources.counted, sources.names, strict=True))
    rows = [
        {
            "source": one.source, "name": name, "as_of": moment(one.facts.as_of_ns),
            **dict(zip(("blobs", "layers", "layer_stored_bytes"), held.get(number, (0, 0, 0)), strict=True)),
            "problems": list(one.facts.problems),
        }
        for number, (one, name) in counted
    ]  # fmt: skip
    left_out = [
        {"source": source, "name": name, "as_of": as_of, "reason": reason}
        for source, name, as_of, reason in sources.left_out
    ]
    return {"sources": rows, "left_out": left_out}


def _waterfall(rows: Sequence[Mapping[str, Any]], stats: Mapping[str, Any]) -> dict[str, Any]:
    """From all hosts' own copies to chunks: the first step needs no chunks."""
    recompressed_bytes = stats["recompressed_bytes"]
    return {
        "copies_layers": sum(row["layers"] for row in rows),
        "copies_bytes": sum(row["layer_stored_bytes"] for row in rows),
        "distinct_layers": stats["layers"],
        "distinct_layers_bytes": stats["layer_stored_bytes"],
        "unique_chunks": stats["unique_chunks"],
        "unique_chunks_bytes": stats["unique_bytes"],
        "recompressed_with_index_bytes": (
            None if recompressed_bytes is None else recompressed_bytes + stats["index_overhead_bytes"]
        ),
    }


def measured_alike(sources: Sources) -> tuple[Measured, MeasureRule, list[str]]:
    """Which recompressed lengths count, the rule by which they do, and why none does if that is so."""
    rules = [one.rules for one in sources.counted]
    coarsest = max(rule.measure.one_in for rule in rules)
    needed_level = (coarsest - 1).bit_length()
    first = rules[0].measure
    if len({(rule.measure.level, rule.measure.library) for rule in rules}) > 1 or any(
        rule.mixed_library for rule in rules
    ):
        said = [
            f"{name} at level {rule.measure.level} of {'several versions, the first ' * rule.mixed_library}"
            f"{rule.measure.library or 'zstd'}"
            for name, rule in zip(sources.names, rules, strict=True)
        ]
        return (
            Measured(False),
            first,
            [f"recompressed and net are not known, as hosts measured unlike: {', '.join(said)}"],
        )
    if len({rule.measure.one_in for rule in rules}) == 1:
        return Measured(True, 0, needed_level), first, []
    # Of rules that are no powers of two, the lengths that each of them has are those of the next power.
    rule = dataclasses.replace(first, one_in=1 << needed_level)
    return Measured(True, needed_level, needed_level), rule, []


def _problems(sources: Sources) -> list[str]:
    return [
        f"{name}: {problem}"
        for one, name in zip(sources.counted, sources.names, strict=True)
        for problem in one.facts.problems
    ]


def _sum(numbers: Any) -> int | None:
    """None if one of them is not known."""
    found = list(numbers)
    return None if None in found else sum(found)


def _oldest(times_ns: Any) -> str | None:
    return moment(min(times_ns))


def _only(values: Sequence[Any]) -> Any:
    """The value that all of them are, or None."""
    return values[0] if all(value == values[0] for value in values) else None
