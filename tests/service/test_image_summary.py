"""How many images there are is computed beside the daemon's work: when, how often, and what is kept meanwhile."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from answering import exchange
from chunkd.images.pages import Reply
from chunkd.index.records import Held
from chunkd.model import Blob, FileMark
from chunkd.service import live
from chunkd.service.image_pages import ImagesUnanswered, Question
from chunkd.service.image_summary import REST_S, RESTS, ImageSummary
from chunkd.service.live import DaemonAnswers
from chunkd.worker import manifest_record
from chunkd.worker.manifest import Contents, Edge, Kind, Role
from daemon import Home
from indexing import Bench, digest_of, place_of, recipe_of
from test_registry_collection import LAYER, Layout

INDEX = manifest_record.encode(Contents(Kind.INDEX, (Edge(Role.MANIFEST, digest_of(7), 1003),)))


class Pages:
    """Answers at once, unless it is told what is wrong or how long it takes."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.takes_s = 0.0
        self.problem = ""
        self.asked: list[Question] = []
        self.commit = 0

    def whole(self, question: Question) -> Reply:
        self.asked.append(question)
        self.now_s += self.takes_s
        if self.problem:
            raise ImagesUnanswered(self.problem)
        summary = {"images": len(self.asked)}
        return {"as_of": "now", "names_as_of": None, "commit": self.commit, "summary": summary, "repositories": [{}]}


def commit_of(bench: Bench) -> int:
    with bench.index.snapshot() as txn:
        return txn.id()


def summary_of(bench: Bench, pages: Pages) -> ImageSummary:
    return ImageSummary(bench.index.store, pages, 7, lambda: pages.now_s)  # type: ignore[arg-type]


def add_image(bench: Bench, number: int) -> None:
    digest = digest_of(1000 + number)
    with bench.index.transaction() as change:
        change.hold(place_of(digest), Held(digest, "verified", FileMark(1, number, 5, 1)))
        change.add(Blob(digest, "other", 5, reason=Kind.INDEX.value), recipe_of([]), INDEX)


def test_an_index_without_manifests_has_no_summary(bench: Bench) -> None:
    pages = Pages()
    summary = summary_of(bench, pages)
    summary.turn()
    assert (summary.latest, summary.repositories, pages.asked) == (None, [], [])


def test_it_is_computed_when_the_index_has_changed_and_once_a_minute_at_most(bench: Bench) -> None:
    pages = Pages()
    summary = summary_of(bench, pages)
    add_image(bench, 1)
    pages.commit = commit_of(bench)
    summary.turn()
    assert summary.latest == {"as_of": "now", "names_as_of": None, "images": 1}
    assert summary.repositories == [{}]
    assert pages.asked == [("summary", (7,))]
    pages.now_s += 10 * REST_S
    summary.turn()
    assert len(pages.asked) == 1, "nothing has changed"
    add_image(bench, 2)
    pages.commit = commit_of(bench)
    summary.turn()
    assert summary.latest["images"] == 2
    add_image(bench, 3)
    pages.now_s += REST_S - 1
    summary.turn()
    assert len(pages.asked) == 2
    pages.now_s += 1
    summary.turn()
    assert len(pages.asked) == 3


def test_it_takes_a_twentieth_of_the_time(bench: Bench) -> None:
    pages = Pages()
    pages.takes_s = 30.0
    summary = summary_of(bench, pages)
    add_image(bench, 1)
    summary.turn()
    pages.now_s += RESTS * 30.0 - 1
    summary.turn()
    assert len(pages.asked) == 1
    pages.now_s += 1
    summary.turn()
    assert len(pages.asked) == 2


def test_what_was_computed_last_is_kept_while_it_can_not_be(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    pages = Pages()
    summary = summary_of(bench, pages)
    add_image(bench, 1)
    summary.turn()
    pages.problem = "too many"
    for _ in range(3):
        pages.now_s += REST_S
        summary.turn()
    assert summary.latest is not None
    assert summary.latest["images"] == 1
    assert len(pages.asked) == 4
    assert [record.levelname for record in caplog.records] == ["WARNING"], "said once"


# --- fresher names --------------------------------------------------------------------------------------------------


@dataclass
class Names:
    """They are read for so many looks, or for ever."""

    looks: float
    asked: int = 0

    def ask(self) -> None:
        self.asked += 1

    @property
    def is_reading(self) -> bool:
        self.looks -= 1
        return self.looks > 0


@pytest.mark.parametrize(("looks", "left"), [(3, 0.0), (math.inf, math.inf)])
def test_a_question_waits_for_fresher_names_and_not_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, looks: float, left: float
) -> None:
    monkeypatch.setattr(live, "NAMES_S", 0.1)
    names = Names(looks)
    writer: Any = SimpleNamespace(names=names, index=bench.index, pool=SimpleNamespace(run=None), caches={})
    answers = DaemonAnswers(writer, scanner=None)  # type: ignore[arg-type]
    given: list[tuple[Question, str, int]] = []
    monkeypatch.setattr(answers, "_image_pages", SimpleNamespace(page=lambda *asked: given.append(asked)))
    answers.images("", 10, "image")
    assert names.looks == left
    answers.images("7-10", 10, "image")
    assert (names.looks, names.asked) == (left, 1), "a page that follows shows what the first one does"
    assert given == [(("images", ("image",)), "", 10), (("images", ("image",)), "7-10", 10)]


# --- the daemon -----------------------------------------------------------------------------------------------------


def test_the_daemon_says_how_many_images_there_are_and_without_one_nobody_knows(home: Home) -> None:
    """Two images of a layout, of which one has a name, and a blob that no image holds."""
    made = Layout(home.root / "cache")
    row = made.image(1, 2)
    reached = set((made.path / "blobs" / "sha256").iterdir())
    made.image(1, 3)
    made.put(b"alone", LAYER)
    lost = set((made.path / "blobs" / "sha256").iterdir()) - reached
    row |= {"annotations": {"org.opencontainers.image.ref.name": "shop/api:v1"}}
    (made.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [row]}))
    cache = home.root / "cache"
    daemon = home.start(cache, environ={"CHUNKD_METRICS_REPOSITORIES": "5"})
    daemon.until(lambda stats: stats["images"] and stats["images"]["names"], "the images are known")
    found = daemon.stats()["images"]
    assert found["as_of"]
    assert found["names_as_of"]
    sizes: dict[str, Any] = {name: found[name] for name in found if not name.endswith("as_of")}
    assert sizes == {
        "images": 2, "names": 1, "partial_images": 0, "unreached_blobs": len(lost),
        "unreached_bytes": sum(path.stat().st_size for path in lost),
    }  # fmt: skip
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert b'chunkd_repository_fair_share_bytes{repository="shop/api"}' in exchange(daemon.socket, request)
    said = home.command("stats").stdout
    assert "in no named image" in said
    assert daemon.stop() == 0
    assert json.loads(home.command("stats", "--json").stdout)["images"] is None
