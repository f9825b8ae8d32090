"""A checkpoint becomes a bundle that is whole, proven and honest, or nothing at all."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import model_export.bundle as bundle_module
from model_export.__main__ import main
from model_export.bundle import write_bundle
from model_export.card import Description
from model_export.parity import backend_predict, measure_agreement
from model_export.pictures import draw_pictures
from model_export.reference import reference_predict
from model_export.to_onnx import embedded_card
from service.backends import open_backend
from service.contract.bundle import SEAL_NAME, Bundle, open_bundle, save_card
from service.contract.geometry import fit_image, plan_fit
from service.contract.model_card import CARD_NAME, MODEL_NAME, DataSource, InputSize, Metric, ModelCard
from service.errors import BundleError
from training.checkpoint import Checkpoint, build_method, load_checkpoint, normalise, save_checkpoint
from training.config import DataConfig, NetworkConfig, Recipe
from training.data import open_data

SIZE = InputSize(height=96, width=160)
SOURCE = DataSource(name="drawn", licence="Apache-2.0", frames=1, use="train")
METRIC = Metric(data="drawn", frames=3, dice=0.5, iou=0.4, videos={"a": 0.5})


def make_checkpoint(seed: int) -> Checkpoint:
    """A real, untrained checkpoint of the smallest network, whose masks are about half of each class."""
    data = DataConfig(source="folder:frames", card=SOURCE)
    options = {"encoder": "test_efficientnet", "width": 16, "finest_stride": 4}
    recipe = Recipe(
        name="tiny",
        seed=seed,
        labeled=(data,),
        validation=(data,),
        input_size=SIZE,
        network=NetworkConfig(name="edge", options=options),
    )
    torch.manual_seed(seed)
    method = build_method(recipe.method_name, recipe.method_options, recipe.network, len(recipe.classes))
    balance(method.predictor.eval())
    return Checkpoint(
        recipe=recipe,
        command="surgseg-train run tiny",
        commit="0" * 40,
        split_hash="1" * 64,
        step=7,
        validation_dice=0.25,
        state={"method": method.state_dict()},
    )


def balance(predictor: nn.Module) -> None:
    """Shift the last bias so that both classes are as frequent: an even mask would hide every mistake."""
    images_nchw = torch.from_numpy(np.stack(list(draw_pictures(SIZE, 2)))).permute(0, 3, 1, 2)
    with torch.inference_mode():
        logits_nchw = predictor(normalise(images_nchw))
        predictor.classify.bias[1] -= (logits_nchw[:, 1] - logits_nchw[:, 0]).median()


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "best.pt"
    save_checkpoint(make_checkpoint(seed=5), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(checkpoint_path: Path) -> Checkpoint:
    return load_checkpoint(checkpoint_path)


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    description = Description(name="tiny-model", version="2.1.0", metrics=(METRIC,), limits=("Untrained.",))
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    return write_bundle(checkpoint, folder, description, draw_pictures(SIZE, 4))[0]


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "copied"))


def test_bundle_opens_with_the_card_of_its_checkpoint(bundle: Bundle) -> None:
    card = open_bundle(bundle.folder).card
    assert (card.name, card.version, card.network, card.method) == (
        "tiny-model",
        "2.1.0",
        "edge",
        "supervised",
    )
    assert (card.input_size, card.fit, card.outputs) == (SIZE, "letterbox", ("mask",))
    assert (card.metrics, card.limits, card.training_data) == ((METRIC,), ("Untrained.",), (SOURCE,))
    assert card.training is not None
    assert (card.training.recipe, card.training.seed, card.training.steps) == ("tiny", 5, 7)
    assert card.parity[0].backend == "onnxruntime-cpu"
    assert (card.parity[0].frames, card.parity[0].labels_equal) == (4, pytest.approx(1.0, abs=1e-3))
    found = {
        path.relative_to(bundle.folder).as_posix() for path in bundle.folder.rglob("*") if path.is_file()
    }
    assert found == {CARD_NAME, SEAL_NAME, *card.files}


def test_golden_mask_shows_every_class(bundle: Bundle) -> None:
    assert np.bincount(bundle.golden_mask_hw.ravel(), minlength=2).min() > 100


def test_graph_takes_and_gives_bytes_with_a_dynamic_batch(bundle: Bundle) -> None:
    graph = onnx.load(str(bundle.model_path)).graph
    for value, name, shape in ((graph.input[0], "image", [96, 160, 3]), (graph.output[0], "mask", [96, 160])):
        tensor = value.type.tensor_type
        assert (value.name, tensor.elem_type) == (name, onnx.TensorProto.UINT8)
        assert tensor.shape.dim[0].dim_param
        assert [dim.dim_value for dim in tensor.shape.dim[1:]] == shape
    operators = {node.op_type for node in graph.node}
    assert not operators & {"BatchNormalization", "Shape", "Concat", "ArgMax"}


def test_model_holds_its_card_and_nothing_of_the_machine_that_made_it(bundle: Bundle) -> None:
    embedded = embedded_card(bundle.model_path)
    assert embedded == bundle.card.model_copy(update={"files": {}, "parity": ()})
    model = onnx.load(str(bundle.model_path))
    assert {entry.key for entry in model.metadata_props} == {"surgseg.card", "precision"}
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    for initializer in model.graph.initializer:
        initializer.ClearField("raw_data")
    text = model.SerializeToString()
    assert not re.search(rb"\.py\b|site-packages|" + re.escape(str(Path.home()).encode()), text)


def test_export_is_the_same_to_the_byte_every_time(
    bundle: Bundle, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    description = Description(name="tiny-model", version="2.1.0", metrics=(METRIC,), limits=("Untrained.",))
    again, _ = write_bundle(checkpoint, tmp_path / "again", description, draw_pictures(SIZE, 1))
    assert again.card.files == bundle.card.files


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_batch_gives_what_its_pictures_give_one_at_a_time(bundle: Bundle, count: int) -> None:
    backend = open_backend("onnxruntime-cpu", bundle, batch_sizes=(1, count))
    images_nhwc = np.stack(list(draw_pictures(SIZE, count)))
    together = backend.segment(images_nhwc).copy()
    alone = np.concatenate([backend.segment(images_nhwc[i : i + 1]).copy() for i in range(count)])
    backend.close()
    assert together.dtype == np.uint8
    assert np.array_equal(together, alone)


def test_backend_gives_the_labels_of_the_network_on_real_frames(
    bundle: Bundle, checkpoint: Checkpoint, data_folder: Path
) -> None:
    samples = open_data(f"endovis2015_rigid:{data_folder / 'endovis2015_rigid'}")[::20]
    fitted = []
    for sample in samples:
        image_hwc, _ = sample.load()
        fitted.append(fit_image(image_hwc, plan_fit(*image_hwc.shape[:2], SIZE)))
    backend = open_backend("onnxruntime-cpu", bundle)
    reference = reference_predict(checkpoint.build_predictor())
    agreement = measure_agreement(reference, backend_predict(backend, bundle.card), fitted)
    backend.close()
    assert agreement.frames == 8
    assert agreement.labels_equal >= 0.999


def test_a_model_that_is_not_the_network_is_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        bundle_module, "export_onnx", lambda _s, _c, path: shutil.copy(bundle.model_path, path)
    )
    with pytest.raises(BundleError, match="gives another mask"):
        write_bundle(make_checkpoint(seed=6), tmp_path / "new", Description(), draw_pictures(SIZE, 1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError, MemoryError])
def test_an_interrupted_export_leaves_nothing_behind(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    def write_half(_servable: object, _card: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise failure("in the middle")

    monkeypatch.setattr(bundle_module, "export_onnx", write_half)
    with pytest.raises(BundleError if failure is OSError else failure):
        write_bundle(checkpoint, tmp_path / "new", Description(), draw_pictures(SIZE, 1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_export_never_shows_the_bundle(checkpoint_path: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, model_export.bundle as b\n"
        "b.hash_file = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from model_export.__main__ import main\n"
        "main(['bundle', sys.argv[1], '--out', sys.argv[2], '--limit', '1'])\n"
    )
    out = tmp_path / "new"
    done = subprocess.run([sys.executable, "-c", script, str(checkpoint_path), str(out)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]


def test_an_existing_folder_is_kept_unless_it_is_a_bundle_to_replace(
    copied: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "monday.txt").write_text("dear diary", encoding="utf-8")
    made = make_checkpoint(seed=5)
    for folder, force in ((tmp_path / "diary", True), (copied, False)):
        before = sorted(folder.rglob("*"))
        with pytest.raises(BundleError):
            write_bundle(made, folder, Description(), draw_pictures(SIZE, 1), replace=force)
        assert sorted(folder.rglob("*")) == before
    monkeypatch.setattr(
        bundle_module, "export_onnx", lambda _s, _c, path: shutil.copy(bundle.model_path, path)
    )
    written, _ = write_bundle(made, copied, Description(name="new"), draw_pictures(SIZE, 1), replace=True)
    assert open_bundle(copied).card.name == written.card.name == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copied", "diary"]


def test_check_proves_the_bundle_against_its_checkpoint(
    bundle: Bundle, checkpoint_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(bundle.folder), "--checkpoint", str(checkpoint_path), "--limit", "3"]) == 0
    proofs = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert proofs == ["hashes", "card", "graph", "golden", "parity"]


def test_check_refuses_another_network(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(make_checkpoint(seed=6), tmp_path / "other.pt")
    assert (
        main(["check", str(bundle.folder), "--checkpoint", str(tmp_path / "other.pt"), "--limit", "2"]) == 1
    )
    assert "disagrees with the network" in capsys.readouterr().err


@pytest.mark.parametrize("name", [MODEL_NAME, "golden/image.png", "golden/mask.png"])
def test_check_refuses_one_flipped_byte(copied: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    assert main(["check", str(copied)]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"{name} has SHA-256" in message


def test_check_refuses_a_card_that_was_edited(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (copied / CARD_NAME).read_text(encoding="utf-8")
    (copied / CARD_NAME).write_text(text.replace('"dice": 0.5', '"dice": 0.9'), encoding="utf-8")
    assert main(["check", str(copied)]) == 1
    assert "changed after export" in capsys.readouterr().err
    save_card(ModelCard.load(copied / CARD_NAME), copied)
    assert main(["check", str(copied)]) == 1
    assert "differs from the one inside its model" in capsys.readouterr().err
