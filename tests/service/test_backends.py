"""The contract that every backend which can be opened here must keep."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from service.backends import BACKENDS, load_backend, open_backend
from service.backends.base import Backend, available_cores, list_cores
from service.contract.bundle import MODEL_NAME, Bundle, hash_file, open_bundle
from service.contract.model_card import CARD_NAME
from service.errors import BackendError, BundleError
from tests.conftest import expected_confidence


def _is_installed(name: str) -> bool:
    try:
        load_backend(name)
    except BackendError:
        return False
    return True


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Bundle:
    return open_bundle(small_bundle)


@pytest.fixture(scope="module", params=[name for name in BACKENDS if _is_installed(name)])
def confident_backend(request: pytest.FixtureRequest, confident_bundle: Path) -> Iterator[Backend]:
    opened = open_backend(request.param, open_bundle(confident_bundle), batch_sizes=(1, 3), threads=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module", params=[name for name in BACKENDS if _is_installed(name)])
def backend(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Backend]:
    opened = open_backend(request.param, bundle, batch_sizes=(1, 3), threads=1)
    yield opened
    opened.close()


def test_the_golden_picture_gives_the_golden_mask(backend: Backend, bundle: Bundle) -> None:
    masks_nhw = backend.segment(bundle.golden_image_hwc[None])
    assert masks_nhw.dtype == np.uint8
    np.testing.assert_array_equal(masks_nhw[0], bundle.golden_mask_hw)


def test_each_picture_of_a_batch_gets_its_own_mask(backend: Backend, bundle: Bundle) -> None:
    golden = bundle.golden_image_hwc
    batch = np.stack([golden, 255 - golden, golden[:, ::-1]])
    masks_nhw = backend.segment(batch).copy()
    for image_hwc, mask_hw in zip(batch, masks_nhw, strict=True):
        np.testing.assert_array_equal(mask_hw, backend.segment(np.ascontiguousarray(image_hwc[None]))[0])


def test_the_golden_picture_gives_the_golden_confidence(
    confident_backend: Backend, confident_bundle: Path
) -> None:
    bundle = open_bundle(confident_bundle)
    masks_nhw, confidences_nhw = confident_backend.segment_with_confidence(bundle.golden_image_hwc[None])
    assert confidences_nhw.dtype == np.uint8
    np.testing.assert_array_equal(masks_nhw[0], bundle.golden_mask_hw)
    np.testing.assert_array_equal(confidences_nhw[0], bundle.golden_confidence_hw)


def test_a_batch_has_the_masks_of_segment_and_a_confidence_for_each(
    confident_backend: Backend, confident_bundle: Path
) -> None:
    golden = open_bundle(confident_bundle).golden_image_hwc
    batch = np.stack([golden, golden // 3, np.full_like(golden, 128)])
    masks_nhw, confidences_nhw = (each.copy() for each in confident_backend.segment_with_confidence(batch))
    np.testing.assert_array_equal(masks_nhw, confident_backend.segment(batch))
    np.testing.assert_array_equal(confidences_nhw, expected_confidence(batch))
    assert confidences_nhw[2].max() == 128, "nowhere surer than even"


def test_a_bundle_without_confidence_says_how_to_get_one(backend: Backend, bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"no confidence.*--confidence"):
        backend.segment_with_confidence(bundle.golden_image_hwc[None])


def test_it_names_itself_its_precision_and_its_batch_sizes(backend: Backend) -> None:
    assert backend.name in BACKENDS
    assert backend.precision
    assert backend.batch_sizes == (1, 3)


@pytest.mark.parametrize(
    "images_nhwc",
    [
        np.zeros((2, 288, 512, 3), np.uint8),
        np.zeros((1, 512, 288, 3), np.uint8),
        np.zeros((1, 3, 288, 512), np.uint8),
        np.zeros((1, 288, 512, 3), np.float32),
        np.zeros((1, 288, 512, 6), np.uint8)[..., ::2],
    ],
    ids=["unprepared batch size", "turned", "channels first", "float", "not contiguous"],
)
def test_images_of_another_form_are_refused(backend: Backend, images_nhwc: np.ndarray) -> None:
    with pytest.raises(ValueError, match="images are"):
        backend.segment(images_nhwc)


@pytest.mark.parametrize(
    "images_nhwc", [np.zeros((2, 288, 512, 3), np.uint8), np.zeros((1, 8, 8, 3), np.uint8)]
)
def test_images_of_another_form_have_no_confidence(
    confident_backend: Backend, images_nhwc: np.ndarray
) -> None:
    with pytest.raises(ValueError, match="images are"):
        confident_backend.segment_with_confidence(images_nhwc)


@pytest.mark.parametrize("name", [name for name in BACKENDS if _is_installed(name)])
def test_a_closed_backend_says_so_and_closes_twice(name: str, bundle: Bundle) -> None:
    opened = open_backend(name, bundle, threads=1)
    opened.close()
    opened.close()
    with pytest.raises(BackendError, match="closed"):
        opened.segment(bundle.golden_image_hwc[None])


def test_an_unknown_backend_is_named_with_the_known_ones(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"onnxruntme.*auto, onnxruntime, fake"):
        open_backend("onnxruntme", bundle)


def test_a_missing_library_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BACKENDS, "onnxruntime", "service.backends.not_installed:Backend")
    with pytest.raises(BackendError, match=r"surgseg\[cpu\]"):
        open_backend("auto", bundle)


def test_auto_opens_a_real_runtime(bundle: Bundle) -> None:
    opened = open_backend("auto", bundle, threads=1)
    assert opened.name == "onnxruntime"
    opened.close()


def test_a_second_output_of_another_form_is_refused(confident_bundle: Path, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMax", ["image"], ["mask"], axes=[3], keepdims=0),
        helper.make_node("Cast", ["mask"], ["confidence"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "float confidence",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 288, 512, 3])],
        [
            helper.make_tensor_value_info("mask", TensorProto.UINT8, ["N", 288, 512]),
            helper.make_tensor_value_info("confidence", TensorProto.FLOAT, ["N", 288, 512]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(BundleError, match=r"confidence.*float"):
        open_backend("onnxruntime", _replace_model(confident_bundle, tmp_path, model.SerializeToString()))


@pytest.mark.parametrize(
    ("element_type", "input_shape", "output_name", "message"),
    [
        (TensorProto.FLOAT, ["N", 8, 8, 3], "mask", "image.*float"),
        (TensorProto.UINT8, ["N", 3, 288, 512], "mask", "288, 512"),
        (TensorProto.UINT8, [1, 288, 512, 3], "mask", "dynamic N"),
        (TensorProto.UINT8, ["N", 288, 512, 3], "labels", "no output 'mask'"),
    ],
    ids=["float input", "channels first", "fixed batch", "other output"],
)
def test_a_graph_unlike_its_card_is_refused(
    small_bundle: Path,
    tmp_path: Path,
    element_type: int,
    input_shape: list[int | str],
    output_name: str,
    message: str,
) -> None:
    node = helper.make_node("Cast", ["image"], [output_name], to=TensorProto.UINT8)
    graph = helper.make_graph(
        [node],
        "other",
        [helper.make_tensor_value_info("image", element_type, input_shape)],
        [helper.make_tensor_value_info(output_name, TensorProto.UINT8, input_shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(BundleError, match=message):
        open_backend("onnxruntime", _replace_model(small_bundle, tmp_path, model.SerializeToString()))


def test_a_model_file_that_is_no_model_is_refused(small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot open"):
        open_backend("onnxruntime", _replace_model(small_bundle, tmp_path, b"not a model"))


def test_there_is_at_least_one_core() -> None:
    assert available_cores() >= 1


def _replace_model(small_bundle: Path, tmp_path: Path, model: bytes) -> Bundle:
    folder = tmp_path / "bundle"
    bundle = open_bundle(small_bundle)
    (folder / "golden").mkdir(parents=True)
    for name in (name for name in bundle.card.files if name.startswith("golden/")):
        (folder / name).write_bytes((small_bundle / name).read_bytes())
    (folder / MODEL_NAME).write_bytes(model)
    files = {**bundle.card.files, MODEL_NAME: hash_file(folder / MODEL_NAME)}
    bundle.card.model_copy(update={"files": files}).save(folder / CARD_NAME)
    return open_bundle(folder)


def test_helping_threads_have_a_core_each_only_where_the_machine_is_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from service.backends import onnxruntime as module

    monkeypatch.setattr(module, "list_cores", lambda: [0, 2, 5])
    monkeypatch.setattr(module, "available_cores", lambda: 3)
    assert module._plan_affinities(3) == "3;6"
    assert module._plan_affinities(2) == module._plan_affinities(1) == ""
    monkeypatch.setattr(
        module, "available_cores", lambda: 2
    )  # a container's quota: the others' threads run there too
    assert module._plan_affinities(3) == module._plan_affinities(2) == ""


def test_a_thread_of_its_own_is_bound_to_the_free_core_and_let_go(bundle: Bundle) -> None:
    seen: list[set[int]] = []

    def run() -> None:
        seen.append(set(os.sched_getaffinity(0)))
        backend = open_backend("onnxruntime", bundle)
        seen.append(set(os.sched_getaffinity(0)))
        backend.close()
        seen.append(set(os.sched_getaffinity(0)))

    before = set(os.sched_getaffinity(0))
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert seen[0] == seen[2] == before
    assert seen[1] <= before
    assert len(seen[1]) == 1 or available_cores() != len(list_cores()) or available_cores() == 1
    open_backend("onnxruntime", bundle).close()
    assert set(os.sched_getaffinity(0)) == before, "the main thread is left alone"
