"""What pulls of real layers move: the stated intervals hold the truth, and what is measured whole is the truth."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from daemon import npm_chunks
from test_moves import Store, chunks_of, pull

PAIRS = 100
SAMPLES = 16
Layer = tuple[str, int, list[int]]


@dataclass(frozen=True)
class Real:
    """The 90 npm layers, with the length and the zstd frame's length of each chunk, and the last 4 bits of its hash."""

    layers: list[Layer]
    lengths: dict[int, int]
    frames: dict[int, int]
    samples: dict[int, int]

    def store(self, sample: int | None) -> Store:
        """All chunks are measured, or a sixteenth of them."""
        return Store(
            self.lengths,
            {chunk: y for chunk, y in self.frames.items() if sample in (None, self.samples[chunk])},
        )


@pytest.fixture(scope="module")
def real() -> Real:
    layers: list[Layer] = []
    numbers: dict[bytes, int] = {}
    found = Real(layers, {}, {}, {})
    for path, chunks in npm_chunks():
        own = []
        for name, length, frame in chunks:
            chunk = numbers.setdefault(name, len(numbers))
            found.lengths[chunk], found.frames[chunk], found.samples[chunk] = length, frame, name[15] >> 4
            own.append(chunk)
        layers.append((f"x{len(layers) + 1}", path.stat().st_size, own))
    return found


def test_of_a_hundred_pulls_ninety_are_within_their_interval(real: Real) -> None:
    """Each from an image of some layers to one of others, with another sixteenth of all chunks measured each time."""
    chance = random.Random(7)
    whole = real.store(None)
    within = known = 0
    while known < PAIRS:
        client, image = (chance.sample(real.layers, chance.randint(3, 20)) for _ in range(2))
        held, names = chunks_of(client), {name for name, _, _ in client}
        found = pull(real.store(known % SAMPLES), held, names, image)
        if found.measured_by != "set" or found.recompressed.error_bytes is None:
            continue
        known += 1
        missing = chunks_of([layer for layer in image if layer[0] not in names]) - held
        truth = sum(real.frames[chunk] for chunk in missing)
        exact = pull(whole, held, names, image)
        assert exact.recompressed == (truth, 0)
        assert sum(layer.recompressed_bytes or 0 for layer in exact.layers) == truth
        assert exact.ranges[0].bytes == truth
        within += abs((found.recompressed.recompressed_bytes or 0) - truth) <= found.recompressed.error_bytes
    print(f"{within} of {PAIRS} intervals hold the truth")
    assert within >= 0.9 * PAIRS
