"""The pages of answers about images, for the endpoint's threads. A process of its own computes each answer."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from chunkd.errors import ChunkdError, SystemRefused, UsageError
from chunkd.images.pages import Reply, position, with_rows
from chunkd.queries.layer_shares import Turns

# How long an answer may take; a client waits a little longer.
ANSWER_S = 240.0
# What computes it is imported in its own process only.
MODULE = "chunkd.service.image_process"
# The last line of an answer that is whole.
END = b"\n"

# A function of `images.answers` by its name, and its arguments.
Question = tuple[str, tuple[Any, ...]]


class ImagesUnanswered(ChunkdError):
    """The process that computes an answer has refused it, died or taken too long."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A reply without its rows, and its rows as lines of JSON, which take less memory."""

    question: Question
    head: Reply
    rows: list[bytes]


class ImagePages(Turns):
    """Only one answer is computed at a time, as each is a pass over all recipes and keeps the index's old pages
    meanwhile. An answer of several pages is kept until the last one was given or another question was asked.

    A page whose answer is no longer kept is one of the present moment: `commit` is then another, if the index changed.
    """

    def __init__(self, index_path: str, run: Callable[[str, dict[str, Any]], socket.socket]) -> None:
        """`run` starts a process as `Starter.run` does."""
        super().__init__("images")
        self._index_path, self._run = index_path, run
        self._kept: _Kept | None = None

    def page(self, question: Question, after: str, limit: int) -> Reply:
        """At most `limit` rows, and in `next` the `after` of the following page. Raises PagesBusy, UsageError,
        ImagesUnanswered, SystemRefused and StarterGone.
        """
        commit, start = position(after)
        with self.one():
            kept = self._kept
            if not (kept and kept.question == question and kept.head["commit"] == commit):
                self._kept = None  # so that there are not two answers at once
                kept = self._computed(question)
            end = start + limit
            rows = [json.loads(row) for row in kept.rows[start:end]]
            following = f"{kept.head['commit']}-{end}" if end < len(kept.rows) else None
            self._kept = kept if following else None
        return with_rows(kept.head, rows) | {"next": following}

    def whole(self, question: Question) -> Reply:
        """The whole answer, which is not kept. Raises as `page`."""
        with self.one():
            kept = self._computed(question)
        return with_rows(kept.head, [json.loads(row) for row in kept.rows])

    def _computed(self, question: Question) -> _Kept:
        function, arguments = question
        asked = {"index": self._index_path, "question": function, "arguments": arguments}
        try:
            with self._run(MODULE, asked) as connection, connection.makefile("rb") as stream:
                connection.settimeout(ANSWER_S)
                lines = _whole(stream)
        except TimeoutError:
            raise ImagesUnanswered(f"images: there was no answer within {ANSWER_S:.0f} s") from None
        except OSError as error:
            raise SystemRefused.of(error) or ImagesUnanswered(f"images: no answer: {error.strerror}") from error
        head, *rows = lines
        reply: Reply = json.loads(head)
        if "error" in reply:
            raise (UsageError if reply["usage"] else ImagesUnanswered)(reply["error"])
        return _Kept(question, reply, rows)


def _whole(stream: IO[bytes]) -> list[bytes]:
    """The lines before END. Raises ImagesUnanswered when the stream ends without it."""
    lines = []
    while (line := stream.readline()) != END:
        if not line:
            raise ImagesUnanswered(
                "images: the process that computes the answer ended without one; see the daemon's log"
            )
        lines.append(line)
    return lines
