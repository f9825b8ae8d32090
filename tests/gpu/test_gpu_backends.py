"""Every backend of an NVIDIA GPU, on one: labels, batches, calls at once, what is refused, what is freed.

An engine for TensorRT is built first, by `surgseg-export build`, which takes minutes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from service.backends import load_backend, open_backend
from service.backends.base import Backend, list_precisions
from service.contract.bundle import Bundle
from service.errors import BackendError
from tests.gpu.conftest import BATCH_SIZES, require_labels, skip_without

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(1800)]
NAMES = ("tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt")
FREED_BYTES = 64 * 2**20


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    skip_without(request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def backend(name: str, bundle: Bundle, engines: Path) -> Iterator[Backend]:
    opened = open_backend(name, bundle, batch_sizes=BATCH_SIZES, precision="float32", engines=engines)
    yield opened
    opened.close()


@pytest.mark.parametrize("count", BATCH_SIZES)
def test_every_batch_size_has_the_networks_labels(
    backend: Backend, pictures_nhwc: np.ndarray, expected_nhw: np.ndarray, count: int
) -> None:
    for start in range(0, BATCH_SIZES[-1], count):
        masks_nhw = backend.segment(np.ascontiguousarray(pictures_nhwc[start : start + count]))
        require_labels(backend, masks_nhw, expected_nhw[start : start + count])


def test_every_precision_has_the_networks_labels(
    name: str, bundle: Bundle, engines: Path, pictures_nhwc: np.ndarray, expected_nhw: np.ndarray
) -> None:
    for precision in list_precisions(load_backend(name, engines), bundle):
        opened = open_backend(name, bundle, batch_sizes=(4,), precision=precision, engines=engines)
        require_labels(opened, opened.segment(pictures_nhwc[:4]), expected_nhw[:4])
        opened.close()


def test_calls_made_at_once_have_the_masks_that_they_have_alone(
    backend: Backend, pictures_nhwc: np.ndarray
) -> None:
    alone = [backend.segment(each[None]).copy() for each in pictures_nhwc]

    def compare(number: int) -> bool:
        return all(
            (backend.segment(pictures_nhwc[index][None]) == alone[index]).all()
            for index in [(number + turn) % len(alone) for turn in range(200)]
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(compare, range(4)))


def test_a_closed_backend_says_so_closes_twice_and_frees_its_memory(
    name: str, bundle: Bundle, engines: Path
) -> None:
    from cuda.bindings import runtime

    def open_and_close() -> int:
        opened = open_backend(name, bundle, batch_sizes=(1, 16), precision="float32", engines=engines)
        opened.segment(bundle.golden_image_hwc[None])
        opened.close()
        opened.close()
        with pytest.raises(BackendError, match="closed"):
            opened.segment(bundle.golden_image_hwc[None])
        _, free_bytes, _ = runtime.cudaMemGetInfo()
        return int(free_bytes)

    first = open_and_close()
    last = [open_and_close() for _ in range(4)][-1]
    assert first - last < FREED_BYTES


def test_images_of_another_form_are_refused(backend: Backend) -> None:
    with pytest.raises(ValueError, match="images are"):
        backend.segment(np.zeros((3, 8, 8, 3), np.uint8))


@pytest.fixture
def tensorrt() -> None:
    skip_without("tensorrt")


@pytest.mark.usefixtures("tensorrt")
def test_a_damaged_or_foreign_engine_is_refused(bundle: Bundle, engines: Path, tmp_path: Path) -> None:
    shutil.copytree(engines, tmp_path, dirs_exist_ok=True)
    path = next(tmp_path.glob("*-float32-*.engine"))
    record_path = path.with_name(f"{path.name}.json")
    whole, record = path.read_bytes(), json.loads(record_path.read_text())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BackendError, match="not the engine that was built"):
        open_backend("tensorrt", bundle, precision="float32", engines=tmp_path)
    path.write_bytes(whole)
    for changes in ({"compute_capability": "1.0"}, {"tensorrt": "9.0"}, {"model_hash": "0" * 64}):
        record_path.write_text(json.dumps({**record, **changes}))
        with pytest.raises(BackendError, match="is of model"):
            open_backend("tensorrt", bundle, precision="float32", engines=tmp_path)


@pytest.mark.usefixtures("tensorrt")
def test_auto_takes_an_engine_where_there_is_one(bundle: Bundle, engines: Path) -> None:
    opened = open_backend("auto", bundle, engines=engines)
    assert opened.name == "tensorrt"
    opened.close()
