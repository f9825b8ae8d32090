"""ONNX Runtime on a GPU: no silent fallback, what is asked of the providers, and our own part over fakes of CUDA."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from service.backends import load_backend, open_backend
from service.backends.onnx_sessions import open_session
from service.contract.bundle import Bundle, open_bundle
from service.errors import BackendError
from tests.service.fake_gpu import fake_gpu
from tests.service.fake_tensorrt import FakeTensorRt

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"


@pytest.fixture(scope="module")
def bundle(confident_bundle: Path) -> Bundle:
    return open_bundle(confident_bundle)


class FakeBinding:
    def __init__(self) -> None:
        self.bound: dict[str, tuple[list[int], int]] = {}

    def bind_input(
        self, name: str, device: str, number: int, dtype: Any, shape: list[int], address: int
    ) -> None:
        assert (device, number, dtype) == ("cuda", 0, np.uint8)
        self.bound[name] = (shape, address)

    bind_output = bind_input

    def synchronize_outputs(self) -> None:
        pass


class FakeSession:
    """A session of the processor's provider that reads and writes at the addresses it was bound to."""

    def __init__(self, path: Path, gpu: FakeTensorRt) -> None:
        self._session, self._gpu = onnxruntime.InferenceSession(str(path)), gpu
        self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs
        self.graphs: list[str] = []
        self.fault: Exception | None = None

    def io_binding(self) -> FakeBinding:
        return FakeBinding()

    def run_with_iobinding(self, binding: FakeBinding, options: Any) -> None:
        if self.fault is not None:
            raise self.fault
        self.graphs.append(options.get_run_config_entry("gpu_graph_id"))
        names = [node.name for node in self.get_outputs()]
        results = self._session.run(names, {"image": self._view(*binding.bound["image"])})
        for name, result in zip(names, results, strict=True):
            self._view(*binding.bound[name])[:] = result

    def _view(self, shape: list[int], address: int) -> np.ndarray:
        return np.ctypeslib.as_array(self._gpu.cuda.held[address])[: np.prod(shape)].reshape(shape)


@pytest.fixture
def gpu() -> Iterator[FakeTensorRt]:
    with fake_gpu() as fake:
        yield fake
        assert fake.cuda.held == {}, "everything must be given back"


@pytest.fixture
def opened(
    gpu: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, dict[str, str], FakeSession]]:
    """The provider, its options and the session of each that was opened."""
    from service.backends import onnx_on_gpu

    sessions: list[tuple[str, dict[str, str], FakeSession]] = []

    def open_fake(
        path: Path, options: Any, provider: str, provider_options: dict[str, str], model: bytes | None
    ) -> FakeSession:
        assert (model is not None) == (provider == TENSORRT)
        sessions.append((provider, provider_options, FakeSession(path, gpu)))
        return sessions[-1][2]

    monkeypatch.setattr(onnx_on_gpu, "open_session", open_fake)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda msvc: None)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA])
    return sessions


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_it_gives_the_golden_mask_from_fixed_addresses_with_a_graph_for_each_size(
    opened: list[Any], bundle: Bundle, tmp_path: Path, name: str
) -> None:
    backend = open_backend(name, bundle, batch_sizes=(1, 3), precision="float32", engines=tmp_path)
    session = opened[0][2]
    assert session.graphs == ["1", "1", "3", "3"], "every graph is captured before frames come"
    golden_hwc = bundle.golden_image_hwc
    images_nhwc = np.stack([golden_hwc, 255 - golden_hwc, golden_hwc])
    masks_nhw, confidences_nhw = backend.segment_with_confidence(images_nhwc)
    one_nhw = backend.segment(golden_hwc[None])
    for mask_hw in (masks_nhw[0], masks_nhw[2], one_nhw[0]):
        np.testing.assert_array_equal(mask_hw, bundle.golden_mask_hw)
    np.testing.assert_array_equal(confidences_nhw[2], bundle.golden_confidence_hw)
    assert session.graphs[4:] == ["3", "1"]
    session.fault = RuntimeError("CUDA failure 700: an illegal memory access\nstack")
    with pytest.raises(
        BackendError, match=r"failed on the GPU: CUDA failure 700: an illegal memory access\."
    ):
        backend.segment(golden_hwc[None])
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.segment(golden_hwc[None])


