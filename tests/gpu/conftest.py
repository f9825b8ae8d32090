"""What every test on a real GPU needs: the GPU, the libraries of surgseg[gpu], engines of the default bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_export.__main__ import main
from model_export.build_command import PRECISIONS
from model_export.parity import EQUAL_AT_LEAST
from model_export.pictures import draw_pictures, fit_to_card
from service.backends import load_backend, open_backend
from service.backends.base import GOLDEN_AGREEMENT, Backend
from service.backends.tensorrt_graphs import reason_against_types
from service.bundles import DEFAULT_BUNDLE
from service.contract.bundle import Bundle, open_bundle
from service.contract.model_card import InputSize
from service.errors import BackendError

BATCH_SIZES = (1, 2, 4, 8, 16)
DRAWN_SIZE = InputSize(height=480, width=640)


def skip_without(name: str) -> None:
    """Skip the test unless backend `name` runs here."""
    if reason := reason_against(name):
        pytest.skip(reason)


def reason_against(name: str) -> str | None:
    """What a backend lacks here, in words; an engine is not counted, it can be built."""
    try:
        factory = load_backend(name)
    except BackendError as error:
        return str(error)
    from service.backends.cuda_device import reason_against_gpu

    needs_engine = name == "tensorrt"
    return (
        reason_against_gpu()
        if needs_engine
        else factory.reason_against(open_bundle(DEFAULT_BUNDLE), "float32")
    )


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return open_bundle(DEFAULT_BUNDLE)


@pytest.fixture(scope="session")
def pictures_nhwc(bundle: Bundle) -> np.ndarray:
    """As many different pictures as the largest batch holds, at the model's size; the golden one first."""
    drawn = [fit_to_card(each, bundle.card) for each in draw_pictures(DRAWN_SIZE, BATCH_SIZES[-1] - 1)]
    return np.stack([bundle.golden_image_hwc, *drawn])


@pytest.fixture(scope="session")
def expected_nhw(bundle: Bundle, pictures_nhwc: np.ndarray) -> np.ndarray:
    """The network's own masks of `pictures_nhwc`."""
    backend = open_backend("onnxruntime-cpu", bundle, precision="float32")
    masks_nhw = np.concatenate([backend.segment(each[None]).copy() for each in pictures_nhwc])
    backend.close()
    return masks_nhw


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    """A folder with an engine for each precision of the default bundle; an empty one where none can be built."""
    folder = tmp_path_factory.mktemp("engines")
    if reason_against("tensorrt"):
        return folder
    for precision in [each for each in PRECISIONS if reason_against_types(bundle, each) is None]:
        options = ["--precision", precision, "--engines", str(folder)]
        assert main(["build", str(bundle.folder), "--runtime", "tensorrt", *options]) == 0
    return folder


def require_labels(backend: Backend, masks_nhw: np.ndarray, expected_nhw: np.ndarray) -> None:
    """As many labels as the backend's precision must give, and on no picture many fewer."""
    shares = (masks_nhw == expected_nhw).mean(axis=(1, 2))
    assert shares.mean() >= EQUAL_AT_LEAST[backend.precision], shares
    assert shares.min() >= GOLDEN_AGREEMENT[backend.precision], shares
