"""What must hold to the byte between the replies of the commands, whatever the images are."""

from __future__ import annotations

import json
import random
from typing import Any

from daemon import Home
from image_oracle import Oracle

Reply = dict[str, Any]


def printed(home: Home, *words: object) -> Any:
    done = home.command(*words, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def assert_sums(home: Home, reply: Reply, what: str = "images") -> None:
    """The figures of `stats` are those that fair shares and new bytes add up to, and the parts of each row are the
    whole.
    """
    stats, partial, unheld = printed(home, "stats"), reply["partial"], reply["unheld"]
    for row in reply[what]:
        stored, chunks = row["stored"], row["chunks"]
        assert stored["exclusive_bytes"] + stored["shared_bytes"] == stored["referenced_bytes"]
        if chunks:
            parts = [chunks[f"{name}_bytes"] for name in ("exclusive", "shared", "repeated")]
            assert sum(parts) == chunks["uncompressed_bytes"]
            assert min(parts) >= 0
    for name in ("fair_share_bytes", "new_bytes"):
        stored = sum(row["stored"][name] for row in reply[what])
        chunks = sum(row["chunks"][name] for row in reply[what] if row["chunks"])
        assert stored + unheld["stored_bytes"] == stats["stored_bytes"]
        assert chunks + partial[name] + unheld["unique_bytes"] == stats["unique_bytes"]


def freed_bytes(reply: Reply) -> tuple[int, int]:
    return reply["stored"]["bytes"], reply["chunks"]["bytes"]


def moved_bytes(home: Home, client: str, to: str) -> tuple[int, int]:
    reply = printed(home, "diff", *([client] if client else ["--from", "none"]), to)
    return reply["layers"]["stored_bytes"], reply["chunks"]["bytes"]


def assert_invariants(home: Home, expected: Oracle, replies: Reply, draw: random.Random) -> None:
    """`replies` are those of `compare`: `images`, `repositories`, `similar`, what each image frees, and what all do."""
    found, stats = replies["images"], printed(home, "stats")
    assert_sums(home, found)
    assert_sums(home, replies["repositories"], "repositories")
    rows = {row["digest"]: row for row in found["images"]}
    for digest, row in rows.items():
        chunks = row["chunks"]
        assert freed_bytes(replies[digest])[0] == row["stored"]["exclusive_bytes"]
        assert chunks is None or freed_bytes(replies[digest])[1] == chunks["exclusive_bytes"]
    everything = (stats["stored_bytes"], stats["unique_bytes"])
    unheld = (found["unheld"]["stored_bytes"], found["unheld"]["unique_bytes"])
    assert freed_bytes(replies["all"]) == tuple(map(int.__sub__, everything, unheld))
    for _ in range(3):
        some = draw.sample(sorted(rows), min(len(rows), draw.randint(2, 6)))
        one, other = some[::2], some[1::2]
        if other:
            together = freed_bytes(printed(home, "freed", *some))
            apart = map(int.__add__, *(freed_bytes(printed(home, "freed", *each)) for each in (one, other)))
            assert all(map(int.__ge__, together, apart))
    whole = sorted(digest for digest, row in rows.items() if row["chunks"])
    for a, b in ((draw.choice(whole), draw.choice(whole)) for _ in range(3)):
        held = {
            digest: tuple(rows[digest][what]["referenced_bytes"] for what in ("stored", "chunks")) for digest in (a, b)
        }
        assert moved_bytes(home, "", b) == held[b]
        assert moved_bytes(home, a, a) == (0, 0)
        there, back = moved_bytes(home, a, b), moved_bytes(home, b, a)
        assert tuple(map(int.__add__, held[a], there)) == tuple(map(int.__add__, held[b], back))
    common = expected.common_chunks()
    assert replies["similar"]["common_bytes"] == sum(common.values())
    for pair in replies["similar"]["pairs"]:
        sets = [dict(expected.chunks_of(image["digest"]).items() - common.items()) for image in pair["images"]]
        both, either = (sum(chunks.values()) for chunks in (dict(sets[0].items() & sets[1].items()), sets[0] | sets[1]))
        assert (pair["overlap_bytes"], pair["similarity"]) == (both, both / either)
        assert (pair["similarity"] == 1) == (sets[0] == sets[1])
