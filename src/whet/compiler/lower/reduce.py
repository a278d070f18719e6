"""Reductions over axes, positions of extremes, global pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from whet.compiler.fuse import Group
from whet.compiler.lower.along import (
    WORK,
    behind,
    grid,
    known_ints,
    loop_order,
    loop_words,
    loops,
    takes_scalars,
    tile_for,
    written,
)
from whet.compiler.lower.copy import relayout
from whet.compiler.lower.demand import demand
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of
from whet.compiler.step import Word, address
from whet.compiler.tape import TapeBuilder, computed
from whet.compiler.views import View, hint, product
from whet.dtypes import BOOL, DType
from whet.graph import Node, Value
from whet.graph.dims import Known, ceil_div
from whet.kernels.expression import Tape
from whet.kernels.extreme import ArgReduce, comparable
from whet.kernels.reduce import Layout, Reduce, ReduceKind, columns_step

KINDS: dict[str, ReduceKind] = {
    "ReduceL1": "l1",
    "ReduceL2": "l2",
    "ReduceLogSum": "log_sum",
    "ReduceLogSumExp": "log_sum_exp",
    "ReduceMax": "max",
    "ReduceMean": "mean",
    "ReduceMin": "min",
    "ReduceProd": "prod",
    "ReduceSum": "sum",
    "ReduceSumSquare": "sum_square",
}
"""How the kernel calls what an operator computes."""

SHARED_TILES = 8
"""Grids of fewer tiles are shared in two stages where each tile is long."""
LONG = 4 * WORK


@dataclass(frozen=True, slots=True)
class Reduction:
    """What is computed: the kernel's kind, with work on each element before it and on each result behind it."""

    kind: ReduceKind
    prologue: Tape | None = None
    epilogue: Tape | None = None
    ops: str = ""
    count: Known | None = None
    """Elements behind one result, where what is reduced are sums of several already."""


def refusal(node: Node) -> str | None:
    """Why a reduction cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is None and dtype_of(node.output) is BOOL and KINDS[node.op] not in ("max", "min"):
        return f"no {node.op} of bool"
    return reason


def takes_group(node: Node, group: Group) -> bool:
    """Whether the reduction can do the group's work on its results."""
    return refusal(node) is None and takes_scalars(node, group)


def lower_reduce(ctx: Lowering, node: Node, group: Group | None) -> None:
    source = node.inputs[0]
    assert source is not None
    x = ctx.view(source)
    given = known_ints(node.input(1))
    axes = {axis % max(x.rank, 1) for axis in given or ()}
    if not given and not node.int_attr("noop_with_empty_axes", 0):
        axes = set(range(x.rank))
    result, epilogue, ops = behind(ctx, node, group)
    keep = node.int_attr("keepdims", 1) != 0
    x, what = _from_sums(ctx, source, x, Reduction(KINDS[node.op], None, epilogue, ops), sorted(axes))
    reduce_to(ctx, x, sorted(axes), result, keep, what)


def wants_spatial_sums(value: Value) -> bool:
    """Whether a reader of [images, channels, ..] sums or averages each channel of each image."""
    rank = len(value.shape or ())
    for node in value.uses:
        if node.inputs[0] is not value:
            continue
        if node.op == "GlobalAveragePool" and rank > 2:
            return True
        if node.op in ("ReduceMean", "ReduceSum"):
            axes = known_ints(node.input(1))
            if axes and rank > 2 and {axis % rank for axis in axes} == set(range(2, rank)):
                return True
    return False


def _from_sums(ctx: Lowering, source: Value, x: View, what: Reduction, axes: Sequence[int]) -> tuple[View, Reduction]:
    """The sums over parts of the pixels in the place of `x`, where they are there and serve."""
    sums = ctx.spatial_sums.get(source)
    if sums is None or what.kind not in ("mean", "sum") or list(axes) != list(range(2, x.rank)):
        return x, what
    return sums, replace(what, count=product(x.shape[2:]))


def reduce_to(ctx: Lowering, x: View, axes: Sequence[int], result: Value, keep: bool, what: Reduction) -> None:
    """Emit the reduction of `x` over `axes` to `result`, which is given memory."""
    kept = [axis for axis in range(x.rank) if axis not in axes]
    x, layout = _laid_out(ctx, x, kept, axes)
    order = loop_order(x)
    if not keep:
        order = [kept.index(axis) for axis in order if axis in kept]
    fast = _fastest(x, kept)

    def own(view: View) -> View:
        return _without(view, axes) if keep else view

    def fits(view: View) -> bool:
        return layout == "rows" or fast is None or own(view).strides[kept.index(fast)] == 1

    with written(ctx, result, order, fits) as out:
        emit_reduce(ctx, x, axes, own(out), layout, what)


