"""`chunkd replay` on the log that docker-registry wrote while skopeo pulled, and on made-up ones, beside a daemon and
without one.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import oracle
from blobs import gz, layer, write_blob
from daemon import PATIENCE_S, Home
from lines import FORMATS, line_of
from pull_oracle import Get, Known, Oracle
from test_replay import like_the_oracle
from test_writers import copy, make_images, need, registry

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

IMAGES = 12
PULLS = 20
CLIENTS = ("192.0.2.1", "192.0.2.2", "2001:db8::3")
LOGGED = "{level: info}"


def known_of(blobs: list[Path]) -> Known:
    """What lies in a registry or in a layout, read without chunkd."""
    known, numbers = Known({}, {}, {}), dict[bytes, int]()
    for path in blobs:
        data = path.read_bytes()
        digest = f"sha256:{(path.parent if path.name == 'data' else path).name}"
        known.sizes[digest] = len(data)
        if data.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
            tree = gzip.decompress(data) if data.startswith(b"\x1f") else zstd.decompress(data)
            known.layers[digest] = []
            for chunk in oracle.chunks(tree):
                name = oracle.chunk_hash(chunk)
                number = numbers.setdefault(name, len(numbers))
                known.layers[digest].append((number, len(chunk)))
                if oracle.is_picked(name):
                    known.measured[number] = oracle.recompressed_bytes(chunk)
    return known


@dataclass
class Proxies:
    """A proxy in front of a registry for each client, which names that client in X-Forwarded-For. It keeps what it
    passed on. Requests go on one connection, one after the other, so that their order is that of the registry's log.
    """

    upstream: str
    ports: dict[str, int] = field(default_factory=dict)
    gets: list[Get] = field(default_factory=list)
    body_bytes: int = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        lock, connection = threading.Lock(), http.client.HTTPConnection(self.upstream, timeout=PATIENCE_S)
        with contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            for client in CLIENTS:
                server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler(client, lock, connection))
                stack.callback(server.server_close)
                thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
                thread.start()
                stack.callback(thread.join, PATIENCE_S)
                stack.callback(server.shutdown)
                self.ports[client] = server.server_port
            yield

    def handler(
        self, client: str, lock: threading.Lock, connection: http.client.HTTPConnection
    ) -> type[BaseHTTPRequestHandler]:
        proxies = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with lock:
                    connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in (*self.headers.items(), ("X-Forwarded-For", f"{client}, 10.0.0.1")):
                        connection.putheader(name, value)
                    connection.endheaders()
                    reply = connection.getresponse()
                    body = reply.read()
                    proxies.note(client, self.command, self.path, reply.status, len(body))
                self.send_response(reply.status)
                for name, value in reply.getheaders():
                    if name.lower() not in ("connection", "date", "transfer-encoding"):
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 - the base class has it so

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def note(self, client: str, method: str, path: str, status: int, body_bytes: int) -> None:
        found = re.fullmatch(r"/v2/(.+)/(?:blobs|manifests)/([^/]+)", path)
        if found and method == "GET" and status == 200:
            self.gets.append(Get("", client, found[1], found[2], body_bytes))
            self.body_bytes += body_bytes


def replay(home: Home, *arguments: str | Path, code: int = 0) -> str:
    done = home.command("replay", *arguments)
    assert done.returncode == code, done.stderr
    return done.stdout


def as_json(home: Home, *arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(replay(home, "--json", *arguments))
    assert found.pop("as_of") is not None
    return found


@pytest.mark.long(15)
def test_skopeo_pulls_from_docker_registry(home: Home) -> None:
    """In a random order, for three clients. The bytes are those that were served, and the columns are the oracle's."""
    need("skopeo", "docker-registry")
    store, draw = home.cache("store"), random.Random(0)
    images = make_images(home, IMAGES)
    with registry(home, store, LOGGED) as (address, _):
        for number, image in enumerate(images):
            copy(home, image, "--dest-tls-verify=false", f"docker://{address}/team/app{number % 3}:v{number}")
        pushed_bytes = (home.root / "registry.log").stat().st_size
        proxies = Proxies(address)
        with proxies.running():
            for number in range(PULLS):
                which, port = draw.randrange(IMAGES), proxies.ports[draw.choice(CLIENTS)]
                done = subprocess.run(
                    [
                        *("skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"),
                        *(f"docker://127.0.0.1:{port}/team/app{which % 3}:v{which}", f"dir:{home.root}/pulled{number}"),
                    ],
                    env=home.environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
                )  # fmt: skip
                assert done.returncode == 0, done.stderr
    log = home.root / "registry.log"
    home.scan(store)
    known = known_of([path for path in store.rglob("data") if path.is_file()])
    found = as_json(home, log)
    day = found["from"][:10]
    if found["to"][:10] != day:
        pytest.skip("a day ended meanwhile")
    expected = Oracle(known, [get._replace(day=day) for get in proxies.gets]).to_json()
    assert found["served"]["bytes"] == proxies.body_bytes > 0
    assert like_the_oracle(found) == expected
    assert found["clients"] == len(CLIENTS)
    assert found["lines"]["pulls"] == found["lines"]["twice"] == len(proxies.gets)
    assert sum(found["lines"]["unread"].values()) == 0
    assert found["not_indexed_bytes"] == 0

    only_access = [line for line in log.read_bytes()[pushed_bytes:].splitlines() if line.startswith(b"127.0.0.1 ")]
    (home.root / "access.log").write_bytes(b"\n".join(only_access))
    by_proxy = as_json(home, home.root / "access.log")
    assert by_proxy["clients"] == 1
    assert by_proxy["served"] == found["served"]
    assert by_proxy["shared_cache"] == found["shared_cache"]
    text = replay(home, log)
    assert "127.0.0.1" not in text
    assert not any(client in text for client in CLIENTS)


