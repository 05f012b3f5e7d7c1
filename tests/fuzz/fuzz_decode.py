"""The decoders on whatever bytes, against Python's own gzip, zlib and zstd: the same bytes, or a reason why not.

The decoders are C and not instrumented: what finds new ways there is the mutator, which mends gzip's checksums.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import random
import re
import sys
import zlib

import fuzzing

with fuzzing.instrumented():
    from chunkd.errors import BlobUndecodable
    from chunkd.model import Caps
    from chunkd.worker import decode, magic, pipeline

from isal import isal_zlib

import blobs

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# More than one buffer.
CAPS = Caps(uncompressed_bytes=400_000, zstd_window_bytes=1 << 20)
OVER = f"max_uncompressed_bytes = {CAPS.uncompressed_bytes}"
MEMBER = bytes.fromhex("1f8b0800000000000003")


def outcome(data: bytes, buffer_bytes: int, most: int, caps: Caps = CAPS) -> tuple[str, str, bytes]:
    """The codec, the reason of a failure and the bytes of a success."""
    with blobs.InMemory(data, most) as file:
        source = decode.Source(file, "sha256", lambda _: None)
        buffer = bytearray(buffer_bytes)
        try:
            out = b"".join(map(bytes, decode.buffers(source, lambda: buffer, caps, len(data))))
        except BlobUndecodable as error:
            return error.codec, error.reason, b""
        if source.codec == "other":
            return source.codec, "", b""
        assert source.read_bytes == len(data), "a success that left bytes unread"
        return source.codec, "", out


def outcome_however_read(data: bytes, most: int) -> tuple[str, str, bytes]:
    """The outcome, which is the same in large buffers, of reads of `most` bytes.

    Only where the data is over the cap and not whole either, each way may have met the other fault first.
    """
    found = outcome(data, decode.BUFFER_BYTES, sys.maxsize)
    other = outcome(data, pipeline.RELAY_BUFFER_BYTES, most)
    over = found[1].endswith(OVER) or other[1].endswith(OVER)
    if not (over and found[1] and other[1]):
        assert found == other, "it depends on how it is read"
    return found


class Unjudged(Exception):
    """Python's own decoder is the stricter one."""


def python_gzip(data: bytes) -> bytes | None:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            return file.read(CAPS.uncompressed_bytes + 1)
    except (EOFError, OSError, zlib.error) as error:
        # A Huffman code with gaps: ISA-L takes it where nothing falls into a gap, and holds the checksum.
        if re.search("invalid (code lengths|literal/lengths|distances) set", str(error)):
            raise Unjudged from error
        return None


class Otherwise(Exception):
    """Whole frames, and then bytes that are none."""


def begins_a_frame(data: bytes) -> bool:
    """Whether the data is the begin of a frame, of either kind, or of one's magic number."""
    return b"\x28\xb5\x2f\xfd".startswith(data[:4]) or (data[0] >> 4 == 5 and b"\x2a\x4d\x18".startswith(data[1:4]))


def python_zstd(data: bytes) -> bytes | None:
    """Frame by frame, each with a decompressor of its own."""
    out = b""
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 20}
    while data and len(out) <= CAPS.uncompressed_bytes:
        if not begins_a_frame(data):
            raise Otherwise
        frame = zstd.ZstdDecompressor(options=options)
        try:
            out += frame.decompress(data, CAPS.uncompressed_bytes + 1 - len(out))
        except zstd.ZstdError:
            return None
        if not frame.eof and len(out) <= CAPS.uncompressed_bytes:
            return None
        data = frame.unused_data
    return out


