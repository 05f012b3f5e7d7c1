"""chunkd keeps the redundancy figure of a blob cache current.

The path of a blob, wing by wing:

    sources    an event or a listing says: observe this place (watch, listing; hints); the cache's thread does (cache)
    objects    the same for a bucket, and the process that reads it
    ingest     the writer decides what follows (reconcile) and carries it out (places); what must be read is a task
    worker     a confined process reads the open file: decompresses (decode), cuts and hashes (chunkers, cgear.c),
               verifies the name, and compresses 1 chunk in 16 (recompress)
    index      recipe, copies, totals, histogram and history change in one transaction (index, chunks)
    queries    the figures are read; figures says what they mean, replies which types they have
    pulls      what a registry served, by its logs, is replayed against what the index has
    sweep      layers are decoded again, to compare rules
    where      and to say which files their copies are in
    fleet      recipes go into a store that hosts share, and are merged to the figures of all of them
    api        they are asked for over a Unix socket; client asks, or reads the index where no daemon runs, for commands
               and for programs (connect)
    cli        and prints them; report draws them
    check      counts everything again without trusting a counter
    service    puts the parts together, as the daemon or for one scan

Read in this order: model, errors; sources/source, layouts, listing, cache; chunkers/gear, worker/decode, examine;
index/records, blocks, chunks, index; ingest/reconcile, places, writer; check/recount; service/daemon; then what is
left. DESIGN.md has the reasons.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chunkd.client.ask import Client

__version__ = "0.2.0"


def connect(*, socket: str | os.PathLike[str] | None = None, state_dir: str | os.PathLike[str] | None = None) -> Client:
    """A client of the daemon at `socket`, or of the index in `state_dir` and the daemon that writes it.

    Without both, a daemon and an index are found as the commands find them. Nothing is asked yet. Raises SettingInvalid
    for a path that can't be one.
    """
    from chunkd.client.ask import Client  # late: whoever imports a part of chunkd imports this module
    from chunkd.settings.resolve import Resolved

    given = {"socket": socket, "state_dir": state_dir}
    return Client(Resolved({name: os.fspath(path) for name, path in given.items() if path is not None}))
