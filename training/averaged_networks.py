"""Methods by the networks they own: one or two, the averages of their weights, and which of them predicts."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from training.config import NetworkConfig, ShareBelowOne
from training.ema import WeightAverage
from training.method import Method, MethodOptions
from training.networks import build_network
from training.networks.views import MeanOfViews


class AverageOptions(MethodOptions):
    """`average_decay` 0 validates and exports the networks themselves, otherwise the averages of their weights."""

    average_decay: ShareBelowOne = 0.998


class OneNetwork(Method):
    """A network that learns; the average of its weights predicts, or itself where it has none.

    `average_name` is the attribute of the average, and so the name of its weights in a checkpoint.
    """

    options_class = AverageOptions
    options: AverageOptions
    average_name: ClassVar[str] = "average"

    def __init__(self, options: AverageOptions, network: NetworkConfig, classes: int) -> None:
        super().__init__(options, network, classes)
        self.network = build_network(network.name, classes, network.options)
        decay = options.average_decay
        self.add_module(self.average_name, WeightAverage(self.network, decay) if decay else None)

    @property
    def _average(self) -> WeightAverage | None:
        average: WeightAverage | None = getattr(self, self.average_name)
        return average

    @property
    def predictor(self) -> nn.Module:
        return self.network if self._average is None else self._average.average

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    @property
    def averages(self) -> list[WeightAverage]:
        return [] if self._average is None else [self._average]

    def after_step(self, step: int) -> None:
        if self._average is not None:
            self._average.update(self.network)


class TwoNetworksOptions(AverageOptions):
    """`predict_with` names the view that is validated and exported."""

    predict_with: Literal["first", "second", "mean"] = "first"


class TwoNetworks(Method):
    """Two networks of one kind from different random weights, and three views of them: each alone, and their mean."""

    options_class = TwoNetworksOptions
    options: TwoNetworksOptions

    def __init__(self, options: TwoNetworksOptions, network: NetworkConfig, classes: int) -> None:
        super().__init__(options, network, classes)
        self.first = build_network(network.name, classes, network.options)
        self.second = build_network(network.name, classes, network.options)
        decay = options.average_decay
        self.first_average = WeightAverage(self.first, decay) if decay else None
        self.second_average = WeightAverage(self.second, decay) if decay else None

    @property
    def predictor(self) -> nn.Module:
        return self.views[self.options.predict_with]

    @property
    def views(self) -> dict[str, nn.Module]:
        first = self.first if self.first_average is None else self.first_average.average
        second = self.second if self.second_average is None else self.second_average.average
        return {"first": first, "second": second, "mean": MeanOfViews(first, second)}

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"first": self.first, "second": self.second}

    @property
    def averages(self) -> list[WeightAverage]:
        return [average for average in (self.first_average, self.second_average) if average is not None]

    def after_step(self, step: int) -> None:
        if self.first_average is not None and self.second_average is not None:
            self.first_average.update(self.first)
            self.second_average.update(self.second)
