"""`surgseg-export bench`: every runtime that opens here, with the same labels as the reference."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from model_export.__main__ import main
from model_export.bench_command import REFERENCE, list_runtimes
from service.backends import BACKENDS
from service.contract.bundle import open_bundle


@pytest.mark.slow
def test_every_runtime_is_measured_beside_the_reference(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "bench.json", tmp_path / "bench.svg"]
    options = ["--seconds", "0.05", "--rounds", "2", "--batch-sizes", "1,3", "--threads", "2"]
    assert main(["bench", str(small_bundle), *options, "--json", str(files[0]), "--plot", str(files[1])]) == 0
    rows = json.loads(files[0].read_text())["runtimes"]
    runtimes = [(row["backend"], row["precision"]) for row in rows]
    assert runtimes == list_runtimes(open_bundle(small_bundle))
    assert runtimes[0] == REFERENCE
    for row in rows:
        assert row["labels_equal"] == 1.0, "a threshold of grey is the same at any precision"
        assert set(row["batches"]) == {"1", "3"}
        assert len(row["rounds"]) == 2
        assert row["at_once"]["calls"] == 2
        assert all(math.isfinite(each["ms"]) and each["ms"] > 0 for each in row["batches"].values())
        assert row["dice"] is None
    assert rows[0]["times_reference"] == 1.0
    printed = capsys.readouterr().out
    drawing = files[1].read_text()
    for backend, precision in runtimes:
        assert f"| {backend} {precision} |" in printed
        assert f"{backend} {precision}" in drawing


def test_a_runtime_that_is_not_installed_is_named(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(BACKENDS, "openvino", "service.backends.not_installed:Backend")
    runtimes = list_runtimes(open_bundle(small_bundle))
    assert {name for name, _ in runtimes} == {"onnxruntime-cpu"}
    said = capsys.readouterr().err
    assert "left out: The library of the openvino backend is not installed" in said
    assert re.search(
        "left out: onnxruntime-cpu in int8: (the bundle has no graph|this processor has no dot product)", said
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch-sizes", "1,two"), "numbers from 1"),
        (("--batch-sizes", "0"), "numbers from 1"),
        (("--rounds", "0"), "--rounds is 0"),
        (("--seconds", "-1"), "--seconds is -1"),
        (("--plot", "bench.png"), "ends in .svg"),
    ],
)
def test_a_bad_option_is_named(
    small_bundle: Path, options: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(small_bundle), *options]) == 2
    assert message in capsys.readouterr().err
