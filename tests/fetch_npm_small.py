"""Fetch the 90 real gzip layers that vectors/npm_small.json pins, into DIR/blobs/sha256 (64 MB).

    python tests/fetch_npm_small.py DIR

They are npm packages as published, fetched with `npm pack`. Nothing gets its name before its bytes were hashed; what is
there already is kept, so that an interrupted fetch goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

VECTORS = Path(__file__).with_name("vectors") / "npm_small.json"
# npm takes many names at once, and a failure costs only its batch.
BATCH_LAYERS = 15
BATCH_TIMEOUT_S = 300


def fetch(names: list[str], wanted: set[str], blobs: Path) -> None:
    """Fetch these packages, and store those whose SHA-256 is wanted. Exits when npm brings something else."""
    # Beside the blobs, so that a rename suffices; not among them.
    with tempfile.TemporaryDirectory(dir=blobs.parent) as folder:
        # npm's chatter is on stderr, and left out unless it fails.
        fetched = subprocess.run(
            ["npm", "pack", "--ignore-scripts", *names],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BATCH_TIMEOUT_S,
        )
        if fetched.returncode:
            sys.exit(f"npm pack failed:\n{fetched.stderr}")
        for file in Path(folder).iterdir():
            sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
            if sha256 not in wanted:
                sys.exit(f"{file.name}: its SHA-256 {sha256} is none that {VECTORS.name} pins")
            file.rename(blobs / sha256)


def main() -> None:
    blobs = Path(sys.argv[1]) / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    layers = json.loads(VECTORS.read_text())["layers"]
    missing = [layer for layer in layers if not (blobs / layer["sha256"]).exists()]
    if missing:
        print(f"fetching {len(missing)} npm packages into {blobs}", flush=True)
    for start in range(0, len(missing), BATCH_LAYERS):
        batch = missing[start : start + BATCH_LAYERS]
        fetch([layer["npm"] for layer in batch], {layer["sha256"] for layer in batch}, blobs)
    absent = [layer["npm"] for layer in layers if not (blobs / layer["sha256"]).exists()]
    if absent:
        sys.exit(f"npm did not bring {', '.join(absent)}")


if __name__ == "__main__":
    main()
