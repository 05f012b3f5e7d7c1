"""Five causes that add up to the byte, by directory, extension and file, against an oracle that uses tarfile."""

from __future__ import annotations

import gzip
import io
import itertools
import random
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import where_oracle
from blobs import noise, text
from chunkd.images.atoms import Numbers
from chunkd.model import ChunkParams, Digest
from chunkd.where import causes, groups
from chunkd.where.causes import CAUSES, Attribution, Layers, TooMuchToTrace
from chunkd.where.trace import pack, unpack
from chunkd.where.tracing import Tracer
from daemon import npm_layers
from tars import END, cuts, entry, header, record
from test_tar_stream import BROKEN

PARAMS = ChunkParams()


def attribution(layers: dict[str, bytes], randomly: random.Random | None = None) -> Attribution:
    """As the command makes it, without its processes: layers come in any order, and in any buffers."""
    found, numbers = Layers(PARAMS), dict[bytes, int]()
    recipes: dict[Digest, Numbers] = {}
    order = list(layers)
    if randomly:
        randomly.shuffle(order)
    for name in order:
        tracer = Tracer(PARAMS)
        for buffer in cuts(layers[name], randomly or 1 << 18):
            tracer.feed(buffer)
        recipe = tracer.finish()
        packed = pack(tracer.trace())
        found.add(Digest("sha256", name), recipe, unpack(packed, len(layers[name])))
        hashes = [recipe.hashes[at : at + 16] for at in range(0, len(recipe.hashes), 16)]
        recipes[Digest("sha256", name)] = np.array([numbers.setdefault(one, len(numbers)) for one in hashes])
    return found.attribute(recipes)


def same(found: Attribution, expected: where_oracle.Found) -> None:
    """To the byte, by cause, by file, by directory and by extension."""
    assert found.uncompressed_bytes == expected.uncompressed_bytes
    assert found.unique_bytes == expected.unique_bytes
    assert found.by_cause() == {cause: expected.causes[cause] for cause in CAUSES}
    assert sum(found.by_cause().values()) == found.uncompressed_bytes - found.unique_bytes
    outside = expected.paths.get(None, Counter())
    assert found.outside_bytes == outside.total()
    paths = {path: sizes for path, sizes in expected.paths.items() if path is not None}
    rows, left_out = groups.rows(found, groups.FILE, 0, {})
    if not left_out["rows"]:
        assert {row["name"]: {cause: row[f"{cause}_bytes"] for cause in CAUSES} for row in rows} == {
            path: {cause: sizes[cause] for cause in CAUSES} for path, sizes in paths.items()
        }
        for row in rows:
            assert {one.removeprefix("sha256:") for one in row["layer_digests"]} >= set(
                sorted(expected.layers[row["name"]])[:1] if row["layers"] <= groups.MOST_NAMED else ()
            )
            assert row["layers"] >= len(expected.layers[row["name"]])
    for depth in (1, 3):
        rows, left_out = groups.rows(found, groups.DIRECTORY, depth, {})
        wanted: Counter[str] = Counter()
        for path, sizes in paths.items():
            wanted["/" + "/".join(path.split("/")[1:-1][:depth])] += sizes.total()
        assert {row["name"]: row["copied_bytes"] for row in rows} == wanted
        assert left_out == {"rows": 0, "copied_bytes": 0}
    for by in groups.GROUPS:
        rows, left_out = groups.rows(found, by, 2, {})
        total = sum(row["copied_bytes"] for row in rows) + left_out["copied_bytes"] + found.outside_bytes
        assert total == found.uncompressed_bytes - found.unique_bytes, by
        assert all(row["copied_bytes"] == sum(row[f"{cause}_bytes"] for cause in CAUSES) for row in rows)


