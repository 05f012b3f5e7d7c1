"""Starts a command behind the walls of systemd/chunkd.service, as far as they can be put up without systemd.

    python tests/walled.py UNIT WRITABLE -- COMMAND ...

As root, in namespaces of its own: every mount is read-only but for the folder WRITABLE and /proc, which shows nothing
but processes, no network, no capability, no new privileges, no memory that is written and executed (where the kernel
has that), and of the system calls those that the unit's SystemCallFilter= lets through; others fail with EPERM.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)

# <linux/mount.h>, <linux/prctl.h>, <linux/filter.h>, <linux/seccomp.h>
MS_REC_PRIVATE, MS_BIND, MS_NOSUID_NODEV_NOEXEC = 1 << 14 | 1 << 18, 1 << 12, 2 | 4 | 8
SYS_MOUNT_SETATTR, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, 0x8000, 1
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_MDWE, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 24, 38, 65, 22, 2
LOAD_NUMBER, JUMP_UNLESS_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL_WITH_EPERM = 0x7FFF0000, 0x00050001


def call(name: str, *arguments: object, may_fail: bool = False) -> None:
    if getattr(LIBC, name)(*arguments) < 0 and not may_fail:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}{arguments}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    texts = [text.encode() or None for text in (source, target, kind, data)]
    call("mount", *texts[:3], ctypes.c_ulong(flags), texts[3])


def allowed_calls(unit: str) -> set[str]:
    """The names of the system calls that a unit's filter lets through, by systemd's own lists."""
    allowed: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE):
        names = {name for word in line.removeprefix("~").split() for name in expanded(word)}
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed


def expanded(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", word], check=True, capture_output=True, text=True
    ).stdout.splitlines()[1:]
    words = [line.strip() for line in listed if line.strip() and not line.strip().startswith("#")]
    return {name for inner in words for name in expanded(inner)}


def call_numbers() -> dict[str, int]:
    """Of this machine, from the kernel's header."""
    source = subprocess.run(
        ["gcc", "-E", "-dM", "-include", "asm/unistd.h", "-"], check=True, capture_output=True, text=True, input=""
    ).stdout
    return {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)$", source, re.MULTILINE)}


def filter_calls(allowed: set[str]) -> None:
    """seccomp(2) by a list: each allowed number is compared with in turn."""
    numbers = call_numbers()
    program = [(LOAD_NUMBER, 0, 0, 0)]
    for number in sorted(numbers[name] for name in allowed & numbers.keys()):
        program += [(JUMP_UNLESS_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    program.append((RETURN, 0, 0, FAIL_WITH_EPERM))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    described = struct.pack("@HP", len(program), ctypes.addressof(code))
    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, described, 0, 0)


def main() -> None:
    unit, writable, dashes, *command = sys.argv[1:]
    assert dashes == "--"
    allowed = allowed_calls(Path(unit).read_text())
    call("unshare", 0x00020000 | 0x40000000 | 0x08000000)  # CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWIPC
    mount("none", "/", flags=MS_REC_PRIVATE)
    mount(writable, writable, flags=MS_BIND)
    mount("proc", "/proc", "proc", MS_NOSUID_NODEV_NOEXEC, "subset=pid,hidepid=invisible")
    for path, read_only, flags in (("/", True, AT_RECURSIVE), (writable, False, 0), ("/proc", False, 0)):
        to_set, to_clear = (MOUNT_ATTR_RDONLY, 0) if read_only else (0, MOUNT_ATTR_RDONLY)
        attributes = struct.pack("=4Q", to_set, to_clear, 0, 0)
        call("syscall", SYS_MOUNT_SETATTR, -100, path.encode(), flags, attributes, ctypes.c_size_t(len(attributes)))
    for capability in range(64):
        call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0, may_fail=True)  # there are not so many
    call("capset", struct.pack("=Ii", 0x20080522, 0), bytes(24))
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", PR_SET_MDWE, 1, 0, 0, 0, may_fail=True)  # from 6.3 on
    filter_calls(allowed)
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
