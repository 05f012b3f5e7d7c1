"""Which file system a cache lies on, and whether its events can be trusted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from chunkd.urls import OBJECT_STORES

# Only this host writes to these, so that each change gives an event. On any other, known or not, another host may.
_LOCAL = re.compile(
    r"ext[234]|xfs|btrfs|zfs|f2fs|jfs|nilfs2|reiserfs|reiser4|bcachefs|ubifs|jffs2|tmpfs|ramfs|rootfs|overlay|aufs|ecryptfs"
    r"|squashfs|erofs|cramfs|romfs|iso9660|udf|v?fat|msdos|exfat|ntfs3?|fuseblk|apfs|hfs(plus)?|ufs"
)


def polled_because(path: str) -> str | None:
    """Why this cache must be polled; None if events come."""
    if path.startswith(OBJECT_STORES):
        return "object storage gives no events"
    kind = file_system(path)
    return f"events do not come from {kind}" if kind and not _LOCAL.fullmatch(kind) else None


def file_system(path: str) -> str:
    """The type of the file system that holds `path`, `""` when the platform does not tell."""
    table = _linux_mounts() if sys.platform == "linux" else _bsd_mounts()
    real = Path(path).resolve()
    held = [(len(point.parts), order, kind) for order, (point, kind) in enumerate(table) if real.is_relative_to(point)]
    # The deepest mount point holds it; of two at one point, the later hides the earlier.
    return max(held)[2] if held else ""


def _linux_mounts() -> list[tuple[Path, str]]:
    mounts = []
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return []  # a chroot without /proc
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields.split(" ")[4])
        mounts.append((Path(point), rest.split(" ")[0]))
    return mounts


def _bsd_mounts() -> list[tuple[Path, str]]:
    listed = subprocess.run(["/sbin/mount"], capture_output=True, check=True, timeout=10)
    lines = os.fsdecode(listed.stdout).splitlines()
    found = [re.fullmatch(r".+? on (.+) \((\w+)[,)].*", line) for line in lines]
    return [(Path(match[1]), match[2]) for match in found if match]
