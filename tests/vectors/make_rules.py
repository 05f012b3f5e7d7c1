"""Makes rules.json: where the products themselves cut. Not run by the tests; run it again to add a vector:

    apt-get install casync borgbackup skopeo zstd restic golang-go golang-github-restic-chunker-dev \
        golang-github-containerd-stargz-snapshotter-dev
    pip install pyfastcdc hf_xet typing_extensions
    PYTHONPATH=tests:/usr/lib/python3/dist-packages python3 tests/vectors/make_rules.py

The program or library of each vector is its `made_by`. Some of xet's are the numbers in the tests of xet-core (in its
repository xet_data/src/deduplication/chunking.rs, at 34c0d1e4c49f). For the others hf_xet tells the hash of the file,
which is made of its chunks' hashes and lengths.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from rule_oracle import made

Lengths: TypeAlias = list[int]
Make: TypeAlias = list[Any]  # the name of what makes an input, and the numbers for it
KIB = 1024

GO = {"GOPATH": "/usr/share/gocode", "GO111MODULE": "off"}
RESTIC = """
package main
import ("bytes"; "encoding/json"; "fmt"; "io"; "os"; "strconv"; "github.com/restic/chunker")
func main() {
    data, _ := io.ReadAll(os.Stdin)
    number := func(i int) int { n, _ := strconv.Atoi(os.Args[i]); return n }
    var all [][]uint
    for n := number(4); n <= len(data); n += number(5) {
        c := chunker.NewWithBoundaries(bytes.NewReader(data[:n]), 0x3DA3358B4DC173, uint(number(1)), uint(number(2)))
        c.SetAverageBits(number(3))
        lengths := []uint{}
        for { chunk, err := c.Next(nil); if err != nil { break }; lengths = append(lengths, chunk.Length) }
        all = append(all, lengths)
    }
    text, _ := json.Marshal(all)
    fmt.Println(string(text))
}
"""
ESTARGZ = """
package main
import ("bytes"; "encoding/json"; "fmt"; "io"; "os"; "github.com/containerd/stargz-snapshotter/estargz")
func main() {
    data, _ := io.ReadAll(os.Stdin)
    blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data))))
    if err != nil { panic(err) }
    all, _ := io.ReadAll(blob)
    reader, err := estargz.Open(io.NewSectionReader(bytes.NewReader(all), 0, int64(len(all))))
    if err != nil { panic(err) }
    sizes := []int64{}
    entry, _ := reader.Lookup("file")
    for at := int64(0); at < entry.Size; { chunk, _ := reader.ChunkEntryForOffset("file", at)
        size := chunk.ChunkSize; if size == 0 { size = entry.Size - at }
        sizes = append(sizes, size); at += size }
    text, _ := json.Marshal(sizes)
    fmt.Println(string(text))
}
"""


def output(*command: str | Path, data: bytes = b"", environment: dict[str, str] | None = None) -> bytes:
    return subprocess.run(
        command, input=data, check=True, stdout=subprocess.PIPE, env={**os.environ, **(environment or {})}
    ).stdout


def go(folder: Path, source: str) -> Path:
    (folder / "main.go").write_text(source)
    output("go", "build", "-o", folder / "made", folder / "main.go", environment=GO)
    return folder / "made"


def casync(folder: Path, data: bytes, sizes: tuple[int, int, int]) -> Lengths:
    """From the index that `casync make` writes: 40 bytes a chunk, of which 8 are where it ends."""
    (folder / "data").write_bytes(data)
    chunk_size = f"--chunk-size={':'.join(map(str, sizes))}"
    output("casync", "make", chunk_size, f"--store={folder}/store", folder / "data.caibx", folder / "data")
    index = (folder / "data.caibx").read_bytes()
    ends = [int.from_bytes(index[at : at + 8], "little") for at in range(64, len(index), 40)]
    return [end - begin for begin, end in itertools.pairwise([0, *ends[: ends.index(0)]])]


def borg(data: bytes, least_bits: int, most_bits: int, mask_bits: int, window: int) -> Lengths:
    from borg.chunker import Chunker

    chunker = Chunker(0, least_bits, most_bits, mask_bits, window)
    return [len(chunk.data or bytes(chunk.meta["size"])) for chunk in chunker.chunkify(io.BytesIO(data))]


def fastcdc(data: bytes, sizes: tuple[int, int, int]) -> Lengths:
    from pyfastcdc import FastCDC

    least, mean, most = sizes
    return [chunk.length for chunk in FastCDC(mean, min_size=least, max_size=most).cut_buf(data)]


def hf_xet(folder: Path, data: bytes) -> str:
    from hf_xet import hash_files

    (folder / "file").write_bytes(data)
    (info,) = hash_files([str(folder / "file")])
    return str(info.hash)


def zstd_chunked(folder: Path, data: bytes) -> Lengths:
    """From the table of contents that skopeo puts behind a layer."""

    def blob(content: bytes) -> dict[str, str | int]:
        name = hashlib.sha256(content).hexdigest()
        (folder / "from/blobs/sha256" / name).write_bytes(content)
        return {"digest": f"sha256:{name}", "size": len(content)}

    (folder / "from/blobs/sha256").mkdir(parents=True)
    kind = "application/vnd.oci.image"
    layer = {"mediaType": f"{kind}.layer.v1.tar", **blob(one_file(data))}
    config = json.dumps({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}).encode()
    manifest = {"schemaVersion": 2, "config": {"mediaType": f"{kind}.config.v1+json", **blob(config)}}
    named = {"mediaType": f"{kind}.manifest.v1+json", **blob(json.dumps({**manifest, "layers": [layer]}).encode())}
    (folder / "from/index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (folder / "from/oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    compress = ("--dest-compress", "--dest-compress-format", "zstd:chunked")
    output("skopeo", "copy", "--quiet", "--insecure-policy", *compress, f"oci:{folder}/from", f"oci:{folder}/to")

    def read(digest: str) -> bytes:
        return (folder / "to/blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()

    index = json.loads((folder / "to/index.json").read_text())
    (written,) = json.loads(read(index["manifests"][0]["digest"]))["layers"]
    (position,) = (value for key, value in written["annotations"].items() if key.endswith("manifest-position"))
    begin, size, *_ = map(int, position.split(":"))
    contents = json.loads(output("zstd", "-dc", data=read(written["digest"])[begin : begin + size]))
    chunks = [entry for entry in contents["entries"] if entry["type"] in ("reg", "chunk")]
    signed = [(-1 if chunk.get("chunkType") == "zeros" else 1, chunk) for chunk in chunks]
    return [sign * chunk.get("chunkSize", chunk.get("size", 0)) for sign, chunk in signed]


def one_file(data: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        entry = tarfile.TarInfo("file")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return made.getvalue()


def restic_program(folder: Path, data: bytes) -> tuple[int, Lengths]:
    """The polynomial that `restic init` drew, and the chunks of a backup."""
    (folder / "file").write_bytes(data)
    secret = {"RESTIC_REPOSITORY": f"{folder}/repository", "RESTIC_PASSWORD": "made for this vector"}
    output("restic", "init", environment=secret)
    output("restic", "backup", "--quiet", folder / "file", environment=secret)
    polynomial = int(json.loads(output("restic", "cat", "config", environment=secret))["chunker_polynomial"], 16)
    (listed,) = json.loads(output("restic", "find", "--json", "file", environment=secret))[0]["matches"]
    tree = json.loads(output("restic", "snapshots", "--json", environment=secret))[0]["tree"]
    while True:
        nodes = {
            node["name"]: node
            for node in json.loads(output("restic", "cat", "blob", tree, environment=secret))["nodes"]
        }
        if "file" in nodes and nodes["file"]["type"] == "file":
            break
        (node,) = nodes.values()
        tree = node["subtree"]
    assert listed["size"] == len(data)
    return polynomial, [
        len(output("restic", "cat", "blob", name, environment=secret)) for name in nodes["file"]["content"]
    ]


def prefixes(make: Make, first: int, step: int) -> Iterator[bytes]:
    data = made(make)
    return (data[:end] for end in range(first, len(data) + 1, step))


XET_HITS = {
    0: [8256, 16448, 24640, 32832, 41024, 49216, 57408, 65536],
    1: [8320, 16576, 24832, 33088, 41344, 49600, 57856, 65536],
    10: [8206, 16486, 24766, 33046, 41326, 49606, 57886, 65536],
    12: [8324, 16584, 24844, 33104, 41364, 49624, 57884, 65536],
    17: [8329, 16594, 24859, 33124, 41389, 49654, 57919, 65536],
    24: [8272, 16480, 24688, 32896, 41104, 49312, 57520, 65536],
    29: [8228, 16549, 24870, 33191, 41512, 49833, 58154, 65536],
    45: [8195, 16499, 24803, 33107, 41411, 49715, 58019, 65536],
    53: [8209, 16535, 24861, 33187, 41513, 49839, 58165, 65536],
    61: [8380, 16696, 25012, 33328, 41644, 49960, 58276, 65536],
    75: [8387, 16710, 25033, 33356, 41679, 50002, 58325, 65536],
    78: [8304, 16544, 24784, 33024, 41264, 49504, 57744, 65536],
}
XET_RANDOM = [
    *(84493, 134421, 144853, 243318, 271793, 336457, 467529, 494581, 582000, 596735, 616815, 653164, 678202),
    *(724510, 815591, 827760, 958832, 991092, 1000000),
]
XET_BYTE = [131072, 262144, 393216, 524288, 655360, 786432, 917504, 1000000]


class Vectors:
    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def add(self, rule: str, made_by: str, parameters: list[int], make: Make, lengths: Lengths) -> None:
        data = made(make)
        assert sum(map(abs, lengths)) == len(data), (rule, make)
        vector: dict[str, Any] = {"rule": rule, "parameters": parameters, "input": make, "made_by": made_by}
        vector["input_sha256"] = hashlib.sha256(data).hexdigest()
        vector["chunks"] = len(lengths)
        vector["lengths_sha256"] = hashlib.sha256(json.dumps(lengths).encode()).hexdigest()
        if len(lengths) <= 40:
            vector["lengths"] = lengths
        self.all.append(vector)

    def add_prefixes(
        self,
        rule: str,
        made_by: str,
        parameters: list[int],
        make: Make,
        ends: tuple[int, int],
        all_lengths: list[Lengths],
    ) -> None:
        """What becomes of a file's end: all lengths of the first bytes of the input, for each of many ends."""
        for data, lengths in zip(prefixes(make, *ends), all_lengths, strict=True):
            assert sum(lengths) == len(data), (rule, make)
        digest = hashlib.sha256(json.dumps(all_lengths).encode()).hexdigest()
        vector = {"rule": rule, "parameters": parameters, "input": make, "made_by": made_by, "ends": ends}
        self.all.append({**vector, "files": len(all_lengths), "lengths_sha256": digest})


