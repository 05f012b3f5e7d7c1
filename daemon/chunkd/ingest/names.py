"""When the names of images are read, and how they get into the index: the writer's part.

Each cache's own thread reads them (`sources/names_reader`), from the folders beside which the index has blobs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from chunkd.index import records
from chunkd.index.index import Change, Index
from chunkd.model import Place
from chunkd.names import record
from chunkd.names.beside import base_of
from chunkd.sources.activity import WRITER, Activity, Token
from chunkd.sources.cache import ServedCache
from chunkd.sources.names_reader import NamesEnd, NamesRead, NamesReader
from chunkd.sources.wakeup import Wakeup

log = logging.getLogger(__name__)

# The index keeps the names of the names file under this number. Caches are numbered from 1.
NAMES_FILE = 0
# So long after a manifest landed or went, or an event told of names, they are read. A push writes its tag a moment
# after its manifest.
NEWS_S = 2.0
# So long a names file may keep the daemon from being settled: its file system may not answer.
FILE_S = 5.0
# Who asks for names gets those that were read at most so long ago, or has them read again.
FRESH_S = 60.0
# After a reading so many times its length passes: it takes at most a twentieth of the time.
PAUSES = 19
MOST_BASES = 1 << 16
# What a turn takes at most, so that a blob that lands meanwhile does not wait long.
PLACES_A_TURN = 2000
PARTS_A_TURN = 1000
BYTES_A_TURN = 4 << 20
# If more places can't be read, nothing is dropped.
MOST_UNREAD = 4096


@dataclass(slots=True)
class _State:
    """One reader. `wanted_s` is when the next reading is to begin, `allowed_s` when it may. While one is under way,
    `path` says where the search for bases goes on (None: they are being read), and `came` are the keys that were read.
    `told` is what could not be read in the reading before.
    """

    wanted_s: float | None = None
    allowed_s: float = 0.0
    begun_s: float | None = None
    under_way: bool = False
    waited_for: bool = False
    token: Token | None = None
    path: str | None = None
    bases: set[str] = field(default_factory=set)
    came: set[bytes] = field(default_factory=set)
    unread: list[NamesRead] = field(default_factory=list)
    told: set[str] = field(default_factory=set)


class Names:
    """Names are read when a scan has ended, soon after a manifest has come or gone or an event told of names, and when
    somebody asks for fresher ones than there are. Any thread may call `ask` and read `is_reading` and `file_taken_s`,
    everything else is the writer's.
    """

    def __init__(
        self,
        index: Index,
        caches: Mapping[int, ServedCache],
        names_file: NamesReader | None,
        activity: Activity,
        wakeup: Wakeup,
    ) -> None:
        self._index, self._activity, self._wakeup = index, activity, wakeup
        self._caches = caches
        self._readers = {number: cache.names for number, cache in caches.items()}
        if names_file is not None:
            self._readers[NAMES_FILE] = names_file
        self._states = {number: _State() for number in self._readers}
        self._scanned = self._asked = False
        # For how long the names file is being read.
        self.file_taken_s = 0.0

    def ask(self) -> None:
        """Have names read that were last read more than FRESH_S ago. Returns at once."""
        self._asked = True
        self._wakeup.wake()

    @property
    def is_reading(self) -> bool:
        """Whether names are being read, or whoever asked for fresher ones has not been heard yet."""
        return self._asked or any(state.under_way for state in self._states.values())

    def scanned(self) -> None:
        """Every cache has been listed, and all that was found is in the index: have names read."""
        if not self._scanned and NAMES_FILE not in self._readers:
            self._forget_names_file()
        self._scanned = True
        for number, state in self._states.items():
            self._want(number, 0.0)
            self._begin_if_due(number, state)

    def manifest_moved(self) -> None:
        """A manifest has come to a place or has gone from one. The first scan's end has names read anyway."""
        if self._scanned:
            for number in self._states:
                self._want(number, NEWS_S)

    def _want(self, number: int, delay_s: float) -> None:
        state, at_s = self._states[number], self._readers[number].clock_s() + delay_s
        state.wanted_s = at_s if state.wanted_s is None else min(state.wanted_s, at_s)

    def turn(self) -> None:
        """Take some of what was read into the index, and begin the readings that are due. Raises IndexUnwritable."""
        for number, cache in self._caches.items():
            if cache.hints.take_names_changed() and self._scanned:
                self._want(number, NEWS_S)
        asked = self._asked
        if asked:
            for number, state in self._states.items():
                if state.begun_s is None or self._readers[number].clock_s() >= state.begun_s + FRESH_S:
                    self._want(number, 0.0)
        for number, state in self._states.items():
            self._take(number, state)
            if number == NAMES_FILE:
                self._look_at_file(state)
            self._begin_if_due(number, state)
            if state.path is not None:
                self._find_bases(number, state, state.path)
        if asked:
            self._asked = False

    # --- beginning ------------------------------------------------------------------------------------------------

    def _begin_if_due(self, number: int, state: _State) -> None:
        now_s = self._readers[number].clock_s()
        if state.under_way or state.wanted_s is None or now_s < max(state.wanted_s, state.allowed_s):
            return
        state.wanted_s, state.begun_s, state.under_way = None, now_s, True
        if number == NAMES_FILE:
            self._wait_for_file(True)
            self._readers[number].begin(("",))
        else:
            state.token, state.path = self._activity.take(number), ""
            self._wakeup.wake()

    def _look_at_file(self, state: _State) -> None:
        now_s, begun_s = self._readers[NAMES_FILE].clock_s(), state.begun_s
        self.file_taken_s = now_s - begun_s if state.under_way and begun_s is not None else 0.0
        if self.file_taken_s > FILE_S:
            self._wait_for_file(False)

    def _wait_for_file(self, wait: bool) -> None:
        """The names file holds no scan up, and keeps the daemon from being settled only while it may soon be read."""
        state = self._states[NAMES_FILE]
        self._activity.wait(WRITER, wait - state.waited_for)
        state.waited_for = wait

    def _find_bases(self, number: int, state: _State, path: str) -> None:
        """Look at the next places of a cache. When all have been looked at, the reading begins."""
        state.path = self._search(number, state.bases, path)
        if len(state.bases) > MOST_BASES:
            problem = f"it has more than {MOST_BASES} folders with blobs; the names in the others are not read"
            state.path, state.unread = None, [NamesRead(self._caches[number].path, problem=problem)]
        if state.path is None:
            self._readers[number].begin(tuple(sorted(state.bases)[:MOST_BASES]))
            state.bases = set()
        else:
            self._wakeup.wake()

    def _search(self, number: int, bases: set[str], path: str) -> str | None:
        """Add the bases of the places from `path` on, of which many are passed over. Returns where to go on."""
        root = self._caches[number].path
        with self._index.snapshot() as txn:
            for _ in range(PLACES_A_TURN):
                place = self._index.store.place_from(txn, Place(number, path))
                if place is None:
                    return None
                base = base_of(root, place.path)
                if base is None:
                    path = place.path + "\0"
                    continue
                bases.add(base)
                blobs = os.path.relpath(os.path.join(base, "blobs"), root)
                if blobs.startswith("."):
                    return None  # the root lies in the folder of blobs, and so does every place
                path = blobs + "0"  # which comes after all that begins with blobs + "/"
        return path

    # --- into the index -------------------------------------------------------------------------------------------

    def _take(self, number: int, state: _State) -> None:
        reader = self._readers[number]
        items = reader.waiting(PARTS_A_TURN, BYTES_A_TURN)
        if not items:
            return
        read = [item for item in items if isinstance(item, NamesRead)]
        state.came.update(records.names_key(number, item.key) for item in read if item.record)
        # Some may be in it already: what can't be committed is taken again.
        unread = dict.fromkeys(state.unread + [item for item in read if not item.record])
        state.unread = list(unread)[: MOST_UNREAD + 1]
        changed = self._changed(number, read)
        end = items[-1] if isinstance(items[-1], NamesEnd) else None
        if changed or (end is not None and end.complete):
            with self._index.transaction() as change:
                for item in changed:
                    change.put_names(records.names_key(number, item.key), item.record)
                if end is not None and end.complete:
                    self._complete(change, number, state, end)
        if end is not None:
            self._end(number, state, reader)
        reader.took(len(items))
        if end is None:
            self._wakeup.wake()

    def _changed(self, number: int, read: list[NamesRead]) -> list[NamesRead]:
        """The parts that the index does not have as they were read."""
        changed = []
        with self._index.snapshot() as txn:
            for item in read:
                kept = self._index.store.get(txn, "names", records.names_key(number, item.key))
                if item.record and (kept is None or not record.alike(records.unseal(kept), item.record)):
                    changed.append(item)
        return changed

    def _complete(self, change: Change, number: int, state: _State, end: NamesEnd) -> None:
        """Drop the parts that are no longer there, and record when the reading was begun."""
        if len(state.unread) <= MOST_UNREAD:
            unread = {(place.base, place.source, place.where) for place in state.unread}
            kept = change.store.names(change.txn, number)
            for key in [key for key, value in kept if key not in state.came and not _holds(value, unread)]:
                change.drop_names(key)
        reading = record.reading_of(end.begun_at_ns, state.unread)
        change.put_names(records.names_key(number, b""), record.encode_reading(reading))

    def _end(self, number: int, state: _State, reader: NamesReader) -> None:
        self._tell_unread(state)
        state.allowed_s = reader.clock_s() + PAUSES * reader.spent_s
        state.under_way, state.came, state.unread = False, set(), []
        if number == NAMES_FILE:
            self._wait_for_file(False)
        if state.token is not None:
            self._activity.give_back(state.token)
            state.token = None

    def _tell_unread(self, state: _State) -> None:
        """Log what could not be read now and could be read before."""
        unread = {": ".join(filter(None, (place.base, place.where, place.problem))) for place in state.unread}
        new = sorted(unread - state.told)
        for line in new[: record.UNREAD_SAID]:
            log.warning("names can't be read, and stay as they were: %s", line)
        if len(new) > record.UNREAD_SAID:
            log.warning("names can't be read in %d more places", len(new) - record.UNREAD_SAID)
        state.told = unread

    def _forget_names_file(self) -> None:
        """No names file is set: what was read from one goes."""
        with self._index.snapshot() as txn:
            keys = [key for key, _ in self._index.store.names(txn, NAMES_FILE)]
            if NAMES_FILE in self._index.store.name_readings(txn):
                keys.append(records.names_key(NAMES_FILE, b""))
        if keys:
            with self._index.transaction() as change:
                for key in keys:
                    change.drop_names(key)


def _holds(value: bytes, unread: set[tuple[str, str, str]]) -> bool:
    """Whether names that were not read now still hold, because nobody could read their place."""
    if not unread:
        return False
    try:
        return record.still_holds(record.decode(value), unread)
    except record.BadNames as error:
        raise records.Damaged(str(error)) from error
