"""A real index, damaged at random in its pages and records: each damage is named, or a difference, or touches nothing.

Every command runs in a process of its own, forked from this one, so that a crash or a hang is seen for what it is.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from blobs import gz, layer, noise, tar, text, write_blob, zst
from chunkd.check.check import check_index
from chunkd.cli.progress import progress
from chunkd.cli.scan import scan_once
from chunkd.errors import BadIndex
from chunkd.index import records
from chunkd.index.storage.environment import reading
from chunkd.queries.read import read_stats
from chunkd.service.oneshot import rebuild_index
from chunkd.settings.config import Config, load
from conftest import Tell
from counts import dealt, share_of
from daemon import SAVING, figures
from indexing import edit, records_of, small_bounds

PAGE_BYTES = 4096
META_BYTES = 200
PAGE_CASES = share_of(240, 80)
RECORD_CASES = share_of(160, 60)
PAGE_DAMAGES = ("zeros", "noise", "another", "bit", "bits", "header", "meta", "cut")
RECORD_DAMAGES = ("missing", "key", "empty", "noise", "shorter", "longer", *["bit"] * 6)
REBUILD_EVERY = 4
DEADLINE_S = 60

Records = dict[str, dict[bytes, bytes]]
# What a command found: "fine" with its figures or differences, "named" with the error's message.
Found = tuple[str, object]


@dataclass(frozen=True)
class Whole:
    """The index that is damaged, the settings it was made with, and its figures."""

    config: Config
    data: bytes
    figures: dict[str, int]
    records: Records

    @property
    def state(self) -> Path:
        return Path(self.config.state_dir)

    def damage(self, data: bytes, left: str = "") -> None:
        """The index has these bytes, and its last writer ended by itself unless its name was `left`."""
        (self.state / "index" / "data.mdb").write_bytes(data)
        (self.state / "index" / "lock.mdb").unlink(missing_ok=True)
        (self.state / "lock").write_text(left)


def apart(command: Callable[[], object]) -> Found:
    """Run it in a process of its own. Fails when that was ended by a signal (an alarm, if it hung) or a bug."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        faulthandler.disable()
        signal.alarm(DEADLINE_S)
        faulthandler.dump_traceback_later(DEADLINE_S - 5, file=os.dup(sys.stderr.fileno()))  # where it hangs
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        found: Found
        try:
            found = "fine", command()
        except BadIndex as error:
            found = "named", str(error)
        except BaseException as error:
            found = "bug", repr(error)
        os.write(write_end, json.dumps(found).encode()[:60000])
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        said = pipe.read()
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not said:
        return "died", signal.Signals(-ended).name
    what, content = json.loads(said)
    assert what != "bug", content
    return what, content


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Two caches with layers that share chunks, one of them twice, some gone again, others, failed and ignored ones."""
    root = tmp_path_factory.mktemp("whole")
    caches = [root / "one", root / "two"]
    for cache in caches:
        cache.mkdir()
    with pytest.MonkeyPatch.context() as patch, small_bounds():
        patch.setenv("CHUNKD_CONFIG", str(root / "none.toml"))
        (root / "none.toml").touch()
        config = load({"caches": tuple(map(str, caches)), "state_dir": str(root / "state"), "workers": 1, "nice": 0})
        gone = [write_blob(caches[1], gz(layer(1000 + number, 600_000)))[1] for number in range(3)]
        for number in range(24):
            write_blob(caches[number % 2], (gz, zst)[number % 3 == 0](layer(number, 400_000)))
            if number % 5 == 0:
                write_blob(caches[1], gz(layer(number, 400_000)))
            write_blob(caches[0], b'{"config": {"digest": "sha256:%064x"}, "layers": []}' % number)
        write_blob(caches[0], gz(tar({"twice": noise(100_000), "more": noise(100_000), "text": text(50_000)})))
        write_blob(caches[0], gz(layer(7))[:-9])
        (caches[0] / ("ab" * 32)).symlink_to("nowhere")
        scan_once(config, [], {}, replace=False)
        for path in gone:
            path.unlink()
        for _ in range(3):  # the last commits change no figure: a lost meta page takes back the very last
            stats = scan_once(config, [], {}, replace=False)
    data = (root / "state" / "index" / "data.mdb").read_bytes()
    found = records_of(root / "state")
    assert {name for name, table in found.items() if not table} <= {"names", "needs_rehash"}
    return Whole(config, data, figures(stats), found)


def asked(whole: Whole) -> dict[str, int]:
    with reading(whole.config.state_dir) as store:
        return figures(read_stats(store).to_json())


def differing(whole: Whole, *, repair: bool = False, read: bool = False) -> list[str]:
    found = check_index(whole.config, [whole.config.state_dir], repair=repair, read=read)
    return sorted({difference.record for difference in found})


def scanned(whole: Whole) -> dict[str, int]:
    return figures(scan_once(whole.config, [], {}, replace=False))


def rebuilt(whole: Whole) -> dict[str, int]:
    return figures(rebuild_index(whole.config, named=False, progress=progress))


# --- damages --------------------------------------------------------------------------------------------------------


def damaged_pages(whole: bytes, kind: str, chance: random.Random) -> bytes:
    data = bytearray(whole)
    pages = len(data) // PAGE_BYTES
    page = chance.randrange(pages) * PAGE_BYTES
    match kind:
        case "zeros":
            data[page : page + PAGE_BYTES] = bytes(PAGE_BYTES)
        case "noise":
            data[page : page + PAGE_BYTES] = chance.randbytes(PAGE_BYTES)
        case "another":
            other = chance.randrange(pages) * PAGE_BYTES
            data[page : page + PAGE_BYTES] = whole[other : other + PAGE_BYTES]
        case "bit" | "bits":
            for _ in range(1 if kind == "bit" else 100):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case "header":
            data[page + chance.randrange(64)] ^= 1 << chance.randrange(8)
        case "meta":
            data[chance.randrange(2) * PAGE_BYTES + chance.randrange(META_BYTES)] ^= 1 << chance.randrange(8)
        case "cut":
            del data[chance.randrange(len(data)) :]
    return bytes(data)


def damage_record(state: Path, found: Records, database: str, kind: str, chance: random.Random) -> None:
    """Alter one record, whatever it holds, past all care."""
    key = chance.choice(list(found[database]))
    value = found[database][key]
    bit = 1 << chance.randrange(8)
    match kind:
        case "missing":
            edit(state, database, key, None)
        case "key":
            at = chance.randrange(len(key))
            edit(state, database, key, None)
            edit(state, database, key[:at] + bytes([key[at] ^ bit]) + key[at + 1 :], value)
        case "empty":
            edit(state, database, key, b"")
        case "noise":
            edit(state, database, key, chance.randbytes(len(value)))
        case "shorter":
            edit(state, database, key, value[: chance.randrange(max(len(value), 1))])
        case "longer":
            edit(state, database, key, value + chance.randbytes(1 + chance.randrange(9)))
        case "bit" if value:
            at = chance.randrange(len(value))
            edit(state, database, key, value[:at] + bytes([value[at] ^ bit]) + value[at + 1 :])


# --- what may follow ------------------------------------------------------------------------------------------------


def harmless(whole: Whole, now: Records) -> bool:
    """Whether nothing is altered but what no figure is made of: a mark (another one has the file hashed again), why
    something failed and when it is tried again, what an other blob is, what is ignored, how it stood once, the hash of
    a chunk without copies.
    """

    def told(found: Records) -> object:
        places = {key: records.unpack_held(value)._replace(mark=None) for key, value in found["places"].items()}  # type: ignore[arg-type]
        failed = [(key, records.unpack_blob(records.digest_from_key(key), value).stored_bytes)
                  for key, value in found["failed"].items()]  # fmt: skip
        slots = [
            (key, at, value[at : at + 24])
            for key, value in found["chunks"].items()
            for at in range(0, len(value), 24)
            if any(value[at + 19 : at + 24])
        ]
        counted = {
            key: replace(blob, reason="" if blob.state == "other" else blob.reason)
            for key, value in found["blobs"].items()
            for blob in [records.unpack_blob(records.digest_from_key(key), value)]
        }
        same = {name: found[name] for name in ("holders", "recipes", "measured", "needs_rehash")}
        return places, failed, slots, counted, same

    return told(whole.records) == told(now)


def hashes_altered_beyond_their_prefix(whole: Whole) -> int:
    """Of how many chunks with copies, in the index as it lies there. It may be too damaged to tell: then of none."""

    def count() -> int:
        now = records_of(whole.state)["chunks"]
        return sum(
            old[at : at + 4] == now[key][at : at + 4] and old[at + 4 : at + 16] != now[key][at + 4 : at + 16]
            for key, old in whole.records["chunks"].items()
            for at in range(0, len(old), 24)
            if any(old[at + 19 : at + 24]) and len(now.get(key, b"")) == len(old)
        )

    what, found = apart(count)
    return found if what == "fine" and isinstance(found, int) else 0


def judge(whole: Whole, counts: Counter[str], rebuild: bool) -> str:
    """Ask, check, mend: what became of the damage that lies in the state directory. Fails for a wrong answer."""
    damaged = (whole.state / "index" / "data.mdb").read_bytes()
    what, said = apart(lambda: asked(whole))
    assert what == "named" or (what, said) == ("fine", whole.figures), f"stats: {what} {said}"
    counts["stats named the damage"] += what == "named"
    whole.damage(damaged)
    what, said = apart(lambda: differing(whole))
    assert what in ("named", "fine"), f"check: {what} {said}"
    if what == "named":
        assert "`chunkd rebuild`" in str(said) or "does not exist" in str(said), said
        # A writer that was killed is followed by one that looks first, and so is one of a small index that was not.
        for left in ("chunkd run (pid 1)", ""):
            whole.damage(damaged, left)
            after, words = apart(lambda: scanned(whole))
            assert after == "named" or (after, words) == ("fine", whole.figures), f"after {left!r}: {after} {words}"
        if rebuild and damaged:
            whole.damage(damaged)
            assert apart(lambda: rebuilt(whole)) == ("fine", whole.figures)
            assert apart(lambda: differing(whole)) == ("fine", [])
            counts["rebuilt from the caches"] += 1
        return "an error that says what to do"
    read = False
    if not said:
        now = records_of(whole.state)
        if now == whole.records:
            return "nothing: no record lies there"
        read = True
        what, said = apart(lambda: differing(whole, read=True))
        assert what == "fine", f"check --read: {what} {said}"
        if not said:
            assert [name for name in now if name != "meta" and now[name] != whole.records[name]] == [] or harmless(
                whole, now
            ), "altered records, and no difference"
            assert apart(lambda: scanned(whole)) == ("fine", whole.figures)
            assert apart(lambda: differing(whole)) == ("fine", [])
            return "nothing that a figure is made of"
    believed = hashes_altered_beyond_their_prefix(whole)
    what, words = apart(lambda: differing(whole, repair=True, read=read))
    assert (what, words) == ("fine", said) or "`chunkd rebuild`" in str(words), f"repair: {what} {words}"
    mended, mend = ("repair and a scan", scanned) if what == "fine" else ("rebuild", rebuilt)
    last = apart(lambda: mend(whole))
    if not read and last != ("fine", whole.figures):
        # A recompressed length that is possible was taken for true, or a chunk's hash beyond the look-up's prefix: the
        # chunk is counted once more when a blob that has it was read again. Nothing else can have been.
        assert isinstance(last[1], dict), last
        wrong = {name for name, value in whole.figures.items() if last[1][name] != value}
        assert wrong <= {*SAVING, "unique_chunks", "unique_bytes"}, last
        assert 0 <= last[1]["unique_chunks"] - whole.figures["unique_chunks"] <= believed, (last, believed)
        assert ("unique_chunks" in wrong) == ("unique_bytes" in wrong), last
        read = True
        assert apart(lambda: differing(whole, read=True)) != ("fine", [])
        assert apart(lambda: differing(whole, repair=True, read=True))[0] == "fine"
        last = apart(lambda: mend(whole))
    assert last == ("fine", whole.figures)
    assert apart(lambda: differing(whole, read=read)) == ("fine", [])
    return f"a difference by check{' --read' if read else ''}, mended by {mended}"


def report(counts: Counter[str], kinds: Counter[str], tell: Tell) -> None:
    tell(f"{kinds.total()} damages: " + "; ".join(f"{number} {what}" for what, number in counts.most_common()))
    tell("kinds: " + ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())))


def test_pages_damaged_at_random(whole: Whole, seed: int, tell: Tell) -> None:
    counts, kinds = Counter[str](), Counter[str]()
    for case, kind in enumerate(dealt(PAGE_DAMAGES, PAGE_CASES, random.Random(seed))):
        whole.damage(damaged_pages(whole.data, kind, random.Random(f"{seed} {case}")))
        try:
            counts[judge(whole, counts, rebuild=case % REBUILD_EVERY == 0)] += 1
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, case {case}, {kind}: {error}") from error
        kinds[kind] += 1
    report(counts, kinds, tell)


@pytest.mark.long
def test_records_damaged_at_random(whole: Whole, seed: int, tell: Tell) -> None:
    counts, kinds = Counter[str](), Counter[str]()
    chance = random.Random(seed)
    databases = dealt([name for name, table in whole.records.items() if table], RECORD_CASES, chance)
    for case, (database, kind) in enumerate(zip(databases, dealt(RECORD_DAMAGES, RECORD_CASES, chance), strict=True)):
        whole.damage(whole.data)
        damage_record(whole.state, whole.records, database, kind, random.Random(f"{seed} {case}"))
        try:
            counts[judge(whole, counts, rebuild=case % REBUILD_EVERY == 0)] += 1
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, case {case}, {database} {kind}: {error}") from error
        kinds[database] += 1
    report(counts, kinds, tell)


@pytest.fixture(autouse=True)
def cleaned(whole: Whole) -> Iterator[None]:
    yield
    for path in whole.state.glob("index.bad-*"):
        shutil.rmtree(path)
