from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import isal
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import blobs
from chunkd.errors import BlobUndecodable
from chunkd.model import Caps
from chunkd.worker import decode, magic
from counts import counted

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SMALL = Caps(uncompressed_bytes=1 << 20)


def always(buffer: bytearray) -> Callable[[], bytearray]:
    return lambda: buffer


def decoded(data: bytes, caps: Caps = Caps(), most: int = sys.maxsize) -> tuple[str, bytes]:
    """The codec and the uncompressed bytes, after a look that all of the file was hashed and counted."""
    with blobs.InMemory(data, most) as file:
        source = decode.Source(file, "sha256", lambda _: None)
        buffer = bytearray(decode.BUFFER_BYTES)
        try:
            out = b"".join(map(bytes, decode.buffers(source, always(buffer), caps, len(data))))
        finally:
            source.drain(buffer)
            assert source.hexdigest() == hashlib.sha256(data).hexdigest()
            assert source.read_bytes == len(data)
            assert not source.grew
        return source.codec, b"" if source.codec == "other" else out


def outcome(data: bytes) -> tuple[str, bytes]:
    """The reason of a failure, or nothing and the uncompressed bytes."""
    try:
        return "", decoded(data)[1]
    except BlobUndecodable as error:
        return error.reason, b""


def failure(data: bytes, caps: Caps = Caps()) -> str:
    with pytest.raises(BlobUndecodable) as caught:
        decoded(data, caps)
    return caught.value.reason


LAYER = blobs.layer()


@pytest.mark.parametrize(
    ("codec", "stored"),
    [
        ("tar", LAYER),
        ("gzip", blobs.gz(LAYER)),
        ("gzip", blobs.estargz(LAYER)),
        ("gzip", blobs.gz(b"") + blobs.gz(LAYER)),
        ("gzip", blobs.gz(LAYER) + bytes(700_000)),
        ("zstd", blobs.zst(LAYER)),
        ("zstd", blobs.zst(LAYER, checksum=False)),
        ("zstd", blobs.zstd_chunked(LAYER)),
        ("zstd", blobs.skippable(b"first", 15) + blobs.zst(LAYER)),
        ("zstd", blobs.zst(b"") + blobs.zst(LAYER)),
    ],
)
@pytest.mark.parametrize("most", [sys.maxsize, 4093])
def test_whole_streams_decode_to_their_last_byte(codec: str, stored: bytes, most: int) -> None:
    assert decoded(stored, most=most) == (codec, LAYER)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        bytes(1023),
        bytes(512),
        bytes(512) + b"x" * 512,
        bytes(1024) + b"x",
        bytes(magic.HEAD_BYTES) + b"x",
        bytes(3_000_000) + b"x",
        b"\x1f\x8b\x07" + bytes(2000),
        LAYER[:511],
        LAYER[:148] + LAYER[149:],
    ],
)
def test_other_bytes_are_hashed_and_not_decoded(data: bytes) -> None:
    assert decoded(data) == ("other", b"")


def test_plain_tars_are_known_by_their_checksum() -> None:
    header = bytearray(LAYER[:512])
    assert decoded(bytes(header)) == ("tar", bytes(header))
    header[345] = 200  # in the prefix of the name: now the signed sum and the unsigned differ
    for high in (200, 200 - 256):
        total = sum(header[:148]) + 8 * 32 + sum(header[156:]) - 200 + high
        for field in (b"%06o\0 " % total, b"%7o\0" % total, b"%08o" % total, b"%06o \0" % total):
            header[148:156] = field
            assert decoded(bytes(header))[0] == "tar", field
        for field in (b"%06o\0 " % (total + 1), b"%6o_1" % total, b"\0" * 8, b"%06ox\0" % total):
            header[148:156] = field
            assert decoded(bytes(header))[0] == "other", field
    assert decoded(bytes(1024)) == ("tar", bytes(1024))
    assert decoded(bytes(10240)) == ("tar", bytes(10240))
    assert decoded(bytes(1025)) == ("tar", bytes(1025))
    assert decoded(bytes(3_000_000), most=4093) == ("tar", bytes(3_000_000))


