"""containerd's names are read without its lock, all the while it imports and removes images."""

from __future__ import annotations

import threading

from conftest import Tell
from counts import share_of
from daemon import Home
from test_real_trees import archived, containerd_names, import_image, listed
from test_writers import need
from test_writers_many import containerd, run

STEPS = share_of(200, 20)


def test_containerd_writes_while_its_names_are_read(home: Home, tell: Tell) -> None:
    """The names equal `ctr images ls` after each step, and no reading meanwhile finds damage."""
    need("containerd", "ctr")
    readings, problems, stop = 0, [], threading.Event()

    def read_on() -> None:
        nonlocal readings
        while not stop.is_set():
            names, problem = containerd_names(home)
            readings += 1
            if problem:
                problems.append(problem)
            assert all(name.startswith("docker.io/local/image") for name in names)

    with containerd(home) as ctr:
        with archived(home, 0):
            import_image(home, ctr, "docker.io/local/image:first")
        reader = threading.Thread(target=read_on)
        reader.start()
        try:
            for step in range(STEPS):
                name = f"docker.io/local/image{step % 17}:v{step % 5}"
                if step % 3 == 2:
                    run(home, *ctr, "images", "rm", *list(listed(home, ctr))[:2])
                else:
                    import_image(home, ctr, name)
                assert containerd_names(home) == (listed(home, ctr), "")
        finally:
            stop.set()
            reader.join()
    assert problems == []
    assert readings > STEPS
    tell(f"{STEPS} imports and removals, {readings:,} readings beside them, none malformed")
