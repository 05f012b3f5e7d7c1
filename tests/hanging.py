"""A FUSE file system that can be told to answer no longer: `fuse(4)` spoken raw, so that nothing has to be installed.

    python tests/hanging.py MOUNTPOINT FOLDER FLAG

shows the folder's files, read-only. While the file FLAG is there, each request is taken and never answered, so that not
even SIGKILL ends whoever waits for it; requests that are named in it, such as `READ`, or all when it is empty. One that
is named with an error, such as `READ=5`, fails with that.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = 1
REQUEST, REPLY, ATTRIBUTES = struct.Struct("=IIQQIIII"), struct.Struct("=IiQ"), struct.Struct("=6Q10I")
# <linux/fuse.h>
OPCODES = {
    1: "LOOKUP", 2: "FORGET", 3: "GETATTR", 14: "OPEN", 15: "READ", 17: "STATFS", 18: "RELEASE", 25: "FLUSH",
    26: "INIT", 27: "OPENDIR", 28: "READDIR", 29: "RELEASEDIR", 36: "INTERRUPT", 42: "BATCH_FORGET",
}  # fmt: skip
WITHOUT_REPLY = ("FORGET", "INTERRUPT", "BATCH_FORGET")
LIBC = ctypes.CDLL(None, use_errno=True)
MNT_DETACH = 2


class Server:
    """Nothing is cached by the kernel: each look at a file is a request. A folder's entries bear no type."""

    def __init__(self, mountpoint: str, folder: Path, flag: Path) -> None:
        self.folder, self.flag = folder, flag
        self.paths: list[str] = [""]  # by node, which is the index + 1
        self.device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
        if LIBC.mount(b"hanging", os.fsencode(mountpoint), b"fuse.hanging", 6, options.encode()) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), mountpoint)

    def serve(self) -> None:
        held: list[bytes] = []
        while True:
            if select.select([self.device], [], [], 0.05)[0]:
                try:
                    held.append(os.read(self.device, 1 << 20))
                except OSError as error:
                    if error.errno == errno.ENODEV:  # unmounted
                        return
                    if error.errno not in (errno.ENOENT, errno.EINTR):
                        raise
            held = [request for request in held if not self._replied(request)]

    def _replied(self, request: bytes) -> bool:
        """Whether nothing more is to be done for the request."""
        _, code, number, node, *_ = REQUEST.unpack_from(request)
        name = OPCODES.get(code, "")
        if name in WITHOUT_REPLY:
            return True
        told = self._told()
        if name != "INIT" and told is not None and (not told or told.get(name) == 0):
            return False
        try:
            if told and name in told:
                raise OSError(told[name], name)
            answer, error_code = self._answer(name, node, request[REQUEST.size :]), 0
        except OSError as error:
            answer, error_code = b"", -(error.errno or errno.EIO)
        with contextlib.suppress(FileNotFoundError):  # who asked has gone
            os.write(self.device, REPLY.pack(REPLY.size + len(answer), error_code, number) + answer)
        return True

    def _told(self) -> dict[str, int] | None:
        """The error of each request that is named in the flag, 0 for none; None when there is no flag."""
        try:
            words = self.flag.read_text().split()
        except FileNotFoundError:
            return None
        return {name: int(number or 0) for name, _, number in (word.partition("=") for word in words)}

    def _answer(self, name: str, node: int, body: bytes) -> bytes:
        if name == "INIT":
            major, minor, readahead, _ = struct.unpack_from("=IIII", body)
            return struct.pack("=IIIIHHIIHHI28x", major, min(minor, 31), readahead, 0, 16, 12, 1 << 17, 1, 0, 0, 0)
        path = self.paths[node - ROOT]
        if name == "LOOKUP":
            path = os.path.join(path, os.fsdecode(body.rstrip(b"\0")))
            attributes = self._attributes(path)
            return struct.pack("=4Q2I", self._node(path), 0, 0, 0, 0, 0) + attributes
        if name == "GETATTR":
            return struct.pack("=QII", 0, 0, 0) + self._attributes(path)
        if name in ("OPEN", "OPENDIR"):
            return struct.pack("=QII", 0, 0, 0)
        if name == "READ":
            _, start, size = struct.unpack_from("=QQI", body)
            return (self.folder / path).read_bytes()[start : start + size]
        if name == "READDIR":
            _, start, size = struct.unpack_from("=QQI", body)
            return self._entries(path, start, size)
        if name == "STATFS":
            return struct.pack("=5Q4I24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0)
        if name in ("RELEASE", "RELEASEDIR", "FLUSH"):
            return b""
        raise OSError(errno.ENOSYS, name)

    def _node(self, path: str) -> int:
        if path not in self.paths:
            self.paths.append(path)
        return self.paths.index(path) + ROOT

    def _attributes(self, path: str) -> bytes:
        status = os.lstat(self.folder / path)
        mode = status.st_mode if stat.S_ISDIR(status.st_mode) else stat.S_IFREG | 0o444
        times = divmod(status.st_ctime_ns, 10**9)
        return ATTRIBUTES.pack(
            self._node(path), status.st_size, 8, *[times[0]] * 3, *[times[1]] * 3,
            mode, 1, os.getuid(), os.getgid(), 0, 4096, 0,
        )  # fmt: skip

    def _entries(self, path: str, start: int, size: int) -> bytes:
        packed = b""
        for number, name in enumerate(sorted(os.listdir(self.folder / path)), 1):
            entry = struct.pack("=QQII", self._node(os.path.join(path, name)), number, len(name), 0) + name.encode()
            entry += bytes(-len(entry) % 8)
            if number > start and len(packed) + len(entry) <= size:
                packed += entry
        return packed


class HangingDisk:
    """A cache on such a file system: blobs are put into `folder` and seen at `path`."""

    def __init__(self, root: Path) -> None:
        self.path, self.folder, self.flag = root / "hanging", root / "behind", root / "flag"
        self.path.mkdir()
        self.folder.mkdir()
        command = [sys.executable, str(Path(__file__)), *map(str, (self.path, self.folder, self.flag))]
        self._server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not mounted_at(self.path):
            assert self._server.poll() is None, "it can't be mounted"
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def fail(self, request: str, number: int) -> None:
        """From now on this request fails with that error."""
        self.hang(f"{request}={number}")

    def hang(self, *requests: str) -> None:
        """From now on these requests are not answered; all when none is named."""
        partial = self.flag.with_name("flag.partial")
        partial.write_text(" ".join(requests))
        partial.rename(self.flag)

    def answer(self) -> None:
        """From now on all is answered, also what was asked meanwhile."""
        self.flag.unlink()

    def close(self) -> None:
        """Everybody who waits for an answer gets an error. May be called again."""
        LIBC.umount2(os.fsencode(self.path), MNT_DETACH)
        self._server.kill()
        self._server.wait()


def mounted_at(path: Path) -> bool:
    return f" {path} " in Path("/proc/self/mountinfo").read_text()


def why_not() -> str:
    """Why no such file system can be had here, `""` where it can."""
    if sys.platform != "linux":
        return "FUSE is spoken as Linux does"
    if os.geteuid() != 0:
        return "only root may mount"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse can't be opened: {error.strerror}"
    return ""


@contextlib.contextmanager
def hanging(root: Path) -> Iterator[HangingDisk]:
    if reason := why_not():
        pytest.skip(reason)
    disk = HangingDisk(root)
    try:
        yield disk
    finally:
        disk.close()


if __name__ == "__main__":
    Server(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])).serve()
