"""`chunkd where`: which directories, files and packages the further copies are in, and why there are any."""

from __future__ import annotations

import sys

import click

from chunkd.cli.options import INCOMPLETE, as_json, end_by, quietly, say_reply, settings
from chunkd.cli.progress import progress
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
    help="How many parts of a path a directory has.",
)  # fmt: skip
@click.option(
    "--layers", metavar="1/N",
    help="Read one layer in N, picked by their digests. By default all, but without IMAGE at most some 16 GiB of them.",
)  # fmt: skip
def where(
    place: Resolved, json: bool, quiet: bool, reference: str, by: str, depth: int, layers: str | None
) -> None:  # fmt: skip
    """Say which directories, files and packages the redundancy is in.

    Decodes layers again: those of an image, of all images of a repository, or of the whole index. It must be able to
    read the index and the blobs. The first copy of a chunk is the one in the layer with the least digest. All others
    are further copies, which a chunk store would not keep. Each byte of a further copy belongs to the file of the
    layer's tar that covers it, with its header. It has one cause, the first of these that holds:

    \b
      zeros                 a chunk of zeros alone
      the same layer        all chunks of the layer equal another layer's
      the same file         the same content at the same path
      the same file, moved  the same content at another path
      parts, headers        all else: files that are alike in part, headers

    The causes add up to the uncompressed bytes minus the unique bytes of the layers that were read. A shared base image
    would save the same files as well; parts take a chunk store. A layer that can't be read is named and left out, and
    the command exits 7.
    """  # noqa: D301 - click's mark for a paragraph that is not to be rewrapped
    # numpy, LMDB and workers: only where they are needed.
    from chunkd.settings.config import effective
    from chunkd.where.where import Question, part_of
    from chunkd.where.where import where as asked

    question = Question(value_of("repository", reference), by, depth, part_of(layers) if layers is not None else 0)
    with progress("read", "layers to go", quiet=quiet) as show:
        reply, state_dir = asked(effective(place, serving=False), place.states, question, show)
    say_reply(reply, json, where_lines(reply, state_dir))
    if reply["unread_layers"]:
        sys.exit(INCOMPLETE)
    end_by(Client(place).stats())
