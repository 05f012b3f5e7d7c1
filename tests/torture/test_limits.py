"""The largest that the caps let pass fits into what a worker may have: no limit fails a blob that no cap does."""

from __future__ import annotations

import hashlib
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chunkd.chunkers.gear import gear_table
from chunkd.model import Caps, ChunkParams
from chunkd.worker import sandbox
from daemon import BRISK, opened, until

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Tell = Callable[[str], None]
PARAMS, CAPS = ChunkParams(), Caps()
MIB = 1 << 20


def ending_in_a_cut(chance: random.Random) -> bytes:
    """Bytes behind which a cut falls as soon as the chunk may end: a blob of such chunks has as many as it can."""
    gear = gear_table(PARAMS.gear_seed)
    while True:
        tail = chance.randbytes(PARAMS.mask_bits)
        gear_hash = 0
        for byte in tail:
            gear_hash = (gear_hash << 1) + gear[byte]
        if gear_hash % (1 << PARAMS.mask_bits) == 0:
            return tail


def write_shortest_chunks(folder: Path, seed: int) -> Path:
    """A zstd blob with the largest window, of as many chunks as a small blob can have: 1 GiB, no two the same."""
    chance = random.Random(seed)
    tail = ending_in_a_cut(chance)
    middle = chance.randbytes(PARAMS.min_bytes - 8 - len(tail)) + tail
    options: dict[int, int] = {
        zstd.CompressionParameter.window_log: CAPS.zstd_window_bytes.bit_length() - 1,
        zstd.CompressionParameter.compression_level: 1,
    }
    compressor = zstd.ZstdCompressor(options=options)
    digest, path = hashlib.sha256(), folder / "partial"
    with path.open("wb") as file:
        chunks = CAPS.RATIO_FROM_BYTES // PARAMS.min_bytes
        for first in range(0, chunks, 512):
            data = b"".join(number.to_bytes(8, "little") + middle for number in range(first, first + 512))
            packed = compressor.compress(data) + (compressor.flush() if first + 512 == chunks else b"")
            digest.update(packed)
            file.write(packed)
    return path.rename(folder / digest.hexdigest())


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_as_many_chunks_as_a_blob_can_have_fit_into_a_workers_memory(tmp_path: Path, seed: int, tell: Tell) -> None:
    with opened(tmp_path, anew=True) as home:
        cache = home.cache()
        path = write_shortest_chunks(cache, seed)
        daemon = home.start(cache, environ=BRISK | {"CHUNKD_WORKERS": "1"})
        [worker] = until(daemon.workers, bool, "a worker is started")
        expected = CAPS.RATIO_FROM_BYTES // PARAMS.min_bytes
        daemon.until_figures(
            {"layers": 1, "chunks": expected, "unique_chunks": expected, "uncompressed_bytes": CAPS.RATIO_FROM_BYTES},
            patience_s=180,
        )
        limit_bytes = sandbox.memory_bytes(path.stat().st_size, PARAMS, CAPS)
        tell(
            f"{expected:,} chunks of {PARAMS.min_bytes} bytes from {path.stat().st_size:,} stored with a window of"
            f" {CAPS.zstd_window_bytes // MIB} MiB: the worker's peak was {peak_bytes(worker) // MIB} MiB where"
            f" {limit_bytes // MIB} are allowed, the daemon's {peak_bytes(daemon.pid) // MIB} MiB"
        )
        assert daemon.stop() == 0
        home.check()
