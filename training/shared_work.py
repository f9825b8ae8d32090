"""Networks whose work the processes of a run share, exactly as if one process did it all.

Every process has the whole batch and computes the whole loss, because soft Dice, pseudo labels and contrast are taken
over all pictures and do not come apart into means. Only the networks' work is shared: each process passes its part of
the pictures and receives the logits of the others. Within that pass BatchNorm takes the statistics of the whole batch,
and Dropout2d draws as it would for the whole batch, so the random state of all processes stays the same.

The gradient: each process has dL/dlogits of the whole batch, and sends its own part, times the number of processes,
into its network. The mean over processes (Processes.average_gradients) of a shared network's gradients is then the sum
of the parts; that of anything else, which every process computes whole, is what each has already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode

from training.distributed import Processes


@contextmanager
def share_work(networks: Iterable[nn.Module], processes: Processes) -> Iterator[None]:
    """Within it, calling one of `networks` shares the pictures among the processes and gives the logits of all.

    All processes must call them alike, with the same pictures. Where their number cannot be divided, or a method calls
    `features` or `head` itself, every process does the whole work: as exact, but no faster.
    """
    shared = list(networks) if processes.count > 1 else []
    for network in shared:
        network.forward = partial(_forward_part, network.forward, processes)
    try:
        yield
    finally:
        for network in shared:
            del network.forward


def _forward_part(forward: Callable[[Tensor], Tensor], processes: Processes, images_nchw: Tensor) -> Tensor:
    if len(images_nchw) % processes.count:
        return forward(images_nchw)
    with _WholeBatch(processes):
        logits_nchw = forward(images_nchw.chunk(processes.count)[processes.rank])
    gathered: Tensor = _Gather.apply(logits_nchw, processes)
    return gathered


class _Gather(torch.autograd.Function):
    """The outputs of all processes; the gradient of this process's own, times their number."""

    @staticmethod
    def forward(ctx: FunctionCtx, part: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes.gather(part)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        count, rank = ctx.processes.count, ctx.processes.rank
        return gradient.chunk(count)[rank] * count, None


class _WholeBatch(TorchFunctionMode):
    """Within it, BatchNorm and Dropout2d layers of any library treat their input as a part of the whole batch.

    The functions that the layers call are replaced, not the layers: their weights, names and kinds stay as they are.
    """

    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self._replaced = {
            functional.batch_norm: partial(_batch_norm, processes),
            functional.dropout2d: partial(_dropout2d, processes),
        }

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self._replaced.get(function, function)(*args, **(kwargs or {}))


def _dropout2d(
    processes: Processes, values_nchw: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Draws for the channels of the whole batch and uses this process's part of it."""
    if not training or p == 0:
        return values_nchw
    count, channels = len(values_nchw) * processes.count, values_nchw.shape[1]
    kept = functional.dropout2d(values_nchw.new_ones(count, channels, 1, 1), p)
    return values_nchw * kept.chunk(processes.count)[processes.rank]


def _batch_norm(
    processes: Processes,
    values: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """torch.nn.functional.batch_norm with the mean and variance over the parts of all processes, which are of one size.

    torch's own SyncBatchNorm needs CUDA.
    """
    if not training:
        return functional.batch_norm(values, running_mean, running_var, weight, bias, False, momentum, eps)
    with torch.no_grad():
        moments = torch.stack(torch.var_mean(_widen(values), _all_but_channels(values), correction=0))
        variances, means = processes.gather(moments[None]).unbind(dim=1)
        mean = means.mean(dim=0)
        variance = variances.mean(dim=0) + means.var(dim=0, correction=0)
        if running_mean is not None and running_var is not None:
            count = values.numel() // values.shape[1] * processes.count
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (count / (count - 1)), momentum)
    normalised: Tensor = _Normalise.apply(values, weight, bias, mean, (variance + eps).rsqrt(), processes)
    return normalised


class _Normalise(torch.autograd.Function):
    """(x - mean) / deviation * weight + bias by channel, where mean and deviation are those of all processes' x."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        values: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        inverse_deviation: Tensor,
        processes: Processes,
    ) -> Tensor:
        ctx.save_for_backward(values, weight, mean, inverse_deviation)
        ctx.processes = processes
        scale = inverse_deviation if weight is None else inverse_deviation * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        by_channel = _channel_shape(values)
        return torch.addcmul(shift.view(by_channel), values, scale.view(by_channel)).to(values.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, inverse_deviation = ctx.saved_tensors
        by_channel, dims = _channel_shape(values), _all_but_channels(values)
        received = _widen(gradient)
        normal = (_widen(values) - mean.view(by_channel)) * inverse_deviation.view(by_channel)
        sums = torch.stack([received.sum(dims), (received * normal).sum(dims)])
        of_bias, of_weight = sums.clone()
        count = values.numel() // values.shape[1] * ctx.processes.count
        by_mean, by_deviation = (ctx.processes.add_up(sums) / count).view(2, *by_channel)
        scale = inverse_deviation if weight is None else inverse_deviation * weight
        of_values = (received - by_mean - normal * by_deviation) * scale.view(by_channel)
        needed = ctx.needs_input_grad
        return (
            of_values.to(values.dtype),
            of_weight if needed[1] else None,
            of_bias if needed[2] else None,
            None,
            None,
            None,
        )


def _widen(values: Tensor) -> Tensor:
    """float32 at least: autocast's types are too coarse to add up in."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _all_but_channels(values: Tensor) -> list[int]:
    return [0, *range(2, values.ndim)]


def _channel_shape(values: Tensor) -> list[int]:
    return [1, -1, *[1] * (values.ndim - 2)]
