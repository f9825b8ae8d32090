"""The contract that every backend which can be opened here must keep."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from service.backends import AUTO_ORDER, BACKENDS, load_backend, open_backend
from service.backends.base import Backend
from service.contract.bundle import Bundle, open_bundle
from service.errors import BackendError, BundleError
from service.processors import available_cores, list_cores
from tests.conftest import expected_confidence
from tests.service.runtimes import ON_PROCESSORS, RUN_HERE, RUNTIMES

NO_INT8 = (
    "the bundle has no graph in int8|this processor has no dot product of bytes"  # whichever is found first
)


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Bundle:
    return open_bundle(small_bundle)


@pytest.fixture(scope="module", params=RUN_HERE)
def confident_backend(request: pytest.FixtureRequest, confident_bundle: Path) -> Iterator[Backend]:
    opened = open_backend(request.param, open_bundle(confident_bundle), batch_sizes=(1, 3), threads=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module", params=RUN_HERE)
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
    assert backend.precision in load_backend(backend.name).precisions
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


@pytest.mark.parametrize("name", RUN_HERE)
def test_a_closed_backend_says_so_and_closes_twice(name: str, bundle: Bundle) -> None:
    opened = open_backend(name, bundle, threads=1)
    opened.close()
    opened.close()
    with pytest.raises(BackendError, match="closed"):
        opened.segment(bundle.golden_image_hwc[None])


def test_an_unknown_backend_is_named_with_the_known_ones(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"onnxruntme.*auto, tensorrt, .*openvino, onnxruntime-cpu, fake"):
        open_backend("onnxruntme", bundle)


def test_a_missing_library_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    for name, _ in AUTO_ORDER:
        monkeypatch.setitem(BACKENDS, name, "service.backends.not_installed:Backend")
    with pytest.raises(BackendError, match=r"surgseg\[cpu\]"):
        open_backend("auto", bundle)


def test_auto_takes_the_first_that_runs_here_and_says_why_not_another(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    taken = []
    with caplog.at_level("INFO"):
        for _ in RUNTIMES:
            opened = open_backend("auto", bundle, threads=1)
            taken.append((opened.name, opened.precision))
            opened.close()
            monkeypatch.setattr(load_backend(taken[-1][0]), "reason_against", lambda _, precision: "too old")
    runs = [
        (name, precision)
        for name, precision in AUTO_ORDER
        if "int8" not in precision and (name, precision) in {*taken, ("onnxruntime-cpu", "float32")}
    ]
    assert taken == runs
    assert f"auto passes over {taken[0][0]} in {taken[0][1]}: too old" in caplog.text
    assert re.search(f"auto passes over openvino in int8: ({NO_INT8})", caplog.text)
    assert f"auto takes {taken[0][0]} in {taken[0][1]}" in caplog.text


def test_auto_takes_the_fastest_at_the_precision_that_is_asked_for(bundle: Bundle) -> None:
    opened = open_backend("auto", bundle, threads=1, precision="float32")
    fastest = next(name for name, precision in AUTO_ORDER if precision == "float32" and name in RUNTIMES)
    assert (opened.name, opened.precision) == (fastest, "float32")
    opened.close()
    with pytest.raises(BackendError, match=f"openvino in int8: ({NO_INT8})"):
        open_backend("auto", bundle, threads=1, precision="int8")
    with pytest.raises(BackendError, match=r"onnxruntime-cuda in float16: (it is not|the|there)"):
        open_backend("auto", bundle, threads=1, precision="float16")


def test_auto_passes_over_a_runtime_that_gives_other_labels(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_backend("auto", bundle, threads=1)
    first.close()
    factory = load_backend(first.name)
    segment = factory.segment  # type: ignore[attr-defined]
    monkeypatch.setattr(factory, "segment", lambda self, images_nhwc: 1 - segment(self, images_nhwc))
    opened = open_backend("auto", bundle, threads=1)
    assert opened.name != first.name
    assert f"auto passes over {first.name} in {first.precision}: it gives 0.00%" in caplog.text
    opened.close()


@pytest.mark.parametrize("name", ON_PROCESSORS)
def test_a_precision_is_what_was_asked_for_or_an_error(name: str, bundle: Bundle) -> None:
    opened = open_backend(name, bundle, threads=1, precision="float32")
    assert opened.precision == "float32"
    np.testing.assert_array_equal(opened.segment(bundle.golden_image_hwc[None])[0], bundle.golden_mask_hw)
    opened.close()
    with pytest.raises(BackendError, match=r"in float16: it cannot\. Expected .*float32"):
        open_backend(name, bundle, threads=1, precision="float16")


@pytest.mark.skipif("openvino" not in RUNTIMES, reason="openvino is not installed")
def test_openvino_computes_bfloat16_where_the_processor_does(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.backends import openvino as module

    assert sys.modules["openvino_telemetry"] is None, "nothing of it may reach the internet"
    opened = open_backend("openvino", bundle, threads=1)
    flags = Path("/proc/cpuinfo").read_text()
    assert opened.precision == ("bfloat16" if re.search("avx512_bf16|amx_bf16", flags) else "float32")
    opened.close()
    monkeypatch.setattr(module, "_computes_bfloat16", lambda core: False)
    opened = open_backend("openvino", bundle, threads=1)
    assert opened.precision == "float32"
    opened.close()
    with pytest.raises(BackendError, match=r"in bfloat16: this processor does not compute bfloat16.*float32"):
        open_backend("openvino", bundle, threads=1, precision="bfloat16")


def test_int8_is_refused_where_the_processor_has_no_dot_product_of_bytes(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.backends import base as module

    monkeypatch.setattr(module, "computes_int8", lambda: False)
    for name in ON_PROCESSORS:
        with pytest.raises(
            BackendError, match=r"in int8: this processor has no dot product of bytes \(VNNI\)"
        ):
            open_backend(name, bundle, precision="int8")


def test_there_is_at_least_one_core() -> None:
    assert available_cores() >= 1


@pytest.mark.parametrize("name", ON_PROCESSORS)
def test_calls_made_at_once_have_the_masks_that_they_have_alone(name: str, confident_bundle: Path) -> None:
    bundle = open_bundle(confident_bundle)
    golden = bundle.golden_image_hwc
    pictures = [golden, 255 - golden, np.ascontiguousarray(golden[:, ::-1]), golden // 2]
    opened = open_backend(name, bundle, batch_sizes=(1, 2), threads=2)
    assert opened.concurrency == 2
    alone = [tuple(part.copy() for part in opened.segment_with_confidence(each[None])) for each in pictures]

    def compare(number: int) -> int:
        for turn in range(30):
            index = (number + turn) % len(pictures)
            together = opened.segment_with_confidence(pictures[index][None])
            for found, expected in zip(together, alone[index], strict=True):
                np.testing.assert_array_equal(found, expected)
        return number

    with ThreadPoolExecutor(opened.concurrency) as pool:
        assert list(pool.map(compare, range(opened.concurrency))) == [0, 1]
    opened.close()


@pytest.mark.parametrize(("threads", "batch", "expected"), [(1, 4, 1), (2, 1, 1), (3, 2, 2)])
@pytest.mark.parametrize("name", ON_PROCESSORS)
def test_no_more_is_run_at_once_than_there_are_threads_and_places_in_a_batch(
    name: str, bundle: Bundle, threads: int, batch: int, expected: int
) -> None:
    opened = open_backend(name, bundle, batch_sizes=tuple(range(1, batch + 1)), threads=threads)
    assert opened.concurrency == expected
    opened.close()


def test_helping_threads_have_a_core_each_only_where_the_machine_is_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from service.backends import onnxruntime_cpu as module

    monkeypatch.setattr(module, "list_cores", lambda: [0, 2, 5])
    monkeypatch.setattr(module, "available_cores", lambda: 3)
    assert module._plan_helpers(3) == [2, 5]
    assert module._plan_helpers(2) == module._plan_helpers(1) == []
    monkeypatch.setattr(
        module, "available_cores", lambda: 2
    )  # a container's quota: the others' threads run there too
    assert module._plan_helpers(3) == module._plan_helpers(2) == []


def test_the_calling_thread_is_bound_while_it_computes_and_then_as_it_was(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.backends import onnxruntime_cpu as module

    bound: list[set[int]] = []
    bind = os.sched_setaffinity
    monkeypatch.setattr(
        module.os, "sched_setaffinity", lambda pid, cores: (bound.append(set(cores)), bind(pid, cores))
    )
    before = os.sched_getaffinity(0)
    backend = open_backend("onnxruntime-cpu", bundle)
    backend.segment(bundle.golden_image_hwc[None])
    assert os.sched_getaffinity(0) == before
    if module._plan_helpers(available_cores()):
        assert bound == [{list_cores()[0]}, before]
    else:
        assert bound == []
    backend.close()
