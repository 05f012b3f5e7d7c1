"""Standard output and standard error. Whatever happens to them, nobody sees a traceback and no error is lost."""

from __future__ import annotations

import io
import os
import sys

import click

from chunkd.errors import OutputUnwritable


class _Output(io.FileIO):
    """Raises OutputUnwritable when it takes no more, and BrokenPipeError when its reader has gone."""

    def write(self, content: object) -> int | None:  # type: ignore[override]
        try:
            return super().write(content)  # type: ignore[arg-type]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputUnwritable(error.strerror or str(error)) from None


class _Errors(io.FileIO):
    """Drops what it can't write. The exit code stays, and a daemon goes on without its log."""

    def write(self, content: object) -> int | None:  # type: ignore[override]
        try:
            return super().write(content)  # type: ignore[arg-type]
        except OSError:
            return len(memoryview(content))  # type: ignore[arg-type]


def guard_streams() -> None:
    """Once, before anything is printed or opened: put the standard streams behind the classes above.

    A closed stream is opened as /dev/null, so that no socket or index gets its number. Text that can't be encoded, such
    as a path that is not UTF-8, is written escaped.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # takes the lowest number that is free; writing to it fails
    encodings = [getattr(stream, "encoding", None) or "utf-8" for stream in (sys.stdout, sys.stderr)]
    out, err = _Output(1, "w", closefd=False), _Errors(2, "w", closefd=False)
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(out), encodings[0], "backslashreplace", line_buffering=out.isatty())
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(err), encodings[1], "backslashreplace", line_buffering=True)


def say(words: str | bytes, *, nl: bool = True, err: bool = False) -> None:
    """Print at once. Raises OutputUnwritable, and BrokenPipeError if the reader has gone. With `err`: nothing."""
    click.echo(words, nl=nl, err=err)


def drop_output() -> None:
    """Redirect standard output to /dev/null, so that the flush at exit can't fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
