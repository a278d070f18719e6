"""Layer and root-mean-square normalization from parts, and the absorption of what follows any normalization."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whet import dtypes
from whet.graph import Node, Patch, TensorType, Value
from whet.graph.dims import static_shape
from whet.passes.base import NodePass, PassContext, producer
from whet.passes.extended.norm_parts import (
    channels,
    filled,
    is_filled,
    mean,
    norm_type,
    normalized,
    over_root,
    per_channel,
    reduced_axes,
    root_mean_square_normalized,
    trailing_shape,
    variance,
)
from whet.passes.pattern import Match, MatchFailure, Pattern, PatternPass, Scalar, Var

x = Var("x")


class FuseLayerNorm(PatternPass):
    """(x - mean(x)) / sqrt(variance(x) + epsilon) over the last axes (Ba et al., 2016), without scale and bias."""

    name = "layer-norm"
    pattern = normalized(x)
    roots = pattern.roots()
    operator = "LayerNormalization"

    def replace(self, found: Match, context: PassContext) -> Sequence[Node] | MatchFailure:
        data = found.value("x")
        dtype, axes = norm_type(data), reduced_axes(found, data)
        if isinstance(dtype, MatchFailure):
            return dtype
        if isinstance(axes, MatchFailure):
            return axes
        shape = trailing_shape(data, axes)
        if isinstance(shape, MatchFailure):
            return shape
        ones = filled(context, f"{found.root.output.name}_scale", shape, dtype, 1.0)
        attributes = {"axis": -len(shape), "epsilon": found.number("epsilon"), "stash_type": 1}
        return (Node(self.operator, [data, ones], [Value("")], attributes),)


class FuseRMSNorm(FuseLayerNorm):
    """x / sqrt(mean(x^2) + epsilon) over the last axes (Zhang and Sennrich, 2019), without scale."""

    name = "rms-norm"
    pattern = root_mean_square_normalized(x)
    roots = pattern.roots()
    operator = "RMSNormalization"


SCALED_ROOT: Pattern = variance(x) + Scalar("epsilon")


class FuseFoldedLayerNorm(PatternPass):
    """x * r + (bias - mean(x) * r) with r = scale / sqrt(variance(x) + epsilon): TensorFlow's way."""

    name = "layer-norm-folded"
    pattern = over_root(x * Var("scale"), SCALED_ROOT) + (
        Var("bias") - over_root(mean(x, "mean") * Var("scale"), SCALED_ROOT)
    )
    roots = pattern.roots()

    def replace(self, found: Match, context: PassContext) -> Sequence[Node] | MatchFailure:
        data, scale, bias = found.value("x"), found.value("scale"), found.value("bias")
        dtype, axes = norm_type(data), reduced_axes(found, data)
        if isinstance(dtype, MatchFailure):
            return dtype
        if isinstance(axes, MatchFailure):
            return axes
        shape = trailing_shape(data, axes)
        if isinstance(shape, MatchFailure):
            return shape
        if scale.shape != shape or bias.shape != shape:
            return MatchFailure(f"scale {scale.name} or bias {bias.name} has not the normalized extents {list(shape)}")
        attributes = {"axis": -len(shape), "epsilon": found.number("epsilon"), "stash_type": 1}
        return (Node("LayerNormalization", [data, scale, bias], [Value("")], attributes),)


LAST_AXES_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
CHANNEL_NORMS = frozenset({"InstanceNormalization", "GroupNormalization"})


