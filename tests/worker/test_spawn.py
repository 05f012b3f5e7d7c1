"""How many workers there are: as many as this process may use cores, by its affinity and its control groups."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from chunkd.worker.spawn import core_count

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


HOSTS = "cpu,cpuacct/docker/abc"
V1 = "12:cpuset:/\n4:cpu,cpuacct:/docker/abc\n0::/system.slice\n"


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/\n", {"cpu.max": "250000 100000"}, 2),
        ("0::/\n", {"cpu.max": "6400000 100000"}, 8),
        ("0::/\n", {}, 8),
        ("", {}, 8),
        # The narrowest of the groups above one another holds.
        ("0::/pods/a\n", {"pods/a/cpu.max": "max 100000", "pods/cpu.max": "300000 100000"}, 3),
        ("0::/pods/a\n", {"pods/a/cpu.max": "200000 100000", "pods/cpu.max": "300000 100000"}, 2),
        # The path is the host's, and the mount is of the container's own group.
        ("0::/../../a\n", {"cpu.max": "400000 100000"}, 4),
        (V1, {f"{HOSTS}/cpu.cfs_quota_us": "-1", f"{HOSTS}/cpu.cfs_period_us": "100000"}, 8),
        (V1, {f"{HOSTS}/cpu.cfs_quota_us": "600000", f"{HOSTS}/cpu.cfs_period_us": "100000"}, 6),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "150000", "cpu,cpuacct/cpu.cfs_period_us": "50000"}, 3),
        (V1, {"cpuset/cpu.max": "100000 100000", "cpu.max": "100000 100000"}, 1),
    ],
)  # fmt: skip
def test_the_limit_of_a_control_group(tmp_path: Path, groups: str, files: dict[str, str], cores: int) -> None:
    (tmp_path / "cgroup").write_text(groups)
    for name, content in files.items():
        path = tmp_path / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    assert core_count(tmp_path / "cgroup", tmp_path / "mount") == cores


def test_without_proc_the_affinity_holds(tmp_path: Path) -> None:
    assert core_count(tmp_path / "nothing", tmp_path) == 8
