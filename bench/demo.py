"""`make run`: the daemon on CACHE, or on a demo cache into which images land while the live figure is on screen,
and `chunkd images` each time that one has got its name.

    python bench/demo.py RUN_DIR [CACHE]

Everything but CACHE, which is only read, lies in RUN_DIR. Ctrl-C, SIGTERM and a closed terminal end it all with exit
code 0; when the daemon ends by itself, its exit code is passed on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO

from demo_images import VERSIONS, land_images

# So that the figure can be followed by eye: 20 blobs land in one to two minutes.
LANDING_PAUSE_S = 1.0
READY_TIMEOUT_S = 60.0
# A daemon ends within seconds: 5 s for blobs in hand, then it commits.
STOP_TIMEOUT_S = 30.0
# Names are read 2 s after a manifest has landed.
NAMED_S = 20.0
# The name of a layout's folder is that of its repository.
REPOSITORY = "demo"
# A socket's path takes 103 bytes on macOS, 107 on Linux; the daemon first binds one with 12 more in the same folder.
MOST_PATH_BYTES = 90
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    run_dir, cache = Path(sys.argv[1]).absolute(), sys.argv[2] if len(sys.argv) > 2 else ""
    for number in ENDING:
        signal.signal(number, _end)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_own_terminal())
            _lock(run_dir, stack)
            return _serve(run_dir, cache, stack) if cache else _demonstrate(run_dir / "demo", stack)
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return 0


def _end(_number: int, _frame: FrameType | None) -> None:
    for ending in ENDING:  # once is enough: what follows is tidying up
        signal.signal(ending, signal.SIG_IGN)
    raise KeyboardInterrupt


def _serve(run_dir: Path, cache: str, stack: contextlib.ExitStack) -> int:
    daemon, _ = _start_daemon(run_dir, cache, None, stack)
    return _exit_code(daemon)


def _demonstrate(demo: Path, stack: contextlib.ExitStack) -> int:
    """The live figure, and each time that an image has got its name all images; after the last what would be freed."""
    shutil.rmtree(demo, ignore_errors=True)
    layout = demo / REPOSITORY
    layout.mkdir(parents=True)
    with (demo / "log").open("wb") as log:
        daemon, asking = _start_daemon(demo, str(layout), log, stack)
    print(f"log     {demo / 'log'}", flush=True)
    landing, named = land_images(layout, Path(sysconfig.get_path("stdlib"))), 0
    while daemon.poll() is None:
        with _running([*_chunkd("stats"), *asking, "--watch"]) as watch:
            while daemon.poll() is None and _named(layout) == named:
                if watch.poll() is not None:  # nobody looks any more: a closed pipe or terminal
                    return _exit_code(watch)
                next(landing, None)
                time.sleep(LANDING_PAUSE_S)
        named = _named(layout)
        if _wait_until_named(daemon, asking, named):
            _show(asking, "images")
            if named == len(VERSIONS):
                _show(asking, "freed", f"{REPOSITORY}:{VERSIONS[0]}")
    print((demo / "log").read_text(), file=sys.stderr)
    return _exit_code(daemon)


def _named(layout: Path) -> int:
    """How many images have a name in the layout."""
    index = layout / "index.json"
    return len(json.loads(index.read_text())["manifests"]) if index.exists() else 0


def _wait_until_named(daemon: subprocess.Popen[bytes], asking: list[str], named: int) -> bool:
    """Whether the daemon still runs. Waits until it has counted all blobs and read so many names, or for NAMED_S."""
    end = time.monotonic() + NAMED_S
    while daemon.poll() is None and time.monotonic() < end:
        replies = [_ask(command, "--json", *asking) for command in ("stats", "images")]
        if all(replies):
            stats, images = map(json.loads, replies)
            if stats["settled"] and sum(len(image["names"]) for image in images["images"]) == named:
                break
    return daemon.poll() is None


def _ask(command: str, *words: str) -> bytes:
    """What a command prints, while Ctrl-C reaches it through this program only."""
    return subprocess.run(
        [*_chunkd(command), *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, process_group=0, check=False
    ).stdout


def _show(asking: list[str], *words: str) -> None:
    print(f"\n$ chunkd {' '.join(words)}\n{_ask(*words, *asking).decode()}", flush=True)


def _start_daemon(
    folder: Path, cache: str, log: IO[bytes] | None, stack: contextlib.ExitStack
) -> tuple[subprocess.Popen[bytes], list[str]]:
    """A daemon that is ready, and the flags with which it is asked. Exits when it ends before that, with its code."""
    state, sockets = folder / "state", folder
    if len(os.fsencode(folder)) > MOST_PATH_BYTES:
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chunkd-")))
    asking = ["--state", str(state), "--socket", str(sockets / "chunkd.sock")]
    print(f"cache   {cache}\nindex   {state}\nsocket  {sockets / 'chunkd.sock'}")
    print(f"ask     {sys.executable} -m chunkd stats --socket {sockets / 'chunkd.sock'}")
    print(f"        curl --unix-socket {sockets / 'chunkd.sock'} http://localhost/v1/stats")
    print("Ctrl-C ends it.", flush=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        # sd_notify(3), as systemd would listen. The path is unlinked with the socket, as nobody reads it after READY.
        address = sockets / "notify"
        address.unlink(missing_ok=True)
        notices.bind(str(address))
        stack.callback(address.unlink, missing_ok=True)
        notices.settimeout(0.2)
        command = [*_chunkd("run"), *asking, cache]
        daemon = stack.enter_context(_running(command, stderr=log, env=os.environ | {"NOTIFY_SOCKET": str(address)}))
        _wait_until_ready(daemon, notices, log)
    address.unlink()
    return daemon, asking


def _wait_until_ready(daemon: subprocess.Popen[bytes], notices: socket.socket, log: IO[bytes] | None) -> None:
    end = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < end:
        try:
            if b"READY=1" in notices.recv(4096).split(b"\n"):
                return
        except TimeoutError:
            if daemon.poll() is not None:
                if log:
                    print(Path(log.name).read_text(), file=sys.stderr)
                sys.exit(_exit_code(daemon))
    sys.exit(f"the daemon was not ready within {READY_TIMEOUT_S:.0f} s")


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    """How it ended, once it has; a signal as the shell counts it."""
    code = process.wait()
    return code if code >= 0 else 128 - code


def _chunkd(command: str) -> list[str]:
    return [sys.executable, "-m", "chunkd", command]


@contextlib.contextmanager
def _running(
    command: list[str], stderr: IO[bytes] | None = None, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The process, and at the end none. In a group of its own, so that Ctrl-C reaches it through this program only."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stderr, env=env, process_group=0)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            print(f"killed, as it did not end: {' '.join(command)}", file=sys.stderr)


@contextlib.contextmanager
def _own_terminal() -> Iterator[None]:
    """Ctrl-C comes to this program alone: `make` would call it an error, and exit with one."""
    terminal, foreground = -1, -1
    with contextlib.suppress(OSError):  # there may be none
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        foreground = os.tcgetpgrp(terminal)
    # In the background nothing comes from the terminal; and who leads the group is started without `make`.
    if foreground != os.getpgrp() or foreground == os.getpid():
        yield
        return
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    # Stopped alone it would leave a terminal that nobody serves.
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    os.setpgid(0, 0)
    os.tcsetpgrp(terminal, os.getpid())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a closed terminal
            os.tcsetpgrp(terminal, foreground)


def _lock(run_dir: Path, stack: contextlib.ExitStack) -> None:
    """One at a time in a folder. The lock goes with the process."""
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = stack.enter_context((run_dir / "lock").open("w"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"{run_dir}: in use by another `make run`; stop that one first")


if __name__ == "__main__":
    sys.exit(main())
