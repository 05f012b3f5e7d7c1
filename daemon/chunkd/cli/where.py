"""`chunkd where`: which directories, files and packages the further copies are in, and why there are any."""

from __future__ import annotations

import json as jsonlib
import sys
from typing import Any

import click

from chunkd.cli.options import INCOMPLETE, as_json, end_by, quietly, say_lines, settings
from chunkd.cli.output import say
from chunkd.cli.where_lines import where_lines
from chunkd.client.ask import Client
from chunkd.parameters import value_of
from chunkd.settings.resolve import Resolved

BY = ("directory", "extension", "package", "file")


@click.command()
@settings("state_dir", "socket", "workers")
@as_json
@quietly
@click.argument("reference", required=False, default="", metavar="[IMAGE|REPOSITORY]")
@click.option(
    "--by", type=click.Choice(BY), default="directory", show_default=True,
    help="What a row is. Packages are those of dpkg and apk.",
)  # fmt: skip
@click.option(
    "--depth", type=click.IntRange(1, 64), default=3, show_default=True,
    help="A directory is so many parts of a path.",
)  # fmt: skip
@click.option(
    "--layers", metavar="1/N",
    help="Read one layer in N, picked by their digests. By default all, but without IMAGE at most some 16 GiB of them.",
)  # fmt: skip
def where(
    place: Resolved, json: bool, quiet: bool, reference: str, by: str, depth: int, layers: str | None
) -> None:  # fmt: skip
    """Say which directories, files and packages the redundancy is in.

    The layers of an image, of all images of a repository, or without either those of the whole index are decoded again;
    the index and the blobs must be readable. Of each chunk the first copy is the one in the layer with the least
    digest; all others are further copies, which a chunk store would not keep. Each of their bytes belongs to the file
    of the layer's tar that covers it, with its header, and has one cause, the first that holds:

    \b
      zeros                 a chunk of zeros alone
      the same layer        all chunks of the layer equal another layer's
      the same file         the same content at the same path
      the same file, moved  the same content at another path
      parts, headers        all else: files that are alike in part, headers

    They add up to the uncompressed bytes minus the unique bytes of the layers that were read. The same files are what a
    shared base image would save as well; for parts it takes a chunk store. A layer that can't be read is named and left
    out, and the command exits 7.
    """  # noqa: D301 - click's mark for a paragraph that is not to be rewrapped
    # numpy, LMDB and workers: only where they are needed.
    from chunkd.cli.progress import progress, silent
    from chunkd.settings.config import effective
    from chunkd.where.where import Question, part_of
    from chunkd.where.where import where as asked

    question = Question(value_of("repository", reference), by, depth, part_of(layers) if layers is not None else 0)
    states = [given.value for given in place.states]
    with silent() if quiet else progress("read", "layers to go") as show:
        reply, state_dir = asked(effective(place, serving=False), states, question, show)
    if json:
        say(jsonlib.dumps(reply, indent=1))
    else:
        say_lines(where_lines(reply, state_dir))
    if reply["unread_layers"]:
        sys.exit(INCOMPLETE)
    end_by(Client(place).stats())


COMMANDS: tuple[Any, ...] = (where,)
