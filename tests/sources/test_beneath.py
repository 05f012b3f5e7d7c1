"""What lies below a root is seen and opened without following a link, by the kernel's own means and name by name."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chunkd.model import FileMark
from chunkd.sources import beneath
from chunkd.sources.beneath import Beneath
from chunkd.sources.folder import FolderView
from chunkd.sources.source import Seen

ODD = os.fsdecode(b"not \xff UTF-8")
WAYS = ("openat2", "by name")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "by name":
        monkeypatch.setattr(beneath, "has_openat2", lambda: False)
    elif not beneath.has_openat2():
        pytest.skip("this kernel has no openat2")
    return str(request.param)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A tree with links at each depth, to what lies in it, beside it and nowhere."""
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "blob").write_bytes(b"deep")
    (root / "blob").write_bytes(b"shallow")
    (root / ODD).mkdir()
    (root / ODD / ODD).write_bytes(b"odd")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    (tmp_path / "outside" / "b").mkdir()
    (tmp_path / "outside" / "b" / "secret").write_bytes(b"secret")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "in").symlink_to("a")
    (root / "a" / "out").symlink_to(tmp_path / "outside")
    (root / "a" / "b" / "link").symlink_to("blob")
    (root / "link").symlink_to("blob")
    (root / "nowhere").symlink_to("no such file")
    outside = os.open(tmp_path / "outside", os.O_RDONLY)
    (root / "magic").symlink_to(f"/proc/self/fd/{outside}")
    os.mkfifo(root / "fifo")
    yield root
    os.close(outside)


@pytest.fixture
def below(root: Path, way: str) -> Iterator[Beneath]:  # noqa: ARG001 - decides how it is opened
    before = set(os.listdir("/dev/fd"))
    with Beneath(str(root)) as below:
        yield below
    assert set(os.listdir("/dev/fd")) == before, "a descriptor was left open"


LINK, FILE, FOLDER, FIFO = stat.S_IFLNK, stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO

# The path, what `status` says, what `open` raises, what `folder` raises: 0 is for nothing.
CASES = [
    ("", FOLDER, 0, 0),
    ("blob", FILE, 0, errno.ENOTDIR),
    ("a", FOLDER, 0, 0),
    ("a/b", FOLDER, 0, 0),
    ("a/b/blob", FILE, 0, errno.ENOTDIR),
    ("fifo", FIFO, 0, errno.ENOTDIR),
    (f"{ODD}", FOLDER, 0, 0),
    (f"{ODD}/{ODD}", FILE, 0, errno.ENOTDIR),
    ("n" * 255, -errno.ENOENT, errno.ENOENT, errno.ENOENT),
    ("gone", -errno.ENOENT, errno.ENOENT, errno.ENOENT),
    ("gone/blob", -errno.ENOENT, errno.ENOENT, errno.ENOENT),
    # A link at the end.
    ("link", LINK, errno.ELOOP, errno.ENOTDIR),
    ("nowhere", LINK, errno.ELOOP, errno.ENOTDIR),
    ("in", LINK, errno.ELOOP, errno.ENOTDIR),
    ("out", LINK, errno.ELOOP, errno.ENOTDIR),
    ("a/out", LINK, errno.ELOOP, errno.ENOTDIR),
    ("a/b/link", LINK, errno.ELOOP, errno.ENOTDIR),
    ("magic", LINK, errno.ELOOP, errno.ENOTDIR),
    # A link, or a file, in the middle.
    *[
        (path, -errno.ENOTDIR, errno.ENOTDIR, errno.ENOTDIR)
        for path in (
            *("in/b", "in/b/blob", "out/secret", "out/b/secret", "a/out/secret", "a/out/b/secret", "a/out/gone"),
            *("nowhere/blob", "link/blob", "magic/secret", "blob/blob", "a/b/blob/x", "fifo/x", "blob/x/y"),
        )
    ],
    # No path below the root.
    *[
        (path, -errno.EINVAL, errno.EINVAL, errno.EINVAL)
        for path in (
            *("..", "../outside/secret", "a/..", "a/../blob", "a/../../outside/secret", ".", "./blob", "a/./b"),
            *("/", "/etc/passwd", "//", "a/", "a//b", "blob/", "bl\0ob", "\0"),
        )
    ],
    *[
        (path, -errno.ENAMETOOLONG, errno.ENAMETOOLONG, errno.ENAMETOOLONG)
        for path in ("n" * 256, "a/" + "n" * 256, "/".join(["a"] * 2049), "é" * 2048)
    ],
]


@pytest.mark.parametrize(("path", "kind", "open_error", "folder_error"), CASES, ids=lambda value: repr(value)[:30])
def test_each_path_both_ways(below: Beneath, path: str, kind: int, open_error: int, folder_error: int) -> None:
    assert status_of(below, path) == kind
    assert raised(lambda: below.open(path, os.O_RDONLY)) == open_error
    assert raised(lambda: below.folder(path)) == folder_error


def status_of(below: Beneath, path: str) -> int:
    try:
        return stat.S_IFMT(below.status(path).st_mode)
    except OSError as error:
        return -(error.errno or 0)


def raised(opens: Callable[[], int]) -> int:
    try:
        os.close(opens())
    except OSError as error:
        return error.errno or 0
    return 0


def test_the_status_is_that_of_lstat(below: Beneath, root: Path) -> None:
    for path in ("", "blob", "a/b/blob", "link", "out", "fifo"):
        assert below.status(path) == os.lstat(root / path), path


