"""The containers of deploy/compose: the file is valid, its parts fit together, and it opens nothing to others."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.access.scopes import Scope
from service.access.token_file import read_tokens
from service.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "deploy" / "compose"
FILE = FOLDER / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: each for name, each in SERVICES.items() if "build" in each}
MAY_BE_ROOT = {"dcgm-exporter"}
every_service = pytest.mark.parametrize("name", SERVICES)


def check_schema(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def mounts_of(name: str) -> dict[str, str]:
    """What a container sees of this repository: path there -> path beside the file."""
    parts = [volume.split(":") for volume in SERVICES[name].get("volumes", ())]
    return {inside: outside for outside, inside, *_ in parts if outside.startswith(".")}


def test_it_is_what_the_compose_specification_allows(tmp_path: Path) -> None:
    done = check_schema(FILE)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(FILE.read_text().replace("read_only: true", "read_onyl: true"))
    assert check_schema(wrong).returncode == 1


@every_service
def test_a_container_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert {"memory", "pids"} <= set(service["deploy"]["resources"]["limits"])
    assert not {"privileged", "network_mode", "pid", "ipc"} & set(service)
    if name not in MAY_BE_ROOT:
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not re.match(r"0|root", service["user"])
    assert all(mount.endswith(":ro") for mount in service.get("volumes", ()) if mount.startswith("."))


@every_service
def test_a_container_says_whether_it_is_well(name: str) -> None:
    service = SERVICES[name]
    if name not in OURS:
        assert service["healthcheck"]["test"][0] == "CMD"
        return
    dockerfile = (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).resolve()
    text = dockerfile.read_text()
    assert "HEALTHCHECK" in text
    assert f"USER {service['user']}" in text
    assert "EXPOSE 8000" in text


@every_service
def test_images_are_pinned(name: str) -> None:
    image = SERVICES[name]["image"]
    tag = re.sub(r"\$\{[A-Z_]+:-(.+)\}", r"\1", image).rpartition(":")[2]
    assert re.match(r"v?\d+\.\d+\.\d+", tag), image


def test_nothing_is_reachable_from_other_machines_unless_somebody_says_so() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {*OURS, "grafana"}
    for ports in published.values():
        assert [
            re.sub(r"\$\{PUBLISH_AT:-(.+?)\}", r"\1", port).startswith("127.0.0.1:") for port in ports
        ] == [True]
    assert COMPOSE["networks"]["monitoring"] == {"internal": True}
    assert SERVICES["prometheus"]["networks"] == ["monitoring"]
    assert "clients" not in SERVICES["grafana"]["networks"]


def test_one_of_the_two_services_runs_and_prometheus_finds_whichever_it_is() -> None:
    assert {name: service["profiles"] for name, service in OURS.items()} == {
        "service": ["cpu"],
        "service-gpu": ["gpu"],
    }
    assert "COMPOSE_PROFILES=cpu" in (FOLDER / ".env").read_text().splitlines()
    aliases = [set(service["networks"]["monitoring"]["aliases"]) for service in OURS.values()]
    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    names = {job["job_name"]: job["dns_sd_configs"][0]["names"] for job in jobs}
    assert names == {"surgseg": ["surgseg"], "gpu": ["dcgm-exporter"]}
    assert aliases == [{"surgseg"}, {"surgseg"}]


def test_prometheus_watches_as_it_does_without_containers() -> None:
    here = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    there = yaml.safe_load((FOLDER.parent / "prometheus" / "prometheus.yml").read_text())
    assert here["global"] == there["global"]
    assert here["rule_files"] == [*there["rule_files"], "gpu_alerts.yml"]
    assert "surgseg" in [job["job_name"] for job in there["scrape_configs"]]
    mounts = mounts_of("prometheus")
    assert {f"/etc/prometheus/{name}" for name in ("prometheus.yml", *here["rule_files"])} == set(mounts)


@every_service
def test_what_a_container_mounts_is_there(name: str) -> None:
    shipped = [outside for outside in mounts_of(name).values() if not outside.startswith("./secrets")]
    missing = [outside for outside in shipped if not (FOLDER / outside).exists()]
    assert missing == []
    stored = [volume.partition(":")[0] for volume in SERVICES[name].get("volumes", ()) if volume[0] != "."]
    assert set(stored) <= set(COMPOSE["volumes"])


def test_grafana_looks_where_its_files_are() -> None:
    mounts = mounts_of("grafana")
    providers = yaml.safe_load(
        (FOLDER / mounts["/etc/grafana/provisioning"] / "dashboards/surgseg.yml").read_text()
    )
    assert providers["providers"][0]["options"]["path"] in mounts
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (FOLDER / mounts[str(home.parent)] / home.name).exists()


def test_secrets_are_files_that_git_never_sees_and_make_makes(tmp_path: Path) -> None:
    assert COMPOSE["secrets"] == {
        "view_token": {"file": "./secrets/service/view-token"},
        "grafana_password": {"file": "./secrets/grafana_password"},
    }
    assert "/deploy/compose/secrets/" in (REPOSITORY / ".gitignore").read_text().splitlines()
    text = FILE.read_text() + (FOLDER / "prometheus.yml").read_text()
    named = set(re.findall(r"/run/secrets/(\w+)", text))
    assert named == {*COMPOSE["secrets"], "surgseg"}
    assert {mounts_of(name)["/run/secrets/surgseg"] for name in OURS} == {"./secrets/service"}

    made = tmp_path / "secrets"
    targets = [str(made / "service" / "tokens"), str(made / "grafana_password")]
    command = ["make", f"SECRETS={made}", *targets]
    for _ in range(2):  # the second time must leave them as they are
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
        token = (made / "service" / "view-token").read_text().strip()
        assert len(token) == 32
        digest = hashlib.sha256(token.encode()).hexdigest()
        assert (made / "service" / "tokens").read_text() == f"prometheus view sha256:{digest}\n"
        (known,) = read_tokens(made / "service" / "tokens")
        assert known.scopes == {Scope.VIEW}
    assert (made / "grafana_password").read_text().strip() not in ("", token)
    assert made.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in made.rglob("*") if path.is_file()} == {0o444}


def test_only_settings_that_the_service_has_are_passed_on() -> None:
    known = {f"SURGSEG_{name.upper()}" for name in Settings.model_fields}
    passed = {name for service in OURS.values() for name in service["environment"]}
    assert passed <= known
    grace_s = int(OURS["service"]["stop_grace_period"].removesuffix("s"))
    assert grace_s >= Settings(_env_file=None).drain_timeout_s + 5


def test_the_audit_record_lies_in_a_volume_that_its_service_may_write_to() -> None:
    with_audit = yaml.safe_load((FOLDER / "audit.yaml").read_text())
    assert check_schema(FOLDER / "audit.yaml").returncode == 0
    assert set(with_audit["services"]) == set(OURS)
    for name, service in with_audit["services"].items():
        ((volume, inside),) = [each.split(":") for each in service["volumes"]]
        assert volume in with_audit["volumes"]
        assert service["environment"]["SURGSEG_AUDIT"] == inside
        known = {f"SURGSEG_{field.upper()}" for field in Settings.model_fields}
        assert set(service["environment"]) <= known
        # a new volume takes over the owner of the folder that the image has in its place
        dockerfile = (FOLDER.parents[1] / OURS[name]["build"]["dockerfile"]).read_text()
        user = OURS[name]["user"].partition(":")[0]
        assert re.search(rf"install --directory --owner={user} .*{inside}$", dockerfile, re.MULTILINE)
    makefile = (REPOSITORY / "Makefile").read_text()
    assert "$(if $(AUDIT),--file deploy/compose/audit.yaml)" in makefile
