"""What a sweep is asked: by which rules, how much is recompressed, and of which layers."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass

from chunkd.chunkers import profiles
from chunkd.errors import UsageError
from chunkd.model import Caps, Digest, MeasureRule
from chunkd.worker import decode, recompress

# Changes when the result of a layer would be another one.
_RESULTS_VERSION = 2


@dataclass(frozen=True, slots=True)
class Question:
    """What decides the result of a layer. `baselines` says whether layers are also compressed as a whole."""

    rules: tuple[str, ...]
    measure: MeasureRule
    caps: Caps
    baselines: bool = True

    @property
    def profiles(self) -> tuple[profiles.Profile, ...]:
        return tuple(map(profiles.named, self.rules))

    @property
    def key(self) -> str:
        """Two questions with one key have the same result for each layer."""
        said = [_RESULTS_VERSION, asdict(self), decode.decoder_rule(), recompress.library()]
        return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Share:
    """`parts` of `of` layers, picked by their digests: the same ones in each sweep."""

    parts: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Share:
        """Of text such as `1/4`. Raises UsageError."""
        match = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError("--layers takes a part of the layers, such as 1/4")
        return cls(int(match[1]), int(match[2]))

    def has(self, digest: Digest) -> bool:
        return int(digest.hex[:16], 16) * self.of < self.parts << 64

    @property
    def is_whole(self) -> bool:
        return self.parts == self.of

    def __str__(self) -> str:
        return f"{self.parts}/{self.of}"
