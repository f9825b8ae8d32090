"""What every training method is: a module that turns batches into named losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from service.errors import DataError
from training.config import NetworkConfig, parse_table
from training.ema import WeightAverage


@dataclass
class UnlabeledBatch:
    """Unlabeled pictures `(M, 3, H, W)`, normalised float, the same ones under several appearances.

    `weak_nchw` is moved, scaled and turned only. Each of `strong_nchw` has that same geometry, so a pixel is the same
    place in all of them, with its appearance changed strongly (colour, blur, noise, smoke, GridMask, boxes, circle);
    the matching `visible_nhw`, bool `(M, H, W)`, is False where that change hid the picture. `known_nhw`, int64
    `(M, H, W)`, is the class of what was pasted from labeled pictures ([strong] paste), and 0 elsewhere. `origins_m23`,
    float32 `(M, 2, 3)`, are the affine maps of a pixel (x, y) to its place in the picture that was moved, as a share of
    its width and height: outside 0 to 1 lies what is beyond the picture.
    """

    weak_nchw: Tensor
    strong_nchw: tuple[Tensor, ...]
    visible_nhw: tuple[Tensor, ...]
    known_nhw: Tensor
    origins_m23: Tensor


@dataclass
class Batch:
    """Normalised float pictures `(N, 3, H, W)` and int64 class ids `(N, H, W)`, and unlabeled ones where a method asks.

    Where a method has `labeled_parts` = 2, the first half of the pictures comes from one half of the labeled frames and
    the second half from the other, which never share a frame.
    """

    images_nchw: Tensor
    targets_nhw: Tensor
    unlabeled: UnlabeledBatch | None = None

    def require_unlabeled(self, method: str) -> UnlabeledBatch:
        """The unlabeled part. Raises DataError when there is none."""
        if self.unlabeled is None:
            raise DataError(
                f"{method} got no unlabeled pictures.",
                "an unlabeled batch",
                "Add [[unlabeled]] to the recipe.",
            )
        return self.unlabeled


class MethodOptions(BaseModel):
    """The typed [method] table of a recipe; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(nn.Module):
    """Owns every network, teacher and projector it needs, so moving, saving and optimising them is one call.

    `predictor` is the one network that is validated and exported; `views` are all that can be.
    """

    options_class: type[MethodOptions] = MethodOptions
    labeled_parts: int = 1  # disjoint parts that the labeled frames are cut into
    strong_views: ClassVar[int] = 0  # strong views of each unlabeled picture; 0 uses no unlabeled pictures

    def __init__(self, options: MethodOptions, network: NetworkConfig, classes: int) -> None:
        super().__init__()
        self.options = options
        self.classes = classes
        self.network_config = network

    @classmethod
    def parse_options(cls, options: dict[str, Any]) -> MethodOptions:
        """The method's own options, checked. Raises DataError that names the nearest known key."""
        return parse_table(cls.options_class, options, "[method]")

    @property
    def predictor(self) -> nn.Module:
        raise TypeError(f"{type(self).__name__} must say which network predicts")

    @property
    def views(self) -> dict[str, nn.Module]:
        """Every network that can be evaluated and exported, by name; a method of two networks has `first`, `second`
        and `mean`. `predictor` is one of them."""
        return {"predictor": self.predictor}

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The segmentation networks that can start from another run's weights, by attribute name."""
        raise TypeError(f"{type(self).__name__} must name its networks")

    @property
    def averages(self) -> list[WeightAverage]:
        """The averages of the networks."""
        return []

    @property
    def segmenters(self) -> list[nn.Module]:
        """Every network and every average of one."""
        return [*self.networks.values(), *(average.average for average in self.averages)]

    @torch.no_grad()
    def start_from(self, weights: dict[str, Tensor]) -> int:
        """Copy weights where names and shapes agree, into the networks and their averages; how many the first took.

        Of several networks only the first takes all; the others take the encoder's, because networks that start as one
        have nothing to teach each other.
        """
        averages = [average.average for average in self.averages]
        taken = []
        for networks in (list(self.networks.values()), averages):
            for place, network in enumerate(networks):
                current = network.state_dict()
                fitting = {
                    name: values
                    for name, values in weights.items()
                    if name in current
                    and current[name].shape == values.shape
                    and (place == 0 or name.startswith("encoder."))
                }
                network.load_state_dict(fitting, strict=False)
                taken.append(len(fitting))
        return taken[0]

    def prepare(self) -> None:
        """What a run must read before its first step; the method of a checkpoint has it in its state."""

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Named, weighted scalar losses, each with gradient; the trainer adds them up.

        A term whose weight is 0 is left out.
        """
        raise TypeError(f"{type(self).__name__} must define its losses")

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step: where a teacher follows its student."""
