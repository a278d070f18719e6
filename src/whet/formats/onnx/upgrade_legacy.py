"""Adapters for the forms that operators had before opset 7, and for ai.onnx.ml."""

from __future__ import annotations

import numpy as np
import onnx

from whet import dtypes
from whet.errors import InvalidGraph, NotImplemented, did_you_mean
from whet.formats.onnx.facts import dtype_of, rank_of
from whet.formats.onnx.rewriting import Rewriter, without
from whet.graph import Attribute, Node, Value


def drop_consumed_inputs(rewriter: Rewriter, node: Node) -> Node:
    """Opset 6: an early memory optimization that never had a meaning for results."""
    node.attributes.pop("consumed_inputs", None)
    return node


def broadcast(rewriter: Rewriter, node: Node) -> Node:
    """Opset 7: numpy's broadcasting. Before, B's axes lay against A's from `axis` on (default: the last ones)."""
    axis = node.attributes.get("axis")
    attributes = without(node, "axis", "broadcast")
    a, b = node.inputs[:2]
    if not node.int_attr("broadcast", 0) or not isinstance(axis, int):
        return rewriter.replace(node, node.op_type, [a, b], attributes)
    return rewriter.replace(node, node.op_type, [a, _align(rewriter, node, a, b, axis)], attributes)


def _align(rewriter: Rewriter, node: Node, a: Value | None, b: Value | None, axis: int) -> Value | None:
    """B with as many axes of extent 1 behind it as A has beyond B's."""
    rank_a, rank_b = rank_of(a), rank_of(b)
    if rank_a is not None and axis < 0:
        axis += rank_a
    if rank_a is not None and rank_b is not None:
        behind = rank_a - axis - rank_b
        if behind < 0 or axis < 0:
            raise InvalidGraph(
                "a broadcast axis that does not fit",
                node=node.label,
                value="axis",
                found=axis,
                expected=f"0 to {rank_a}",
            )
        if not behind:
            return b
        return rewriter.insert(node, "Unsqueeze", [b, rewriter.ints(node, "axes", range(rank_b, rank_b + behind))])
    if axis < 0:
        raise NotImplemented("a negative broadcast axis for an unknown rank", node=node.label, found=axis)
    shape_b = rewriter.insert(node, "Shape", [b])
    rank = rewriter.insert(node, "Shape", [rewriter.insert(node, "Shape", [a])])
    taken = rewriter.insert(
        node, "Add", [rewriter.insert(node, "Shape", [shape_b]), rewriter.ints(node, "axis", [axis])]
    )
    behind_b = rewriter.insert(node, "Sub", [rank, taken])
    ones = rewriter.insert(node, "Expand", [rewriter.ints(node, "one", [1]), behind_b])
    shape = rewriter.insert(node, "Concat", [shape_b, ones], {"axis": 0})
    return rewriter.insert(node, "Reshape", [b, shape])


def prelu_slope(rewriter: Rewriter, node: Node) -> Node:
    """PRelu-7: the slope broadcasts as in numpy. Before, a vector had one slope a channel (axis 1)."""
    x, slope = node.inputs
    rank, size = rank_of(x), slope.data.size if slope is not None and slope.data is not None else None
    if rank_of(slope) != 1 or rank == 2 or size == 1:
        return node
    if rank is None:
        raise NotImplemented("PRelu with a slope per channel for an input of unknown rank", node=node.label)
    wide = rewriter.insert(node, "Unsqueeze", [slope, rewriter.ints(node, "axes", range(1, rank - 1))])
    return rewriter.replace(node, "PRelu", [x, wide])


def cast_to_name(rewriter: Rewriter, node: Node) -> Node:
    """Cast-6: the element type is a number; before, a name."""
    name = node.str_attr("to", "").upper()
    codes = dict(onnx.TensorProto.DataType.items())
    if codes.get(name, 0) == 0:
        raise InvalidGraph(
            "unknown element type", node=node.label, value="to", found=name, hint=did_you_mean(name, codes)
        )
    node.attributes["to"] = int(codes[name])
    return node


def concat_axis(rewriter: Rewriter, node: Node) -> Node:
    """Concat-4: the axis is required; before, 1 by default."""
    node.attributes.setdefault("axis", 1)
    return node


def reshape_shape(rewriter: Rewriter, node: Node) -> Node:
    """Reshape-5: the shape is an input."""
    shape = rewriter.ints(node, "shape", node.ints_attr("shape"))
    return rewriter.replace(node, "Reshape", [node.inputs[0], shape], {})


def pad_name(rewriter: Rewriter, node: Node) -> Node:
    """Pad-2: `paddings` is called `pads`."""
    node.attributes["pads"] = node.attributes.pop("paddings")
    return node


