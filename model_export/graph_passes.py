"""Graphs that give the same labels sooner. What each brings is measured in docs/results/graphs.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

LEAST_ENLARGEMENT = 8
"""Output elements for each input element from which products of matrices are quicker than a resize."""


def multiply_last_resize(model: ir.Model) -> int:
    """Give the bilinear resize of the logits as two products of matrices; gives how many resizes it was, in place.

    A bilinear resize is linear, first along one side and then along the other: `rows @ logits @ columns`, with the
    same sums of the same products as before. Runtimes multiply matrices several times as fast as they resize two or
    three maps. A resize that a convolution follows stays: it has many maps, and a layout that the next layer shares.
    """
    found = [node for node in model.graph.all_nodes() if _is_last_resize(node)]
    for node in found:
        source, target = node.inputs[0], node.outputs[0]
        before, after = _sides(source), _sides(target)
        assert source is not None and before and after
        (height, width), (out_height, out_width) = before, after
        rows = _constant(node, f"{target.name}_rows", weigh_bilinear(height, out_height))
        columns = _constant(node, f"{target.name}_columns", weigh_bilinear(width, out_width).T.copy())
        widened = ir.node("MatMul", [source, columns], name=f"{node.name}_columns")
        widened.outputs[0].name = f"{target.name}_wide"
        heightened = ir.node("MatMul", [rows, widened.outputs[0]], name=f"{node.name}_rows")
        _replace(node, [widened, heightened])
    return len(found)


def weigh_bilinear(length: int, out_length: int) -> NDArray[np.float32]:
    """The weights `(out_length, length)` of linear interpolation with pixel centres at halves, edges repeated."""
    positions = (np.arange(out_length) + 0.5) * (length / out_length) - 0.5
    before = np.floor(positions).astype(int)
    share = positions - before
    weights = np.zeros((out_length, length))
    for index, weight in ((before, 1 - share), (before + 1, share)):
        np.add.at(weights, (np.arange(out_length), np.clip(index, 0, length - 1)), weight)
    return weights.astype(np.float32)


def centre_input(model: ir.Model) -> int | None:
    """Move scale and offset of the input into the first convolution; gives the byte that is 0 there, or None.

    The convolution then takes bytes less one middle value, exact in 8 bits, where its input had to be rounded to 8 bits
    anew. Where it pads, that value takes the place of the mean of each channel, which is up to 11 of 255 away. None
    where the graph does not begin with cast, multiplication, addition and convolution: it is left alone.
    """
    for conv in model.graph.all_nodes():
        if conv.op_type == "Conv" and (chain := _normalisation(conv)) is not None:
            add, multiply = chain
            break
    else:
        return None
    offset, scale = (_per_channel(node) for node in (add, multiply))
    weight, bias = (_values(each) for each in conv.inputs[1:3])
    middle = int(np.clip(np.rint(np.mean(-offset / scale)), 0, 255))
    moved = bias + np.einsum("oikl,i->o", weight, offset + middle * scale)
    source = next(each for each in multiply.inputs if each is not None and each.const_value is None)
    centred = ir.node(
        "Sub", [source, _constant(conv, "input_middle", np.array(middle, np.float32))], name="centre_input"
    )
    centred.outputs[0].name = "centred"
    _describe_as(centred.outputs[0], source)
    assert add.graph is not None
    add.graph.insert_before(multiply, centred)
    conv.replace_input_with(0, centred.outputs[0])
    conv.replace_input_with(1, _constant(conv, "centred_weight", weight * scale[None, :, None, None]))
    conv.replace_input_with(2, _constant(conv, "centred_bias", moved))
    add.graph.remove([add, multiply], safe=True)
    return middle


def feed_bytes(model: ir.Model) -> None:
    """After quantization: let the first convolution read the picture's bytes themselves, where they are centred.

    Cast, subtraction and rounding to 8 bits with scale 1 and the middle as zero point give back the very bytes.
    """
    for node in list(model.graph.all_nodes()):
        if node.op_type != "QuantizeLinear" or node.inputs[0] is None or node.inputs[0].name != "centred":
            continue
        centre = node.inputs[0].producer()
        assert centre is not None and centre.inputs[0] is not None and node.graph is not None
        cast = centre.inputs[0].producer()
        if cast is None or cast.op_type != "Cast" or float(_values(node.inputs[1])) != 1.0:
            continue
        for user, index in tuple(node.outputs[0].uses()):
            user.replace_input_with(index, cast.inputs[0])
        node.graph.remove([node, centre, cast], safe=True)


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph with its nodes in order, without what nothing uses or what names a source file, and check it."""
    model.graph.sort()
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        # The exporter notes the source line of every node, with its path on this machine.
        common.ClearMetadataAndDocStringPass(),
    )(model)
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)


