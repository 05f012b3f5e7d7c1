"""`/metrics`: what is exposed, that Prometheus' own tool finds it clean, and what contrib/ asks for is there."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from answering import PATIENCE_S, FakeAnswers, exchange, running, short_directory
from blobs import gz, layer, write_blob
from chunkd.api import routes
from chunkd.api.server import Endpoint
from chunkd.api.unix_socket import TcpListener
from chunkd.errors import SettingInvalid, SocketUnusable
from chunkd.figures.names import METRICS
from chunkd.figures.stats import Stats
from chunkd.figures.totals import Totals
from chunkd.ingest.counters import DELAYS_S, FAILURES, Counters
from chunkd.model import CacheState, Caps, ChunkParams
from chunkd.service import openmetrics
from chunkd.settings.table import SETTINGS, checked
from daemon import REPOSITORY, Home, until
from ports import free_port

OPENMETRICS = "application/openmetrics-text; version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
CACHES = (CacheState("/a", (), "watched"), CacheState('/"b\\\n\udc80', (), "stale", "gone"))
# Half of the measured chunks of 10,000 bytes take 3,000, and half 5,000: no figure is null.
MEASURED = (40, 400_000, 160_000, 4_000_000_000, 1_600_000_000, 680_000_000)
TOTALS = Totals(8, 3, 64_200_000, 64_172_313, 222_298_112, 13_201, 11_000, 188_953_395, 2, 99, *MEASURED)
READ = 6, 1234
AS_OF = "2026-01-02T03:04:05.500Z"


def stats(totals: Totals = TOTALS) -> dict[str, Any]:
    found = Stats(totals, 5, 77, AS_OF, None, True, 4096, ChunkParams(), Caps(), CACHES, unlisted_folders=3).to_json()
    return found | {"scanning": False, "scans": 4, "settled": False}


def counts() -> Counters:
    found = Counters(since_ns=10**18)
    found.failures["mismatched"] += 3
    return found


def samples(
    accept: str = OPENMETRICS, totals: Totals = TOTALS, counted: Counters | None = None
) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    content_type, content = openmetrics.exposed(stats(totals), 2, counted or counts(), READ, accept)
    parse = parse_openmetrics if content_type.startswith("application/openmetrics-text") else parse_text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(content.decode())
        for sample in family.samples
    }


def test_every_figure_has_its_metric() -> None:
    found = samples()
    whole = stats()
    for name, (metric, _) in METRICS.items():
        assert found[f"chunkd_{metric}", ()] == pytest.approx(whole[name])
    assert found["chunkd_net_ratio", ()] == pytest.approx(-0.193, abs=0.001)
    assert {name for name, value in whole.items() if type(value) in (int, float)} - set(METRICS) == {
        "scans",
        "mean_chunk_bytes",
    }


def test_what_else_is_exposed() -> None:
    found = samples()
    assert found["chunkd_committed_timestamp_seconds", ()] == 1767323045.5
    assert ("chunkd_scanned_timestamp_seconds", ()) not in found  # never
    assert (found["chunkd_watching", ()], found["chunkd_settled", ()]) == (1, 0)
    assert (found["chunkd_problems", ()], found["chunkd_scans_total", ()]) == (2, 4)
    assert (found["chunkd_read_blobs_total", ()], found["chunkd_read_bytes_total", ()]) == READ
    assert {labels[0][1]: value for (name, labels), value in found.items() if name == "chunkd_failures_total"} == {
        reason: 3 if reason == "mismatched" else 0 for reason in FAILURES
    }
    states = {labels: value for (name, labels), value in found.items() if name == "chunkd_cache_state"}
    assert len(states) == 2 * len(openmetrics.CACHE_STATES)
    assert [dict(labels) for labels, value in states.items() if value] == [
        {"cache": "/a", "state": "watched"},
        {"cache": '/"b\\\n\\udc80', "state": "stale"},
    ]
    assert [dict(labels)["version"] for (name, labels) in found if name == "chunkd_build_info"]


IMAGES = {
    "as_of": AS_OF, "names_as_of": None, "images": 42, "names": 61, "partial_images": 3, "unreached_blobs": 12,
    "unreached_bytes": 12_345,
}  # fmt: skip


def test_images_and_repositories_are_exposed_once_they_are_known() -> None:
    rows = [
        {"repository": name, "stored": {"fair_share_bytes": 700, "exclusive_bytes": 500}, "chunks": chunks}
        for name, chunks in (("shop/\udc80", {"fair_share_bytes": 900}), ("partial", None))
    ]
    whole = stats() | {"images": IMAGES}
    content = openmetrics.exposed(whole, 0, counts(), READ, OPENMETRICS, rows)[1].decode()
    found = {
        (sample.name, sample.labels.get("repository")): sample.value
        for family in parse_openmetrics(content)
        for sample in family.samples
    }
    assert found["chunkd_images", None] == 42
    assert found["chunkd_image_names", None] == 61
    assert found["chunkd_partial_images", None] == 3
    assert found["chunkd_unreached_blobs", None] == 12
    assert found["chunkd_unreached_bytes", None] == 12_345
    assert found["chunkd_images_computed_timestamp_seconds", None] == 1767323045.5
    assert {key: value for key, value in found.items() if key[1]} == {
        ("chunkd_repository_fair_share_bytes", "shop/\\udc80"): 700,
        ("chunkd_repository_fair_share_bytes", "partial"): 700,
        ("chunkd_repository_exclusive_bytes", "shop/\\udc80"): 500,
        ("chunkd_repository_exclusive_bytes", "partial"): 500,
        ("chunkd_repository_chunk_fair_share_bytes", "shop/\\udc80"): 900,
    }
    assert not [name for name, _ in samples() if "image" in name or "unreached" in name]


def test_a_figure_that_is_null_has_no_sample() -> None:
    names = {(f"chunkd_{name}_ratio", ()) for name in ("redundancy", "net", "break_even_unique")}
    assert names <= samples().keys()
    empty = samples(totals=Totals())
    assert not names & empty.keys()
    assert empty["chunkd_layers", ()] == 0


def test_both_formats_say_the_same() -> None:
    def without_created(found: dict[Any, float]) -> dict[Any, float]:
        return {key: value for key, value in found.items() if not key[0].endswith("_created")}

    assert without_created(samples("text/plain")) == without_created(samples(OPENMETRICS))
    for accept in ("", "*/*", "text/html", "\x00\xff,;q=x"):
        assert openmetrics.exposed(stats(), 0, counts(), READ, accept)[0] == "text/plain; version=0.0.4; charset=utf-8"
    content_type, content = openmetrics.exposed(stats(), 0, counts(), READ, OPENMETRICS)
    assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert content.endswith(b"# EOF\n")


def test_the_unit_is_the_last_word() -> None:
    for family in parse_openmetrics(openmetrics.exposed(stats(), 0, counts(), READ, OPENMETRICS)[1].decode()):
        last = family.name.rpartition("_")[2]
        assert family.unit == (last if last in ("bytes", "seconds", "ratio") else ""), family.name
        assert family.documentation.endswith("."), family.name


def test_delays_fall_into_their_buckets() -> None:
    counted = counts()
    for delay_s in (0.0, 0.05, 0.051, 7200.0, 7201.0):
        counted.landed(10**18, 10**9 + delay_s)
    counted.landed(10**18 + 5 * 10**9, 10**9)  # by a clock that is ahead
    counted.landed(10**18 - 1, 10**9)  # before the daemon started
    found = samples(counted=counted)
    buckets = {
        float(dict(labels)["le"]): value
        for (name, labels), value in found.items()
        if name == "chunkd_landing_seconds_bucket"
    }
    assert list(buckets) == [*DELAYS_S, float("inf")]
    assert (buckets[0.05], buckets[0.1], buckets[1800.0], buckets[7200.0], buckets[float("inf")]) == (3, 4, 4, 5, 6)
    assert found["chunkd_landing_seconds_count", ()] == 6
    assert found["chunkd_landing_seconds_sum", ()] == pytest.approx(0.05 + 0.051 + 7200 + 7201, abs=1e-5)


# --- Prometheus' own tool, and contrib/ ---------------------------------------------------------------------------

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (prometheus) is not on this machine")
DASHBOARD = json.loads((REPOSITORY / "contrib" / "grafana-dashboard.json").read_text())
ALERTS = REPOSITORY / "contrib" / "prometheus-alerts.yml"


def promtool(*arguments: object, stdin: bytes = b"") -> str:
    done = subprocess.run(["promtool", *map(str, arguments)], input=stdin, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return (done.stdout + done.stderr).decode()


def queries() -> list[str]:
    """What the dashboard asks, with Grafana's variables filled in."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [query.replace("$__rate_interval", "5m").replace("$instance", ".*") for query in found]