def test_what_is_opened_is_the_file_or_folder(below: Beneath) -> None:
    for path, data in (("blob", b"shallow"), ("a/b/blob", b"deep"), (f"{ODD}/{ODD}", b"odd")):
        descriptor = below.open(path, os.O_RDONLY)
        assert os.read(descriptor, 100) == data
        assert not os.get_inheritable(descriptor)
        assert not os.get_blocking(descriptor)
        os.close(descriptor)
    for path, names in (("a/b", {"blob", "link"}), (ODD, {ODD})):
        descriptor = below.folder(path)
        assert not os.get_inheritable(descriptor)
        assert set(os.listdir(descriptor)) == names
        os.close(descriptor)


def test_the_root_may_be_a_link_and_must_be_a_folder(root: Path, way: str) -> None:  # noqa: ARG001
    link = root.parent / "link"
    link.symlink_to(root)
    with Beneath(str(link)) as below:
        assert stat.S_ISDIR(below.status("").st_mode)
        assert below.status("a/b/blob").st_size == 4
    with pytest.raises(NotADirectoryError):
        Beneath(str(root / "blob"))
    with pytest.raises(FileNotFoundError):
        Beneath(str(root / "gone"))


def test_a_folder_below_the_root_is_opened_without_following_a_link(root: Path, way: str) -> None:  # noqa: ARG001
    before = set(os.listdir("/dev/fd"))
    (root / "to_a").symlink_to("a")
    with Beneath(str(root), "a/b") as below:
        assert below.status("blob").st_size == 4
    for path in ("to_a", "to_a/b", "blob"):
        with pytest.raises(NotADirectoryError):
            Beneath(str(root), path)
    with pytest.raises(FileNotFoundError):
        Beneath(str(root), "a/none")
    with pytest.raises(OSError, match="not a path below"):
        Beneath(str(root), "../root")
    assert set(os.listdir("/dev/fd")) == before


def test_the_root_that_was_opened_stays_the_root(below: Beneath, root: Path) -> None:
    root.rename(root.parent / "elsewhere")
    root.mkdir()
    assert below.status("blob").st_size == 7


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone has O_NOATIME")
def test_reading_leaves_the_access_time_alone_where_that_is_allowed(
    below: Beneath, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert flags_of(below.open("blob", os.O_RDONLY)) & os.O_NOATIME
    assert flags_of(below.folder("a")) & os.O_NOATIME
    asked = []
    real = Beneath._open_once  # noqa: SLF001

    def refused(self: Beneath, path: str, flags: int) -> int:
        asked.append(bool(flags & os.O_NOATIME))
        if flags & os.O_NOATIME:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return real(self, path, flags)

    monkeypatch.setattr(Beneath, "_open_once", refused)
    assert not flags_of(below.open("blob", os.O_RDONLY)) & os.O_NOATIME
    assert not flags_of(below.folder("a")) & os.O_NOATIME
    assert asked == [True, False] * 2


def flags_of(descriptor: int) -> int:
    flags = [line for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines() if "flags" in line]
    os.close(descriptor)
    return int(flags[0].split()[1], 8)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_another_users_file_is_opened_all_the_same(root: Path, way: str) -> None:
    """Who does not own a file may not leave its access time alone."""
    code = (
        "import os, sys\nfrom chunkd.sources import beneath\n"
        "if sys.argv[2] == 'by name': beneath.has_openat2 = lambda: False\n"
        "root = beneath.Beneath('.')\nos.setuid(65534)\n"
        "print(os.read(root.open('blob', os.O_RDONLY), 100), len(os.listdir(root.folder('a'))))"
    )
    command = [sys.executable, "-c", code, str(root), way]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "b'shallow' 2\n"


def test_a_kernel_without_the_call_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        def __init__(self, code: int) -> None:
            self.code = code

        def syscall(self, *_: object) -> int:
            ctypes.set_errno(self.code)
            return -1

    for code, has in ((errno.ENOSYS, False), (errno.EPERM, False), (errno.EINVAL, True)):
        monkeypatch.setattr(beneath, "_libc", lambda code=code: Libc(code))
        assert beneath.has_openat2.__wrapped__() is has


@pytest.fixture
def irregular(root: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(root)  # a socket's path has 104 characters at most
        listener.bind("socket")
        os.chdir(here)
        yield


@pytest.mark.usefixtures("irregular")
def test_a_blob_is_a_regular_file_with_its_mark_and_nothing_else_is_opened(
    root: Path, below: Beneath, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = FolderView(below)
    descriptor, seen = view.open("a/b/blob")
    status = (root / "a/b/blob").stat()
    assert seen == Seen(FileMark(status.st_dev, status.st_ino, 4, status.st_ctime_ns), 1)
    assert os.read(descriptor, 100) == b"deep"
    os.close(descriptor)
    for missing in ("gone", "gone/blob", "in/b/blob", "blob/data"):
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            view.open(missing)
    opened: list[object] = []
    monkeypatch.setattr(Beneath, "open", lambda *arguments: opened.append(arguments))
    for path in ("link", "out", "a", "fifo", "socket", ""):
        descriptor, seen = view.open(path)
        assert descriptor == -1
        assert seen.kind
    assert not opened


@pytest.mark.usefixtures("irregular")
def test_what_is_put_in_a_files_place_before_the_open_is_no_blob(
    root: Path, below: Beneath, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, regular = FolderView(below), below.status("blob")
    monkeypatch.setattr(Beneath, "status", lambda *_: regular)
    # The FIFO has no writer: an open without O_NONBLOCK would wait for ever.
    for path in ("fifo", "a"):
        descriptor, seen = view.open(path)
        assert descriptor == -1
        assert seen.kind
    for path in ("link", "socket"):
        with pytest.raises(OSError, match=r"symbolic links|No such device"):
            view.open(path)
    assert (root / "blob").exists()
