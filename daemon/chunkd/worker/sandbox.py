"""What a worker gives up before its first job, so that a compromised decoder can do no more than the worker needs.

It keeps what is open (its connection, over which it gets each blob, and stderr for tracebacks) and its share of the
processors. It can open nothing, so all its imports must come before. Linux can refuse all of it; elsewhere only those
of the limits below apply that the system has.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import stat
import struct
import sys

from chunkd.model import CHUNK_HASH_BYTES, Caps, ChunkParams

# For what is open from the start, and the blob, with some to spare.
OPEN_FILES = 32
# Measured after the imports: 12 MiB, and 3 MiB more for gzip. The rest is for memory that Python frees late.
BASE_BYTES = 64 << 20
# A recipe grows, then is copied once: at most 24 bytes a chunk and an eighth for growth, and the same as a whole.
BYTES_A_CHUNK = 3 * (CHUNK_HASH_BYTES + 4 + 4)

# prctl(2), capset(2) and landlock(7), as <linux/prctl.h>, <linux/capability.h> and <linux/landlock.h> have them. The
# numbers of Landlock's calls are the same on every architecture.
PR_SET_NO_NEW_PRIVS = 38
PR_SET_MDWE = 65
PR_MDWE_REFUSE_EXEC_GAIN = 1
CAPABILITY_VERSION_3 = 0x20080522
LANDLOCK_CREATE_RULESET = 444
LANDLOCK_RESTRICT_SELF = 446
LANDLOCK_CREATE_RULESET_VERSION = 1
# The file accesses that each version of Landlock added. All are refused, reading files and listing folders too.
FILE_ACCESSES = {1: 0x1FFF, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
# Binding and connecting TCP; abstract sockets and signals to processes outside.
TCP_ACCESSES = {4: 3}
SCOPES = {6: 3}
# prctl(2) and seccomp(2), as <linux/seccomp.h>, <linux/bpf_common.h> and <asm/unistd.h> have them.
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
SECCOMP_ALLOW = 0x7FFF0000
SECCOMP_REFUSE = 0x00050000 | errno.EPERM
LOAD, IF_EQUAL, IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
ARCHITECTURE_AT, CALL_AT = 4, 0
# From this number on x86-64 has a second set of calls.
X32_CALLS = 0x40000000
# Calls with the same number everywhere: io_uring_setup, because io_uring opens files and makes sockets too, openat2,
# and pidfd_getfd, which takes another process's descriptor.
REFUSED_CALLS = (425, 437, 438)
# For each machine the architecture's number in <linux/audit.h>, then the numbers of socket, socketpair, openat,
# open_by_handle_at, and, if it has them, open and creat.
MACHINE_CALLS = {"x86_64": (0xC000003E, 41, 53, 257, 304, 2, 85), "aarch64": (0xC00000B7, 198, 199, 56, 265)}


def give_up_rights() -> None:
    """Give up opening, writing and making files, programs, sockets, core dumps and capabilities, as far as this system
    can refuse them. For a process of one thread. Raises OSError when a refusal that the system knows fails.
    """
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: OPEN_FILES}
    if not _stderr_is_a_file():  # a traceback must be able to go there
        limits[resource.RLIMIT_FSIZE] = 0
    for which, most in limits.items():
        most = _within(resource.getrlimit(which)[1], most)
        resource.setrlimit(which, (most, most))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        _call(libc, "prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # Kernels before 6.3 do not know it.
        _call(libc, "prctl", PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0, but=errno.EINVAL)
        _drop_capabilities(libc)
        _restrict(libc)
        _refuse_calls(libc)


def limit_memory(stored_bytes: int, params: ChunkParams, caps: Caps) -> None:
    """Limit this process's memory to what a blob of this size can need within the caps.

    Beyond it a decoder gets none, and Python raises MemoryError. Linux only: macOS does not enforce the limit.
    """
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = _within(hard, memory_bytes(stored_bytes, params, caps))
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))  # to be raised again for a larger one


def memory_bytes(stored_bytes: int, params: ChunkParams, caps: Caps) -> int:
    """The most memory that a worker needs for a blob of this size: its window if it is zstd, and the recipe."""
    chunks = caps.most_chunks_of(caps.most_uncompressed_bytes(stored_bytes), params)
    return BASE_BYTES + caps.zstd_window_bytes + BYTES_A_CHUNK * chunks


def landlock_version() -> int:
    """The version of the kernel's Landlock; 0 if it has none, it is not enabled, or the question is not permitted."""
    if sys.platform != "linux":
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_CREATE_RULESET_VERSION)))


