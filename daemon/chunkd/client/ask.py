"""Gets answers from the daemon, or from the index where no daemon runs: for the commands, and for `chunkd.connect`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus, urlencode

from chunkd.client import http
from chunkd.errors import (
    BadIndex,
    IndexMissing,
    IndexMoves,
    IndexUnreachable,
    NoDaemon,
    NothingThere,
    RequestRefused,
    SocketDenied,
    UsageError,
)
from chunkd.figures import words
from chunkd.parameters import PARAMETERS, value_of
from chunkd.settings.resolve import Resolved

if TYPE_CHECKING:
    from chunkd.replies.figures import Blob, Health, Histogram, Layer, Layers, Moment, Stats
    from chunkd.replies.images import Freed, Images, Repositories, Similar
    from chunkd.replies.moves import AllUpdates, Diff, Updates
    from chunkd.replies.pulls import Replay

PAGE_ROWS = 1000
TIMEOUT_S = 10.0
# The figures of images take seconds, and three others may be before.
IMAGES_TIMEOUT_S = 300.0
IMAGES_TRIES = 3
# In each request line there are 4,096 bytes, in which a name takes more when it has unusual characters.
REFERENCES_BYTES = 3900
SINCE = PARAMETERS["since"].default

# Reads an answer from a `Store`.
Offline = Callable[[Any], Any]
Show = Callable[[int, int, int], None]


class Client:
    """Asks a daemon, or reads the index where none answers. Each call asks anew; nothing stays open in between.

    `socket` and `state_dir` say who gave the last answer; the other one is "". Replies are those of the HTTP API, whole
    and not in pages: plain dicts, of the types in `chunkd.replies`. Each thread needs a client of its own.

    A daemon that does not answer within 10 s, or 300 s about images, raises SocketUnusable. Each call raises another
    ChunkdError too: UsageError for what can't be asked, NothingThere where there is neither a daemon nor an index,
    SocketDenied for a daemon of another user, RequestRefused for one that is too busy, BadIndex.
    """

    def __init__(self, where: Resolved) -> None:
        self._where = where
        self.socket = self.state_dir = ""

    def source(self, as_of: str | None) -> str:
        """The line that says where the last answer came from."""
        if self.socket:
            return words.daemon_source(self.socket, as_of)
        return words.index_source(self.state_dir, as_of)

    def stats(self) -> Stats:
        """The figures, and how fresh they are."""

        def offline(store: Any) -> Any:
            from chunkd.queries.read import read_stats

            found = read_stats(store).to_json()
            # Nothing is pending only if the last writer recorded that nothing was left to do.
            settled = None if found["pending_blobs"] is None else True
            return found | {"scanning": False, "scans": 0, "settled": settled}

        return self._ask("/v1/stats", offline)

    def histogram(self) -> Histogram:
        """The chunks by copies, and by size."""

        def offline(store: Any) -> Any:
            from chunkd.queries.read import read_histogram

            return read_histogram(store)

        return self._ask("/v1/histogram", offline)

    def health(self) -> Health:
        """The daemon's `state` with its `reasons`, or the state `down` where none answers."""
        try:
            found: Any = http.first_answer(self._sockets(), "/v1/health")[1]
        except NoDaemon as error:
            return {"state": "down", "reasons": [str(error)]}
        return found

    def blobs(self, *, failed: bool = False) -> Iterator[Blob]:
        """Every blob; with `failed` only those that failed or are ignored."""

        def offline(after: str, store: Any) -> Any:
            from chunkd.queries.read import read_blobs

            return read_blobs(store, after, PAGE_ROWS, failed)

        for page in self._pages("/v1/blobs", {"failed": str(failed).lower()}, "after", "", offline):
            yield from page["blobs"]

    def layers(self) -> Iterator[Layer]:
        """Every layer, its bytes in what only it has, what others have too, and what it repeats."""
        for page in self.layer_pages():
            yield from page["layers"]

    def layer_pages(self) -> Iterator[Layers]:
        """The same in pages. If the index changes in between, pages have another `commit`, and show another moment."""

        def offline(after: str, store: Any) -> Any:
            from chunkd.queries.layer_shares import read_layers

            return read_layers(store, after, PAGE_ROWS)

        return self._pages("/v1/layers", {}, "after", "", offline)

    def history(self, since: str = SINCE) -> Iterator[Moment]:
        """The figures for each minute in which they changed, from a time on: `7d` (m, h, d, w), `2026-01-31` or
        `2026-01-31T12:00Z`.
        """

        def offline(after: str, store: Any) -> Any:
            from chunkd.queries.history import read_history

            return read_history(store, after, PAGE_ROWS, time.time_ns())

        last = ""
        for page in self._pages("/v1/history", {}, "since", since, offline):
            for row in page["history"]:
                # If the row that a page should begin with has been thinned out, the page begins with the row before it.
                if row["at"] > last:
                    last = row["at"]
                    yield row

    def images(self) -> Images:
        """The images, with what each holds and shares."""
        return self._images("images", {"by": "image"})

    def repositories(self) -> Repositories:
        """The repositories, with what the images of each hold and share."""
        return self._images("images", {"by": "repository"})

    def freed(self, *references: str, keep_last: int = 0) -> Freed:
        """What would be freed if images went: names as `images` has them, digests, their first digits, or globs. The
        `keep_last` latest of each repository stay.
        """
        return self._images("freed", {"references": _joined(references), "keep_last": str(keep_last)})

    def similar(self, threshold: float = 0.5) -> Similar:
        """The images that are alike: both hold at least this part of what either holds (three decimals at most)."""
        return self._images("similar", {"threshold": str(threshold)})

    def diff(self, client: str | Sequence[str], to: str, platform: str = "") -> Diff:
        """What a client that has one image, several or none moves to pull another. References are as for `freed`."""
        return self._images("diff", {"from": _joined(_several(client)), "to": _joined([to]), "platform": platform})

    def updates(self, repository: str, platform: str = "") -> Updates:
        """What a client moves from each version of a repository, or of one of its tags, to the next one."""
        return self._images("updates", {"repository": _joined([repository]), "platform": platform})

    def all_updates(self, platform: str = "") -> AllUpdates:
        """The same for all repositories, a row for each."""
        return self._images("updates", {"repository": "", "platform": platform})

    def replay(self, files: str | Sequence[str], show: Show = lambda *_: None) -> Replay:
        """What a registry served, by its logs, and what chunks would have moved; always from the index. `show` gets the
        bytes read so far, the bytes of all files whose size is known, and the pulls so far. Raises LogUnreadable.
        """
        from chunkd.pulls.log_files import LogFiles

        def offline(store: Any) -> Any:
            from chunkd.pulls.read import indexed

            return indexed(store)

        logs = LogFiles(_several(files))
        as_of, found = self._from_index(offline)
        from chunkd.pulls.replay import Replay  # numpy, only where there is an index

        replayed = Replay(found)
        for path in logs.paths:
            for pulls in replayed.file(logs.lines(path)):
                show(logs.done_bytes, logs.known_bytes, pulls)
        counted: Any = {"as_of": as_of} | replayed.to_json()
        return counted

    def index_dir(self) -> str:
        """The state directory whose index can be opened, also where a daemon runs. Raises IndexMissing."""
        self._from_index(lambda _: None)
        return self.state_dir

    def _ask(self, target: str, offline: Offline, timeout_s: float = TIMEOUT_S) -> Any:
        """The daemon's answer to a GET, or what `offline` reads when no daemon answers.

        A daemon that refuses this user is another user's, unless its place was given: then the user's own index
        answers, and SocketDenied is raised only if there is none.
        """
        where = self._where
        try:
            self.socket, content = http.first_answer(self._sockets(), target, timeout_s)
            self.state_dir = ""
            return content
        except NoDaemon as nobody:
            try:
                return self._from_index(offline)
            except IndexMissing:
                raise NothingThere(nobody.tried, where.states) from None
        except RequestRefused as refused:
            if refused.status == 400:
                raise UsageError(refused.reason) from None
            raise
        except SocketDenied:
            if where.place_was_given or where.own_state_dir is None:
                raise
            try:
                return self._from_index(offline, [where.own_state_dir])
            except (BadIndex, IndexUnreachable):
                pass
            raise

    def _sockets(self) -> list[str]:
        return [given.value for given in self._where.sockets]

    def _from_index(self, offline: Offline, states: Sequence[str] = ()) -> Any:
        """What `offline` reads from the first index that there is, in these state directories or in those of the
        settings, also where a daemon runs. Raises IndexMissing.
        """
        from chunkd.index.storage.environment import reading_first  # only here: LMDB is not needed to ask a daemon

        with reading_first(states or self._where.states) as (store, state_dir):
            content = offline(store)
        self.socket, self.state_dir = "", state_dir
        return content

    def _images(self, question: str, query: dict[str, str]) -> Any:
        """The pages of one commit, put together. Raises IndexMoves when there are none in IMAGES_TRIES."""
        from chunkd.images import pages

        arguments = tuple(value_of(name, text) for name, text in query.items())

        def offline(store: Any) -> Any:
            from chunkd.images import answers

            return answers.asked(store, (getattr(answers, question), arguments))

        def page(after: str) -> Any:
            target = f"/v1/{question}?{urlencode({'limit': PAGE_ROWS, 'after': after} | query)}"
            return self._ask(target, offline, IMAGES_TIMEOUT_S)

        for _ in range(IMAGES_TRIES):
            first = following = page("")
            rows = list(pages.rows_of(first))
            while following["next"] is not None:
                following = page(following["next"])
                if following["commit"] != first["commit"]:
                    break
                rows += pages.rows_of(following)
            else:
                return pages.with_rows(first, rows) | {"next": None}
        raise IndexMoves(IMAGES_TRIES)

    def _pages(
        self, path: str, query: dict[str, str], cursor: str, start: str | None, offline: Callable[[str, Any], Any]
    ) -> Iterator[Any]:
        """Each page, the first from `start`; the parameter `cursor` says where the next one begins."""
        while start is not None:
            target = f"{path}?{urlencode({'limit': PAGE_ROWS, cursor: start} | query)}"
            page = self._ask(target, partial(offline, start))
            yield page
            start = page["next"]


def _several(given: str | Sequence[str]) -> Sequence[str]:
    return [given] if isinstance(given, str) else given


def _joined(references: Sequence[str]) -> str:
    """Raises UsageError for what can't be asked of a daemon."""
    for reference in references:
        if not reference.isprintable() or len(reference.split()) != 1 or reference != reference.strip():
            raise UsageError(f"{reference!r}: write ? for each space or unprintable character, or use the digest")
    joined = " ".join(references)
    if len(quote_plus(joined)) > REFERENCES_BYTES:
        raise UsageError(
            f"references of more than {REFERENCES_BYTES} bytes; use a glob, or the first digits of digests"
        )
    return joined
