"""What every soak asks of the service in the end, and how it reports."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx


def describe_process(pid: int) -> dict[str, int]:
    """What a service holds: its own descriptors, threads and memory, its children, and zombies among them."""
    children: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        try:
            found = [
                int(child)
                for task in Path(f"/proc/{parent}/task").iterdir()
                for child in (task / "children").read_text().split()
            ]
        except OSError:
            continue
        children += found
        waiting += found
    states = []
    for child in children:
        try:
            states.append(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0])
        except OSError:
            continue
    status = Path(f"/proc/{pid}/status").read_text()
    return {
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
        "rss_mb": int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
        // 1024,
        "children": len(states),
        "zombies": states.count("Z"),
    }


def sum_metric(url: str, name: str, token: str = "") -> float:
    """All series of a counter together."""
    lines = _get(f"{url}/metrics", token).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


def wait_settled(url: str, open_streams: int, token: str = "") -> None:
    """Wait until no stream is open but those."""
    ends_at = time.monotonic() + 20
    while len(_get(f"{url}/v1/streams", token).json()) > open_streams and time.monotonic() < ends_at:
        time.sleep(0.1)


def _get(url: str, token: str) -> httpx.Response:
    return httpx.get(url, headers={"Authorization": f"Bearer {token}"} if token else {})


def describe_service(server: Any, token: str = "") -> dict[str, Any]:
    """How a service stands when every stream has been closed."""
    return {
        "alive": server.process.poll() is None,
        "received": sum_metric(server.url, "surgseg_frames_received_total", token),
        "segmented": sum_metric(server.url, "surgseg_frames_segmented_total", token),
        "dropped": sum_metric(server.url, "surgseg_frames_dropped_total", token),
        "in the end": describe_process(server.process.pid),
        "tracebacks": sum("Traceback" in line for line in server.output),
    }


def find_service_faults(account: dict[str, Any]) -> list[str]:
    """What must not be in any soak, in words."""
    faults = [] if account["alive"] else ["the service died"]
    if account["received"] != account["segmented"] + account["dropped"]:
        faults.append("frames received are not those segmented and dropped")
    if account["in the end"]["children"] > 1 or account["in the end"]["zombies"] or account["tracebacks"]:
        faults.append(f"processes or tracebacks are left: {account['in the end']}, {account['tracebacks']}")
    return faults


def report(account: dict[str, Any], faults: list[str], path: Path | None) -> None:
    """Print the account, and write it to `path` as well."""
    text = json.dumps({**account, "faults": faults}, indent=1)
    print(text)
    if path:
        path.write_text(text + "\n", encoding="utf-8")
