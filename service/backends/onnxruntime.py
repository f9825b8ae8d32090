"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.backends.base import (
    Confidences,
    Images,
    Masks,
    check_images,
    first_line,
    require_confidence,
    require_precision,
)
from service.backends.graphs import Tensor, check_graph
from service.backends.lanes import Lanes
from service.contract.bundle import Bundle
from service.contract.model_card import CONFIDENCE, MASK
from service.errors import BackendError, BundleError
from service.processors import available_cores, list_cores

_PROVIDER = "CPUExecutionProvider"
_SPIN_US = 500


class OnnxRuntimeBackend:
    """Runs `model.onnx` as it is. `precision` is what the model's metadata says it was exported at.

    A batch of at least as many pictures as there are threads is run side by side, each picture on one thread: a thread
    that another program delays then holds up one picture, not every operator of all (docs/results/realtime.md). A
    smaller batch is run whole, each operator on all threads.
    """

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        *,
        batch_sizes: tuple[int, ...],
        threads: int | None,
        precision: str | None = None,
    ) -> None:
        self.batch_sizes = batch_sizes
        self._card = bundle.card
        threads = threads or available_cores()
        session = _open_session(bundle, threads)
        self._freed_cores = _bind_caller(threads)
        self._side_by_side: _SideBySide | None = None
        if 1 < threads <= batch_sizes[-1]:
            self._side_by_side = _SideBySide(bundle, threads)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        check_graph(bundle, [_describe(each) for each in inputs], [_describe(each) for each in outputs])
        self.precision: str = session.get_modelmeta().custom_metadata_map.get("precision", "float32")
        require_precision(self.name, self.precision, precision)
        self._session: Any | None = session

    @staticmethod
    def reason_against() -> str | None:
        """See `BackendFactory.reason_against`."""
        return None

    def segment(self, images_nhwc: Images) -> Masks:
        """See `Backend.segment`."""
        masks_nhw: Masks = self._run([MASK], images_nhwc)[0]
        return masks_nhw

    def segment_with_confidence(self, images_nhwc: Images) -> tuple[Masks, Confidences]:
        """See `Backend.segment_with_confidence`."""
        require_confidence(self._card)
        masks_nhw, confidences_nhw = self._run([MASK, CONFIDENCE], images_nhwc)
        return masks_nhw, confidences_nhw

    def close(self) -> None:
        """See `Backend.close`."""
        self._session = None
        if self._side_by_side is not None:
            self._side_by_side.close()
        if self._freed_cores:
            os.sched_setaffinity(0, self._freed_cores)
            self._freed_cores = set()

    def _run(self, outputs: list[str], images_nhwc: Images) -> list[NDArray[np.uint8]]:
        check_images(images_nhwc, self._card.input_size, self.batch_sizes)
        if self._session is None:
            raise BackendError("The session is closed.", "an open backend", "Open the bundle again.")
        try:
            if self._side_by_side is not None and len(images_nhwc) >= self._side_by_side.threads:
                return self._side_by_side.run(outputs, images_nhwc)
            results: list[NDArray[np.uint8]] = self._session.run(outputs, {"image": images_nhwc})
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime failed: {first_line(error)}.", "a mask", "Restart the service; check memory."
            ) from error
        return results


class _SideBySide:
    """The same model with a thread for each picture; the caller's thread is one of them."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self.threads = threads
        session = _open_session(bundle, 1)
        self._lanes: Lanes[tuple[list[str], Images], list[NDArray[np.uint8]]] = Lanes(
            lambda task: session.run(task[0], {"image": task[1]}), threads, _plan_helpers(threads)
        )

    def run(self, outputs: list[str], images_nhwc: Images) -> list[NDArray[np.uint8]]:
        """As the session's own `run`. Raises what it raises."""
        tasks = [(outputs, images_nhwc[index : index + 1]) for index in range(len(images_nhwc))]
        return [np.concatenate(parts) for parts in zip(*self._lanes.map(tasks), strict=True)]

    def close(self) -> None:
        """End the helping threads."""
        self._lanes.close()


def _open_session(bundle: Bundle, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Workers that spin between the operators of a run save a third of its time. Spinning on after it would burn the
    # cores that decoding, encoding and the network need, so they give up after about the longest operator that one
    # thread runs alone; with longer spinning the mask's encoding waited, on two cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_US))
    if helpers := _plan_helpers(threads):
        # the runtime counts processors from 1
        affinities = ";".join(str(core + 1) for core in helpers)
        options.add_session_config_entry("session.intra_op_thread_affinities", affinities)
    try:
        session = onnxruntime.InferenceSession(str(bundle.model_path), options, providers=[_PROVIDER])
    except Exception as error:
        raise BundleError(
            f"ONNX Runtime cannot open {bundle.model_path}: {first_line(error)}.",
            "an ONNX model that this version of ONNX Runtime knows",
            "Export the bundle again, or install a newer onnxruntime.",
        ) from error
    if session.get_providers()[0] != _PROVIDER:
        raise BackendError(
            f"ONNX Runtime fell back to {session.get_providers()[0]}.", _PROVIDER, "Install onnxruntime anew."
        )
    return session


def _plan_helpers(threads: int) -> list[int]:
    """A core of its own for each thread but the caller's; none where the machine is not all ours.

    After a pause, such as between two frames of live video, Linux wakes the helping threads on the core of the one that
    calls them, and takes longer than an inference to move them away: at 25 frames a second on two cores that
    doubled the time of every inference (docs/results/realtime.md).
    """
    cores = list_cores()
    return cores[1:] if 1 < threads == len(cores) == available_cores() else []


def _bind_caller(threads: int) -> set[int]:
    """Give the calling thread the core that its helpers leave free; gives the cores that it had before, if it did.

    Only a thread that is there for this backend, as the service's engine is: whatever the program's main thread starts
    later would inherit the core.
    """
    if not _plan_helpers(threads) or threading.current_thread() is threading.main_thread():
        return set()
    before = set(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {list_cores()[0]})
    return before


def _describe(node: Any) -> Tensor:
    dtype = node.type.removeprefix("tensor(").removesuffix(")")
    return Tensor(node.name, dtype, tuple(size if isinstance(size, int) else None for size in node.shape))
