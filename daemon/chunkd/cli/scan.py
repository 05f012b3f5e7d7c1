"""`chunkd scan`: index what is in the caches now, with progress on stderr, and end."""

from __future__ import annotations

import time
from typing import Any

from chunkd.cli.progress import progress
from chunkd.client import http
from chunkd.errors import IndexBusy, NoDaemon, ServesOthers, SocketDenied
from chunkd.service.oneshot import POLL_S, Progress, scan_here
from chunkd.settings.config import Config

# Blobs land on a busy cache all the time; nothing pending for so long is enough.
SETTLED_S = 2.0


def scan_once(
    config: Config,
    sockets: list[str],
    asked: dict[str, bool],
    replace: bool,
    *,
    place_was_given: bool = True,
    progress: Progress = progress,
) -> dict[str, Any]:
    """The figures after a scan that `progress` shows: the daemon's where one serves these caches, else this process's
    own.

    A daemon that this user may not ask is another's, unless its place was given. Raises ServesOthers when a daemon
    serves other caches from this index, SocketDenied, and what `Service` raises.
    """
    others: tuple[str, list[str]] | None = None
    for socket in sockets:
        try:
            answer = http.ask(socket, "GET", "/v1/stats")
        except NoDaemon:
            continue
        except SocketDenied:
            if place_was_given:
                raise
            continue
        served = [cache["path"] for cache in answer["caches"]]
        if replace and set(config.caches) < set(served):
            raise ServesOthers(socket, served)
        if set(config.caches) <= set(served):
            return _ask_daemon(socket, asked, progress)
        others = others or (socket, served)
    try:
        return scan_here(config, asked, replace, progress)
    except IndexBusy as busy:
        if others is not None:
            raise ServesOthers(*others) from busy
        raise


def _ask_daemon(socket: str, asked: dict[str, bool], progress: Progress) -> dict[str, Any]:
    number = http.ask(socket, "POST", "/v1/scan", asked)["scan"]
    with progress() as show:
        most, idle_since = 0, time.monotonic()
        while True:
            answer = http.ask(socket, "GET", "/v1/stats")
            if answer["scans"] < number or answer["pending_blobs"]:
                idle_since = time.monotonic()
            elif answer["settled"] or time.monotonic() - idle_since > SETTLED_S:
                return answer
            most = max(most, answer["pending_bytes"])
            show(most - answer["pending_bytes"], most, answer["pending_blobs"])
            time.sleep(POLL_S)
