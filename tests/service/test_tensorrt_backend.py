"""The TensorRT backend's own part: which engine it takes, lanes, padding, errors, what it frees.

Fakes stand in for CUDA and TensorRT. That the real ones have these calls is proven by
tests/model_export/test_tensorrt_bindings.py, that they do what we think only by tests/gpu.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.backends import load_backend, open_backend
from service.backends.base import Backend
from service.backends.engine_cache import EngineRecord, Machine, store_engine
from service.contract.bundle import Bundle, open_bundle
from service.errors import BackendError, BundleError
from service.pipeline.model_terms import ModelTerms
from service.settings import load_settings
from tests.service.fake_gpu import fake_gpu
from tests.service.fake_tensorrt import FakeTensorRt

MACHINE = Machine("9.0", "10.16.1.11")
Store = Callable[..., Path]


@pytest.fixture(scope="module")
def bundle(confident_bundle: Path) -> Bundle:
    return open_bundle(confident_bundle)


@pytest.fixture
def gpu() -> Iterator[FakeTensorRt]:
    with fake_gpu() as fake:
        yield fake
        assert fake.cuda.held == {}, "everything must be given back"


@pytest.fixture
def store(tmp_path: Path, bundle: Bundle) -> Store:
    """Stores an engine of the bundle for the fake machine; gives the folder."""

    def run(batch_sizes: tuple[int, ...] = (1, 4), machine: Machine = MACHINE) -> Path:
        data = str(list(batch_sizes)).encode() + b"\n" + bundle.model_path.read_bytes()
        record = EngineRecord(
            model_hash=bundle.model_hash,
            precision="float32",
            compute_capability=machine.compute_capability,
            tensorrt=machine.tensorrt,
            batch_sizes=batch_sizes,
            gpu="Fake GPU",
            driver_cuda="13.1",
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
        )
        return store_engine(tmp_path, record, data).path.parent

    return run


@pytest.fixture
def backend(gpu: FakeTensorRt, bundle: Bundle, store: Store) -> Iterator[Backend]:
    opened = open_backend("tensorrt", bundle, batch_sizes=(1, 3, 4), precision="float32", engines=store())
    yield opened
    opened.close()


def test_it_gives_the_golden_mask_and_confidence_at_every_batch_size(
    backend: Backend, bundle: Bundle
) -> None:
    for count in backend.batch_sizes:
        images_nhwc = np.stack([bundle.golden_image_hwc] * count)
        masks_nhw, confidences_nhw = backend.segment_with_confidence(images_nhwc)
        assert masks_nhw.shape == images_nhwc.shape[:3]
        assert (masks_nhw == bundle.golden_mask_hw).all()
        assert (confidences_nhw == bundle.golden_confidence_hw).all()


def test_a_size_the_engine_lacks_runs_as_the_next_and_gives_each_picture_its_own_mask(
    backend: Backend, bundle: Bundle
) -> None:
    golden_hwc = bundle.golden_image_hwc
    images_nhwc = np.stack([golden_hwc, 255 - golden_hwc, golden_hwc[:, ::-1]])
    masks_nhw = backend.segment(images_nhwc)
    for image_hwc, mask_hw in zip(images_nhwc, masks_nhw, strict=True):
        assert (backend.segment(np.ascontiguousarray(image_hwc[None]))[0] == mask_hw).all()


def test_two_calls_at_once_from_many_threads_have_their_own_masks(backend: Backend, bundle: Bundle) -> None:
    golden_hwc = bundle.golden_image_hwc
    pictures = [golden_hwc, 255 - golden_hwc, np.ascontiguousarray(golden_hwc[::-1]), golden_hwc // 2]
    alone = [backend.segment(each[None]) for each in pictures]

    def compare(number: int) -> bool:
        results = [backend.segment(pictures[(number + turn) % 4][None]) for turn in range(20)]
        return all((found == alone[(number + turn) % 4]).all() for turn, found in enumerate(results))

    assert backend.concurrency == 2
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(compare, range(4)))


def test_a_closed_backend_says_so_and_closes_twice(backend: Backend, bundle: Bundle) -> None:
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.segment(bundle.golden_image_hwc[None])


def test_an_error_of_cuda_ends_in_a_backend_error_and_everything_is_freed(
    backend: Backend, gpu: FakeTensorRt, bundle: Bundle
) -> None:
    gpu.cuda.fault = gpu.cuda.cudaError_t.cudaErrorIllegalAddress
    with pytest.raises(BackendError, match=r"cudaErrorIllegalAddress: what CUDA says.*Restart the service"):
        backend.segment(bundle.golden_image_hwc[None])
    backend.close()


def test_an_engine_that_needs_more_memory_than_there_is_frees_what_it_had(
    gpu: FakeTensorRt, bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([gpu.cuda.cudaError_t.cudaSuccess] * 5)
    allocate = gpu.cuda.cudaMalloc
    failed = (gpu.cuda.cudaError_t.cudaErrorMemoryAllocation, None)
    monkeypatch.setattr(
        gpu.cuda, "cudaMalloc", lambda size: failed if next(left, None) is None else allocate(size)
    )
    with pytest.raises(BackendError, match="cudaErrorMemoryAllocation"):
        open_backend("tensorrt", bundle, precision="float32", engines=store())


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (replace(MACHINE, compute_capability="8.6"), r"for compute capability 9\.0, .*sm86"),
        (replace(MACHINE, tensorrt="11.4.0.106"), r"TensorRT 10\.16\.1\.11 and batches.*tensorrt11"),
    ],
    ids=["another GPU", "another TensorRT"],
)
def test_an_engine_of_another_machine_is_not_taken(
    gpu: FakeTensorRt, bundle: Bundle, store: Store, other: Machine, found: str
) -> None:
    with pytest.raises(BackendError, match=rf"{found}.*surgseg-export build .* --runtime tensorrt"):
        open_backend("tensorrt", bundle, precision="float32", engines=store(machine=other))


def test_a_batch_larger_than_any_engine_names_the_command(
    gpu: FakeTensorRt, bundle: Bundle, store: Store
) -> None:
    with pytest.raises(BackendError, match=r"batches of up to 8.*--batch-sizes 1,8"):
        open_backend("tensorrt", bundle, batch_sizes=(1, 8), precision="float32", engines=store())


def test_a_truncated_engine_is_refused_before_tensorrt_sees_it(
    gpu: FakeTensorRt, bundle: Bundle, store: Store
) -> None:
    folder = store()
    path = next(folder.glob("*.engine"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BackendError, match=r"not the engine that was built.*--force"):
        open_backend("tensorrt", bundle, precision="float32", engines=folder)


def test_an_engine_that_tensorrt_cannot_read_passes_on_what_it_says(
    gpu: FakeTensorRt, bundle: Bundle, store: Store
) -> None:
    folder = store()
    path, record_path = next(folder.glob("*.engine")), next(folder.glob("*.json"))
    record = EngineRecord.model_validate_json(record_path.read_bytes())
    data = b"rubbish with the right hash"
    store_engine(folder, record.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()}), data)
    with pytest.raises(BackendError, match=rf"did not read {path}: no engine at all\. Expected"):
        open_backend("tensorrt", bundle, precision="float32", engines=folder)


def test_an_engine_whose_tensors_are_not_the_cards_is_refused(
    gpu: FakeTensorRt, small_bundle: Path, bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store()
    path = next(folder.glob("*.engine"))
    data = b"[1, 4]\n" + (small_bundle / "model.onnx").read_bytes()
    record = EngineRecord.model_validate_json(path.with_name(f"{path.name}.json").read_bytes())
    store_engine(folder, record.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()}), data)
    with pytest.raises(BundleError, match="has no output 'confidence'"):
        open_backend("tensorrt", bundle, precision="float32", engines=folder)


def test_auto_takes_it_where_there_is_an_engine_and_passes_over_one_that_gives_other_labels(
    gpu: FakeTensorRt, bundle: Bundle, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    folder = store()
    opened = open_backend("auto", bundle, engines=folder)
    assert (opened.name, opened.precision, opened.version) == ("tensorrt", "float32", MACHINE.tensorrt)
    opened.close()
    gpu.alter = lambda masks_nhw: 1 - masks_nhw
    opened = open_backend("auto", bundle, threads=1, engines=folder)
    assert opened.name != "tensorrt"
    opened.close()
    assert (
        "auto passes over tensorrt in float32: it gives 0.00% of the golden picture's labels" in caplog.text
    )


def test_a_truncated_engine_does_not_stop_auto(
    gpu: FakeTensorRt, bundle: Bundle, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    folder = store()
    next(folder.glob("*.engine")).write_bytes(b"")
    opened = open_backend("auto", bundle, threads=1, engines=folder)
    assert opened.name != "tensorrt"
    opened.close()
    assert "it is not the engine that was built" in caplog.text


def test_the_service_looks_where_its_setting_says(
    gpu: FakeTensorRt, bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURGSEG_ENGINES", str(store()))
    settings = load_settings(backend="tensorrt", precision="float32", batch_sizes=(1, 2))
    opened = ModelTerms.read(settings).open(bundle)
    assert opened.batch_sizes == (1, 2)
    opened.close()


def test_without_an_engine_the_reason_names_the_command(
    gpu: FakeTensorRt, bundle: Bundle, tmp_path: Path
) -> None:
    reason = load_backend("tensorrt", tmp_path).reason_against(bundle, "float32")
    assert reason is not None
    assert f"surgseg-export build {bundle.folder} --runtime tensorrt --precision float32" in reason
    assert "no graph in int8" in str(load_backend("tensorrt", tmp_path).reason_against(bundle, "int8"))
