"""The commands about images: what each holds, what a removal would free, and which are alike."""

from __future__ import annotations

from typing import Any

import click

from chunkd.cli import image_tables
from chunkd.cli.options import as_json, asks, end_by, say_reply
from chunkd.client.ask import Client
from chunkd.errors import UsageError


@click.command()
@asks
@as_json
@click.option(
    "--by", type=click.Choice(["image", "repository"]), default="image", show_default=True,
    help="What a row is. Images without a name are one repository.",
)  # fmt: skip
@click.option(
    "--sort", type=click.Choice(list(image_tables.SORTS)), default="pushed", show_default=True,
    metavar="COLUMN", help=f"The latest, or the largest, first: {', '.join(image_tables.SORTS)}.",
)  # fmt: skip
@click.option("--untagged", is_flag=True, help="Only images without a name, each in a row of its own.")
@click.option("--partial", is_flag=True, help="Only images that lack a config or a layer, and what they lack.")
def images(client: Client, json: bool, by: str, sort: str, untagged: bool, partial: bool) -> None:
    """List the images, with what each holds and shares.

    An image is the digest of a manifest or an index that has a name or that nothing else contains. Stored: the bytes on
    disk of all that it holds. As chunks: the bytes of the distinct chunks of its layers, before compression. Exclusive:
    what no other image holds; removing this image alone would free it. Fair share: bytes that n images hold count one
    n-th for each. New: what no earlier image holds. Fair shares add up to the total, and so do new bytes; other columns
    do not.

    --untagged and --partial choose rows, and change no figure. With --json the whole reply is one object.
    """
    if by == "repository" and (untagged or partial):
        raise UsageError("--by repository can't be combined with --untagged or --partial")
    found: dict[str, Any] = {**(client.images() if by == "image" else client.repositories())}
    rows = image_tables.chosen(found, sort, untagged=untagged, partial=partial)
    source = client.source(found["as_of"])
    if partial:
        lines = image_tables.partial_lines(rows, found, source)
    else:
        lines = image_tables.image_lines(rows, found, source, untagged=untagged)
    say_reply(found | ({"images": rows} if untagged or partial else {}), json, lines)
    end_by(client.stats())


@click.command()
@asks
@as_json
@click.argument("references", nargs=-1, required=True, metavar="REF...")
@click.option(
    "--keep-last", type=click.IntRange(0, 999_999), default=0, metavar="N",
    help="Keep the N latest of these images in each repository.",
)  # fmt: skip
def freed(client: Client, json: bool, references: tuple[str, ...], keep_last: int) -> None:
    """Say what deleting images would free, as layers and as chunks.

    A REF is a name as `chunkd images` shows it (shop/api:v3), a digest, or a digest's first digits. It stands for one
    image, with all its names. A REF may also be a glob in quotes ('shop/api:v3*'). It stands for the images whose names
    all match. chunkd deletes nothing.
    """
    found = client.freed(*references, keep_last=keep_last)
    say_reply(found, json, image_tables.freed_lines(found, client.source(found["as_of"])))
    end_by(client.stats())


@click.command()
@asks
@as_json
@click.option(
    "--threshold", default=0.5, show_default=True,
    help="How alike two images must be: above 0, at most 1.",
)  # fmt: skip
def similar(client: Client, json: bool, threshold: float) -> None:
    """List images that are alike by their chunks.

    Two images are alike if the chunks that both hold have at least --threshold of the bytes of all chunks that either
    holds. A cluster is a group of images in which each one is like at least one other. From 20 images on, chunks that
    more than half of all images hold are left out. A second list shows the pairs of different repositories that share
    most.
    """
    found = client.similar(threshold)
    say_reply(found, json, image_tables.similar_lines(found, client.source(found["as_of"])))
    end_by(client.stats())
