"""The CUDA calls that the backends of an NVIDIA GPU share: memory, streams, graphs. Every status is checked.

All of them use the process's first GPU; `CUDA_VISIBLE_DEVICES` decides which that is.
"""

from __future__ import annotations

import ctypes
import logging
import math
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import numpy as np
from cuda.bindings import runtime
from numpy.typing import NDArray

from service.backends.base import first_line
from service.errors import BackendError

_DEVICE = 0
_DRIVER = "libcuda.so.1"
_log = logging.getLogger(__name__)
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Gpu:
    """What this machine computes on; `driver_cuda` is the newest CUDA that its driver runs, as 13.1."""

    name: str
    compute_capability: str
    driver_cuda: str


def reason_against_gpu() -> str | None:
    """Why nothing here runs on an NVIDIA GPU, in words; None where there is one."""
    try:
        ctypes.CDLL(_DRIVER)
    except OSError as error:
        return f"there is no NVIDIA GPU here, or no driver for it ({first_line(error)})"
    status, count = runtime.cudaGetDeviceCount()
    if status != runtime.cudaError_t.cudaSuccess:
        return f"the NVIDIA driver here finds no GPU that CUDA runs on ({_describe(status)})"
    return None if count else "the NVIDIA driver here finds no GPU"


def describe_gpu() -> Gpu:
    """The GPU that everything runs on. Raises BackendError."""
    properties = _checked(runtime.cudaGetDeviceProperties(_DEVICE))
    driver = _checked(runtime.cudaDriverGetVersion())
    return Gpu(
        name=properties.name.decode(),
        compute_capability=f"{properties.major}.{properties.minor}",
        driver_cuda=f"{driver // 1000}.{driver % 1000 // 10}",
    )


def bind_thread() -> None:
    """Let the calling thread's CUDA calls go to the GPU; every thread must, before any other. Raises BackendError."""
    _checked(runtime.cudaSetDevice(_DEVICE))


class DeviceResources:
    """Allocates on the GPU and owns what it gave: `close` frees all of it, the latest first.

    For the thread that opens and closes a backend; every method but `close` raises BackendError when CUDA refuses.
    """

    def __init__(self) -> None:
        self._owned = ExitStack()

    def allocate(self, size_bytes: int) -> int:
        """The address of device memory, aligned to at least 256 bytes."""
        address: int = _checked(runtime.cudaMalloc(max(1, size_bytes)))
        self._owned.callback(_release, runtime.cudaFree, address)
        return address

    def allocate_pinned(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """A uint8 array in memory that is never swapped: copies from and to it need no processor.

        It and all its views are invalid after `close`.
        """
        size_bytes = math.prod(shape)
        address: int = _checked(runtime.cudaHostAlloc(size_bytes, runtime.cudaHostAllocDefault))
        self._owned.callback(_release, runtime.cudaFreeHost, address)
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))
        array[:] = 0
        return array.reshape(shape)

    def create_stream(self) -> Stream:
        """A stream of its own: work in it waits for no other's."""
        handle = _checked(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        self._owned.callback(_release, runtime.cudaStreamDestroy, handle)
        return Stream(handle)

    def capture(self, stream: Stream, issue: Callable[[], None]) -> CapturedWork:
        """What `issue` puts into the stream, to be started again by one call; nothing of it runs now.

        Addresses are those of now for good. Other threads may use the GPU meanwhile.
        """
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _checked(runtime.cudaStreamBeginCapture(stream.handle, mode))
        try:
            issue()
        except BaseException:
            runtime.cudaStreamEndCapture(stream.handle)  # the capture is void; its error would hide the cause
            raise
        graph = _checked(runtime.cudaStreamEndCapture(stream.handle))
        try:
            executable = _checked(runtime.cudaGraphInstantiate(graph, 0))
        finally:
            _release(runtime.cudaGraphDestroy, graph)
        self._owned.callback(_release, runtime.cudaGraphExecDestroy, executable)
        return CapturedWork(executable, stream)

    def close(self) -> None:
        """Free everything, from any thread. What CUDA does not free, as after an error, is logged."""
        with suppress(BackendError):
            bind_thread()
        self._owned.close()


@dataclass(frozen=True, slots=True)
class Stream:
    """Work that runs in its order on the GPU, beside that of other streams."""

    handle: runtime.cudaStream_t

    @property
    def address(self) -> int:
        """The stream as other libraries take it."""
        return int(self.handle)

    def copy_in(self, address: int, array: NDArray[np.uint8]) -> None:
        """Begin to copy a contiguous array to device memory; it must stay as it is until `wait`."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        _checked(runtime.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self.handle))

    def copy_out(self, array: NDArray[np.uint8], address: int) -> None:
        """Begin to fill a contiguous array from device memory; it is complete after `wait`."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _checked(runtime.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, self.handle))

    def wait(self) -> None:
        """Until all that was begun has ended. Raises BackendError when any of it failed."""
        _checked(runtime.cudaStreamSynchronize(self.handle))


@dataclass(frozen=True, slots=True)
class CapturedWork:
    """A CUDA graph: copies and kernels with the addresses they were captured with."""

    executable: runtime.cudaGraphExec_t
    stream: Stream

    def start(self) -> None:
        """Begin all of it in its stream. Raises BackendError."""
        _checked(runtime.cudaGraphLaunch(self.executable, self.stream.handle))


@overload
def _checked(result: tuple[runtime.cudaError_t]) -> None: ...


@overload
def _checked(result: tuple[runtime.cudaError_t, _Value]) -> _Value: ...


def _checked(result: tuple[Any, ...]) -> Any:
    """The value that a CUDA call gave beside its status, None where it gives none. Raises BackendError."""
    status, *values = result
    if status != runtime.cudaError_t.cudaSuccess:
        raise BackendError(
            f"CUDA failed: {_describe(status)}.",
            "a GPU that answers",
            "Restart the service: after such an error a process cannot use the GPU again. If it comes back, see "
            "`nvidia-smi` and the kernel's log.",
        )
    return values[0] if values else None


def _release(free: Callable[[Any], tuple[runtime.cudaError_t]], handle: Any) -> None:
    (status,) = free(handle)
    if status != runtime.cudaError_t.cudaSuccess:
        _log.warning("CUDA did not free what a backend held: %s", _describe(status))


def _describe(status: runtime.cudaError_t) -> str:
    _, text = runtime.cudaGetErrorString(status)
    return f"{status.name}: {text.decode()}"
