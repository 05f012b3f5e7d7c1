"""What a worker can no longer do once it has given up its rights, asked of real processes."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
import socket
import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

import blobs
import oracle
import working
from chunkd.check.recount import recount
from chunkd.model import Caps, ChunkParams, MeasureRule
from chunkd.service.daemon import Service
from chunkd.settings import config
from chunkd.worker import pool as pool_module
from chunkd.worker import protocol, sandbox
from chunkd.worker.pool import Pool, Worker
from chunkd.worker.spawn import Courtesy, Starter
from daemon import until

PARAMS = ChunkParams()
COURTESY = Courtesy(0, "normal", 0)
MIB = 1 << 20

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's means")

# Tries things in a process without rights, and tells the error of each. What they are done to was made before.
TRIALS = """
import ctypes, json, mmap, os, resource, signal, socket, subprocess, sys
from chunkd.worker import sandbox
folder, tcp_port = sys.argv[1], int(sys.argv[2])
os.chdir(folder)
opened = open("opened", "r+b", buffering=0)
libc = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
connecting, binding = socket.socket(), socket.socket()
x86 = os.uname().machine == "x86_64"
here = os.open(".", os.O_PATH)
handle, mount = ctypes.create_string_buffer((128).to_bytes(4, "little"), 136), ctypes.c_int()
libc.name_to_handle_at(-100, b"file", handle, ctypes.byref(mount), 0)
folder_of_mount = os.open(".", os.O_RDONLY)
own = "/proc/self/fd/%d" % opened.fileno()
def by_number(*arguments):
    checked(libc.syscall(*arguments))
sandbox.give_up_rights()
trials = {
    "open": lambda: checked(libc.open(b"file", os.O_RDONLY)),
    "open, by its number": lambda: by_number(*((2, b"file", 0) if x86 else (56, -100, b"file", 0))),
    "creat": lambda: checked(libc.creat(b"new", 0o600)),
    "creat, by its number": lambda: by_number(*((85, b"new", 0o600) if x86 else (56, -100, b"new", 0o101, 0o600))),
    "openat": lambda: by_number(257 if x86 else 56, here, b"file", 0),
    "openat of a path alone": lambda: by_number(257 if x86 else 56, here, b"file", os.O_PATH),
    "openat2": lambda: by_number(437, here, b"file", bytes(24), 24),
    "open_by_handle_at": lambda: by_number(304 if x86 else 265, folder_of_mount, handle, 0),
    "pidfd_getfd": lambda: by_number(438, here, 0, 0),
    "open /proc": lambda: os.open("/proc/self/status", os.O_RDONLY),
    "reopen a descriptor": lambda: os.open(own, os.O_RDONLY),
    "list /proc": lambda: os.listdir("/proc/self/fd"),
    "read": lambda: open("file").read(),
    "list": lambda: os.listdir("."),
    "import": lambda: __import__("tarfile"),
    "open to write": lambda: open("file", "r+b"),
    "create": lambda: open("new", "wb"),
    "truncate": lambda: os.truncate("file", 0),
    "write what is open": lambda: opened.write(b"x"),
    "unlink": lambda: os.unlink("file"),
    "rename": lambda: os.rename("file", "other"),
    "link": lambda: os.link("file", "other"),
    "mkdir": lambda: os.mkdir("new folder"),
    "mkfifo": lambda: os.mkfifo("new fifo"),
    "execute": lambda: subprocess.run(["/bin/true"]),
    "signal the daemon": lambda: os.kill(os.getppid(), 0),
    "trace the daemon": lambda: checked(libc.ptrace(0x4206, os.getppid(), 0, 0)),
    "connect": lambda: connecting.connect(("127.0.0.1", tcp_port)),
    "bind": lambda: binding.bind(("127.0.0.1", 0)),
    "TCP": lambda: socket.socket(),
    "UDP": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "a Unix socket": lambda: socket.socket(socket.AF_UNIX),
    "a pair of sockets": lambda: socket.socketpair(),
    "io_uring": lambda: checked(libc.syscall(425, 1, ctypes.create_string_buffer(120))),
    "the other calls of x86-64": lambda: checked(libc.syscall(0x40000000 + 41, 1, 1, 0)),
    "become another": lambda: os.setuid(65534 if os.geteuid() == 0 else 0),
    "change the owner": lambda: os.chown("file", 65534 if os.geteuid() == 0 else 0, -1),
    "write and execute memory": lambda: mmap.mmap(-1, 4096, prot=7),
    "raise a limit": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000)),
    "dump core": lambda: resource.setrlimit(resource.RLIMIT_CORE, (1000, 1000)),
}
found = {}
for name, trial in trials.items():
    try:
        trial()
        found[name] = 0
    except OSError as error:
        found[name] = error.errno
    except ImportError:
        found[name] = 1
    except ValueError:  # what Python makes of a limit that may not be raised
        found[name] = 1
