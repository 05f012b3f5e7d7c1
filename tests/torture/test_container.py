"""The container image: buildah builds it on a base of this machine's Debian packages, and runc, which buildah runs too,
starts it as Kubernetes and OpenShift do: any user, no capability, no way to write but to the state's volume.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from answering import short_directory
from blobs import gz, layer, write_blob, zst
from chunkd import __version__
from chunkd.client import http
from chunkd.errors import NoDaemon, SocketUnusable
from conftest import Tell
from daemon import PATIENCE_S, REPOSITORY, Home, figures, opened, until
from debian_base import make_base
from test_writers import need

BUILD_S = 500.0
# What Kubernetes puts into each pod of a namespace with Services named chunkd and chunkd-metrics.
INJECTED = {
    "CHUNKD_SERVICE_HOST": "10.96.0.7",
    "CHUNKD_SERVICE_PORT": "9464",
    "CHUNKD_SERVICE_PORT_METRICS": "9464",
    "CHUNKD_PORT": "tcp://10.96.0.7:9464",
    "CHUNKD_PORT_9464_TCP": "tcp://10.96.0.7:9464",
    "CHUNKD_PORT_9464_TCP_PROTO": "tcp",
    "CHUNKD_PORT_9464_TCP_PORT": "9464",
    "CHUNKD_PORT_9464_TCP_ADDR": "10.96.0.7",
    "CHUNKD_METRICS_SERVICE_HOST": "10.96.0.8",
    "CHUNKD_METRICS_PORT": "tcp://10.96.0.8:9464",
}
SCRAPE = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9464/metrics').read().decode())"


class Case(NamedTuple):
    """Who runs it, and the words before its command."""

    user: str
    under: tuple[str, ...] = ()
    # The rights of the state's folder, which root owns; None for those that a volume has from the image.
    state_mode: int | None = None


CASES = [
    Case("65532:0"),  # as the image says
    Case("1000660000:0", ("env", "-u", "HOME")),  # OpenShift's; runc itself sets a HOME
    Case("12345:12345"),
    Case("0:0", state_mode=0o755),  # contrib/kubernetes/containerd: root without a capability
]


@pytest.fixture
def home() -> Iterator[Home]:
    with short_directory() as root, opened(root, anew=True) as found:
        yield found


def run(*words: object, timeout_s: float = PATIENCE_S) -> str:
    done = subprocess.run(
        [*map(str, words)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"{words}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def fetch_wheels(folder: Path) -> None:
    """What the image needs of the package index, for Debian's Python, by its own pip."""
    (pip,) = Path("/usr/share/python-wheels").glob("pip-*.whl")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    needed = project["project"]["dependencies"] + project["build-system"]["requires"]
    run("/usr/bin/python3", pip / "pip", "download", "--quiet", "--only-binary=:all:", "--dest", folder, *needed,
        timeout_s=BUILD_S)  # fmt: skip