def convolutions(model: ir.Model) -> Iterator[ir.Node]:
    """Every convolution, in the order of the graph."""
    return (node for node in model.graph.all_nodes() if node.op_type == "Conv")


def _is_last_resize(node: ir.Node) -> bool:
    if node.op_type != "Resize" or not node.inputs or node.inputs[0] is None:
        return False
    mode, where = (
        node.attributes.get_string(name, default)
        for name, default in (("mode", "nearest"), ("coordinate_transformation_mode", "half_pixel"))
    )
    if mode != "linear" or where not in ("half_pixel", "pytorch_half_pixel"):
        return False
    source, target = node.inputs[0], node.outputs[0]
    before, after = _sides(source), _sides(target)
    if (
        not before
        or not after
        or min(before) < 2
        or after[0] * after[1] < LEAST_ENLARGEMENT * before[0] * before[1]
    ):
        return False
    return not _leads_to_convolution(node)


def _leads_to_convolution(node: ir.Node) -> bool:
    waiting, seen = [node], {node}
    while waiting:
        for follower in waiting.pop().successors():
            if follower.op_type in ("Conv", "ConvTranspose"):
                return True
            if follower not in seen:
                seen.add(follower)
                waiting.append(follower)
    return False


def _sides(value: ir.Value | None) -> tuple[int, int] | None:
    """Height and width of `(N, C, H, W)`; None where they are not known."""
    if value is None or value.shape is None or len(value.shape) != 4:
        return None
    height, width = value.shape[2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _normalisation(conv: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The addition and the multiplication by constants between a cast and this convolution with a bias."""
    source = conv.inputs[0]
    add = source.producer() if source is not None else None
    if add is None or add.op_type != "Add" or len(conv.inputs) < 3:
        return None
    multiply = next((each.producer() for each in add.inputs if each and each.const_value is None), None)
    if multiply is None or multiply.op_type != "Mul":
        return None
    if any(len(tuple(node.outputs[0].uses())) != 1 for node in (add, multiply)):
        return None
    cast = next((each.producer() for each in multiply.inputs if each and each.const_value is None), None)
    if (
        cast is None
        or cast.op_type != "Cast"
        or any(_per_channel(node).size != 3 for node in (add, multiply))
    ):
        return None
    return add, multiply


def _per_channel(node: ir.Node) -> NDArray[np.float64]:
    constant = next((each for each in node.inputs if each is not None and each.const_value is not None), None)
    return np.zeros(0) if constant is None else _values(constant).ravel()


def _values(value: ir.Value | None) -> NDArray[np.float64]:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def _constant(node: ir.Node, name: str, values: NDArray[np.floating]) -> ir.Value:
    constant = ir.Value(name=name, const_value=ir.tensor(values.astype(np.float32)))
    assert node.graph is not None
    node.graph.register_initializer(constant)
    return constant


def _describe_as(value: ir.Value, other: ir.Value) -> None:
    value.shape = other.shape
    if other.dtype is not None:
        value.dtype = other.dtype


def _replace(node: ir.Node, chain: list[ir.Node]) -> None:
    """Put the nodes of `chain` where `node` is; the last gives what it gave."""
    old, new = node.outputs[0], chain[-1].outputs[0]
    new.name = old.name
    _describe_as(new, old)
    assert node.graph is not None
    node.graph.insert_before(node, chain)
    for user, index in tuple(old.uses()):
        user.replace_input_with(index, new)
    node.graph.remove(node, safe=True)
