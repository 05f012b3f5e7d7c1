"""The benchmarks' input: layers made once of this machine's own operating-system files, and kept.

    python bench/layers.py FOLDER [UNIT_BYTES]     a unit is 1,000,000 bytes unless said; every size below is in units

FOLDER/gzip     an OCI layout of three versions of an image: 3 base layers are shared, in all others some files change
       /zstd    the first version's layers again, at zstd's level 3
       /huge    the largest gzip layer alone
       /sizes   five gzip layers from 0.1 to 1,000 units
       /memory  gzip layers of 4,000 and of 4 units, and zstd with a window of 8 MiB

The same files give the same layers; no file's time, owner or mode is in them. What is there already is left as it is.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import json
import multiprocessing
import os
import random
import shutil
import sys
import sysconfig
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from chunkd.worker.spawn import core_count
from demo_images import Descriptor, Layer, Sink, begin_layout, contents, files_below, land, land_image, land_layer, zstd

# Raised when other layers come of the same files: those of an older version are made anew.
VERSION = 1
MARKER = "made.json"
LAYOUTS = ("gzip", "zstd", "huge", "sizes", "memory")
# Folders, and how many units are taken of each. No file is in two layers of a version.
SOURCES = (
    (f"/usr/lib/{sysconfig.get_config_var('MULTIARCH') or ''}", 500),
    ("/usr/bin", 250),
    ("/usr/share", 250),
    (sys.base_prefix, 130),
    ("/usr/lib", 350),
)
MOST_FILE_UNITS = 64
IMAGES = ("v1", "v2", "v3")
BASE_UNITS = (350, 60, 30)
# What is built on the base: a huge layer, and middle-sized ones until the files are used up.
FIRST_UNITS, NEXT_UNITS = 320, (50, 30, 20, 12, 8, 5, 3)
SIZES_UNITS = (0.1, 5, 50, 300, 1000)
LONG_UNITS, SHORT_UNITS, WINDOW_UNITS, PIECES = 4000, 4, 1000, 64
WINDOW_LOG = 23

ROOT = Path("/")
Sources = Iterable[tuple[str, float]]


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    unit_bytes = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    made = make(folder, SOURCES, unit_bytes)
    for name, (layers, stored_bytes) in made.items():
        print(f"{folder / name}: {layers} layers, {stored_bytes:,} bytes stored")


def make(folder: Path, sources: Sources, unit_bytes: int) -> dict[str, list[int]]:
    """How many layers are in each layout below `folder`, and their bytes. Made where that was not done before."""
    marker = folder / MARKER
    made: dict[str, dict[str, list[int]]] = json.loads(marker.read_text()) if marker.exists() else {}
    asked = f"version {VERSION}, units of {unit_bytes} bytes"
    if asked not in made:
        marker.unlink(missing_ok=True)
        for name in LAYOUTS:
            shutil.rmtree(folder / name, ignore_errors=True)
            begin_layout(folder / name)
        _build(folder, names_below(sources, unit_bytes), unit_bytes)
        blobs = {name: layers_of(folder / name) for name in LAYOUTS}
        made = {asked: {name: [len(paths), sum(map(_size, paths))] for name, paths in blobs.items()}}
        marker.write_text(json.dumps(made))
    return made[asked]


def layers_of(layout: Path) -> list[Path]:
    """The layers of an OCI layout, largest first: all blobs but its manifests and configs, which are JSON."""
    blobs = sorted((layout / "blobs" / "sha256").iterdir(), key=lambda path: (-_size(path), path.name))
    return [path for path in blobs if _first_byte(path) != b"{"]


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1)


def _size(path: Path) -> int:
    return path.stat().st_size


# --- which files --------------------------------------------------------------------------------------------------


def names_below(sources: Sources, unit_bytes: int) -> list[str]:
    """Paths below `/`, each once, in the order of the sources."""
    found: dict[str, None] = {}
    for source, units in sources:
        names = files_below(Path(source), int(units * unit_bytes), MOST_FILE_UNITS * unit_bytes)
        found |= dict.fromkeys((Path(source) / name).relative_to(ROOT).as_posix() for name in names)
    return list(found)


def neighbours(names: list[str], units: Iterator[float], unit_bytes: int) -> list[list[str]]:
    """All of the files in groups of at least so many units, but for the last."""
    groups: list[list[str]] = []
    left_bytes = 0.0
    for name in names:
        if left_bytes <= 0:
            groups.append([])
            left_bytes = next(units) * unit_bytes
        groups[-1].append(name)
        left_bytes -= _size(ROOT / name)
    return groups


def fitting(names: list[str], units: float, unit_bytes: int) -> list[str]:
    """Files of so many units together as nearly as can be: none that is larger than a quarter of what is asked for."""
    left_bytes, group = units * unit_bytes, []
    for name in names:
        size = _size(ROOT / name)
        if size <= min(left_bytes, units * unit_bytes / 4):
            group.append(name)
            left_bytes -= size
    return group


# --- making them --------------------------------------------------------------------------------------------------


def _build(folder: Path, names: list[str], unit_bytes: int) -> None:
    sizes = itertools.chain(BASE_UNITS, (FIRST_UNITS,), itertools.cycle(NEXT_UNITS))
    groups = neighbours(names, sizes, unit_bytes)
    base, others = groups[: len(BASE_UNITS)], groups[len(BASE_UNITS) :]
    pieces = functools.partial(_pieces, names, unit_bytes)
    # In the order in which they are begun: what takes longest first.
    tasks: dict[object, Callable[[], Layer]] = {}
    for units in reversed(SIZES_UNITS):
        tasks["sizes", units] = functools.partial(_land_files, folder / "sizes", fitting(names, units, unit_bytes))
    for number, group in enumerate(base):
        tasks["gzip", 0, number] = functools.partial(_land_files, folder / "gzip", group)
    for number, group in enumerate(others, len(base)):
        for version in range(len(IMAGES)):
            tasks["gzip", version, number] = functools.partial(_land_files, folder / "gzip", group, version)
    for units in (LONG_UNITS, SHORT_UNITS):
        tasks["memory", units] = functools.partial(_land_gzip_of_pieces, folder / "memory", pieces, units)
    tasks["memory", "zstd"] = functools.partial(_land_wide_zstd, folder / "memory", pieces, WINDOW_UNITS)
    for number, group in enumerate(groups):
        tasks["zstd", 0, number] = functools.partial(_land_files, folder / "zstd", group, 0, "zstd")
    landed = _in_parallel(tasks)
    for codec, versions in (("gzip", len(IMAGES)), ("zstd", 1)):
        manifests: list[Descriptor] = []
        for version in range(versions):
            layers = [landed[codec, 0 if number < len(base) else version, number] for number in range(len(groups))]
            for _ in land_image(folder / codec, IMAGES[version], layers, manifests):
                pass
    largest = layers_of(folder / "gzip")[0]
    os.link(largest, folder / "huge" / "blobs" / "sha256" / largest.name)


def _in_parallel(tasks: dict[object, Callable[[], Layer]]) -> dict[object, Layer]:
    """What each task returns, as many at once as there are cores. Says now and then how far it is."""
    landed: dict[object, Layer] = {}
    told = start = time.monotonic()
    with concurrent.futures.ProcessPoolExecutor(core_count(), multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(task): key for key, task in tasks.items()}
        for future in concurrent.futures.as_completed(futures):
            landed[futures[future]] = future.result()
            if time.monotonic() > told + 5 or len(landed) == len(tasks):
                told = time.monotonic()
                print(f"made {len(landed)} of {len(tasks)} layers in {told - start:.0f} s", flush=True)
    return landed


def _land_files(layout: Path, names: list[str], version: int = 0, codec: str = "gzip") -> Layer:
    return land_layer(layout, contents(ROOT, names, version), codec)


def _pieces(names: list[str], unit_bytes: int) -> list[bytes]:
    """Real bytes, a unit each but perhaps the last."""
    found = bytearray()
    for name in names:
        if len(found) >= PIECES * unit_bytes:
            break
        found += (ROOT / name).read_bytes()
    most_bytes = min(len(found), PIECES * unit_bytes)
    return [bytes(found[begin : begin + unit_bytes]) for begin in range(0, most_bytes, unit_bytes)]


def _shuffled(pieces: int, units: int) -> Iterator[int]:
    """So many numbers of pieces: all of them again and again, in another order each time."""
    dice = random.Random(VERSION)
    rounds = iter(lambda: dice.sample(range(pieces), pieces), None)
    return itertools.islice(itertools.chain.from_iterable(rounds), units)


def _land_gzip_of_pieces(layout: Path, make_pieces: Callable[[], list[bytes]], units: int) -> Layer:
    """One gzip member of the pieces in many orders. Each is deflated once and ends at a byte, as pigz's blocks do."""
    pieces = make_pieces()

    def deflated(piece: bytes) -> bytes:
        deflating = zlib.compressobj(6, zlib.DEFLATED, -15)
        return deflating.compress(piece) + deflating.flush(zlib.Z_FULL_FLUSH)

    def write(file: Sink) -> None:
        once = [deflated(piece) for piece in pieces[:units]]
        crc = size = 0
        # RFC 1952: no name, no time, an unknown system.
        file.write(b"\x1f\x8b\x08" + bytes(6) + b"\xff")
        for number in _shuffled(len(once), units):
            crc = zlib.crc32(pieces[number], crc)
            size += len(pieces[number])
            file.write(once[number])
        # RFC 1951: an empty last block.
        file.write(b"\x03\x00" + crc.to_bytes(4, "little") + (size % 2**32).to_bytes(4, "little"))

    return land(layout, "layer.v1.tar+gzip", write), ""


def _land_wide_zstd(layout: Path, make_pieces: Callable[[], list[bytes]], units: int) -> Layer:
    """One zstd frame of the pieces in many orders, with a window of 8 MiB."""
    pieces = make_pieces()
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: 3, zstd.CompressionParameter.window_log: WINDOW_LOG,
    }  # fmt: skip

    def write(file: Sink) -> None:
        compressor = zstd.ZstdCompressor(options=options)
        for number in _shuffled(len(pieces), units):
            file.write(compressor.compress(pieces[number]))
        file.write(compressor.flush())

    return land(layout, "layer.v1.tar+zstd", write), ""


if __name__ == "__main__":
    main()
