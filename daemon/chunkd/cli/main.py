"""The commands: flags in, text for people or with --json JSON for programs out, and an exit code."""

from __future__ import annotations

import contextlib
import sys
from collections import UserDict
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from chunkd import __version__
from chunkd.cli import fail_if, tables
from chunkd.cli.options import DEGRADED, DIFFERENT, as_json, asks, end_by, quietly, say_reply, settings, works
from chunkd.cli.output import say
from chunkd.client.ask import Client
from chunkd.errors import NoDaemon, UsageError
from chunkd.figures.names import GATED
from chunkd.settings.resolve import Resolved
from chunkd.settings.table import SETTINGS

if TYPE_CHECKING:
    from chunkd.settings.config import Config

EPILOG = (
    "Exit codes: 0 fine, 1 error, 2 usage, 3 no daemon and no index, 4 differences found,"
    " 5 a --fail-if condition holds, 6 degraded, 7 figures printed but incomplete: a folder could not be listed, a"
    " cache is stale or hung, a layer could not be read, or a source of a store was left out."
)
OTHER_FLAGS = "Every other setting is a flag too: `chunkd config --help` lists them."


class _Commands(UserDict[str, Any]):
    """The commands by name. Where a name has a module's name instead, that is imported once the command is needed."""

    def __getitem__(self, name: str) -> click.Command:
        if isinstance(self.data[name], str):
            self.data[name] = getattr(import_module(f"chunkd.cli.{self.data[name]}"), name)
        command: click.Command = self.data[name]
        return command


COMMANDS = _Commands(
    blobs="lists", history="lists", images="images", freed="images", similar="images", diff="diff", updates="updates",
    where="where", export="fleet", merge="fleet", replay="replay", report="report", sweep="sweep",
)  # fmt: skip


