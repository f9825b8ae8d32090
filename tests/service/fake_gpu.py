"""A machine with an NVIDIA GPU, as far as our code can tell."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest

from tests.service.fake_cuda import FakeCuda
from tests.service.fake_tensorrt import FakeTensorRt

OURS = (
    *("service.backends.cuda_device", "service.backends.tensorrt_log", "service.backends.tensorrt"),
    *(
        "service.backends.onnx_on_gpu",
        "service.backends.onnxruntime_cuda",
        "service.backends.onnxruntime_tensorrt",
    ),
    *("model_export.build_progress", "model_export.to_tensorrt"),
)
"""The modules that hold on to NVIDIA's once they are imported."""


@contextmanager
def fake_gpu() -> Iterator[FakeTensorRt]:
    """Fakes of CUDA and TensorRT in place of whatever is installed; the CUDA one is its `cuda`."""
    with pytest.MonkeyPatch.context() as patch:
        cuda = FakeCuda()
        trt = FakeTensorRt(cuda)
        bindings = ModuleType("cuda.bindings")
        bindings.runtime = cuda
        fakes = {"cuda": ModuleType("cuda"), "cuda.bindings": bindings, "cuda.bindings.runtime": cuda}
        for name, module in {**fakes, "tensorrt": trt}.items():
            patch.setitem(sys.modules, name, module)
        forget()
        import service.backends.cuda_device as device

        patch.setattr(device, "_DRIVER", "libc.so.6")
        try:
            yield trt
        finally:
            forget()


def forget() -> None:
    """Have our modules imported anew by whoever asks for them next."""
    for name in OURS:
        package, _, module = name.rpartition(".")
        if sys.modules.pop(name, None) is not None:
            delattr(sys.modules[package], module)
