"""Shows how far TensorRT has come with an engine, and lets it be stopped."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any, SupportsInt

import tensorrt as trt
from tqdm import tqdm

_LINES_APART_S = 10.0


class BuildProgress(trt.IProgressMonitor):
    """A bar for each phase of a build, those within another below it; where stderr is no terminal, as in a container,
    a line at most every ten seconds. TensorRT calls it from any of its threads."""

    def __init__(self) -> None:
        trt.IProgressMonitor.__init__(self)
        self._lock = threading.Lock()
        self._bars: dict[str, Any] = {}
        self._depths: dict[str, int] = {}
        self._totals: dict[str, int] = {}
        self._said_at = time.monotonic()
        self._is_stopped = False

    def stop(self) -> None:
        """End the build at its next step."""
        self._is_stopped = True

    @property
    def is_stopped(self) -> bool:
        return self._is_stopped

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt) -> None:
        """Called by TensorRT; `parent_phase` is None for a phase that is in no other."""
        with self._lock:
            depth = 0 if parent_phase is None else self._depths.get(parent_phase, -1) + 1
            self._depths[phase_name] = depth
            self._totals[phase_name] = int(num_steps)
            self._bars[phase_name] = tqdm(
                total=int(num_steps), desc=phase_name, position=depth, leave=False, disable=None
            )

    def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
        """Called by TensorRT, with steps counted from 0; False ends the build."""
        with self._lock:
            bar = self._bars.get(phase_name)
            if bar is not None:
                bar.update(int(step) + 1 - bar.n)
            self._say(phase_name, int(step) + 1)
        return not self._is_stopped

    def phase_finish(self, phase_name: str) -> None:
        """Called by TensorRT, also for a phase that was cut short."""
        with self._lock:
            self._depths.pop(phase_name, None)
            bar = self._bars.pop(phase_name, None)
            if bar is not None:
                bar.close()

    def _say(self, phase_name: str, done: int) -> None:
        now = time.monotonic()
        if sys.stderr.isatty() or now - self._said_at < _LINES_APART_S:
            return
        self._said_at = now
        print(f"{phase_name}: {done} of {self._totals.get(phase_name, done)}", file=sys.stderr, flush=True)
