"""Adapters that need more than one node, or the input's rank, to say what an older form meant."""

from __future__ import annotations

import numpy as np

from whet.errors import InvalidGraph, NotImplemented
from whet.formats.onnx.facts import rank_of
from whet.formats.onnx.rewriting import Rewriter, without
from whet.graph import Attribute, Graph, Node, Value


def softmax(rewriter: Rewriter, node: Node) -> Node | None:
    """Softmax-13, LogSoftmax-13, Hardmax-13: along one axis. Before: along all axes from `axis` on, as one."""
    x = node.inputs[0]
    axis = node.int_attr("axis", 1)
    rank = rank_of(x)
    shape = x.shape if x is not None else None
    if rank is not None and axis < 0:
        axis += rank
    same = axis == (-1 if rank is None else rank - 1)
    if not same and shape is not None and 0 <= axis < len(shape):
        same = all(d == 1 for d in shape[axis + 1 :])
    if same:
        node.attributes["axis"] = axis
        return node
    matrix = rewriter.insert(node, "Flatten", [x], {"axis": axis})
    flat = rewriter.insert(node, node.op_type, [matrix], {"axis": -1})
    rewriter.replace(node, "Reshape", [flat, rewriter.insert(node, "Shape", [x])], {"allowzero": 1})
    return None


def resize_10(rewriter: Rewriter, node: Node) -> Node | None:
    """Resize-11 from Resize-10: positions scale without a shift; nearest rounds down when growing, up when shrinking.

    The old text does not say how nearest rounds; this is what its test data and ONNX Runtime do.
    """
    x, scales = node.inputs[0], node.input(1)
    mode = _resize_mode(node)
    attributes: dict[str, Attribute] = {"coordinate_transformation_mode": "asymmetric", "mode": mode}
    if mode != "nearest":
        return rewriter.replace(node, "Resize", [x, None, scales], attributes)
    attributes["nearest_mode"] = "floor"
    known = scales.data.numpy() if scales is not None and scales.data is not None else None
    if known is not None and (known >= 1).all():
        return rewriter.replace(node, "Resize", [x, None, scales], attributes)
    one = rewriter.constant(node, "one", np.float32(1))
    if known is None or (known > 1).any():
        grow = rewriter.insert(node, "Max", [scales, one])
        x = rewriter.insert(node, "Resize", [x, None, grow], attributes)
        scales = rewriter.insert(node, "Min", [scales, one])
    return rewriter.replace(node, "Resize", [x, None, scales], {**attributes, "nearest_mode": "ceil"})


def upsample_scales(rewriter: Rewriter, node: Node) -> Node:
    """Upsample-9: the scales are an input (7: an attribute; 1: two attributes, for height and width)."""
    if "scales" in node.attributes:
        values = node.attributes["scales"]
    else:
        values = (1.0, 1.0, node.float_attr("height_scale", 1.0), node.float_attr("width_scale", 1.0))
    scales = rewriter.constant(node, "scales", np.array(values, np.float32))
    attributes = without(node, "scales", "height_scale", "width_scale")
    return rewriter.replace(node, "Upsample", [node.inputs[0], scales], attributes)


def resize_11(rewriter: Rewriter, node: Node) -> Node:
    """Resize-13 dropped a mode that rounding can express: floor((x + 0.5) / s) is (x + 0.5) / s - 0.5, half up."""
    if node.str_attr("coordinate_transformation_mode", "half_pixel") != "tf_half_pixel_for_nn":
        return node
    if node.str_attr("mode", "nearest") != "nearest" or node.str_attr("nearest_mode", "round_prefer_floor") != "floor":
        raise NotImplemented(
            "Resize-11 with tf_half_pixel_for_nn and other rounding than floor",
            node=node.label,
            expected="mode nearest and nearest_mode floor",
        )
    node.attributes["coordinate_transformation_mode"] = "half_pixel"
    node.attributes["nearest_mode"] = "round_prefer_ceil"
    return node


