"""Results of layers in a folder that others may write to: what is not what a sweep writes is not used."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chunkd.model import Caps, FileMark, MeasureRule
from chunkd.sweep import sums
from chunkd.sweep.messages import MOST_FOUND_BYTES, Block, LayerFinding, SweepJob, Totals, finding_json
from chunkd.sweep.question import Question
from chunkd.sweep.results import MOST_BLOCKS, MOST_SHIFT, Result, ResultChanged, Results
from chunkd.sweep.tally import LEVEL_19_BYTES_PER_S, LEVEL_19_S, Layer, Layers, Tally, picked
from indexing import chunks_of, digest_of, recipe_of

DIGEST, SIZE_BYTES = digest_of(1), 100_000
QUESTION = Question(("2/16/64", "files"), MeasureRule(), Caps())
FIRST_LINE = f"chunkd sweep {QUESTION.key}\n".encode()
RECIPE = recipe_of(chunks_of(range(40)))
CHUNKS = RECIPE.hashes + RECIPE.lengths + RECIPE.measured
MEASURED = len(RECIPE.measured) // 4
LAYER_BYTES = sum(length for _, length in chunks_of(range(40)))
# By the second rule the layer is one chunk, which the threshold leaves out.
FOUND = LayerFinding("layer", "gzip", LAYER_BYTES, totals=(Totals(40, LAYER_BYTES), Totals(1, LAYER_BYTES)))
SAID = {"stored_bytes": SIZE_BYTES, "finding": finding_json(FOUND), "shifts": [0, 3]}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results", QUESTION)


def put(results: Results, chunks: bytes = CHUNKS, number: int = 1) -> Result | None:
    draft = results.draft(digest_of(number))
    draft.add(Block(0, 40, MEASURED), chunks)
    draft.end(SweepJob(digest_of(number), FileMark(0, 0, SIZE_BYTES, 0), shifts=(0, 3)), FOUND)
    return kept(results, number)


def kept(results: Results, number: int = 1) -> Result | None:
    return next(results.kept({digest_of(number): SIZE_BYTES}), None)


def written(
    first: bytes = FIRST_LINE, chunks: bytes = CHUNKS, blocks: Any = ((0, 40, MEASURED),), said: Any = SAID
) -> bytes:
    """A file with a true checksum."""
    encoded = said if isinstance(said, bytes) else json.dumps(said).encode()
    index = b"".join(struct.pack("<HII", *block) for block in blocks)
    whole = first + chunks + index + encoded + struct.pack("<QQ", len(blocks), len(encoded))
    return whole + hashlib.blake2b(whole, digest_size=16).digest()


def found_with(**changed: Any) -> bytes:
    return written(said=SAID | {"finding": finding_json(FOUND) | changed})


def rows(*totals: tuple[int, int, int, int]) -> bytes:
    return found_with(totals=totals)


SHORTER = CHUNKS[: 16 * 40] + (1).to_bytes(4, "little") + CHUNKS[16 * 40 + 4 :]
NOT_PICKED = b"\xff" * 640 + CHUNKS[640:]
# Its bytes are the next chunk's.
NO_BYTES = CHUNKS[:640] + struct.pack("<II", 0, sum(struct.unpack_from("<II", CHUNKS, 640))) + CHUNKS[648:]
HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "a few bytes": b"x" * 20,
    "of another question": written(b"chunkd sweep another\n"),
    "another size": written(said=SAID | {"stored_bytes": SIZE_BYTES + 1}),
    "a size that is text": written(said=SAID | {"stored_bytes": str(SIZE_BYTES)}),
    "a size that is true": written(said=SAID | {"stored_bytes": True}),
    "a key less": written(said={"stored_bytes": SIZE_BYTES, "shifts": [0, 3]}),
    "no object": written(said=[SAID]),
    "no JSON": written(said=b"{"),
    "deep JSON": written(said=b"[" * 5000 + b"]" * 5000),
    "JSON of many values": written(said=b"[" + b"1," * (MOST_FOUND_BYTES // 2 - 2) + b"1]"),
    "JSON that is too long": written(said=json.dumps(SAID).encode() + b" " * MOST_FOUND_BYTES),
    "one shift": written(said=SAID | {"shifts": [0]}),
    "a negative shift": written(said=SAID | {"shifts": [0, -1]}),
    "a shift that leaves nothing": written(said=SAID | {"shifts": [0, MOST_SHIFT + 1]}),
    "a shift that is text": written(said=SAID | {"shifts": [0, "3"]}),
    "a block of no rule": written(blocks=((2, 40, MEASURED),)),
    "more measured than there are": written(blocks=((0, 0, 41),), chunks=bytes(164)),
    "a block twice": written(blocks=((0, 40, MEASURED), (0, 40, MEASURED))),
    "chunks of no block": written(blocks=()),
    "a block that is too large": written(blocks=((0, 1 << 31, 0),)),
    "less chunks than it says": rows((41, LAYER_BYTES, 0, 0), (1, LAYER_BYTES, 0, 0)),
    "more chunks than it says": rows((39, LAYER_BYTES, 0, 0), (1, LAYER_BYTES, 0, 0)),
    "more holes than chunks": rows((40, LAYER_BYTES, 0, 0), (1, LAYER_BYTES, 2, 0)),
    "more bytes in holes than bytes": rows((40, LAYER_BYTES, 0, 0), (1, LAYER_BYTES, 1, LAYER_BYTES + 1)),
    "bytes of another layer": rows((40, LAYER_BYTES, 0, 0), (1, LAYER_BYTES + 1, 0, 0)),
    "more chunks than bytes": rows((40, LAYER_BYTES, 0, 0), (1 << 40, LAYER_BYTES, 0, 0)),
    "chunks of other bytes": written(chunks=SHORTER),
    "other chunks measured than the rule picks": written(chunks=NOT_PICKED),
    "a chunk of no bytes": written(chunks=NO_BYTES),
    "a frame of no bytes": found_with(zstd_3_bytes=0, zstd_19_bytes=9),
    "a bomb": found_with(uncompressed_bytes=1 << 50, totals=[[40, 1 << 50, 0, 0], [1, 1 << 50, 0, 0]]),
    "a kind that is not kept": found_with(kind="mismatched", totals=[]),
    "chunks of no layer": found_with(kind="other", totals=[]),
    "a terminal's code": found_with(reason="\x1b[2J"),
    "too many blocks": written(chunks=b"", blocks=((0, 0, 0),) * (MOST_BLOCKS + 1)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_no_sweep_writes_is_not_used_and_made_again(results: Results, content: bytes) -> None:
    path = results.path(DIGEST)
    path.write_bytes(written())
    assert kept(results) is not None
    path.write_bytes(content)
    assert kept(results) is None
    assert put(results) is not None
    assert path.read_bytes() == written()


def test_a_flipped_bit_anywhere_and_a_cut_are_found(results: Results, seed: int) -> None:
    whole, path, draw = written(), results.path(DIGEST), random.Random(seed)
    for at in [*range(0, len(whole), 61), len(whole) - 1]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        assert kept(results) is None, at
        path.write_bytes(whole[:at])
        assert kept(results) is None, at


MAKERS: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a link to a result": lambda path: path.symlink_to("elsewhere"),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_what_is_not_a_file_is_not_waited_for(results: Results, make: Callable[[Path], object]) -> None:
    (results.folder / "elsewhere").write_bytes(written())
    make(results.path(DIGEST))
    assert kept(results) is None
    assert put(results) is not None
    assert not results.path(DIGEST).is_symlink()


def test_a_whole_result_stays_whoever_comes_later(results: Results) -> None:
    first = put(results)
    before = results.path(DIGEST).stat()
    assert put(results) == first
    assert results.path(DIGEST).stat().st_ino == before.st_ino
    assert [path.name for path in results.folder.iterdir()] == [results.path(DIGEST).name]


def test_a_result_that_is_changed_while_it_is_summed_up_is_named(results: Results) -> None:
    found = put(results)
    assert found is not None
    assert len(list(sums.read(results, found, 0))) == 1
    path = results.path(DIGEST)
    for content in (
        b"", written(said=SAID | {"stored_bytes": SIZE_BYTES + 1}), written(b"chunkd sweep another\n"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(ResultChanged):
            list(sums.read(results, found, 0))
    # Other chunks, with the end of the file as it was.
    end = len(FIRST_LINE) + len(CHUNKS)
    for chunks in (NOT_PICKED, NO_BYTES):
        path.write_bytes(written(chunks=chunks)[:end] + written()[end:])
        with pytest.raises(ResultChanged):
            list(sums.read(results, found, 0))


def test_by_other_caps_a_result_is_not_used(results: Results) -> None:
    assert put(results) is not None
    small = Results(results.folder, replace(QUESTION, caps=Caps(uncompressed_bytes=LAYER_BYTES - 1)))
    small.first_line = FIRST_LINE
    assert kept(small) is None


# --- the tally --------------------------------------------------------------------------------------------------------


def layers(*sizes: int) -> list[Layer]:
    return [Layer(digest_of(number), size, size, 0, str(number)) for number, size in enumerate(sizes, 1)]


def test_which_layers_are_tried_at_level_19_depends_on_the_layers_alone(seed: int) -> None:
    most = round(LEVEL_19_S * LEVEL_19_BYTES_PER_S)
    found = layers(most + 1, most // 2, most // 3, most // 3, most // 7, 0)
    expected = picked(found)
    random.Random(seed).shuffle(found)
    assert picked(found) == expected
    times = {layer.digest: layer.level_19_s for layer in expected}
    assert times[digest_of(1)] == times[digest_of(6)] == 0
    assert 0 < sum(times.values()) <= LEVEL_19_S
    # None more would fit.
    left_s = LEVEL_19_S - sum(times.values())
    assert all(layer.level_19_s or not 0 < layer.stored_bytes < left_s * LEVEL_19_BYTES_PER_S for layer in expected)


def test_what_is_left_begins_with_level_19_and_then_the_largest() -> None:
    of = [layer._replace(level_19_s=float(at == 2)) for at, layer in enumerate(layers(10, 30, 5, 20))]
    tally = Tally(Layers((), of, None, []), 1)
    assert [layer.stored_bytes for layer in tally.left] == [5, 30, 20, 10]
    tally.give_up(of[1].digest, "a reason")
    assert [layer.stored_bytes for layer in tally.left] == [5, 20, 10]
    assert tally.progress(1) == (31, 65, 3)


def test_a_tally_that_begins_with_others_totals_never_keeps_less_than_is_needed(results: Results) -> None:
    found = put(results)
    assert found is not None
    others = [Totals(1 << 25, 1 << 40), Totals(7, 1 << 40)]
    tally = Tally(Layers((), layers(SIZE_BYTES), None, []), 2, others, [1, 0])
    assert tally.shifts == (1, 0)
    tally.add(found)
    assert tally.totals == [one.plus(more) for one, more in zip(others, FOUND.totals, strict=True)]
    assert tally.shifts == (3, 3)  # the second rule's chunks were left out up to there
    assert (list(tally.kept[DIGEST]), tally.is_complete) == ([40, 1], True)
