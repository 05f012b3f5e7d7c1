"""What can be asked over the socket, and how it is answered: from one whole request to one reply, without I/O."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import SplitResult, parse_qsl, urlsplit

from chunkd.errors import ChunkdError, UsageError

LOG = logging.getLogger(__name__)
BLOBS_PER_PAGE = 100
MOST_BLOBS_PER_PAGE = 1000
HISTORY_SINCE = "7d"
# A cursor may hold an LMDB key, at most 511 bytes, in hex.
AFTER_CHARACTERS = 1100


class Answers(Protocol):
    """What the endpoint asks of the daemon, from many threads; each returns at once.

    A UsageError becomes 400, any other ChunkdError 503.
    """

    def stats(self) -> dict[str, Any]:
        """The object of `figures.stats.Stats.to_json`."""

    def histogram(self) -> dict[str, Any]:
        """The object of `answers.read_histogram`."""

    def blobs(self, after: str, limit: int, failed: bool) -> dict[str, Any]:
        """`{"blobs": [...], "next": str | None}`: at most `limit` blobs, and the `after` of the page behind, if any.

        `after` is what a client wrote: at most 1100 printable ASCII characters, empty for the first page.
        """

    def layers(self, after: str, limit: int) -> dict[str, Any]:
        """The page of `shares.read_layers`, with `after` as for `blobs`."""

    def history(self, since: str, limit: int) -> dict[str, Any]:
        """The page of `queries.history.read_history`; `since` is what a client wrote, as `after` of `blobs`."""

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """The content type and content of `metrics.exposed`."""

    def health(self) -> dict[str, Any]:
        """`{"state": "ok" | "degraded", "reasons": [str, ...]}`."""

    def scan(self, verify: bool, accept: bool, retry_failed: bool) -> dict[str, Any]:
        """Asks for a scan and does not wait for it."""


class Reply(NamedTuple):
    """A status, a JSON object as bytes (or what `content_type` says), and with 405 the methods that the route takes."""

    status: int
    content: bytes
    allow: str = ""
    content_type: str = "application/json"


class Sent(NamedTuple):
    """What a request has beside its target: the body, and what its client takes for a reply."""

    content: bytes
    accept: str


class RefusedError(Exception):
    """The request is answered with this status and message."""

    def __init__(self, status: int, message: str, allow: str = "") -> None:
        super().__init__(message)
        self.reply = Reply(status, _as_json({"error": message}), allow)


def answer(
    answers: Answers, method: str, target: str, content: bytes, accept: str = "", routes: Routes | None = None
) -> Reply:
    """The reply to one whole request, whatever it asks: a bug becomes 500 and is logged with its traceback.

    `accept` is the header of that name. `routes` are all that there are, unless others are given.
    """
    routes = ROUTES if routes is None else routes
    try:
        split = _split(target)
        if split.path not in routes:
            raise RefusedError(404, f"there is no {split.path[:100]}; there are {', '.join(routes)}")
        allowed, ask = routes[split.path]
        if method not in allowed:
            raise RefusedError(405, f"{split.path} takes {' and '.join(allowed)}", allow=", ".join(allowed))
        return ask(answers, _query(split.query), Sent(content, accept))
    except RefusedError as refused:
        return refused.reply
    except UsageError as error:
        return RefusedError(400, str(error)).reply
    except ChunkdError as error:
        return RefusedError(503, str(error)).reply
    except Exception:
        LOG.exception("endpoint: %s %.200r could not be answered", method, target)
        return RefusedError(500, "an error of the daemon's own; its log says more").reply


def _split(target: str) -> SplitResult:
    try:
        return urlsplit(target)
    except ValueError:
        raise RefusedError(400, "the target is not a URL") from None


def _query(text: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=8, errors="strict")
    except ValueError as error:
        raise RefusedError(400, f"the query can't be read: {error}") from None
    query = dict(pairs)
    if len(query) != len(pairs):
        raise RefusedError(400, "the query names a parameter twice")
    return query


def _only(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise RefusedError(400, f"unknown {what} {unknown[0][:100]!r}; known: {', '.join(known) or 'none'}")


def _ask_metrics(answers: Answers, query: dict[str, str], sent: Sent) -> Reply:
    _only("parameter", query, ())
    content_type, content = answers.metrics(sent.accept)
    return Reply(200, content, content_type=content_type)


def _ask_stats(answers: Answers, query: dict[str, str], _: Sent) -> Reply:
    _only("parameter", query, ())
    return Reply(200, _as_json(answers.stats()))


def _ask_histogram(answers: Answers, query: dict[str, str], _: Sent) -> Reply:
    _only("parameter", query, ())
    return Reply(200, _as_json(answers.histogram()))


def _ask_health(answers: Answers, query: dict[str, str], _: Sent) -> Reply:
    _only("parameter", query, ())
    return Reply(200, _as_json(answers.health()))


def _ask_blobs(answers: Answers, query: dict[str, str], _: Sent) -> Reply:
    _only("parameter", query, ("after", "limit", "failed"))
    after, limit = _page(query)
    failed = query.get("failed", "false")
    if failed not in ("true", "false"):
        raise RefusedError(400, "`failed` is true or false")
    return Reply(200, _as_json(answers.blobs(after, limit, failed == "true")))


def _ask_layers(answers: Answers, query: dict[str, str], _: Sent) -> Reply:
    _only("parameter", query, ("after", "limit"))
    return Reply(200, _as_json(answers.layers(*_page(query))))


def _ask_history(answers: Answers, query: dict[str, str], _: Sent) -> Reply:
    _only("parameter", query, ("since", "limit"))
    limit = _page(query)[1]
    return Reply(200, _as_json(answers.history(query.get("since", HISTORY_SINCE), limit)))


def _page(query: dict[str, str]) -> tuple[str, int]:
    """Where a page begins, and how much it holds at most."""
    after, limit = query.get("after", ""), query.get("limit", str(BLOBS_PER_PAGE))
    if len(after) > AFTER_CHARACTERS or not (after.isascii() and after.isprintable()):
        raise RefusedError(400, f"`after` is at most {AFTER_CHARACTERS} printable ASCII characters")
    if not re.fullmatch("[0-9]{1,4}", limit) or not 1 <= int(limit) <= MOST_BLOBS_PER_PAGE:
        raise RefusedError(400, f"`limit` is a number from 1 to {MOST_BLOBS_PER_PAGE}")
    return after, int(limit)


def _ask_scan(answers: Answers, query: dict[str, str], sent: Sent) -> Reply:
    _only("parameter", query, ())
    try:
        asked = json.loads(sent.content) if sent.content else {}
    except (ValueError, RecursionError):
        raise RefusedError(400, "the body is not JSON") from None
    if not isinstance(asked, dict):
        raise RefusedError(400, "the body is not a JSON object")
    names = ("verify", "accept", "retry_failed")
    _only("key", asked, names)
    if any(not isinstance(value, bool) for value in asked.values()):
        raise RefusedError(400, f"{', '.join(names)} are true or false")
    verify, accept, retry_failed = (asked.get(name, False) for name in names)
    return Reply(202, _as_json(answers.scan(verify, accept, retry_failed)))


def _as_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


READ = ("GET", "HEAD")
Routes = dict[str, tuple[tuple[str, ...], Callable[[Answers, dict[str, str], Sent], Reply]]]
ROUTES: Routes = {
    "/v1/stats": (READ, _ask_stats),
    "/v1/histogram": (READ, _ask_histogram),
    "/v1/blobs": (READ, _ask_blobs),
    "/v1/layers": (READ, _ask_layers),
    "/v1/history": (READ, _ask_history),
    "/v1/health": (READ, _ask_health),
    "/v1/scan": (("POST",), _ask_scan),
    "/metrics": (READ, _ask_metrics),
}
METRICS_ALONE: Routes = {"/metrics": ROUTES["/metrics"]}
