"""What TensorRT says, passed on to Python's logging. TensorRT wants one logger for all that a process makes with it."""

from __future__ import annotations

import logging

import tensorrt as trt

_LEVELS = {
    trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
    trt.ILogger.Severity.ERROR: logging.ERROR,
    trt.ILogger.Severity.WARNING: logging.WARNING,
    trt.ILogger.Severity.INFO: logging.DEBUG,
}
"""Of what is passed on; what is not here says a line for every kernel that was tried."""

_log = logging.getLogger(__name__)


class TensorRtLog(trt.ILogger):
    """Its functions give None or False where they fail, and say why here: `last_error` keeps it for a message of ours.

    TensorRT calls it from any thread.
    """

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.last_error = ""

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT for every message."""
        level = _LEVELS.get(severity)
        if level is None:
            return
        if level == logging.ERROR:
            self.last_error = msg.strip()
        _log.log(level, "TensorRT: %s", msg.strip())

    def take_error(self) -> str:
        """The last error since the last call, on one line, or that there was none."""
        error, self.last_error = self.last_error, ""
        return " ".join(error.split()).rstrip(".") or "it gave no reason"


LOG = TensorRtLog()
