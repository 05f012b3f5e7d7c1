"""The table of routes of the socket, and the reply to one whole request, without I/O."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import SplitResult, parse_qsl, urlsplit

from chunkd.errors import ChunkdError, UsageError

LOG = logging.getLogger(__name__)
MOST_BLOBS_PER_PAGE = 1000
HISTORY_SINCE = "7d"
# A cursor may hold an LMDB key, at most 511 bytes, in hex.
AFTER_CHARACTERS = 1100
REFERENCES_CHARACTERS = 3000


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

    def freed(self, after: str, limit: int, references: str, keep_last: int) -> dict[str, Any]:
        """A page of `images.answers.freed`; `references` are separated by spaces, and come from a client."""

    def similar(self, after: str, limit: int, threshold: int) -> dict[str, Any]:
        """A page of `images.answers.similar`; `threshold` is in thousandths."""

    def diff(self, after: str, limit: int, client: str, to: str, platform: str) -> dict[str, Any]:
        """A page of `images.diff.diff`; `client` is none, or references as in `freed`, and `platform` may be empty."""

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
    """The methods that a path takes, the parameters of its query, the flags of its body, and the call that answers it.

    `ask` gets the daemon's answers, the `Accept` header, and each parameter and flag by its name.
    """

    methods: tuple[str, ...]
    ask: Callable[..., dict[str, Any] | Reply]
    parameters: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    status: int = 200


def _after(text: str) -> str:
    if len(text) > AFTER_CHARACTERS or not (text.isascii() and text.isprintable()):
        raise ValueError(f"at most {AFTER_CHARACTERS} printable ASCII characters")
    return text


def _limit(text: str) -> int:
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= MOST_BLOBS_PER_PAGE:
        raise ValueError(f"a number from 1 to {MOST_BLOBS_PER_PAGE}")
    return int(text)


def _by(text: str) -> str:
    if text not in ("image", "repository"):
        raise ValueError("image or repository")
    return text


def _references(text: str) -> str:
    if len(text) > REFERENCES_CHARACTERS or not text.strip() or not text.isprintable():
        raise ValueError(f"printable references, separated by spaces, {REFERENCES_CHARACTERS} characters at most")
    return text


def _client(text: str) -> str:
    return _references(text) if text else ""


def _to(text: str) -> str:
    if len(_references(text).split()) != 1:
        raise ValueError("one reference")
    return text.strip()


def _repository(text: str) -> str:
    return _to(text) if text else ""


def _platform(text: str) -> str:
    if text and not re.fullmatch(r"[A-Za-z0-9._-]{1,32}(/[A-Za-z0-9._-]{1,32}){0,2}", text):
        raise ValueError("an operating system, and its architecture and variant, such as linux/arm64")
    return text


def _keep_last(text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text):
        raise ValueError("a number from 0 to 999999")
    return int(text)


def _threshold(text: str) -> int:
    if not re.fullmatch(r"0?\.[0-9]{1,3}|1(\.0{1,3})?", text) or float(text) == 0:
        raise ValueError("a fraction above 0, at most 1, with three decimals at most")
    return round(1000 * float(text))


def _true_or_false(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


# Each parameter with its default and its parser, which raises ValueError with what the value must be.
PARAMETERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "after": ("", _after),
    "by": ("image", _by),
    "failed": ("false", _true_or_false),
    "from": ("", _client),
    "keep_last": ("0", _keep_last),
    "limit": ("100", _limit),
    "platform": ("", _platform),
    "references": ("", _references),
    "repository": ("", _repository),
    "since": (HISTORY_SINCE, _after),
    "threshold": ("0.5", _threshold),
    "to": ("", _to),
}


def _metrics(answers: Answers, accept: str) -> Reply:
    content_type, content = answers.metrics(accept)
    return Reply(200, content, content_type=content_type)


READ = ("GET", "HEAD")
Routes = dict[str, Route]
ROUTES: Routes = {
    "/v1/stats": Route(READ, lambda answers, _: answers.stats()),
    "/v1/histogram": Route(READ, lambda answers, _: answers.histogram()),
    "/v1/blobs": Route(READ, lambda answers, _, **asked: answers.blobs(**asked), ("after", "limit", "failed")),
    "/v1/layers": Route(READ, lambda answers, _, **asked: answers.layers(**asked), ("after", "limit")),
    "/v1/images": Route(READ, lambda answers, _, **asked: answers.images(**asked), ("after", "limit", "by")),
    "/v1/freed": Route(
        READ, lambda answers, _, **asked: answers.freed(**asked), ("after", "limit", "references", "keep_last")
    ),
    "/v1/similar": Route(READ, lambda answers, _, **asked: answers.similar(**asked), ("after", "limit", "threshold")),
    "/v1/diff": Route(
        READ, lambda answers, _, **asked: answers.diff(client=asked.pop("from"), **asked),
        ("after", "limit", "from", "to", "platform"),
    ),
    "/v1/updates": Route(
        READ, lambda answers, _, **asked: answers.updates(**asked), ("after", "limit", "repository", "platform")
    ),
    "/v1/history": Route(READ, lambda answers, _, **asked: answers.history(**asked), ("since", "limit")),
    "/v1/health": Route(READ, lambda answers, _: answers.health()),
    "/v1/scan": Route(
        ("POST",), lambda answers, _, **asked: answers.scan(**asked),
        flags=("verify", "accept", "retry_failed"), status=202,
    ),
    "/metrics": Route(READ, _metrics),
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
    found = {}
    for name in known:
        default, read = PARAMETERS[name]
        try:
            found[name] = read(query.get(name, default))
        except ValueError as error:
            raise RefusedError(400, f"`{name}` must be {error}") from None
    return found


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
