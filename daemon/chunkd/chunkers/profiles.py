"""The one list of rules by which a stream or a file can be cut. A new rule is one row, and the vectors that prove it.

A rule is named after a product only if tests/vectors show that it cuts bit for bit as the product does. Else its name
says its parameters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from chunkd.chunkers import gear
from chunkd.chunkers.chunker import MOST_CHUNK_BYTES, FixedChunker, RuleChunker
from chunkd.errors import RuleUnknown
from chunkd.model import ChunkParams, Recipe

if TYPE_CHECKING:
    from typing_extensions import Buffer

KIB = 1024
# The steps of a curve over the chunk size, around the index's own.
GEAR_SIZES = ("1/8/32", "2/16/64", "4/32/128", "8/64/256", "16/128/512", "32/256/1024")
FIXED_KIB = (4, 16, 64, 128, 256, 1024, 4096)


class Chunker(Protocol):
    """What `gear.Chunker` and `RuleChunker` have in common."""

    def feed(self, buffer: Buffer, /) -> None: ...
    def drain(self) -> Recipe: ...
    def finish(self) -> Recipe: ...
    @property
    def chunks(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Profile:
    """A rule. `per_file` says that it is fed the contents of regular files alone, each ended by `end_file`, and not
    the tar's headers and padding. `parameters` are the rule in words.

    Not for another process: send it the name, for `named`.
    """

    name: str
    per_file: bool
    parameters: str
    make: Callable[[gear.Measure | None], Chunker] = field(repr=False, compare=False)

    def chunker(self, measure: gear.Measure | None = None) -> Chunker:
        """A new chunker, for one recipe."""
        return self.make(measure)

    def file_chunker(self, measure: gear.Measure | None = None) -> RuleChunker:
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


def _all() -> tuple[Profile, ...]:
    gears = [profile for sizes in GEAR_SIZES if (profile := gear_profile(sizes))]
    return (
        *gears,
        *(_fixed(kib, per_file=False) for kib in FIXED_KIB),
        *(_fixed(kib, per_file=True) for kib in FIXED_KIB),
        Profile("files", True, "each file is one chunk", lambda measure: FixedChunker(MOST_CHUNK_BYTES, measure)),
    )


ALL = _all()
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
