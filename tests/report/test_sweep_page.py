"""The page of a sweep: it has every rule, escapes what it shows, and loads nothing."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import pytest

from chunkd.cli.sweep_tables import lines
from chunkd.figures.sweep_words import zstd_layers_text
from chunkd.report.sweep import page

pytestmark = pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")


def rule(name: str, mean: float, net: float | None, *, per_file: bool = False, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "parameters": f"words of {name}", "per_file": per_file, "layers_read": "1/1",
        "mean_chunk_bytes": mean, "chunks": 1000, "chunk_bytes": round(1000 * mean), "hole_bytes": 0,
        "unique_chunks": 700, "unique_bytes": round(700 * mean), "unique_error_bytes": 0, "unique_one_in": 1,
        "median_update_bytes": round(3 * mean), "median_update_ranges": 40, "recompressed_bytes": 5_000_000,
        "recompressed_error_bytes": 100_000, "index_overhead_bytes": 68_700, "measured_chunks": 44,
        "net_bytes": None if net is None else round(net * 10_000_000), "net": net,
        "codec_saving_bytes": 1_000_000, "deduplication_saving_bytes": 3_931_300, "break_even_unique": 0.9,
    } | more  # fmt: skip


REPLY: dict[str, Any] = {
    "complete": True, "layers_share": "1/1", "layer_stored_bytes": 10_000_000, "uncompressed_bytes": 30_000_000,
    "layers": {
        "wanted": 9, "found": 9, "left": 0, "from_earlier_runs": 0, "others": 0, "bad": [], "damaged_tars": [],
        "problems": [],
    },
    "measure": {"one_in": 16, "level": 3}, "updates_unknown": None,
    "baselines": {
        "layers": {
            "layers_read": "1/1", "layers": 9, "stored_bytes": 10_000_000, "median_update_bytes": 2_000_000,
            "median_update_ranges": 3,
        },
        "zstd": [
            {"level": 3, "layers_measured": 9, "bytes": 9_000_000, "error_bytes": 0, "net_bytes": 1_000_000,
             "net": 0.1, "layers_read": "1/1"},
            {"level": 19, "layers_measured": 2, "bytes": 8_000_000, "error_bytes": None, "net_bytes": 2_000_000,
             "net": 0.2, "layers_read": "1/1"},
        ],
    },
    "rules": [
        rule("2/16/64", 20_000.5, 0.49), rule("4/32/128", 40_000, 0.4), rule("fixed-4KiB", 4096, 0.1),
        rule("files", 30_000, -0.05, per_file=True),
    ],
    "best": {"net": "2/16/64", "update_bytes": "fixed-4KiB"},
}  # fmt: skip


def changed(**more: Any) -> dict[str, Any]:
    return copy.deepcopy(REPLY) | more


def test_the_page_has_every_rule_three_curves_and_no_address() -> None:
    found = page(REPLY)
    for row in REPLY["rules"]:
        assert found.count(row["name"]) >= 3
        assert row["parameters"] in found
    assert found.count("<svg") == 3
    assert "http://" not in found.replace("http://www.w3.org/", "")
    assert "49.0 ± 1.0 %" in found
    assert "20.0 ± ? %" in found


def test_zstd_layers_that_save_more_than_every_rule_are_named() -> None:
    said = "layers as zstd 19 save more: 66.6 %"
    assert zstd_layers_text(REPLY) == ""
    reply = changed()
    reply["baselines"]["zstd"][1]["net"] = 0.666
    assert zstd_layers_text(reply) == said
    assert said in page(reply)
    assert said in list(lines(reply))
    for row in reply["rules"]:
        row["net"] = None
    assert zstd_layers_text(reply) == "", "no rule's saving is known"


def test_what_is_not_known_is_not_drawn() -> None:
    rules = [row | {"median_update_bytes": None, "median_update_ranges": None} for row in REPLY["rules"]]
    assert page(changed(rules=rules, updates_unknown="because")).count("<svg") == 1
    nothing = [row | {"net": None, "net_bytes": None} for row in rules]
    best = {"net": None, "update_bytes": None}
    assert page(changed(rules=nothing, best=best)).count("<svg") == 0


def test_without_a_layer_there_is_a_page_too() -> None:
    empty = changed(layers=REPLY["layers"] | {"found": 0, "wanted": 0}, best={"net": None, "update_bytes": None})
    assert "<svg" not in page(empty)
    assert any(line.startswith("0 layers") for line in lines(empty))


def test_a_part_of_the_layers_is_in_every_heading() -> None:
    found = page(changed(layers_share="1/4"))
    assert found.count("1/4 of all layers") >= 6


def test_reasons_are_escaped() -> None:
    bad = [{"digest": "sha256:00", "reason": "<script>\x1b[2J"}]
    told = changed(layers=REPLY["layers"] | {"bad": bad, "damaged_tars": bad, "problems": ["\x1b[2J"]})
    assert "<script>" not in page(told)
    assert all(line.isprintable() for line in lines(told))
