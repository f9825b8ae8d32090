"""The device that a process trains on: which one, how many threads, what it is slow at, how much memory it took."""

from __future__ import annotations

import os
import platform
import resource
import sys
from typing import Literal

import torch
from torch import Tensor, nn

from service.errors import DataError
from training.distributed import ALONE, Processes

Precision = Literal["float32", "bfloat16"]


def choose_device(name: str, processes: Processes = ALONE) -> torch.device:
    """`auto` takes CUDA where there is one, each process of a machine its own GPU.

    Raises DataError when CUDA is asked for and absent, or when there are more processes than GPUs.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError('The recipe says device = "cuda".', "an NVIDIA GPU", 'Use device = "auto" or "cpu".')
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if processes.local_count > torch.cuda.device_count():
        raise DataError(
            f"{processes.local_count} processes were started on a machine of {torch.cuda.device_count()} GPUs.",
            "a GPU for each",
            'Start fewer with --nproc-per-node, or use device = "cpu".',
        )
    torch.cuda.set_device(processes.local_rank)
    return torch.device("cuda", processes.local_rank)


def share_cores(processes: Processes) -> None:
    """Use all cores of the machine, each process its share; torch's own default leaves hyper-threads idle."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes.local_count))


def choose_precision(wanted: Precision, device: torch.device, quiet: bool = True) -> Precision:
    """bfloat16 where the device computes it, else float32, and says so unless `quiet`.

    A processor that only imitates it took six times as long for a step (docs/training.md).
    """
    if wanted == "float32" or _computes_bfloat16(device):
        return wanted
    if not quiet:
        print(f"precision: float32, because this {device.type} does not compute {wanted}", file=sys.stderr)
    return "float32"


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() in ("x86_64", "AMD64"):  # with AVX-512 alone, oneDNN takes it and imitates it
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def peak_memory_bytes(device: torch.device) -> int:
    """The most that this process has held: of the GPU's memory where it has one, otherwise without loader processes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def spare_slow_kernels(network: nn.Module, device: torch.device) -> None:
    """Let strided depthwise convolutions work in float32 on processors, where the rest is bfloat16.

    The gradient of their weights takes oneDNN 10 to 100 times as long in bfloat16 (docs/results/methods.md): a sixth of
    a training step of the edge network. Without autocast nothing changes.
    """
    if device.type != "cpu":
        return
    for module in network.modules():
        if (
            isinstance(module, nn.Conv2d)
            and module.groups == module.in_channels > 1
            and max(module.stride) > 1
        ):
            _work_in_float32(module)


def _work_in_float32(convolution: nn.Conv2d) -> None:
    plain = convolution.forward

    def forward(maps_nchw: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return plain(maps_nchw)
        with torch.autocast("cpu", enabled=False):
            return plain(maps_nchw.float()).to(torch.get_autocast_dtype("cpu"))

    convolution.forward = forward  # type: ignore[method-assign]
