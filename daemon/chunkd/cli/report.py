"""`chunkd report`: the figures and plots as an HTML page."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

import click

from chunkd.cli.options import asks, complete_path, end_by
from chunkd.cli.output import say
from chunkd.client.ask import Client
from chunkd.errors import ChunkdError
from chunkd.figures import words

SINCE = "31d"
STDOUT = "-"


class ReportUnwritable(ChunkdError):
    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"report {path}: can't be written: {problem}")


@click.command()
@asks
@click.option(
    "-o", "--output", required=True, metavar="FILE", shell_complete=complete_path,
    help="The file to write; - for standard output.",
)  # fmt: skip
@click.option("--since", default=SINCE, show_default=True, help="Where its history begins, as for `chunkd history`.")
@click.option(
    "--replay", metavar="FILE", shell_complete=complete_path,
    help="What `chunkd replay --json` printed, for a section on pulls.",
)  # fmt: skip
def report(client: Client, output: str, since: str, replay: str | None) -> None:
    """Write one HTML page with the figures and plots.

    It shows the figures over time, chunks by copies and by size, the layers that share most and those that share
    nothing, and the repositories with the largest fair shares. The page is one file: it can be mailed, opened on a
    phone, and printed. Needs matplotlib.
    """
    from chunkd.report import plots

    plots.needed()  # before anything is asked
    from chunkd.report.data import gathered
    from chunkd.report.page import page
    from chunkd.report.replay import read

    material = gathered(client, since, None if replay is None else read(replay))
    content = page(material).encode("utf-8", "backslashreplace")
    if output == STDOUT:
        say(content, nl=False)
    else:
        write_whole(output, content)
        say(f"{words.shown(output)}: {words.bytes_text(len(content))}")
    end_by(material.stats)


def check_target(path: str) -> None:
    """Raises ReportUnwritable if `write_whole` would now."""
    target = os.path.realpath(path)
    try:
        if os.path.lexists(target) and not stat.S_ISREG(os.stat(target).st_mode):
            raise ReportUnwritable(path, "it is not a regular file, which a rename would replace")
        folder = os.path.dirname(target)
        os.stat(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ReportUnwritable(path, os.strerror(errno.EACCES))
    except OSError as error:
        raise ReportUnwritable(path, error.strerror or str(error)) from None


def write_whole(path: str, content: bytes) -> None:
    """Make or replace the file with this content; when that fails, the file is as before. Raises ReportUnwritable."""
    check_target(path)
    target = os.path.realpath(path)
    partial = f"{target}.{os.getpid()}.new"
    try:
        file = open(partial, "xb")  # noqa: SIM115 - outside the `try`: an existing file is not ours to remove
        try:
            with file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
            raise
    except OSError as error:
        raise ReportUnwritable(path, error.strerror or str(error)) from None