def _versions(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if not asked or context.resilient_parsing:
        return
    import platform
    import re
    from importlib import metadata

    say(f"chunkd, version {__version__}")
    say(f"Python {platform.python_version()}")
    for requirement in metadata.requires("chunkd") or []:
        name = re.split("[^A-Za-z0-9._-]", requirement)[0]
        with contextlib.suppress(metadata.PackageNotFoundError):  # an option, or for another platform
            say(f"{name} {metadata.version(name)}")
    context.exit()


@click.group(commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_versions,
    help="Show the versions of chunkd and of the libraries that it uses, and exit.",
)
def main() -> None:
    """Would storing and moving chunks instead of layers pay, for the images in this cache?

    chunkd watches a container registry's blob cache, cuts each layer into chunks as it lands, and counts how much they
    repeat. A CACHE is a folder of blobs: an OCI layout, a registry's or containerd's store, or a plain folder of files
    named by their digest; or such a store in a bucket (s3://, gs://, az://). chunkd only reads it.

    \b
      chunkd scan /var/lib/registry      print the figures, once
      chunkd run /var/lib/registry       keep them current
      chunkd stats                       ask for them
    """  # noqa: D301 - click's mark for a paragraph that is not to be rewrapped


@main.command(epilog=OTHER_FLAGS)
@works
def run(where: Resolved) -> None:
    """Watch caches and keep the figures current, in the foreground.

    SIGHUP reads the settings files again, and starts a scan. The log names what changed, and what a restart needs.
    SIGTERM and Ctrl-C finish the blobs that are being read, commit and end.
    """
    from chunkd.service.daemon import run_daemon
    from chunkd.service.logs import log_to_stderr

    config = _load(where)
    log_to_stderr(config.log_level)
    run_daemon(config, lambda: _load(where.again()))


@main.command(epilog=OTHER_FLAGS)
@as_json
@click.option("--verify", is_flag=True, help="Compare size, inode and ctime of every blob; hash again what differs.")
@click.option("--accept", is_flag=True, help="Accept a cache whose root is on another device than before.")
@click.option("--retry-failed", is_flag=True, help="Read failed blobs again.")
@click.option("--remeasure", is_flag=True, help="Read every layer again, and measure it by the measure_ settings.")
@click.option("--replace", is_flag=True, help="Drop the caches that are not named from the index.")
@click.option("--plan", is_flag=True, help="Of a bucket, say what a scan would read, take and cost, and read nothing.")
@click.option("--prices", metavar="FILE", help="With --plan: prices as TOML, so that it says a sum of money too.")
@click.option("--store", metavar="STORE", help="Put what one CACHE holds into a store, as `chunkd export` does.")
@click.option(
    "--shard", metavar="I/N", help="With --store: only the part I (from 0) of N of all blobs, for a job array."
)
@click.option("--engine", metavar="local|dask[:ADDRESS]", help="With --store: where tasks are carried out.")
@click.option("--name", metavar="NAME", help="With --store: what a folder that many hosts mount is called.")
@click.option(
    "--key-file", metavar="FILE",
    help="With --store: hide hashes and digests by the key in this file, and leave out names. Each machine needs it.",
)  # fmt: skip
@quietly
@works
def scan(
    where: Resolved,
    json: bool,
    verify: bool,
    accept: bool,
    retry_failed: bool,
    remeasure: bool,
    replace: bool,
    plan: bool,
    prices: str | None,
    store: str | None,
    shard: str | None,
    engine: str | None,
    name: str | None,
    key_file: str | None,
    quiet: bool,
) -> None:
    """Index what is in the caches now, and print the figures.

    A CACHE may be a registry in a bucket: s3://BUCKET/PREFIX, gs:// or az://. Credentials come from the environment.

    If a daemon serves these caches, it is asked to scan. Otherwise the index covers exactly the caches named.

    With --remeasure the caches are those that the index covers. The old figures stay until every layer has been read. A
    daemon uses the new ones once it is restarted.

    With --store no index is made: blobs that no segment of the store has are read in tasks, on this machine or on a
    Dask cluster, and `chunkd merge STORE` has the figures. After a kill the next run reads only what is left. Needs the
    packages of `pip install 'chunkd[fleet]'`.
    """
    from chunkd.cli.progress import progress

    show = partial(progress, quiet=quiet)
    if store is None and any(flag is not None for flag in (shard, engine, name, key_file)):
        raise click.UsageError("--shard, --engine, --name and --key-file go with --store")
    if store is not None:
        if plan or prices or remeasure or verify or accept or replace:
            raise click.UsageError("--store goes with --shard, --engine, --name, --key-file and --retry-failed alone")
        from chunkd.cli.cluster import scan_into_store

        engine = "local" if engine is None else engine
        scan_into_store(_load(where), store, shard, engine, name, key_file, retry_failed, json, show)
        return
    if plan or prices:
        from chunkd.cli.plan import plan_lines
        from chunkd.service.plan import plan_of

        if not plan or remeasure or verify or accept or retry_failed or replace:
            raise click.UsageError("--prices goes with --plan, and --plan with no other flag of scan")
        plan_reply = plan_of(_load(where), prices)
        say_reply(plan_reply, json, plan_lines(plan_reply))
        return
    if remeasure:
        if where.caches_named or verify or accept or retry_failed or replace:
            raise click.UsageError("--remeasure can't be combined with a CACHE or another flag of scan")
        from chunkd.service.remeasure import remeasure as remeasured

        stats = remeasured(_load(where), show)
    else:
        from chunkd.cli.scan import scan_once

        asked = {"verify": verify, "accept": accept, "retry_failed": retry_failed}
        sockets = [given.value for given in where.sockets]
        stats = scan_once(_load(where), sockets, asked, replace, place_was_given=where.place_was_given, progress=show)
    say_reply(stats, json, tables.stats_lines(stats))
    end_by(stats)


@main.command()
@asks
@as_json
@click.option("--watch", is_flag=True, help="Show the figures again each second, until Ctrl-C.")
@click.option("--explain", is_flag=True, help="Split the net saving: what the codec, deduplication and the index do.")
@click.option(
    "--fail-if",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help=f"Exit 5 if this holds: one of {', '.join(GATED)}, then {' '.join(fail_if.OPERATORS)}, then a number, such as"
    f" '{GATED[0]}<0.2'. May be repeated.",
)
def stats(client: Client, json: bool, watch: bool, explain: bool, conditions: tuple[str, ...]) -> None:
    """Print the current figures.

    They come from the daemon, or from the index if no daemon answers. With --fail-if they are printed too, and a line
    on stderr names the condition that holds. A figure can be null: without layers there is no redundancy. To compare a
    null is an error, and exits 1.
    """
    gates = [fail_if.Condition(condition) for condition in conditions]
    if watch and (gates or explain):
        raise UsageError(f"{'--fail-if' if gates else '--explain'} can't be combined with --watch")
    if watch:
        from chunkd.cli.watch import watch_stats

        with contextlib.suppress(KeyboardInterrupt):
            watch_stats(client, json)
        return
    found = client.stats()
    say_reply(found, json, tables.stats_lines(found, client.source(found["as_of"]), explain))
    fail_if.test(gates, found)
    end_by(found)


@main.command()
@asks
@as_json
def histogram(client: Client, json: bool) -> None:
    """Count the chunks by copies, and by size.

    Each table counts every unique chunk once. By copies: a chunk store saves nothing on chunks that occur once, and
    most on those that occur often. By size: the longest chunks are those that the chunker cut at its greatest length.
    `unique` is what a store would keep of a row, before compression. `in all` is what the layers hold of it, and
    `share` is its part of all bytes. The columns add up to the figures of `chunkd stats`.
    """
    found = client.histogram()
    say_reply(found, json, tables.histogram_lines(found, client.source(found["as_of"])))
    end_by(client.stats())


@main.command()
@settings("state_dir", "workers")
@as_json
@click.option("--repair", is_flag=True, help="Correct the counters; refused while a daemon runs.")
@click.option("--read", is_flag=True, help="Decode every counted blob again, and compare.")
def check(where: Resolved, json: bool, repair: bool, read: bool) -> None:
    """Recount everything from the recipes, and list each difference.

    A recipe is the list of a layer's chunks, in order. It works beside a running daemon. It exits 4 if there is a
    difference, even one that --repair corrected.
    """
    from chunkd.check.check import check_index

    differences = check_index(_load(where, serving=False), where.states, repair=repair, read=read)
    count = f"{len(differences)} differences{', repaired' if repair and differences else ''}"
    reply = {"differences": [difference._asdict() for difference in differences]}
    say_reply(reply, json, [*map(str, differences), count])
    if differences:
        sys.exit(DIFFERENT)


@main.command(epilog=OTHER_FLAGS)
@works
@quietly
@as_json
def rebuild(where: Resolved, json: bool, quiet: bool) -> None:
    """Move the index aside, and read the caches anew.

    The caches are those named, or else those that the index served, if they can still be read from it.
    """
    from chunkd.cli.progress import progress
    from chunkd.service.oneshot import rebuild_index

    stats = rebuild_index(_load(where), where.caches_named, partial(progress, quiet=quiet))
    say_reply(stats, json, tables.stats_lines(stats))
    end_by(stats)


@main.command()
@asks
@as_json
@click.option("--live", is_flag=True, help="Exit 0 when degraded too, for a probe that restarts what fails it.")
def health(client: Client, json: bool, live: bool) -> None:
    """Print whether the daemon works, and if not, why.

    It exits 0 when the daemon is well, 6 when it is degraded, and 3 when no daemon answers.
    """
    content = client.health()
    say_reply(content, json, tables.health_lines(content))
    sys.exit({"ok": 0, "degraded": 0 if live else DEGRADED}.get(content["state"], NoDaemon.exit_code))


@main.command(name="config")
@settings(*SETTINGS)
@as_json
def config_(where: Resolved, json: bool) -> None:
    """Print the effective settings, and where each came from.

    Each of these flags is one of `chunkd run`, `scan` and `rebuild` too.
    """
    config = _load(where)
    rows = {name: {"value": getattr(config, name), "source": config.sources[name]} for name in SETTINGS}
    say_reply(rows, json, _settings_lines(rows))


def _settings_lines(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, row in rows.items():
        value = ":".join(row["value"]) if name == "caches" else row["value"]
        yield f"{name:<24} {value}  ({row['source']})"


def _load(where: Resolved, *, serving: bool = True) -> Config:
    from chunkd.settings.config import effective  # only where all settings are needed

    return effective(where, serving=serving)
