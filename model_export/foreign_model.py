"""Opens an ONNX file from anywhere: what cannot be served is refused, the rest brought to one form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import external_data_helper, inliner, version_converter

from model_export.to_onnx import OPSET
from service.backends.base import first_line
from service.errors import BundleError

MOST_BYTES = 2**31 - 1
_STANDARD = {"", "ai.onnx"}
_EXPORT_AGAIN = "Export it again from the framework it was trained in (docs/wrap.md)."


@dataclass(frozen=True)
class ForeignModel:
    """A network with one input, float32 `(N, 3, H, W)`, and the one of its outputs that is wanted, float32.

    `proto` holds all weights, no functions, and operators of OPSET or newer. `batch`, `height` and `width` are None
    where the model leaves them open. `notes` say what was changed.
    """

    path: Path
    proto: onnx.ModelProto
    input_name: str
    output_name: str
    batch: int | None
    height: int | None
    width: int | None
    notes: tuple[str, ...] = ()


def open_foreign(path: Path, output_name: str = "") -> ForeignModel:
    """Read a model; `output_name` is needed where it has several outputs. Raises BundleError."""
    proto = _read(path)
    notes = [_load_external(path, proto)]
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    _check_operators(path, proto)
    proto, note = _raise_opset(path, proto)
    inputs = _list_inputs(proto)
    if len(inputs) != 1:
        raise _refuse(path, f"has {len(inputs)} inputs ({_name_all(inputs)})", "one, the picture")
    batch, height, width = _check_input(path, inputs[0])
    output = _choose_output(path, list(proto.graph.output), output_name)
    return ForeignModel(
        path,
        proto,
        inputs[0].name,
        output.name,
        batch,
        height,
        width,
        tuple(text for text in (*notes, note) if text),
    )


def _refuse(path: Path, found: str, expected: str, remedy: str = _EXPORT_AGAIN) -> BundleError:
    return BundleError(f"{path} {found}.", expected, remedy)


def _read(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise _refuse(path, "is not a file", "an ONNX model", "Check the path.")
    if path.stat().st_size > MOST_BYTES:
        raise _refuse(path, "is larger than 2 GB", "what one ONNX file can hold")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise _refuse(path, "is not an ONNX model, or is cut short", "a whole ONNX file") from error
    if not proto.graph.node or not proto.opset_import:
        raise _refuse(path, "is not an ONNX model: it computes nothing", "a whole ONNX file")
    return proto


def _load_external(path: Path, proto: onnx.ModelProto) -> str:
    """Take in weights that lie beside the model; gives a note where there were some."""
    tensors = [each for each in _list_tensors(proto) if external_data_helper.uses_external_data(each)]
    folder, files = path.parent.resolve(), set()
    for tensor in tensors:
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        file = (folder / location).resolve()
        if not location or not file.is_relative_to(folder):
            raise _refuse(
                path, f"keeps weights in {location!r}, outside its own folder", "weights beside the model"
            )
        if not file.is_file():
            raise _refuse(
                path,
                f"keeps weights in {location}, which is missing",
                "that file beside the model",
                "Copy it there: an exporter wrote both.",
            )
        files.add(file)
    if sum(file.stat().st_size for file in (path, *files)) > MOST_BYTES:
        raise _refuse(path, "is larger than 2 GB with its weights", "what one ONNX file can hold")
    try:
        external_data_helper.load_external_data_for_model(proto, str(folder))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise _refuse(
            path, f"has weights that cannot be read ({first_line(error)})", "whole files"
        ) from error
    return f"took in the weights of {', '.join(sorted(file.name for file in files))}" if files else ""


def _list_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in (proto.graph, *proto.functions, *_list_subgraphs(proto)):
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                yield from ([attribute.t] if attribute.HasField("t") else attribute.tensors)


def _list_subgraphs(holder: Any) -> Iterator[onnx.GraphProto]:
    """The branches and bodies of control flow, at every depth."""
    graphs = (holder.graph, *holder.functions) if isinstance(holder, onnx.ModelProto) else (holder,)
    for graph in graphs:
        for node in graph.node:
            for attribute in node.attribute:
                for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                    yield inner
                    yield from _list_subgraphs(inner)


def _check_operators(path: Path, proto: onnx.ModelProto) -> None:
    for graph in (proto.graph, *_list_subgraphs(proto)):
        for node in graph.node:
            if node.domain not in _STANDARD:
                raise _refuse(
                    path, f"needs the operator {node.op_type} of {node.domain}", "operators of ONNX itself"
                )


def _raise_opset(path: Path, proto: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The model in OPSET where it is of an older one, and a note."""
    version = next((each.version for each in proto.opset_import if each.domain in _STANDARD), 0)
    if version >= OPSET:
        return proto, ""
    try:
        raised = version_converter.convert_version(proto, OPSET)
    except Exception as error:
        raise _refuse(
            path,
            f"is of opset {version} and cannot be brought to {OPSET} ({first_line(error)})",
            f"opset {OPSET} or newer",
            f"Export it again with opset_version={OPSET}.",
        ) from error
    return raised, f"raised opset {version} to {OPSET}"


