"""Gets an answer from the daemon, or from the index where no daemon runs. The answer says which."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlencode

from chunkd.client import http
from chunkd.errors import BadIndex, ChunkdError, IndexMissing, IndexUnreachable, NoDaemon, SocketDenied
from chunkd.figures import words
from chunkd.settings.resolve import Resolved

PAGE_ROWS = 1000

Page = dict[str, Any]


class Answer(NamedTuple):
    """The content of an answer, and its source: the daemon's socket, or the index's state directory."""

    content: Page
    socket: str = ""
    state_dir: str = ""

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
            " start `chunkd run`, or run `chunkd scan CACHE`"
        )


def ask(where: Resolved, target: str, offline: Callable[[Any], Page]) -> Answer:
    """The daemon's answer to a GET, or what `offline` reads from a `Store` when no daemon answers.

    Raises NothingThere when there is no index either. A daemon that refuses this user is another user's, unless the
    command names its place: then the user's own index answers, and SocketDenied is raised only if there is none.
    """
    sockets = [given.value for given in where.sockets]
    try:
        socket, content = http.first_answer(sockets, "GET", target)
        return Answer(content, socket=socket)
    except NoDaemon as nobody:
        states = [given.value for given in where.states]
        for state_dir in states:
            try:
                return _read(state_dir, offline)
            except IndexMissing:
                continue
        raise NothingThere(nobody.tried, states) from None
    except SocketDenied:
        if where.place_was_given or where.own_state_dir is None:
            raise
        try:
            return _read(where.own_state_dir, offline)
        except (BadIndex, IndexUnreachable):
            pass
        raise


def _read(state_dir: str, offline: Callable[[Any], Page]) -> Answer:
    from chunkd.index.storage.environment import reading  # only here: LMDB is not needed to ask a daemon

    with reading(state_dir) as store:
        return Answer(offline(store), state_dir=state_dir)


def stats(where: Resolved) -> Answer:
    def offline(store: Any) -> Page:
        from chunkd.queries.read import read_stats

        found = read_stats(store).to_json()
        # Nothing is pending only if the last writer recorded that nothing was left to do.
        settled = None if found["pending_blobs"] is None else True
        return found | {"scanning": False, "scans": 0, "settled": settled}

    return ask(where, "/v1/stats", offline)


def histogram(where: Resolved) -> Answer:
    def offline(store: Any) -> Page:
        from chunkd.queries.read import read_histogram

        return read_histogram(store)

    return ask(where, "/v1/histogram", offline)


def health(where: Resolved) -> Page:
    """The daemon's `state` with its `reasons`, or the state `down` where none answers."""
    try:
        return http.first_answer([given.value for given in where.sockets], "GET", "/v1/health")[1]
    except NoDaemon as error:
        return {"state": "down", "reasons": [str(error)]}


def blobs(where: Resolved, failed: bool) -> Iterator[Page]:
    """Every blob, page by page."""

    def offline(after: str, store: Any) -> Page:
        from chunkd.queries.read import read_blobs

        return read_blobs(store, after, PAGE_ROWS, failed)

    for page in _pages(where, "/v1/blobs", {"failed": "true" if failed else "false"}, "after", "", offline):
        yield from page["blobs"]


def layers(where: Resolved) -> Iterator[Page]:
    """The pages of `layer_shares.read_layers`, to the last."""

    def offline(after: str, store: Any) -> Page:
        from chunkd.queries.layer_shares import read_layers

        return read_layers(store, after, PAGE_ROWS)

    return _pages(where, "/v1/layers", {}, "after", "", offline)


def history(where: Resolved, since: str) -> Iterator[Page]:
    """The rows of `queries.history.read_history`, page by page."""

    def offline(since: str, store: Any) -> Page:
        from chunkd.queries.history import read_history

        return read_history(store, since, PAGE_ROWS, time.time_ns())

    last = ""
    for page in _pages(where, "/v1/history", {}, "since", since, offline):
        for row in page["history"]:
            # If the row that a page should begin with has been thinned out, the page begins with the row before it.
            if row["at"] > last:
                last = row["at"]
                yield row


def _pages(
    where: Resolved, path: str, query: dict[str, str], cursor: str, start: str | None,
    offline: Callable[[str, Any], Page],
) -> Iterator[Page]:  # fmt: skip
    """Each page, the first from `start`; the parameter `cursor` says where the next one begins."""
    while start is not None:
        target = f"{path}?{urlencode({'limit': PAGE_ROWS, cursor: start} | query)}"
        page = ask(where, target, partial(offline, start)).content
        yield page
        start = page["next"]
