"""A foreign network as its authors would run it: pre- and postprocessing in numpy, by the textbook."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from model_export.foreign_card import ForeignCard
from model_export.foreign_model import ForeignModel
from model_export.pictures import draw_pictures
from service.backends.base import first_line
from service.contract.model_card import InputSize
from service.errors import BundleError

PROBES = 2
_TOLERANCE = 1e-2
_LEAST_DEVIATION = 1e-8


class ForeignReference:
    """Runs the file itself in ONNX Runtime, one picture at a time; opening it proves that it runs at `size`.

    `channels`, `height` and `width` are those of its output. Raises BundleError when it does not run, or gives
    something other than the card says.
    """

    def __init__(
        self, model: ForeignModel, card: ForeignCard, size: InputSize, has_confidence: bool = False
    ) -> None:
        self._model, self._card, self._size = model, card, size
        self._has_confidence = has_confidence
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(model.path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise BundleError(
                f"ONNX Runtime cannot open {model.path}: {first_line(error)}.",
                "an ONNX model that it knows",
                "Export it again, for an older opset if it is very new.",
            ) from error
        probes_nhwc = np.stack(list(draw_pictures(size, PROBES)))
        scores = [self._run(image_nhwc) for image_nhwc in np.split(probes_nhwc, PROBES)]
        self._check_form(scores[0])
        self._check_range(np.concatenate(scores))
        _, self.channels, self.height, self.width = scores[0].shape

    def predict(self, images_nhwc: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], ...]:
        """The mask, and the confidence where it is wanted, uint8 `(N, H, W)` each, of RGB at the model's size."""
        singles = np.split(images_nhwc, len(images_nhwc))
        scores_nchw = np.concatenate([self._enlarge(self._run(image_nhwc)) for image_nhwc in singles])
        labels_nhw, probabilities_nhw = self._label(scores_nchw)
        masks_nhw = labels_nhw.astype(np.uint8)
        if not self._has_confidence:
            return (masks_nhw,)
        return masks_nhw, np.rint(255 * probabilities_nhw).astype(np.uint8)

    def _run(self, image_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The output for one picture, `(1, C, h, w)`."""
        # a batch that is fixed is filled with the same picture
        images_nchw = np.repeat(self._normalise(image_nhwc), self._model.batch or 1, axis=0)
        try:
            (scores,) = self._session.run([self._model.output_name], {self._model.input_name: images_nchw})
        except Exception as error:
            raise BundleError(
                f"{self._model.path} fails on a picture of {self._size.width} x {self._size.height}: "
                f"{first_line(error)}.",
                "a network that takes the card's size",
                "Choose another input.size; many networks take multiples of 32 only.",
            ) from error
        if scores.ndim == 3:  # one channel, left out
            scores = scores[:, None]
        return np.asarray(scores[:1])

    def _normalise(self, images_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        given = self._card.input
        ordered_nhwc = images_nhwc if given.channels == "rgb" else images_nhwc[..., ::-1]
        images = ordered_nhwc.astype(np.float64)
        if given.scaling is None:
            deviation = images.std(axis=(1, 2), keepdims=True)
            images = (images - images.mean(axis=(1, 2), keepdims=True)) / np.maximum(
                deviation, _LEAST_DEVIATION
            )
        else:
            images = (images / given.scaling.divide_by - given.scaling.mean) / given.scaling.std
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)

    def _enlarge(self, scores_nchw: NDArray[np.float32]) -> NDArray[np.float32]:
        size = (self._size.height, self._size.width)
        if scores_nchw.shape[2:] == size:
            return scores_nchw
        enlarged = torch.nn.functional.interpolate(
            torch.from_numpy(scores_nchw), size, mode="bilinear", align_corners=False
        )
        return np.asarray(enlarged.numpy())

    def _label(self, scores_nchw: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Class ids and their probabilities, `(N, H, W)` each."""
        output = self._card.output
        probabilities_nchw = scores_nchw
        if output.kind == "logits":
            powers = np.exp(scores_nchw - scores_nchw.max(axis=1, keepdims=True))
            probabilities_nchw = powers / powers.sum(axis=1, keepdims=True)
        elif output.kind == "sigmoid logits":
            # the sigmoid, in the form that cannot overflow
            probabilities_nchw = np.float32(0.5) * (1 + np.tanh(scores_nchw / 2))
        winners_nhw, largest_nhw = scores_nchw.argmax(axis=1), probabilities_nchw.max(axis=1)
        if output.threshold is None:
            return winners_nhw, largest_nhw
        is_class = largest_nhw > output.threshold
        return np.where(is_class, winners_nhw + 1, 0), np.where(is_class, largest_nhw, 1 - largest_nhw)

    def _check_form(self, scores_nchw: NDArray[np.float32]) -> None:
        path, shape, size = self._model.path, scores_nchw.shape, self._size
        if len(shape) != 4 or shape[2] > size.height or shape[3] > size.width:
            raise BundleError(
                f"{path} gives {shape} for a picture of {size.width} x {size.height}.",
                "(N, C, h, w), no larger than the picture",
                "Name another output in the card, or correct input.size.",
            )
        if shape[1] != self._card.channels:
            raise BundleError(
                f"{path} gives {shape[1]} channels.",
                f"{self._card.channels}: {self._card.output.kind} of {len(self._card.classes)} classes",
                "Correct classes, the background among them, or output.kind in the card.",
            )

    def _check_range(self, scores_nchw: NDArray[np.float32]) -> None:
        """Logits that are taken for probabilities, or the other way round, still give masks, but wrong ones."""
        least, most = float(scores_nchw.min()), float(scores_nchw.max())
        sums = scores_nchw.sum(axis=1)
        is_share = least >= -_TOLERANCE and most <= 1 + _TOLERANCE
        adds_up = bool(np.abs(sums - 1).max() <= _TOLERANCE)
        output, found = self._card.output, f"{self._model.path} gives values from {least:.3g} to {most:.3g}"
        if not np.isfinite(scores_nchw).all():
            raise BundleError(
                f"{found}, not all of them finite.", "numbers", "Correct the normalisation in the card."
            )
        if not output.gives_logits and not is_share:
            raise BundleError(f"{found}.", "probabilities", "Correct output.kind: these are logits.")
        if output.kind == "probabilities" and not adds_up:
            raise BundleError(
                f"{found} that do not add up to 1.",
                "the probabilities of a softmax",
                'Correct output.kind: they may be "sigmoid probabilities".',
            )
        if output.gives_logits and is_share and (output.is_sigmoid or adds_up):
            raise BundleError(
                f"{found}, as probabilities are.", output.kind, "Correct output.kind in the card."
            )