def made_layer(draw: random.Random, contents: list[bytes]) -> bytes:
    """A tar in any format, of files, directories and links; long names, and contents that others have too."""
    out = io.BytesIO()
    form = draw.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for _ in range(draw.randrange(1, 12)):
            name = draw.choice(["usr/lib/a.so.1", "usr/share/doc/x/copyright", "etc/b.conf", "./opt/c", "d", "n" * 90])
            if form != tarfile.USTAR_FORMAT and not draw.randrange(4):
                name = "deep/" * 40 + name
            member = tarfile.TarInfo(name + draw.choice(["", "", "2"]))
            member.type = draw.choice([tarfile.REGTYPE] * 5 + [tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE])
            member.linkname = "d"
            data = draw.choice(contents) if member.isreg() else b""
            if data and not draw.randrange(4):
                data = data[: len(data) // 2] + b"changed" + data[len(data) // 2 :]
            member.size, member.mtime = len(data), draw.choice([0, 0, 1])
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("seed", range(12))
def test_made_up_layers_are_as_the_oracle_has_them(seed: int) -> None:
    draw = random.Random(seed)
    contents = [b"", b"small", noise(3000, 1), noise(30_000, 2), text(50_000, 3), bytes(140_000), noise(9000, 4) * 4]
    layers = {f"{at:064x}": made_layer(draw, contents) for at in range(draw.randrange(1, 6))}
    layers |= {f"{at + 50:064x}": data for at, data in enumerate(layers.values()) if not draw.randrange(4)}
    layers |= {f"{99:064x}": bytes(10_240)}
    same(attribution(layers, draw), where_oracle.where(layers))


def test_each_cause_alone() -> None:
    """What makes each of the five, in layers of which two at a time share something."""
    one, other, zeros = noise(60_000, 1), noise(60_000, 2), bytes(200_000)

    def layer(*files: tuple[str, bytes]) -> bytes:
        return b"".join(entry(name.encode(), data) for name, data in files) + END

    def cause(first: bytes, second: bytes) -> set[str]:
        layers = {"00": first, "01": second}
        found = attribution(layers)
        same(found, where_oracle.where(layers))
        return {name for name, size in found.by_cause().items() if size > 2048}

    assert cause(layer(("a", one)), layer(("b", other))) == set()
    assert cause(layer(("a", one)), layer(("a", one), ("b", other))) == {"same_path"}
    assert cause(layer(("a", one)), layer(("b", one))) == {"other_path"}
    assert cause(layer(("a", one)), layer(("a", one[:40_000] + other))) == {"parts"}
    assert cause(layer(("a", one)), layer(("a", one))) == {"same_layer"}
    assert "zeros" in cause(layer(("a", zeros)), layer(("b", zeros)))


def test_the_first_copy_is_in_the_least_digest() -> None:
    data = entry(b"f", noise(50_000)) + END
    more = entry(b"f", noise(50_000)) + entry(b"g", noise(20_000, 2)) + END
    for first, second in ((data, more), (more, data)):
        found = attribution({"00": first, "01": second})
        assert set(found.layer[found.copied_bytes > 0].tolist()) == {1}


def test_damage_costs_the_attribution_of_its_layer_and_nothing_else() -> None:
    good = entry(b"f", noise(50_000)) + END
    broken = entry(b"e", b"e") + header(b"f")[:-1] + b"\1" + noise(50_000) + END
    found = attribution({"00": good, "01": good[:-1], "02": broken, "03": broken})
    causes_of = found.by_cause()
    assert sum(causes_of.values()) == found.uncompressed_bytes - found.unique_bytes
    assert causes_of["same_layer"] == len(broken)
    assert causes_of["parts"] == found.outside_bytes - found.outside[3][1] > 20_000
    assert found.copied_bytes[found.layer == 1].sum() > 20_000


def test_a_file_that_is_cut_short_is_the_same_as_none() -> None:
    data = entry(b"f", noise(90_000))
    found = attribution({"00": data + END, "01": data[:80_000], "02": data[:80_000] + b"x"})
    assert [number > 0 for number in found.file.tolist()] == [True, False, False]
    assert found.by_cause()["parts"] == found.uncompressed_bytes - found.unique_bytes > 40_000


def test_what_has_no_content_is_no_file_that_was_moved() -> None:
    """Directories, links and empty files: their headers alone are copies."""
    heads = b"".join(header(b"%d" % at, 0, kind) for at in range(200) for kind in (b"5", b"2", b"0"))
    found = attribution({"00": heads + entry(b"a") + END, "01": heads + entry(b"b", b"b") + END})
    same(found, where_oracle.where({"00": heads + entry(b"a") + END, "01": heads + entry(b"b", b"b") + END}))
    assert found.by_cause()["parts"] == found.uncompressed_bytes - found.unique_bytes > 100_000


def test_a_layer_that_is_no_tar_counts_outside() -> None:
    data = b"no tar" * 20_000
    found = attribution({"00": data, "01": data + b"x"})
    assert found.outside_bytes == found.by_cause()["parts"] == found.uncompressed_bytes - found.unique_bytes > 0


def test_real_layers_are_as_the_oracle_has_them() -> None:
    """The 90 npm layers, cut as the index has them."""
    paths = npm_layers()
    layers = {path.name: gzip.decompress(path.read_bytes()) for path in paths}
    found = attribution(layers)

    def chunks(data: bytes) -> list[bytes]:
        tracer = Tracer(PARAMS)
        tracer.feed(memoryview(data))
        lengths = np.frombuffer(tracer.finish().lengths, "<u4").tolist()
        ends = np.cumsum([0, *lengths]).tolist()
        return [data[begin:end] for begin, end in itertools.pairwise(ends)]

    same(found, where_oracle.where(layers, chunks))
    assert found.uncompressed_bytes - found.unique_bytes == 329_345_024 - 127_252_468
    assert found.by_cause() == NPM_CAUSES


NPM_CAUSES = {"zeros": 0, "same_layer": 0, "same_path": 13_919_556, "other_path": 0, "parts": 188_173_000}


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = {"00": b"".join(entry(b"%d" % at) for at in range(100)) + END}
    for name in ("MOST_ENTRIES", "MOST_CHUNKS", "MOST_PATHS_BYTES"):
        with monkeypatch.context() as patched:
            patched.setattr(causes, name, 0)
            with pytest.raises(TooMuchToTrace):
                attribution(layers)


@pytest.mark.parametrize(
    ("path", "extension"),
    [
        ("usr/lib/libc.so.6", ".so"), ("a/b.PY", ".py"), (".bashrc", groups.NO_EXTENSION), ("x.tar.gz", ".gz"),
        ("ls.1", groups.NO_EXTENSION), ("v1.2/readme", groups.NO_EXTENSION), ("a." + "b" * 20, groups.NO_EXTENSION),
        ("a..", groups.NO_EXTENSION), ("lib.so.1.2.3", ".so"),
    ],
)  # fmt: skip
def test_extensions(path: str, extension: str) -> None:
    layers = {
        "00": entry(path.encode(), noise(90_000)) + END,
        "01": entry(path.encode(), noise(90_000)) + entry(b"z") + END,
    }
    rows, _ = groups.rows(attribution(layers), groups.EXTENSION, 0, {})
    assert rows[0]["name"] == extension


def test_rows_are_bounded_and_the_rest_is_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "MOST_ROWS", 2)
    files = [(b"%d" % at, noise(90_000 * (at + 1), at)) for at in range(5)]
    data = b"".join(entry(*one) for one in files)
    found = attribution({"00": data + END, "01": data + entry(b"z") + END})
    rows, left_out = groups.rows(found, groups.FILE, 0, {Digest("sha256", "01"): ["app:v1"]})
    assert [row["name"] for row in rows] == ["/4", "/3"]
    assert [(row["layers"], row["images"], row["image_names"]) for row in rows] == [(2, 1, ["app:v1"])] * 2
    assert left_out["rows"] >= 3
    assert left_out["copied_bytes"] + sum(row["copied_bytes"] for row in rows) + found.outside_bytes == sum(
        found.by_cause().values()
    )


