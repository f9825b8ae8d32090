"""The processes of one training run, started by torchrun: how they meet, talk, fail together and average gradients."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from service.errors import DataError, SurgsegError

# Others wait while the first validates. A process that dies ends the wait at once, so patience costs nothing.
PATIENCE = timedelta(hours=12)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """This process's place among the `count` of the run; `local_` is among those of this machine.

    Every method that talks must be called by all of them, in the same order. It raises DataError when one has ended.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        """The first one validates, logs, saves and speaks."""
        return self.rank == 0

    def part_of(self, length: int) -> range:
        """This process's share of positions 0 to `length`, which `count` divides: one stretch, in order of rank."""
        share = length // self.count
        return range(self.rank * share, (self.rank + 1) * share)

    def check_divides(self, sizes: dict[str, int]) -> None:
        """Raises DataError naming the first of these sizes of the recipe that cannot be shared equally."""
        for key, size in sizes.items():
            if size % self.count:
                raise DataError(
                    f"{key} = {size} cannot be shared by {self.count} processes.",
                    f"a multiple of {self.count}",
                    f"Set {key} = {size + self.count - size % self.count}, or start fewer processes.",
                )

    @contextmanager
    def together(self) -> Iterator[None]:
        """Waits at its end for every process; the error of one is raised by all, so that none waits for ever."""
        error: SurgsegError | None = None
        try:
            yield
        except SurgsegError as raised:
            if self.count == 1:
                raise
            error = raised
        if self.count == 1:
            return
        parts = (error.found, error.expected, error.remedy) if error else None
        errors: list[tuple[str, str, str] | None] = [None] * self.count
        _talk(dist.all_gather_object, errors, parts)
        first = next((parts for parts in errors if parts), None)
        if first:
            raise DataError(*first) from error

    def gather(self, values: Tensor) -> Tensor:
        """The tensors of all processes, of equal shape, one after another along the first dimension; no gradient."""
        if self.count == 1:
            return values
        whole = values.detach().contiguous()
        as_bytes = whole.view(torch.uint8)  # gloo knows few types, but bytes are bytes
        gathered = [torch.empty_like(as_bytes) for _ in range(self.count)]
        _talk(dist.all_gather, gathered, as_bytes)
        return torch.cat(gathered).view(values.dtype)

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.count > 1:
            _talk(dist.all_reduce, values)
        return values

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.count == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        means = self.add_up(flat).div_(self.count).split([gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))


ALONE = Processes()


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Meet the other processes that torchrun started, or be alone. CPU tensors travel by gloo, CUDA ones by NCCL."""
    environment = os.environ
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    processes = Processes(*(int(environment[name]) for name in names))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    _talk(dist.init_process_group, backend, timeout=PATIENCE)
    try:
        yield processes
    except BaseException:
        dist.group.WORLD.abort()  # those that wait for this process learn that it leaves, and nothing waits for them
        raise
    dist.destroy_process_group()


def _talk(operation: Callable[..., Value], *arguments: Any, **options: Any) -> Value:
    try:
        return operation(*arguments, **options)
    except RuntimeError as error:
        raise DataError(
            f"The processes lost each other ({str(error).splitlines()[0][:120]}).",
            "all of them to run to the end",
            "See what another one says, then continue with --resume.",
        ) from error