def check(data: bytes) -> None:
    codec, reason, out = outcome_however_read(data, 4093)
    assert len(reason) <= 200
    assert reason.isprintable(), "a reason that a worker may not say"
    words = magic.describe(data[: magic.HEAD_BYTES])
    assert words.isascii()
    assert words.isprintable()
    if codec == "tar" and not any(data[:512]):
        assert not any(data), "a tar of more than NUL without a header"
    if codec == "other":
        assert len(data) < 1024 or any(data), "a tar of no file"
        if len(data) >= 4 and begins_a_frame(data):
            with contextlib.suppress(Otherwise):
                python_zstd(data)
                raise AssertionError("frames that are whole, or damaged ones")
        return
    if "max_zstd_window_bytes" in reason:
        return  # a frame that is decoded at once needs none; whether it is depends on how much is read at a time
    try:
        expected = data if codec == "tar" else python_gzip(data) if codec == "gzip" else python_zstd(data)
    except Unjudged:
        return
    except Otherwise:
        raise AssertionError("what follows the last frame is none") from None
    if expected is not None and len(expected) > CAPS.uncompressed_bytes:
        # The cap is tested before what comes after it is seen.
        assert reason, "over the cap"
    elif reason == "CRC of a header does not match":
        pass  # Python's own looks at none
    elif expected is None:
        assert reason, f"Python's own {codec} refuses it"
    else:
        assert not reason, f"Python's own {codec} takes it: {reason}"
        assert out == expected


def mended(data: bytes, zlib_of: object) -> bytes:
    """A gzip whose deflate stream is whole, as one library sees it, with the checksum and length of what it holds."""
    inflate = zlib_of.decompressobj(-15)  # type: ignore[attr-defined]
    try:
        out = inflate.decompress(data[len(MEMBER) :], CAPS.uncompressed_bytes)
    except Exception:  # the libraries' errors have no class in common
        return data
    if not inflate.eof:
        return data
    used = len(data) - len(inflate.unused_data)
    trailer = zlib.crc32(out).to_bytes(4, "little") + (len(out) % (1 << 32)).to_bytes(4, "little")
    return MEMBER + data[len(MEMBER) : used] + trailer + data[used + 8 :]


def mutate(data: bytes, max_bytes: int, seed: int) -> bytes:
    import atheris

    changed: bytes = atheris.Mutate(data, max_bytes)
    kind = seed % 4
    if kind < 2 and changed[:2] == MEMBER[:2]:
        changed = mended(changed, (zlib, isal_zlib)[kind])
    return changed[:max_bytes]


def seeds() -> list[bytes]:
    """Small streams of each kind: each way to store, headers with every field, many members and frames."""
    short, tar = blobs.text(600), blobs.tar({"a": blobs.text(100)})
    random_bytes = random.Random(1).randbytes(300)
    header = bytes.fromhex("1f8b081f0000000002ff") + b"\4\0ab\0\0" + b"name\0" + b"comment\0"
    header += (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little")
    found = [b"", b"{}", tar, tar[:700], bytes(1024)]
    for size in (CAPS.uncompressed_bytes, CAPS.uncompressed_bytes + 1):
        found += [blobs.gz(bytes(size)), blobs.zst(bytes(size))]
    for data in (b"", b"a", short, random_bytes, bytes(100_000), short * 20):
        found += [blobs.gz(data), blobs.zst(data), blobs.zst(data, checksum=False), zstd.compress(data, 19)]
        for level, strategy in (
            (0, zlib.Z_DEFAULT_STRATEGY),
            (9, zlib.Z_FIXED),
            (9, zlib.Z_RLE),
            (9, zlib.Z_HUFFMAN_ONLY),
        ):
            deflate = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
            body = deflate.compress(data) + deflate.flush()
            found.append(mended(MEMBER + body, zlib))
    found += [header + blobs.gz(short)[10:], blobs.gz(tar) + bytes(7), blobs.gz(short) + bytes(5) + blobs.gz(short)]
    found += [blobs.estargz(short, 100), blobs.zstd_chunked(short, 100), blobs.zst(short, window_log=21)]
    found += [bytes(1024) + b"\xe2\xe1\xf5\xe0", bytes(3000), bytes(1080) + b"\x53\xef" + bytes(900)]
    for frames in (blobs.zst(short), blobs.skippable(b"a"), blobs.zstd_chunked(short, 100)):
        found += [frames + random_bytes, frames + b"\x04\x22\x4d\x18", frames + blobs.zst(short)[:3]]
    return found


if __name__ == "__main__":
    fuzzing.run(sys.argv, check, seeds(), mutate)
