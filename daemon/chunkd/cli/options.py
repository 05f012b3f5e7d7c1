"""What the commands of `cli` and `listing` share: flags, and printing line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from chunkd.errors import OutputUnwritable
from chunkd.settings import resolve
from chunkd.settings.table import SETTINGS

Command = TypeVar("Command", bound=Callable[..., Any])


def settings(*names: str) -> Callable[[Command], Command]:
    """Flags for these settings, as the table of settings has them."""

    def add(command: Command) -> Command:
        for name in reversed(names):
            setting = SETTINGS[name]
            metavar = "|".join(setting.choices) or setting.kind.upper()
            shown = setting.help if setting.default is None else f"{setting.help} (default {setting.default})"
            command = click.option(setting.flag, name, metavar=metavar, help=shown)(command)
        return command

    return add


asks = settings(*resolve.WHERE)
as_json = click.option("--json", "json", is_flag=True, help="Print JSON, for programs.")


def say(words: str | bytes, *, nl: bool = True) -> None:
    """Print on standard output, at once. Raises OutputUnwritable, and BrokenPipeError when its reader has gone."""
    try:
        click.echo(words, nl=nl)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputUnwritable(error.strerror or str(error)) from None


def say_lines(lines: Iterable[str]) -> None:
    for line in lines:
        say(line)
