"""Adapters for operators whose attributes became inputs, or changed name, type or default (opset 7 and later)."""

from __future__ import annotations

import numpy as np

from whet import dtypes
from whet.errors import NotImplemented
from whet.formats.onnx.facts import dtype_of
from whet.formats.onnx.rewriting import Rewriter, without
from whet.graph import Attribute, Node, Value

_FLOAT_MAX = float(np.finfo(np.float32).max)


def axes_to_input(rewriter: Rewriter, node: Node) -> Node:
    """Squeeze, Unsqueeze (13), ReduceSum (13), other reductions (18)."""
    axes = node.ints_attr("axes")
    inputs: list[Value | None] = [node.inputs[0]]
    if axes:
        inputs.append(rewriter.ints(node, "axes", axes))
    return rewriter.replace(node, node.op_type, inputs, without(node, "axes"))


def unsqueeze(rewriter: Rewriter, node: Node) -> Node:
    """Unsqueeze-13: unlike in the reductions, axes are required, and may be an empty list."""
    axes = rewriter.ints(node, "axes", node.ints_attr("axes"))
    return rewriter.replace(node, "Unsqueeze", [node.inputs[0], axes], without(node, "axes"))


def clip(rewriter: Rewriter, node: Node) -> Node:
    """Clip-11: the bounds are inputs of the tensor's own type."""
    x = node.inputs[0]
    wide = dtype_of(x) in (None, dtypes.FLOAT64)
    inputs: list[Value | None] = [x]
    for name, default in (("min", -_FLOAT_MAX), ("max", _FLOAT_MAX)):
        bound = node.float_attr(name, default)
        # The old default bounds are float32's own range, which only a wider type can leave.
        needed = bound != default or (wide and name in node.attributes)
        inputs.append(rewriter.like(node, name, bound, x) if needed else None)
    return rewriter.replace(node, "Clip", inputs, without(node, "min", "max"))


def pad(rewriter: Rewriter, node: Node) -> Node:
    """Pad-11: pads and the constant are inputs."""
    x = node.inputs[0]
    inputs: list[Value | None] = [x, rewriter.ints(node, "pads", node.ints_attr("pads"))]
    value = node.float_attr("value", 0.0)
    if value != 0.0 and node.str_attr("mode", "constant") == "constant":
        inputs.append(rewriter.like(node, "value", value, x))
    return rewriter.replace(node, "Pad", inputs, without(node, "pads", "value"))


def slice_(rewriter: Rewriter, node: Node) -> Node:
    """Slice-10: starts, ends and axes are inputs."""
    starts = node.ints_attr("starts")
    inputs: list[Value | None] = [
        node.inputs[0],
        rewriter.ints(node, "starts", starts),
        rewriter.ints(node, "ends", node.ints_attr("ends")),
        rewriter.ints(node, "axes", node.ints_attr("axes", range(len(starts)))),
    ]
    return rewriter.replace(node, "Slice", inputs, {})


def top_k(rewriter: Rewriter, node: Node) -> Node:
    """TopK-10: k is an input."""
    k = rewriter.ints(node, "k", [node.int_attr("k", 0)])
    return rewriter.replace(node, "TopK", [node.inputs[0], k], without(node, "k"))


def split_sizes(rewriter: Rewriter, node: Node) -> Node:
    """Split-13: the sizes are an input."""
    if "split" not in node.attributes:
        return node
    sizes = rewriter.ints(node, "split", node.ints_attr("split"))
    return rewriter.replace(node, "Split", [node.inputs[0], sizes], without(node, "split"))


def split_count(rewriter: Rewriter, node: Node) -> Node:
    """Split-18: equal parts are asked for by number."""
    if node.input(1) is None:
        node.attributes["num_outputs"] = len(node.outputs)
    return node


def dropout(rewriter: Rewriter, node: Node) -> Node:
    """Dropout-12: opsets 7 to 11 never drop anything, whatever their ratio."""
    return rewriter.replace(node, "Dropout", [node.inputs[0]], without(node, "ratio"))


def dropout_mask(rewriter: Rewriter, node: Node) -> Node:
    """Dropout-10: the mask is boolean; before, it had the data's type."""
    if len(node.outputs) < 2 or not node.outputs[1].name:
        return node
    old = node.outputs[1]
    mask = Value(rewriter.fresh(f"{old.name}_bool"))
    new = rewriter.replace(node, "Dropout", node.inputs, outputs=[node.outputs[0], mask])
    graph = new.graph
    assert graph is not None
    cast = Node("CastLike", [mask, new.inputs[0]], [old], name=rewriter.fresh(f"{old.name}_cast"))
    following = new._next
    if following is None:
        graph.append(cast)
    else:
        graph.insert_before(following, cast)
    return new


def roi_align(rewriter: Rewriter, node: Node) -> Node:
    """RoiAlign-16: sample positions were not shifted by half a pixel before."""
    node.attributes.setdefault("coordinate_transformation_mode", "output_half_pixel")
    return node


def grid_sample(rewriter: Rewriter, node: Node) -> Node:
    """GridSample-20: modes have the names that Resize gives them."""
    names = {"bilinear": "linear", "bicubic": "cubic"}
    mode = node.str_attr("mode", "bilinear")
    node.attributes["mode"] = names.get(mode, mode)
    return node


def dft(rewriter: Rewriter, node: Node) -> Node:
    """DFT-20: the axis is an input, counted with another default."""
    axis = rewriter.constant(node, "axis", np.int64(node.int_attr("axis", 1)))
    return rewriter.replace(node, "DFT", [node.inputs[0], node.input(1), axis], without(node, "axis"))


def scatter(rewriter: Rewriter, node: Node) -> Node:
    """Scatter is ScatterElements since 11."""
    return rewriter.replace(node, "ScatterElements", node.inputs)


def spatial(rewriter: Rewriter, node: Node) -> Node | None:
    """BatchNormalization-9: always per channel. Before, spatial=0 meant statistics of each single position."""
    if node.int_attr("spatial", 1):
        node.attributes.pop("spatial", None)
        return node
    if len(node.outputs) > 1 or node.int_attr("training_mode", 0):
        raise NotImplemented("BatchNormalization of each position (spatial=0) in training mode", node=node.label)
    x, scale, bias, mean, variance = node.inputs
    epsilon = rewriter.like(node, "epsilon", node.float_attr("epsilon", 1e-5), variance)
    deviation = rewriter.insert(node, "Sqrt", [rewriter.insert(node, "Add", [variance, epsilon])])
    centred = rewriter.insert(node, "Sub", [x, mean])
    normal = rewriter.insert(node, "Div", [centred, deviation])
    scaled = rewriter.insert(node, "Mul", [normal, scale])
    rewriter.replace(node, "Add", [scaled, bias], {})
    return None


def batch_norm_training(rewriter: Rewriter, node: Node) -> Node:
    """BatchNormalization-14: training is asked for by an attribute; before, by further outputs."""
    if len(node.outputs) == 1:
        return node
    if any(o.use_count for o in node.outputs[3:]):
        raise NotImplemented(
            "BatchNormalization's saved statistics", node=node.label, hint="Export the model for inference."
        )
    attributes: dict[str, Attribute] = {**node.attributes, "training_mode": 1}
    return rewriter.replace(node, "BatchNormalization", node.inputs, attributes, node.outputs[:3])
