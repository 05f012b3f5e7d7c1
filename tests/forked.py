"""`chunkd ARGS` as a process that is forked from one which has imported chunkd already.

The imports of a command or a daemon take a fifth of a second of the processor to a whole one, and the tests start
hundreds. A command that needs pyarrow or matplotlib is forked from a process that has these too.
What was forked has an environment, a folder, standard streams, signals and an exit code of its own. What it doesn't
show is a start of Python: what is imported and when, and what Python makes of streams that are closed.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

REQUEST_BYTES = 1 << 17
# So that a child can be waited for beside requests: pidfd_open(2) is Linux's.
HERE = sys.platform == "linux"
# What a process that is forked from has imported beside chunkd, by the words that ask for it.
PLAIN, FLEET, DASK, REPORT = "plain", "fleet", "dask", "report"
LATER = {
    PLAIN: (),
    FLEET: ("cryptography.hazmat.primitives.ciphers", "obstore"),
    DASK: ("distributed", "obstore"),
    REPORT: ("matplotlib.dates", "matplotlib.figure", "matplotlib.backends.backend_svg"),
}
WORDS = {"--engine": DASK, "export": FLEET, "merge": FLEET, "--store": FLEET, "report": REPORT}


class Process:
    """As much of `subprocess.Popen` as a test of a daemon needs."""

    def __init__(self, args: Sequence[str], told: socket.socket) -> None:
        self.args, self._told = args, told
        self.returncode: int | None = None
        self.pid = self._next(None)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative for a signal. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self.returncode = self._next(timeout)
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and that is not told yet
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _next(self, timeout: float | None) -> int:
        self._told.settimeout(timeout)
        try:
            told = self._told.recv(64)
        except (TimeoutError, BlockingIOError):
            raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
        if not told:
            raise ChildProcessError("the process that is forked from has ended: chunkd can't be imported?")
        return int(told)


class Forker:
    """A process that is forked from. It ends when this one has closed its socket."""

    def __init__(self, kind: str) -> None:
        self.requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), kind], pass_fds=[theirs.fileno()],
                # A thread of numpy's or pyarrow's would be missing in what is forked.
                stdin=subprocess.DEVNULL,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"},
            )  # fmt: skip

    def close(self) -> None:
        self.requests.close()
        self._process.wait()


FORKERS: dict[str, Forker] = {}


def forker(kind: str) -> Forker:
    """That of this process, started when it is first needed."""
    if kind not in FORKERS:
        FORKERS[kind] = Forker(kind)
    return FORKERS[kind]


def close() -> None:
    while FORKERS:
        FORKERS.popitem()[1].close()


def start(
    args: Sequence[str],
    environ: Mapping[str, str],
    streams: Sequence[IO[Any]],
    cwd: Path | None = None,
    script: Path | None = None,
) -> Process:
    """`chunkd ARGS`, or a script with these; `streams` are its standard input, output and error."""
    kind = next((kind for word, kind in WORDS.items() if word in args), PLAIN)
    request = json.dumps([[str(script or "chunkd"), *args], dict(environ), str(cwd or Path.cwd())]).encode()
    assert len(request) < REQUEST_BYTES
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        socket.send_fds(forker(kind).requests, [request], [theirs.fileno(), *(stream.fileno() for stream in streams)])
    return Process(args, ours)


def run(
    args: Sequence[str],
    environ: Mapping[str, str],
    timeout: float,
    cwd: Path | None = None,
    stdout: IO[Any] | None = None,
    script: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """`chunkd ARGS` to its end. Raises subprocess.TimeoutExpired, after it was killed."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        with open(os.devnull) as nothing:
            process = start(args, environ, (nothing, stdout or out, err), cwd, script)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        # The place in the file is shared, and is now its end.
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(list(args), process.wait(), out.read(), err.read())


# --- the process that is forked from ------------------------------------------------------------------------------


def import_all(kind: str) -> None:
    import chunkd

    for module in pkgutil.walk_packages(chunkd.__path__, "chunkd."):
        needs_pyarrow = module.name.startswith(("chunkd.cluster.", "chunkd.fleet."))
        if not module.name.endswith("__main__") and (kind in (FLEET, DASK) or not needs_pyarrow):
            importlib.import_module(module.name)
    import chunkd.__main__

    for name in LATER[kind]:
        importlib.import_module(name)
    gc.freeze()
    assert len(os.listdir("/proc/self/task")) == 1, "a fork has one thread"


def serve(requests: socket.socket) -> bool:
    """Fork for each request, until there are no more. True in what was forked, which is the process asked for."""
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        awaited: list[Any] = [requests, *running]
        ready, _, _ = select.select(awaited, [], [])
        for pidfd in running.keys() & ready:
            pid, ended = running.pop(pidfd)
            os.close(pidfd)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with ended, contextlib.suppress(BrokenPipeError):
                ended.send(b"%d" % code)
        if requests not in ready:
            continue
        request, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 4)
        if not request:
            return False
        told, *streams = descriptors
        if (pid := os.fork()) == 0:
            requests.close()
            for pidfd, (_, other) in running.items():
                os.close(pidfd)
                other.close()
            become(streams, *json.loads(request))
            os.close(told)
            return True
        for stream in streams:
            os.close(stream)
        ended = socket.socket(fileno=told)
        ended.send(b"%d" % pid)
        running[os.pidfd_open(pid)] = pid, ended


def become(streams: Sequence[int], argv: list[str], environ: dict[str, str], cwd: str) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    sys.argv = argv


def leave(codes: list[Any]) -> None:
    """End without taking the modules apart, which would copy each page of them."""
    if codes and isinstance(codes[0], int):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(codes[0])


if __name__ == "__main__":
    codes: list[Any] = []
    # Registered first, so that it is called last: threads have ended, and what others registered is done.
    atexit.register(leave, codes)
    import_all(sys.argv[2])
    if serve(socket.socket(fileno=int(sys.argv[1]))):
        from chunkd.__main__ import main

        try:
            if sys.argv[0] == "chunkd":
                main()
            else:
                runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as ended:
            codes.append(ended.code)
            raise
