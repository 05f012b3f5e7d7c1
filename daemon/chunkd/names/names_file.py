"""A file of names that the user makes with a registry's own tools, where a registry keeps none on disk."""

from __future__ import annotations

import os
import stat

from chunkd.model import digest_of
from chunkd.names.name import Part, Rows, named

MOST_BYTES = 64 << 20
_LINE_BYTES = 4096


def read_names_file(path: str) -> Part:
    """The names in a file of lines `reference<TAB>digest`; empty lines and those that begin with # are passed over.
    Any other line is left out, and counted.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
                return Part("names file", path, None, f"not a regular file, or larger than {MOST_BYTES} bytes")
            rows, read_bytes, is_rest = Rows(), 0, False
            while (line := file.readline(_LINE_BYTES)) and read_bytes < MOST_BYTES:
                read_bytes += len(line)
                if not is_rest:
                    _add(line, rows)
                is_rest = not line.endswith(b"\n")
    except OSError as error:
        return Part("names file", path, None, str(error.strerror))
    return rows.part("names file", path, max(0, status.st_mtime_ns))


def _add(line: bytes, rows: Rows) -> None:
    text = line.decode(errors="surrogateescape").rstrip("\r\n")
    if not text or text.startswith("#"):
        return
    reference, _, name = text.partition("\t")
    digest = digest_of(name.strip())
    if digest is None or not reference:
        rows.leave_out("a line that is not `reference<TAB>digest`")
    else:
        rows.add(named(reference, "", digest))
