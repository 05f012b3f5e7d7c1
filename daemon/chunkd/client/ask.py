"""Getting an answer: from the daemon, or from the index where none runs. Says which, and is quick to import."""

from __future__ import annotations

import time

from chunkd.client import http
from chunkd.errors import ChunkdError, IndexMissing, NoDaemon
from chunkd.figures import words
from chunkd.settings import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

PAGE_BLOBS = 1000


class Answer:
    """What was asked for, and where it came from: the daemon's socket, or the index's state directory."""

    def __init__(self, content: dict[str, Any], socket: str = "", state_dir: str = "") -> None:
        self.content, self.socket, self.state_dir = content, socket, state_dir

    @property
    def source(self) -> str:
        """The line that says where these figures came from."""
        if self.socket:
            return words.daemon_source(self.socket, self.content["as_of"])
        return words.index_source(self.state_dir, self.content["as_of"])


class NothingThere(ChunkdError):
    exit_code = 3

    def __init__(self, sockets: list[str], states: list[str]) -> None:
        super().__init__(
            f"no daemon answers ({', '.join(sockets)}) and there is no index ({', '.join(states)});"
            " start `chunkd run`, or `chunkd scan CACHE`"
        )
        self.sockets, self.states = sockets, states


def ask(flags: Mapping[str, object], target: str, offline: Callable[[Any], dict[str, Any]]) -> Answer:
    """The daemon's answer to a GET, or what `offline` reads from a `Store` when no daemon answers.

    Raises NothingThere when there is no index either, SocketDenied when a daemon may be there and can't be asked.
    """
    try:
        socket, content = http.first_answer(resolve.socket_candidates(flags), "GET", target)
    except NoDaemon as nobody:
        from chunkd.index.storage.environment import reading  # only here: LMDB is not needed to ask a daemon

        for state_dir in resolve.state_candidates(flags):
            try:
                with reading(state_dir) as store:
                    return Answer(offline(store), state_dir=state_dir)
            except IndexMissing:
                continue
        raise NothingThere(nobody.tried, resolve.state_candidates(flags)) from None
    return Answer(content, socket=socket)


def stats(flags: Mapping[str, object]) -> Answer:
    def offline(store: Any) -> dict[str, Any]:
        from chunkd.queries.read import read_stats

        found = read_stats(store).to_json()
        # Only who ended with nothing left to do has said that nothing is pending.
        settled = None if found["pending_blobs"] is None else True
        return found | {"scanning": False, "scans": 0, "settled": settled}

    return ask(flags, "/v1/stats", offline)


def histogram(flags: Mapping[str, object]) -> Answer:
    def offline(store: Any) -> dict[str, Any]:
        from chunkd.queries.read import read_histogram

        return read_histogram(store)

    return ask(flags, "/v1/histogram", offline)


def health(flags: Mapping[str, object]) -> dict[str, Any]:
    """The daemon's `state` with its `reasons`, or the state `down` where none answers."""
    try:
        _, content = http.first_answer(resolve.socket_candidates(flags), "GET", "/v1/health")
    except NoDaemon as error:
        return {"state": "down", "reasons": [str(error)]}
    return content


def blobs(flags: Mapping[str, object], failed: bool) -> Iterator[dict[str, Any]]:
    """Every blob, page by page."""
    after = ""
    while True:

        def offline(store: Any, after: str = after) -> dict[str, Any]:
            from chunkd.queries.read import read_blobs

            return read_blobs(store, after, PAGE_BLOBS, failed)

        target = f"/v1/blobs?limit={PAGE_BLOBS}&failed={'true' if failed else 'false'}&after={after}"
        page = ask(flags, target, offline).content
        yield from page["blobs"]
        if page["next"] is None:
            return
        after = page["next"]


def layers(flags: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    """The pages of `shares.read_layers`, to the last."""
    after = ""
    while True:

        def offline(store: Any, after: str = after) -> dict[str, Any]:
            from chunkd.queries.layer_shares import read_layers

            return read_layers(store, after, PAGE_BLOBS)

        page = ask(flags, f"/v1/layers?limit={PAGE_BLOBS}&after={after}", offline).content
        yield page
        if page["next"] is None:
            return
        after = page["next"]


def history(flags: Mapping[str, object], since: str) -> Iterator[dict[str, Any]]:
    """The rows of `queries.history.read_history`, page by page."""
    last = ""
    while True:

        def offline(store: Any, since: str = since) -> dict[str, Any]:
            from chunkd.queries.history import read_history

            return read_history(store, since, PAGE_BLOBS, time.time_ns())

        page = ask(flags, f"/v1/history?limit={PAGE_BLOBS}&since={since}", offline).content
        for row in page["history"]:
            # Where the row that a page was to begin with has been thinned, the one before is first.
            if row["at"] > last:
                last = row["at"]
                yield row
        if page["next"] is None:
            return
        since = page["next"]
