"""What each change of the default bundle's graph brings: all variants in turns, in one process, on one thread.

python docs/results/graphs/compare.py DATA FILE.json, where DATA is READER:PATH of frames to calibrate on. The network
is the default bundle's, rebuilt from it; every variant is exported from that.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import openvino
import torch

import model_export.quantize as quantization
import model_export.to_onnx as exporting
from model_export.frames import proof_images
from model_export.from_onnx import find_network, rebuild_network
from model_export.graph_passes import multiply_last_resize, save_graph
from model_export.pictures import fit_to_card
from model_export.servable import Servable
from service.bundles import DEFAULT_BUNDLE
from service.contract.bundle import open_bundle
from training.checkpoint import DEVIATION, MEAN
from training.config import NetworkConfig

ROUNDS, RUNS = 60, 5


def main(data: str, out: Path) -> None:
    bundle = open_bundle(DEFAULT_BUNDLE)
    images = [np.ascontiguousarray(fit_to_card(each, bundle.card)) for each in proof_images(data, 64)]
    with tempfile.TemporaryDirectory() as folder:
        graphs = make_graphs(bundle, images, Path(folder))
        report = measure(graphs, images[0][None])
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, row in report["variants"].items():
        print(f"{name:48s}" + "".join(f"{key} {row[key]['ms']:6.2f} ms  " for key in row))


def make_graphs(bundle, images, folder: Path) -> dict[str, Path]:
    """The variants, each on top of the one that its name says."""
    network = rebuild_network(bundle, find_network(bundle, NetworkConfig()), images)
    network.register_buffer("mean", torch.tensor(MEAN), persistent=False)
    network.register_buffer("std", torch.tensor(DEVIATION), persistent=False)
    paths = {}

    def export(name: str, passes: Callable[[ir.Model], object], opset: int = exporting.OPSET) -> Path:
        path = folder / f"{len(paths)}.onnx"
        exporting.OPSET, before = opset, exporting.OPSET
        model = exporting._trace(Servable(network).eval(), bundle.card.input_size, ("mask",))
        exporting.OPSET = before
        for node in model.graph.all_nodes():
            if node.op_type == "Resize" and name != "sizes computed at run time":
                exporting.fix_scales(node)
        passes(model)
        save_graph(model, path)
        paths[name] = path
        return path

    export("sizes computed at run time", lambda model: None)
    plain = export("float32, as exported", lambda model: None)
    export("opset 20", lambda model: None, opset=20)
    export("normalisation in the first convolution", lambda model: quantization.centre_input(model))
    multiplied = export("last resize as products (what ships)", multiply_last_resize)
    for name, path, centre in (
        ("int8 of the graph as exported", plain, False),
        ("int8, last resize as products", multiplied, False),
        ("int8, and normalisation in the first layer (ships)", multiplied, True),
    ):
        original = quantization.centre_input
        quantization.centre_input = original if centre else lambda model: None
        calibrated = quantization.calibrate(path, images)
        quantization.centre_input = original
        paths[name] = folder / f"{len(paths)}.onnx"
        quantization.quantize(calibrated, paths[name])
    operators, quantization.OPERATORS = quantization.OPERATORS, ["Conv"]
    paths["int8 (ships), convolutions only"] = folder / f"{len(paths)}.onnx"
    quantization.quantize(calibrated, paths["int8 (ships), convolutions only"])
    quantization.OPERATORS = operators
    return paths


def measure(graphs: dict[str, Path], image_nhwc: np.ndarray) -> dict:
    calls = {
        (name, runtime): open_graph(path, image_nhwc)
        for name, path in graphs.items()
        for runtime, open_graph in RUNTIMES.items()
    }
    durations_ms: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(ROUNDS):
        for key, call in calls.items():
            for _ in range(RUNS):
                started_at = time.perf_counter()
                call()
                durations_ms[key].append(1e3 * (time.perf_counter() - started_at))
    reference = next(iter(graphs))
    variants: dict[str, dict] = {name: {} for name in graphs}
    for (name, runtime), values in durations_ms.items():
        median = float(np.median(values))
        variants[name][runtime] = {"ms": median, "times": 0.0}
    for row in variants.values():
        for runtime in row:
            row[runtime]["times"] = variants[reference][runtime]["ms"] / row[runtime]["ms"]
    return {"threads": 1, "rounds": ROUNDS, "runs": RUNS, "variants": variants}


def open_onnxruntime(path: Path, image_nhwc: np.ndarray) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["mask"], {"image": image_nhwc})


def open_openvino(path: Path, image_nhwc: np.ndarray) -> Callable[[], object]:
    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape(list(image_nhwc.shape))
    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer({0: image_nhwc}, share_inputs=True)


RUNTIMES = {"ONNX Runtime": open_onnxruntime, "OpenVINO": open_openvino}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