def in_folder(make: Callable[..., Any], *arguments: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return make(Path(folder), *arguments)


def main() -> None:
    vectors = Vectors()
    by = "casync 2+20201210"
    make: Make
    for make in (["noise", 1, 6 << 20], ["mixed", 2, 20_000], ["tar", 3, 150], ["byte", 0, 1 << 20], ["noise", 4, 17]):
        lengths = in_folder(casync, made(make), (16 * KIB, 64 * KIB, 256 * KIB))
        vectors.add("casync", by, [16 * KIB, 64 * KIB, 256 * KIB], make, lengths)
    for sizes in ((48, 192, 768), (64, 256, 1024), (256, 1000, 3001)):
        for make in (["noise", 5, 200_000], ["mixed", 6, 500]):
            vectors.add("casync", by, list(sizes), make, in_folder(casync, made(make), sizes))
    by = "borgbackup 1.2.4"
    for make in (["noise", 1, 40 << 20], ["mixed", 2, 100_000], ["byte", 0, 20 << 20], ["tar", 3, 400]):
        vectors.add("borg", by, [19, 23, 21, 4095], make, borg(made(make), 19, 23, 21, 4095))
    for size in ((1 << 19) + 4095, (1 << 19) + 4096, 1 << 23, (1 << 23) + 1):
        make = ["noise", 2, size]
        vectors.add("borg", by, [19, 23, 21, 4095], make, borg(made(make), 19, 23, 21, 4095))
    for parameters in ([8, 12, 10, 63], [6, 10, 6, 31], [9, 14, 9, 33]):
        make = ["mixed", 7, 500]
        vectors.add("borg", by, parameters, make, borg(made(make), *parameters))
        make = ["noise", 8, 3000]
        vectors.add_prefixes(
            "borg", by, parameters, make, (0, 1), [borg(data, *parameters) for data in prefixes(make, 0, 1)]
        )
    by = "xet-core 34c0d1e4c49f, its tests"
    for padding, ends in XET_HITS.items():
        vectors.add("xet", by, [], ["xet_hits", padding], [b - a for a, b in itertools.pairwise([0, *ends])])
    for make, ends in ((["splitmix64", 0, 1_000_000], XET_RANDOM), (["byte", 59, 1_000_000], XET_BYTE)):
        vectors.add("xet", by, [], make, [b - a for a, b in itertools.pairwise([0, *ends])])
    makes: list[Make] = [["noise", 1, 6 << 20], ["mixed", 2, 20_000], ["tar", 3, 150], ["noise", 22, 40 << 20]]
    for make in (*makes, *(["xet_hits", padding] for padding in range(100, 105)), ["noise", 1, 8192], ["noise", 1, 0]):
        vectors.all.append({"rule": "xet", "parameters": [], "input": make, "made_by": "hf_xet 1.8.0"})
        vectors.all[-1]["file_hash"] = in_folder(hf_xet, made(make))
    by = "skopeo 1.9.3"
    for make in (
        *(["noise", 9, 6 << 20], ["mixed", 10, 1024], ["mixed", 11, 1023], ["mixed", 12, 40_000], ["tar", 3, 60]),
        *(["byte", 0, 1023], ["byte", 0, 1024], ["byte", 0, 1 << 20], ["noise", 13, 100], ["byte", 7, 300_000]),
    ):
        vectors.add("zstd:chunked", by, [], make, in_folder(zstd_chunked, made(make)))
    by = "pyfastcdc 0.3.1"
    for sizes in ((16 * KIB, 64 * KIB, 256 * KIB), (64 * KIB, 256 * KIB, 1024 * KIB), (256, 1024, 4096)):
        for make in (["noise", 1, 6 << 20], ["mixed", 2, 20_000], ["tar", 3, 100], ["byte", 0, 1_000_001]):
            vectors.add("fastcdc", by, list(sizes), make, fastcdc(made(make), sizes))
    make = ["noise", 14, 6000]
    found = [fastcdc(data, (64, 256, 1024)) for data in prefixes(make, 0, 1)]
    vectors.add_prefixes("fastcdc", by, [64, 256, 1024], make, (0, 1), found)

    def with_restic(folder: Path) -> None:
        program = go(folder, RESTIC)
        by = "github.com/restic/chunker 0.4.0"

        def run(make: Make, *numbers: int) -> list[Lengths]:
            found: list[Lengths] = json.loads(output(program, *map(str, numbers), data=made(make)))
            return found

        for make in (["noise", 1, 40 << 20], ["mixed", 2, 100_000], ["byte", 0, 20 << 20]):
            sizes = [512 * KIB, 8192 * KIB, 20]
            vectors.add("restic", by, [0x3DA3358B4DC173, *sizes], make, *run(make, *sizes, len(made(make)), 1))
        for sizes in ([64, 1024, 7], [200, 3000, 9]):
            make = ["mixed", 15, 500]
            vectors.add("restic", by, [0x3DA3358B4DC173, *sizes], make, *run(make, *sizes, len(made(make)), 1))
            make = ["noise", 16, 3000]
            found = run(make, *sizes, 0, 1)
            vectors.add_prefixes("restic", by, [0x3DA3358B4DC173, *sizes], make, (0, 1), found)

    in_folder(with_restic)
    make = ["noise", 17, 30 << 20]
    polynomial, lengths = in_folder(restic_program, made(make))
    vectors.add("restic", "restic 0.14.0", [polynomial, 512 * KIB, 8192 * KIB, 20], make, lengths)

    def with_estargz(folder: Path) -> None:
        program = go(folder, ESTARGZ)
        for size in (1, 4 << 20, (4 << 20) + 1, 9 << 20):
            make: Make = ["noise", 18, size]
            lengths = json.loads(output(program, data=one_file(made(make))))
            vectors.add("estargz", "stargz-snapshotter 0.12.0", [], make, lengths)

    in_folder(with_estargz)
    lines = ",\n".join(json.dumps(vector) for vector in vectors.all)
    (Path(__file__).parent / "rules.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
