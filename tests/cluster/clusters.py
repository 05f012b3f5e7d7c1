"""A Dask cluster on this machine for a test: a scheduler and workers, each a process that may be killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from daemon import PATIENCE_S, until
from ports import free_port


class Cluster:
    """Closing it kills what is left of it."""

    def __init__(self, root: Path, environ: Mapping[str, str], workers: int = 2) -> None:
        self.port = free_port()
        self._root, self._environ = root, dict(environ)
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", self.port)
        self.workers = [self.start_worker() for _ in range(workers)]

    def start_worker(self) -> subprocess.Popen[bytes]:
        return self._start("worker", self.address, "--nthreads", 1, "--no-nanny", "--host", "127.0.0.1")

    @staticmethod
    def kill(process: subprocess.Popen[bytes]) -> None:
        """It has ended when this returns: a process that is about to die would pass for one that `mend` may leave."""
        process.kill()
        process.wait(PATIENCE_S)

    def mend(self) -> None:
        """Start again what has been killed. Without their scheduler workers end."""
        if self.scheduler.poll() is not None:
            for worker in self.workers:
                self.kill(worker)
            (self._root / "dask-scheduler.log").unlink()
            self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", self.port)
        for number, worker in enumerate(self.workers):
            if worker.poll() is not None:
                self.workers[number] = self.start_worker()
        self.until_ready()

    def _start(self, what: str, *args: object) -> subprocess.Popen[bytes]:
        with (self._root / f"dask-{what}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{what}", "--no-dashboard", *map(str, args)],
                env=self._environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._root,
            )  # fmt: skip

    def until_ready(self) -> None:
        log = self._root / "dask-scheduler.log"
        wanted = len(self.workers)
        until(lambda: log.read_text().count("Register worker"), lambda count: count >= wanted, "workers came")

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            self.kill(process)


@contextlib.contextmanager
def cluster(root: Path, environ: Mapping[str, str], workers: int = 2) -> Iterator[Cluster]:
    found = Cluster(root, environ, workers)
    try:
        found.until_ready()
        yield found
    finally:
        found.close()


def task_processes(root: Path) -> list[int]:
    """The process ids of all tasks that are carried out for a test with this home."""
    found = []
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            is_task = b"chunkd.cluster.task" in (path / "cmdline").read_bytes().split(b"\0")
            if is_task and b"HOME=%b" % os.fsencode(root) in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found
