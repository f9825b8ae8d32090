"""TensorRT as far as we call it, computed by ONNX Runtime on the processor: it refuses what TensorRT would.

That the real one has these calls is proven in tests/model_export/test_tensorrt_bindings.py; here they are made.
"""

from __future__ import annotations

import json
from enum import IntEnum
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.service.fake_cuda import FakeCuda

SCRATCH_BYTES = 4096


class FakeTensorRt(ModuleType):
    """Stands in for `tensorrt`. `alter` changes what engines compute, `refuses` makes the parser refuse a graph."""

    __version__ = "10.16.1.11"
    DataType = IntEnum("DataType", "UINT8 FLOAT HALF")
    TensorIOMode = IntEnum("TensorIOMode", "INPUT OUTPUT")
    ExecutionContextAllocationStrategy = IntEnum("ExecutionContextAllocationStrategy", "STATIC USER_MANAGED")
    NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
    BuilderFlag = IntEnum("BuilderFlag", "TF32")
    MemoryPoolType = IntEnum("MemoryPoolType", "WORKSPACE")
    Dims = tuple

    class ILogger:
        Severity = IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    class IProgressMonitor:
        pass

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__("tensorrt")
        self.cuda = cuda
        self.alter = lambda masks_nhw: masks_nhw
        self.refuses = False
        self.builds = 0
        for each in (
            IHostMemory,
            INetworkDefinition,
            IBuilderConfig,
            IOptimizationProfile,
            ITimingCache,
            ParserError,
        ):
            setattr(self, each.__name__, each)
        self.ICudaEngine, self.IExecutionContext = Engine, Context

    def Runtime(self, logger: Any) -> Any:
        return Runtime(self, logger)

    def Builder(self, logger: Any) -> Any:
        return Builder(self, logger)

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        return OnnxParser(self, network)


class IHostMemory(bytes):
    pass


class INetworkDefinition:
    model = b""


class IOptimizationProfile:
    def set_shape(self, name: str, least: tuple, best: tuple, most: tuple) -> None:
        assert name == "image" and least == best == most
        self.size = best[0]


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> IHostMemory:
        return IHostMemory(b"times")


class IBuilderConfig:
    progress_monitor: Any = None

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def clear_flag(self, flag: int) -> None:
        self.is_exact = True

    def set_memory_pool_limit(self, pool: int, size: int) -> None:
        self.workspace_bytes = size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.sizes.append(profile.size)
        return len(self.sizes) - 1

    def create_timing_cache(self, data: bytes) -> ITimingCache:
        return ITimingCache(data)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        return cache.data in (b"", b"times")


class ParserError:
    def node(self) -> int:
        return 7

    def node_name(self) -> str:
        return "decoder/Resize_3"

    def node_operator(self) -> str:
        return "Resize"

    def desc(self) -> str:
        return "Unsupported mode."


class OnnxParser:
    num_errors = 1

    def __init__(self, trt: FakeTensorRt, network: INetworkDefinition) -> None:
        self._trt, self._network = trt, network

    def parse(self, model: bytes) -> bool:
        self._network.model = model
        (first,) = [node for node in onnx.load_from_string(model).graph.node if "image" in node.input]
        assert first.op_type == "Cast", "TensorRT takes bytes into nothing but a cast"
        return not self._trt.refuses

    def get_error(self, index: int) -> ParserError:
        return ParserError()


class Builder:
    def __init__(self, trt: FakeTensorRt, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def create_network(self, flags: int) -> INetworkDefinition:
        assert flags == 1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        self._trt.builds += 1
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        monitor.phase_start("Tactics", "Building", len(config.sizes))
        goes_on = True
        for number in range(len(config.sizes)):
            goes_on &= monitor.step_complete("Tactics", number)
        monitor.phase_finish("Tactics")
        monitor.phase_finish("Building")
        if not goes_on:
            return None
        return IHostMemory(json.dumps(config.sizes).encode() + b"\n" + network.model)


class Runtime:
    def __init__(self, trt: FakeTensorRt, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def deserialize_cuda_engine(self, data: bytes) -> Any:
        sizes, separator, model = data.partition(b"\n")
        if not separator:
            self._logger.log(self._trt.ILogger.Severity.ERROR, "no engine at all\n")
            return None
        return Engine(self._trt, json.loads(sizes), onnxruntime.InferenceSession(model))


class Engine:
    device_memory_size_v2 = SCRATCH_BYTES

    def __init__(self, trt: FakeTensorRt, sizes: list[int], session: Any) -> None:
        self.trt, self.sizes, self.session = trt, sizes, session
        self._nodes = [*session.get_inputs(), *session.get_outputs()]
        self.num_io_tensors = len(self._nodes)
        self.num_optimization_profiles = len(sizes)
        self.busy: set[int] = set()
        """The memory between the layers of whatever is being computed."""

    def get_tensor_name(self, index: int) -> str:
        return self._nodes[index].name

    def get_tensor_mode(self, name: str) -> int:
        modes = self.trt.TensorIOMode
        return modes.INPUT if name in [node.name for node in self.session.get_inputs()] else modes.OUTPUT

    def _find(self, name: str) -> Any:
        return next(node for node in self._nodes if node.name == name)

    def get_tensor_dtype(self, name: str) -> int:
        types = self.trt.DataType
        return {"tensor(uint8)": types.UINT8, "tensor(float)": types.FLOAT}[self._find(name).type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self._find(name).shape)

    def create_execution_context(self, strategy: int) -> Any:
        assert strategy == self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine, self._size = engine, 0
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._size = self._engine.sizes[index]
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert address in self._engine.trt.cuda.held and size >= SCRATCH_BYTES
        self._scratch = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return shape[0] == self._size

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in [node.name for node in self._engine._nodes]

    def execute_async_v3(self, stream: int) -> bool:
        self._engine.trt.cuda.enqueue(stream, self._compute)
        return True

    def _compute(self) -> None:
        held = self._engine.trt.cuda.held
        busy = self._engine.busy
        assert self._scratch in held, "the memory between the layers was freed"
        assert self._scratch not in busy, "two batches use the same memory between the layers"
        busy.add(self._scratch)
        images = np.ctypeslib.as_array(held[self._addresses["image"]])[: np.prod(self._shape)].reshape(
            self._shape
        )
        names = [node.name for node in self._engine.session.get_outputs()]
        for name, values in zip(names, self._engine.session.run(names, {"image": images}), strict=True):
            altered = self._engine.trt.alter(values) if name == "mask" else values
            np.ctypeslib.as_array(held[self._addresses[name]])[: values.size] = altered.ravel()
        busy.remove(self._scratch)
