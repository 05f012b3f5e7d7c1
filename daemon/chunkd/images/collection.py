"""What the programs that own the blobs would free by their own collection, and what stands in its way."""

from __future__ import annotations

from typing import Any

from chunkd.images.atoms import members
from chunkd.images.columns import freed
from chunkd.images.read import Reading

MOST_SHOWN = 1000


def collection(reading: Reading, some: int) -> dict[str, Any]:
    """For a set of images.

    sources          where their names come from (`registry`, `layout`, `containerd`, `names file`); `registry` also if
                     a registry has a revision of a manifest that they hold
    freed_now_bytes  what a distribution registry's garbage collection would free of them as the tree is now; null
                     without a registry. It frees nothing that a manifest with a revision link names
    delete           the revisions that must go before it frees the rest, by repository and digest, MOST_SHOWN at most
    has_index        whether any manifest here is a list of others, whose children have no tags
    """
    graph = reading.images.graph
    holders_of_links, delete, left_out = 0, list[dict[str, str]](), 0
    for digest, holders in graph.holders_of():
        if digest in reading.linked and holders & some:
            holders_of_links |= holders
            if not holders & ~some:
                rows = [{"repository": name, "digest": str(digest)} for name in sorted(reading.linked[digest])]
                room = MOST_SHOWN - len(delete)
                delete += rows[:room]
                left_out += len(rows[room:])
    roots = (graph.roots[number] for number in members(some).tolist()) if some else ()
    sources = set().union(*(reading.sources.get(root.digest, ()) for root in roots))
    if holders_of_links & some:
        sources.add("registry")
    now = freed([reading.images.stored], some & ~holders_of_links).bytes if "registry" in sources else None
    return {
        "sources": sorted(sources),
        "freed_now_bytes": now,
        "delete": delete,
        "delete_left_out": left_out,
        "has_index": reading.has_index,
    }
