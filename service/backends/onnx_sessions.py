"""What the backends of ONNX Runtime share: a session runs on the provider that was asked for, or is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from service.backends.base import first_line
from service.backends.graphs import Tensor, check_graph
from service.contract.bundle import Bundle
from service.contract.model_card import Precision
from service.errors import BackendError, BundleError

CPU = "CPUExecutionProvider"
_FAULTS_OF_MODELS = {"InvalidProtobuf", "InvalidGraph", "NoModel", "NoSuchFile"}


def open_session(
    path: Path,
    options: Any,
    provider: str = CPU,
    provider_options: Mapping[str, str] | None = None,
    model: bytes | None = None,
) -> Any:
    """A session in which `provider` runs every node; `model` stands in for what is in the file where it is given.

    ONNX Runtime takes the processor's for a node that another does not know, for a session whose provider does not
    start, and for a run in which it fails, each time with no more than a line in a log. None of the three can happen to
    this session. Raises BundleError for a model that is none, BackendError when the provider does not run it.
    """
    options.log_severity_level = 3
    if provider != CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = onnxruntime.InferenceSession(
            model or str(path),
            options,
            providers=[(provider, dict(provider_options or {}))],
            enable_fallback=0,
        )
    except Exception as error:
        if provider == CPU or type(error).__name__ in _FAULTS_OF_MODELS:
            raise BundleError(
                f"ONNX Runtime cannot open {path}: {first_line(error)}.",
                "an ONNX model that this version of ONNX Runtime knows",
                "Export the bundle again, or install a newer onnxruntime.",
            ) from error
        raise BackendError(
            f"ONNX Runtime cannot open {path} with {provider} alone: {first_line(error)}.",
            "a model that this provider runs whole",
            "Choose another --backend or SURGSEG_PRECISION; see that the libraries of surgseg[gpu] fit the driver.",
        ) from error
    if session.get_providers()[0] != provider:
        raise BackendError(
            f"ONNX Runtime fell back to {session.get_providers()[0]}.", provider, "Install onnxruntime anew."
        )
    session.disable_fallback()
    return session


def check_session(bundle: Bundle, precision: Precision, session: Any) -> None:
    """Raise BundleError unless what the session takes and gives is what the bundle's card says."""
    check_graph(
        bundle,
        precision,
        [_describe(each) for each in session.get_inputs()],
        [_describe(each) for each in session.get_outputs()],
    )


def _describe(node: Any) -> Tensor:
    dtype = node.type.removeprefix("tensor(").removesuffix(")")
    return Tensor(node.name, dtype, tuple(size if isinstance(size, int) else None for size in node.shape))
