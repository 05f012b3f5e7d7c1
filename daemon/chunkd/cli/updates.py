"""`chunkd updates`: what a client moves from each version of a repository to the next one."""

from __future__ import annotations

import json as jsonlib
from typing import Any

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
@click.option("--all", "is_all", is_flag=True, help="All repositories, one in a line, with the median over them.")
@click.option("--platform", default="", metavar="OS/ARCH", help="Pull this platform alone; otherwise all of them.")
def updates(client: Client, json: bool, repository: str | None, is_all: bool, platform: str) -> None:
    """Say what each update of a repository moves.

    That is what a client moves from each version to the next one, as layers and as chunks. The versions are the
    repository's tags in the order of versions (1.9, 1.10-rc1, 1.10); tags that are not versions, such as `latest`, are
    left out, and 1.10-alpine is compared with other -alpine alone. If no two tags are versions, the images stand in the
    order in which they were pushed. With a tag it is the history of that tag: each image that it pointed to and that is
    still here. Then the medians of pairs that are 1, 2, 5 and 10 versions apart. Each pair costs what `chunkd diff`
    says. The latest 1,000 versions count, with --all the latest 101 of each repository.
    """
    if (repository is None) != is_all:
        raise UsageError("name a repository, such as shop/api, or one of its tags, or use --all")
    found = client.all_updates(platform) if repository is None else client.updates(repository, platform)
    if json:
        say(jsonlib.dumps(found, indent=1))
    else:
        say_lines((all_lines if is_all else update_lines)(found, client.source(found["as_of"])))
    end_by(client.stats())


COMMANDS: tuple[Any, ...] = (updates,)
