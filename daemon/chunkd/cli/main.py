"""The commands. Each says what it did in text for people, or with --json for programs, and by its exit code."""

from __future__ import annotations

import contextlib
import json as jsonlib
import sys
import time
from typing import TYPE_CHECKING

import click

from chunkd import __version__
from chunkd.cli import fail_if, lists, plain, tables
from chunkd.cli.options import as_json, asks, say, say_lines, settings
from chunkd.cli.report import report
from chunkd.client import ask
from chunkd.errors import UsageError
from chunkd.figures.names import GATED
from chunkd.settings import resolve
from chunkd.settings.table import SETTINGS

if TYPE_CHECKING:
    from chunkd.settings.config import Config

WATCH_S = 1.0
DIFFERENT = 4

EPILOG = (
    "Exit codes: 0 fine, 1 error, 2 usage, 3 no daemon and no index, 4 differences found, 5 what --fail-if says,"
    " 6 degraded."
)


works = settings(*(name for name in SETTINGS if name != "caches"))
of_caches = click.argument("caches", nargs=-1, type=click.UNPROCESSED, metavar="[CACHE]...")


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.version_option(__version__, prog_name="chunkd")
def main() -> None:
    """Would storing and moving chunks instead of layers pay, for the images in this cache?

    chunkd watches a container registry's blob cache, cuts each layer into chunks as it lands, and keeps count of how
    much they repeat. A CACHE is a folder of blobs: an OCI layout, a registry's or containerd's store, or a plain
    folder of files named by their digest. It is only read.

    \b
      chunkd scan /var/lib/registry      the figures, once
      chunkd run /var/lib/registry       keep them current
      chunkd stats                       ask for them
    """  # noqa: D301 - click's mark for a paragraph that is not to be rewrapped


@main.command()
@of_caches
@works
def run(caches: tuple[str, ...], **flags: object) -> None:
    """Watch caches and keep the figures current, in the foreground.

    SIGHUP asks for a scan; SIGTERM and Ctrl-C finish what is being read, commit and end.
    """
    from chunkd.service.daemon import run_daemon
    from chunkd.service.logs import log_to_stderr

    effective = _load(flags | {"caches": caches})
    log_to_stderr(effective.log_level)
    run_daemon(effective)


@main.command()
@of_caches
@as_json
@click.option("--verify", is_flag=True, help="Compare size, inode and ctime of every blob; hash again what differs.")
@click.option("--accept", is_flag=True, help="Take a cache as it is now though its root is on another device.")
@click.option("--retry-failed", is_flag=True, help="Read failed blobs again.")
@click.option("--remeasure", is_flag=True, help="Read every layer by the measure_ settings, into a new index.")
@click.option("--replace", is_flag=True, help="Drop caches from the index that are not named.")
@works
def scan(
    caches: tuple[str, ...],
    json: bool,
    verify: bool,
    accept: bool,
    retry_failed: bool,
    remeasure: bool,
    replace: bool,
    **flags: object,
) -> None:
    """Index what is in the caches now, and print the figures.

    Where a daemon serves these caches, it is asked to scan. The index becomes that of exactly the caches given.

    With --remeasure the caches are those that the index serves. Its figures stand until every layer has been read;
    a daemon takes the new ones over when it is started again.
    """
    from chunkd.cli.progress import progress
    from chunkd.cli.scan import scan_once
    from chunkd.service.remeasure import remeasure as remeasured

    if remeasure:
        if caches or verify or accept or retry_failed or replace:
            raise click.UsageError("--remeasure goes with no CACHE, and with none of the other flags of a scan")
        say(tables.stats_text(remeasured(_load(flags), progress), "", json))
        return
    effective = _load(flags | {"caches": caches})
    asked = {"verify": verify, "accept": accept, "retry_failed": retry_failed}
    stats = scan_once(effective, resolve.socket_candidates(flags), asked, replace)
    say(tables.stats_text(stats, "", json))
    if any(cache["state"] in ("stale", "hung") for cache in stats["caches"]):
        sys.exit(plain.DEGRADED)


