"""`chunkd replay`: what a registry served, by its logs, and what chunks would have moved instead."""

from __future__ import annotations

import click

from chunkd.cli import replay_tables
from chunkd.cli.options import as_json, asks, complete_path, end_by, quietly, say_reply
from chunkd.cli.progress import progress
from chunkd.client.ask import Client


@click.command()
@asks
@as_json
@quietly
@click.argument("files", nargs=-1, required=True, metavar="FILE...", shell_complete=complete_path)
def replay(client: Client, json: bool, quiet: bool, files: tuple[str, ...]) -> None:
    """Read a registry's logs, and say what chunks would have moved.

    A FILE is a log of distribution (its access log, or the fields that it logs as text or JSON), a log of nginx
    (combined, with X-Forwarded-For as the last column), or a trace in JSON as IBM published them. It may be compressed
    with gzip or zstd; - is standard input. Clients are told apart by their addresses. No output has an address.

    A client is assumed to have what it pulled earlier in these logs. As layers: each blob moves once to each client. As
    chunks: for each layer, its list of chunks and the chunks that the client lacks move, each compressed. A blob that
    is not a layer of the index moves whole. One cache for all: the same, for one cache that all clients share.
    """
    with progress("read", "pulls", quiet=quiet) as show:
        found = client.replay(files, show)
    say_reply(found, json, replay_tables.lines(found, client.state_dir))
    end_by(client.stats())
