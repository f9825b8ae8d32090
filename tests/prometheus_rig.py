"""A real Prometheus with the configuration that we ship, aimed at a test's service, and the queries that we ship."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
SHIPPED = DEPLOY / "prometheus"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
RULE_FILES = [SHIPPED / "alerts.yml", SHIPPED / "gpu_alerts.yml"]

needs_prometheus = [
    pytest.mark.prometheus,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
    pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed"),
]


def list_rules(path: Path) -> list[dict[str, Any]]:
    """The alert rules of a file."""
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def list_panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Every panel of a dashboard, those inside folded rows too."""
    return [each for panel in dashboard["panels"] for each in (panel, *panel.get("panels", ()))]


def list_queries(dashboard: dict[str, Any]) -> dict[str, str]:
    """What the panels ask, by title and letter, with Grafana's variables filled in as on opening: all of everything."""
    queries = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in list_panels(dashboard)
        for target in panel.get("targets", ())
    }
    queries |= {each["name"]: each["expr"] for each in dashboard["annotations"]["list"]}
    values = {"$__rate_interval": "1m", "$__range": "15m", "$instance": ".*", "$stream": ".*"}
    return {where: fill_in(query, values) for where, query in queries.items()}


def fill_in(query: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        query = query.replace(name, value)
    assert "$" not in query, query
    return query


def list_shipped_queries() -> dict[str, str]:
    """Every query of every dashboard, rule and autoscaler."""
    queries = {rule["alert"]: rule["expr"] for path in RULE_FILES for rule in list_rules(path)}
    scaler = yaml.safe_load((DEPLOY / "kubernetes" / "base" / "scaledobject.yaml").read_text())
    queries |= {f"pods_by_{each['name']}": each["metadata"]["query"] for each in scaler["spec"]["triggers"]}
    for path in DASHBOARDS:
        queries |= list_queries(json.loads(path.read_text()))
    return queries


def name_metrics(query: str) -> set[str]:
    """The metrics that a query reads. Raises ValueError when it is no PromQL."""
    names: set[str] = set()

    def look(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            names.add(node.name)

    promql_parser.walk(promql_parser.parse(query), pre_visit=look)
    return names


@contextmanager
def running_prometheus(service_url: str, folder: Path, **changes: str) -> Iterator[str]:
    """The address of a Prometheus with the shipped configuration and rules; `changes` replaces words of the former."""
    for path in SHIPPED.glob("*.yml"):
        shutil.copy(path, folder)
    config = folder / "prometheus.yml"
    text = config.read_text()
    for old, new in {"127.0.0.1:8000": service_url.removeprefix("http://"), **changes}.items():
        assert text.count(old) == 1, f"prometheus.yml no longer has {old!r} once"
        text = text.replace(old, new)
    config.write_text(text)
    log = folder / "prometheus.log"
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--web.listen-address=127.0.0.1:0"], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield wait_for(lambda: _find_address(log), "Prometheus did not start", 30)
    finally:
        process.terminate()
        process.wait(20)


def _find_address(log: Path) -> str | None:
    found = re.search(r'"Listening on" address=(\S+)', log.read_text())
    return f"http://{found.group(1)}" if found else None


def wait_for(ask: Callable[[], Any], failure: str, timeout_s: float) -> Any:
    deadline_at = time.monotonic() + timeout_s
    while time.monotonic() < deadline_at:
        if answer := ask():
            return answer
        time.sleep(0.2)
    raise AssertionError(failure)


def query(prometheus: str, expression: str) -> dict[str, float]:
    """The values of an instant query, by their labels (without job and instance)."""
    answer = httpx.post(f"{prometheus}/api/v1/query", data={"query": expression}).json()
    assert answer["status"] == "success", (expression, answer)
    values = {}
    for series in answer["data"]["result"]:
        labels = {k: v for k, v in series["metric"].items() if k not in ("job", "instance", "__name__")}
        values[",".join(f"{name}={labels[name]}" for name in sorted(labels))] = float(series["value"][1])
    return values


def list_firing(prometheus: str) -> dict[str, dict[str, str]]:
    """The alerts that fire now, with the labels of one of each name."""
    alerts = httpx.get(f"{prometheus}/api/v1/alerts").json()["data"]["alerts"]
    return {each["labels"]["alertname"]: each["labels"] for each in alerts if each["state"] == "firing"}
