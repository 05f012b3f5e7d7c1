"""Which package a file belongs to, by the lists of dpkg and apk in made-up layers; and lists that are hostile."""

from __future__ import annotations

import random
import shutil
import subprocess
from array import array
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobs import noise
from chunkd.model import ChunkParams
from chunkd.where import groups, packages, trace, tracing
from chunkd.where.packages import Package, is_list, listed_path, owners, plain_path
from chunkd.where.trace import Trace, pack, unpack
from tars import END, entry, header
from test_causes import attribution

STATUS = b"""Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9

Package: bash
Version: 5.2-1
Conffiles:
 /etc/bash.bashrc 0123
"""
APK = b"""C:Q1abc=
P:musl
V:1.2.5-r0
F:lib
R:ld-musl-x86_64.so.1
Z:Q1xyz=
R:libc.musl-x86_64.so.1

P:busybox
V:1.36
F:bin
R:busybox
"""
LIBC, BASH, MUSL = noise(80_000, 1), noise(70_000, 2), noise(60_000, 3)
DPKG_LISTS = {
    b"var/lib/dpkg/status": STATUS,
    b"var/lib/dpkg/info/libc6:amd64.list": b"/.\n/lib\n/lib/libc.so.6\n/usr/share/doc/libc6/copyright\n",
    b"var/lib/dpkg/info/bash.list": b"/bin/bash\n/etc/bash.bashrc\n",
}


def layer(*files: tuple[bytes, bytes]) -> bytes:
    return b"".join(entry(*one) for one in files) + END


def by_package(*layers: bytes) -> dict[str, int]:
    """In whatever order the layers are read."""
    answers = []
    for seed in range(4):
        found = attribution({f"{at:02}": data for at, data in enumerate(layers)}, random.Random(seed))
        rows, _ = groups.rows(found, groups.PACKAGE, 0, {})
        answers.append({row["name"]: row["same_path_bytes"] for row in rows if row["same_path_bytes"]})
    assert answers == answers[:1] * 4
    return answers[0]


def test_dpkg() -> None:
    """`/lib` is a link to `usr/lib` in one of the layers, as it is where directories are merged."""
    base = layer((b"usr/lib/libc.so.6", LIBC), (b"./bin/bash", BASH), *DPKG_LISTS.items())
    found = by_package(base, layer((b"usr/lib/libc.so.6", LIBC), (b"bin/bash", BASH), (b"own", b"x")))
    assert set(found) == {"libc6 (dpkg)", "bash (dpkg)"}
    assert found["libc6 (dpkg)"] > 30_000 < found["bash (dpkg)"]


def test_apk() -> None:
    base = layer((b"lib/apk/db/installed", APK), (b"lib/ld-musl-x86_64.so.1", MUSL), (b"other", BASH))
    found = by_package(base, layer((b"lib/ld-musl-x86_64.so.1", MUSL), (b"other", BASH), (b"own", b"x")))
    assert set(found) == {"musl (apk)", groups.NO_PACKAGE}
    assert found["musl (apk)"] > 40_000


def test_distroless() -> None:
    lists = {
        b"var/lib/dpkg/status.d/base": b"Package: base-files\nVersion: 12\n",
        b"var/lib/dpkg/status.d/base-files": b"Package: base-files\nVersion: 12\n",
        b"var/lib/dpkg/status.d/base-files.md5sums": b"d41d8cd98f00b204e9800998ecf8427e  etc/issue\n",
    }
    assert owners(lists) == ([Package("dpkg", "base-files", "12")], {b"etc/issue": 0})


def test_a_list_of_another_layer_counts_where_the_own_has_none() -> None:
    """The first layer's, by digest; and a layer's own before any other's."""
    mine = layer((b"bin/bash", BASH), (b"var/lib/dpkg/info/own.list", b"/bin/bash\n"), (b"own", b"x"))
    first, second = ({b"var/lib/dpkg/info/%b.list" % name: b"/bin/bash\n"} for name in (b"first", b"second"))
    plain = layer((b"bin/bash", BASH), (b"plain", b"y"))
    found = by_package(layer((b"bin/bash", BASH), *first.items()), layer(*second.items()), plain, mine)
    assert set(found) == {"first (dpkg)", "own (dpkg)"}


def test_versions_and_files() -> None:
    found, of_path = owners(DPKG_LISTS)
    assert found == [Package("dpkg", "bash", "5.2-1"), Package("dpkg", "libc6", "2.36-9")]
    assert of_path[b"lib/libc.so.6"] == 1
    assert of_path[b"bin/bash"] == 0
    found, of_path = owners({b"lib/apk/db/installed": APK})
    assert found == [Package("apk", "musl", "1.2.5-r0"), Package("apk", "busybox", "1.36")]
    assert of_path == {b"lib/ld-musl-x86_64.so.1": 0, b"lib/libc.musl-x86_64.so.1": 0, b"bin/busybox": 1}


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="dpkg is missing")
def test_the_lists_of_this_machine_are_read_as_dpkg_reads_them() -> None:
    with open("/var/lib/dpkg/status", "rb") as file:
        texts = {b"var/lib/dpkg/status": file.read()}
    with open("/var/lib/dpkg/info/dpkg.list", "rb") as file:
        texts[b"var/lib/dpkg/info/dpkg.list"] = file.read()
    [found], of_path = owners(texts)
    query = ["dpkg-query", "-W", "-f", "${Version}", "dpkg"]
    assert found.version == subprocess.run(query, check=True, capture_output=True, text=True).stdout
    listed = subprocess.run(["dpkg-query", "-L", "dpkg"], check=True, capture_output=True).stdout.splitlines()
    wanted = {listed_path(path) for path in listed if path.startswith(b"/")} - {b""}
    assert set(of_path) >= {path for path in wanted if b"diverted" not in path}


