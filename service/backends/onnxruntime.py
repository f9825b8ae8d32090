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
    available_cores,
    check_images,
    list_cores,
    require_confidence,
)
from service.contract.bundle import Bundle
from service.contract.model_card import CONFIDENCE, MASK
from service.errors import BackendError, BundleError

_PROVIDER = "CPUExecutionProvider"
_SPIN_US = 500


class OnnxRuntimeBackend:
    """Runs `model.onnx` as it is. `precision` is what the model's metadata says it was exported at."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, *, batch_sizes: tuple[int, ...], threads: int | None) -> None:
        self.batch_sizes = batch_sizes
        self._card = bundle.card
        threads = threads or available_cores()
        session = _open_session(bundle, threads)
        self._freed_cores = _bind_caller(threads)
        _check_graph(session, bundle)
        self.precision: str = session.get_modelmeta().custom_metadata_map.get("precision", "float32")
        self._session: Any | None = session

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
        if self._freed_cores:
            os.sched_setaffinity(0, self._freed_cores)
            self._freed_cores = set()

    def _run(self, outputs: list[str], images_nhwc: Images) -> list[NDArray[np.uint8]]:
        check_images(images_nhwc, self._card.input_size, self.batch_sizes)
        if self._session is None:
            raise BackendError("The session is closed.", "an open backend", "Open the bundle again.")
        try:
            results: list[NDArray[np.uint8]] = self._session.run(outputs, {"image": images_nhwc})
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime failed: {_first_line(error)}.", "a mask", "Restart the service; check memory."
            ) from error
        return results


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
    if affinities := _plan_affinities(threads):
        options.add_session_config_entry("session.intra_op_thread_affinities", affinities)
    try:
        session = onnxruntime.InferenceSession(str(bundle.model_path), options, providers=[_PROVIDER])
    except Exception as error:
        raise BundleError(
            f"ONNX Runtime cannot open {bundle.model_path}: {_first_line(error)}.",
            "an ONNX model that this version of ONNX Runtime knows",
            "Export the bundle again, or install a newer onnxruntime.",
        ) from error
    if session.get_providers()[0] != _PROVIDER:
        raise BackendError(
            f"ONNX Runtime fell back to {session.get_providers()[0]}.", _PROVIDER, "Install onnxruntime anew."
        )
    return session


def _plan_affinities(threads: int) -> str:
    """A core of its own for each thread but the caller's; empty where the machine is not all ours.

    After a pause, such as between two frames of live video, Linux wakes the helping threads on the core of the one that
    calls them, and takes longer than an inference to move them away: at 25 frames a second on two cores that
    doubled the time of every inference (docs/results/realtime.md).
    """
    cores = list_cores()
    if threads < 2 or threads != len(cores) or threads != available_cores():
        return ""
    return ";".join(str(core + 1) for core in cores[1:])  # the runtime counts processors from 1


def _bind_caller(threads: int) -> set[int]:
    """Give the calling thread the core that its helpers leave free; gives the cores that it had before, if it did.

    Only a thread that is there for this backend, as the service's engine is: whatever the program's main thread starts
    later would inherit the core.
    """
    if not _plan_affinities(threads) or threading.current_thread() is threading.main_thread():
        return set()
    before = set(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {list_cores()[0]})
    return before


def _check_graph(session: Any, bundle: Bundle) -> None:
    """The graph must be what the card says, or everything after it would work on the wrong bytes."""
    size = bundle.card.input_size
    outputs = session.get_outputs()
    if missing := sorted(set(bundle.card.outputs) - {output.name for output in outputs}):
        raise _graph_error(bundle, f"has no output {missing[0]!r}", "the outputs that its card names")
    _check_tensor(bundle, "image", session.get_inputs(), [size.height, size.width, 3])
    for name in (MASK, CONFIDENCE) if bundle.card.has_confidence else (MASK,):
        found = [each for each in outputs if each.name == name]
        _check_tensor(bundle, name, found, [size.height, size.width])


def _check_tensor(bundle: Bundle, name: str, tensors: list[Any], shape: list[int]) -> None:
    """One tensor of that name, uint8, a dynamic first dimension, and `shape` after it."""
    found = [(each.name, each.type, list(each.shape[1:]), isinstance(each.shape[0], int)) for each in tensors]
    if found != [(name, "tensor(uint8)", shape, False)]:
        described = ", ".join(f"{each.name} {each.type} {each.shape}" for each in tensors) or "none"
        expected = f"one {name!r}, uint8 (N, {', '.join(map(str, shape))}) with a dynamic N"
        raise _graph_error(bundle, f"has for {name!r}: {described}", expected)


def _graph_error(bundle: Bundle, found: str, expected: str) -> BundleError:
    return BundleError(
        f"{bundle.model_path} {found}.", expected, "Export the bundle again with `surgseg-export bundle`."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [error.__class__.__name__])[0].rstrip(".")
