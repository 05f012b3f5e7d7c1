"""What the commands share: flags for settings, printing line by line, and the exit code of printed figures."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from chunkd.cli.output import say
from chunkd.client.ask import Client
from chunkd.settings.resolve import Resolved
from chunkd.settings.table import SETTINGS

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Command = TypeVar("Command", bound=Callable[..., Any])

# An error has its own code: 1, 2 for usage, 3 where there is neither a daemon nor an index, 5 for `--fail-if`.
DIFFERENT = 4
DEGRADED = 6
INCOMPLETE = 7


def complete_path(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Leaves it to the shell."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(begun, type="file")]


class _FlagNotListed(click.Option):
    """Works and completes as any flag does, and is not in the command's help."""

    def get_help_record(self, _context: click.Context) -> None:
        return None


def settings(*names: str, listed: Collection[str] = SETTINGS) -> Callable[[Command], Callable[..., Any]]:
    """Flags for these settings, of which the help has those `listed`. The command gets them `Resolved` as its first
    argument. Warns of ignored variables.
    """

    def add(command: Command) -> Callable[..., Any]:
        @functools.wraps(command)
        def resolving(**given: Any) -> Any:
            resolved = Resolved({name: given.pop(name) for name in names})
            for warning in resolved.warnings:
                say(f"chunkd: warning: {warning}", err=True)
            return command(resolved, **given)

        found: Callable[..., Any] = resolving
        for name in reversed(names):
            setting = SETTINGS[name]
            if setting.kind == "paths":
                found = click.argument(
                    name, nargs=-1, type=click.UNPROCESSED, metavar="[CACHE]...", shell_complete=complete_path
                )(found)
                continue
            metavar = "|".join(setting.choices) or setting.kind.upper()
            shown = setting.help if setting.default is None else f"{setting.help} (default {setting.default})"
            kind = click.Option if name in listed else _FlagNotListed
            completion = complete_path if setting.kind == "path" else None
            found = click.option(setting.flag, name, cls=kind, metavar=metavar, help=shown, shell_complete=completion)(
                found
            )
        return found

    return add


def asks(command: Command) -> Callable[..., Any]:
    """The flags that say whom to ask. The command gets a `Client` as its first argument."""

    @functools.wraps(command)
    def asking(where: Resolved, **given: Any) -> Any:
        return command(Client(where), **given)

    return settings("state_dir", "socket")(asking)


works = settings(*SETTINGS, listed=("state_dir", "socket", "names_file", "workers"))
quietly = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
as_json = click.option("--json", "json", is_flag=True, help="Print JSON, for programs.")


def say_lines(lines: Iterable[str]) -> None:
    for line in lines:
        say(line)


def say_reply(reply: Any, as_json: bool, lines: Iterable[str]) -> None:
    """Print a reply as one JSON object, for programs, or as these lines."""
    say_lines([json.dumps(reply, indent=1)] if as_json else lines)


def end_by(stats: Mapping[str, Any]) -> None:
    """Called last, with the figures: exits 7 when they may lack something that is in the caches.

    They may if a folder could not be listed or read, or if a cache is stale or hung. Failed and pending blobs alone
    do not count here, because figures of their own say how many there are.
    """
    away = any(cache["state"] in ("stale", "hung") for cache in stats["caches"])
    if away or stats.get("unlisted_folders") or stats.get("problems"):
        sys.exit(INCOMPLETE)