copies = []
try:
    while len(copies) < 100:
        copies.append(os.dup(here))
except OSError as error:
    found["many files"] = error.errno
os.write(1, json.dumps(found).encode())
"""

SOCKETS = {"TCP", "UDP", "a Unix socket", "a pair of sockets", "io_uring", "the other calls of x86-64"}
OPENINGS = {
    "open",
    "open, by its number",
    "creat",
    "creat, by its number",
    "openat",
    "openat of a path alone",
    "openat2",
    "open_by_handle_at",
    "pidfd_getfd",
    "open /proc",
    "reopen a descriptor",
    "list /proc",
    "read",
    "list",
    "import",
    "open to write",
    "create",
}
# What the kernel must refuse, from which version of Landlock on; 0 is what needs none of it.
REFUSED = {
    0: {
        "write what is open", "become another", "change the owner", "raise a limit", "dump core", "many files",
        "write and execute memory", *SOCKETS, *OPENINGS,
    },
    1: {"unlink", "rename", "mkdir", "mkfifo", "execute", "link", "trace the daemon"},
    3: {"truncate"},
    4: {"connect", "bind"},
    6: {"signal the daemon"},
}  # fmt: skip


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def kernel_has_mdwe() -> bool:
    code = "import ctypes; raise SystemExit(ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0)"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@linux_only
def test_what_a_worker_may_not_do(tmp_path: Path, listening: int) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / "opened").write_bytes(b"precious")
    # stdout and stderr are no files, as with a service.
    done = subprocess.run(
        [sys.executable, "-c", TRIALS, str(tmp_path), str(listening)], check=True, capture_output=True, timeout=60
    )
    found = json.loads(done.stdout)
    version = sandbox.landlock_version()
    refused = set().union(*(names for known_from, names in REFUSED.items() if known_from <= version))
    if not kernel_has_mdwe():
        refused -= {"write and execute memory"}
    if os.uname().machine not in sandbox.MACHINE_CALLS:
        refused -= SOCKETS if version else SOCKETS | OPENINGS
    else:  # by the filter, and not because this kernel lacks what was tried
        assert {found[name] for name in SOCKETS | OPENINGS} == {errno.EPERM}, found
    if version >= 6 and refused >= SOCKETS:
        assert {name for name, error in found.items() if not error} == set(), found
    assert {name for name, error in found.items() if error} >= refused, found
    assert found["write what is open"] == errno.EFBIG
    assert found["many files"] == errno.EMFILE
    if version:
        assert (tmp_path / "file").read_bytes() == b"precious"
        assert sorted(os.listdir(tmp_path)) == ["file", "opened"]
    assert (tmp_path / "opened").read_bytes() == b"precious"


@linux_only
@pytest.mark.parametrize(
    ("left_out", "there", "error"),
    [("_refuse_calls", sandbox.landlock_version(), errno.EACCES), ("_restrict", True, errno.EPERM)],
    ids=["by Landlock alone", "by the filter alone"],
)
def test_either_wall_keeps_files_closed(tmp_path: Path, left_out: str, there: int, error: int) -> None:
    if not there or os.uname().machine not in sandbox.MACHINE_CALLS:
        pytest.skip("this kernel lacks it")
    (tmp_path / "file").write_bytes(b"precious")
    code = """
import os, sys
from chunkd.worker import sandbox
setattr(sandbox, sys.argv[1], lambda _: None)
own = os.open("file", os.O_RDONLY)
sandbox.give_up_rights()
for opens in (lambda: os.open("file", os.O_RDONLY), lambda: os.open(f"/proc/self/fd/{own}", os.O_RDONLY),
              lambda: os.listdir(".")):
    try:
        opens()
        print(0)
    except OSError as error:
        print(error.errno)
"""
    command = [sys.executable, "-c", code, left_out]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout.split() == [str(error)] * 3


@linux_only
def test_a_traceback_still_goes_into_a_file(tmp_path: Path) -> None:
    code = "from chunkd.worker import sandbox; sandbox.give_up_rights(); raise SystemError('told')"
    with (tmp_path / "log").open("wb") as log:
        subprocess.run([sys.executable, "-c", code], check=False, stderr=log, timeout=60)
    assert "told" in (tmp_path / "log").read_text()


@pytest.fixture
def started() -> Iterator[tuple[Worker, int]]:
    with working.started() as found:
        yield found


@pytest.fixture
def worker(started: tuple[Worker, int]) -> Worker:
    return started[0]


def held_by(pid: int) -> dict[int, str]:
    """What each of a process's descriptors is of."""
    return {int(fd.name): str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}


