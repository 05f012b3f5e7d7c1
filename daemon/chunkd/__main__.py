"""The entry of `chunkd`, and of `python -m chunkd`: plain questions are answered at once, all else is click's."""

from __future__ import annotations

import os
import sys

from chunkd.cli import plain
from chunkd.errors import ChunkdError, OutputUnwritable


def main() -> None:
    """Run the command that the process was given, and exit with its code.

    Errors that chunkd raises on purpose end in one line on stderr and their own exit code.
    """
    # What else a terminal may be set to, click knows how to write.
    in_utf8 = getattr(sys.stdout, "encoding", None) == "utf-8"
    try:
        answer = plain.answer(sys.argv[1:]) if in_utf8 else None
        if answer is None:
            from chunkd.cli.main import main as every_command  # only here: click takes longer than a plain question

            every_command(prog_name="chunkd")
        else:
            said, exit_code = answer
            _say(said)
            sys.exit(exit_code)
    except OutputUnwritable as error:
        print(f"chunkd: {error}", file=sys.stderr)
        _give_up_output()
        sys.exit(error.exit_code)
    except ChunkdError as error:
        print(f"chunkd: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        _give_up_output()  # whoever read it has had enough, which is no error to tell
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nAborted!", file=sys.stderr)  # as click has it
        sys.exit(1)


def _say(words: str) -> None:
    """As `options.say`, without click."""
    try:
        print(words, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputUnwritable(error.strerror or str(error)) from None


def _give_up_output() -> None:
    """What is left of our output is flushed at exit: to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    main()
