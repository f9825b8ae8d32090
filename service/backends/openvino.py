"""OpenVINO on the CPU: the quickest runtime where the processor computes bfloat16 (docs/results/runtimes.md)."""

from __future__ import annotations

import sys
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.backends.base import (
    GraphBackend,
    Images,
    first_line,
)
from service.backends.graphs import Tensor, check_graph
from service.contract.bundle import Bundle
from service.errors import BackendError, BundleError
from service.processors import available_cores, list_cores

# OpenVINO's conversion tools report their use over the internet where they find this package. Nothing here uses them,
# and in a hospital nothing should be able to.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
_TYPES = {"u8": "uint8", "f32": "float32"}


class OpenVinoBackend(GraphBackend):
    """Runs `model.onnx` in `precision`: bfloat16 if the processor computes it, else float32, unless one is asked for.

    A call that comes alone runs on all threads. Calls that come while another is under way share the threads evenly: a
    thread that is held up then delays one picture, not every operator of all. The pictures of a batch run in turn.
    """

    name = "openvino"

    def __init__(
        self,
        bundle: Bundle,
        *,
        batch_sizes: tuple[int, ...],
        threads: int | None,
        precision: str | None = None,
    ) -> None:
        threads = threads or available_cores()
        super().__init__(bundle, batch_sizes, threads)
        core = openvino.Core()
        self.precision = _choose_precision(core, precision)
        model = _read_model(core, bundle)
        self._whole = _Network(core, model, self.precision, threads, at_once=1)
        self._shared = self._whole
        if self.concurrency > 1:
            self._shared = _Network(core, model, self.precision, threads, at_once=self.concurrency)

    @staticmethod
    def precisions() -> tuple[str, ...]:
        """See `BackendFactory.precisions`."""
        return ("float32", "bfloat16") if _computes_bfloat16(openvino.Core()) else ("float32",)

    @staticmethod
    def reason_against(precision: str | None = None) -> str | None:
        """See `BackendFactory.reason_against`."""
        if precision == "float32":
            return "in float32 it is no faster than the next"
        if _computes_bfloat16(openvino.Core()):
            return None
        return "this processor does not compute bfloat16, and in float32 it is no faster than the next"

    def close(self) -> None:
        """See `Backend.close`."""
        super().close()
        self._whole = self._shared = None  # type: ignore[assignment]

    def _infer(self, outputs: list[str], images_nhwc: Images, is_alone: bool) -> list[NDArray[np.uint8]]:
        try:
            return (self._whole if is_alone else self._shared).run(outputs, images_nhwc)
        except RuntimeError as error:
            raise BackendError(
                f"OpenVINO failed: {first_line(error)}.", "a mask", "Restart the service; check memory."
            ) from error


class _Network:
    """The model compiled for one picture a request; `at_once` requests share the threads."""

    def __init__(self, core: Any, model: Any, precision: str, threads: int, at_once: int) -> None:
        compiled = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": at_once,
                # Threads that are not bound wait for each other when Linux puts two on one core, as after a pause
                # between frames; where others may run on the same cores, binding would hold them up instead.
                "ENABLE_CPU_PINNING": threads == len(list_cores()) == available_cores(),
            },
        )
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if used != _PRECISIONS[precision]:
            raise BackendError(
                f"OpenVINO fell back to {used}.",
                _PRECISIONS[precision],
                "Choose another precision or backend.",
            )
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(at_once):
            self._idle.put(compiled.create_infer_request())

    def run(self, outputs: list[str], images_nhwc: Images) -> list[NDArray[np.uint8]]:
        """The outputs of each picture, in arrays of our own. Raises RuntimeError."""
        count, height, width, _ = images_nhwc.shape
        results = [np.empty((count, height, width), np.uint8) for _ in outputs]
        request = self._idle.get()
        try:
            for index in range(count):
                request.infer({0: images_nhwc[index : index + 1]}, share_inputs=True)
                for result, name in zip(results, outputs, strict=True):
                    result[index] = request.get_tensor(name).data[0]
        finally:
            self._idle.put(request)
        return results


def _read_model(core: Any, bundle: Bundle) -> Any:
    """The bundle's graph, checked, with a batch of one. Raises BundleError."""
    try:
        model = core.read_model(str(bundle.model_path))
    except RuntimeError as error:
        raise BundleError(
            f"OpenVINO cannot open {bundle.model_path}: {first_line(error)}.",
            "an ONNX model that this version of OpenVINO knows",
            "Export the bundle again, install a newer openvino, or choose --backend onnxruntime.",
        ) from error
    check_graph(
        bundle, [_describe(each) for each in model.inputs], [_describe(each) for each in model.outputs]
    )
    size = bundle.card.input_size
    model.reshape([1, size.height, size.width, 3])
    return model


def _describe(node: Any) -> Tensor:
    dtype = node.get_element_type().get_type_name()
    sizes = tuple(None if size.is_dynamic else size.get_length() for size in node.get_partial_shape())
    return Tensor(node.get_any_name(), _TYPES.get(dtype, dtype), sizes)


def _choose_precision(core: Any, asked: str | None) -> str:
    if asked is None:
        return "bfloat16" if _computes_bfloat16(core) else "float32"
    if asked == "bfloat16" and not _computes_bfloat16(core):
        raise BackendError(
            "This processor does not compute bfloat16.", "one with AVX512_BF16 or AMX", "Choose float32."
        )
    if asked not in _PRECISIONS:
        raise BackendError(
            f"OpenVINO has no precision {asked!r} here.", ", ".join(_PRECISIONS), "Choose one of them."
        )
    return asked


def _computes_bfloat16(core: Any) -> bool:
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