class AbsorbAffine(NodePass):
    """A scale and a bias after a normalization that has none become its own."""

    name = "norm-affine"
    roots = frozenset({"Mul", "Add"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        for position in (0, 1):
            value, parameter = node.inputs[position], node.inputs[1 - position]
            norm = value.producer if value is not None else None
            if norm is None or norm.domain or norm.graph is not node.graph or parameter is None:
                continue
            if norm.op_type in LAST_AXES_NORMS or norm.op_type in CHANNEL_NORMS:
                return self._absorb(node, norm, parameter, context)
        return None

    def _absorb(self, node: Node, norm: Node, parameter: Value, context: PassContext) -> Patch | None:
        scaling = node.op_type == "Mul"
        place = 1 if scaling else 2
        if not scaling and norm.op_type == "RMSNormalization":
            return None
        bias = norm.input(2)
        if (bias is not None and not is_filled(bias, 0.0)) or (scaling and not is_filled(norm.input(1), 1.0)):
            return None
        new = _parameter(norm, parameter, context)
        if isinstance(new, MatchFailure):
            if parameter.data is not None:
                context.refuse(self.name, node, new.reason)
            return None
        if not _feeds_only(norm, node) or norm.output.quantization is not None:
            context.refuse(self.name, node, f"{norm.label} has another reader or is quantized")
            return None
        inputs = list(norm.inputs) + [None] * (place + 1 - len(norm.inputs))
        inputs[place] = new
        fused = Node(norm.op_type, inputs, [Value("", node.output.type)], norm.attributes)
        return Patch(node, [fused], {node.output: fused.output}, [node, norm])


def _feeds_only(norm: Node, reader: Node) -> bool:
    """Whether `reader` reads the normalized tensor, nothing else does, and nothing reads the mean or deviation."""
    return norm.output.only_use is reader and not any(v.use_count for v in norm.outputs[1:])


def _parameter(norm: Node, parameter: Value, context: PassContext) -> Value | MatchFailure:
    """`parameter` in the form that the normalization takes it, or why it cannot."""
    data = norm.inputs[0]
    assert data is not None
    if data.shape is None:
        return MatchFailure(f"the rank of {data.name} is not known")
    rank = len(data.shape)
    if norm.op_type in CHANNEL_NORMS:
        count = channels(data)
        vector = per_channel(parameter, rank, count) if isinstance(count, int) else None
        if vector is None:
            return MatchFailure(f"{parameter.name} is not one constant for each channel of {data.name}")
        return Value.constant(context.model.names.fresh(f"{parameter.name}_vector"), np.ascontiguousarray(vector))
    axis = norm.int_attr("axis", -1) % rank
    extents = static_shape(data.shape[axis:])
    if extents is not None and parameter.shape == extents and (parameter.data is not None or len(extents) < rank):
        return parameter
    array = parameter.array
    if extents is None or array is None or array.ndim > rank:
        return MatchFailure(f"{parameter.name} is no constant over the normalized extents of {data.name}")
    while array.ndim > len(extents) and array.shape[0] == 1:
        array = array[0]
    if array.ndim > len(extents) or np.broadcast_shapes(array.shape, extents) != extents:
        return MatchFailure(f"{parameter.name} varies over more than the normalized extents of {data.name}")
    expanded = np.ascontiguousarray(np.broadcast_to(array, extents))
    return Value.constant(context.model.names.fresh(f"{parameter.name}_expanded"), expanded)


class AbsorbNormCasts(NodePass):
    """Casts to float32 and back around a normalization without scale: the operator computes so by itself."""

    name = "norm-casts"
    roots = frozenset({"Cast"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        value = node.inputs[0]
        norm = producer(value, "LayerNormalization") or producer(value, "RMSNormalization")
        widen = producer(norm.inputs[0], "Cast") if norm is not None else None
        if norm is None or widen is None or norm.graph is not node.graph:
            return None
        narrow = widen.inputs[0]
        assert narrow is not None
        if not isinstance(narrow.type, TensorType) or narrow.type.dtype not in (dtypes.FLOAT16, dtypes.BFLOAT16):
            return None
        dtype = narrow.type.dtype
        scale = norm.inputs[1]
        if node.int_attr("to", 0) != dtype.onnx_code or widen.int_attr("to", 0) != dtypes.FLOAT32.onnx_code:
            return None
        if not is_filled(scale, 1.0) or norm.input(2) is not None or not _feeds_only(norm, node):
            context.refuse(self.name, node, f"{norm.label} has a scale, a bias or another reader in float32")
            return None
        assert scale is not None
        assert scale.data is not None
        ones = filled(context, scale.name, scale.data.shape, dtype, 1.0)
        fused = Node(norm.op_type, [narrow, ones], [Value("", node.output.type)], norm.attributes)
        return Patch(node, [fused], {node.output: fused.output}, [node, norm])
