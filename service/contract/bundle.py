"""Opening a bundle: the folder that export writes and the service trusts only after checking every hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from service.contract.geometry import Confidence, Image, Mask
from service.contract.graph_file import is_one_file
from service.contract.model_card import CARD_NAME, MODEL_NAME, ModelCard, Precision
from service.errors import BundleError

SEAL_NAME = "card.sha256"
"""The SHA-256 of the card, which holds those of all other files: `sha256sum --check card.sha256` compares it."""

GOLDEN_IMAGE = "golden/image.png"
GOLDEN_MASK = "golden/mask.png"
GOLDEN_CONFIDENCE = "golden/confidence.png"
_REMEDY = "Fetch the bundle again, or make it again with `surgseg-export bundle`."


@dataclass(frozen=True)
class Bundle:
    """A bundle whose hashes have been checked.

    `golden_image_hwc` is uint8 RGB `(H, W, 3)` at the model's input size, `golden_mask_hw` uint8 `(H, W)` the mask
    the network gave for it when it was exported, and `golden_confidence_hw` its confidence, None without that output.
    """

    folder: Path
    card: ModelCard
    golden_image_hwc: Image
    golden_mask_hw: Mask
    golden_confidence_hw: Confidence | None
    fingerprint: str
    """SHA-256 of the card, hexadecimal: two bundles that share it share every byte that counts."""

    @property
    def short_fingerprint(self) -> str:
        """The first 12 digits of the fingerprint: enough to tell the models of one service apart."""
        return self.fingerprint[:12]

    @property
    def model_path(self) -> Path:
        """The graph in float32: the network itself."""
        return self.path_of("float32")

    @property
    def model_hash(self) -> str:
        """SHA-256 of the graph in float32, hexadecimal."""
        return self.hash_of("float32")

    def path_of(self, precision: Precision) -> Path:
        """The graph that runs at a precision: its own, or the network itself for a runtime to round."""
        return self.folder / self._file_of(precision)

    def hash_of(self, precision: Precision) -> str:
        """SHA-256 of the graph that runs at a precision, hexadecimal."""
        return self.card.files[self._file_of(precision)]

    def _file_of(self, precision: Precision) -> str:
        models = self.card.models
        return (models.get(precision) or models["float32"]).file


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_bundle(folder: Path, *, has_whole_graphs: bool = False) -> Bundle:
    """Check every file against the card, the graphs for being whole, and load the golden pair. Raises BundleError.

    `has_whole_graphs` leaves out the check of the graphs, which holds up other threads of the process for long: it is
    for a bundle of which the same bytes are checked elsewhere before they are used.
    """
    if not folder.is_dir():
        raise BundleError(
            f"There is no bundle at {folder}.",
            f"a folder with {CARD_NAME} and {MODEL_NAME}",
            "Check the path; `surgseg serve` without one uses the bundle that ships with it.",
        )
    card = ModelCard.load(folder / CARD_NAME)
    _check_seal(folder)
    for name in required_files(card):
        if name not in card.files:
            raise BundleError(
                f"{folder / CARD_NAME} lists no hash for {name}.", "a hash for every file", _REMEDY
            )
    for name, expected in card.files.items():
        _check_file(folder, name, expected)
    if not has_whole_graphs:
        for model in card.models.values():
            _check_graph_file(folder / model.file)
    mask_hw = _read_golden_mask(folder, card)
    confidence_hw = None
    if card.has_confidence:
        confidence_hw = _read_golden(folder / GOLDEN_CONFIDENCE, cv2.IMREAD_GRAYSCALE, card)
    image_hwc = _read_golden_image(folder, card)
    return Bundle(folder, card, image_hwc, mask_hw, confidence_hw, hash_file(folder / CARD_NAME))


def required_files(card: ModelCard) -> tuple[str, ...]:
    """What every bundle with this card holds, `card.json` itself apart; paths relative to its folder."""
    confidence = (GOLDEN_CONFIDENCE,) if card.has_confidence else ()
    models = (model.file for model in card.models.values())
    return (*models, GOLDEN_IMAGE, GOLDEN_MASK, *confidence)


def save_card(card: ModelCard, folder: Path) -> None:
    """Write the card of a bundle, and its seal."""
    card.save(folder / CARD_NAME)
    (folder / SEAL_NAME).write_text(f"{hash_file(folder / CARD_NAME)}  {CARD_NAME}\n", encoding="ascii")


def _check_seal(folder: Path) -> None:
    """Raise BundleError unless the card is as it was written. Format 1 had no seal: there the card is believed."""
    path = folder / SEAL_NAME
    if not path.exists() and json.loads((folder / CARD_NAME).read_bytes())["format_version"] == 1:
        return
    expected = f"{hash_file(folder / CARD_NAME)}  {CARD_NAME}\n".encode()
    if not path.is_file():
        raise BundleError(f"{path} is missing.", "the card's SHA-256 beside it", _REMEDY)
    if path.read_bytes() != expected:
        raise BundleError(
            f"{folder / CARD_NAME} does not have the SHA-256 in {SEAL_NAME}: one of them was changed after export.",
            f"{expected[:12].decode()}…",
            _REMEDY,
        )


def _check_file(folder: Path, name: str, expected: str) -> None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"The card names {name}, outside its bundle.", "files inside the folder", _REMEDY)
    if not path.is_file():
        raise BundleError(f"{path} is missing.", "every file that the card lists", _REMEDY)
    found = hash_file(path)
    if found != expected:
        raise BundleError(
            f"{path} has SHA-256 {found[:12]}…: it was changed after export.", f"{expected[:12]}…", _REMEDY
        )


def _check_graph_file(path: Path) -> None:
    """The hash of a graph covers nothing that the graph only names."""
    try:
        is_whole = is_one_file(path)
    except ValueError as error:
        raise BundleError(f"No runtime can open {path}: {error}.", "an ONNX model", _REMEDY) from error
    if not is_whole:
        raise BundleError(
            f"{path} keeps weights in another file, which has no hash.", "a model in one file", _REMEDY
        )


def _read_golden_image(folder: Path, card: ModelCard) -> Image:
    image_bgr = _read_golden(folder / GOLDEN_IMAGE, cv2.IMREAD_COLOR, card)
    return np.ascontiguousarray(image_bgr[:, :, ::-1])


def _read_golden_mask(folder: Path, card: ModelCard) -> Mask:
    mask_hw = _read_golden(folder / GOLDEN_MASK, cv2.IMREAD_GRAYSCALE, card)
    if (largest := int(mask_hw.max())) >= len(card.classes):
        raise BundleError(
            f"{folder / GOLDEN_MASK} holds the class {largest}, which the card does not name.",
            f"the card's classes, 0 to {len(card.classes) - 1}",
            _REMEDY,
        )
    return mask_hw


def _read_golden(path: Path, flags: int, card: ModelCard) -> Image:
    size, array = card.input_size, cv2.imread(str(path), flags)
    if array is None or array.shape[:2] != (size.height, size.width):
        found = "not a picture" if array is None else f"{array.shape[1]} x {array.shape[0]}"
        raise BundleError(f"{path} is {found}.", f"a {size.width} x {size.height} picture", _REMEDY)
    return np.asarray(array, dtype=np.uint8)
