"""`chunkd updates`: what a client moves from each version of a repository to the next one."""

from __future__ import annotations

import json as jsonlib

import click

from chunkd.cli.options import as_json, asks, end_by, say_lines
from chunkd.cli.output import say
from chunkd.cli.update_lines import all_lines, update_lines
from chunkd.client.ask import Client
from chunkd.errors import UsageError


@click.command()
@asks
@as_json
@click.argument("repository", required=False, metavar="REPOSITORY[:TAG]")
@click.option("--all", "is_all", is_flag=True, help="One line for each repository, and the median over all.")
@click.option("--platform", default="", metavar="OS/ARCH", help="Pull this platform alone; otherwise all of them.")
def updates(client: Client, json: bool, repository: str | None, is_all: bool, platform: str) -> None:
    """Say what each update of a repository moves.

    A row says what a client moves from one version to the next, as layers and as chunks, as `chunkd diff` counts it.
    Then come the medians of pairs that are 1, 2, 5 and 10 versions apart.

    Versions are the repository's tags in the order of versions (1.9, 1.10-rc1, 1.10). Tags that are not versions, such
    as `latest`, are left out. Tags with a suffix, such as 1.10-alpine, are compared with those of the same suffix. If
    no two tags are versions, the images are taken in the order in which they were pushed. With a TAG the rows are the
    images that the tag has pointed to and that are still in the cache.

    The latest 1,000 versions count, and with --all the latest 101 of each repository.
    """
    if (repository is None) != is_all:
        raise UsageError("name a repository, such as shop/api, or one of its tags, or use --all")
    found = client.all_updates(platform) if repository is None else client.updates(repository, platform)
    if json:
        say(jsonlib.dumps(found, indent=1))
    else:
        say_lines((all_lines if is_all else update_lines)(found, client.source(found["as_of"])))
    end_by(client.stats())