def filled(home: Home) -> tuple[Known, list[Get]]:
    cache = home.cache()
    for seed in range(6):
        write_blob(cache, gz(layer(seed)))
    home.scan(cache)
    known, draw = known_of(sorted(cache.iterdir())), random.Random(1)
    references = [*sorted(known.sizes), f"sha256:{'0' * 64}", "v1"]
    return known, [
        Get(f"2026-11-{1 + at // 40:02}", draw.choice(CLIENTS), f"app{at % 3}", draw.choice(references), 1000 + at)
        for at in range(120)
    ]


def test_every_format_beside_a_daemon_and_without_one(home: Home) -> None:
    known, gets = filled(home)
    expected = Oracle(known, gets).to_json()
    found = []
    for form in FORMATS:
        path = home.root / f"{form}.gz"
        path.write_bytes(gz(b"\n".join(line_of(get, form) for get in gets)))
        found.append(as_json(home, path))
    trace = home.root / "trace"
    trace.write_bytes(b"[" + b", ".join(line_of(get, "trace") for get in gets) + b"]")
    home.start(home.cache())
    found.append(as_json(home, trace))
    for reply in found:
        assert like_the_oracle(reply) == expected


def test_several_files_are_one_log(home: Home) -> None:
    known, gets = filled(home)
    paths = [home.root / name for name in ("access.log", "access.log.1", "access.log.2")]
    for path, some in zip(paths, (gets[80:], gets[40:80], gets[:40]), strict=True):
        path.write_bytes(b"\n".join(line_of(get, "combined") for get in some))
    assert like_the_oracle(as_json(home, *paths)) == Oracle(known, gets).to_json()


def test_the_tables(home: Home) -> None:
    _, gets = filled(home)
    gets = [get._replace(repository="evil\u009b2J" if get.repository == "app1" else get.repository) for get in gets]
    junk = [b"junk", b"\x1b[2J", b"x" * 100_000]
    log = home.root / "access.log"
    log.write_bytes(b"\n".join([*junk, *(line_of(get, "combined") for get in gets)]))
    text = replay(home, log)
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert sum(line.startswith("total ") for line in text.splitlines()) == 2
    assert {line.split()[0] for line in text.splitlines() if line.startswith("2026-")} == {
        "2026-11-01", "2026-11-02", "2026-11-03",
    }  # fmt: skip
    log.write_bytes(b"\n".join(junk))
    assert "No pull was read" in replay(home, log)


def test_what_can_not_be_read(home: Home) -> None:
    assert home.command("replay").returncode == 2
    (home.root / "log").touch()
    assert home.command("replay", home.root / "log").returncode == 3
    filled(home)
    assert home.command("replay", home.root / "absent").returncode == 1
    (home.root / "log").write_bytes(gz(b"x" * 1000)[:-5])
    assert home.command("replay", home.root / "log").returncode == 1
