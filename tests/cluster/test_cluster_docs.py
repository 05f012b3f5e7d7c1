"""The examples of docs/cluster.md, as far as they can be tried without what they are for."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
KUBERNETES = "1.34"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


JOB, CLUSTER = (yaml.safe_load(block) for block in blocks("yaml"))
BASE = ["scan", "s3://registry", "--store"]


def ran(tmp_path: Path, script: str, variables: dict[str, str]) -> list[str]:
    """What a script calls chunkd with."""
    (tmp_path / "chunkd").write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    (tmp_path / "chunkd").chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", **variables}
    done = subprocess.run(["bash", "-euc", script], env=environ, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()


def test_a_job_of_an_array_asks_for_its_shard(tmp_path: Path) -> None:
    slurm, batch = blocks("bash")
    variables = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "64", "SLURM_CPUS_PER_TASK": "4"}
    assert ran(tmp_path, slurm, variables) == [
        *BASE, "/shared/store", "--quiet", "--workers", "4", "--shard", "3/64",
    ]  # fmt: skip
    assert "#SBATCH --job-name=chunkd --array=0-63 " in slurm
    expected = [*BASE, "/store", "--quiet", "--shard", "0/64"]
    assert ran(tmp_path, batch, {"AWS_BATCH_JOB_ARRAY_INDEX": "0"}) == expected
    [container] = JOB["spec"]["template"]["spec"]["containers"]
    assert container["command"][:2] == ["sh", "-c"]
    assert ran(tmp_path, container["command"][2], {"JOB_COMPLETION_INDEX": "0"}) == expected
    assert JOB["spec"]["completions"] == 64


def pods() -> list[dict[str, Any]]:
    specs = (CLUSTER["spec"][what]["spec"] for what in ("worker", "scheduler"))
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec} for spec in specs]


@pytest.mark.parametrize("document", [JOB, *pods()], ids=["job", "worker", "scheduler"])
def test_kubernetes_has_what_the_examples_say(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**document, "spec": {**document["spec"], "replicaz": 1}}, KUBERNETES, strict=True)


def test_the_port_that_is_asked_is_the_scheduler_s() -> None:
    ports = {
        one["name"]: one["containerPort"] for one in CLUSTER["spec"]["scheduler"]["spec"]["containers"][0]["ports"]
    }
    services = {one["targetPort"]: one["port"] for one in CLUSTER["spec"]["scheduler"]["service"]["ports"]}
    assert ports == services
    assert f"dask:tcp://{CLUSTER['metadata']['name']}-scheduler:{ports['tcp-comm']}" in PAGE


def test_the_python_of_the_page_is_python() -> None:
    for block in blocks("python"):
        ast.parse(block)