def test_a_row_counts_the_layers_that_have_its_copies() -> None:
    """One that has only another file there, or a directory, is none of them."""
    data = entry(b"d/f", noise(90_000))
    layers = {"00": data + END, "01": data + entry(b"d/z", b"z") + END, "02": header(b"d/e", 0, b"5") + END}
    layers["03"] = header(b"d/e", 0, b"5") + entry(b"d/own", noise(50_000, 7)) + END
    [row], _ = groups.rows(attribution(layers), groups.DIRECTORY, 1, {})
    assert (row["name"], row["layer_digests"]) == ("/d", ["sha256:00", "sha256:01"])


def test_paths_are_no_text_that_anybody_may_trust(tmp_path: Path) -> None:
    name = b"\x1b[2J\xff/" + b"n" * 80
    data = entry(name, noise(90_000))
    found = attribution({"00": data + END, "01": data + entry(b"z") + END})
    rows, _ = groups.rows(found, groups.FILE, 0, {})
    assert rows[0]["name"] == "/\x1b[2J\udcff/" + "n" * 80
    assert not list(tmp_path.iterdir())


def test_no_layers_have_no_copies() -> None:
    found = attribution({})
    assert found.by_cause() == dict.fromkeys(CAUSES, 0)
    for by in groups.GROUPS:
        assert groups.rows(found, by, 3, {}) == ([], {"rows": 0, "copied_bytes": 0})


HOSTILE = BROKEN | {
    "links in cycles": header(b"a", 9, b"1") + header(b"b", 9, b"2") + END,
    "name of 1 MB": entry(b"././@LongLink", b"n" * 1_000_000, b"L") + entry(b"a", noise(5000)) + END,
    "PAX bomb": entry(b"x", record(b"a", b"") * 100_000, b"x") + entry(b"a", noise(5000)) + END,
    "no file": b"",
    "one byte": b"\1",
    "zeros": bytes(3000),
    "paths that climb": entry(b"../../etc/passwd", noise(5000)) + entry(b"/etc/shadow", b"x") + END,
}


def test_hostile_tars_cost_their_own_attribution_and_nothing_else() -> None:
    """Beside all of them the good layers have the rows that they have alone."""
    good = {"00": entry(b"f", noise(90_000)) + END, "01": entry(b"f", noise(90_000)) + entry(b"own") + END}
    alone, _ = groups.rows(attribution(good), groups.FILE, 0, {})
    layers = good | {f"{at:04}": entry(b"h", b"h") + data for at, data in enumerate(HOSTILE.values(), 1000)}
    found = attribution(layers, random.Random(1))
    assert sum(found.by_cause().values()) == found.uncompressed_bytes - found.unique_bytes
    rows, _ = groups.rows(found, groups.FILE, 0, {})
    assert [row for row in rows if row["name"] == "/f"] == [row for row in alone if row["name"] == "/f"]
    assert len(found.layers) == len(layers)
