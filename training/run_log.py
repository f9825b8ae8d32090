"""What a run writes down as it goes: `log.jsonl`, and events for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

LOG = "log.jsonl"


class RunLog:
    """Appends to the log of a run's folder; a context manager."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Events of `first_step` and later, which a stopped run left, are superseded."""
        self._path = folder / LOG
        self._board = SummaryWriter(str(folder), purge_step=first_step)

    def write(self, step: int, part: str, values: dict[str, float]) -> None:
        """One line, and one point on each curve `part/name`."""
        for name, value in values.items():
            self._board.add_scalar(f"{part}/{name}", value, step)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "part": part, **values}) + "\n")

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._board.close()
