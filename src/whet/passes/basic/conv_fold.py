"""Folding of per-channel scales and shifts into the convolution or matrix product before them."""

from __future__ import annotations

import numpy as np

from whet.graph import Node, Patch, Value
from whet.graph.tensor import Array
from whet.ops.common import dtype_of, shape_of
from whet.passes.base import NodePass, PassContext
from whet.passes.basic.common import constant, keep_type, make

_FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


class BatchNormFolding(NodePass):
    """Folds a BatchNormalization in inference form into the Conv, ConvTranspose, Gemm or MatMul that feeds only it.

    Computed in float64, then rounded to the weight's type.
    """

    name = "batch-norm-folding"
    roots = frozenset({"BatchNormalization"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        linear = _linear_before(node, 0)
        if linear is None or node.int_attr("training_mode", 0) or any(v.use_count for v in node.outputs[1:]):
            return None
        scale, shift, mean, variance = (_wide(v) for v in node.inputs[1:5])
        if scale is None or shift is None or mean is None or variance is None:
            context.refuse(self.name, node, "its parameters are no constants")
            return None
        rank = _rank(linear.output)
        if linear.op == "MatMul" and rank != 2:
            context.refuse(self.name, node, "the matrix product's second axis is not its columns")
            return None
        with np.errstate(all="ignore"):
            factor = scale / np.sqrt(variance + node.float_attr("epsilon", 1e-5))
            offset = shift - mean * factor
        return _fold(self.name, node, linear, factor, offset, context)


class ScaleFolding(NodePass):
    """Folds Mul, Div, Add or Sub of a constant, one number per output channel, into the convolution before it."""

    name = "scale-folding"
    roots = frozenset({"Mul", "Div", "Add", "Sub"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        for position in (0, 1):
            linear = _linear_before(node, position)
            if linear is None or linear.op not in ("Conv", "ConvTranspose"):
                continue
            if node.op == "Div" and position == 1:
                return None
            operand = node.input(1 - position)
            numbers = _per_channel(operand, shape_of(linear.output))
            if numbers is None:
                return None
            if node.op == "Mul":
                return _fold(self.name, node, linear, numbers, None, context)
            if node.op == "Div":
                if not np.all(numbers):
                    return None
                return _fold(self.name, node, linear, 1.0 / numbers, None, context)
            if node.op == "Add":
                return _fold(self.name, node, linear, None, numbers, context)
            if position == 0:
                return _fold(self.name, node, linear, None, -numbers, context)
            return _fold(self.name, node, linear, -np.ones_like(numbers), numbers, context)
        return None


def _linear_before(node: Node, position: int) -> Node | None:
    """The linear operator whose result only `node` reads, with constant weights in a plain float type."""
    source = node.input(position)
    linear = source.producer if source is not None else None
    if linear is None or source is None or source.only_use is not node or linear.graph is not node.graph:
        return None
    if linear.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    weight, bias = linear.input(1), linear.input(2)
    if weight is None or weight.data is None or weight.data.dtype.name not in _FLOATS:
        return None
    return None if bias is not None and bias.data is None else linear


def _rank(value: Value) -> int | None:
    shape = shape_of(value)
    return None if shape is None else len(shape)


def _wide(value: Value | None) -> Array | None:
    return None if value is None or value.data is None else value.data.numpy().astype(np.float64)


def _per_channel(value: Value | None, output: object) -> Array | None:
    """The numbers of a constant that broadcasts to `output` and is longer than 1 at most along axis 1."""
    if value is None or value.data is None or not isinstance(output, tuple):
        return None
    shape = value.data.shape
    rank = len(output)
    if len(shape) > rank or not value.data.size:
        return None
    padded = (1,) * (rank - len(shape)) + shape
    if any(d != 1 for i, d in enumerate(padded) if i != 1):
        return None
    if padded[1] != 1 and padded[1] != output[1]:
        return None
    return value.data.numpy().astype(np.float64).reshape(-1)


def _fold(
    rewrite: str, node: Node, linear: Node, factor: Array | None, offset: Array | None, context: PassContext
) -> Patch | None:
    """Scale the filters of `linear` by `factor` and shift its bias: `factor * (W x + b) + offset`."""
    weight, bias = _wide(linear.input(1)), _wide(linear.input(2))
    assert weight is not None
    channels = _channels(linear, weight)
    if channels is None:
        return None
    scale = np.broadcast_to(np.ones(1) if factor is None else factor, (channels,))
    shift = np.broadcast_to(np.zeros(1) if offset is None else offset, (channels,))
    beta = linear.float_attr("beta", 1.0) if linear.op == "Gemm" else 1.0
    if bias is not None and (bias.ndim > 1 or bias.size not in (1, channels)):
        # A Gemm's C may be a whole matrix.
        if bias.size != channels or bias.shape != (1, channels):
            return None
        bias = bias.reshape(-1)
    with np.errstate(all="ignore"):
        new_weight = weight * _along_channels(linear, weight, scale)
        new_bias = shift if bias is None else beta * bias * scale + shift
        dtype = dtype_of(linear.input(1))
        assert dtype is not None
        made = [a.astype(dtype.numpy) for a in (new_weight, new_bias)]
    if not all(np.isfinite(a.astype(np.float64)).all() for a in made):
        context.refuse(rewrite, node, f"the folded weights do not fit {dtype}")
        return None
    operands = [linear.inputs[0], linear.input(1) if factor is None else constant(made[0])]
    attributes = dict(linear.attributes)
    op = linear.op
    if bias is not None or offset is not None:
        operands.append(constant(made[1]))
        if op == "Gemm":
            attributes["beta"] = 1.0
        elif op == "MatMul":
            op = "Gemm"
    new = make(op, operands, attributes)
    keep_type(new.output, node.output)
    return Patch(node, [new], {node.output: new.output}, [node, linear])


def _channels(linear: Node, weight: Array) -> int | None:
    """How many output channels the weight makes."""
    if linear.op == "Conv":
        return int(weight.shape[0])
    if linear.op == "ConvTranspose":
        return int(weight.shape[1]) * linear.int_attr("group", 1)
    if weight.ndim != 2:
        return None
    return int(weight.shape[0 if linear.op == "Gemm" and linear.int_attr("transB", 0) else 1])


def _along_channels(linear: Node, weight: Array, scale: Array) -> Array:
    """`scale` shaped so that it multiplies the output channels of the weight."""
    if linear.op == "Conv":
        return scale.reshape(-1, *(1,) * (weight.ndim - 1))
    if linear.op == "ConvTranspose":
        # Weight (input channels, output channels of a group, ...): each group has its own rows.
        group = linear.int_attr("group", 1)
        rows = np.repeat(scale.reshape(group, -1), weight.shape[0] // group, axis=0)
        return rows.reshape(weight.shape[0], weight.shape[1], *(1,) * (weight.ndim - 2))
    if linear.op == "Gemm" and linear.int_attr("transB", 0):
        return scale.reshape(-1, 1)
    return scale.reshape(1, -1)
