"""ONNX Runtime's CUDA provider: the way onto a GPU that needs no engine to be built first."""

from __future__ import annotations

import onnxruntime

from service.backends.base import reason_against_graph
from service.backends.onnx_on_gpu import OnnxOnGpuBackend, reason_against_provider
from service.contract.bundle import Bundle
from service.contract.model_card import Precision

_PROVIDER = "CUDAExecutionProvider"


class OnnxRuntimeCudaBackend(OnnxOnGpuBackend):
    """Runs the bundle's graph of a precision as it is, as a CUDA graph for each batch size.

    It has no kernels for int8. float32 is computed as such, not in TF32. `threads` says nothing here.
    """

    name = "onnxruntime-cuda"
    version = onnxruntime.__version__
    precisions: tuple[Precision, ...] = ("float16", "float32")

    def __init__(
        self,
        bundle: Bundle,
        *,
        batch_sizes: tuple[int, ...],
        threads: int | None,
        precision: Precision,
    ) -> None:
        options = {"enable_cuda_graph": "1", "use_tf32": "0"}
        super().__init__(bundle, batch_sizes, precision, _PROVIDER, options)

    @staticmethod
    def reason_against(bundle: Bundle, precision: Precision) -> str | None:
        """See `BackendFactory.reason_against`."""
        return reason_against_provider(_PROVIDER, "CUDA") or reason_against_graph(bundle, precision)
