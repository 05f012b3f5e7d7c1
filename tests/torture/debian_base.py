"""Makes a base image of the Debian packages on this machine: a tar of all files of these packages and what they need.

No registry is asked, and no package is fetched: a test of the image needs neither a network nor another distribution.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

# The last has Python.h.
PACKAGES = ("base-files", "coreutils", "dash", "gcc", "libc6-dev", "python3", "python3-venv", "libpython3.11-dev")
# Made by Debian's installer and by no package.
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
# A third of the bytes, which nothing that is built here needs.
LEFT_OUT = ("/usr/share/doc/", "/usr/share/man/", "/usr/share/locale/", "/usr/share/lintian/", "/usr/share/info/")
LEFT_OUT_ENDS = ("/lto1", "lto-dump-12", "python3.11.a", "python3.11-pic.a")


def run(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def files() -> list[str]:
    """Every path of the packages and of all that they depend on."""
    needed = run("apt-cache", "depends", "--recurse", "--important", "--installed", *PACKAGES)
    packages = {line for line in needed if line[0].isalnum()}
    states = run("dpkg-query", "--show", "--showformat=${db:Status-Status} ${binary:Package} ${Package}\n")
    installed = [words[1] for words in map(str.split, states) if words[0] == "installed" and words[2] in packages]
    return sorted({path for path in run("dpkg", "--listfiles", *installed) if path.startswith("/") and path != "/."})


def make_base(target: Path) -> None:
    with tarfile.open(target, "w") as archive:
        for name, aim in LINKS.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, aim
            archive.addfile(link)
        for path in files():
            parts = path.split("/")
            # Packages still have files in /lib, which the link above puts into /usr/lib.
            name = "/usr" + path if parts[1] in LINKS else path
            if parts[1:] == [parts[1]] and parts[1] in LINKS:
                continue
            if os.path.lexists(path) and not path.startswith(LEFT_OUT) and not path.endswith(LEFT_OUT_ENDS):
                archive.add(path, name.lstrip("/"), recursive=False)
