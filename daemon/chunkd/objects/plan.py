"""What a scan of a bucket would read and take, from its listing alone: no blob is read.

Pure but for the listing, of which `count` is given the pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chunkd.objects.bucket import EMPTY
from chunkd.objects.reader import RANGE_BYTES
from chunkd.objects.store import PAGE_KEYS, Object
from chunkd.sources import layouts

# The classes whose objects can't be read before they are restored, those of which each byte read is paid for, and those
# that a read moves to a class that costs more.
ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE", "ARCHIVE"})
RETRIEVALS = frozenset({"STANDARD_IA", "ONEZONE_IA", "GLACIER_IR", "NEARLINE", "COLDLINE", "COOL", "COLD"})
PROMOTED = frozenset({"INTELLIGENT_TIERING"})
# So many objects are asked for their class.
SAMPLE = 100
GB = 10**9


@dataclass(slots=True)
class Counted:
    """What a bucket holds, by its listing. `sample` are some blobs, spread over all of them by their names."""

    objects: int = 0
    blobs: int = 0
    blob_bytes: int = 0
    ranges: int = 0
    upload_objects: int = 0
    upload_bytes: int = 0
    placeholders: int = 0
    other_objects: int = 0
    other_bytes: int = 0
    largest_bytes: int = 0
    pages: int = 0
    sample: list[Object] = field(default_factory=list)
    digests: set[int] = field(default_factory=set)


def count(url: str, prefix: str, pages: Iterable[Sequence[Object]]) -> Counted:
    """Counts all objects of a listing below the URL's prefix. A digest with several places is one blob."""
    found, step, skip = Counted(), 1, len(prefix)
    for page in pages:
        found.pages += 1
        for of in page:
            found.objects += 1
            path, size = of.key[skip:], of.stored_bytes
            if "/_uploads/" in path:
                found.upload_objects += 1
                found.upload_bytes += size
                continue
            named = layouts.identify(url, path)
            if named is None:
                found.other_objects += 1
                found.other_bytes += size
                continue
            if not size and named[0].hex not in EMPTY:
                found.placeholders += 1
                continue
            known = len(found.digests)
            # 64 bits of the digest tell blobs apart, in a third of the memory that its text takes.
            found.digests.add(int(named[0].hex[:16], 16))
            if len(found.digests) == known:
                continue
            found.blobs += 1
            found.blob_bytes += size
            found.ranges += -(-size // RANGE_BYTES)
            found.largest_bytes = max(found.largest_bytes, size)
            if found.blobs % step == 0:
                found.sample.append(of)
                if len(found.sample) >= 2 * SAMPLE:
                    found.sample, step = found.sample[1::2], 2 * step
    found.pages = max(found.pages, -(-found.objects // PAGE_KEYS))
    return found


def plan(
    counted: Counted,
    classes: Mapping[str, tuple[int, int]],
    stored_bytes_per_cpu_s: float,
    workers: int,
    where: Mapping[str, Any],
    prices: Mapping[str, float] | None,
) -> dict[str, Any]:
    """The reply of `chunkd scan --plan`. `classes` has the objects and bytes of the sample by storage class, `where`
    whether this machine is beside the bucket. Money only with `prices`, by the names of `PRICES`.
    """
    by_class = _estimated(classes, counted.blob_bytes)
    archived_bytes = sum(size for name, size in by_class.items() if name in ARCHIVES)
    retrieved_bytes = sum(size for name, size in by_class.items() if name in RETRIEVALS)
    promoted_bytes = sum(size for name, size in by_class.items() if name in PROMOTED)
    read_bytes = counted.blob_bytes - archived_bytes
    cpu_s = read_bytes / stored_bytes_per_cpu_s
    reply: dict[str, Any] = {
        "objects": counted.objects,
        "blobs": counted.blobs,
        "blob_bytes": counted.blob_bytes,
        "read_bytes": read_bytes,
        "archived_bytes": archived_bytes,
        "retrieval_bytes": retrieved_bytes,
        "promoted_bytes": promoted_bytes,
        "upload_objects": counted.upload_objects,
        "upload_bytes": counted.upload_bytes,
        "placeholders": counted.placeholders,
        "other_objects": counted.other_objects,
        "other_bytes": counted.other_bytes,
        "largest_bytes": counted.largest_bytes,
        "list_requests": counted.pages,
        "get_requests": counted.ranges,
        "sampled_objects": sum(number for number, _ in classes.values()),
        "storage_classes": by_class,
        "stored_bytes_per_cpu_s": round(stored_bytes_per_cpu_s),
        "cpu_hours": cpu_s / 3600,
        "workers": workers,
        "wall_s": cpu_s / workers,
        **where,
    }
    reply["warnings"] = list(warnings(reply))
    reply["cost"] = None if prices is None else cost(reply, prices)
    return reply


def _estimated(classes: Mapping[str, tuple[int, int]], blob_bytes: int) -> dict[str, int]:
    """The bytes of each class, as the sample has them."""
    sampled_bytes = sum(size for _, size in classes.values())
    return {name: blob_bytes * size // sampled_bytes if sampled_bytes else 0 for name, (_, size) in classes.items()}


def warnings(reply: Mapping[str, Any]) -> Iterator[str]:
    """In words what may cost more than the scan itself, worst first."""
    size = f"{reply['read_bytes'] / GB:,.1f} GB"
    bucket, here = reply["bucket_region"], reply["own_region"]
    if bucket and here and bucket != here:
        yield (
            f"the bucket is in {bucket} and this machine in {here}: all {size} would cross regions, which is paid for"
            " by the byte; run the scan in the bucket's region"
        )
    elif reply["is_aws"] and not here:
        yield (
            f"this machine seems to be outside of AWS: all {size} would leave over the internet, the dearest way;"
            " run the scan on a machine in the bucket's region"
        )
    if reply["is_aws"]:
        yield (
            f"if this machine reaches the bucket through a NAT gateway, each of the {size} is paid for there, which"
            " may be more than all else together; make a gateway endpoint for S3 first, which is free"
        )
    if reply["retrieval_bytes"]:
        yield (
            f"about {reply['retrieval_bytes'] / GB:,.1f} GB lie in infrequent access or instant archive, where each"
            " byte that is read is paid for"
        )
    if reply["promoted_bytes"]:
        yield (
            f"about {reply['promoted_bytes'] / GB:,.1f} GB lie in intelligent tiering: a read moves what had become"
            " cheap back to the frequent tier, for 30 days or more"
        )
    if reply["archived_bytes"]:
        yield (
            f"about {reply['archived_bytes'] / GB:,.1f} GB are archived and can't be read: they are counted as"
            " archived, and in no other figure, until they are restored"
        )
    if reply["upload_bytes"]:
        yield (
            f"{reply['upload_bytes'] / GB:,.1f} GB in _uploads/ are of pushes that never ended: no blobs, but paid for"
        )


# What `--prices` may name, with the figure that it is multiplied with, per so much.
PRICES: dict[str, tuple[str, float]] = {
    "cpu_hour": ("cpu_hours", 1),
    "list_per_1000": ("list_requests", 1000),
    "get_per_1000": ("get_requests", 1000),
    "transfer_per_gb": ("read_bytes", GB),
    "retrieval_per_gb": ("retrieval_bytes", GB),
    "promotion_per_gb": ("promoted_bytes", GB),
}


def cost(reply: Mapping[str, Any], prices: Mapping[str, float]) -> dict[str, float]:
    """What each priced part costs, and all together."""
    parts = {name: reply[of] / per * prices[name] for name, (of, per) in PRICES.items() if name in prices}
    return parts | {"sum": sum(parts.values())}


def by_class(found: Iterable[tuple[Object, str]]) -> dict[str, tuple[int, int]]:
    """How many sampled objects of how many bytes each storage class has."""
    numbers, sizes = Counter[str](), Counter[str]()
    for of, name in found:
        numbers[name] += 1
        sizes[name] += of.stored_bytes
    return {name: (numbers[name], sizes[name]) for name in sorted(numbers)}
