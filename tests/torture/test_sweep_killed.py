"""kill -9 of a sweep at any moment, again and again: it ends with the figures of one that nobody disturbed, and reads
no layer twice that it was done with.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

from blobs import gz, layer, noise, tar, text, write_blob
from conftest import Tell
from daemon import Home
from sweeping import kept, swept
from test_sweep_command import figures_of, started

KILLS = 20


def test_killed_twenty_times_it_ends_as_if_nothing_had_been(home: Home, seed: int, tell: Tell) -> None:
    rng = random.Random(seed)
    cache = home.cache()
    for at in range(60):
        if at % 3:
            write_blob(cache, gz(layer(at, rng.choice((20_000, 200_000, 700_000)))))
        else:
            write_blob(cache, gz(tar({str(name): text(3000, name) + noise(900, at) for name in range(200)})))
    whole = swept(home, cache)
    known: dict[str, tuple[int, int]] = {}
    kills = while_reading = 0
    while kills < KILLS:
        process = started(home, cache, "--quiet", "--json", "--workers", str(rng.choice((1, 2))))
        already = len(known)
        deadline = time.monotonic() + 60
        wanted = already + rng.choice((0, 1, 1, 2, 3))
        while process.poll() is None and len(kept(home)) < wanted and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.3)
        if process.poll() is not None:
            break  # it was done before the kill
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL) if rng.random() < 0.5 else process.kill()
        process.communicate()
        kills += 1
        found = kept(home)
        # A finished result is never written again.
        assert {name: found[name] for name in known} == known
        while_reading += len(found) < 60
        known = found
    again = swept(home, cache)
    tell(f"{kills} kills, {while_reading} of them while layers were read; {len(known)} of 60 results were kept")
    assert again["layers"]["from_earlier_runs"] == len(known)
    assert figures_of(again) == figures_of(whole)
    assert kills == KILLS
