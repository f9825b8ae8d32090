"""How fast Min-Max Similarity trains: pictures per second and peak memory of our loop and of the released one.

Each loop lives in a process of its own, so that its memory can be told; they take turns, so that a machine that slows
down slows both. What is timed is everything from a picture on disk or in memory to the updated networks.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from service.errors import DataError
from training.config import Recipe
from training.data.batches import open_pools
from training.device import choose_device, choose_precision, peak_memory_bytes, share_cores
from training.distributed import ALONE
from training.throughput_reference import ReleasedLoop
from training.trainer import Trainer, open_unlabeled

METHOD = "min_max_similarity"
LOOPS = ("ours", "as released")
_opened: dict[str, Loop] = {}  # in a child process: its loop


class Loop(Protocol):
    """Something that trains a step at a time; `passes_per_step` counts pictures through a network and back."""

    device: torch.device
    pictures_per_step: int
    passes_per_step: int

    def advance(self) -> object:
        """One step."""


class OurLoop(Trainer):
    """The trainer, a step at a time, without validation and checkpoints."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        super().__init__(recipe, folder)
        labeled = recipe.accumulate * recipe.batch_size
        unlabeled = recipe.accumulate * recipe.unlabeled_batch_size
        self.pictures_per_step = labeled + unlabeled
        self.passes_per_step = labeled + 2 * unlabeled
        self._parts = self._open_batches()

    def advance(self) -> None:
        self._train_step(lambda: self._draw(self._parts))
        self.step += 1


class Turn(NamedTuple):
    """The steps of one loop between two of the other; memory is the most since the loop began."""

    seconds: float
    pictures: int
    passes: int
    peak_memory_bytes: int


def measure(recipe: Recipe, steps: int, rounds: int, warmup: int) -> dict[str, Any]:
    """Let both loops take `rounds` turns of `steps` timed steps, each after `warmup` untimed ones.

    Raises DataError for a recipe of another method, or whose data cannot be used.
    """
    if recipe.method_name != METHOD:
        raise DataError(
            f"The recipe {recipe.name} trains {recipe.method_name}.",
            f"a recipe of {METHOD}, whose released loop is compared",
            f'Use --set method.name="{METHOD}".',
        )
    # every step at full size: smaller pictures at the start would flatter us
    changes = {
        "progressive": (),
        "steps": rounds * (steps + warmup),
        "precision": choose_precision(recipe.precision, choose_device(recipe.device)),
    }
    recipe = recipe.model_copy(update=changes)
    turns: dict[str, list[Turn]] = {name: [] for name in LOOPS}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        context = multiprocessing.get_context("spawn")
        processes = {name: stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for name in LOOPS}
        opening = [process.submit(_open, name, recipe, Path(folder)) for name, process in processes.items()]
        for opened in opening:
            opened.result()
        for _ in range(rounds):
            for name, process in processes.items():
                turns[name].append(process.submit(_take_turn, name, steps, warmup).result())
    return _summarise(recipe, turns)


def _open(name: str, recipe: Recipe, folder: Path) -> None:
    if name == "ours":
        _opened[name] = OurLoop(recipe, folder)
        return
    share_cores(ALONE)
    labeled, unlabeled = (
        [sample for pool in pools for sample in pool.samples]
        for pools in (open_pools(recipe.labeled), open_unlabeled(recipe))
    )
    _opened[name] = ReleasedLoop(recipe, labeled, unlabeled, choose_device(recipe.device))


def _take_turn(name: str, steps: int, warmup: int) -> Turn:
    loop = _opened[name]
    for _ in range(warmup):
        loop.advance()
    _finish(loop.device)
    started = time.perf_counter()
    for _ in range(steps):
        loop.advance()
    _finish(loop.device)
    seconds = time.perf_counter() - started
    return Turn(
        seconds, steps * loop.pictures_per_step, steps * loop.passes_per_step, peak_memory_bytes(loop.device)
    )


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _summarise(recipe: Recipe, turns: dict[str, list[Turn]]) -> dict[str, Any]:
    rates = {name: [turn.pictures / turn.seconds for turn in taken] for name, taken in turns.items()}
    loops = {
        name: {
            "pictures_per_s": statistics.median(rates[name]),
            "pictures_per_s_turns": rates[name],
            "passes_per_s": statistics.median(turn.passes / turn.seconds for turn in taken),
            "peak_memory_bytes": max(turn.peak_memory_bytes for turn in taken),
        }
        for name, taken in turns.items()
    }
    ours, released = (loops[name]["pictures_per_s"] for name in LOOPS)
    is_cuda = choose_device(recipe.device).type == "cuda"
    return {
        "loops": loops,
        "times_faster": ours / released,
        "recipe": recipe.model_dump(mode="json"),
        "device": torch.cuda.get_device_name() if is_cuda else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
    }
