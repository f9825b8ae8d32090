"""Work in a process of its own, so that a client's timing does not suffer from the rest of the measurement."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from service.errors import StreamError


class Child:
    """`python -m MODULE` with a job on its standard input; its result comes back on its standard output.

    Both ends are this program, so pickles are safe here.
    """

    def __init__(self, module: str, job: object) -> None:
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._job = pickle.dumps(job)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, timeout_s: float) -> Any:
        """Hand over the job and wait for the result. Raises StreamError when the child fails or takes too long."""
        try:
            output, _ = self._process.communicate(self._job, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise self._failed(f"had not ended after {timeout_s:.0f} s") from error
        if self._process.returncode:
            raise self._failed(f"ended with {self._process.returncode}")
        return pickle.loads(output)

    def _failed(self, how: str) -> StreamError:
        return StreamError(
            f"The client process {self._module} {how}.", "its results", "See its message above."
        )


def serve_parent(work: Callable[[Any], object]) -> None:
    """The child's main: read the job, do it, write the result."""
    job = pickle.load(sys.stdin.buffer)
    result = work(job)
    sys.stdout.buffer.write(pickle.dumps(result))
    sys.stdout.buffer.flush()