@pytest.mark.parametrize(
    "data",
    [blobs.gz(b""), blobs.gz(b"") * 3 + bytes(9), blobs.zst(b""), blobs.skippable(b"only"), blobs.skippable(b"") * 2],
)
def test_streams_of_no_bytes_decode_to_nothing(data: bytes) -> None:
    assert decoded(data)[1] == b""


SHORT = blobs.text(2000)


@pytest.mark.parametrize("stored", [blobs.gz(SHORT), blobs.zst(SHORT), blobs.zst(SHORT, checksum=False)])
def test_a_stream_cut_anywhere_is_truncated(stored: bytes) -> None:
    for size in range(4, len(stored)):
        assert failure(stored[:size]).startswith("truncated"), size


@pytest.mark.parametrize("stored", [blobs.estargz(SHORT, 500), blobs.zstd_chunked(SHORT, 500)])
def test_a_stream_of_many_cut_anywhere_is_truncated_or_ends_at_a_seam(stored: bytes) -> None:
    seams = 0
    for size in range(4, len(stored)):
        reason, out = outcome(stored[:size])
        assert (reason.startswith("truncated") and not out) or (not reason and SHORT.startswith(out)), size
        seams += not reason
    assert seams in (4, 5)


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (b"trailing garbage", "trailing bytes after the last member"),
        (bytes(600_000) + b"trailing garbage", "trailing bytes after the last member"),
        (b"x", "truncated, or a few trailing bytes after the last member"),
        (bytes(5) + b"x", "truncated, or a few trailing bytes after the last member"),
        (b"\x1f\x8b", "truncated, or a few trailing bytes after the last member"),
        (b"\x1f\x8b\x09" + bytes(20), "Unknown compression method"),
        (blobs.zst(SHORT), "trailing bytes after the last member"),
    ],
)
def test_nothing_but_padding_follows_a_gzip(tail: bytes, reason: str) -> None:
    assert failure(blobs.gz(SHORT) + tail) == reason


@pytest.mark.parametrize("tail", [b"\0", bytes(5000), b"x", b"trailing garbage", blobs.gz(SHORT)])
def test_whole_frames_with_something_else_behind_them_are_no_layer(tail: bytes) -> None:
    for frames in (blobs.zst(SHORT), blobs.zst(SHORT) + blobs.skippable(b"last"), blobs.skippable(b"only")):
        for most in (sys.maxsize, 1):
            assert decoded(frames + tail, most=most) == ("other", b"")