def resize_operands(rewriter: Rewriter, node: Node) -> Node:
    """Resize, any opset: an operand that is an empty constant stands for one left out."""
    inputs = list(node.inputs)
    for index in range(1, len(inputs)):
        value = inputs[index]
        if value is not None and value.data is not None and value.data.size == 0:
            inputs[index] = None
    if node.str_attr("coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize" and len(inputs) > 1:
        inputs[1] = None
    if tuple(inputs) == node.inputs:
        return node
    return rewriter.replace(node, "Resize", inputs)


def group_norm(rewriter: Rewriter, node: Node) -> Node:
    """GroupNormalization-21: scale and bias have one element a channel; before, one a group."""
    x, scale, bias = node.inputs
    assert scale is not None
    assert bias is not None
    groups = node.int_attr("num_groups", 1)
    channels = x.shape[1] if x is not None and x.shape is not None and len(x.shape) > 1 else None
    wide: list[Value] = []
    for name, value in (("scale", scale), ("bias", bias)):
        if value.data is not None and isinstance(channels, int):
            if value.data.shape != (groups,) or channels % groups:
                raise InvalidGraph(
                    "GroupNormalization's operands do not fit",
                    node=node.label,
                    value=value.name,
                    found=f"shape {list(value.data.shape)} for {channels} channels in {groups} groups",
                    expected=f"[{groups}], which divides the channels",
                )
            wide.append(rewriter.constant(node, name, np.repeat(value.data.numpy(), channels // groups)))
        else:
            wide.append(_repeat_per_channel(rewriter, node, value, groups))
    return rewriter.replace(node, "GroupNormalization", [x, *wide])


def _repeat_per_channel(rewriter: Rewriter, node: Node, value: Value, groups: int) -> Value:
    count = rewriter.insert(node, "Shape", [node.inputs[0]], {"start": 1, "end": 2})
    each = rewriter.insert(node, "Div", [count, rewriter.ints(node, "groups", [groups])])
    column = rewriter.insert(node, "Unsqueeze", [value, rewriter.ints(node, "axis", [1])])
    shape = rewriter.insert(node, "Concat", [rewriter.ints(node, "rows", [groups]), each], {"axis": 0})
    table = rewriter.insert(node, "Expand", [column, shape])
    return rewriter.insert(node, "Reshape", [table, rewriter.ints(node, "flat", [-1])])


def scan_8(rewriter: Rewriter, node: Node) -> Node:
    """Scan-9 from Scan-8, whose operands have a batch axis in front: a scan over the batch around the scan itself."""
    if node.inputs[0] is not None:
        raise NotImplemented("Scan-8 with lengths for each sequence", node=node.label, value=node.inputs[0].name)
    body = node.attributes["body"]
    assert isinstance(body, Graph)
    operands = node.inputs[1:]
    scans = node.int_attr("num_scan_inputs", 0)
    directions = node.ints_attr("directions")
    inner_attributes: dict[str, Attribute] = {"body": body, "num_scan_inputs": scans}
    if any(directions):
        inner_attributes["scan_input_directions"] = directions
    batch = rewriter.subgraph(rewriter.fresh(f"{body.name}_batch"))
    batch.inputs = [Value(rewriter.fresh(f"{v.name}_item")) for v in body.inputs]
    results = [Value(rewriter.fresh(f"{v.name}_item")) for v in body.outputs]
    inner = Node("Scan", batch.inputs, results, inner_attributes, name=rewriter.fresh(f"{node.name or 'Scan'}_item"))
    batch.append(inner)
    batch.set_outputs(results)
    return rewriter.replace(node, "Scan", operands, {"body": batch, "num_scan_inputs": len(operands)})


def _resize_mode(node: Node) -> str:
    mode = node.str_attr("mode", "nearest")
    return "linear" if mode == "bilinear" else mode
