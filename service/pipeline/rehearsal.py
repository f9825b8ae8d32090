"""A bundle is opened and proven in a process of its own before the service opens it.

That process has the lowest priority, is the first that Linux kills when memory runs out, and can be ended at any time:
a runtime that crashes, hangs or eats memory over a bundle takes nothing from the streams that are served meanwhile.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from service.contract.bundle import Bundle, open_bundle
from service.errors import BackendError, SurgsegError
from service.pipeline.model_terms import ModelTerms
from service.pipeline.proof import prove_backend

# The libraries too are loaded at the lowest priority. A process of Linux's idle policy gives way at once to a thread
# that wakes up; one that is only nice may first run for some milliseconds more.
_PROGRAM = """
import os
if hasattr(os, "SCHED_IDLE"):
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
else:
    os.nice(19)
from service.pipeline.rehearsal import main
main()
"""


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """A bundle that can be served: `terms` name the backend and the precision that were proven."""

    terms: ModelTerms
    frame_cost_s: float


class Rehearsal:
    """Rehearses bundles, one at a time; any thread may stop it for good."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._is_stopped = False

    def rehearse(self, bundle: Bundle, terms: ModelTerms, limit_s: float) -> Rehearsed:
        """Open and prove a bundle. Raises BackendError where it cannot be, or not within `limit_s`."""
        job = {"bundle": str(bundle.folder), "fingerprint": bundle.fingerprint, "limit_s": limit_s}
        with self._lock:
            if self._is_stopped:
                raise _killed()
            self._process = process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        with process:
            try:
                output, _ = process.communicate(json.dumps(job | _pack(terms)), timeout=limit_s)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise _too_slow(limit_s) from error
        if process.returncode:
            raise _describe_end(process.returncode, limit_s)
        return _read_answer(json.loads(output.splitlines()[-1]), terms)

    def stop(self) -> None:
        """End what is being rehearsed and rehearse nothing more; twice does nothing."""
        with self._lock:
            self._is_stopped = True
            if self._process is not None:
                self._process.kill()


@contextmanager
def make_folder() -> Iterator[Path | None]:
    """Where the rehearsal leaves what it compiles, for as long as a change takes.

    None where nothing can be written; then it is compiled twice.
    """
    with ExitStack() as stack:
        try:
            folder = Path(
                stack.enter_context(TemporaryDirectory(prefix="surgseg-", ignore_cleanup_errors=True))
            )
        except OSError:
            folder = None
        yield folder


def main() -> None:
    """The child: read a job, open and prove its bundle, say what it costs or what is wrong."""
    logging.disable()  # what matters is in the answer
    job = json.loads(sys.stdin.read())
    signal.setitimer(signal.ITIMER_REAL, job["limit_s"])  # an orphan ends as well
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    try:
        answer = _rehearse(job)
    except SurgsegError as error:
        answer = {"found": error.found, "expected": error.expected, "remedy": error.remedy}
    except MemoryError:
        answer = _explain("There is not enough memory to open the bundle beside the one that is served")
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises over a bundle is the answer
        answer = _explain(f"The bundle cannot be opened ({error.__class__.__name__}: {error})")
    print(json.dumps(answer), flush=True)


def _rehearse(job: dict[str, Any]) -> dict[str, Any]:
    bundle = open_bundle(Path(job["bundle"]))
    if bundle.fingerprint != job["fingerprint"]:
        return _explain(f"The bundle {bundle.folder} was changed while it was being opened")
    backend = _unpack(job).open(bundle)
    try:
        cost_s = prove_backend(backend, bundle)
        return {"backend": backend.name, "precision": backend.precision, "frame_cost_s": cost_s}
    finally:
        backend.close()


def _explain(found: str) -> dict[str, Any]:
    error = _fault(found)
    return {"found": error.found, "expected": error.expected, "remedy": error.remedy}


def _pack(terms: ModelTerms) -> dict[str, Any]:
    folders = {"engines": terms.engines, "compiled": terms.compiled}
    return {"terms": asdict(terms) | {name: folder and str(folder) for name, folder in folders.items()}}


def _unpack(job: dict[str, Any]) -> ModelTerms:
    terms = ModelTerms(**job["terms"])
    return replace(
        terms,
        batch_sizes=tuple(terms.batch_sizes),
        engines=terms.engines and Path(terms.engines),
        compiled=terms.compiled and Path(terms.compiled),
    )


def _read_answer(answer: dict[str, Any], terms: ModelTerms) -> Rehearsed:
    if "found" in answer:
        raise BackendError(answer["found"], answer["expected"], answer["remedy"])
    proven = replace(terms, backend=answer["backend"], precision=answer["precision"])
    return Rehearsed(proven, answer["frame_cost_s"])


def _describe_end(code: int, limit_s: float) -> BackendError:
    if -code == signal.SIGALRM:
        return _too_slow(limit_s)
    if -code == signal.SIGKILL:
        return _killed()
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
    return _fault(f"The process that opened the bundle on trial ended {how}")


def _killed() -> BackendError:
    return _fault("The process that opened the bundle on trial was killed: memory may have run out")


def _too_slow(limit_s: float) -> BackendError:
    return BackendError(
        f"The bundle was not open and proven after {limit_s:.0f} s.",
        "a bundle that opens within SURGSEG_SWAP_LIMIT_S",
        "Raise it, free the machine, or start the service anew with this bundle.",
    )


def _fault(found: str) -> BackendError:
    return BackendError(
        f"{found}.",
        "a bundle that this machine opens beside the one that is served",
        "Try it with `surgseg-export check`, and read the service's log.",
    )
