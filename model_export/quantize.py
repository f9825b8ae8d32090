"""The graph of a bundle in fewer bits: int8 by measured ranges, float16 by rounding."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.transformers.float16 import convert_float_to_float16
from tqdm import tqdm

from model_export.graph_passes import centre_input, convolutions, feed_bytes, save_graph
from service.contract.geometry import Image
from service.errors import BundleError

OPERATORS = ["Conv", "Add", "Resize", "Relu"]
"""What runs in int8. Additions and resizes between convolutions are among them so that nothing is turned to float32 and
back there."""

FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Calibrated:
    """A graph in float32 that is ready for int8, with the range of each of its tensors on the calibration frames."""

    model: onnx.ModelProto
    ranges: Any
    middle: int | None
    convolutions: tuple[str, ...]
    frames: int
    symmetric: bool = False


@dataclass
class _Frames:
    """What the calibrator reads: one picture at a time."""

    images: Iterator[Image]
    count: int = field(default=0)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        image_hwc = next(self.images, None)
        if image_hwc is None:
            return None
        self.count += 1
        return {"image": np.ascontiguousarray(image_hwc)[None]}


def calibrate(path: Path, images: Iterable[Image], symmetric: bool = False) -> Calibrated:
    """Prepare the graph at `path` for int8 and measure the smallest and largest value of every tensor.

    `images` are uint8 RGB `(H, W, 3)` at the model's size; `symmetric` is as in `quantize`. Raises BundleError where
    there is no picture.
    """
    model = ir.load(path)
    middle = None if symmetric else centre_input(model)
    names = tuple(str(node.name) for node in convolutions(model))
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        save_graph(model, prepared)
        ranges, frames = _measure_ranges(prepared, images, OPERATORS)
        proto = onnx.shape_inference.infer_shapes(onnx.load(str(prepared)))
    return Calibrated(proto, ranges, middle, names, frames, symmetric)


def _measure_ranges(path: Path, images: Iterable[Image], operators: list[str] | None) -> tuple[Any, int]:
    """The range of every tensor that those operators, or all, read or give, and the number of pictures."""
    frames = _Frames(iter(images))
    calibrator = create_calibrator(
        str(path),
        operators,
        augmented_model_path=str(path.with_suffix(".augmented.onnx")),
        calibrate_method=CalibrationMethod.MinMax,
    )
    calibrator.collect_data(frames)
    if frames.count == 0:
        raise BundleError(
            "There was no frame to measure ranges on.", "at least one", "Name data that holds frames."
        )
    return calibrator.compute_data(), frames.count


def quantize(calibrated: Calibrated, path: Path, float_nodes: Sequence[str] = ()) -> None:
    """Write the graph in int8 to `path`; convolutions in `float_nodes` stay in float32.

    Weights are signed, around 0, with a scale for each output channel; activations are unsigned, with one scale and
    zero point for each tensor, which processors multiply best. `symmetric` ones are signed and around 0, and biases
    stay in float32, because TensorRT takes nothing else. The graph says all that with pairs of QuantizeLinear and
    DequantizeLinear.
    """
    options: dict[str, Any] = {}
    if calibrated.symmetric:
        options = {"ActivationSymmetric": True, "QuantizeBias": False}
    if calibrated.middle is not None:
        centre = {"scale": np.array(1.0, np.float32), "zero_point": np.array(calibrated.middle, np.uint8)}
        options["TensorQuantOverrides"] = {"centred": [centre]}
    model = onnx.ModelProto()
    model.CopyFrom(calibrated.model)
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if calibrated.symmetric else QuantType.QUInt8,
        tensors_range=calibrated.ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=list(float_nodes),
        op_types_to_quantize=OPERATORS,
        extra_options=options,
    )
    quantizer.quantize_model()
    quantized = ir.from_proto(quantizer.model.model)
    if calibrated.middle is not None:
        feed_bytes(quantized)
    quantized.metadata_props["precision"] = "int8"
    save_graph(quantized, path)


def round_to_float16(path: Path, out: Path, images: Iterable[Image]) -> float:
    """Write the graph at `path` with weights and activations in float16; picture and mask stay uint8.

    Gives the largest magnitude that any of them has on `images`, uint8 RGB `(H, W, 3)` at the model's size. Raises
    BundleError where float16 could not hold it: what overflows becomes infinite, then no number, then any label.
    """
    proto = onnx.load(str(path))
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "float32.onnx"
        onnx.save(proto, str(copied))
        ranges, _ = _measure_ranges(copied, images, None)
    magnitudes = {name: float(np.max(np.abs(found.range_value))) for name, found in ranges.items()}
    magnitudes |= {
        tensor.name: float(np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0.0))
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    name, largest = max(magnitudes.items(), key=lambda item: item[1])
    if not largest < FLOAT16_MAX:
        raise BundleError(
            f"{path}: {name} reaches {largest:g}.",
            f"less than {FLOAT16_MAX:g}, the largest float16",
            "Serve this bundle in float32 or bfloat16.",
        )
    del proto.graph.value_info[:]  # they name float32, and would contradict what comes out
    rounded = ir.from_proto(convert_float_to_float16(proto))
    rounded.metadata_props["precision"] = "float16"
    save_graph(rounded, out)
    return largest


def find_sensitive(
    calibrated: Calibrated, score: Callable[[Path], float], at_least: float, limit: int
) -> tuple[str, ...]:
    """The convolutions to leave in float32 so that `score` of the graph in int8 reaches `at_least`.

    Each is tried alone, and then those that gain most are left out together, one more at a time, at most `limit` of
    them. Empty where none is needed; as far as it came where even all of them do not do.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.onnx"

        def try_out(float_nodes: Sequence[str]) -> float:
            quantize(calibrated, path, float_nodes)
            return score(path)

        if try_out(()) >= at_least:
            return ()
        names = tqdm(calibrated.convolutions, desc="sensitivity", unit="layer", disable=None)
        gains = {name: try_out((name,)) for name in names}
        ranked = sorted(gains, key=lambda name: -gains[name])
        for count in range(1, min(limit, len(ranked)) + 1):
            if try_out(ranked[:count]) >= at_least:
                break
        return tuple(ranked[:count])