def test_paths() -> None:
    for path in (b"./a/b/", b"/a/b", b"a/b", b"/./a/b"):
        assert plain_path(path) in (b"a/b", b"./a/b")
    assert plain_path(b"./") == plain_path(b".") == plain_path(b"/") == b""
    assert listed_path(b"/usr/lib/x86_64-linux-gnu/a") == b"lib/x86_64-linux-gnu/a"
    assert listed_path(b"usr/libexec/a") == b"usr/libexec/a"
    assert listed_path(b"usr/lib64/a") == b"lib64/a"
    for path in (b"var/lib/dpkg/status", b"var/lib/dpkg/info/a.list", b"lib/apk/db/installed"):
        assert is_list(path)
    for path in (b"var/lib/dpkg/status-old", b"var/lib/dpkg/info/a/b.list", b"x/lib/apk/db/installed", b"etc/passwd"):
        assert not is_list(path)


# --- hostile lists ---------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.sampled_from([*DPKG_LISTS, b"lib/apk/db/installed"]), st.binary(max_size=400)))
def test_whatever_a_list_says_is_packed_and_unpacked(texts: dict[bytes, bytes]) -> None:
    made = Trace()
    made.packages, of_path = owners(texts)
    made.listed = list(of_path)
    made.listed_owners.extend(of_path.values())
    again = unpack(pack(made), 0)
    assert again.listed == made.listed
    assert len(again.packages) == len(made.packages)
    assert all(one.name.isprintable() and " " not in one.name for one in again.packages)


def test_lists_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MOST_LIST_BYTES", 1000)
    monkeypatch.setattr(packages, "MOST_PACKAGES", 3)
    lists = [(b"var/lib/dpkg/info/p%d.list" % at, b"/f%d\n" % at * 50) for at in range(100)]
    tracer = tracing.Tracer(ChunkParams())
    tracer.feed(memoryview(layer(*lists)))
    tracer.finish()
    found = tracer.trace()
    assert len(found.packages) == 3 == len(found.listed)
    assert len(found.begins) == 100


def test_the_entries_of_a_layer_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in (("MOST_ENTRIES", 10), ("MOST_PATHS_BYTES", 20)):
        with monkeypatch.context() as patched:
            patched.setattr(trace, name, most)
            tracer = tracing.Tracer(ChunkParams())
            data = b"".join(header(b"%02d" % at) for at in range(30)) + END
            tracer.feed(memoryview(data))
            tracer.finish()
            found = tracer.trace()
            assert (len(found.begins), found.end) == (10, 5120)
            assert found.damaged
            assert unpack(pack(found), len(data)).begins == found.begins


def whole() -> tuple[bytes, int]:
    data = layer((b"bin/bash", BASH), *DPKG_LISTS.items())
    tracer = tracing.Tracer(ChunkParams())
    tracer.feed(memoryview(data))
    tracer.finish()
    return pack(tracer.trace()), len(data)


@given(st.data())
def test_a_trace_that_no_worker_makes_is_refused_or_within_its_layer(data: st.DataObject) -> None:
    packed, uncompressed_bytes = whole()
    at = data.draw(st.integers(0, len(packed) - 1))
    changed = bytearray(packed)
    changed[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, 2)) == 0
    try:
        found = unpack(bytes(changed[:at] if cut else changed), uncompressed_bytes)
    except ValueError:
        return
    assert not cut
    assert found.end <= uncompressed_bytes
    assert list(found.begins) == sorted(set(found.begins))
    assert all(owner <= len(found.packages) for owner in found.owners)


def one_entry(**changed: Any) -> Trace:
    """A trace of a layer of 2,048 bytes, unless something is changed."""
    made = Trace(1536, array("Q", [0]), bytearray(16), [b"a"], array("H", [1]))
    made.packages = [Package("dpkg", "a", "")]
    made.listed, made.listed_owners = [b"b"], array("H", [0])
    return replace(made, **changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"end": 2049}, {"end": 0}, {"begins": array("Q", [512])}, {"begins": array("Q", [0, 512])},
        {"begins": array("Q", [0, 0]), "hashes": bytearray(32), "paths": [b"a", b"b"],
         "owners": array("H", [0, 0])},
        {"hashes": bytearray(15)}, {"hashes": bytearray(32)}, {"paths": []},
        {"paths": [b"a" * 5000]}, {"owners": array("H", [2])}, {"owners": array("H")}, {"listed": []},
        {"listed_owners": array("H", [1])}, {"packages": []}, {"packages": [Package("rpm", "a", "")]},
        {"packages": [Package("dpkg", "a" * 101, "")]}, {"packages": [Package("dpkg", "", "a" * 101)]},
        {"damaged": "\x1b"}, {"damaged": "x" * 201},
        {"begins": array("Q"), "hashes": bytearray(), "paths": [], "owners": array("H")},
    ],
)  # fmt: skip
def test_a_trace_that_does_not_go_together_is_refused(changed: dict[str, Any]) -> None:
    assert unpack(pack(one_entry()), 2048) == one_entry()
    with pytest.raises(ValueError, match=r"\w"):
        unpack(pack(one_entry(**changed)), 2048)


def test_a_trace_of_noise_is_refused() -> None:
    for seed in range(200):
        with pytest.raises(ValueError, match=r"trace|UTF|decode"):
            unpack(random.Random(seed).randbytes(seed), 1 << 20)