def reduce_view(ctx: Lowering, x: View, axes: Sequence[int], what: Reduction, element: DType) -> View:
    """The reduction of `x` over `axes`, which stay as extents of 1, in new memory."""
    kept = [axis for axis in range(x.rank) if axis not in axes]
    x, layout = _laid_out(ctx, x, kept, axes)
    shape = [1 if axis in axes else extent for axis, extent in enumerate(x.shape)]
    out = ctx.temporary(element, shape, loop_order(x), f"{what.kind} of {x.buffer.label}")
    emit_reduce(ctx, x, axes, _without(out, axes), layout, what)
    return out


def emit_reduce(ctx: Lowering, x: View, axes: Sequence[int], out: View, layout: Layout, what: Reduction) -> None:
    """Emit the reduction of `x` over `axes` into `out`, which has the other axes of `x` in their order.

    `x` and `out` fit the layout.
    """
    kept = [axis for axis in range(x.rank) if axis not in axes]
    x_strides = [x.strides[axis] for axis in kept]
    order = [kept.index(axis) for axis in loop_order(x, kept)]
    outer = loops(out.shape, [x_strides, out.strides], order)
    inner = loops(x.shape, [x.strides], loop_order(x, axes))
    spec = Reduce(
        what.kind, x.element, out.element, layout, len(outer), len(inner), "whole", what.prologue, what.epilogue
    )
    count = product(extent for extent, _ in inner)
    step = columns_step(spec, ctx.target.vector_bits) if layout == "columns" else 1
    tile = tile_for(count, step)
    words: dict[str, Word] = {
        "x": address(x), "out": address(out), "tile": tile, "count": count if what.count is None else what.count,
        **loop_words("kept", ("x", "out"), outer), **loop_words("reduced", ("x",), inner),
    }  # fmt: skip
    tiles = grid(outer, tile)
    positions = min(hint(tile), hint(outer[-1][0]))
    if hint(tiles) >= SHARED_TILES or positions * hint(count) < LONG:
        ctx.emit(spec, words, tiles, [x], [out], flops=x.size, ops=what.ops)
        return
    # Few long reductions: parts of a fixed size, so that the answer does not depend on the number of threads.
    across = hint(product(extent for extent, _ in inner[1:])) * (positions if layout == "columns" else 1)
    part = max(1, WORK // max(across, 1))
    parts = ceil_div(inner[0][0], part)
    extents = [extent for extent, _ in outer]
    shape = (*extents, parts) if layout == "rows" else (parts, *extents)
    between = ctx.temporary(spec.total_dtype, shape, label="parts of a reduction")
    strides = list(between.strides[:-1] if layout == "rows" else between.strides[1:])
    part_stride = between.strides[-1] if layout == "rows" else between.strides[0]
    words |= {"out": address(between), "part_extent": part, "out_part": part_stride}
    words |= {f"out_kept{i}": stride for i, stride in enumerate(strides)}
    first = replace(spec, stage="parts", epilogue=None)
    ctx.emit(first, words, tiles * parts, [x], [between], flops=x.size, tactic="reduce parts", ops=what.ops)
    second = replace(spec, dtype=spec.total_dtype, stage="combine", prologue=None, reduced_rank=1)
    combined = [(extent, [a, s[1]]) for (extent, s), a in zip(outer, strides, strict=True)]
    words = {
        "x": address(between), "out": address(out), "tile": tile, "count": words["count"], "reduced0": parts,
        "x_reduced0": part_stride, **loop_words("kept", ("x", "out"), combined),
    }  # fmt: skip
    ctx.emit(second, words, tiles, [between], [out], tactic="reduce combine", ops=what.ops)


def _laid_out(ctx: Lowering, x: View, kept: Sequence[int], axes: Sequence[int]) -> tuple[View, Layout]:
    """`x` as a layout of the kernel wants it, copied where no layout reads it as it lies."""
    last, fast = _fastest(x, axes), _fastest(x, kept)
    if last is not None and x.strides[last] == 1:
        return x, "rows"
    if fast is not None and x.strides[fast] == 1:
        return x, "columns"
    if last is None:
        return x, "rows"
    order = [*(axis for axis in loop_order(x) if axis in kept), *(axis for axis in loop_order(x) if axis in axes)]
    return relayout(ctx, x, order), "rows"


def _fastest(view: View, axes: Sequence[int]) -> int | None:
    """The axis of `axes` that is innermost in memory."""
    order = [axis for axis in loop_order(view, axes) if view.shape[axis] != 1]
    return order[-1] if order else None


def _without(view: View, axes: Sequence[int]) -> View:
    for axis in sorted(axes, reverse=True):
        view = view.drop(axis)
    return view


# Positions of extremes


def arg_refusal(node: Node) -> str | None:
    """Why ArgMax or ArgMin cannot be lowered, or None."""
    reason = tensor_refusal(node)
    source = node.inputs[0]
    assert source is not None
    if reason is not None:
        return reason
    shape = source.shape
    if not shape:
        return "its operand has no axis"
    if shape[node.int_attr("axis", 0)] == 0:
        return "its axis is empty"
    return None


def lower_arg(ctx: Lowering, node: Node, group: Group | None) -> None:
    source = node.inputs[0]
    assert source is not None
    x = ctx.view(source)
    axis = node.int_attr("axis", 0) % x.rank
    demand(ctx, "at_most", 1, x.shape[axis], "there is no extreme along an empty axis")
    kept = [a for a in range(x.rank) if a != axis]
    fast = _fastest(x, kept)
    if not x.unit(axis) and (fast is None or x.strides[fast] != 1):
        x = relayout(ctx, x, [*loop_order(x, kept), axis])
        fast = _fastest(x, kept)
    rows = x.unit(axis)
    keep = node.int_attr("keepdims", 1) != 0
    order = loop_order(x) if keep else [kept.index(a) for a in loop_order(x, kept)]

    def own(view: View) -> View:
        return view.drop(axis) if keep else view

    def fits(view: View) -> bool:
        return rows or fast is None or own(view).strides[kept.index(fast)] == 1

    with written(ctx, node.output, order, fits) as result:
        out = own(result)
        strides = [x.strides[a] for a in kept]
        dims = loops(out.shape, [strides, out.strides], [kept.index(a) for a in loop_order(x, kept)])
        last = node.int_attr("select_last_index", 0) != 0
        spec = ArgReduce(x.element, node.op == "ArgMax", last, "rows" if rows else "columns", len(dims))
        tile = tile_for(x.shape[axis], 1 if rows else ctx.target.lanes(comparable(x.element)))
        words: dict[str, Word] = {
            "x": address(x), "out": address(out), "length": x.shape[axis], "x_axis": x.strides[axis], "tile": tile,
            **loop_words("kept", ("x", "out"), dims),
        }  # fmt: skip
        ctx.emit(spec, words, grid(dims, tile), [x], [out], flops=x.size)


# Global pooling

GLOBAL_KINDS: dict[str, ReduceKind] = {"GlobalAveragePool": "mean", "GlobalMaxPool": "max"}


def global_refusal(node: Node) -> str | None:
    """Why a global pooling cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is None and dtype_of(node.output).kind != "float":
        return f"no {node.op} of {dtype_of(node.output)}"
    source = node.inputs[0]
    shape = (source.shape if source is not None else None) or ()
    if reason is None and len(shape) < 3:
        return "it has no spatial axis"
    if reason is None and 0 in shape[2:]:
        return "its spatial axes are empty"
    if reason is None and node.op == "GlobalLpPool" and node.int_attr("p", 2) < 1:
        return "p is less than 1"
    return reason


def takes_global_group(node: Node, group: Group) -> bool:
    """Whether the pooling can do the group's work on its results."""
    return global_refusal(node) is None and node.op in GLOBAL_KINDS and takes_scalars(node, group)


def lower_global(ctx: Lowering, node: Node, group: Group | None) -> None:
    source = node.inputs[0]
    assert source is not None
    x = ctx.view(source)
    demand(ctx, "at_most", 1, product(x.shape[2:]), "the spatial axes are empty")
    result, epilogue, ops = behind(ctx, node, group)
    what = Reduction(GLOBAL_KINDS[node.op], None, epilogue, ops) if node.op in GLOBAL_KINDS else _power_mean(node)
    x, what = _from_sums(ctx, source, x, what, range(2, x.rank))
    reduce_to(ctx, x, range(2, x.rank), result, True, what)


def _power_mean(node: Node) -> Reduction:
    """The p-norm of elements as a sum of powers."""
    p = node.int_attr("p", 2)
    if p <= 2:
        return Reduction("l1" if p == 1 else "l2", ops=node.op)
    element = computed(dtype_of(node.output))
    before, after = TapeBuilder([element]), TapeBuilder([element])
    size = before.add("abs", element, 0)
    power = before.add("pow", element, size, before.constant(p, element))
    root = after.add("pow", element, 0, after.constant(1.0 / p, element))
    return Reduction("sum", before.tape(power), after.tape(root), node.op)


REDUCE = Rule(lower_reduce, refusal)
ARG = Rule(lower_arg, arg_refusal)
GLOBAL_POOL = Rule(lower_global, global_refusal)
