"""Builds a TensorRT engine of a bundle's graph, in the types that the graph states. Runs without torch.

Written for TensorRT 10.13 and later, and 11: tests/model_export/test_tensorrt_bindings.py holds every call against the
bindings of both.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tensorrt as trt

from model_export.build_progress import BuildProgress
from service.backends.cuda_device import bind_thread
from service.backends.engine_cache import write_atomically
from service.backends.tensorrt_graphs import IMAGE, read_for_tensorrt
from service.backends.tensorrt_log import LOG
from service.contract.model_card import InputSize
from service.errors import BackendError

_MEBIBYTE = 2**20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What an engine is built from and for. `workspace_mib` bounds what a layer may use; None leaves it all."""

    graph: Path
    input_size: InputSize
    batch_sizes: tuple[int, ...]
    timing_cache: Path
    workspace_mib: int | None = None


def build_engine(plan: BuildPlan) -> bytes:
    """An engine with an optimisation profile for each batch size, in their order.

    A profile holds one size alone (least, best and most are the same). The service runs each size as a CUDA graph,
    whose shapes never change: kernels chosen for a range of sizes would be worse, and their range never used. It costs
    a search for each size, of which the timing cache saves what sizes and later builds have in common.

    Ctrl-C ends the build at its next step. Raises BackendError when TensorRT refuses the graph or finds no engine.
    """
    progress = BuildProgress()
    # In a thread of its own: the main thread must be free to hear Ctrl-C.
    with ThreadPoolExecutor(1) as pool:
        built = pool.submit(_build, plan, progress)
        try:
            return built.result()
        except BaseException:
            progress.stop()
            raise


def _build(plan: BuildPlan, progress: BuildProgress) -> bytes:
    bind_thread()
    builder = _make_builder()
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network: trt.INetworkDefinition = builder.create_network(flags)
    _parse(network, plan.graph)
    config: trt.IBuilderConfig = builder.create_builder_config()
    config.progress_monitor = progress
    # float32 means float32: by default its products would be rounded to TF32.
    config.clear_flag(trt.BuilderFlag.TF32)
    if plan.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, plan.workspace_mib * _MEBIBYTE)
    for size in plan.batch_sizes:
        _add_profile(builder, config, plan.input_size, size)
    cache = _load_timing_cache(config, plan.timing_cache)
    serialized: trt.IHostMemory | None = builder.build_serialized_network(network, config)
    if serialized is None:
        if progress.is_stopped:
            raise KeyboardInterrupt
        raise BackendError(
            f"TensorRT {trt.__version__} found no engine for {plan.graph}: {LOG.take_error()}.",
            "a graph that it runs",
            "See the messages above; --workspace-mib and fewer --batch-sizes bound the memory that it needs.",
        )
    _save_timing_cache(cache, plan.timing_cache)
    return bytes(serialized)


def _make_builder() -> trt.Builder:
    try:
        return trt.Builder(LOG)
    except TypeError as error:  # what the bindings make of no builder
        raise BackendError(
            f"TensorRT {trt.__version__} did not start: {LOG.take_error()}.",
            "its libraries and a GPU that it supports",
            "Install the extra `gpu`: pip install 'surgseg[gpu]'; compare its CUDA with the driver's in `nvidia-smi`.",
        ) from error


def _parse(network: trt.INetworkDefinition, graph: Path) -> None:
    parser = trt.OnnxParser(network, LOG)
    if parser.parse(read_for_tensorrt(graph)):
        return
    errors: list[trt.ParserError] = [parser.get_error(index) for index in range(parser.num_errors)]
    described = "; ".join(_describe_error(error) for error in errors) or LOG.take_error()
    raise BackendError(
        f"TensorRT {trt.__version__} cannot read {graph}: {described}.",
        "operators and types that it knows",
        "Choose another --precision, or another version of TensorRT.",
    )


def _describe_error(error: trt.ParserError) -> str:
    node = f"node {error.node()} {error.node_name()!r} ({error.node_operator()})"
    return f"{node}: {error.desc().strip().rstrip('.')}"


def _add_profile(builder: trt.Builder, config: trt.IBuilderConfig, size: InputSize, batch_size: int) -> None:
    shape = trt.Dims((batch_size, size.height, size.width, 3))
    profile: trt.IOptimizationProfile = builder.create_optimization_profile()
    profile.set_shape(IMAGE, shape, shape, shape)
    if config.add_optimization_profile(profile) < 0:
        raise BackendError(
            f"TensorRT refused batches of {batch_size}: {LOG.take_error()}.",
            "a graph whose number of pictures is open",
            "Export the bundle again with `surgseg-export bundle`.",
        )


def _load_timing_cache(config: trt.IBuilderConfig, path: Path) -> trt.ITimingCache:
    """The times that earlier builds measured; none where they are of no use here. It must outlive the build."""
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    cache: trt.ITimingCache | None = config.create_timing_cache(data)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return cache
    _log.warning("%s is not a timing cache of this GPU and TensorRT: everything is measured again", path)
    empty: trt.ITimingCache = config.create_timing_cache(b"")
    config.set_timing_cache(empty, ignore_mismatch=False)
    return empty


def _save_timing_cache(cache: trt.ITimingCache, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, bytes(cache.serialize()))
    except OSError as error:
        _log.warning("the timing cache %s cannot be written (%s)", path, error.strerror or error)
