"""TensorRT on an NVIDIA GPU, with an engine that `surgseg-export build` made on this machine.

Written for TensorRT 10.13 and later, and 11: tests/model_export/test_tensorrt_bindings.py holds every call against the
bindings of both.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from queue import Empty, SimpleQueue

import numpy as np
import tensorrt as trt
from numpy.typing import NDArray

from service.backends.base import GraphBackend, Images
from service.backends.cuda_device import (
    CapturedWork,
    DeviceResources,
    bind_thread,
    describe_gpu,
    reason_against_gpu,
)
from service.backends.engine_cache import (
    EngineKeeper,
    Machine,
    StoredEngine,
    find_engine,
    reason_against_engine,
    size_to_run,
)
from service.backends.graphs import Tensor, check_graph
from service.backends.tensorrt_graphs import IMAGE, reason_against_types
from service.backends.tensorrt_log import LOG
from service.contract.bundle import Bundle
from service.contract.model_card import Precision
from service.errors import BackendError

_LANES = 2
_LANE_ENDS_S = 5.0
_TYPES = {trt.DataType.UINT8: "uint8", trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16"}
_log = logging.getLogger(__name__)


class TensorRtBackend(EngineKeeper, GraphBackend):
    """Runs an engine of the bundle from the folder of engines; it never builds one, since that takes minutes.

    Two batches can be under way: while one is computed, the other is copied. A batch size that the engine was not built
    for runs as the next larger one that it was. `threads` says nothing here.
    """

    name = "tensorrt"
    version: str = trt.__version__
    precisions: tuple[Precision, ...] = ("int8", "float16", "float32")

    def __init__(
        self,
        bundle: Bundle,
        *,
        batch_sizes: tuple[int, ...],
        threads: int | None,
        precision: Precision,
    ) -> None:
        super().__init__(bundle, batch_sizes, _LANES, precision)
        self.concurrency = _LANES
        bind_thread()
        stored = find_engine(self.folder(), bundle, precision, describe_machine(), batch_sizes)
        # Both outlive the engine, which does not keep them alive itself.
        self._runtime: trt.Runtime | None = _make_runtime()
        self._engine: trt.ICudaEngine | None = _deserialize(self._runtime, stored)
        inputs, outputs = _describe_tensors(self._engine)
        check_graph(bundle, precision, inputs, outputs)
        self._resources = DeviceResources()
        self._idle: SimpleQueue[_Lane] = SimpleQueue()
        try:
            for _ in range(_LANES):
                plan = _Plan(self._engine, stored.record.batch_sizes, batch_sizes, bundle)
                self._idle.put(_Lane(plan, self._resources))
        except BaseException:
            self._resources.close()
            raise

    @classmethod
    def reason_against(cls, bundle: Bundle, precision: Precision) -> str | None:
        """See `BackendFactory.reason_against`."""
        reason = reason_against_gpu() or reason_against_types(bundle, precision)
        return reason or reason_against_engine(cls.folder(), bundle, precision, describe_machine())

    def close(self) -> None:
        """See `Backend.close`."""
        if not self._is_open:
            return
        super().close()
        try:
            lanes = [self._idle.get(timeout=_LANE_ENDS_S) for _ in range(_LANES)]
        except Empty:
            _log.error("TensorRT still computes after %s s: its memory is not freed", _LANE_ENDS_S)
            return
        for lane in lanes:
            lane.forget()
        self._resources.close()
        self._engine = self._runtime = None

    def _infer(self, outputs: list[str], images_nhwc: Images, is_spread: bool) -> list[NDArray[np.uint8]]:
        bind_thread()
        lane = self._idle.get()
        try:
            return lane.run(outputs, images_nhwc)
        finally:
            self._idle.put(lane)


def describe_machine() -> Machine:
    """What engines are tied to, here. Raises BackendError."""
    return Machine(describe_gpu().compute_capability, trt.__version__)


class _Plan:
    """What both lanes have in common: the engine, its batch sizes, and those that are asked for."""

    def __init__(
        self, engine: trt.ICudaEngine, built: tuple[int, ...], asked: tuple[int, ...], bundle: Bundle
    ) -> None:
        if engine.num_optimization_profiles != len(built):
            raise BackendError(
                f"The engine has {engine.num_optimization_profiles} optimisation profiles.",
                f"one for each of its batch sizes {built}",
                "Build the engine again with `surgseg-export build --force`.",
            )
        self.engine = engine
        self.profiles = {size: number for number, size in enumerate(built)}
        self.size_to_run = {size: size_to_run(size, built) for size in asked}
        self.outputs = bundle.card.outputs
        self.canvas = (bundle.card.input_size.height, bundle.card.input_size.width)


class _Lane:
    """One batch under way: a stream, buffers, and a context with its CUDA graph for each batch size.

    A graph holds the addresses and the context's state of its capture, so nothing of them ever changes. The contexts
    share the memory of what lies between the layers: in a lane one runs at a time.
    """

    def __init__(self, plan: _Plan, resources: DeviceResources) -> None:
        self._plan = plan
        self._resources = resources
        self._stream = resources.create_stream()
        largest = max(plan.size_to_run.values())
        self._images_nhwc = resources.allocate_pinned((largest, *plan.canvas, 3))
        self._masks_nhw = {name: resources.allocate_pinned((largest, *plan.canvas)) for name in plan.outputs}
        self._addresses = {IMAGE: resources.allocate(self._images_nhwc.nbytes)}
        self._addresses |= {name: resources.allocate(each.nbytes) for name, each in self._masks_nhw.items()}
        self._scratch_bytes = plan.engine.device_memory_size_v2
        self._scratch = resources.allocate(self._scratch_bytes)
        self._contexts: list[trt.IExecutionContext] = []
        self._graphs = {size: self._prepare(size) for size in sorted(set(plan.size_to_run.values()))}

    def run(self, outputs: list[str], images_nhwc: Images) -> list[NDArray[np.uint8]]:
        """Those outputs, in arrays of their own. Raises BackendError."""
        count = len(images_nhwc)
        self._images_nhwc[:count] = images_nhwc
        self._graphs[self._plan.size_to_run[count]].start()
        self._stream.wait()
        return [self._masks_nhw[name][:count].copy() for name in outputs]

    def forget(self) -> None:
        """Let go of the contexts, before the memory that they use is freed."""
        self._graphs.clear()
        self._contexts.clear()

    def _prepare(self, size: int) -> CapturedWork:
        context = self._make_context(size)

        def issue() -> None:
            self._stream.copy_in(self._addresses[IMAGE], self._images_nhwc[:size])
            _require(context.execute_async_v3(self._stream.address), f"run a batch of {size}")
            for name, masks_nhw in self._masks_nhw.items():
                self._stream.copy_out(masks_nhw[:size], self._addresses[name])

        issue()  # what TensorRT does only once, it must have done before the capture
        self._stream.wait()
        work = self._resources.capture(self._stream, issue)
        self._contexts.append(context)
        return work

    def _make_context(self, size: int) -> trt.IExecutionContext:
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context: trt.IExecutionContext | None = self._plan.engine.create_execution_context(strategy)
        if context is None:
            raise _failure(f"make a context for batches of {size}")
        profile = self._plan.profiles[size]
        _require(
            context.set_optimization_profile_async(profile, self._stream.address), f"take profile {profile}"
        )
        self._stream.wait()
        context.set_device_memory(self._scratch, self._scratch_bytes)
        shape = (size, *self._plan.canvas, 3)
        _require(context.set_input_shape(IMAGE, shape), f"take images of {shape}")
        for name, address in self._addresses.items():
            _require(context.set_tensor_address(name, address), f"bind {name}")
        return context


def _make_runtime() -> trt.Runtime:
    try:
        return trt.Runtime(LOG)
    except TypeError as error:  # what the bindings make of no runtime
        raise _failure("start") from error


def _deserialize(runtime: trt.Runtime, stored: StoredEngine) -> trt.ICudaEngine:
    engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(stored.read())
    if engine is None:
        raise _failure(f"read {stored.path}")
    return engine


def _describe_tensors(engine: trt.ICudaEngine) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The engine's inputs and its outputs."""
    found: dict[trt.TensorIOMode, list[Tensor]] = {trt.TensorIOMode.INPUT: [], trt.TensorIOMode.OUTPUT: []}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        dtype: trt.DataType = engine.get_tensor_dtype(name)
        shape: trt.Dims = engine.get_tensor_shape(name)
        sizes = tuple(None if shape[axis] < 0 else shape[axis] for axis in range(len(shape)))
        found[engine.get_tensor_mode(name)].append(Tensor(name, _TYPES.get(dtype, dtype.name.lower()), sizes))
    return found[trt.TensorIOMode.INPUT], found[trt.TensorIOMode.OUTPUT]


def _require(done: bool, action: str) -> None:
    if not done:
        raise _failure(action)


def _failure(action: str) -> BackendError:
    return BackendError(
        f"TensorRT {trt.__version__} did not {action}: {LOG.take_error()}.",
        "an engine that this machine runs",
        "Build the engine again with `surgseg-export build --force`; check the GPU's memory with `nvidia-smi`.",
    )
