"""Rebuilds a network that can be trained from a bundle, in whose ONNX every BatchNorm is folded into its convolution.

The convolutions of the graph, in topological order, are those of the torch network in the order in which it runs them.
What was folded is put back as BatchNorm in two parts: the statistics of its input on given pictures, and the affine map
that makes the output what the graph's convolution gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from model_export.parity import measure_agreement
from model_export.reference import reference_predict
from service.backends import open_backend
from service.contract.bundle import Bundle
from service.contract.geometry import Image
from service.contract.model_card import ModelCard
from service.errors import BundleError, DataError
from training.checkpoint import normalise
from training.config import RECIPES, NetworkConfig, load_recipe
from training.networks import build_network

BACKEND = "onnxruntime-cpu"
TRACE_SIZE = 64
_EQUAL_AT_LEAST = 0.999
_REMEDY = (
    "Start from the checkpoint that the bundle was made of, or name the options with --set network.options."
)


@dataclass(frozen=True)
class FoldedConv:
    """A Conv node: `weight` `(O, I / groups, kH, kW)` and `bias` `(O,)`, float32, with BatchNorm inside."""

    name: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    groups: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]

    @property
    def form(self) -> str:
        return _describe(self.weight.shape, self.groups, self.strides, self.dilations)


@dataclass(frozen=True)
class ConvPlace:
    """A convolution of a torch network, and the BatchNorm that takes its output where there is one."""

    name: str
    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None

    @property
    def form(self) -> str:
        conv = self.conv
        return _describe(conv.weight.shape, conv.groups, conv.stride, conv.dilation)


def find_network(bundle: Bundle, given: NetworkConfig) -> NetworkConfig:
    """The network of a bundle with the options by which its convolutions fit. Raises BundleError.

    The options are the card's. For a card of before it named them, `given` is tried where that is the same network, and
    then the recipe that the card names, where it ships.
    """
    folded, errors = read_convolutions(bundle.model_path), []
    for options in _possible_options(bundle.card, given):
        network = NetworkConfig(name=bundle.card.network, options=options)
        try:
            _match(bundle, folded, network)
        except BundleError as error:
            errors.append(error)
        else:
            return network
    raise errors[0]


def rebuild_network(bundle: Bundle, network: NetworkConfig, images: Iterable[Image]) -> nn.Module:
    """The network of a bundle in eval mode: the logits of its graph, and a BatchNorm that can be trained.

    BatchNorm's running statistics are those of `images`, uint8 RGB `(H, W, 3)` of one size, which should be pictures
    like those it will be trained on. Raises BundleError where the graph is not this network's.
    """
    rebuilt, places = _match(bundle, read_convolutions(bundle.model_path), network)
    with torch.no_grad():
        for conv, place in places:
            _load(conv, place)
        _measure_statistics(rebuilt, [place.norm for _, place in places if place.norm is not None], images)
    return rebuilt


def require_same_labels(bundle: Bundle, predictor: nn.Module, images: Iterable[Image]) -> None:
    """Raise BundleError unless `predictor`, in eval mode, labels as the bundle does through its runtime.

    `predictor` holds `mean` and `std` (see Servable); `images` are uint8 RGB at the size of the bundle's model.
    """
    backend = open_backend(BACKEND, bundle, precision="float32")
    try:
        agreement = measure_agreement(
            lambda images_nhwc: (backend.segment(images_nhwc),), reference_predict(predictor), images
        )
    finally:
        backend.close()
    if agreement.labels_equal < _EQUAL_AT_LEAST:
        raise BundleError(
            f"The network rebuilt from {bundle.folder} gives other labels: {agreement}.",
            f"at least {_EQUAL_AT_LEAST:.1%}, as the graph of {bundle.card.network} would",
            _REMEDY,
        )


def read_convolutions(path: Path) -> list[FoldedConv]:
    """Every Conv node of an ONNX file, in topological order. Raises BundleError unless their weights are float32."""
    graph = onnx.load(str(path)).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return [_read_convolution(path, node, arrays) for node in graph.node if node.op_type == "Conv"]


def find_places(network: nn.Module) -> list[ConvPlace]:
    """Every convolution in the order in which `network`, in eval mode, runs them, each with the BatchNorm after it."""
    names = {module: name for name, module in network.named_modules()}
    # whole tensors and not their ids: an id is used again once its tensor is gone
    outputs: list[tuple[nn.Conv2d, Tensor]] = []
    inputs: list[tuple[nn.BatchNorm2d, Tensor]] = []
    hooks: list[RemovableHandle] = []
    for module in names:
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(lambda conv, _, output: outputs.append((conv, output))))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(lambda norm, args: inputs.append((norm, args[0]))))
    with torch.no_grad(), _removed_after(hooks):
        network(torch.zeros(1, 3, TRACE_SIZE, TRACE_SIZE))
    takers = [next((norm for norm, taken in inputs if taken is output), None) for _, output in outputs]
    return [ConvPlace(names[conv], conv, norm) for (conv, _), norm in zip(outputs, takers, strict=True)]


def _read_convolution(path: Path, node: onnx.NodeProto, arrays: dict[str, NDArray[Any]]) -> FoldedConv:
    for name in node.input[1:]:
        found = arrays[name].dtype.name if name in arrays else "computed in the graph"
        if found != "float32":
            raise BundleError(f"{path}: {name} is {found}.", "float32 weights", _REMEDY)
    weight, *biases = (arrays[name] for name in node.input[1:])
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    ones = [1] * (weight.ndim - 2)
    return FoldedConv(
        name=node.name,
        weight=weight,
        bias=biases[0] if biases else np.zeros(len(weight), np.float32),
        groups=given.get("group", 1),
        strides=tuple(given.get("strides", ones)),
        dilations=tuple(given.get("dilations", ones)),
    )


def _possible_options(card: ModelCard, given: NetworkConfig) -> list[dict[str, Any]]:
    if card.network_options is not None:
        return [dict(card.network_options)]
    possible = [given]
    if card.training is not None:
        path = RECIPES / f"{Path(card.training.recipe).name}.toml"
        possible += [load_recipe(path).network] if path.is_file() else []
    return [network.options for network in possible if network.name == card.network] or [{}]


def _match(
    bundle: Bundle, folded: Sequence[FoldedConv], network: NetworkConfig
) -> tuple[nn.Module, list[tuple[FoldedConv, ConvPlace]]]:
    """A fresh network, and each convolution of the graph with its place there.

    Raises BundleError unless every one has a place, and every parameter of the network comes from one.
    """
    built = _build(bundle, network)
    places = find_places(built)
    name = f"{network.name} with options {network.options}" if network.options else network.name
    refuse = partial(_refuse, bundle)
    if len(folded) != len(places):
        hint = ", as a mean of two networks has" if len(folded) == 2 * len(places) else ""
        raise refuse(f"has {len(folded)} convolutions{hint}", f"{len(places)}, those of {name}")
    for conv, place in zip(folded, places, strict=True):
        if conv.form != place.form:
            raise refuse(f"has {conv.name}, {conv.form}", f"{place.form}, {place.name} of {name}")
        if place.norm is None and place.conv.bias is None and conv.bias.any():
            raise refuse(f"has {conv.name} with a bias", f"none, as {place.name} of {name}")
    sources = [module for place in places for module in (place.conv, place.norm) if module is not None]
    known = {parameter for module in sources for parameter in module.parameters()}
    unknown = [key for key, parameter in built.named_parameters() if parameter not in known]
    if unknown:
        raise refuse(
            f"is of {name}, with {unknown[0]}", "a network of convolutions, each with BatchNorm or none"
        )
    return built, list(zip(folded, places, strict=True))


def _build(bundle: Bundle, network: NetworkConfig) -> nn.Module:
    try:
        return build_network(network.name, len(bundle.card.classes), network.options).eval()
    except (DataError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        found = f"is of {network.name} with options {network.options}, which cannot be built ({reason})"
        raise _refuse(bundle, found, "a network of this version of surgseg") from error


def _refuse(bundle: Bundle, found: str, expected: str) -> BundleError:
    return BundleError(f"{bundle.model_path} {found}.", expected, _REMEDY)


def _load(conv: FoldedConv, place: ConvPlace) -> None:
    """The weights of a convolution, and its bias; a BatchNorm after it takes the bias and otherwise changes nothing."""
    norm = place.norm
    place.conv.weight.copy_(torch.from_numpy(conv.weight.copy()))
    offset = place.conv.bias if norm is None else norm.bias
    if norm is not None:
        norm.reset_running_stats()
        norm.weight.fill_((1 + norm.eps) ** 0.5)
        if place.conv.bias is not None:
            place.conv.bias.zero_()
    if offset is not None:
        offset.copy_(torch.from_numpy(conv.bias.copy()))


def _measure_statistics(network: nn.Module, norms: Sequence[nn.BatchNorm2d], images: Iterable[Image]) -> None:
    """Give each BatchNorm the mean and variance of its input over all pictures; what it makes of it stays the same.

    That is why one pass measures all: no layer's statistics change what the layers after it see.
    """
    moments = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms}

    def add(norm: nn.BatchNorm2d, args: tuple[Tensor]) -> None:
        values = args[0].double().transpose(0, 1).flatten(1)
        sums = (torch.ones_like(values).sum(1), values.sum(1), values.square().sum(1))
        moments[norm] += torch.stack(sums)

    with _removed_after([norm.register_forward_pre_hook(add) for norm in norms]):
        for image_hwc in images:
            network(normalise(torch.from_numpy(image_hwc.copy()).permute(2, 0, 1)[None]))
    for norm, (counts, sums, squares) in moments.items():
        if not counts.all():
            raise DataError("There is no picture to measure BatchNorm on.", "at least one", "Name frames.")
        mean = sums / counts
        _set_statistics(norm, mean, (squares / counts - mean.square()).clamp(min=0))


def _set_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Change the running statistics and let weight and bias make up for it: the output in eval mode stays the same."""
    assert norm.running_mean is not None and norm.running_var is not None  # _load needed them too
    factor = norm.weight.double() / (norm.running_var + norm.eps).sqrt()
    norm.bias.copy_(norm.bias + factor * (mean - norm.running_mean))
    norm.weight.copy_(factor * (variance + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


@contextmanager
def _removed_after(hooks: Sequence[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _describe(shape: Sequence[int], groups: int, strides: Sequence[int], dilations: Sequence[int]) -> str:
    sizes = " x ".join(str(length) for length in shape)
    return f"a convolution {sizes}, groups {groups}, strides {tuple(strides)}, dilations {tuple(dilations)}"