@linux_only
def test_a_worker_holds_nothing_of_its_daemons_or_its_siblings(tmp_path: Path) -> None:
    """Each has read, so that it is past its beginning when it is looked at; the last is started beside others."""
    digest, path = blobs.write_blob(tmp_path, blobs.gz(blobs.layer()))
    with (tmp_path / "kept").open("wb") as kept:
        os.set_inheritable(kept.fileno(), True)
        starter = Starter(PARAMS, Caps(), COURTESY)
        workers = [starter.start() for _ in range(3)]
        try:
            for worker in workers:
                assert working.finding(worker.connection, digest, path).kind == "layer"
            held = [held_by(working.pid_of(starter, worker)) for worker in workers]
            own = held_by(starter.pid)
        finally:
            for worker in workers:
                worker.connection.close()
            starter.close()
    connections = set()
    for targets in (*held, own):
        assert targets.pop(2) == own.get(2, str(Path("/proc/self/fd/2").readlink()))
        assert (targets.pop(0), targets.pop(1)) == (os.devnull, os.devnull)
    for targets in held:
        [connection] = targets.values()
        assert connection.startswith("socket:")
        connections.add(connection)
    assert len(connections) == 3
    # Its own connection, and the pipe that tells it of its children's ends.
    assert sorted(target.partition(":")[0] for target in own.values()) == ["pipe", "pipe", "socket"]
    assert connections.isdisjoint(own.values())


@linux_only
def test_a_worker_has_given_up_its_rights(started: tuple[Worker, int], tmp_path: Path) -> None:
    worker, pid = started
    proc = Path(f"/proc/{pid}")
    digest, path = blobs.write_blob(tmp_path, blobs.gz(blobs.layer()))
    assert working.finding(worker.connection, digest, path).kind == "layer"
    status = dict(line.split(":\t") for line in (proc / "status").read_text().splitlines() if ":\t" in line)
    assert status["NoNewPrivs"] == "1"
    for name in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
        assert int(status[name], 16) == 0
    limits = (proc / "limits").read_text()
    most_bytes = sandbox.memory_bytes(path.stat().st_size, PARAMS, Caps())
    assert f"Max data size {most_bytes} " in " ".join(limits.split())
    assert "Max core file size 0 0 " in " ".join(limits.split())


def test_the_memory_of_a_worker_is_that_of_its_caps() -> None:
    """By hand: 64 MiB, the window, and 72 bytes for each of the chunks that the caps let pass."""
    assert sandbox.memory_bytes(0, PARAMS, Caps()) == 64 * MIB + 128 * MIB + 72 * (1 << 30) // 2048
    assert sandbox.memory_bytes(1 << 20, PARAMS, Caps()) == 192 * MIB + 72 * 2000 * MIB // 2048
    assert sandbox.memory_bytes(1 << 40, PARAMS, Caps()) == 192 * MIB + 72 * (256 << 30 >> 14)
    assert sandbox.memory_bytes(1 << 40, PARAMS, Caps(1 << 30, 2000, 1 << 20)) == 65 * MIB + 72 * (1 << 30) // 2048


# A worker whose decoder does what its blob says: a decoder that was taken over, or has a bug.
BAD_DECODER = """
import os, sys, time
from chunkd.worker import examine as worker
from chunkd.worker.protocol import WorkersEnd
honest = worker.buffers
def buffers(source, take, caps, stored_bytes):
    for data in honest(source, take, caps, stored_bytes):
        said = bytes(data[:20])
        if said.startswith(b"EAT"):
            eaten = []
            while True:
                eaten.append(bytearray(1 << 20))
        if said.startswith(b"KILL"):
            os.kill(os.getpid(), 9)
        if said.startswith(b"CRASH"):
            os.kill(os.getpid(), 11)
        if said.startswith(b"HANG"):
            time.sleep(600)
        if said.startswith(b"BUG"):
            raise RuntimeError("in the bug's own words")
        if said.startswith(b"READ"):
            open(bytes(data)[4:].split(b"\\0")[0]).read()
        if said.startswith(b"SAY"):
            os.write(connection, bytes(data)[3:])
            raise SaidError
        yield data
class SaidError(Exception):
    pass
def examine(*arguments, **options):
    try:
        return honest_examine(*arguments, **options)
    except SaidError:
        return None
def send_finding(end, finding):
    if finding is not None:
        honest_send(end, finding)
honest_examine, honest_send = worker.examine, WorkersEnd.send_finding
worker.buffers, worker.examine, WorkersEnd.send_finding = buffers, examine, send_finding
def main(argv):
    global connection
    connection = int(argv[0])
    honest_main(argv)
honest_main, worker.main = worker.main, main
"""
BAD_WORKER = BAD_DECODER + "main(sys.argv[1:])"
BAD_STARTER = BAD_DECODER + "from chunkd.worker import starter; starter.main(sys.argv[1:])"
start_bad = functools.partial(Starter, program=("-c", BAD_STARTER))