def selu_defaults(rewriter: Rewriter, node: Node) -> Node:
    """Selu-6 gave its defaults more digits."""
    node.attributes.setdefault("alpha", float(np.float32(1.6732)))
    node.attributes.setdefault("gamma", float(np.float32(1.0507)))
    return node


def norm_order(rewriter: Rewriter, node: Node) -> Node:
    """LpPool-2, GlobalLpPool-2: p is an integer."""
    p = node.float_attr("p", 2.0)
    if p != int(p):
        raise NotImplemented("a norm whose order is no integer", node=node.label, value="p", found=p)
    node.attributes["p"] = int(p)
    if node.op_type == "LpPool" and "kernel_shape" not in node.attributes:
        raise InvalidGraph("a required attribute is missing", node=node.label, value="kernel_shape")
    return node


def gemm_broadcast(rewriter: Rewriter, node: Node) -> Node:
    """Gemm-7: C always broadcasts."""
    node.attributes.pop("broadcast", None)
    return node


def batch_norm_mode(rewriter: Rewriter, node: Node) -> Node:
    """BatchNormalization-7: one output means inference. Before, is_test said so, 0 by default."""
    if node.attributes.pop("is_test", 0) or len(node.outputs) > 1:
        return node
    return rewriter.replace(node, "BatchNormalization", node.inputs, {**node.attributes, "training_mode": 1})


def dropout_mode(rewriter: Rewriter, node: Node) -> Node | None:
    """Dropout-7: never drops. Before, it did unless is_test was set."""
    if node.attributes.pop("is_test", 0):
        return node
    ratio = rewriter.constant(node, "ratio", np.float32(node.float_attr("ratio", 0.5)))
    training = rewriter.constant(node, "training", np.bool_(True))
    rewriter.replace(node, "Dropout", [node.inputs[0], ratio, training], without(node, "ratio"))
    return None


def drop_output_sequence(rewriter: Rewriter, node: Node) -> Node:
    """RNN-7, GRU-7, LSTM-7: the sequence is there whenever its output is read."""
    node.attributes.pop("output_sequence", None)
    return node


def gru_direction(rewriter: Rewriter, node: Node) -> Node:
    """GRU-3 mended a misspelt default."""
    if node.attributes.get("direction") == "foward":
        node.attributes["direction"] = "forward"
    return node


def tile_repeats(rewriter: Rewriter, node: Node) -> Node:
    """Tile-6: one count for each axis; before, one axis and its count, of the data's own type."""
    x, tiles, axis = node.inputs
    rank = rewriter.insert(node, "Shape", [rewriter.insert(node, "Shape", [x])])
    ones = rewriter.insert(node, "Expand", [rewriter.ints(node, "one", [1]), rank])
    flat = rewriter.ints(node, "flat", [-1])
    int64: dict[str, Attribute] = {"to": dtypes.INT64.onnx_code}
    count = rewriter.insert(node, "Reshape", [rewriter.insert(node, "Cast", [tiles], int64), flat])
    place = rewriter.insert(node, "Reshape", [rewriter.insert(node, "Cast", [axis], int64), flat])
    repeats = rewriter.insert(node, "ScatterElements", [ones, place, count])
    return rewriter.replace(node, "Tile", [x, repeats])


def split_sizes_input(rewriter: Rewriter, node: Node) -> Node:
    """Split-2 dropped the second form of Split-1, sizes as an input, which Split-13 brought back."""
    sizes = node.input(1)
    if sizes is None or dtype_of(sizes) is dtypes.INT64:
        return node
    cast = rewriter.insert(node, "Cast", [sizes], {"to": dtypes.INT64.onnx_code})
    return rewriter.replace(node, "Split", [node.inputs[0], cast])


def label_encoder(rewriter: Rewriter, node: Node) -> Node:
    """LabelEncoder-2 (ai.onnx.ml): keys and values; before, one list of names whose positions are the numbers."""
    names = node.attributes.get("classes_strings", ())
    assert isinstance(names, tuple)
    numbers = tuple(range(len(names)))
    dtype = dtype_of(node.inputs[0])
    if dtype is dtypes.STRING:
        mapping: dict[str, Attribute] = {"keys_strings": names, "values_int64s": numbers}
    elif dtype is dtypes.INT64:
        mapping = {"keys_int64s": numbers, "values_strings": names}
    else:
        raise InvalidGraph(
            "LabelEncoder's input type cannot be told", node=node.label, found=dtype, expected="string or int64"
        )
    return rewriter.replace(node, "LabelEncoder", node.inputs, {**without(node, "classes_strings"), **mapping})
