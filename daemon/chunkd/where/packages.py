"""Which package a file of a layer belongs to, by the lists that dpkg and apk keep: hostile text, which is only read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

# For all lists of a layer together. Debian's own, with 2,000 packages, have some 15 MiB.
MOST_LIST_BYTES = 32 << 20
MOST_PACKAGES = 65535
MOST_NAME_BYTES = 100

_LIST = re.compile(rb"var/lib/dpkg/info/([^/]+)\.list")
_DISTROLESS_LIST = re.compile(rb"var/lib/dpkg/status\.d/([^/]+)\.md5sums")
_STATUS = re.compile(rb"var/lib/dpkg/status(?:\.d/[^/]+)?")
_INSTALLED = re.compile(rb"(?:usr/)?lib/apk/db/installed")
# Where /bin is a link to usr/bin, as on every current system, dpkg may list a file by either name.
_MERGED = re.compile(rb"usr/(?=(?:bin|sbin|lib(?:32|64|x32)?)/)")


class Package(NamedTuple):
    """`manager` is `dpkg` or `apk`. `version` is `""` where the layer does not say it."""

    manager: str
    name: str
    version: str


def plain_path(path: bytes) -> bytes:
    """As most tars have it: without `./` or `/` in front and `/` behind. Nothing is left of the root."""
    found = path.strip(b"/")
    if found.startswith(b"./"):
        found = found[2:].lstrip(b"/")
    return b"" if found == b"." else found


def listed_path(path: bytes) -> bytes:
    """One name for a file that dpkg may list by two."""
    found = plain_path(path)
    return _MERGED.sub(b"", found, count=1) if found.startswith(b"usr/") else found


def is_list(path: bytes) -> bool:
    """Whether a file is one of those that `owners` wants, by its plain path."""
    if not path.startswith((b"var/lib/dpkg/", b"lib/apk/", b"usr/lib/apk/")):
        return False
    return any(which.fullmatch(path) for which in (_LIST, _DISTROLESS_LIST, _STATUS, _INSTALLED))


def owners(texts: Mapping[bytes, bytes]) -> tuple[list[Package], dict[bytes, int]]:
    """The packages that own a file by these lists, and for each file listed, by `listed_path`, the number of its
    package. Where several list one file, the last one in the order of the lists' paths has it.
    """
    versions: dict[bytes, bytes] = {}
    for path, text in sorted(texts.items()):
        if _STATUS.fullmatch(path) and not _DISTROLESS_LIST.fullmatch(path):
            versions.update(_versions(text))
    packages: dict[Package, int] = {}
    found: dict[bytes, int] = {}
    for path, text in sorted(texts.items()):
        if own := _LIST.fullmatch(path) or _DISTROLESS_LIST.fullmatch(path):
            name = own[1].partition(b":")[0]
            package = _package("dpkg", name, versions.get(name, b""))
            is_sums = path.endswith(b".md5sums")
            files = (line.split(b"  ", 1)[-1] if is_sums else line for line in text.splitlines())
            _add(packages, found, ((package, one) for one in files))
        elif _INSTALLED.fullmatch(path):
            _add(packages, found, _of_apk(text))
    return list(packages), found


def _add(packages: dict[Package, int], found: dict[bytes, int], files: Iterator[tuple[Package, bytes]]) -> None:
    for package, path in files:
        number = packages.get(package)
        if number is None:
            if len(packages) == MOST_PACKAGES:
                return
            number = packages[package] = len(packages)
        if name := listed_path(path):
            found[name] = number


def _versions(status: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Of each paragraph of dpkg's status the package and its version."""
    name = b""
    for line in status.splitlines():
        key, _, value = line.partition(b": ")
        if key == b"Package":
            name = value
        elif key == b"Version" and name:
            yield name, value


def _of_apk(text: bytes) -> Iterator[tuple[Package, bytes]]:
    """Each file of apk's list: `P:` names a package, `V:` its version, `F:` a folder and `R:` a file in it."""
    name = version = folder = b""
    package = _package("apk", b"", b"")
    for line in text.splitlines():
        key, value = line[:2], line[2:]
        if not line:
            name = version = folder = b""
        elif key == b"P:":
            name = value
        elif key == b"V:":
            version = value
        elif key == b"F:":
            folder = value
            package = _package("apk", name, version)
        elif key == b"R:" and name:
            yield package, folder + b"/" + value


def _package(manager: str, name: bytes, version: bytes) -> Package:
    return Package(manager, *(one[:MOST_NAME_BYTES].decode("utf-8", "replace") for one in (name, version)))
