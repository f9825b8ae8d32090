"""ONNX Runtime on an NVIDIA GPU, whichever of its providers computes: fixed addresses, pinned memory, no fallback."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.backends.base import GraphBackend, Images, first_line
from service.backends.cuda_device import DeviceResources, bind_thread, reason_against_gpu
from service.backends.onnx_sessions import check_session, open_session
from service.contract.bundle import Bundle
from service.contract.model_card import Precision
from service.errors import BackendError

IMAGE = "image"


class OnnxOnGpuBackend(GraphBackend):
    """A session whose inputs and outputs lie at the same device addresses for good.

    Calls run one after the other: a session that has captured CUDA graphs may not be run by two threads at once.
    """

    def __init__(
        self,
        bundle: Bundle,
        batch_sizes: tuple[int, ...],
        precision: Precision,
        provider: str,
        provider_options: Mapping[str, str],
        model: bytes | None = None,
    ) -> None:
        super().__init__(bundle, batch_sizes, 1, precision)
        bind_thread()
        onnxruntime.preload_dlls(msvc=False)  # of the extra `gpu`, where the system has no CUDA of its own
        options = onnxruntime.SessionOptions()
        self._session: Any = open_session(
            bundle.path_of(precision), options, provider, {"device_id": "0", **provider_options}, model
        )
        check_session(bundle, precision, self._session)
        self._running = threading.Lock()
        self._resources = DeviceResources()
        try:
            self._allocate(bundle.card.outputs)
            self._bindings = {size: self._bind(size) for size in batch_sizes}
            self._run_each_size_once()
        except BaseException:
            self._resources.close()
            raise

    def close(self) -> None:
        """See `Backend.close`."""
        if not self._is_open:
            return
        super().close()
        with self._running:
            self._bindings.clear()
            self._session = None
            self._resources.close()

    def _infer(self, outputs: list[str], images_nhwc: Images, is_spread: bool) -> list[NDArray[np.uint8]]:
        count = len(images_nhwc)
        with self._running:
            bind_thread()
            self._images_nhwc[:count] = images_nhwc
            self._stream.copy_in(self._addresses[IMAGE], self._images_nhwc[:count])
            self._stream.wait()
            self._run_bound(count)
            for name in outputs:
                self._stream.copy_out(self._masks_nhw[name][:count], self._addresses[name])
            self._stream.wait()
            return [self._masks_nhw[name][:count].copy() for name in outputs]

    def _run_bound(self, count: int) -> None:
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(count))  # a CUDA graph for each batch size
        try:
            self._session.run_with_iobinding(self._bindings[count], options)
            self._bindings[count].synchronize_outputs()
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime failed on the GPU: {first_line(error)}.",
                "a mask",
                "Restart the service; check the GPU's memory with `nvidia-smi`.",
            ) from error

    def _allocate(self, outputs: tuple[str, ...]) -> None:
        size, largest = self._card.input_size, self.batch_sizes[-1]
        resources = self._resources
        self._stream = resources.create_stream()
        self._images_nhwc = resources.allocate_pinned((largest, size.height, size.width, 3))
        self._masks_nhw = {
            name: resources.allocate_pinned((largest, size.height, size.width)) for name in outputs
        }
        self._addresses = {IMAGE: resources.allocate(self._images_nhwc.nbytes)}
        self._addresses |= {name: resources.allocate(each.nbytes) for name, each in self._masks_nhw.items()}

    def _bind(self, size: int) -> Any:
        binding = self._session.io_binding()
        shape = [size, *self._images_nhwc.shape[1:]]
        binding.bind_input(IMAGE, "cuda", 0, np.uint8, shape, self._addresses[IMAGE])
        for name in self._masks_nhw:
            binding.bind_output(name, "cuda", 0, np.uint8, shape[:3], self._addresses[name])
        return binding

    def _run_each_size_once(self) -> None:
        """A graph is captured in the run of its size that follows the first; none should be while frames wait."""
        for size in self.batch_sizes:
            for _ in range(2):
                self._run_bound(size)


def reason_against_provider(provider: str, called: str) -> str | None:
    """Why no session can run on a provider here, in words; None where one can."""
    if provider not in onnxruntime.get_available_providers():
        return f"the installed onnxruntime has no {called} provider: install surgseg[gpu] instead of surgseg[cpu]"
    return reason_against_gpu()
