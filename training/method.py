"""What every training method is: a module that turns batches into named losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from training.config import NetworkConfig, parse_table


@dataclass
class Batch:
    """Normalised float pictures `(N, 3, H, W)` and int64 class ids `(N, H, W)`."""

    images_nchw: Tensor
    targets_nhw: Tensor


class MethodOptions(BaseModel):
    """The typed [method] table of a recipe; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(nn.Module):
    """Owns every network, teacher and projector it needs, so moving, saving and optimising them is one call.

    `predictor` is the one network that is validated and exported.
    """

    options_class: type[MethodOptions] = MethodOptions

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

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Named, weighted scalar losses, each with gradient; the trainer adds them up."""
        raise TypeError(f"{type(self).__name__} must define its losses")

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step: where a teacher follows its student."""
