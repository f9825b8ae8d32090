"""CUDA's runtime as far as we call it, on the processor: it keeps account, and refuses what a GPU would."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

ERRORS = IntEnum(
    "cudaError_t", {"cudaSuccess": 0, "cudaErrorMemoryAllocation": 2, "cudaErrorIllegalAddress": 700}
)
OK = ERRORS.cudaSuccess


class FakeCuda(ModuleType):
    """Stands in for `cuda.bindings.runtime`. `fault` is what every call but the freeing ones answers from now on."""

    cudaError_t = ERRORS
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStream_t = cudaGraphExec_t = int

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.fault: Any = OK
        self.held: dict[int, Any] = {}
        """Whatever was given out and not taken back, by its handle or address."""
        self._bound = threading.local()
        self._recorded: dict[int, list[Callable[[], None]]] = {}
        self._handles = iter(range(1, 1_000_000))

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Do it, or record it where the stream is being captured."""
        assert self.held[stream] == "stream"
        if stream in self._recorded:
            self._recorded[stream].append(work)
        else:
            work()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("cuda") or not callable(found) or isinstance(found, type):
            return found

        def call(*arguments: Any) -> Any:
            if name not in NEEDS_NO_DEVICE:
                assert getattr(self._bound, "device", None) == 0, f"{name} in a thread without a device"
            if (
                self.fault != OK
                and not name.startswith(("cudaFree", "cudaGetError"))
                and "Destroy" not in name
            ):
                return (self.fault, None) if name in GIVES_A_VALUE else (self.fault,)
            return found(*arguments)

        return call

    def cudaSetDevice(self, device: int) -> Any:
        self._bound.device = device
        return (OK,)

    def cudaGetDeviceCount(self) -> Any:
        return OK, 1

    def cudaGetDeviceProperties(self, device: int) -> Any:
        return OK, SimpleNamespace(name=b"Fake GPU", major=9, minor=0)

    def cudaDriverGetVersion(self) -> Any:
        return OK, 13010

    def cudaGetErrorString(self, error: Any) -> Any:
        return OK, b"what CUDA says of it"

    def cudaMalloc(self, size: int) -> Any:
        memory = (ctypes.c_uint8 * size)()
        self.held[ctypes.addressof(memory)] = memory
        return OK, ctypes.addressof(memory)

    def cudaHostAlloc(self, size: int, flags: int) -> Any:
        return self.cudaMalloc(size)

    def cudaFree(self, address: int) -> Any:
        del self.held[address]
        return (OK,)

    cudaFreeHost = cudaStreamDestroy = cudaGraphDestroy = cudaGraphExecDestroy = cudaFree

    def _hold(self, what: Any) -> int:
        handle = next(self._handles)
        self.held[handle] = what
        return handle

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        return OK, self._hold("stream")

    def cudaStreamSynchronize(self, stream: int) -> Any:
        assert stream not in self._recorded, "a stream cannot be waited for while it is captured"
        return (OK,)

    def cudaMemcpyAsync(self, target: int, source: int, count: int, kind: int, stream: int) -> Any:
        self.enqueue(stream, lambda: ctypes.memmove(target, source, count) and None)
        return (OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> Any:
        self._recorded[stream] = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> Any:
        return OK, self._hold(self._recorded.pop(stream))

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:
        return OK, self._hold(self.held[graph])

    def cudaGraphLaunch(self, graph: int, stream: int) -> Any:
        for work in self.held[graph]:
            self.enqueue(stream, work)
        return (OK,)


NEEDS_NO_DEVICE = {
    *("cudaSetDevice", "cudaGetErrorString", "cudaGetDeviceCount", "cudaGetDeviceProperties"),
    "cudaDriverGetVersion",
}
GIVES_A_VALUE = {
    *(
        "cudaMalloc",
        "cudaHostAlloc",
        "cudaStreamCreateWithFlags",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
    ),
    *("cudaGetDeviceCount", "cudaGetDeviceProperties", "cudaDriverGetVersion"),
}