def described() -> str:
    """For the log: how far a compromised worker could get."""
    version = landlock_version()
    if version:
        return f"each can open no file (Landlock {version})"
    if _filters_calls():
        return "each can open no file (by a filter of system calls alone: there is no Landlock here)"
    return "nothing keeps them from opening files: there is no Landlock here, and no filter of system calls"


def _within(hard: int, most: int) -> int:
    return most if hard == resource.RLIM_INFINITY else min(most, hard)


def _stderr_is_a_file() -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISREG(os.fstat(2).st_mode)
    return False


def _call(libc: ctypes.CDLL, name: str, *arguments: object, but: int = 0) -> int:
    """The result of a C function that returns -1 and sets errno on failure, which is raised unless it is `but`."""
    result = int(getattr(libc, name)(*arguments))
    if result < 0 and ctypes.get_errno() != but:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Give up root's capabilities, or a unit's. An open descriptor stays readable without them."""
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    held = ctypes.create_string_buffer(24)
    _call(libc, "capget", header, held)
    if any(held.raw):  # under the unit there are none, and the call is refused
        _call(libc, "capset", header, bytes(24))


def _restrict(libc: ctypes.CDLL) -> None:
    """Refuse by Landlock all that it can refuse. No path is excepted, so an exception can't be wrong."""
    version = landlock_version()
    if not version:
        return
    refused = [
        sum(bits for known_from, bits in table.items() if known_from <= version)
        for table in (FILE_ACCESSES, TCP_ACCESSES, SCOPES)
    ]
    attributes = struct.pack("=3Q", *refused)
    ruleset = _call(libc, "syscall", LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    _call(libc, "syscall", LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _filters_calls() -> bool:
    """Whether the numbers of this machine's calls are known, and its kernel can filter them."""
    if sys.platform != "linux" or os.uname().machine not in MACHINE_CALLS or struct.calcsize("P") != 8:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    # Without a filter this can't succeed. A kernel with filters finds it missing; another finds the mode invalid.
    return libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, None, 0, 0) < 0 and ctypes.get_errno() == errno.EFAULT


def _refuse_calls(libc: ctypes.CDLL) -> None:
    """Refuse to open anything, even without Landlock, and to make a socket of any kind, because Landlock covers TCP
    only, and neither UDP nor Unix sockets.
    """
    if not _filters_calls():
        return
    architecture, *refused = MACHINE_CALLS[os.uname().machine]
    tests = [(IF_AT_LEAST, X32_CALLS), *((IF_EQUAL, call) for call in (*REFUSED_CALLS, *refused))]
    # A jump skips this many instructions: to the last one, which refuses. The one before it permits.
    program = [(LOAD, 0, 0, ARCHITECTURE_AT), (IF_EQUAL, 0, len(tests) + 2, architecture), (LOAD, 0, 0, CALL_AT)]
    program += [(code, len(tests) - at, 0, call) for at, (code, call) in enumerate(tests)]
    program += [(RETURN, 0, 0, SECCOMP_ALLOW), (RETURN, 0, 0, SECCOMP_REFUSE)]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in program))
    what = struct.pack("@HP", len(program), ctypes.addressof(packed))
    _call(libc, "prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, what, 0, 0)
