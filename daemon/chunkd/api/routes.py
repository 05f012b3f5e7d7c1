"""The table of routes of the socket, and the reply to one whole request, without I/O."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import SplitResult, parse_qsl, urlsplit

from chunkd import parameters
from chunkd.errors import ChunkdError, UsageError
from chunkd.replies import figures, images, moves

LOG = logging.getLogger(__name__)


class Answers(Protocol):
    """The daemon's answers, for the endpoint's many threads; each method returns at once, if it does not say otherwise.

    A UsageError becomes 400, any other ChunkdError 503.
    """

    def stats(self) -> dict[str, Any]:
        """The object of `figures.stats.Stats.to_json`."""

    def histogram(self) -> dict[str, Any]:
        """The object of `queries.read.read_histogram`."""

    def blobs(self, after: str, limit: int, failed: bool) -> dict[str, Any]:
        """`{"blobs": [...], "next": str | None}`: at most `limit` blobs, and the `after` of the next page, if any.

        `after` comes from a client: at most 1100 printable ASCII characters, empty for the first page.
        """

    def layers(self, after: str, limit: int) -> dict[str, Any]:
        """The page of `layer_shares.read_layers`, with `after` as for `blobs`."""

    def images(self, after: str, limit: int, by: str) -> dict[str, Any]:
        """A page of `images.answers.images`, with `after` as for `blobs`; `by` is `image` or `repository`.

        This and the next four compute for seconds; then `after` gives the pages that follow.
        """

    def freed(self, after: str, limit: int, references: tuple[str, ...], keep_last: int) -> dict[str, Any]:
        """A page of `images.answers.freed`; `references` come from a client."""

    def similar(self, after: str, limit: int, threshold: int) -> dict[str, Any]:
        """A page of `images.answers.similar`; `threshold` is in thousandths."""

    def diff(self, after: str, limit: int, client: tuple[str, ...], to: str, platform: str) -> dict[str, Any]:
        """A page of `images.diff.diff`; `client` are none, or references as in `freed`; `platform` may be empty."""

    def updates(self, after: str, limit: int, repository: str, platform: str) -> dict[str, Any]:
        """A page of `images.updates.updates`; `repository` comes from a client, and is "" for all of them."""

    def history(self, since: str, limit: int) -> dict[str, Any]:
        """The page of `queries.history.read_history`; `since` comes from a client, as `after` does."""

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """The content type and content of `openmetrics.exposed`."""

    def health(self) -> dict[str, Any]:
        """`{"state": "ok" | "degraded", "reasons": [str, ...]}`."""

    def scan(self, verify: bool, accept: bool, retry_failed: bool) -> dict[str, Any]:
        """Starts a scan and does not wait for it."""


class Reply(NamedTuple):
    """A status, a JSON object as bytes (or other content, by `content_type`), and for 405 the methods of the route."""

    status: int
    content: bytes
    allow: str = ""
    content_type: str = "application/json"


class RefusedError(Exception):
    """The request is answered with this status and message."""

    def __init__(self, status: int, message: str, allow: str = "") -> None:
        super().__init__(message)
        self.reply = Reply(status, _as_json({"error": message}), allow)


class Route(NamedTuple):
    """The methods that a path takes, the type of its reply (None if it is not JSON), the call that answers it, the
    parameters of its query and the flags of its body.

    `ask` gets the daemon's answers, the `Accept` header, and each parameter and flag by its name.
    """

    methods: tuple[str, ...]
    reply: Any
    ask: Callable[..., dict[str, Any] | Reply]
    parameters: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    status: int = 200


def _metrics(answers: Answers, accept: str) -> Reply:
    content_type, content = answers.metrics(accept)
    return Reply(200, content, content_type=content_type)


READ = ("GET", "HEAD")
Routes = dict[str, Route]
ROUTES: Routes = {
    "/v1/stats": Route(READ, figures.Stats, lambda answers, _: answers.stats()),
    "/v1/histogram": Route(READ, figures.Histogram, lambda answers, _: answers.histogram()),
    "/v1/blobs": Route(
        READ, figures.Blobs, lambda answers, _, **asked: answers.blobs(**asked), ("after", "limit", "failed")
    ),
    "/v1/layers": Route(
        READ, figures.Layers, lambda answers, _, **asked: answers.layers(**asked), ("after", "limit")
    ),
    "/v1/images": Route(
        READ, images.Images | images.Repositories, lambda answers, _, **asked: answers.images(**asked),
        ("after", "limit", "by"),
    ),
    "/v1/freed": Route(
        READ, images.Freed, lambda answers, _, **asked: answers.freed(**asked),
        ("after", "limit", "references", "keep_last"),
    ),
    "/v1/similar": Route(
        READ, images.Similar, lambda answers, _, **asked: answers.similar(**asked), ("after", "limit", "threshold")
    ),
    "/v1/diff": Route(
        READ, moves.Diff, lambda answers, _, **asked: answers.diff(client=asked.pop("from"), **asked),
        ("after", "limit", "from", "to", "platform"),
    ),
    "/v1/updates": Route(
        READ, moves.Updates | moves.AllUpdates, lambda answers, _, **asked: answers.updates(**asked),
        ("after", "limit", "repository", "platform"),
    ),
    "/v1/history": Route(
        READ, figures.History, lambda answers, _, **asked: answers.history(**asked), ("since", "limit")
    ),
    "/v1/health": Route(READ, figures.Health, lambda answers, _: answers.health()),
    "/v1/scan": Route(
        ("POST",), figures.Scan, lambda answers, _, **asked: answers.scan(**asked),
        flags=("verify", "accept", "retry_failed"), status=202,
    ),
    "/metrics": Route(READ, None, _metrics),
}  # fmt: skip
METRICS_ALONE: Routes = {"/metrics": ROUTES["/metrics"]}


def answer(
    answers: Answers, method: str, target: str, content: bytes, accept: str = "", routes: Routes = ROUTES
) -> Reply:
    """The reply to one whole request, whatever it is. A bug becomes 500 and is logged with its traceback.

    `accept` is the header of that name, `content` the body.
    """
    try:
        split = _split(target)
        if split.path not in routes:
            raise RefusedError(404, f"there is no {split.path[:100]}; there are {', '.join(routes)}")
        route = routes[split.path]
        if method not in route.methods:
            allowed = ", ".join(route.methods)
            raise RefusedError(405, f"{split.path} takes {' and '.join(route.methods)}", allow=allowed)
        asked = _parameters(split.query, route.parameters) | _flags(content, route.flags)
        reply = route.ask(answers, accept, **asked)
        return reply if isinstance(reply, Reply) else Reply(route.status, _as_json(reply))
    except RefusedError as refused:
        return refused.reply
    except UsageError as error:
        return RefusedError(400, str(error)).reply
    except ChunkdError as error:
        return RefusedError(503, str(error)).reply
    except Exception:
        LOG.exception("endpoint: %s %.200r could not be answered", method, target)
        return RefusedError(500, "internal error; see the daemon's log").reply


def _split(target: str) -> SplitResult:
    try:
        return urlsplit(target)
    except ValueError:
        raise RefusedError(400, "the target is not a URL") from None


def _parameters(text: str, known: Sequence[str]) -> dict[str, Any]:
    """The value of each known parameter, from the query or by default."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=8, errors="strict")
    except ValueError as error:
        raise RefusedError(400, f"the query can't be read: {error}") from None
    query = dict(pairs)
    if len(query) != len(pairs):
        raise RefusedError(400, "the query names a parameter twice")
    _only("parameter", query, known)
    return {name: parameters.value_of(name, query.get(name, parameters.PARAMETERS[name].default)) for name in known}


def _flags(content: bytes, known: Sequence[str]) -> dict[str, bool]:
    """The value of each known flag, from the JSON body or False. A route without flags ignores its body."""
    if not known:
        return {}
    try:
        asked = json.loads(content) if content else {}
    except (ValueError, RecursionError):
        raise RefusedError(400, "the body is not JSON") from None
    if not isinstance(asked, dict):
        raise RefusedError(400, "the body is not a JSON object")
    _only("key", asked, known)
    if any(not isinstance(value, bool) for value in asked.values()):
        raise RefusedError(400, f"{', '.join(known)} must be true or false")
    return {name: asked.get(name, False) for name in known}


def _only(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise RefusedError(400, f"unknown {what} {unknown[0][:100]!r}; known: {', '.join(known) or 'none'}")


def _as_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"
