"""Operators on 8-bit tensors that are no pointwise ones: means, sums, concatenation."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import copy
from whet.compiler.lower.demand import demand, need
from whet.compiler.lower.integers import bytes_refusal, is_one
from whet.compiler.lower.pointwise import emit_pointwise, tensor_refusal
from whet.compiler.lower.qlinear_scalars import read, write
from whet.compiler.lower.reduce import Reduction, reduce_to, reduce_view
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of
from whet.compiler.tape import TapeBuilder
from whet.compiler.views import View, hint, memory_order
from whet.dtypes import FLOAT32, INT32, UINT32
from whet.graph import Node, Value
from whet.graph.dims import Known

GLOBAL_POOL = "com.microsoft.QLinearGlobalAveragePool"


def _quantized_refusal(node: Node, data: int, scales: Sequence[int], zeros: Sequence[int]) -> str | None:
    """Why operands are not 8-bit data with one float32 scale and zero point; or None."""
    reason = tensor_refusal(node) or bytes_refusal((node.input(data), *(node.input(i) for i in zeros), node.output))
    if reason is not None:
        return reason
    for index in (*scales, *zeros):
        if not is_one(node.input(index)):
            return "a scale or zero point is not known to be one number"
    if any(dtype_of(need(node, i)) is not FLOAT32 for i in scales):
        return "its scales are not float32"
    return None


def _one(ctx: Lowering, value: Value | None) -> View | None:
    """One number, without dimensions."""
    if value is None:
        return None
    view = ctx.view(value)
    while view.rank:
        view = view.drop(0)
    return view


def _emit(ctx: Lowering, node: Node, sources: Sequence[View | None], out: View, *, back: bool) -> None:
    """Numbers from 8-bit data, a scale and a zero point, or (`back`) 8-bit data from numbers."""
    given = [v for v in sources if v is not None]
    tape = TapeBuilder([v.element for v in given])
    places: list[int | None] = []
    for view in sources:
        places.append(None if view is None else sum(p is not None for p in places))
    made = write(tape, node, places, 1, 0) if back else read(tape, places, 0)
    emit_pointwise(ctx, tape.tape(made), [v.broadcast(out.shape) for v in given], [out])


# Means


def mean_refusal(node: Node) -> str | None:
    """Why a mean of 8-bit numbers cannot be lowered, or None."""
    rank = len(need(node, 0).shape or ())
    if node.op == GLOBAL_POOL and rank < 3:
        return "it has no spatial axis"
    return _quantized_refusal(node, 0, (1, 3), (2, 4))


def lower_mean(ctx: Lowering, node: Node, group: Group | None) -> None:
    """QLinearGlobalAveragePool, QLinearReduceMean: the mean of the numbers that the integers stand for."""
    x = ctx.view(need(node, 0))
    axes, keep = _axes(node, x.rank), True
    if node.op != GLOBAL_POOL:
        keep = node.int_attr("keepdims", 1) != 0
    numbers = ctx.temporary(FLOAT32, x.shape, memory_order(x), "dequantized")
    _emit(ctx, node, [x, _one(ctx, node.input(1)), _one(ctx, node.input(2))], numbers, back=False)
    mean = reduce_view(ctx, numbers, axes, Reduction("mean"), FLOAT32)
    if not keep:
        for axis in sorted(axes, reverse=True):
            mean = mean.drop(axis)
    out = ctx.new(node.output)
    _emit(ctx, node, [mean, _one(ctx, node.input(3)), _one(ctx, node.input(4))], out, back=True)


def _axes(node: Node, rank: int) -> list[int]:
    if node.op == GLOBAL_POOL:
        return list(range(1, rank - 1)) if node.int_attr("channels_last", 0) else list(range(2, rank))
    return sorted({axis % rank for axis in node.ints_attr("axes")}) or list(range(rank))


# Sums


def sum_refusal(node: Node) -> str | None:
    """Why a sum of 8-bit integers cannot be lowered, or None."""
    return tensor_refusal(node) or bytes_refusal((need(node, 0),))


def lower_sum(ctx: Lowering, node: Node, group: Group | None) -> None:
    """ReduceSumInteger."""
    x = ctx.view(need(node, 0))
    wide = UINT32 if x.element.kind == "uint" else INT32
    numbers = ctx.temporary(wide, x.shape, memory_order(x), "32-bit numbers")
    tape = TapeBuilder([x.element])
    copy(ctx, x, numbers, tape.tape(tape.cast(0, wide)))
    keep = node.int_attr("keepdims", 1) != 0
    reduce_to(ctx, numbers, _axes(node, x.rank), node.output, keep, Reduction("sum"))


# Concatenation


def concat_refusal(node: Node) -> str | None:
    """Why tensors with scales of their own cannot be joined, or None."""
    count = len(node.inputs) - 2
    if count < 3 or count % 3:
        return "its operands are no triples"
    for index in range(2, len(node.inputs), 3):
        reason = _quantized_refusal(node, index, (0, index + 1), (1, index + 2))
        if reason is not None:
            return reason
        if len(need(node, index).shape or ()) != len(node.output.shape or ()):
            return "its operands have different ranks"
    return None


def lower_concat(ctx: Lowering, node: Node, group: Group | None) -> None:
    """QLinearConcat: each operand is requantized into its part of the result."""
    parts = [ctx.view(need(node, i)) for i in range(2, len(node.inputs), 3)]
    result = ctx.new(node.output, memory_order(max(parts, key=lambda view: hint(view.size))))
    axis = node.int_attr("axis", 0) % result.rank
    offset: Known = 0
    for number, view in enumerate(parts):
        for other, extent in enumerate(view.shape):
            if other != axis:
                demand(ctx, "equal", extent, result.shape[other], "the extents differ")
        index = 2 + 3 * number
        numbers = ctx.temporary(FLOAT32, view.shape, memory_order(view), "dequantized")
        _emit(
            ctx, node, [view, _one(ctx, node.input(index + 1)), _one(ctx, node.input(index + 2))], numbers, back=False
        )
        place = result.slice(axis, offset, view.shape[axis])
        _emit(ctx, node, [numbers, _one(ctx, node.input(0)), _one(ctx, node.input(1))], place, back=True)
        offset = offset + view.shape[axis]


MEAN = Rule(lower_mean, mean_refusal)
SUM = Rule(lower_sum, sum_refusal)
CONCAT = Rule(lower_concat, concat_refusal)
