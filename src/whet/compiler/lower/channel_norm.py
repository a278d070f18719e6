"""Norms that are made of reductions and pointwise steps: batch, mean-variance, p-norm, local response."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whet.compiler.fuse import Group
from whet.compiler.lower.along import grid, loop_order, loop_words, loops, tile_for, written
from whet.compiler.lower.copy import relayout
from whet.compiler.lower.demand import broadcast, demand
from whet.compiler.lower.norm import floats_refusal
from whet.compiler.lower.pointwise import emit_pointwise
from whet.compiler.lower.reduce import Reduction, reduce_view
from whet.compiler.lower.rule import Rule
from whet.compiler.lower.scalar_table import SCALAR_RULES
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.step import Word, address
from whet.compiler.tape import TapeBuilder, computed, scalar_constant
from whet.compiler.views import View
from whet.compiler.weights import Array
from whet.dtypes import BOOL, FLOAT32, FLOAT64, DType
from whet.graph import Node, Value
from whet.kernels.lrn import Lrn

# BatchNormalization


def batch_refusal(node: Node) -> str | None:
    """Why a batch normalization cannot be lowered, or None."""
    reason = floats_refusal(node)
    if reason is not None:
        return reason
    if node.int_attr("training_mode", 0):
        return "it is in training mode"
    if not node.output.shape:
        return "its operand has no axis"
    shape = node.output.shape
    channels = shape[1] if len(shape) > 1 else 1
    for value in node.inputs[1:5]:
        own = value.shape if value is not None else None
        if own is None or len(own) != 1:
            return "a statistic is no vector"
        if isinstance(own[0], int) and isinstance(channels, int) and own[0] != channels:
            return "a statistic has not one number a channel"
    return None


def takes_batch_group(node: Node, group: Group) -> bool:
    """A batch normalization is pointwise itself: it can do any pointwise work behind it."""
    return batch_refusal(node) is None


def lower_batch_norm(ctx: Lowering, node: Node, group: Group | None) -> None:
    source = node.inputs[0]
    assert source is not None
    x, shape = ctx.view(source), shape_of(node.output)
    operands = [v for v in node.inputs[1:5] if v is not None]
    wide = FLOAT64 if any(dtype_of(v) is FLOAT64 for v in (source, *operands)) else FLOAT32
    for value in operands:
        channels = shape[1] if len(shape) > 1 else 1
        demand(ctx, "equal", shape_of(value)[0], channels, "there is not one number a channel")
    factor, offset = _coefficients(ctx, node, operands, wide)
    lifted = [_per_channel(view, x.rank).broadcast(shape) for view in (factor, offset)]
    inputs = [v for v in group.inputs if scalar_constant(v) is None] if group is not None else []
    others = [broadcast(ctx, ctx.view(v), shape) for v in inputs]
    tape = TapeBuilder([x.element, wide, wide, *(v.element for v in others)])
    total = tape.add("add", wide, tape.add("mul", wide, tape.cast(0, wide), 1), 2)
    result, ops = node.output, node.op_type
    if group is not None:
        at = {node.output: tape.cast(total, computed(dtype_of(node.output)))}
        for i, value in enumerate(inputs):
            at[value] = tape.cast(3 + i, computed(dtype_of(value)))
        for value in group.inputs:
            number = scalar_constant(value)
            if number is not None:
                at[value] = tape.constant(number, computed(dtype_of(value)))
        for inner in group.nodes:
            arguments = [None if v is None else at[v] for v in inner.inputs]
            at[inner.output] = SCALAR_RULES[inner.op].build(tape, inner, arguments)
            ops += f"+{inner.op_type}"
        result, total = group.root, at[group.root]
    out = ctx.new(result, loop_order(x))
    emit_pointwise(ctx, tape.tape(tape.cast(total, out.element)), [x, *lifted, *others], [out], ops=ops)


def _coefficients(ctx: Lowering, node: Node, operands: Sequence[Value], wide: DType) -> tuple[View, View]:
    """The factor and the offset of each channel: weights where the statistics are constants."""
    epsilon = node.float_attr("epsilon", 1e-5)
    data = [v.data for v in operands]
    known = [d for d in data if d is not None]
    if len(known) == len(data):

        def made() -> tuple[Array, Array]:
            scale, bias, mean, variance = (d.numpy().astype(wide.numpy) for d in known)
            with np.errstate(all="ignore"):
                factor = scale / np.sqrt(variance + wide.numpy.type(epsilon))
                return factor, bias - mean * factor

        key = ("batch norm", wide.name, epsilon, *(d.digest() for d in known))
        size = known[0].size
        factors = ctx.weight((*key, "factor"), lambda: made()[0], wide)
        offsets = ctx.weight((*key, "offset"), lambda: made()[1], wide)
        return View(factors, (size,), (1,)), View(offsets, (size,), (1,))
    views = [ctx.view(v) for v in operands]
    tape = TapeBuilder([v.element for v in views])
    scale, bias, mean, variance = (tape.cast(i, wide) for i in range(4))
    root = tape.add("sqrt", wide, tape.add("add", wide, variance, tape.constant(epsilon, wide)))
    factor = tape.add("div", wide, scale, root)
    offset = tape.add("sub", wide, bias, tape.add("mul", wide, mean, factor))
    results = [ctx.temporary(wide, views[0].shape, label=name) for name in ("factors", "offsets")]
    emit_pointwise(ctx, tape.tape(factor, offset), views, results)
    return results[0], results[1]


def _per_channel(view: View, rank: int) -> View:
    """A vector over the channels, with dimensions of extent 1 behind it."""
    for _ in range(rank - 2):
        view = view.expand_dims(view.rank)
    return view


# LpNormalization, MeanVarianceNormalization


def lp_refusal(node: Node) -> str | None:
    """Why a p-norm normalization cannot be lowered, or None."""
    reason = floats_refusal(node)
    if reason is None and not node.output.shape:
        return "its operand has no axis"
    if reason is None and node.int_attr("p", 2) not in (1, 2):
        return f"p is {node.int_attr('p', 2)}"
    return reason


def lower_lp_norm(ctx: Lowering, node: Node, group: Group | None) -> None:
    source = node.inputs[0]
    assert source is not None
    x = ctx.view(source)
    axis = node.int_attr("axis", -1) % x.rank
    element = computed(x.element)
    norm = reduce_view(ctx, x, [axis], Reduction("l1" if node.int_attr("p", 2) == 1 else "l2"), element)
    tape = TapeBuilder([x.element, element])
    zero = tape.constant(0, element)
    quotient = tape.add("div", element, tape.cast(0, element), 1)
    total = tape.add("where", element, tape.add("equal", BOOL, 1, zero), zero, quotient)
    out = ctx.new(node.output, loop_order(x))
    emit_pointwise(ctx, tape.tape(tape.cast(total, out.element)), [x, norm.broadcast(x.shape)], [out])


def mean_variance_refusal(node: Node) -> str | None:
    """Why a mean-variance normalization cannot be lowered, or None."""
    reason = floats_refusal(node)
    rank = len(node.output.shape or ())
    if reason is None and any(not -rank <= axis < rank for axis in node.ints_attr("axes", (0, 2, 3))):
        return "an axis is out of range"
    return reason


def lower_mean_variance(ctx: Lowering, node: Node, group: Group | None) -> None:
    source = node.inputs[0]
    assert source is not None
    x = ctx.view(source)
    axes = sorted({axis % x.rank for axis in node.ints_attr("axes", (0, 2, 3))})
    element = computed(x.element)
    mean = reduce_view(ctx, x, axes, Reduction("mean"), element)
    tape = TapeBuilder([x.element, element])
    rest = ctx.temporary(element, x.shape, loop_order(x), "deviations")
    emit_pointwise(
        ctx, tape.tape(tape.add("sub", element, tape.cast(0, element), 1)), [x, mean.broadcast(x.shape)], [rest]
    )
    square = TapeBuilder([element])
    what = Reduction("mean", square.tape(square.add("mul", element, 0, 0)))
    variance = reduce_view(ctx, rest, axes, what, element)
    tape = TapeBuilder([element, element])
    deviation = tape.add("add", element, tape.add("sqrt", element, 1), tape.constant(1e-9, element))
    out = ctx.new(node.output, loop_order(x))
    total = tape.cast(tape.add("div", element, 0, deviation), out.element)
    emit_pointwise(ctx, tape.tape(total), [rest, variance.broadcast(x.shape)], [out])


# LRN


def lrn_refusal(node: Node) -> str | None:
    """Why a local response normalization cannot be lowered, or None."""
    reason = floats_refusal(node)
    if reason is None and len(node.output.shape or ()) < 2:
        return "it has no channels"
    if reason is None and node.int_attr("size", 0) < 1:
        return "its size is less than 1"
    return reason


def lower_lrn(ctx: Lowering, node: Node, group: Group | None) -> None:
    source = node.inputs[0]
    assert source is not None
    x = ctx.view(source)
    order = (0, *range(2, x.rank), 1)
    if not x.unit(1):
        x = relayout(ctx, x, order)
    with written(ctx, node.output, order, lambda view: view.unit(1)) as out:
        dims = loops(x.shape, [x.strides, out.strides], [a for a in loop_order(x) if a != 1])
        spec = Lrn(
            x.element, out.element, node.int_attr("size", 1), node.float_attr("alpha", 1e-4),
            node.float_attr("beta", 0.75), node.float_attr("bias", 1.0), len(dims),
        )  # fmt: skip
        tile = tile_for(x.shape[1])
        words: dict[str, Word] = {
            "x": address(x), "out": address(out), "channels": x.shape[1], "tile": tile,
            **loop_words("kept", ("x", "out"), dims),
        }  # fmt: skip
        ctx.emit(spec, words, grid(dims, tile), [x], [out], flops=x.size * (2 * spec.size + 4))


BATCH_NORM = Rule(lower_batch_norm, batch_refusal)
LP_NORM = Rule(lower_lp_norm, lp_refusal)
MEAN_VARIANCE = Rule(lower_mean_variance, mean_variance_refusal)
LRN = Rule(lower_lrn, lrn_refusal)
