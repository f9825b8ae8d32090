"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.backends.base import (
    GraphBackend,
    Images,
    first_line,
    reason_against_graph,
    reason_against_int8,
)
from service.backends.onnx_sessions import check_session, open_session
from service.contract.bundle import Bundle
from service.contract.model_card import Precision
from service.errors import BackendError
from service.processors import available_cores, list_cores

_SPIN_US = 500


class OnnxRuntimeBackend(GraphBackend):
    """Runs the bundle's graph of a precision as it is.

    A call that comes alone runs each operator on all threads, bound to a core each. Calls that come while another is
    under way share the threads evenly: a thread that is held up then delays one picture, not every operator of all.
    """

    name = "onnxruntime-cpu"
    version = onnxruntime.__version__
    precisions: tuple[Precision, ...] = ("int8", "float32")

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
        path = bundle.path_of(precision)
        session = _open_session(path, threads)
        self._session: Any = session
        self._shared = session if self.concurrency == 1 else _open_session(path, threads // self.concurrency)
        self._first_core = list_cores()[0] if _plan_helpers(threads) else None
        check_session(bundle, precision, session)

    @staticmethod
    def reason_against(bundle: Bundle, precision: Precision) -> str | None:
        """See `BackendFactory.reason_against`."""
        reason = reason_against_int8() if precision == "int8" else None
        return reason or reason_against_graph(bundle, precision)

    def close(self) -> None:
        """See `Backend.close`."""
        super().close()
        self._session = self._shared = None

    def _infer(self, outputs: list[str], images_nhwc: Images, is_spread: bool) -> list[NDArray[np.uint8]]:
        session = self._session if is_spread else self._shared
        try:
            with _bound_to(self._first_core if is_spread else None):
                results: list[NDArray[np.uint8]] = session.run(outputs, {"image": images_nhwc})
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime failed: {first_line(error)}.", "a mask", "Restart the service; check memory."
            ) from error
        return results


def _open_session(path: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Workers that spin between the operators of a run save a third of its time. Spinning on after it would burn the
    # cores that decoding, encoding and the network need, so they give up after about the longest operator that one
    # thread runs alone; with longer spinning the mask's encoding waited, on two cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_US))
    if helpers := _plan_helpers(threads):
        # the runtime counts processors from 1
        affinities = ";".join(str(core + 1) for core in helpers)
        options.add_session_config_entry("session.intra_op_thread_affinities", affinities)
    return open_session(path, options)


def _plan_helpers(threads: int) -> list[int]:
    """A core of its own for each thread but the caller's; none where the machine is not all ours.

    After a pause, such as between two frames of live video, Linux wakes the helping threads on the core of the one that
    calls them, and takes longer than an inference to move them away: at 25 frames a second on two cores that
    doubled the time of every inference (docs/results/realtime.md).
    """
    cores = list_cores()
    return cores[1:] if 1 < threads == len(cores) == available_cores() else []


@contextmanager
def _bound_to(core: int | None) -> Iterator[None]:
    """The calling thread on that core alone for the time being, as it was before afterwards; None leaves it alone."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