@contextlib.contextmanager
def built(home: Home) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The image's root file system and its config."""
    buildah = ("buildah", "--root", home.root / "storage", "--runroot", home.root / "run")
    build = (*buildah, "build", "--isolation", "chroot", "--layers=false", "--pull-never", "--format", "docker")
    base, wheels = home.cache("base"), home.cache("wheels")
    make_base(base / "base.tar")
    (base / "Containerfile").write_text("FROM scratch\nADD base.tar /\n")
    run(*build, "--tag", "localhost/base", base, timeout_s=BUILD_S)
    shutil.rmtree(base)
    fetch_wheels(wheels)
    arguments = {"BASE": "localhost/base", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", "REVISION": "abc"}
    flags = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    run(*build, *flags, "--volume", f"{wheels}:/wheels:ro", "--tag", "localhost/chunkd", REPOSITORY, timeout_s=BUILD_S)
    inspected = json.loads(run(*buildah, "inspect", "--type", "image", "localhost/chunkd"))
    container = run(*buildah, "from", "--pull-never", "localhost/chunkd").strip()
    try:
        yield Path(run(*buildah, "mount", container).strip()), inspected["Docker"]["config"]
    finally:
        run(*buildah, "rm", "--all")
        run(*buildah, "rmi", "--all", "--force")


def bundle(folder: Path, root: Path, config: Mapping[str, Any], case: Case, mounts: Mapping[str, str]) -> None:
    """The runtime's settings: the image's command, nothing that can be written but what is mounted so."""
    folder.mkdir()
    run("runc", "spec", "--bundle", folder)
    spec = json.loads((folder / "config.json").read_text())
    user, group = map(int, case.user.split(":"))
    spec["root"] = {"path": str(root), "readonly": True}
    spec["mounts"] += [
        {
            "destination": inside,
            "source": outside,
            "type": "bind",
            "options": ["bind", "rw" if inside != "/cache" else "ro"],
        }
        for inside, outside in mounts.items()
    ]
    more = INJECTED | {"CHUNKD_METRICS_ADDRESS": "0.0.0.0:9464", "CHUNKD_NICE": "0", "CHUNKD_IO_PRIORITY": "normal"}
    spec["process"] |= {
        "terminal": False,
        "user": {"uid": user, "gid": group},
        "args": [*case.under, *config["Entrypoint"], *config["Cmd"]],
        "env": [*config["Env"], *(f"{name}={value}" for name, value in more.items())],
        "cwd": "/",
        "capabilities": {},
        "noNewPrivileges": True,
    }
    (folder / "config.json").write_text(json.dumps(spec))


def exits(runc: Sequence[str], name: str, *words: str) -> int:
    return subprocess.run([*runc, "exec", name, *words], capture_output=True, timeout=PATIENCE_S).returncode


@pytest.mark.long(75)
def test_the_image(home: Home, tell: Tell) -> None:
    need("buildah", "runc", "apt-cache", "dpkg-query")
    with built(home) as (root, config):
        assert (config["StopSignal"], config["User"]) == ("SIGTERM", "65532:0")
        assert config["Volumes"] == {"/var/lib/chunkd": {}}
        labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}
        assert (labels["version"], labels["revision"]) == (__version__, "abc")
        assert not list((root / "opt/chunkd/bin").glob("pip*"))
        for number, case in enumerate(CASES):
            runs_as(home, root, config, case, number)
    tell(f"the image is built, and runs as {', '.join(case.user for case in CASES)}")


def runs_as(home: Home, root: Path, config: Mapping[str, Any], case: Case, number: int) -> None:
    cache, state = home.cache(f"cache{number}"), home.cache(f"state{number}")
    shut = cache / "shut"
    for seed in range(3):
        write_blob(cache, (gz if seed else zst)(layer(seed)))
    mode = (root / "var/lib/chunkd").stat().st_mode if case.state_mode is None else case.state_mode
    state.chmod(mode & 0o7777)
    if case.user == "0:0":  # the owner alone may read: that root can read everything is a capability
        for path in cache.iterdir():
            path.chmod(0o400)
        cache.chmod(0o700)
    bundle(home.root / f"bundle{number}", root, config, case, {"/cache": str(cache), "/var/lib/chunkd": str(state)})
    runc, name = ("runc", "--root", str(home.root / "runc")), f"chunkd-{os.getpid()}-{number}"
    log_path = home.root / f"container{number}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*runc, "run", "--bundle", str(home.root / f"bundle{number}"), name],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    socket = str(state / "chunkd.sock")

    def settled() -> dict[str, Any]:
        assert process.poll() is None, log_path.read_text()
        with contextlib.suppress(NoDaemon, SocketUnusable):
            return http.ask(socket, "GET", "/v1/stats")
        return {"settled": False}

    probe = config["Healthcheck"]["Test"][1:]
    try:
        stats = until(settled, lambda stats: stats["settled"] and stats["scans"], f"settled as {case.user}")
        assert (figures(stats), stats["layers"]) == (home.fresh(cache), 3)
        assert exits(runc, name, *probe) == 0
        assert "chunkd_layers 3" in run(*runc, "exec", name, "/opt/chunkd/bin/python3", "-c", SCRAPE)
        if case.user != "0:0":
            shut.mkdir(mode=0)
            http.ask(socket, "POST", "/v1/scan", {})
            until(lambda: exits(runc, name, "chunkd", "health"), lambda code: code == 6, "degraded")
            assert exits(runc, name, *probe) == 0
        run(*runc, "kill", name, config["StopSignal"])
        assert process.wait(PATIENCE_S) == 0
        said = log_path.read_text()
        assert "warning: environment" not in said
        assert "Traceback" not in said
    finally:
        if process.poll() is None:
            run(*runc, "kill", name, "KILL")
            process.wait(PATIENCE_S)