@needs_promtool
def test_promtool_finds_the_metrics_clean() -> None:
    row = {"repository": "a", "stored": {"fair_share_bytes": 7, "exclusive_bytes": 5}, "chunks": None}
    whole = stats() | {"images": IMAGES}
    assert (
        promtool("check", "metrics", stdin=openmetrics.exposed(whole, 0, counts(), READ, "text/plain", [row])[1]) == ""
    )
    bad = subprocess.run(["promtool", "check", "metrics"], input=b"a_total 1\n", capture_output=True, check=False)
    assert bad.returncode != 0  # it does look


@needs_promtool
def test_promtool_finds_the_rules_and_queries_clean(tmp_path: Path) -> None:
    assert "SUCCESS" in promtool("check", "rules", ALERTS)
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries())]
    asked = tmp_path / "queries.yml"
    asked.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    assert f"{len(rules)} rules found" in promtool("check", "rules", asked)


@needs_promtool
def test_each_alert_fires_and_none_of_a_daemon_that_is_well(tmp_path: Path) -> None:
    """A day and two hours, in steps of ten minutes: `bad` has everything wrong, `gone` is scraped by its file."""
    series = {
        'up{job="chunkd",instance="%s"}': ("1x160", "0x160"),
        'node_textfile_mtime_seconds{file="/var/lib/chunkd.prom",instance="%s"}': ("0+600x160", None),
        'node_textfile_mtime_seconds{file="other.prom",instance="%s"}': ("0x160", "0x160"),
        'chunkd_problems{instance="%s"}': ("0x160", "1x160"),
        'chunkd_cache_state{state="stale",instance="%s"}': ("0x160", "1x160"),
        'chunkd_pending_blobs{instance="%s"}': ("5x150 0x10", "5x160"),
        'chunkd_landing_seconds_bucket{le="300.0",instance="%s"}': ("0+9x160", "0x160"),
        'chunkd_landing_seconds_bucket{le="1800.0",instance="%s"}': ("0+9x160", "0+9x160"),
        'chunkd_landing_seconds_bucket{le="+Inf",instance="%s"}': ("0+9x160", "0+9x160"),
        'chunkd_scanned_timestamp_seconds{instance="%s"}': ("0+600x160", "0x160"),
        'chunkd_failures_total{reason="unreadable",instance="%s"}': ("7x160", "0+1x160"),
        'chunkd_failures_total{reason="mismatched",instance="%s"}': ("0+1x160", "0+1x160"),
    }
    given = [
        {"series": name % instance, "values": values}
        for name, both in series.items()
        for instance, values in zip(("good", "bad"), both, strict=True)
        if values
    ]
    frozen = 'node_textfile_mtime_seconds{file="chunkd.prom",instance="gone"}'
    firing = {("ChunkdDown", "gone")} | {(name, "bad") for name in re.findall(r"alert: (\w+)", ALERTS.read_text())}
    samples = [{"labels": f'{{alertname="{name}",instance="{of}"}}', "value": 1} for name, of in sorted(firing)]
    asked = 'count by (alertname, instance) (ALERTS{alertstate="firing"})'
    test = {
        "interval": "10m",
        "input_series": [*given, {"series": frozen, "values": "0x160"}],
        "promql_expr_test": [{"expr": asked, "eval_time": "26h", "exp_samples": samples}],
    }
    told = tmp_path / "alerts.yml"
    told.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "10m", "tests": [test]}))
    assert "SUCCESS" in promtool("test", "rules", told)


