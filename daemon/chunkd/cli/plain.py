"""The questions that are asked often, in their plain forms: `chunkd stats` and `chunkd health` without click.

Importing click takes longer than asking. `cli` has every form of every command, and the same functions answer there.
"""

from __future__ import annotations

from chunkd.cli import tables
from chunkd.client import ask
from chunkd.errors import NoDaemon
from chunkd.settings import resolve
from chunkd.settings.table import SETTINGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEGRADED = 6
FLAGS = {SETTINGS[name].flag: name for name in resolve.WHERE}


def stats(flags: Mapping[str, object], as_json: bool) -> tuple[str, int]:
    """What `chunkd stats` prints, and its exit code. Raises as `asking.stats` does."""
    answer = ask.stats(flags)
    return tables.stats_text(answer.content, answer.source, as_json), 0


def health(flags: Mapping[str, object], as_json: bool) -> tuple[str, int]:
    """What `chunkd health` prints, and its exit code. Raises as `asking.health` does."""
    content = ask.health(flags)
    exit_code = {"ok": 0, "degraded": DEGRADED}.get(content["state"], NoDaemon.exit_code)
    return tables.health_text(content, as_json), exit_code


COMMANDS = {"stats": stats, "health": health}


def answer(args: Sequence[str]) -> tuple[str, int] | None:
    """What this call prints, and its exit code; None when it is in no plain form, and for click to understand.

    A plain form is the command and then any of `--json`, `--state DIR` and `--socket PATH`, spelt so.
    """
    if not args or args[0] not in COMMANDS:
        return None
    flags: dict[str, object] = {}
    as_json = False
    rest = iter(args[1:])
    for arg in rest:
        if arg == "--json":
            as_json = True
        elif arg in FLAGS and not (value := next(rest, "-")).startswith("-"):
            flags[FLAGS[arg]] = value
        else:
            return None
    return COMMANDS[args[0]](flags, as_json)