def bad_worker(
    params: ChunkParams, caps: Caps, measure: MeasureRule, stderr: int
) -> tuple[subprocess.Popen[bytes], protocol.DaemonsEnd]:
    ours, theirs = socket.socketpair()
    with theirs:
        settings = [json.dumps(dataclasses.asdict(value)) for value in (params, caps, measure)]
        process = subprocess.Popen(
            [sys.executable, "-c", BAD_WORKER, str(theirs.fileno()), *settings, "0"],
            pass_fds=[theirs.fileno()], stderr=stderr,
        )  # fmt: skip
    return process, protocol.DaemonsEnd(ours, params, caps)


@linux_only
def test_a_worker_indexes_what_it_may_not_open(worker: Worker, tmp_path: Path) -> None:
    """A layer of every codec, one that is larger than a buffer, and one that its opener alone may read."""
    data = blobs.tar({"large": blobs.noise(3 * MIB)})
    expected = oracle.recipe(data)
    for stored in (blobs.gz(data), blobs.zst(data), data):
        for algorithm in ("sha256", "sha512"):
            digest, path = blobs.write_blob(tmp_path, stored, algorithm)
            path.chmod(0)
            if os.geteuid() == 0:
                os.chown(path, 65534, 65534)  # then root needs a capability, which the worker has given up
            else:
                path.chmod(0o400)
            for relayed in (False, True):
                found = working.finding(worker.connection, digest, path, relayed=relayed)
                assert (found.kind, found.recipe) == ("layer", expected)
            assert working.finding(worker.connection, digest, path, decode=False).kind == "matched"


@linux_only
@pytest.mark.parametrize(("said", "error"), [(b"BUG", "RuntimeError: in the bug's own words"), (b"READ", "EPERM")])
def test_a_bug_and_a_refusal_are_told_with_their_words(tmp_path: Path, said: bytes, error: str) -> None:
    """The source lines of a traceback are in files that can't be opened any longer."""
    (tmp_path / "secret").write_bytes(b"secret")
    told = said + os.fsencode(tmp_path / "secret") if said == b"READ" else said
    digest, path = blobs.write_blob(tmp_path, blobs.gz(told + bytes(5000)))
    process, end = bad_worker(PARAMS, Caps(), MeasureRule(), stderr=subprocess.PIPE)
    if said == b"BUG":
        working.give(end.send_job, digest, path)
        code, stderr = working.ended(process)
        assert (code, stderr.splitlines()[-1]) == (1, error)
        assert "in buffers" in stderr
    else:
        found = working.finding(end, digest, path)
        assert (found.kind, found.reason) == ("unreadable", os.strerror(errno.EPERM))
        process.kill()
        working.ended(process)
    end.close()


@linux_only
def test_a_decoder_that_eats_memory_is_refused_it_and_the_reason_is_said(tmp_path: Path) -> None:
    pool = Pool(start_bad(PARAMS, Caps(), COURTESY), 1)
    try:
        for said, died in (
            (b"EAT", "its worker ran out of memory"),
            (b"fine", ""),
            (b"EAT", "its worker ran out of memory"),
        ):
            digest, path = blobs.write_blob(tmp_path, blobs.gz(said + bytes(5000)))
            working.give(pool.give, digest, path)
            while not (found := pool.collect(working.PATIENCE_S)):
                pass
            assert found[0].died == died
            assert (found[0].finding is None) == bool(died)
    finally:
        pool.close()


FINE = [blobs.layer(number, 20_000) for number in range(20)]
KNOWN_HASH = oracle.recipe(FINE[0]).hashes[:16]


def says(lengths: list[int], hashes: bytes, **changes: object) -> bytes:
    """A finding of a layer with these chunks, some of it changed."""
    head = {
        "kind": "layer", "codec": "gzip", "uncompressed_bytes": sum(lengths), "reason": "", "read_until_ns": 1 << 62,
        "chunks": len(lengths), "measured": 0, "manifest_bytes": 0,
    }  # fmt: skip
    return json.dumps(head | changes).encode() + b"\n" + hashes + array("I", lengths).tobytes()