def test_what_contrib_asks_for_exists() -> None:
    counted = counts()
    counted.landed(10**18, 10**9)
    whole = stats() | {"scanned_at": AS_OF}
    content = openmetrics.exposed(whole, 0, counted, READ, OPENMETRICS)[1].decode()
    found = [sample for family in parse_openmetrics(content) for sample in family.samples]
    names = {sample.name for sample in found}
    labels = {name: {key for sample in found if sample.name == name for key in sample.labels} for name in names}
    alerts = re.findall(r"^ *expr: (.*)$", ALERTS.read_text(), re.MULTILINE)
    asked = [*alerts, *queries(), DASHBOARD["templating"]["list"][1]["query"]["query"]]
    assert len(alerts) == 7
    assert len(queries()) > 15
    for query in asked:
        metrics_of = re.findall(r"\bchunkd_\w+", query)
        assert metrics_of or query.startswith("up{"), query
        assert set(metrics_of) <= names, query
        for metric, matchers in re.findall(r"\b(chunkd_\w+)\{([^}]*)\}", query):
            known = labels[metric] | {"instance"}
            assert {matcher.partition("=")[0].strip("~! ") for matcher in matchers.split(",")} <= known, query
    values = re.findall(r'(?:reason|state)=~?"([^"]+)"', " ".join(asked))
    assert {value for text in values for value in text.split("|")} <= {*FAILURES, *openmetrics.CACHE_STATES}


def test_the_dashboard_stands() -> None:
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"{panel['title']} lies over another"
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"


# --- over the socket and over TCP ---------------------------------------------------------------------------------


