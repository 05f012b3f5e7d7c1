"""What an overlay of contrib/kubernetes amounts to: so much of kustomize as these files use, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]
# By these fields kustomize knows the items of Kubernetes' lists; items of other lists are replaced.
MERGE_KEYS = {
    "containers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}
KNOWN = {"apiVersion", "kind", "resources", "components", "patches"}


def documents(path: Path) -> list[Document]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def merged(old: Any, patch: Any, name: str = "") -> Any:
    """A strategic merge: mappings merge by key, lists of MERGE_KEYS by item with the patch's new items first."""
    if isinstance(old, dict) and isinstance(patch, dict):
        return old | {key: merged(old.get(key), value, key) for key, value in patch.items()}
    key = MERGE_KEYS.get(name)
    if isinstance(old, list) and isinstance(patch, list) and key:
        patches = {item[key]: item for item in patch}
        there = {item[key] for item in old}
        new = [item for item in patch if item[key] not in there]
        return new + [merged(item, patches.get(item[key], {})) for item in old]
    return deepcopy(patch)


def kustomized(folder: Path) -> list[Document]:
    """The resources of a kustomization, patched."""
    (kustomization,) = documents(folder / "kustomization.yaml")
    assert kustomization.keys() <= KNOWN, "this part of kustomize is not here"
    found = [document for name in kustomization.get("resources", []) for document in documents(folder / name)]
    for component in kustomization.get("components", []):
        found = patched(found, folder / component)
    return patched(found, folder)


def patched(found: list[Document], folder: Path) -> list[Document]:
    (kustomization,) = documents(folder / "kustomization.yaml")
    for entry in kustomization.get("patches", []):
        (patch,) = documents(folder / entry["path"])
        found = [merge_into(document, patch) if aimed_at(document, patch, entry) else document for document in found]
    return found


def aimed_at(document: Document, patch: Document, entry: Document) -> bool:
    if "target" in entry:
        return re.fullmatch(entry["target"]["kind"], document["kind"]) is not None
    return (document["kind"], document["metadata"]["name"]) == (patch["kind"], patch["metadata"]["name"])


def merge_into(document: Document, patch: Document) -> Document:
    """A patch never changes what a document is."""
    result: Document = merged(document, patch)
    return result | {key: document[key] for key in ("apiVersion", "kind", "metadata")}


def containers(found: list[Document], name: str) -> Iterator[tuple[Document, Document]]:
    """Each container of that name, with its pod's `spec`."""
    for document in found:
        pod = document.get("spec", {}).get("template", {}).get("spec", {})
        for container in pod.get("containers", []):
            if container["name"] == name:
                yield pod, container
