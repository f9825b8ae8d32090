"""The production half: video in, instrument masks out. Imports nothing else of ours, and never torch."""

import os

# ONNX Runtime for Linux reports sessions and errors to its maker unless it is told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
