"""Nothing that the service runs reports to anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

OPEN_A_SESSION = (
    "import onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
)


@pytest.mark.parametrize(
    ("first", "is_quiet"), [("import service", True), ("pass", False)], ids=["with the service", "alone"]
)
def test_onnx_runtime_keeps_no_identity_of_the_machine(
    small_bundle: Path, tmp_path: Path, first: str, is_quiet: bool
) -> None:
    """Alone it writes a device id and a queue of reports: were that to change, this test would prove nothing."""
    quiet_already = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in quiet_already}
    subprocess.run(
        [sys.executable, "-c", f"{first}; {OPEN_A_SESSION}", str(small_bundle / "model.onnx")],
        cwd=REPOSITORY,
        env={**environment, "HOME": str(tmp_path)},
        check=True,
    )
    assert (list(tmp_path.rglob("*")) == []) is is_quiet
