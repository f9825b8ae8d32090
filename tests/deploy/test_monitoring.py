"""Alert rules, their unit tests and runbooks, and the dashboards: each names what exists, and all of it."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.prometheus_rig import (
    DASHBOARDS,
    DEPLOY,
    RULE_FILES,
    SHIPPED,
    list_panels,
    list_rules,
    list_shipped_queries,
    name_metrics,
)

RUNBOOKS = Path("docs/operations.md")
RULES = [rule for path in RULE_FILES for rule in list_rules(path)]
with_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
# The default counters of NVIDIA's dcgm-exporter that we name; no such exporter runs where the tests do.
GPU_METRICS = {
    *("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_DEC_UTIL"),
    *("DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_XID_ERRORS"),
}


def promtool(*arguments: object, folder: Path = SHIPPED) -> str:
    """What promtool prints; fails unless it is content."""
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def anchors_of(document: Path) -> list[str]:
    """The anchors that the headings of a document have on the code hosts."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


@with_promtool
def test_configurations_and_rules_are_valid() -> None:
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")
    assert "SUCCESS" in promtool("check", "rules", *(path.name for path in RULE_FILES))
    # The files that it names are where the containers see them: tests/deploy/test_compose.py.
    promtool("check", "config", "--syntax-only", "prometheus.yml", folder=DEPLOY / "compose")


@with_promtool
def test_rules_pass_their_unit_tests() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


def test_every_alert_is_tested_both_raised_and_not() -> None:
    cases = [
        case
        for test in yaml.safe_load((SHIPPED / "alerts_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    names = {rule["alert"] for rule in RULES}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_every_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert {"summary", "description", "runbook_url"} == set(rule["annotations"])
    document, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert Path(document) == RUNBOOKS
    assert anchor == rule["alert"].lower()
    assert anchor in anchors_of(DEPLOY.parent / document)


def test_no_runbook_is_left_of_an_alert_that_is_gone() -> None:
    written = [anchor for anchor in anchors_of(DEPLOY.parent / RUNBOOKS) if anchor.startswith("surgseg")]
    assert sorted(written) == sorted(rule["alert"].lower() for rule in RULES)


def test_alerts_and_dashboards_name_only_known_metrics_of_others() -> None:
    named = {name for query in list_shipped_queries().values() for name in name_metrics(query)}
    ours = {name for name in named if name.startswith(("surgseg_", "process_"))}
    assert len(ours) > 20
    assert named - ours == {"up", "ALERTS", *GPU_METRICS}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_grafanas_own_types_know_every_field_of_a_dashboard(path: Path) -> None:
    plugins.register_default_plugins()
    written = json.loads(path.read_text())
    understood = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(written)))
    assert list(find_lost(written, understood)) == []
    written["panels"][1]["fieldConfig"]["defaults"]["untis"] = "s"
    assert list(find_lost(written, understood)) == ["panels.1.fieldConfig.defaults.untis"]


def find_lost(written: Any, understood: Any, where: str = "") -> list[str]:
    """Where a document has something that another one, made of it, has not."""
    if isinstance(written, dict) and isinstance(understood, dict):
        inside = [(key, value, understood.get(key)) for key, value in written.items()]
    elif isinstance(written, list) and isinstance(understood, list):
        inside = [(index, *pair) for index, pair in enumerate(itertools.zip_longest(written, understood))]
    else:
        return [] if written == understood else [where]
    return [lost for key, *pair in inside for lost in find_lost(*pair, f"{where}.{key}".lstrip("."))]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_panels_have_a_place_and_a_number_of_their_own(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    panels = list_panels(dashboard)
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for spot in (panel["gridPos"] for panel in panels)
        for x in range(spot["x"], spot["x"] + spot["w"])
        for y in range(spot["y"], spot["y"] + spot["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert {x for x, _ in cells} == set(range(24))
    sources = {panel["datasource"]["uid"] for panel in panels if "datasource" in panel}
    assert sources == {"${datasource}"}


def test_the_source_that_dashboards_open_with_is_provisioned() -> None:
    folder = DEPLOY / "grafana" / "provisioning" / "datasources"
    provided = yaml.safe_load((folder / "prometheus.yml").read_text())["datasources"]
    uids = {source["uid"] for source in provided}
    for path in DASHBOARDS:
        variables = json.loads(path.read_text())["templating"]["list"]
        assert [each["current"]["value"] for each in variables if each["type"] == "datasource"] == [
            "prometheus"
        ]
    assert uids == {"prometheus"}
