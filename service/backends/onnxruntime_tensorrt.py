"""ONNX Runtime's TensorRT provider: engines that it builds and keeps itself, when the backend is opened."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import tensorrt  # noqa: F401 - loads the libraries that the provider is linked against

from service.backends.engine_cache import EngineKeeper
from service.backends.onnx_on_gpu import OnnxOnGpuBackend, reason_against_provider
from service.backends.tensorrt_graphs import IMAGE, read_for_tensorrt, reason_against_types
from service.contract.bundle import Bundle
from service.contract.model_card import Precision
from service.errors import BackendError

_PROVIDER = "TensorrtExecutionProvider"


class OnnxRuntimeTensorRtBackend(EngineKeeper, OnnxOnGpuBackend):
    """Runs the bundle's graph of a precision in the types that it states.

    Opened for the first time it builds an engine, which takes minutes; it is kept in the folder of engines, apart from
    those of `surgseg-export build`. The folder must be one that only this user writes to: the provider runs what it
    finds there, tied to GPU and version by itself. `threads` says nothing here.
    """

    name = "onnxruntime-tensorrt"
    version = onnxruntime.__version__
    precisions: tuple[Precision, ...] = ("int8", "float16", "float32")

    def __init__(
        self,
        bundle: Bundle,
        *,
        batch_sizes: tuple[int, ...],
        threads: int | None,
        precision: Precision,
    ) -> None:
        folder = _make_folder(self.folder(), bundle, batch_sizes, precision)
        options = plan_provider_options(folder, bundle, batch_sizes)
        model = read_for_tensorrt(bundle.path_of(precision))
        super().__init__(bundle, batch_sizes, precision, _PROVIDER, options, model)

    @staticmethod
    def reason_against(bundle: Bundle, precision: Precision) -> str | None:
        """See `BackendFactory.reason_against`."""
        return reason_against_provider(_PROVIDER, "TensorRT") or reason_against_types(bundle, precision)


def plan_provider_options(folder: Path, bundle: Bundle, batch_sizes: tuple[int, ...]) -> dict[str, str]:
    """The provider's options: engines and times kept in `folder`, one profile over all batch sizes.

    None of `trt_fp16_enable`, `trt_bf16_enable` and `trt_int8_enable` is set: types are those of the graph.
    """
    size = bundle.card.input_size

    def shape(count: int) -> str:
        return f"{IMAGE}:{count}x{size.height}x{size.width}x3"

    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder.parent),
        "trt_profile_min_shapes": shape(batch_sizes[0]),
        # kernels are chosen for the batch size of the busiest moments
        "trt_profile_opt_shapes": shape(batch_sizes[-1]),
        "trt_profile_max_shapes": shape(batch_sizes[-1]),
    }


def _make_folder(engines: Path, bundle: Bundle, batch_sizes: tuple[int, ...], precision: Precision) -> Path:
    sizes = ".".join(map(str, batch_sizes))
    folder = engines / "onnxruntime" / f"{bundle.hash_of(precision)[:16]}-{precision}-batch{sizes}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise BackendError(
            f"{folder} cannot be made ({error.strerror or error}).",
            "a folder to keep engines in",
            "Set SURGSEG_ENGINES to another.",
        ) from error
    return folder
