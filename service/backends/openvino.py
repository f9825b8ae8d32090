"""OpenVINO on the CPU: the quickest runtime where the processor computes bfloat16 (docs/results/runtimes.md)."""

from __future__ import annotations

import sys
from queue import SimpleQueue
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from service.backends.base import (
    GraphBackend,
    Images,
    SlowCompiler,
    first_line,
    reason_against_graph,
    reason_against_int8,
)
from service.backends.graphs import Tensor, check_graph
from service.contract.bundle import Bundle
from service.contract.model_card import Precision
from service.errors import BackendError, BundleError
from service.processors import available_cores, list_cores, run_idle

# OpenVINO's conversion tools report their use over the internet where they find this package. Nothing here uses them,
# and in a hospital nothing should be able to.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

_TYPES = {"u8": "uint8", "f32": "float32"}


class OpenVinoBackend(SlowCompiler, GraphBackend):
    """Runs the bundle's graph of a precision; bfloat16 is computed from the graph in float32.

    An urgent call that comes alone runs on all threads. Other calls share the threads evenly: a thread that is held up
    then delays one picture, not every operator of all, and none burns a core by waiting for the other's half. The
    pictures of a batch run in turn.
    """

    name = "openvino"
    version = openvino.__version__.partition("-")[0]
    precisions: tuple[Precision, ...] = ("int8", "bfloat16", "float32")
    # The threads that compute are OpenVINO's, for all models. Started by an idle thread, they would stay as idle.
    _has_workers: ClassVar[bool] = False

    def __init__(
        self,
        bundle: Bundle,
        *,
        batch_sizes: tuple[int, ...],
        threads: int | None,
        precision: Precision,
    ) -> None:
        threads = threads or available_cores()
        super().__init__(bundle, batch_sizes, threads, precision)
        if self.compiled_folder is None or not OpenVinoBackend._has_workers:
            self._compile(bundle, threads)
            OpenVinoBackend._has_workers = True
        else:
            run_idle(lambda: self._compile(bundle, threads))

    def _compile(self, bundle: Bundle, threads: int) -> None:
        core = openvino.Core()
        if self.compiled_folder is not None:
            core.set_property({"CACHE_DIR": str(self.compiled_folder)})
        model = _read_model(core, bundle, self.precision)
        hint = _hint(core, self.precision)
        self._whole = _Network(core, model, hint, threads, at_once=1)
        self._shared = self._whole
        if self.concurrency > 1:
            self._shared = _Network(core, model, hint, threads, at_once=self.concurrency)

    @staticmethod
    def reason_against(bundle: Bundle, precision: Precision) -> str | None:
        """See `BackendFactory.reason_against`."""
        if precision == "bfloat16" and not _computes_bfloat16(openvino.Core()):
            return "this processor does not compute bfloat16 (AVX512_BF16 or AMX)"
        reason = reason_against_int8() if precision == "int8" else None
        return reason or reason_against_graph(bundle, precision)

    def close(self) -> None:
        """See `Backend.close`."""
        super().close()
        run_idle(self._forget)

    def _forget(self) -> None:
        self._whole = self._shared = None  # type: ignore[assignment]

    def _infer(self, outputs: list[str], images_nhwc: Images, is_spread: bool) -> list[NDArray[np.uint8]]:
        try:
            return (self._whole if is_spread else self._shared).run(outputs, images_nhwc)
        except RuntimeError as error:
            raise BackendError(
                f"OpenVINO failed: {first_line(error)}.", "a mask", "Restart the service; check memory."
            ) from error


class _Network:
    """The model compiled for one picture a request; `at_once` requests share the threads."""

    def __init__(self, core: Any, model: Any, hint: str, threads: int, at_once: int) -> None:
        compiled = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": hint,
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": at_once,
                # Threads of one inference that are not bound wait for each other when Linux puts two on one core, as
                # after a pause between frames. Inferences of one thread wait for nobody, and must be able to make way
                # for a decoder; so must all where others may run on the same cores.
                "ENABLE_CPU_PINNING": at_once == 1 and threads == len(list_cores()) == available_cores(),
            },
        )
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if used != hint:
            raise BackendError(
                f"OpenVINO fell back to {used}.",
                hint,
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


def _read_model(core: Any, bundle: Bundle, precision: Precision) -> Any:
    """The bundle's graph of a precision, checked, with a batch of one. Raises BundleError."""
    path = bundle.path_of(precision)
    try:
        model = core.read_model(str(path))
    except RuntimeError as error:
        raise BundleError(
            f"OpenVINO cannot open {path}: {first_line(error)}.",
            "an ONNX model that this version of OpenVINO knows",
            "Export the bundle again, install a newer openvino, or choose --backend onnxruntime-cpu.",
        ) from error
    check_graph(
        bundle,
        precision,
        [_describe(each) for each in model.inputs],
        [_describe(each) for each in model.outputs],
    )
    size = bundle.card.input_size
    model.reshape([1, size.height, size.width, 3])
    return model


def _describe(node: Any) -> Tensor:
    dtype = node.get_element_type().get_type_name()
    sizes = tuple(None if size.is_dynamic else size.get_length() for size in node.get_partial_shape())
    return Tensor(node.get_any_name(), _TYPES.get(dtype, dtype), sizes)


def _hint(core: Any, precision: Precision) -> str:
    """What OpenVINO computes floating-point layers in: those of an int8 graph too, which are few and small."""
    return "bf16" if precision != "float32" and _computes_bfloat16(core) else "f32"


def _computes_bfloat16(core: Any) -> bool:
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
