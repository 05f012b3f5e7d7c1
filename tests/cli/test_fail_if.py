"""`stats --fail-if`: what is a condition, when it holds, and how the command ends."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from blobs import gz, layer, noise, tar, write_blob
from chunkd.cli import fail_if
from chunkd.errors import UsageError
from chunkd.figures.names import GATED
from chunkd.figures.stats import Stats
from chunkd.figures.totals import Totals
from chunkd.model import Caps, ChunkParams
from daemon import Home

SOME: dict[str, Any] = {"net": -0.125, "redundancy": 0.25, "pending_blobs": 3, "failed_blobs": 0, "unlisted_folders": 2}
NONE: dict[str, Any] = SOME | {"redundancy": None, "net": None, "unlisted_folders": None}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("net<0", True),
        ("net<-0.125", False),
        ("net>=-0.125", True),
        ("redundancy<0.25", False),
        ("redundancy<=0.25", True),
        ("redundancy>0.25", False),
        ("redundancy>=0.25", True),
        ("redundancy==0.25", True),
        ("redundancy<0.2501", True),
        ("redundancy>-1", True),
        ("redundancy>+0.2", True),
        ("pending_blobs>2", True),
        ("pending_blobs > 3", False),
        ("  failed_blobs <= 0 ", True),
        ("failed_blobs>0", False),
        ("unlisted_folders>0", True),
        ("failed_blobs>999999999999999", False),
    ],
)
def test_when_a_condition_holds(text: str, holds: bool) -> None:
    condition = fail_if.Condition(text)
    if not holds:
        condition.test(SOME)
        return
    with pytest.raises(fail_if.ConditionHolds) as raised:
        condition.test(SOME)
    assert raised.value.exit_code == 5
    assert condition.figure in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "", "redundancy", "redundancy<", "<0.2", "redundancy 0.2", "redundancy=0.2", "redundancy!=0.2", "redundancy<>0",
        "redundancy<20%", "redundancy<.2", "redundancy<2.", "redundancy<1e3", "redundancy<nan", "redundancy<inf",
        "redundancy<0x10", "redundancy<1_0", "redundancy<0.2 or pending_blobs>0", "redundancy<0.2\n--",
        "0.2>redundancy", "layers>1", "net_bytes<0", "as_of<3", "caches<1", "Redundancy<0.2", "redundancy<\u0663",
        "redundancy<1234567890123456", "redundancy<0.2" + " " * 9 + "x",
    ],
)  # fmt: skip
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(UsageError):
        fail_if.Condition(text)


def test_a_figure_that_is_null_can_not_be_judged() -> None:
    for figure, sign in itertools.product(("redundancy", "net", "unlisted_folders"), fail_if.OPERATORS):
        with pytest.raises(fail_if.FigureUnknown) as raised:
            fail_if.Condition(f"{figure}{sign}0").test(NONE)
        assert raised.value.exit_code == 1


def test_one_that_holds_is_told_before_one_that_can_not_be_judged() -> None:
    with pytest.raises(fail_if.ConditionHolds):
        fail_if.test([fail_if.Condition("redundancy<1"), fail_if.Condition("pending_blobs>0")], NONE)
    with pytest.raises(fail_if.FigureUnknown):
        fail_if.test([fail_if.Condition("redundancy<1"), fail_if.Condition("pending_blobs>9")], NONE)


def test_every_figure_that_is_gated_is_a_number_or_null() -> None:
    for totals in (Totals(), Totals(1, 0, 2048, 2048, 2048, 2, 1, 1024)):
        found = Stats(totals, 0, 0, None, None, False, 0, ChunkParams(), Caps(), ()).to_json()
        assert all(found[name] is None or type(found[name]) in (int, float) for name in GATED)


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_prints_the_figures_and_ends_with_5(home: Home) -> None:
    cache = home.cache()
    write_blob(cache, gz(layer(1, 60_000)))
    home.scan(cache)
    plainly = home.command("stats", "--json")
    for flags in (("--fail-if", "redundancy<0"), ("--fail-if", "redundancy<0", "--fail-if", "failed_blobs>0")):
        let_through = home.command("stats", "--json", *flags)
        assert (let_through.returncode, let_through.stdout, let_through.stderr) == (0, plainly.stdout, "")
    held = home.command("stats", "--json", "--fail-if", "pending_blobs>0", "--fail-if", "redundancy<=1")
    assert (held.returncode, held.stdout) == (5, plainly.stdout)
    redundancy = json.loads(plainly.stdout)["redundancy"]
    assert held.stderr == f"chunkd: {fail_if.ConditionHolds('redundancy<=1', 'redundancy', redundancy)}\n"
    as_text = home.command("stats", "--fail-if=redundancy<=1")
    assert (as_text.returncode, as_text.stdout) == (5, home.command("stats").stdout)


def test_whether_a_chunk_store_would_pay(home: Home) -> None:
    """What does not compress costs a store its index; what is there twice, it saves."""
    cache = home.cache()
    once = noise(2_000_000, 1)
    write_blob(cache, tar({"once": once}))
    assert home.command("scan", cache, "--measure-one-in", "1").returncode == 0
    cost = home.command("stats", "--fail-if", "net<0")
    net = json.loads(home.command("stats", "--json").stdout)["net"]
    assert (cost.returncode, cost.stderr) == (5, f"chunkd: {fail_if.ConditionHolds('net<0', 'net', net)}\n")
    write_blob(cache, tar({"twice": once}))
    home.scan(cache)
    assert home.command("stats", "--fail-if", "net<0").returncode == 0
    assert home.command("stats", "--fail-if", "net>0").returncode == 5


def test_what_the_command_does_not_understand_is_a_usage_error(home: Home) -> None:
    for flags in (("--fail-if", "nonsense"), ("--fail-if", "redundancy<0.2", "--watch"), ("--fail-if",)):
        done = home.command("stats", *flags) if len(flags) > 1 else home.command("stats", "--fail-if=")
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert "--fail-if" in done.stderr


def test_an_index_without_a_layer_can_not_be_judged(home: Home) -> None:
    home.scan(home.cache())
    for condition in ("redundancy<0.5", "net<0"):
        done = home.command("stats", "--fail-if", condition)
        assert done.returncode == 1
        assert condition in done.stderr
    assert home.command("stats", "--fail-if", "failed_blobs>0").returncode == 0
    nothing = home.command("stats", "--fail-if", "failed_blobs>0", state=home.root / "nothing")
    assert nothing.returncode == 3
