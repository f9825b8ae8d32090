"""surgseg-export build: which engine it makes, that it is proven before it is kept, and what it says when it cannot.

Fakes stand in for CUDA and TensorRT (tests/service/fake_gpu.py).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_export.__main__ import main
from service.backends import open_backend
from service.backends.engine_cache import EngineRecord, Machine, find_engine
from service.contract.bundle import open_bundle
from tests.service.fake_gpu import fake_gpu
from tests.service.fake_tensorrt import FakeTensorRt

MACHINE = Machine("9.0", "10.16.1.11")


@pytest.fixture
def gpu() -> Iterator[FakeTensorRt]:
    with fake_gpu() as fake:
        yield fake
        assert fake.cuda.held == {}, "everything must be given back"


def build(bundle: Path, engines: Path, *options: str) -> int:
    arguments = ["build", str(bundle), "--runtime", "tensorrt", "--engines", str(engines)]
    return main([*arguments, "--batch-sizes", "2,1", *options])


def names(folder: Path) -> list[str]:
    return sorted(path.name.partition("-sm90")[0] + path.suffix for path in folder.iterdir())


def test_an_engine_is_built_proven_and_served(
    gpu: FakeTensorRt, confident_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(confident_bundle, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "batch 1: 100.0000% of labels equal on 8 frames" in printed
    bundle = open_bundle(confident_bundle)
    record = find_engine(tmp_path, bundle, "float32", MACHINE, (1, 2)).record
    assert [(each.batch_size, each.labels_equal, each.confidences_equal) for each in record.parity] == [
        (1, 1.0, 1.0),
        (2, 1.0, 1.0),
    ]
    assert (record.gpu, record.driver_cuda) == ("Fake GPU", "13.1")
    assert names(tmp_path) == [
        f"{bundle.model_hash[:16]}-float32.engine",
        f"{bundle.model_hash[:16]}-float32.json",
        "timing.cache",
    ]
    opened = open_backend("tensorrt", bundle, batch_sizes=(1, 2), engines=tmp_path)
    assert (opened.segment(bundle.golden_image_hwc[None])[0] == bundle.golden_mask_hw).all()
    opened.close()


def test_an_engine_that_is_there_is_built_again_only_by_force(
    gpu: FakeTensorRt, small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, builds in [((), 1), ((), 1), (("--force",), 2)]:
        assert build(small_bundle, tmp_path, *options) == 0
        assert gpu.builds == builds
    assert "there already; --force builds it again" in capsys.readouterr().out
    next(tmp_path.glob("*.engine")).write_bytes(b"damaged")
    assert build(small_bundle, tmp_path) == 0
    assert gpu.builds == 3


def test_an_engine_that_gives_other_labels_is_not_kept(
    gpu: FakeTensorRt, small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.alter = lambda masks_nhw: 1 - masks_nhw if len(masks_nhw) == 2 else masks_nhw
    assert build(small_bundle, tmp_path) == 2
    assert (
        "tensorrt in float32 disagrees with the network: 0.0000% of labels equal" in capsys.readouterr().err
    )
    assert names(tmp_path) == ["timing.cache"]


def test_a_graph_that_tensorrt_cannot_read_names_the_node(
    gpu: FakeTensorRt, small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.refuses = True
    assert build(small_bundle, tmp_path) == 2
    assert "node 7 'decoder/Resize_3' (Resize): Unsupported mode" in capsys.readouterr().err


def test_ctrl_c_ends_the_build_at_its_next_step(
    gpu: FakeTensorRt, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_export.build_progress import BuildProgress

    step_complete = BuildProgress.step_complete

    def interrupted(self: BuildProgress, phase_name: str, step: int) -> bool:
        self.stop()
        return step_complete(self, phase_name, step)

    monkeypatch.setattr(BuildProgress, "step_complete", interrupted)
    assert build(small_bundle, tmp_path) == 130
    assert list(tmp_path.iterdir()) == []


def test_a_build_without_a_terminal_says_in_lines_how_far_it_is(
    gpu: FakeTensorRt,
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert build(small_bundle, tmp_path / "soon") == 0
    assert "Tactics" not in capsys.readouterr().err, "ten seconds have not passed"
    monkeypatch.setattr("model_export.build_progress._LINES_APART_S", 0.0)
    assert build(small_bundle, tmp_path / "slow") == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "Tactics" in line] == ["Tactics: 1 of 2", "Tactics: 2 of 2"]


def test_a_timing_cache_of_another_machine_is_not_used(
    gpu: FakeTensorRt, small_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "timing-sm90-tensorrt10.16.1.11.cache"
    path.write_bytes(b"of something else")
    assert build(small_bundle, tmp_path) == 0
    assert "everything is measured again" in caplog.text
    assert path.read_bytes() == b"times"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "int8"), "the bundle has no graph in int8"),
        (("--batch-sizes", "0,1"), "--batch-sizes is '0,1'"),
        (("--batch-sizes", "many"), "--batch-sizes is 'many'"),
        (("--workspace-mib", "0"), "--workspace-mib is 0"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused(
    gpu: FakeTensorRt,
    small_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    assert build(small_bundle, tmp_path, *options) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_engine_of_two_sizes_does_not_stand_in_for_another(
    gpu: FakeTensorRt, small_bundle: Path, tmp_path: Path
) -> None:
    assert build(small_bundle, tmp_path) == 0
    assert build(small_bundle, tmp_path, "--batch-sizes", "1") == 0
    records = [EngineRecord.model_validate_json(path.read_bytes()) for path in tmp_path.glob("*.json")]
    assert sorted(record.batch_sizes for record in records) == [(1,), (1, 2)]


def test_without_tensorrt_it_names_the_extra(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.delitem(sys.modules, "service.backends.tensorrt", raising=False)
    assert build(small_bundle, tmp_path) == 2
    assert "pip install 'surgseg[gpu]'" in capsys.readouterr().err


def test_it_needs_no_torch() -> None:
    script = "import sys, model_export.build_command; sys.exit('torch' in sys.modules or 'training' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