def test_what_is_asked_of_the_cuda_provider(opened: list[Any], bundle: Bundle) -> None:
    open_backend("onnxruntime-cuda", bundle).close()
    options = {"device_id": "0", "enable_cuda_graph": "1", "use_tf32": "0"}
    assert opened[0][:2] == (CUDA, options)


def test_what_is_asked_of_the_tensorrt_provider(opened: list[Any], bundle: Bundle, tmp_path: Path) -> None:
    backend = open_backend("onnxruntime-tensorrt", bundle, batch_sizes=(1, 4), engines=tmp_path)
    backend.close()
    provider, options, _ = opened[0]
    size = bundle.card.input_size
    assert (provider, backend.precision) == (TENSORRT, "float32")
    assert options["trt_profile_min_shapes"] == f"image:1x{size.height}x{size.width}x3"
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"]
    assert options["trt_profile_max_shapes"] == f"image:4x{size.height}x{size.width}x3"
    folder = Path(options["trt_engine_cache_path"])
    assert folder == tmp_path / "onnxruntime" / f"{bundle.model_hash[:16]}-float32-batch1.4"
    assert folder.is_dir()
    assert not {"trt_fp16_enable", "trt_int8_enable", "trt_bf16_enable"} & set(options)


@pytest.mark.parametrize(
    ("name", "called"), [("onnxruntime-cuda", "CUDA"), ("onnxruntime-tensorrt", "TensorRT")]
)
def test_the_missing_piece_is_named_in_order(
    gpu: FakeTensorRt, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str, called: str
) -> None:
    factory = load_backend(name)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    wheel = (
        f"the installed onnxruntime has no {called} provider: install surgseg[gpu] instead of surgseg[cpu]"
    )
    assert factory.reason_against(bundle, "float16") == wheel
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA])
    with monkeypatch.context() as patch:
        patch.setattr("service.backends.cuda_device._DRIVER", "libcuda-that-is-not-there.so.1")
        assert "there is no NVIDIA GPU here, or no driver for it (libcuda" in str(
            factory.reason_against(bundle, "float16")
        )
    gpu.cuda.fault = gpu.cuda.cudaError_t.cudaErrorMemoryAllocation
    assert "finds no GPU that CUDA runs on" in str(factory.reason_against(bundle, "float16"))
    gpu.cuda.fault = gpu.cuda.cudaError_t.cudaSuccess
    assert "the bundle has no graph in float16" in str(factory.reason_against(bundle, "float16"))
    assert factory.reason_against(bundle, "float32") is None


def test_the_fakes_have_the_calls_of_the_real_ones() -> None:
    binding, session = onnxruntime.IOBinding, onnxruntime.InferenceSession
    for bind in (binding.bind_input, binding.bind_output):
        inspect.signature(bind).bind(binding, "image", "cuda", 0, np.uint8, [1, 2], 1234)
    inspect.signature(binding.synchronize_outputs).bind(binding)
    inspect.signature(session.io_binding).bind(session)
    inspect.signature(session.run_with_iobinding).bind(session, binding, onnxruntime.RunOptions())
    inspect.signature(session.disable_fallback).bind(session)
    inspect.signature(onnxruntime.preload_dlls).bind(msvc=False)


@pytest.mark.skipif(
    CUDA in onnxruntime.get_available_providers(), reason="this onnxruntime has a CUDA provider"
)
@pytest.mark.parametrize("provider", [CUDA, TENSORRT])
def test_a_provider_that_is_not_there_is_an_error_and_not_the_processor(
    bundle: Bundle, provider: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX Runtime's, which nobody would see
        with pytest.raises(
            BackendError, match=rf"cannot open .* with {provider} alone: .*fallback to CPU EP"
        ):
            open_session(bundle.model_path, onnxruntime.SessionOptions(), provider, {"device_id": "0"})
