"""The entry of `chunkd`, and of `python -m chunkd`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that the process was given, and exit with its code.

    An error that chunkd raises on purpose, and what the system refuses to any process, ends in one line on stderr and
    its own exit code.
    """
    if sys.argv[1:2] == ["run"]:
        import signal

        # Before the imports, which take half a second: a reload meanwhile must not end the daemon.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from chunkd.cli.main import main as command
    from chunkd.cli.output import drop_output, guard_streams, say
    from chunkd.errors import ChunkdError, OutputUnwritable, SystemRefused
    from chunkd.figures.words import shown

    guard_streams()
    try:
        command(prog_name="chunkd")
    except (ChunkdError, OSError) as error:
        named = error if isinstance(error, ChunkdError) else SystemRefused.of(error)
        if named is None:
            raise
        if isinstance(named, OutputUnwritable):
            drop_output()
        say(f"chunkd: {shown(str(named))}", err=True)
        sys.exit(named.exit_code)


if __name__ == "__main__":
    main()
