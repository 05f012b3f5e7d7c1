"""How many images there are and how much no name reaches: computed beside the daemon's work, and kept for who asks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from chunkd.errors import ChunkdError
from chunkd.images.pages import Reply
from chunkd.index.storage.environment import Store
from chunkd.service.image_pages import ImagePages

log = logging.getLogger(__name__)

# From the end of one computation to the next at least this long, and so many times its length: a twentieth of the time.
REST_S = 60.0
RESTS = 19


class ImageSummary:
    """`latest` is the object `images` of the figures: None before it was computed first, and while the index has no
    manifest. `repositories` are rows of `/v1/images?by=repository`, at most `most_repositories`, with the largest fair
    shares. One thread calls `turn`; any may read the rest.
    """

    def __init__(
        self, store: Store, pages: ImagePages, most_repositories: int, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._pages, self._most_repositories, self._clock_s = store, pages, most_repositories, clock_s
        self._seen: int | None = None
        self._allowed_s = 0.0
        self._told = ""
        self.latest: Reply | None = None
        self.repositories: list[Reply] = []

    def turn(self) -> None:
        """Compute the summary anew if the index has changed and enough time has passed."""
        if self._clock_s() < self._allowed_s:
            return
        with self._store.snapshot() as txn:
            commit, manifests = txn.id(), txn.stat(self._store.databases["manifests"])["entries"]
        if commit == self._seen:
            return
        if not manifests:
            self.latest, self.repositories = None, []
            return
        begun_s = self._clock_s()
        try:
            found = self._pages.whole(("summary", (self._most_repositories,)))
        except ChunkdError as error:
            self._tell(str(error))
        else:
            self._seen = found["commit"]
            self.repositories = found["repositories"]
            self.latest = {"as_of": found["as_of"], "names_as_of": found["names_as_of"]} | found["summary"]
            self._told = ""
        ended_s = self._clock_s()
        self._allowed_s = ended_s + max(REST_S, RESTS * (ended_s - begun_s))

    def _tell(self, problem: str) -> None:
        if problem != self._told:
            log.warning("how many images there are stays as it was last computed: %s", problem)
            self._told = problem
