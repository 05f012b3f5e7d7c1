"""`chunkd sweep`: what chunks of other sizes, and by other rules, would save."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from chunkd.cli import sweep_tables
from chunkd.cli.options import INCOMPLETE, as_json, quietly, say_reply, settings
from chunkd.cli.output import say
from chunkd.cli.progress import progress
from chunkd.errors import RUN_AGAIN, UsageError
from chunkd.figures.words import bytes_text, count_text, shown
from chunkd.settings.resolve import Resolved

if TYPE_CHECKING:
    from chunkd.cluster.tasks import Shard
    from chunkd.sweep.sweep import Sweep

WHOLE = "1/1"
PLAIN_LINE_EVERY_S = 5.0


@click.command()
@settings(
    "caches", "state_dir", "workers", "nice", "io_priority", "read_bytes_per_s", "max_uncompressed_bytes",
    "max_ratio", "max_zstd_window_bytes",
)  # fmt: skip
@as_json
@quietly
@click.option(
    "--rules", metavar="RULE,...",
    help="The rules to be compared: sizes in KiB, least/mean/most, such as 2/16/64, or names; by default all.",
)  # fmt: skip
@click.option(
    "--one-in", type=click.IntRange(1, 65536), metavar="INT",
    help="Recompress one chunk in so many, as the setting measure_one_in.",
)  # fmt: skip
@click.option("--layers", metavar="1/4", help="Read a part of the layers, picked by their digests.")
@click.option("--resume", is_flag=True, help="Go on with the unfinished sweep, as it was asked.")
@click.option("-o", "--output", metavar="FILE", help="Also write an HTML page with curves. Needs matplotlib.")
@click.option("--store", metavar="STORE", help="Read the layers in tasks, and keep what is found in a store.")
@click.option("--engine", metavar="local|dask[:ADDRESS]", help="With --store: where tasks are carried out.")
@click.option("--shard", metavar="I/N", help="With --store: read only the part I (from 0) of N, for a job array.")
def sweep(
    where: Resolved, json: bool, quiet: bool, rules: str | None, one_in: int | None, layers: str | None,
    resume: bool, output: str | None, store: str | None, engine: str | None, shard: str | None,
) -> None:  # fmt: skip
    """Compare chunk sizes, rules and simpler alternatives.

    Reads each layer of the index once more, or all that is in the caches named, and says for each rule what a chunk
    store would take, what would be saved, and what the median update of a repository would move. Besides chunks there
    are the layers as they are and as zstd, whole files, and fixed blocks. It changes no figure of the index, and may
    run beside the daemon.

    Run it again after an interruption: it goes on where it ended. Ctrl-C prints the figures of the layers that were
    read, and exits 7. If a layer can't be read, it exits 7 too.

    With --store layers that have no result in the store are read in tasks, on this machine or on a Dask cluster, and
    the results stay there: a later sweep reads only what is new. A shard prints no figures, and exits 7 if a layer has
    no result; when all are done, the same command without --shard prints them.
    """
    if store is None and (engine is not None or shard is not None):
        raise UsageError("--engine and --shard go with --store")
    if store is not None and resume:
        raise UsageError("--resume is for a sweep without --store; with it, the same command goes on")
    if shard and output is not None:
        raise UsageError("a shard has no figures: -o can't be combined with --shard")
    if resume and (where.caches_named or rules is not None or one_in is not None or layers is not None):
        raise UsageError("--resume takes what the unfinished sweep was asked; name nothing else")
    if output is not None:
        from chunkd.cli.report import STDOUT, check_target
        from chunkd.report import plots

        if output == STDOUT:
            raise UsageError("-o names a file for the page: the table is on standard output")
        plots.needed()  # before anything is read
        check_target(output)
    reply, is_interrupted = _swept(where, quiet, rules, one_in, layers, resume, output, json, store, engine, shard)
    if is_interrupted:
        left = reply["layers"]["left"]
        say(f"chunkd: interrupted: {count_text(left, 'layer')} left; {RUN_AGAIN}", err=True)
    if is_interrupted or not reply["complete"] or (reply["layers"]["bad"] and not shard):
        sys.exit(INCOMPLETE)


def _swept(
    where: Resolved, quiet: bool, rules: str | None, one_in: int | None, layers: str | None, resume: bool,
    output: str | None, json: bool, store: str | None, engine: str | None, shard: str | None,
) -> tuple[dict[str, Any], bool]:  # fmt: skip
    """The reply, printed, and whether somebody has interrupted it."""
    from chunkd.chunkers import profiles
    from chunkd.cli.cluster import shard_of, sweep_into_store
    from chunkd.model import MeasureRule
    from chunkd.settings.config import effective
    from chunkd.sweep.question import Question, Share
    from chunkd.sweep.results import unfinished
    from chunkd.sweep.sweep import AskedOtherwise, opened

    config = effective(where, serving=False)
    caches = config.caches if where.caches_named else ()
    key = ""
    if resume:
        named_caches, rules, one_in, layers, key = unfinished(config.state_dir)
        caches = tuple(named_caches)
    named = profiles.ALL if rules is None else profiles.parse(rules)
    measure = MeasureRule(one_in or config.measure_one_in, config.measure_level)
    question = Question(tuple(profile.name for profile in named), measure, config.caps)
    if resume and key != question.key:
        raise AskedOtherwise(config.state_dir)
    share, part = Share.parse(layers or WHOLE), shard_of(shard)
    with contextlib.ExitStack() as stack:
        if store is None:
            begun = stack.enter_context(opened(config, where.states, caches, question, share))
        else:
            engine = "local" if engine is None else engine
            begun = sweep_into_store(config, where.states, caches, question, share, store, engine, part)
        is_interrupted = _read(begun, quiet)
        if part:
            return _say_shard(begun, part, json), is_interrupted
        reply = begun.reply((lambda *_: None) if quiet else _seldom())
        say_reply(reply, json, sweep_tables.lines(reply))
        if output is not None:
            from chunkd.cli.report import write_whole
            from chunkd.report.sweep import page

            content = page(reply).encode("utf-8", "backslashreplace")
            write_whole(output, content)
            say(f"{shown(output)}: {bytes_text(len(content))}", err=json)
        if not is_interrupted and begun.is_complete:
            begun.done()
    return reply, is_interrupted


def _say_shard(begun: Sweep, shard: Shard, json: bool) -> dict[str, Any]:
    from chunkd.cluster.sweep import shard_reply

    reply = shard_reply(begun, shard)
    layers = reply["layers"]
    lines = (
        f"shard {reply['shard']}: {count_text(layers['found'], 'layer')}, {layers['from_earlier_runs']:,} before",
        *(f"not read: {bad['digest']}: {shown(bad['reason'])}" for bad in layers["bad"]),
        "This was one shard. When all are done, the same command without --shard prints the figures.",
    )
    say_reply(reply, json, lines)
    return reply


def _seldom() -> Callable[[int, int], None]:
    """Says now and then how many rules are summed up."""
    told_at = time.monotonic()

    def tell(done: int, known: int) -> None:
        nonlocal told_at
        if time.monotonic() >= told_at + PLAIN_LINE_EVERY_S:
            told_at = time.monotonic()
            say(f"summed up {done} of {known} rules", err=True)

    return tell


def _read(begun: Sweep, quiet: bool) -> bool:
    """Read the layers with progress. Returns whether Ctrl-C came before the end.

    It ends the reading between two steps: in one, a result could be kept that no figure has. A second one ends all.
    """
    was = signal.getsignal(signal.SIGINT)
    is_interrupted = False

    def note(*_: object) -> None:
        nonlocal is_interrupted
        is_interrupted = True
        signal.signal(signal.SIGINT, was)

    if was != signal.SIG_IGN:
        signal.signal(signal.SIGINT, note)
    try:
        with progress("swept", "layers to go", quiet=quiet) as show, contextlib.closing(begun.read()) as steps:
            for step in steps:
                show(*step)
                if is_interrupted:
                    break
    finally:
        signal.signal(signal.SIGINT, was)
    return is_interrupted and not begun.is_complete
