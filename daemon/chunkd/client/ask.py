"""Gets an answer from the daemon, or from the index where no daemon runs. The answer says which."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlencode

from chunkd.client import http
from chunkd.errors import (
    BadIndex,
    ChunkdError,
    IndexMissing,
    IndexUnreachable,
    NoDaemon,
    RequestRefused,
    SocketDenied,
    UsageError,
)
from chunkd.figures import words
from chunkd.settings.resolve import Resolved

PAGE_ROWS = 1000
# The figures of images take seconds, and three others may be before.
IMAGES_TIMEOUT_S = 300.0
IMAGES_TRIES = 3

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


class IndexMoves(ChunkdError):
    def __init__(self) -> None:
        super().__init__(f"the index changed while images were read from it, {IMAGES_TRIES} times; ask again")


class NothingThere(ChunkdError):
    exit_code = 3

    def __init__(self, sockets: list[str], states: list[str]) -> None:
        super().__init__(
            f"no daemon answers ({', '.join(sockets)}) and there is no index ({', '.join(states)});"
            " start `chunkd run`, or run `chunkd scan CACHE`"
        )


def ask(where: Resolved, target: str, offline: Callable[[Any], Page], timeout_s: float = 10.0) -> Answer:
    """The daemon's answer to a GET, or what `offline` reads from a `Store` when no daemon answers.

    Raises NothingThere when there is no index either. A daemon that refuses this user is another user's, unless the
    command names its place: then the user's own index answers, and SocketDenied is raised only if there is none.
    """
    sockets = [given.value for given in where.sockets]
    try:
        socket, content = http.first_answer(sockets, "GET", target, timeout_s=timeout_s)
        return Answer(content, socket=socket)
    except NoDaemon as nobody:
        try:
            return from_index(where, offline)
        except IndexMissing:
            raise NothingThere(nobody.tried, [given.value for given in where.states]) from None
    except SocketDenied:
        if where.place_was_given or where.own_state_dir is None:
            raise
        try:
            return _read(where.own_state_dir, offline)
        except (BadIndex, IndexUnreachable):
            pass
        raise


def from_index(where: Resolved, offline: Callable[[Any], Page]) -> Answer:
    """What `offline` reads from the first index that there is, whether a daemon runs or not. Raises IndexMissing."""
    states = [given.value for given in where.states]
    for state_dir in states:
        try:
            return _read(state_dir, offline)
        except IndexMissing:
            continue
    raise IndexMissing(", ".join(states))


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


def images(where: Resolved, by: str) -> Answer:
    """The whole reply of `images.answers.images`; `by` is `image` or `repository`."""
    return _images(where, "images", (by,), {"by": by})


def freed(where: Resolved, references: Sequence[str], keep_last: int) -> Answer:
    """The whole reply of `images.answers.freed`. Raises UsageError."""
    query = {"references": " ".join(references), "keep_last": str(keep_last)}
    return _images(where, "freed", (tuple(references), keep_last), query)


def similar(where: Resolved, threshold_permille: int) -> Answer:
    """The whole reply of `images.answers.similar`."""
    return _images(where, "similar", (threshold_permille,), {"threshold": f"{threshold_permille / 1000:.3f}"})


def diff(where: Resolved, client: Sequence[str], to: str, platform: str) -> Answer:
    """The whole reply of `images.diff.diff`. Raises UsageError."""
    query = {"from": " ".join(client), "to": to, "platform": platform}
    return _images(where, "diff", (tuple(client), to, platform), query)


def updates(where: Resolved, repository: str, platform: str) -> Answer:
    """The whole reply of `images.updates.updates`; "" is all repositories. Raises UsageError."""
    return _images(where, "updates", (repository, platform), {"repository": repository, "platform": platform})


def _images(where: Resolved, question: str, arguments: tuple[Any, ...], query: dict[str, str]) -> Answer:
    """The pages of one commit, put together. Raises IndexMoves when there are none in IMAGES_TRIES."""
    from chunkd.images import pages

    def offline(store: Any) -> Page:
        from chunkd.images import answers

        return answers.asked(store, (getattr(answers, question), arguments))

    def page(after: str) -> Answer:
        target = f"/v1/{question}?{urlencode({'limit': PAGE_ROWS, 'after': after} | query)}"
        try:
            return ask(where, target, offline, IMAGES_TIMEOUT_S)
        except RequestRefused as refused:
            if refused.status == 400:
                raise UsageError(refused.reason) from None
            raise

    for _ in range(IMAGES_TRIES):
        answer = following = page("")
        rows = list(pages.rows_of(answer.content))
        while following.content["next"] is not None:
            following = page(following.content["next"])
            if following.content["commit"] != answer.content["commit"]:
                break
            rows += pages.rows_of(following.content)
        else:
            return answer._replace(content=pages.with_rows(answer.content, rows) | {"next": None})
    raise IndexMoves


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
