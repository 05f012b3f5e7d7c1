"""How fast is each rule of `chunkers/profiles`, cut and hashed by one thread? On a real tar, in pieces of 256 KiB.

python bench/rules.py
"""

from __future__ import annotations

from collections.abc import Callable

from chunkd.chunkers import profiles
from kernel import real_tar
from measure import save, table, take_turns

ROUNDS = 3
PIECE_BYTES = 256 << 10


def main() -> None:
    data = memoryview(real_tar())

    def cut_by(profile: profiles.Profile) -> Callable[[], None]:
        def run() -> None:
            chunker = profile.chunker()
            for at in range(0, len(data), PIECE_BYTES):
                chunker.feed(data[at : at + PIECE_BYTES])
            chunker.finish()

        return run

    contenders: dict[str, Callable[[], object]] = {profile.name: cut_by(profile) for profile in profiles.ALL}
    seconds = take_turns(contenders, ROUNDS)
    title = f"cut and hash a tar of {len(data):,} bytes"
    save("rules", table(title, seconds, len(data), "2/16/64"))


if __name__ == "__main__":
    main()
