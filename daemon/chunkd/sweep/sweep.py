"""A sweep as a whole: which layers, what is kept of an earlier run, reading, and the reply."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from chunkd.errors import IndexMissing
from chunkd.settings.config import Config
from chunkd.sweep import figures
from chunkd.sweep.layers import Layers, indexed, listed
from chunkd.sweep.question import Question, Share
from chunkd.sweep.reading import Progress, Reading
from chunkd.sweep.results import Asked, Results


class Sweep:
    """One question over some layers. Results are kept in `config.state_dir` until `done`."""

    def __init__(self, config: Config, results: Results, question: Question, share: Share, layers: Layers) -> None:
        self._results, self._question, self._share = results, question, share
        self._reading = Reading(config, question, layers, results)

    def read(self) -> Generator[Progress, None, None]:
        """Read what has no result yet."""
        return self._reading.run()

    @property
    def is_complete(self) -> bool:
        return self._reading.is_complete

    def reply(self, show: Callable[[int, int], object] = lambda *_: None) -> dict[str, Any]:
        """The figures of the layers that have been read."""
        return figures.reply(self._reading, self._results, self._question, self._share, show)

    def done(self) -> None:
        """Remove the results of layers, which nobody needs any longer."""
        self._results.done()


@contextlib.contextmanager
def opened(
    config: Config, states: Sequence[str], caches: Sequence[str], question: Question, share: Share
) -> Iterator[Sweep]:
    """A sweep over these caches, or over the layers of the first index that there is if none is named.

    What an unfinished sweep with this question has read is not read again. Raises IndexMissing, CacheUnusable,
    SweepBusy, SweepUnwritable and what reading an index raises.
    """
    layers = listed(caches, share) if caches else _indexed(states, share)
    results = Results(config.state_dir, question.key, len(question.rules))
    try:
        asked = Asked(list(caches), ",".join(question.rules), question.measure.one_in, str(share))
        results.note_question(asked)
        yield Sweep(config, results, question, share, layers)
    finally:
        results.close()


def _indexed(states: Sequence[str], share: Share) -> Layers:
    for state_dir in states:
        with contextlib.suppress(IndexMissing):
            return indexed(state_dir, share)
    raise IndexMissing(", ".join(states))
