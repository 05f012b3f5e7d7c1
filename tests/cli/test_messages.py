"""What chunkd says, in one file: `messages.txt` has every error's message and every help text.

    WRITE_MESSAGES=1 python -m pytest tests/cli/test_messages.py     writes it anew, to be read in the diff

Other tests hold types, exit codes and values.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import chunkd
from chunkd.cli.main import main
from chunkd.errors import ChunkdError
from chunkd.settings.table import SETTINGS

MESSAGES = Path(__file__).parent / "messages.txt"
COLUMNS = 100


def error_classes(base: type[ChunkdError] = ChunkdError) -> Iterator[type[ChunkdError]]:
    for found in base.__subclasses__():
        if found.__module__.startswith("chunkd."):
            yield found
            yield from error_classes(found)


def made_up(name: str, kind: Any) -> Any:
    """A value for a parameter of an error, which shows where it stands in the message."""
    if kind is bool:
        return False
    if kind is bytes:
        return b"\x07"
    if kind in (int, float):
        return 7
    if typing.get_origin(kind) in (list, tuple):
        return typing.get_origin(kind)([f"<{name} 1>", f"<{name} 2>"])
    if kind is bool:
        return False
    assert kind is str, f"{name}: {kind}"
    return f"<{name}>"


def error_message(error: type[ChunkdError]) -> str:
    if "__init__" not in {name for base in error.__mro__ if issubclass(base, ChunkdError) for name in vars(base)}:
        return "(as it is raised)"
    kinds = typing.get_type_hints(error.__init__)
    made: dict[bool, list[tuple[str, Any]]] = {True: [], False: []}
    for name, parameter in inspect.signature(error).parameters.items():
        made[parameter.kind is parameter.KEYWORD_ONLY].append((name, made_up(name, kinds[name])))
    return str(error(*(value for _, value in made[False]), **dict(made[True])))


def messages() -> str:
    for module in pkgutil.walk_packages(chunkd.__path__, "chunkd."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    said = ["=== errors: class, exit code, message", ""]
    said += sorted(f"{error.__name__} {error.exit_code}: {error_message(error)}" for error in set(error_classes()))
    commands: dict[str, click.Command] = {"": main, **main.commands}
    for name, command in sorted(commands.items()):
        context = click.Context(
            command, info_name=f"chunkd {name}".strip(), max_content_width=COLUMNS, **main.context_settings
        )
        context.terminal_width = COLUMNS
        said += ["", f"=== chunkd {name} --help".replace("  ", " "), "", command.get_help(context)]
    return "\n".join(line.rstrip() for line in "\n".join(said).splitlines()) + "\n"


def test_the_messages_are_those_of_the_file() -> None:
    found = messages()
    if os.environ.get("WRITE_MESSAGES"):
        MESSAGES.write_text(found)
    assert found == MESSAGES.read_text(), "to write the file anew: WRITE_MESSAGES=1"


def test_an_errors_message_is_one_line() -> None:
    for error in set(error_classes()):
        assert len(error_message(error).splitlines()) == 1, error


def help_of(name: str, columns: int) -> str:
    command = main.commands[name] if name else main
    context = click.Context(command, info_name=f"chunkd {name}".strip(), **main.context_settings)
    context.terminal_width = columns
    return command.get_help(context)


@pytest.mark.parametrize("name", ["", *main.commands])
def test_the_help_fits_a_terminal_of_80_columns(name: str) -> None:
    assert [line for line in help_of(name, 80).splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("name", ["run", "scan", "rebuild"])
def test_only_the_help_of_config_lists_every_setting(name: str) -> None:
    flags = {setting.flag for setting in SETTINGS.values() if setting.kind != "paths"}
    listed = {flag for flag in flags if re.search(rf"^  {flag}\b", help_of(name, 80), re.MULTILINE)}
    assert listed == {"--state", "--socket", "--names-file", "--workers"}
    assert "chunkd config --help" in help_of(name, 80)
    assert all(re.search(rf"^  {flag}\b", help_of("config", 80), re.MULTILINE) for flag in flags)
    assert flags <= {flag for one in main.commands[name].params for flag in one.opts}  # each works all the same
