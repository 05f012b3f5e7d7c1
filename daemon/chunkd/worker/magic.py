"""Names what a blob is that is not a layer, by its first bytes: text for `chunkd blobs`, never a figure.

Each kind is a pattern at an offset. One in 65,536 blobs of noise has a given magic number of two bytes, so such
patterns also check the bytes beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from chunkd.model import METADATA_ALONE, Blob
from chunkd.worker.manifest import Kind

# How much of a blob's beginning is kept: to the end of the deepest magic number (btrfs, at 65,600), in pages.
HEAD_BYTES = 68 << 10

UNKNOWN = "unknown or encrypted"

# The kinds that any image has besides its layers.
METADATA = (*(kind.value for kind in Kind), "JSON", "text")

# A blob this large that is not a layer is not metadata either, unless it is JSON or text.
_LARGE_BYTES = 64 << 10
_MOST_KINDS = 8


class _Kind(NamedTuple):
    words: str
    offset: int
    pattern: bytes


_KINDS = (
    # nydus, rafs/src/metadata/layout/v6.rs: EROFS with no checksum and the bit 0x40000000 in s_feature_compat
    _Kind("Nydus RAFS v6 bootstrap", 1024, rb"\xe2\xe1\xf5\xe0\x00{4}.{3}[\x40-\x7f\xc0-\xff]"),
    # nydus, rafs/src/metadata/layout/v5.rs: RAFSV5_SUPER_MAGIC, and version 0x500
    _Kind("Nydus RAFS v5 bootstrap", 0, rb"SFAR\x00\x05\x00\x00"),
    # Linux, fs/erofs/erofs_fs.h: EROFS_SUPER_OFFSET, EROFS_SUPER_MAGIC_V1
    _Kind("EROFS image", 1024, rb"\xe2\xe1\xf5\xe0"),
    # Linux, Documentation/filesystems/ext4/super.rst: s_log_block_size at 0x18 of the superblock, s_magic at 0x38
    _Kind("ext2/3/4 image", 1024 + 0x18, rb"[\x00-\x06]\x00{3}.{28}\x53\xef"),
    # Linux, include/uapi/linux/btrfs_tree.h: BTRFS_MAGIC, 64 bytes into the superblock at 64 KiB
    _Kind("btrfs image", 65_600, rb"_BHRfS_M"),
    # Linux, fs/xfs/libxfs/xfs_format.h: XFS_SB_MAGIC
    _Kind("XFS image", 0, rb"XFSB"),
    # Linux, fs/squashfs/squashfs_fs.h: SQUASHFS_MAGIC
    _Kind("squashfs image", 0, rb"hsqs"),
    # ECMA-119, 8.1: the identifier of the volume descriptor in sector 16
    _Kind("ISO 9660 image", 32_769, rb"CD001"),
    # sylabs/sif, pkg/sif/sif.go: hdrMagic behind a launcher of 32 bytes
    _Kind("SIF image", 32, rb"SIF_MAGIC\x00"),
    # UEFI specification, 5.3.2: the header of a GUID partition table, in blocks of 512 bytes
    _Kind("disk image", 512, rb"EFI PART"),
    # UEFI specification, 5.2.1: four entries, each of them bootable or not, and the signature of a master boot record
    _Kind("disk image", 446, rb"(?:[\x00\x80].{15}){4}\x55\xaa"),
    # QEMU, docs/interop/qcow2.txt
    _Kind("qcow2 image", 0, rb"QFI\xfb"),
    # LUKS2 on-disk format specification, 2.1: LUKS_MAGIC_1ST
    _Kind("LUKS volume", 0, rb"LUKS\xba\xbe"),
    # RFC 8878, 3.1.1. A stream of only whole frames is a layer and never gets here.
    _Kind("zstd and then other data, as in Nydus blobs", 0, rb"\x28\xb5\x2f\xfd"),
    # lz4, doc/lz4_Frame_format.md: the magic number, and that of the legacy frame
    _Kind("lz4", 0, rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18"),
    # xz-file-format.txt, 2.1.1.1
    _Kind("xz", 0, rb"\xfd7zXZ\x00"),
    # XZ Utils, doc/lzma-file-format.txt, 1.1: the usual properties, a dictionary of 64 KiB or more, a size or none
    _Kind("lzma", 0, rb"\x5d\x00\x00.[\x00-\x0f](?:\xff{8}|.{5}\x00{3})"),
    # bzip2, compress.c: BZ2_compressBlock writes the digits of pi, or of its root where there is not a block
    _Kind("bzip2", 0, rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
    # PKWARE, APPNOTE.TXT, 4.3.7 and 4.3.16: a file's header, or the end of an archive of no file
    _Kind("zip", 0, rb"PK(?:\x03\x04|\x05\x06)"),
    # Linux, Documentation/driver-api/early-userspace/buffer-format.rst
    _Kind("cpio", 0, rb"07070[12]"),
    # System V ABI, chapter 4: ELFMAG
    _Kind("ELF", 0, rb"\x7fELF"),
    # WebAssembly core specification, 5.5.16
    _Kind("WebAssembly", 0, rb"\x00asm"),
    # ggml, docs/gguf.md
    _Kind("GGUF model", 0, rb"GGUF"),
    # RFC 8259: an object or an array, as far as its first token, and no control characters behind it
    _Kind("JSON", 0, rb'\s*(?:\{\s*["}]|\[\s*[][{"\d\-tfn])[^\x00-\x08\x0b\x0c\x0e-\x1f]*\Z'),
    _Kind("text", 0, rb"[\t\n\r -~]+\Z"),
)
_PATTERNS = tuple((kind.words, kind.offset, re.compile(kind.pattern, re.DOTALL)) for kind in _KINDS)


def describe(head: bytes) -> str:
    """The kind of a blob that begins with `head`, in printable ASCII. `head` is all of it, or the first HEAD_BYTES."""
    if not head:
        return "empty"
    if not any(head):
        return "NUL bytes first"
    head = head[_skipped(head) :]
    for words, offset, pattern in _PATTERNS:
        if pattern.match(head, offset):
            return words
    return UNKNOWN


def _skipped(head: bytes) -> int:
    """Where the skippable frames end (RFC 8878, 3.1.2) with which both lz4 and zstd may begin."""
    at = 0
    while head[at + 1 : at + 4] == b"\x2a\x4d\x18" and head[at] >> 4 == 5:
        at += 8 + int.from_bytes(head[at + 4 : at + 8], "little")
    return at


def instead_of_layers(blobs: Iterable[Blob]) -> str:
    """What a cache of these blobs holds if none of them is a layer: the kinds of its large blobs, or METADATA_ALONE if
    it has no large ones. Empty for a cache with a layer, and for one without a blob.
    """
    kinds: set[str] = set()
    held = ""
    for blob in blobs:
        if blob.state == "layer":
            return ""
        held = METADATA_ALONE
        large = blob.reason not in ("", *METADATA) and blob.stored_bytes >= _LARGE_BYTES
        if large and len(kinds) < _MOST_KINDS:
            kinds.add(blob.reason)
    return ", ".join(sorted(kinds)) or held