@main.command()
@asks
@as_json
@click.option("--watch", is_flag=True, help="Show the figures again each second, until Ctrl-C.")
@click.option(
    "--fail-if",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help=f"Exit 5 when it holds: one of {', '.join(GATED)}, then {' '.join(fail_if.OPERATORS)}, then a number, such as"
    f" '{GATED[0]}<0.2'. May be given again.",
)
def stats(json: bool, watch: bool, conditions: tuple[str, ...], **flags: object) -> None:
    """The figures: from the daemon, or from the index.

    With --fail-if they are printed all the same, and a line on stderr names the condition that holds. A figure that is
    null, as the redundancy of no layers is, can't be judged: that is an error, and exits 1.
    """
    gates = [fail_if.Condition(condition) for condition in conditions]
    if watch and gates:
        raise UsageError("--watch and --fail-if: the one never ends, the other is an end")
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            _watch_stats(flags, json)
        return
    if not gates:
        say(plain.stats(flags, json)[0])
        return
    answer = ask.stats(flags)
    say(tables.stats_text(answer.content, answer.source, json))
    fail_if.test(gates, answer.content)


def _watch_stats(flags: dict[str, object], json: bool) -> None:
    shown = ""
    above = 0
    while True:
        answer = ask.stats(flags)
        frame = (
            jsonlib.dumps(answer.content) if json else tables.stats_text(answer.content, answer.source, as_json=False)
        )
        if frame != shown:
            if sys.stdout.isatty() and not json:
                # Over the last frame, and only that: what stands above it stays.
                say(f"\x1b[{above}A\x1b[J" if above else "", nl=False)
                above = frame.count("\n") + 1
            say(frame)
            shown = frame
        time.sleep(WATCH_S)


@main.command()
@asks
@as_json
def histogram(json: bool, **flags: object) -> None:
    """How the chunks spread: over copies, and over sizes.

    Each table holds every unique chunk once. By copies: what occurs once is what no chunk store saves; what occurs
    often is where the saving comes from. By size: how the chunker cuts these layers, the longest being those that it
    cut at their greatest length. `unique` is what a store would keep of a row before compression, `in all` what the
    layers hold of it, and `share` how much of all their bytes that is. The columns add up to the figures of
    `chunkd stats`.
    """
    answer = ask.histogram(flags)
    if json:
        say(jsonlib.dumps(answer.content, indent=1))
    else:
        say_lines(tables.histogram_lines(answer.content, answer.source))


@main.command()
@settings("state_dir", "workers")
@as_json
@click.option("--repair", is_flag=True, help="Put the counters right; refused while a daemon runs.")
@click.option("--read", is_flag=True, help="Decode every counted blob again, and compare.")
def check(json: bool, repair: bool, read: bool, **flags: object) -> None:
    """Count everything again, and list each difference.

    What is counted are the recipes: the chunks of each layer, in order. Works beside a running daemon. Exits 4 when a
    difference was found, also if it was then repaired.
    """
    from chunkd.check.check import check_index

    differences = check_index(_load(flags), resolve.state_candidates(flags), repair=repair, read=read)
    if json:
        say(jsonlib.dumps({"differences": [difference._asdict() for difference in differences]}, indent=1))
    else:
        say_lines(str(difference) for difference in differences)
        say(f"{len(differences)} differences{', repaired' if repair and differences else ''}")
    if differences:
        sys.exit(DIFFERENT)


@main.command()
@of_caches
@works
@as_json
def rebuild(caches: tuple[str, ...], json: bool, **flags: object) -> None:
    """Move the index aside, and read the caches anew.

    Those given, or else those that the index served, as far as it can still be read.
    """
    from chunkd.cli.progress import progress
    from chunkd.service.oneshot import rebuild_index

    stats = rebuild_index(_load(flags | {"caches": caches}), named=bool(caches), progress=progress)
    say(tables.stats_text(stats, "", json))


@main.command()
@asks
@as_json
def health(json: bool, **flags: object) -> None:
    """Whether the daemon does its work.

    Exits 0 when it does, 6 when it is degraded, with reasons, and 3 when it is down.
    """
    said, exit_code = plain.health(flags, json)
    say(said)
    sys.exit(exit_code)


@main.command(name="config")
@of_caches
@works
@as_json
def config_(caches: tuple[str, ...], json: bool, **flags: object) -> None:
    """The effective settings, and where each came from."""
    effective = _load(flags | {"caches": caches})
    rows = {name: {"value": getattr(effective, name), "source": effective.sources[name]} for name in SETTINGS}
    if json:
        say(jsonlib.dumps(rows, indent=1))
        return
    for name, row in rows.items():
        value = ":".join(row["value"]) if name == "caches" else row["value"]
        say(f"{name:<24} {value}  ({row['source']})")


def _load(flags: dict[str, object]) -> Config:
    from chunkd.settings.config import load  # only here: what else there is starts without

    return load(flags)


for command in (*lists.COMMANDS, report):
    main.add_command(command)
