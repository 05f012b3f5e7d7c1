"""How fast do the kernels cut a real tar, called from Python? Against the plain loop that defines them, built alike.

python bench/kernel.py
"""

from __future__ import annotations

import importlib
import io
import sys
import sysconfig
import tarfile
from collections.abc import Callable
from pathlib import Path

from chunkd.chunkers._cgear import ffi
from chunkd.chunkers.gear import KERNELS, gear_table, kernels
from chunkd.model import ChunkParams
from measure import of_runs, save, table, take_turns

WANTED_BYTES = 100 << 20
ROUNDS = 7


def real_tar() -> bytes:
    """Up to 100 MiB of Python's own library and packages as one tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for root in (sysconfig.get_path("stdlib"), sysconfig.get_path("platlib")):
            for path in sorted(Path(root).rglob("*")):
                if path.is_file() and out.tell() < WANTED_BYTES:
                    tar.add(path, recursive=False)
    return out.getvalue()


def main() -> None:
    params = ChunkParams()
    data = real_tar()
    gear = ffi.new("uint64_t[]", gear_table(params.gear_seed))
    capacity = len(data) // params.min_bytes + 2
    cuts = ffi.new("size_t[]", capacity)
    pointer = ffi.from_buffer("uint8_t[]", data)
    found: dict[str, list[int]] = {}

    def cut_with(name: str) -> Callable[[], None]:
        kernel = KERNELS[name]

        def run() -> None:
            count = kernel(
                gear, params.min_bytes, params.mask_bits, params.max_bytes,
                ffi.new("uint64_t *"), ffi.new("size_t *"), pointer, len(data), cuts, capacity,
            )  # fmt: skip
            found[name] = ffi.unpack(cuts, count)

        return run

    contenders: dict[str, Callable[[], object]] = {name: cut_with(name) for name in reversed(kernels())}
    sizes = {"min_size": params.min_bytes, "avg_size": 1 << params.mask_bits, "max_size": params.max_bytes}
    for module, cut in (("pyfastcdc", _pyfastcdc), ("fastcdc", _fastcdc)):
        try:
            importlib.import_module(module)
        except ImportError:
            print(f"{module}: not installed, left out", file=sys.stderr)
        else:
            contenders[module] = cut(data, sizes)
    seconds = take_turns(contenders, ROUNDS)
    for name in kernels():
        if found[name] != found["plain"]:
            sys.exit(f"the kernel {name} does not cut as the plain loop does")
    title = f"cut a tar of {len(data):,} bytes into {len(found['plain']):,} chunks"
    best = kernels()[0]
    bars = [
        of_runs(
            f"cutting with {best}, against {other}",
            [theirs / own for theirs, own in zip(seconds[other], seconds[best], strict=True)],
            2 if other == "plain" else 1,
            at_least=True,
        )
        for other in ("plain", "pyfastcdc", "fastcdc")
        if other in seconds
    ]
    save("kernel", table(title, seconds, len(data), "plain"), bars)


def _pyfastcdc(data: bytes, sizes: dict[str, int]) -> Callable[[], object]:
    chunker = importlib.import_module("pyfastcdc").FastCDC(**sizes)
    return lambda: sum(1 for _ in chunker.cut_buf(data))


def _fastcdc(data: bytes, sizes: dict[str, int]) -> Callable[[], object]:
    cut = importlib.import_module("fastcdc").fastcdc
    return lambda: sum(1 for _ in cut(data, **sizes, fat=False))


if __name__ == "__main__":
    main()