# One that eats memory needs some time for it, on a busy machine and as the last of all processes.
SILENCE_S = 12.0
BAD_BLOBS = {
    b"EAT": "its worker ran out of memory",
    b"KILL": "its worker was killed (signal 9), as the kernel does when memory is short",
    b"CRASH": "its worker died (signal 11)",
    b"HANG": f"no progress in {SILENCE_S:.0f} s",
}
LIES = {
    b"[" * 60_000 + b"\n": "its worker said what none does: a line of JSON that is nested too deeply",
    b"5\n": "its worker said what none does: a line that is no JSON object",
    b'{"read_bytes": 1e999}\n': "its worker said what none does: a number out of bounds",
    says([5000], b"h" * 16, kind="matched"): "its worker said what none does: a finding of another kind than",
    says([5000], b"h" * 16, codec="lz4"): "its worker said what none does: layer, and a codec",
    says([5000], b"h" * 16, reason="\x1b[2J"): "its worker said what none does: a reason that can't be shown",
    says([5000], b"h" * 16, chunks=1 << 27): "its worker said what none does: 134217728 chunks of at most 3",
    says([5000], b"h" * 16, uncompressed_bytes=1 << 40): "its worker said what none does: 1099511627776 bytes",
    says([5000], b"h" * 16, uncompressed_bytes=5001): "worker sent an invalid recipe: 1 chunks of 5000 bytes",
    says([70_000], b"h" * 16): "worker sent an invalid recipe: chunks of 70000 to 70000 bytes",
    says([5000], b"h" * 14 + bytes(2)): "worker sent an invalid recipe: 0 recompressed lengths for 1 chunks",
    says([5000], b"h" * 16, measured=2): "its worker said what none does: 2 measured of 1 chunks",
    says([5000, 6000], b"h" * 32): "worker sent an invalid recipe: one hash with two lengths",
    # The hash of a chunk that others have, whom this would make look damaged.
    says([7], KNOWN_HASH): f"worker sent an invalid recipe: chunk {KNOWN_HASH.hex()} has another length in",
}


@linux_only
@pytest.mark.parametrize("bad", [BAD_BLOBS, {b"SAY" + lie: reason for lie, reason in LIES.items()}], ids=["die", "lie"])
def test_workers_that_die_hang_eat_memory_or_lie_cost_their_blobs_and_no_other(
    bad: dict[bytes, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if b"HANG" in bad:
        monkeypatch.setattr(pool_module, "SILENCE_S", SILENCE_S)
    cache = tmp_path / "cache"
    cache.mkdir()
    for data in FINE:
        blobs.write_blob(cache, blobs.gz(data))
    flags = {"caches": (str(cache),), "state_dir": str(tmp_path / "state"), "workers": 2}
    (tmp_path / "empty").touch()
    settings = config.load(flags, {"CHUNKD_CONFIG": str(tmp_path / "empty")})
    with Service(settings, "a test", watch=False, replace=False, start=start_bad) as service:

        def settle(scan: int) -> None:
            until(lambda: service.writer.scans.finished >= scan and service.activity.idle(), bool, "all is read")
            service.check()

        settle(service.start())
        expected = {blobs.write_blob(cache, blobs.gz(data))[0]: reason for data, reason in bad.items()}
        settle(service.scanner.request("bad blobs landed"))
        with service.index.snapshot() as txn:
            totals = service.index.store.head(txn).totals
            failed = {blob.digest: blob.reason for blob in service.index.store.blobs(txn, "failed")}
            assert recount(service.index.store, txn).differences == []
        assert (totals.layers, totals.uncompressed_bytes) == (20, sum(map(len, FINE)))
        assert failed.keys() == expected.keys()
        for digest, reason in expected.items():
            assert failed[digest].removeprefix("can't be read: ").startswith(reason)


@linux_only
def test_a_window_at_the_cap_fits_into_the_limit(started: tuple[Worker, int], tmp_path: Path) -> None:
    """And is near it: the kernel counts what was asked for, not what was touched."""
    worker, pid = started
    data = blobs.tar({"large": blobs.noise(3 * MIB)})
    digest, path = blobs.write_blob(tmp_path, blobs.zst(data * 60, window_log=27))
    assert working.finding(worker.connection, digest, path).kind == "layer"
    status = Path(f"/proc/{pid}/status").read_text()
    peak_kib = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmPeak")))
    assert peak_kib > 128 * 1024
