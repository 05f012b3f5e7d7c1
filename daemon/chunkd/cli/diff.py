"""`chunkd diff`: what a client that has some images moves to pull another one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import click

from chunkd.cli import fail_if
from chunkd.cli.diff_lines import Link, diff_lines, with_seconds
from chunkd.cli.options import as_json, end_by, say_reply, settings
from chunkd.client.ask import Client
from chunkd.errors import UsageError
from chunkd.figures.words import shown
from chunkd.settings.resolve import Resolved

NONE = "none"
# What --fail-if takes, and where it is in the reply.
GATES = {
    "layer_bytes": ("layers", "stored_bytes"),
    "chunk_bytes": ("chunks", "total_bytes"),
    "cheaper_bytes": ("cheaper", "bytes"),
    "missing_layers": ("layers", "missing"),
    "missing_chunks": ("chunks", "missing"),
    "runs": ("chunks", "runs"),
}
_BITS = {"k": 10**3, "M": 10**6, "G": 10**9}


@click.command()
@settings("state_dir", "socket", "workers")
@as_json
@click.argument("references", nargs=-1, required=True, metavar="[A...] B")
@click.option("--from", "first", metavar="none", help="The client has nothing; then B alone is named.")
@click.option("--platform", default="", metavar="OS/ARCH", help="Pull this platform alone; otherwise all of them.")
@click.option(
    "--measure", is_flag=True, help="Decode the missing layers, to be exact. Needs to read the index and the blobs."
)
@click.option("--both", is_flag=True, help="Also say what the way back moves, from B to A.")
@click.option(
    "--link", metavar="RATE,LATENCY,PARALLEL",
    help="Add seconds, over a link such as 100Mbit,30ms,8: its rate, a latency for each round of requests, and how many"
    " requests are under way at once.",
)  # fmt: skip
@click.option(
    "--fail-if", "conditions", multiple=True, metavar="CONDITION",
    help=f"Exit 5 if this holds: one of {', '.join(GATES)}, then {' '.join(fail_if.OPERATORS)}, then a number, such as"
    " 'chunk_bytes>50MiB'. May be repeated.",
)  # fmt: skip
def diff(
    where: Resolved, json: bool, references: tuple[str, ...], first: str | None, platform: str, measure: bool,
    both: bool, link: str | None, conditions: tuple[str, ...],
) -> None:  # fmt: skip
    """Say what a client that has images A moves to pull image B.

    A and B are names or digests as `chunkd freed` takes them. An A may be a glob, for all images with a name that
    matches.

    As layers: the layers that the client lacks. As chunks: the chunks that it lacks, each compressed, and the lists of
    chunks of the missing layers. Manifests and configs move whole either way. A run is a stretch of missing chunks that
    follow one another in a layer. A range joins runs, and moves the gaps between them too. Chunks may cost more than
    layers, above all when the client has nothing.
    """
    gates = [fail_if.Condition(condition, tuple(GATES)) for condition in conditions]
    over = _link(link) if link is not None else None
    *has, to = references
    if first not in (None, NONE) or bool(has) == (first == NONE):
        raise UsageError("name what the client has, and the image that it pulls: `A B`, or `--from none B`")
    client = Client(where)

    def answer(has: Sequence[str], to: str) -> tuple[dict[str, Any], str]:
        """What is moved, and where that is from."""
        if measure:
            return _decoded(where, has, to, platform)
        found = client.diff(has, to, platform)
        return {**found}, client.source(found["as_of"])

    answers = [answer(has, to)]
    if both:
        back, _ = answers[0]
        if len(back["from"]) != 1:
            raise UsageError("--both needs one image that the client has")
        answers.append(answer([back["to"]], back["from"][0]))
    replies = [found if over is None else with_seconds(found, over) for found, _ in answers]
    sources = (source for _, source in answers)
    lines = (line for reply in replies for line in ("", *diff_lines(reply, next(sources))))
    say_reply(replies[0] | ({"back": replies[1]} if both else {}), json, itertools.islice(lines, 1, None))
    fail_if.test(gates, {name: (replies[0][column] or {}).get(part) for name, (column, part) in GATES.items()})
    end_by(client.stats())


def _decoded(where: Resolved, has: Sequence[str], to: str, platform: str) -> tuple[dict[str, Any], str]:
    from chunkd.service.decoded_diff import decoded_diff  # numpy, LMDB and workers: only where they are needed
    from chunkd.settings.config import effective

    found, state_dir = decoded_diff(effective(where, serving=False), where.states, has, to, platform)
    return found, f"from the index at {shown(state_dir)}, its layers decoded"


def _link(text: str) -> Link:
    found = re.fullmatch(r"([0-9]{1,6})([kMG])bit,([0-9]{1,6})ms,([0-9]{1,4})", text)
    if found is None or not int(found[1]) or not int(found[4]):
        raise UsageError("--link takes a rate, a latency and a number of requests, such as 100Mbit,30ms,8")
    return Link(int(found[1]) * _BITS[found[2]], int(found[3]), int(found[4]))
