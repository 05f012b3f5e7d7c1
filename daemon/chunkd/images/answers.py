"""The replies of `images`, `freed`, `similar`, `diff` and `updates`: read at one moment of the index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from chunkd.images import references
from chunkd.images.atoms import members
from chunkd.images.collection import MOST_SHOWN, collection
from chunkd.images.diff import diff as diff  # a question like those below, as is `updates`
from chunkd.images.figures import Images
from chunkd.images.pages import Reply
from chunkd.images.read import Reading, names_as_of, read
from chunkd.images.similarity import Similarities
from chunkd.images.updates import updates as updates
from chunkd.index.storage.environment import Store
from chunkd.queries.read import moment

if TYPE_CHECKING:
    import lmdb

IMAGE, REPOSITORY = "image", "repository"
PAIRS = 20
NAMES_OF_ALIKE = 10

# One of the functions below with its arguments.
Question = tuple[Callable[..., Reply], tuple[Any, ...]]


def images(reading: Reading, by: str) -> Reply:
    return list_of(reading.images, by)


def list_of(of: Images, by: str) -> Reply:
    """`Images.to_json` or, by `repository`, `Images.by_repository`. A row has MOST_SHOWN names and platforms at most;
    `left_out` counts the rest. `names_without_blob` counts names whose digest is not here.
    """
    found = of.by_repository() if by == REPOSITORY else of.to_json()
    for row in found.get("images", ()):
        left_out = 0
        for what in ("names", "platforms", "absent_platforms"):
            left_out += max(0, len(row[what]) - MOST_SHOWN)
            row[what] = row[what][:MOST_SHOWN]
        row["left_out"] = left_out
    return found | {"names_without_blob": of.graph.names_without_blob}


def summary(reading: Reading, most_repositories: int) -> Reply:
    """`Images.summary`, and the rows of `Images.by_repository` with the largest fair shares on disk."""
    rows: list[Reply] = []
    if most_repositories:
        rows = [row for row in reading.images.by_repository()["repositories"] if row["repository"]]
        rows.sort(key=lambda row: (-row["stored"]["fair_share_bytes"], row["repository"]))
    return {"summary": reading.images.summary(), "repositories": rows[:most_repositories]}


def freed(reading: Reading, wanted: Sequence[str], keep_last: int) -> Reply:
    """`Images.freed` for what references mean, without the last `keep_last` of each repository; with the names of these
    images, the images that other names keep, and what a collection would do. Raises UsageError.
    """
    graph = reading.images.graph
    meant = references.resolve(graph, wanted)
    some = meant.images & ~(references.latest(graph, meant.images, keep_last) if keep_last else 0)
    names = sorted(name for number in members(some).tolist() for name in graph.roots[number].names) if some else []
    kept = [
        {"digest": str(graph.roots[number].digest), "names": list(others[:MOST_SHOWN])}
        for number, others in meant.kept.items()
    ]
    return reading.images.freed(some) | {
        "names": names[:MOST_SHOWN],
        "names_left_out": len(names[MOST_SHOWN:]),
        "kept": kept[:MOST_SHOWN],
        "kept_left_out": len(kept[MOST_SHOWN:]),
        "kept_last": (meant.images & ~some).bit_count(),
        "collection": collection(reading, some),
    }


def similar(reading: Reading, least_permille: int) -> Reply:
    """`alike`: the images that are in a cluster, cluster by cluster, the largest first, each with its cluster's number
    from 1 on and its first names. `pairs`: the PAIRS of images of different repositories that share most.

    `common_bytes` are the chunks left out because more than half of all images have them. What a partial image lacks is
    not compared.
    """
    roots = reading.images.graph.roots
    found = Similarities(reading.images.chunk_parts(), len(roots))

    def image(number: int) -> Reply:
        root = roots[number]
        return {"digest": str(root.digest), "names": list(root.names[:NAMES_OF_ALIKE]), "partial": root.is_partial}

    pairs = []
    for one, other, overlap_bytes in found.largest(PAIRS, [root.repositories for root in roots]):
        referenced = found.referenced[one], found.referenced[other]
        pairs.append(
            {
                "images": [image(one), image(other)],
                "overlap_bytes": overlap_bytes,
                "similarity": overlap_bytes / (sum(referenced) - overlap_bytes),
                "contained": [overlap_bytes / size_bytes for size_bytes in referenced],
            }
        )
    clusters = enumerate(found.clusters(least_permille), 1)
    return {
        "threshold": least_permille / 1000,
        "common_bytes": found.common_bytes,
        "pairs": pairs,
        "alike": [{"cluster": at} | image(number) for at, group in clusters for number in group],
    }


def asked(store: Store, question: Question) -> Reply:
    """The whole reply to a question, with the moment that it shows: `as_of`, `names_as_of`, and in `commit` the number
    of the transaction. Raises TooManyImages, UsageError and IndexDamaged.
    """
    with store.snapshot() as txn:
        store.check_format(txn, None)
        return head(store, txn) | question[0](read(store, txn), *question[1]) | {"next": None}


def head(store: Store, txn: lmdb.Transaction) -> Reply:
    """The moment that a reply shows."""
    as_of = moment(store.head(txn).as_of_ns)
    return {"as_of": as_of, "names_as_of": names_as_of(store, txn), "commit": txn.id()}
