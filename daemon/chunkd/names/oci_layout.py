"""The names in an OCI layout's index.json; zot has one for each repository."""

from __future__ import annotations

from typing import Any

from chunkd import untrusted_json
from chunkd.model import digest_of
from chunkd.names.name import Part, Rows, named
from chunkd.sources.layouts import INDEX
from chunkd.sources.source import Beside

# Some 30,000 rows of the usual length.
MOST_BYTES = 8 << 20
# containerd writes the whole reference, others a tag, or whatever their user said.
_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


def read_layout(root: Beside, folder: str, repository: str) -> Part:
    """The names in the index.json of a layout's folder below the root. A name that is only a tag is one of
    `repository`.

    Some writers rewrite the file in place, so an empty or broken one has no names for now: `Part.names` is None.
    """
    try:
        content, at_ns = root.read_small(f"{folder}/{INDEX}" if folder else INDEX, MOST_BYTES)
        document = untrusted_json.parse(content, MOST_BYTES)
    except OSError as error:
        return Part("layout", folder, None, f"{INDEX}: {error.strerror}")
    except untrusted_json.BadJson as error:
        return Part("layout", folder, None, f"{INDEX}: {error}")
    manifests = document.get("manifests") if isinstance(document, dict) else 0
    if not isinstance(manifests, list | None):
        return Part("layout", folder, None, f"{INDEX}: not an index")
    rows = Rows()
    for row in manifests or ():
        digest = digest_of(row.get("digest")) if isinstance(row, dict) else None
        if digest is None:
            rows.leave_out("a row without a digest")
        else:
            rows.add(named(_text(row), repository, digest))
    return rows.part("layout", folder, at_ns)


def _text(row: dict[str, Any]) -> str:
    annotations = row.get("annotations")
    said = [annotations.get(key) for key in _ANNOTATIONS] if isinstance(annotations, dict) else []
    return next((text for text in said if isinstance(text, str) and text), "")
