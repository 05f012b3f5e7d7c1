"""The figures and the daemon's counters for Prometheus: as OpenMetrics, or in the older text format for other clients.

Names follow OpenMetrics: the unit is last, and `_total` marks a counter. A figure that is null has no sample.
"""

from __future__ import annotations

import datetime as dt
import itertools
import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import exposition
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)  # fmt: skip
from prometheus_client.openmetrics import exposition as openmetrics

from chunkd import __version__
from chunkd.figures.names import METRICS
from chunkd.ingest.counters import DELAYS_S, Counters

# The types of the two formats. The library's newest type for text is not the one that scrapers ask for.
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNITS = ("bytes", "ratio", "seconds")
TIMES = {
    "as_of": ("committed", "Last commit that changed anything."),
    "scanned_at": ("scanned", "End of the last scan that listed every folder and whose blobs have been read."),
}
CACHE_STATES = ("watched", "polled", "unwatched", "stale", "hung", "idle")


# Of each repository: what is in its row of `/v1/images?by=repository`.
REPOSITORY_METRICS = {
    ("stored", "fair_share_bytes"): ("fair_share", "Its part of what several repositories hold, on disk."),
    ("stored", "exclusive_bytes"): ("exclusive", "What no other repository holds, on disk."),
    ("chunks", "fair_share_bytes"): ("chunk_fair_share", "Its part of the bytes of chunks that differ."),
}
IMAGE_METRICS = {
    "images": ("images", "Manifests and indexes that have a name or are in no other."),
    "names": ("image_names", "Names of these."),
    "partial_images": ("partial_images", "Images that lack a config or a layer."),
    "unreached_blobs": ("unreached_blobs", "Blobs that no named image holds."),
    "unreached_bytes": ("unreached_bytes", "Size on disk of those."),
}


def exposed(
    stats: Mapping[str, Any],
    problems: int,
    counts: Counters,
    read: tuple[int, int],
    accept: str,
    repositories: Iterable[Mapping[str, Any]] = (),
) -> tuple[str, bytes]:
    """The content type and the content.

    `stats` is the object of `/v1/stats`, `read` how many blobs workers have read and their stored bytes, `accept` the
    client's header of that name, and `repositories` are rows of `/v1/images?by=repository`.
    """
    images = _images(stats["images"], repositories)
    collected = _Collected([*_figures(stats), *images, *_state(stats, problems), *_counted(counts, *read)])
    if "application/openmetrics-text" in accept:
        return OPENMETRICS_TYPE, openmetrics.generate_latest(collected)
    return TEXT_TYPE, exposition.generate_latest(collected)


class _Collected:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _gauge(metric: str, meaning: str, value: float) -> Metric:
    unit = metric.rpartition("_")[2]
    return GaugeMetricFamily(metric, meaning, float(value), unit=unit if unit in UNITS else "")


def _figures(stats: Mapping[str, Any]) -> Iterator[Metric]:
    for name, (metric, meaning) in METRICS.items():
        if stats[name] is not None:
            yield _gauge(f"chunkd_{metric}", meaning, stats[name])


def _images(summary: Mapping[str, Any] | None, repositories: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    if summary is None:
        return
    for name, (metric, meaning) in IMAGE_METRICS.items():
        yield _gauge(f"chunkd_{metric}", meaning, summary[name])
    at_s = dt.datetime.fromisoformat(summary["as_of"]).timestamp()
    yield _gauge("chunkd_images_computed_timestamp_seconds", "The commit that these were computed from.", at_s)
    rows = list(repositories)
    for (column, name), (metric, meaning) in REPOSITORY_METRICS.items() if rows else ():
        found = GaugeMetricFamily(f"chunkd_repository_{metric}_bytes", meaning, labels=("repository",), unit="bytes")
        for row in rows:
            if row[column] is not None:  # the chunks of a partial one are not known
                found.add_metric((_label(row["repository"]),), float(row[column][name]))
        yield found


def _label(text: str) -> str:
    """Paths and names are bytes; labels are UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _state(stats: Mapping[str, Any], problems: int) -> Iterator[Metric]:
    for name, (metric, meaning) in TIMES.items():
        if stats[name] is not None:
            at_s = dt.datetime.fromisoformat(stats[name]).timestamp()
            yield _gauge(f"chunkd_{metric}_timestamp_seconds", meaning, at_s)
    yield _gauge("chunkd_watching", "1 while events come from every cache.", stats["watching"])
    yield _gauge("chunkd_settled", "1 while nothing is left to be done.", stats["settled"])
    yield _gauge("chunkd_problems", "Reasons for which chunkd health says degraded.", problems)
    yield CounterMetricFamily("chunkd_scans", "Scans that have listed every folder.", float(stats["scans"]))
    caches = GaugeMetricFamily("chunkd_cache_state", "1 for the state that a cache is in.", labels=("cache", "state"))
    for cache, state in itertools.product(stats["caches"], CACHE_STATES):
        caches.add_metric((_label(cache["path"]), state), float(cache["state"] == state))
    yield caches
    yield InfoMetricFamily(
        "chunkd_build", "The version that runs.", {"version": __version__, "python": platform.python_version()}
    )


def _counted(counts: Counters, blobs: int, stored_bytes: int) -> Iterator[Metric]:
    yield CounterMetricFamily("chunkd_read_blobs", "Blobs that workers have read.", float(blobs))
    yield CounterMetricFamily("chunkd_read_bytes", "Stored bytes of those.", float(stored_bytes), unit="bytes")
    failures = CounterMetricFamily("chunkd_failures", "Failures of blobs, each try counted.", labels=("reason",))
    for reason, times in counts.failures.items():
        failures.add_metric((reason,), float(times))
    yield failures
    bounds = [*map(str, DELAYS_S), "+Inf"]
    buckets = list(zip(bounds, map(float, itertools.accumulate(counts.delays)), strict=True))
    meaning = "From a blob's landing to its being in the figures."
    delays = HistogramMetricFamily("chunkd_landing_seconds", meaning, unit="seconds")
    delays.add_metric((), buckets, counts.delays_s)
    yield delays
