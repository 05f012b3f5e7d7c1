"""contrib/kubernetes: valid by Kubernetes' own schemas, a reason beside each right, and nothing that chunkd lacks."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate.utils import ValidationError, all_versions, latest_version, major_minor, validate

from chunkd.cli.main import main
from chunkd.settings.resolve import SERVICE_LINK, VARIABLES, Resolved
from chunkd.settings.table import SETTINGS
from kustomized import containers, documents, kustomized

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "contrib" / "kubernetes"
OVERLAYS = ["containerd", "registry"]
# The oldest that the package has, and the newest.
VERSIONS = [major_minor(version) for version in (all_versions()[0], latest_version())]
# Each of these gives or takes a right, or says when a daemon is ended.
RIGHTS = {
    "allowPrivilegeEscalation", "automountServiceAccountToken", "capabilities", "enableServiceLinks", "limits",
    "livenessProbe", "readOnlyRootFilesystem", "requests", "runAsGroup", "runAsNonRoot", "runAsUser", "seccompProfile",
    "startupProbe", "tolerations",
}  # fmt: skip

overlays = pytest.mark.parametrize("overlay", OVERLAYS)


def chunkd_of(overlay: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod's `spec` and chunkd's container."""
    (found,) = containers(kustomized(FOLDER / "overlays" / overlay), "chunkd")
    return found


def environment_of(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container["env"]}


@overlays
@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_of_kubernetes_hold(overlay: str, version: str) -> None:
    found = kustomized(FOLDER / "overlays" / overlay)
    assert found
    for document in found:
        assert validate(document, version, strict=True) == version


def test_an_invalid_document_is_seen() -> None:
    found = kustomized(FOLDER / "overlays" / "containerd")
    ((_, container),) = containers(found, "chunkd")
    container["securityContext"]["readOnlyRootFileSystem"] = True
    with pytest.raises(ValidationError):
        validate(found[0], VERSIONS[-1], strict=True)


def kubectl(*words: object) -> str:
    return subprocess.run(["kubectl", *map(str, words)], check=True, capture_output=True, text=True, timeout=60).stdout


@overlays
def test_kustomize_says_the_same(overlay: str) -> None:
    # Not skipped elsewhere: no Debian package has it, and that of 1.20 knows no Component and says no version.
    if not shutil.which("kubectl") or "kustomizeVersion" not in kubectl("version", "--client", "--output=json"):
        return
    said = kubectl("kustomize", FOLDER / "overlays" / overlay)

    def by_name(found: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
        return {(document["kind"], document["metadata"]["name"]): document for document in found}

    assert by_name(list(yaml.safe_load_all(said))) == by_name(kustomized(FOLDER / "overlays" / overlay))


@overlays
def test_a_degraded_daemon_is_not_restarted(overlay: str) -> None:
    _, container = chunkd_of(overlay)
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["exec"]["command"] == ["chunkd", "health", "--live"]
    assert "readinessProbe" not in container
    assert "--live" in {flag for option in main.commands["health"].params for flag in option.opts}


@overlays
def test_the_variables_are_settings_and_right(overlay: str) -> None:
    _, container = chunkd_of(overlay)
    given = environment_of(container)
    assert set(given) <= set(VARIABLES)
    resolved = Resolved({}, given)
    assert resolved.warnings == []
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    (cache,) = resolved.call["caches"].value
    assert mounts[cache]["readOnly"] is True
    (port,) = container["ports"]
    assert given["CHUNKD_METRICS_ADDRESS"].rpartition(":")[2] == str(port["containerPort"])


@overlays
def test_only_the_state_can_be_written(overlay: str) -> None:
    pod, container = chunkd_of(overlay)
    writable = [mount for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert [(mount["name"], mount["mountPath"]) for mount in writable] == [("chunkd-state", "/var/lib/chunkd")]
    assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
    rights = container["securityContext"]
    assert rights["readOnlyRootFilesystem"] is True
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()


def test_the_state_is_where_the_image_has_it() -> None:
    image = (ROOT / "Containerfile").read_text()
    assert re.findall(r"^VOLUME (\S+)", image, re.MULTILINE) == ["/var/lib/chunkd"]
    assert "CHUNKD_STATE_DIR=/var/lib/chunkd " in image


def test_the_pod_monitor_finds_the_pods() -> None:
    (monitor,) = documents(FOLDER / "pod-monitor.yaml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for overlay in OVERLAYS:
        found = kustomized(FOLDER / "overlays" / overlay)
        (labels,) = [
            document["spec"]["template"]["metadata"]["labels"] for document in found if "template" in document["spec"]
        ]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert [port["name"] for port in chunkd_of(overlay)[1]["ports"]] == [endpoint["port"]]
    # The alerts ask for this job.
    assert endpoint["relabelings"][0] == {"targetLabel": "job", "replacement": "chunkd"}
    assert 'job="chunkd"' in (ROOT / "contrib" / "prometheus-alerts.yml").read_text()


def without_reason(text: str) -> list[str]:
    """The rights that have no comment above them."""
    lines = [line.strip() for line in text.splitlines()]
    named = [line.partition(":")[0].removeprefix("- ") for line in lines]
    return [name for above, name in zip(["", *lines], named, strict=False) if name in RIGHTS and above[:2] != "# "]


def test_a_right_without_a_reason_is_seen() -> None:
    assert without_reason("a:\n  # Why.\n  runAsUser: 0\n  runAsGroup: 0\n") == ["runAsGroup"]


@pytest.mark.parametrize(
    "path",
    sorted({*FOLDER.rglob("*.yaml")} - {FOLDER / "overlays/registry/registry.yaml"}),
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_every_right_has_its_reason(path: Path) -> None:
    assert without_reason(path.read_text()) == []


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_ends_as_a_variable_of_kubernetes(name: str) -> None:
    """Kubernetes makes these of a Service's name, whatever the name is: the setting would be given by accident."""
    assert not SERVICE_LINK.fullmatch(SETTINGS[name].env)
    assert not re.search(r"_(PORT|SERVICE_HOST|SERVICE_PORT|PROTO|ADDR|TCP|UDP|SCTP)$", SETTINGS[name].env)
