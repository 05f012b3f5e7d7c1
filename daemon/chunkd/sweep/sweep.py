"""A sweep as a whole: which layers, what is kept of an earlier run, reading, and the reply."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from chunkd.errors import ChunkdError
from chunkd.settings.config import Config
from chunkd.sweep import figures, layers
from chunkd.sweep.question import Question, Share
from chunkd.sweep.reading import Reading
from chunkd.sweep.results import Asked, OwnResults, Results
from chunkd.sweep.tally import Progress, Tally
from chunkd.worker.spawn import courtesy_of


class AskedOtherwise(ChunkdError):
    def __init__(self, folder: str) -> None:
        super().__init__(
            f"sweep {folder}: was asked with other settings, or by other versions of chunkd or zstd; give the same"
            " again, or start anew without --resume"
        )


class Sweep:
    """One question over the layers of a tally. `read` reads what has no result yet, step by step."""

    def __init__(
        self, tally: Tally, results: Results, share: Share, read: Callable[[], Generator[Progress, None, None]]
    ) -> None:
        self.tally, self.read = tally, read
        self._results, self._share = results, share

    @property
    def is_complete(self) -> bool:
        return self.tally.is_complete

    def reply(self, show: Callable[[int, int], object] = lambda *_: None) -> dict[str, Any]:
        """The figures of the layers that have been read."""
        return figures.reply(self.tally, self._results, self._share, show)

    def done(self) -> None:
        """Remove the results of layers, if nobody else may need them, nor a sweep that goes on when all can be read."""
        if not self.tally.unread:
            self._results.done()


@contextlib.contextmanager
def opened(
    config: Config, states: Sequence[str], caches: Sequence[str], question: Question, share: Share
) -> Iterator[Sweep]:
    """A sweep over these caches, or over the layers of the first index that there is if none is named. Results are kept
    in `config.state_dir` until it is `done`.

    What an unfinished sweep with this question has read is not read again. Raises IndexMissing, CacheUnusable,
    SweepBusy, SweepUnwritable and what reading an index raises.
    """
    tally = Tally(layers.found(states, caches, share), len(question.rules))
    results = OwnResults(config.state_dir, question)
    try:
        rules, one_in = ",".join(question.rules), question.measure.one_in
        results.note_question(Asked(list(caches), rules, one_in, str(share), question.key))
        tally.take(results.kept(tally.wanted))
        workers, courtesy = courtesy_of(config.workers, config.nice, config.io_priority, config.read_bytes_per_s)
        yield Sweep(tally, results, share, Reading(tally, results, courtesy, workers).run)
    finally:
        results.close()