def test_a_tail_that_begins_as_a_frame_does_is_a_frame_cut_short_or_damaged() -> None:
    damaged = bytearray(blobs.zst(SHORT))
    damaged[len(damaged) // 2] ^= 0x55
    for first in (blobs.zst(SHORT), blobs.skippable(b"first"), blobs.zst(bytes(900_000))):
        for size in range(1, len(blobs.zst(SHORT))):
            assert failure(first + blobs.zst(SHORT)[:size]) == "truncated", size
        for size in range(1, 12):
            assert failure(first + blobs.skippable(b"last")[:size]) == "truncated", size
        assert failure(first + bytes(damaged) + b"trailing garbage")
        assert failure(first + b"\x28\xb5\x2f\xfd" + b"\xff" * 100)


@pytest.mark.parametrize("buffer_bytes", [1000, 8192, decode.BUFFER_BYTES, 2 * decode.BUFFER_BYTES])
def test_what_precedes_other_bytes_counts_for_the_caps(buffer_bytes: int) -> None:
    """Else it were a matter of the buffers' size whether a blob is failed or no layer."""
    data = blobs.text(700_001)
    for frames in (blobs.zst(data), blobs.zstd_chunked(data, 3000)):
        stored = frames + b"no frame"
        for most_bytes in (len(data), len(data) - 1):
            with blobs.InMemory(stored) as file:
                source = decode.Source(file, "sha256", lambda _: None)
                out = decode.buffers(
                    source, always(bytearray(buffer_bytes)), Caps(uncompressed_bytes=most_bytes), len(stored)
                )
                if most_bytes < len(data):
                    with pytest.raises(BlobUndecodable, match="max_uncompressed_bytes"):
                        list(out)
                else:
                    assert b"".join(map(bytes, out)) == data
                    assert source.codec == "other"


def test_checksums_are_held() -> None:
    stored = bytearray(blobs.gz(SHORT))
    stored[-5] ^= 1
    assert failure(bytes(stored)) == "CRC does not match"
    stored[-5] ^= 1
    stored[-1] ^= 1
    assert failure(bytes(stored)) == "length does not match"
    stored = bytearray(blobs.zst(SHORT))
    stored[-1] ^= 1
    assert failure(bytes(stored)) == "checksum does not match"


@given(
    stored=st.sampled_from(
        [blobs.gz(SHORT), blobs.zst(SHORT), blobs.estargz(SHORT, 500), blobs.zstd_chunked(SHORT, 500)]
    ),
    edits=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=4),
)
@settings(max_examples=counted(200))
def test_damage_is_failed_and_never_decodes_to_other_bytes(stored: bytes, edits: list[tuple[int, int]]) -> None:
    damaged = bytearray(stored)
    for at, value in edits:
        damaged[at % len(damaged)] = value
    reason, out = outcome(bytes(damaged))
    assert len(reason) <= 200
    # A header's flags, time and names bear no checksum. A damaged magic number is no layer, or makes a frame skippable.
    assert reason or out in (SHORT, b"") or damaged.count(b"\x2a\x4d\x18") > stored.count(b"\x2a\x4d\x18")


def test_damage_to_a_deflate_stream_has_the_librarys_words() -> None:
    assert failure(blobs.gz(SHORT)[:10] + b"\xff" * 100) == "Error -1 Invalid deflate block found"


def test_uncompressed_bytes_are_capped_exactly() -> None:
    for stored in (LAYER, blobs.gz(LAYER), blobs.estargz(LAYER), blobs.zst(LAYER)):
        assert decoded(stored, Caps(uncompressed_bytes=len(LAYER)))[1] == LAYER
        capped = Caps(uncompressed_bytes=len(LAYER) - 1)
        assert failure(stored, capped).endswith(f"max_uncompressed_bytes = {len(LAYER) - 1}")


