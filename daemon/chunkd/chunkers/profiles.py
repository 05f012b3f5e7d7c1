"""The one list of rules by which a stream or a file can be cut. A new rule is one row, and the vectors that prove it.

A rule is named after a product only if tests/vectors show that it cuts bit for bit as the product does. Else its name
says its parameters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from chunkd.chunkers import gear, rules, tables
from chunkd.chunkers.chunker import Chunker, FixedChunker, Measure, RuleChunker, WholeChunker
from chunkd.errors import RuleUnknown
from chunkd.model import ChunkParams

KIB = 1024
# The steps of a curve over the chunk size, around the index's own.
GEAR_SIZES = ("1/8/32", "2/16/64", "4/32/128", "8/64/256", "16/128/512", "32/256/1024")
FIXED_KIB = (4, 16, 64, 128, 256, 1024, 4096)
RESTIC_POLYNOMIAL = 0x3DA3358B4DC173  # of degree 53, from the tests of restic's chunker


@dataclass(frozen=True, slots=True)
class Profile:
    """A rule. `per_file` says that it is fed the contents of regular files alone, each ended by `end_file`, and not
    the tar's headers and padding. `parameters` are the rule in words.

    Not for another process: send it the name, for `named`.
    """

    name: str
    per_file: bool
    parameters: str
    make: Callable[[Measure | None], Chunker] = field(repr=False, compare=False)

    def chunker(self, measure: Measure | None = None) -> Chunker:
        """A new chunker, for one recipe."""
        return self.make(measure)

    def file_chunker(self, measure: Measure | None = None) -> RuleChunker:
        """The same for a `per_file` rule: one recipe of many files. Raises TypeError for another rule."""
        chunker = self.make(measure)
        if not self.per_file or not isinstance(chunker, RuleChunker):
            raise TypeError(f"the rule {self.name} knows no files")
        return chunker


def gear_profile(sizes: str) -> Profile | None:
    """`chunkd`'s own rule with the sizes MIN/MEAN/MAX, each in KiB; None if `sizes` are not of that form, or do not go
    together.

    MEAN is a power of two, and is what a cut by the hash takes on average beyond MIN: 2^mask_bits bytes. So 2/16/64 is
    `ChunkParams()`, the index's own, and its chunks are of about MIN + MEAN less what MAX cuts off.
    """
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})/(\d{1,5})", sizes, re.ASCII)
    if match is None:
        return None
    min_bytes, mean_bytes, max_bytes = (int(number) * KIB for number in match.groups())
    mask_bits = mean_bytes.bit_length() - 1
    if mean_bytes != 1 << max(mask_bits, 0):
        return None
    try:
        params = ChunkParams(min_bytes, mask_bits, max_bytes)
    except ValueError:
        return None
    words = f"gear, {min_bytes} to {max_bytes} bytes, low {mask_bits} bits 0 from the first on"
    name = "/".join(str(int(number)) for number in match.groups())
    return Profile(name, False, words, lambda measure: gear.Chunker(params, measure=measure))


def _fixed(kib: int, *, per_file: bool) -> Profile:
    size = f"{kib}KiB" if kib < KIB else f"{kib // KIB}MiB"
    return Profile(
        f"fixed-{size}" + "-per-file" * per_file,
        per_file,
        f"{kib * KIB} bytes each, but for the last of a {'file' if per_file else 'layer'}",
        lambda measure: FixedChunker(kib * KIB, measure),
    )


def _products() -> tuple[Profile, ...]:
    mib = KIB * KIB
    masks = rules.FASTCDC_MASKS
    return (
        Profile(
            "casync",
            False,
            "buzhash of 48 bytes, 16 KiB to 256 KiB, remainder 49534 of 49535",
            lambda measure: rules.buzhash(tables.CASYNC, 48, (16 * KIB, 256 * KIB), 49535, measure),
        ),
        Profile(
            "borg-1",
            True,
            "buzhash of the next 4095 bytes, seed 0, 512 KiB to 8 MiB, low 21 bits 0",
            lambda measure: rules.buzhash_ahead(tables.BORG, 4095, (mib // 2, 8 * mib), 21, measure),
        ),
        Profile(
            "xet",
            True,
            "gear of the crate gearhash, 8 KiB to 128 KiB, high 16 bits 0",
            lambda measure: rules.gear64(tables.GEARHASH, 0xFFFF << 48, (8 * KIB, 128 * KIB), measure),
        ),
        Profile(
            "zstd:chunked",
            True,
            "bup's sum of 64 bytes, low 16 bits 1, no least or most; zeros from 1 KiB on are holes",
            lambda measure: rules.rolling_sum(16, KIB, measure),
        ),
        Profile(
            "estargz", True, "4 MiB each, but for the last of a file", lambda measure: FixedChunker(4 * mib, measure)
        ),
        Profile(
            "fastcdc-16/64/256",
            True,
            "FastCDC of 2020, normalization 1: the sizes of puzzlefs, which cuts all files as one",
            lambda measure: rules.fastcdc((masks[17], masks[15]), (16 * KIB, 64 * KIB, 256 * KIB), measure),
        ),
        Profile(
            "fastcdc-512/2048/8192",
            True,
            "FastCDC of 2020, normalization 1: the sizes of borg 2",
            lambda measure: rules.fastcdc((masks[22], masks[20]), (mib // 2, 2 * mib, 8 * mib), measure),
        ),
        Profile(
            "like-restic",
            True,
            "Rabin of 64 bytes, 512 KiB to 8 MiB, low 20 bits 0: each repository has a polynomial of its own",
            lambda measure: rules.rabin(RESTIC_POLYNOMIAL, 20, (mib // 2, 8 * mib), measure),
        ),
    )


ALL: tuple[Profile, ...] = (
    *filter(None, map(gear_profile, GEAR_SIZES)),
    *_products(),
    *(_fixed(kib, per_file=False) for kib in FIXED_KIB),
    *(_fixed(kib, per_file=True) for kib in FIXED_KIB if kib != 4096),  # that is estargz
    Profile("files", True, "each file is one chunk", WholeChunker),
)
_BY_NAME = {profile.name: profile for profile in ALL}


def named(name: str) -> Profile:
    """The rule of that name, or the one of sizes such as 3/16/48 (`gear_profile`). Raises RuleUnknown."""
    profile = _BY_NAME.get(name) or gear_profile(name)
    if profile is None:
        raise RuleUnknown(name, tuple(_BY_NAME))
    return profile


def parse(names: str) -> tuple[Profile, ...]:
    """The rules of names with commas between them, each once, in that order. Raises RuleUnknown."""
    return tuple({profile.name: profile for profile in (named(name.strip()) for name in names.split(","))}.values())