def get(port: int, target: str, method: str = "GET", **headers: str) -> tuple[int, str | None, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request(method, target, headers=headers)
        reply = connection.getresponse()
        return reply.status, reply.headers["Content-Type"], reply.read()
    finally:
        connection.close()


def test_the_endpoint_hands_on_what_the_client_takes() -> None:
    with short_directory() as folder:
        path, answers = folder / "s", FakeAnswers()
        with running(path, answers):
            request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: text/x\r\nConnection: close\r\n\r\n"
            reply = exchange(path, request)
            assert b"\r\nContent-Type: text/plain; version=0.0.4\r\n" in reply
            assert reply.endswith(b"\r\n\r\n# EOF\n")
            assert exchange(path, request.replace(b"/metrics", b"/metrics?a=b")).startswith(b"HTTP/1.1 400 ")
            assert exchange(path, request.replace(b"GET", b"POST")).startswith(b"HTTP/1.1 405 ")
        assert answers.asked == [("metrics", "text/x")]


def test_over_tcp_there_are_metrics_and_nothing_else() -> None:
    answers = FakeAnswers()
    listening = TcpListener("127.0.0.1:0")
    port = listening.socket.getsockname()[1]
    with running(Path("127.0.0.1:0"), answers, lambda _: listening, routes.METRICS_ALONE):
        assert get(port, "/metrics") == (200, "text/plain; version=0.0.4", b"# EOF\n")
        for target in routes.ROUTES:
            if target != "/metrics":
                assert get(port, target, "POST" if target == "/v1/scan" else "GET")[0] == 404
        assert get(port, "/metrics", "POST")[0] == 405
    assert answers.asked == [("metrics", "")]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), PATIENCE_S)


def test_an_address_that_is_taken_or_none_is_named() -> None:
    taken = TcpListener("127.0.0.1:0")
    try:
        address = f"127.0.0.1:{taken.socket.getsockname()[1]}"
        with pytest.raises(SocketUnusable, match=f"{address}: "):
            Endpoint(address, FakeAnswers(), TcpListener, routes.METRICS_ALONE).start()
    finally:
        taken.close()
    for address in ("[::2]:1", "a..b:1", f"{'a' * 64}:1"):  # nobody's; two that are no names
        with pytest.raises(SocketUnusable):
            TcpListener(address)


@pytest.mark.parametrize("address", ["127.0.0.1:9464", "[::1]:9464", "localhost:0", "0.0.0.0:65535"])
def test_what_is_an_address(address: str) -> None:
    assert checked(SETTINGS["metrics_address"], address, "here") == address


@pytest.mark.parametrize(
    "address",
    ["", "9464", ":9464", "localhost", "localhost:65536", "::1:9464", "a b:1", "http://a:1", "a:1\n", "a:-1", 9],
)
def test_what_is_no_address(address: object) -> None:
    with pytest.raises(SettingInvalid):
        checked(SETTINGS["metrics_address"], address, "here")


def of_daemon(port: int) -> dict[str, float]:
    status, _, content = get(port, "/metrics")
    assert status == 200
    return {
        sample.name + "".join(f",{value}" for value in sample.labels.values()): sample.value
        for family in parse_text(content.decode())
        for sample in family.samples
    }


def test_a_daemon_counts_what_lands_and_fails(home: Home) -> None:
    cache = home.cache()
    write_blob(cache, gz(layer(1, 60_000)))
    port = free_port()
    daemon = home.start(cache, environ={"CHUNKD_METRICS_ADDRESS": f"127.0.0.1:{port}"})
    daemon.until(lambda stats: stats["settled"] and stats["scans"], "scanned")
    before = of_daemon(port)
    assert (before["chunkd_layers"], before["chunkd_read_blobs_total"], before["chunkd_scans_total"]) == (1, 1, 1)
    assert before["chunkd_landing_seconds_count"] == 0  # it lay there before the daemon started
    _, good = write_blob(cache, gz(layer(2, 60_000)))
    _, bad = write_blob(cache, gz(layer(3, 60_000))[:-9])
    after = until(
        lambda: of_daemon(port),
        lambda found: found["chunkd_failures_total,undecodable"] and found["chunkd_landing_seconds_count"],
        "one is counted and one failed",
    )
    assert (after["chunkd_layers"], after["chunkd_failed_blobs"], after["chunkd_read_blobs_total"]) == (2, 1, 3)
    assert (after["chunkd_failures_total,undecodable"], after["chunkd_landing_seconds_count"]) == (1, 1)
    assert 0 <= after["chunkd_landing_seconds_sum"] < 60
    read = after["chunkd_read_bytes_total"] - before["chunkd_read_bytes_total"]
    assert read == good.stat().st_size + bad.stat().st_size
    assert daemon.stats()["unique_bytes"] == after["chunkd_unique_bytes"]
    assert daemon.stop() == 0
