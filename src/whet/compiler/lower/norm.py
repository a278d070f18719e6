"""Normalization of rows: LayerNormalization, RMSNormalization, their relatives behind a residual addition."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from whet.compiler.fuse import Group
from whet.compiler.lower.along import (
    behind,
    grid,
    loop_order,
    loop_words,
    loops,
    takes_scalars,
    tile_for,
    written,
)
from whet.compiler.lower.copy import relayout
from whet.compiler.lower.pointwise import emit_pointwise, tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.step import Word, address
from whet.compiler.tape import TapeBuilder, computed
from whet.compiler.views import View, product
from whet.dtypes import DType
from whet.graph import Node, Value
from whet.graph.dims import Known
from whet.kernels.norm import LayerNorm

RMS = frozenset(
    {"RMSNormalization", "SimplifiedLayerNormalization", "com.microsoft.SimplifiedLayerNormalization",
     "com.microsoft.SkipSimplifiedLayerNormalization"}
)  # fmt: skip
"""Operators that take no mean off."""


def floats_refusal(node: Node) -> str | None:
    """Why an operator on floats has operands that kernels cannot hold, or None."""
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    for value in node.inputs:
        if value is not None and dtype_of(value).kind != "float":
            return f"{value.name} has element type {dtype_of(value)}"
    return None


def refusal(node: Node) -> str | None:
    """Why a norm of rows cannot be lowered, or None."""
    reason = floats_refusal(node)
    if reason is not None:
        return reason
    shape = node.output.shape
    if not shape:
        return "its operand has no axis"
    for value in node.inputs[1:]:
        own = value.shape if value is not None else None
        if value is None or own is None:
            continue
        if len(own) > len(shape):
            return f"{value.name} has more dimensions than the operand"
        for extent, wanted in zip(reversed(own), reversed(shape), strict=False):
            if isinstance(extent, int) and isinstance(wanted, int) and extent not in (1, wanted):
                return f"{value.name} does not broadcast"
    return None


def takes_group(node: Node, group: Group) -> bool:
    """Whether the norm can do the group's work on its results."""
    if refusal(node) is not None or not takes_scalars(node, group):
        return False
    # Scale and bias of a shape that rows do not share are a step of their own, which comes behind the norm's.
    axis = node.int_attr("axis", -1) % len(node.output.shape or (1,))
    return all(v is None or len(v.shape or ()) <= len(node.output.shape or ()) - axis for v in node.inputs[1:])


def lower_norm(ctx: Lowering, node: Node, group: Group | None) -> None:
    source = node.inputs[0]
    assert source is not None
    x = ctx.view(source)
    axis = node.int_attr("axis", -1) % x.rank
    scale, bias = node.input(1), None if node.op in RMS else node.input(2)
    vectors = [None if v is None else row_vector(ctx, ctx.view(v), x.shape, axis) for v in (scale, bias)]
    if any(made is None and v is not None for made, v in zip(vectors, (scale, bias), strict=True)):
        assert group is None
        _norm_then_affine(ctx, node, x, axis, [v for v in (scale, bias) if v is not None])
        return
    result, epilogue, ops = behind(ctx, node, group)
    x = as_rows(ctx, x, axis)
    with written(ctx, result, _row_order(x, axis), lambda view: is_row(view, axis)) as out:
        parts = {"scale": vectors[0], "bias": vectors[1]}
        spec_of = {name: view for name, view in parts.items() if view is not None}
        _emit(ctx, node, {"x": x, "out": out}, spec_of, axis, epilogue=epilogue, ops=ops, statistics=_statistics(node))


def _norm_then_affine(ctx: Lowering, node: Node, x: View, axis: int, operands: Sequence[Value]) -> None:
    """Scale and bias that differ from row to row are applied by a step of their own."""
    element, shape = computed(x.element), shape_of(node.output)
    x = as_rows(ctx, x, axis)
    between = ctx.temporary(element, shape, _row_order(x, axis), node.output.name)
    _emit(ctx, node, {"x": x, "out": between}, {}, axis, statistics=_statistics(node))
    views = [ctx.view(v).broadcast(shape) for v in operands]
    tape = TapeBuilder([element, *(v.element for v in views)])
    total = tape.add("mul", element, 0, tape.cast(1, element))
    if len(views) > 1:
        total = tape.add("add", element, total, tape.cast(2, element))
    out = ctx.new(node.output, _row_order(x, axis))
    emit_pointwise(ctx, tape.tape(tape.cast(total, out.element)), [between, *views], [out])


def _statistics(node: Node) -> dict[str, Value]:
    """The statistics that somebody reads, by the kernel's names."""
    names = ("deviation",) if node.op in RMS else ("mean", "deviation")
    return {name: v for name, v in zip(names, node.outputs[1:], strict=False) if v.use_count}


# A residual addition before the norm


def skip_refusal(node: Node) -> str | None:
    """Why a norm behind a residual addition cannot be lowered, or None."""
    reason = refusal(node)
    if reason is None and node.op in RMS and len(node.outputs) > 1 and node.outputs[1].use_count:
        return "its output 1, which stands for nothing, is read"
    return reason


def lower_skip_norm(ctx: Lowering, node: Node, group: Group | None) -> None:
    source, skip = node.inputs[0], node.inputs[1]
    assert source is not None
    assert skip is not None
    shape = shape_of(node.output)
    axis = len(shape) - 1
    result, epilogue, ops = behind(ctx, node, group)
    names = {"scale": 2, "skip_bias": 3} if node.op in RMS else {"scale": 2, "bias": 3, "skip_bias": 4}
    vectors: dict[str, View] = {}
    for name, index in names.items():
        value = node.input(index)
        if value is not None:
            vector = row_vector(ctx, ctx.view(value), shape, axis)
            if vector is None:
                raise ctx.refuse(f"{value.name} is no vector")
            vectors[name] = vector
    x = as_rows(ctx, ctx.view(source), axis)
    rows = {"x": x, "skip": as_rows(ctx, ctx.view(skip).broadcast(shape), axis)}
    outputs = {"mean": 1, "deviation": 2}
    statistics = {
        name: node.outputs[i] for name, i in outputs.items()
        if len(node.outputs) > i and node.outputs[i].use_count and not (name == "mean" and node.op in RMS)
    }  # fmt: skip
    order = _row_order(x, axis)
    with ExitStack() as stack:
        def place(value: Value) -> View:
            return stack.enter_context(written(ctx, value, order, lambda view: is_row(view, axis)))

        rows["out"] = place(result)
        if len(node.outputs) > 3 and node.outputs[3].use_count:
            rows["total"] = place(node.outputs[3])
        _emit(ctx, node, rows, vectors, axis, 1e-12, epilogue, ops, statistics)


# The kernel's step


def _emit(
    ctx: Lowering,
    node: Node,
    rows: dict[str, View],
    vectors: dict[str, View],
    axis: int,
    epsilon: float = 1e-5,
    epilogue: object = None,
    ops: str = "",
    statistics: dict[str, Value] | None = None,
) -> None:
    raise NotImplementedError


NORM = Rule(lower_norm, refusal)
SKIP_NORM = Rule(lower_skip_norm, skip_refusal)