def _list_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Old files list their weights among the inputs."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    return [each for each in proto.graph.input if each.name not in weights]


def _check_input(path: Path, value: onnx.ValueInfoProto) -> tuple[int | None, int | None, int | None]:
    """Batch, height and width, None where they are open."""
    lengths = _list_lengths(value)
    if lengths is None:
        raise _refuse(path, f"has an input {value.name} without a shape", "float32 (N, 3, H, W)")
    if _dtype_of(value) != "float32":
        raise _refuse(path, f"takes {_describe(value)}", "float32 (N, 3, H, W)")
    if len(lengths) == 5:
        raise _refuse(
            path,
            f"takes volumes, {_describe(value)}",
            "a network of pictures, float32 (N, 3, H, W)",
            "Video has no depth: train a network in two dimensions.",
        )
    if len(lengths) != 4 or lengths[1] not in (None, 3):
        hint = ", channels last" if len(lengths) == 4 and lengths[3] == 3 else ""
        raise _refuse(path, f"takes {_describe(value)}{hint}", "float32 (N, 3, H, W)")
    return lengths[0], lengths[2], lengths[3]


def _choose_output(path: Path, outputs: list[onnx.ValueInfoProto], name: str) -> onnx.ValueInfoProto:
    if not name and len(outputs) != 1:
        raise _refuse(
            path,
            f"has {len(outputs)} outputs: {_name_all(outputs)}",
            "the name of one in the card",
            "Set output.name; with deep supervision it is the one of the input's size, often the first.",
        )
    found = [each for each in outputs if each.name == name or not name]
    if not found:
        raise _refuse(
            path,
            f"has no output {name!r}",
            f"one of {_name_all(outputs)}",
            "Correct output.name in the card.",
        )
    if _dtype_of(found[0]) != "float32":
        hint = ": class ids already" if _dtype_of(found[0]).startswith(("int", "uint")) else ""
        raise _refuse(
            path,
            f"gives {_describe(found[0])}{hint}",
            "logits or probabilities in float32",
            "Export the network without its argmax, in float32.",
        )
    return found[0]


def _list_lengths(value: onnx.ValueInfoProto) -> list[int | None] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [size.dim_value if size.dim_value > 0 else None for size in tensor.shape.dim]


def _dtype_of(value: onnx.ValueInfoProto) -> str:
    """As numpy calls it; other words for what numpy has not."""
    name = str(onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)).lower()
    return {"float": "float32", "double": "float64", "undefined": "no tensor"}.get(name, name)


def _describe(value: onnx.ValueInfoProto) -> str:
    lengths = _list_lengths(value)
    shape = "?" if lengths is None else ", ".join("?" if size is None else str(size) for size in lengths)
    return f"{value.name} {_dtype_of(value)} ({shape})"


def _name_all(values: list[onnx.ValueInfoProto]) -> str:
    return ", ".join(_describe(value) for value in values) or "none"