@pytest.mark.parametrize("compress", [blobs.gz, blobs.zst])
def test_the_ratio_is_capped_exactly_from_a_size_on(
    compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = compress(bytes(10_000_000))
    ratio = 10_000_000 // len(stored)
    assert len(decoded(stored, Caps(ratio=1))[1]) == 10_000_000
    monkeypatch.setattr(Caps, "RATIO_FROM_BYTES", 1_000_000)
    assert len(decoded(stored, Caps(ratio=ratio + 1))[1]) == 10_000_000
    assert f"max_ratio = {ratio} times its {len(stored)} bytes" in failure(stored, Caps(ratio=ratio))
    monkeypatch.setattr(Caps, "RATIO_FROM_BYTES", 10_000_000)
    assert len(decoded(stored, Caps(ratio=1))[1]) == 10_000_000


def test_a_bomb_is_left_at_the_cap() -> None:
    stored = blobs.zst(bytes(300 << 20))
    with blobs.InMemory(stored) as file:
        source = decode.Source(file, "sha256", lambda _: None)
        buffer = bytearray(100_000)
        out = decode.buffers(source, always(buffer), SMALL, len(stored))
        assert [len(next(out)) for _ in range(10)] == [100_000] * 10
        with pytest.raises(BlobUndecodable):
            next(out)


def test_windows_are_capped_at_the_power_of_two_below() -> None:
    data = blobs.text(300_000)
    for window_log in (20, 21):
        stored = blobs.zst(data, window_log=window_log)
        for window_bytes in (1 << window_log, (1 << window_log) + 1, (2 << window_log) - 1, 1 << 40):
            assert decoded(stored, Caps(zstd_window_bytes=window_bytes))[1] == data
        for window_bytes in ((1 << window_log) - 1, 3 << (window_log - 2), 1 << 10):
            reason = failure(stored, Caps(zstd_window_bytes=window_bytes))
            assert reason.endswith(f"max_zstd_window_bytes = {window_bytes}")
    assert "max_zstd_window_bytes = 1" in failure(stored, Caps(zstd_window_bytes=1))


def test_a_window_over_the_default_cap_in_a_later_frame_fails() -> None:
    # 0x90: a window of 256 MiB; then the head of a raw block that is not the last.
    large = b"\x28\xb5\x2f\xfd\x00\x90" + (100_000 << 3).to_bytes(3, "little") + bytes(100_000)
    assert failure(blobs.zst(SHORT) + large).endswith(f"max_zstd_window_bytes = {128 << 20}")


def test_no_memory_for_a_decoder_is_not_the_blobs_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class Starved(io.RawIOBase):
        def readinto(self, _buffer: object) -> int:
            raise zstd.ZstdError("Unable to decompress Zstandard data: Allocation error : not enough memory")

    monkeypatch.setattr(decode, "_open", lambda *_: Starved())
    with pytest.raises(MemoryError):
        decoded(blobs.zst(SHORT))


def test_what_a_read_raises_is_no_failure_of_the_decoder() -> None:
    class Failing(blobs.InMemory):
        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            if self.at > 100_000:
                raise OSError(5, "Input/output error")
            return super().readinto(buffer)

    for stored in (LAYER, blobs.gz(LAYER), blobs.zst(LAYER)):
        with Failing(stored, 4096) as file:
            source = decode.Source(file, "sha256", lambda _: None)
            buffer = bytearray(decode.BUFFER_BYTES)
            with pytest.raises(OSError, match="Input/output"):
                list(decode.buffers(source, always(buffer), Caps(), len(stored)))


def test_growth_after_the_end_is_noticed() -> None:
    for stored in (blobs.gz(SHORT), blobs.zst(SHORT), b"{}", LAYER):
        with blobs.InMemory(stored) as file:
            source = decode.Source(file, "sha256", lambda _: None)
            buffer = bytearray(decode.BUFFER_BYTES)
            list(decode.buffers(source, always(buffer), Caps(), len(stored)))
            source.drain(buffer)
            assert not source.grew
            file.data += blobs.gz(SHORT)
            source.drain(buffer)
            assert source.grew
            assert source.hexdigest() == hashlib.sha256(stored + blobs.gz(SHORT)).hexdigest()


def test_sha512_and_progress(tmp_path: Path) -> None:
    stored = blobs.gz(LAYER)
    (tmp_path / "blob").write_bytes(stored)
    seen: list[int] = []
    with open(tmp_path / "blob", "rb", buffering=0) as file:
        source = decode.Source(file, "sha512", seen.append)
        source.drain(bytearray(4096))
    assert source.hexdigest() == hashlib.sha512(stored).hexdigest()
    assert seen[-1] == len(stored)
    assert seen == sorted(seen)


def test_the_rule_names_both_decoders() -> None:
    assert f"isal {isal.__version__}" in decode.decoder_rule()
    assert f"libzstd {zstd.zstd_version}" in decode.decoder_rule()


def test_the_rule_tells_the_kinds_apart_from_the_decoders() -> None:
    decoders, _, kinds = decode.decoder_rule().partition("; ")
    assert "libzstd" in decoders
    assert kinds
