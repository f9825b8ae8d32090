"""The manifests are what Kubernetes and its operators take, and say the same as the service and its images."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor
from pydantic import ValidationError

from docker.steps import read_stages
from service.api import health
from service.server import STOP_TIMEOUT_S
from service.settings import Settings
from service.telemetry import Telemetry
from tests.conftest import REPOSITORY
from tests.deploy.kustomize import Manifest, add_component, read_documents, render

FOLDER = REPOSITORY / "deploy" / "kubernetes"
OVERLAYS = {"cpu": "service.Dockerfile", "gpu": "service-gpu.Dockerfile"}
# The oldest that KEDA and the operator still run on, and the newest there is a schema of.
VERSIONS = ("1.31", "1.37")
OF_OPERATORS = {"ScaledObject": ScaledObject, "ServiceMonitor": ServiceMonitor}


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def manifests(overlay: str) -> dict[str, Manifest]:
    return {manifest["kind"]: manifest for manifest in render(FOLDER / overlay)}


@pytest.fixture
def pod(manifests: dict[str, Manifest]) -> Manifest:
    return manifests["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture
def container(pod: Manifest) -> Manifest:
    (only,) = pod["containers"]
    return only


def faults(manifest: Manifest, version: str = VERSIONS[-1]) -> str:
    """What its schema says against an object; nothing where it takes it whole."""
    model = OF_OPERATORS.get(manifest["kind"])
    try:
        if model is None:
            kubernetes_validate.validate(manifest, version, strict=True)
            return ""
        # These models pass over what they do not know: then it is missing from what they read.
        read = model.model_validate(manifest).model_dump(mode="json", by_alias=True, exclude_unset=True)
    except (kubernetes_validate.ValidationError, ValidationError) as error:
        return str(error)
    return "" if read == manifest else f"{manifest} was read as {read}"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_what_its_schema_says(manifests: dict[str, Manifest], version: str) -> None:
    assert {kind: faults(manifest, version) for kind, manifest in manifests.items()} == dict.fromkeys(
        manifests, ""
    )
    assert manifests.keys() >= {"Deployment", "PodDisruptionBudget", "NetworkPolicy", *OF_OPERATORS}


def test_a_field_that_no_schema_knows_is_noticed(manifests: dict[str, Manifest]) -> None:
    for manifest in manifests.values():
        bad = copy.deepcopy(manifest)
        bad.get("spec", bad)["replicsa"] = 2
        assert faults(bad), manifest["kind"]


def test_kustomize_renders_the_same(overlay: str, tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which has kustomize, is not here")
    command = ["kubectl", "kustomize", str(FOLDER / overlay)]
    printed = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    by_kind = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(printed.stdout)}
    assert by_kind == {manifest["kind"]: manifest for manifest in render(FOLDER / overlay)}


def test_probes_ask_what_the_image_and_the_service_answer(container: Manifest, overlay: str) -> None:
    installed = programs_of(overlay)
    paths = {route.path for route in health.router.routes}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert {"/healthz", "/readyz", "/metrics"} <= paths
    for probe in (container["startupProbe"], container["readinessProbe"], container["lifecycle"]["preStop"]):
        assert probe["exec"]["command"][0] in installed


def test_liveness_waits_for_the_start_and_gives_a_slow_answer_time(container: Manifest) -> None:
    start = container["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= 300
    assert container["livenessProbe"]["timeoutSeconds"] >= 5
    assert container["readinessProbe"]["periodSeconds"] <= Settings().ready_window_s


def test_a_pod_has_time_to_wait_for_its_streams_and_to_drain(pod: Manifest, container: Manifest) -> None:
    variables = {each["name"]: each["value"] for each in container["env"]}
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    waits_s = float(command[command.index("--most-s") + 1])
    drains_s = float(variables["SURGSEG_DRAIN_TIMEOUT_S"]) + 1.0
    assert pod["terminationGracePeriodSeconds"] >= waits_s + drains_s + STOP_TIMEOUT_S


def test_variables_are_settings(pod: Manifest) -> None:
    known = {f"SURGSEG_{name.upper()}" for name in Settings.model_fields}
    for each in [*pod.get("initContainers", []), *pod["containers"]]:
        assert {variable["name"] for variable in each.get("env", [])} <= known


def test_a_service_of_this_name_does_not_change_the_port(
    pod: Manifest, manifests: dict[str, Manifest]
) -> None:
    assert pod["enableServiceLinks"] is False
    (port,) = pod["containers"][0]["ports"]
    variables = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
    assert variables["SURGSEG_PORT"] == str(port["containerPort"])
    assert manifests["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]


def test_nothing_is_root_or_writes_to_its_image(pod: Manifest, overlay: str) -> None:
    user, _, group = final_value("USER", overlay).partition(":")
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (
        int(user),
        int(group),
    )
    assert pod["securityContext"]["runAsNonRoot"] is True
    for each in [*pod.get("initContainers", []), *pod["containers"]]:
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    named = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == named


def test_each_pod_of_the_gpu_overlay_has_one_gpu_and_its_engine_first() -> None:
    (deployment,) = [each for each in render(FOLDER / "gpu") if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    (builds,), (serves,) = pod["initContainers"], pod["containers"]
    assert [each["resources"]["limits"]["nvidia.com/gpu"] for each in (builds, serves)] == [1, 1]
    assert builds["image"] == serves["image"]
    assert builds["command"][0] in programs_of("gpu")
    (volume,) = re.findall(r'"(.+?)"', final_value("VOLUME", "gpu"))
    for each in (builds, serves):
        assert {"name": "engines", "mountPath": volume} in each["volumeMounts"]


@pytest.mark.parametrize("version", VERSIONS)
def test_with_the_audit_record_each_pod_writes_below_its_own_name(overlay: str, version: str) -> None:
    plain = render(FOLDER / overlay)
    manifests = {each["kind"]: each for each in add_component(plain, FOLDER / "audit")}
    assert {kind: faults(each, version) for kind, each in manifests.items()} == dict.fromkeys(manifests, "")
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "audit"]
    values = {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}
    assert mount["subPathExpr"] == "$(POD_NAME)"
    assert values["POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert Path(values["SURGSEG_AUDIT"]).parent == Path(mount["mountPath"])
    (volume,) = [each for each in pod["volumes"] if each["name"] == "audit"]
    claim = manifests["PersistentVolumeClaim"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert {name.removeprefix("SURGSEG_").lower() for name in values if name.startswith("SURGSEG_")} <= set(
        Settings.model_fields
    )


def test_pods_of_the_cpu_overlay_have_whole_cores_to_plan_with() -> None:
    (deployment,) = [each for each in render(FOLDER / "cpu") if each["kind"] == "Deployment"]
    resources = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"]["cpu"].isdigit()


def test_the_queries_name_metrics_of_the_service(manifests: dict[str, Manifest]) -> None:
    telemetry = Telemetry((1,))
    telemetry.watch_streams(lambda: (), ())
    exposed = set(re.findall(r"^# TYPE (\S+)", telemetry.render("")[0].decode(), re.MULTILINE))
    queries = [trigger["metadata"]["query"] for trigger in manifests["ScaledObject"]["spec"]["triggers"]]
    named = {re.sub("_bucket$", "", name) for query in queries for name in re.findall(r"surgseg_\w+", query)}
    assert len(queries) == 2
    assert named
    assert named <= exposed
    (endpoint,) = manifests["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["path"] == "/metrics"


@pytest.mark.prometheus
def test_prometheus_reads_the_queries(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not here")
    triggers = read_documents(FOLDER / "base/scaledobject.yaml")[0]["spec"]["triggers"]
    rules: list[dict[str, Any]] = [
        {"record": f"surgseg:{each['name']}", "expr": each["metadata"]["query"]} for each in triggers
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "scaling", "rules": rules}]}))
    subprocess.run(["promtool", "check", "rules", str(path)], check=True, capture_output=True)


def programs_of(overlay: str) -> set[str]:
    """What the image's own COPYs put on the PATH."""
    copied = [step.value.split()[-1] for step in final_steps(overlay) if step.instruction == "COPY"]
    return {Path(path).name for path in copied if path.startswith("/usr/local/bin/")}


def final_value(instruction: str, overlay: str) -> str:
    (value,) = [step.value for step in final_steps(overlay) if step.instruction == instruction]
    return value


def final_steps(overlay: str) -> Any:
    return read_stages(REPOSITORY / "docker" / OVERLAYS[overlay])[-1].steps
