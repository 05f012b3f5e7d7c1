"""`chunkd report`: all that chunkd can tell, as a page for people."""

from __future__ import annotations

import contextlib
import os
import stat

import click

from chunkd.cli.options import asks, say
from chunkd.errors import ChunkdError
from chunkd.figures import words

SINCE = "31d"
STDOUT = "-"


class ReportUnwritable(ChunkdError):
    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"report {path}: can't be written: {problem}")
        self.path, self.problem = path, problem


@click.command()
@asks
@click.option("-o", "--output", required=True, metavar="FILE", help="Where the page goes; - for standard output.")
@click.option("--since", default=SINCE, show_default=True, help="Where its history begins, as of `chunkd history`.")
def report(output: str, since: str, **flags: object) -> None:
    """One HTML page with the answer, and plots of where it comes from.

    The figures over time, chunks by copies and by size, the layers that share most and those that share nothing. The
    page needs nothing but itself: it can be mailed, opened on a phone, and printed. Needs matplotlib.
    """
    from chunkd.report import plots

    plots.needed()  # before anything is asked
    from chunkd.report.data import gathered
    from chunkd.report.page import page

    content = page(gathered(flags, since)).encode()
    if output == STDOUT:
        say(content, nl=False)
        return
    write_whole(output, content)
    say(f"{words.shown(output)}: {words.bytes_text(len(content))}")


def write_whole(path: str, content: bytes) -> None:
    """Put the content into the file, made or replaced: all of it, or the file is as it was.

    Raises ReportUnwritable, also for what is there and is no regular file: a rename would put an end to it.
    """
    target = os.path.realpath(path)
    partial = f"{target}.{os.getpid()}.new"
    try:
        if os.path.lexists(target) and not stat.S_ISREG(os.stat(target).st_mode):
            raise ReportUnwritable(path, f"it is no regular file; `-o {STDOUT}` writes to standard output")
        file = open(partial, "xb")  # noqa: SIM115 - what is there already is not ours to remove
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
