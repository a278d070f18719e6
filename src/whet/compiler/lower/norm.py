"""Normalization of rows: LayerNormalization, RMSNormalization, and their relatives behind a residual addition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from whet.compiler.fuse import Group
from whet.compiler.lower.along import behind, grid, loop_order, loop_words, loops, takes_scalars, tile_for, written
from whet.compiler.lower.copy import copy, relayout
from whet.compiler.lower.demand import broadcast
from whet.compiler.lower.matmul import same_whole
from whet.compiler.lower.pointwise import emit_pointwise, tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.step import Word, address
from whet.compiler.tape import TapeBuilder, computed
from whet.compiler.views import View, product
from whet.dtypes import DType
from whet.graph import Node, Value
from whet.graph.dims import Known
from whet.kernels.expression import Tape
from whet.kernels.norm import LayerNorm

RMS = frozenset(
    {"RMSNormalization", "SimplifiedLayerNormalization", "com.microsoft.SimplifiedLayerNormalization",
     "com.microsoft.SkipSimplifiedLayerNormalization"}
)  # fmt: skip
"""Operators that take no mean off."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What a step normalizes: operands and results whose axes from `axis` on are rows, vectors for every row."""

    axis: int
    epsilon: float
    rows: Mapping[str, View]
    vectors: Mapping[str, View]
    statistics: Mapping[str, Value]
    epilogue: Tape | None = None
    ops: str = ""
    affine: View | None = None
    """Where scale and bias have one number for each row: a view of x's shape whose strides say which."""


def floats_refusal(node: Node) -> str | None:
    """Why an operator on floats has operands that kernels cannot hold, or None."""
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    for value in (*node.inputs, node.output):
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
    rank = len(node.output.shape or ())
    axis = node.int_attr("axis", -1) % rank
    return all(v is None or len(v.shape or ()) <= rank - axis for v in node.inputs[1:])


def lower_norm(ctx: Lowering, node: Node, group: Group | None) -> None:
    source = node.inputs[0]
    assert source is not None
    x = ctx.view(source)
    axis = node.int_attr("axis", -1) % x.rank
    operands = {"scale": node.input(1), "bias": None if node.op in RMS else node.input(2)}
    given = {name: ctx.view(value) for name, value in operands.items() if value is not None}
    names = ("deviation",) if node.op in RMS else ("mean", "deviation")
    statistics = {name: v for name, v in zip(names, node.outputs[1:], strict=False) if v.use_count}
    epsilon = node.float_attr("epsilon", 1e-5)
    x = as_rows(ctx, x, axis)
    if any(_is_varied(view, x.shape, axis) for view in given.values()):
        assert group is None
        between = ctx.temporary(computed(x.element), x.shape, row_order(x, axis), node.output.name)
        emit_norm(ctx, node, Rows(axis, epsilon, {"x": x, "out": between}, {}, statistics))
        _emit_affine(ctx, between, list(given.values()), node.output, row_order(x, axis))
        return
    vectors = {name: row_vector(ctx, view, x.shape, axis) for name, view in given.items()}
    result, epilogue, ops = behind(ctx, node, group)
    with written(ctx, result, row_order(x, axis), lambda view: is_row(view, axis)) as out:
        emit_norm(ctx, node, Rows(axis, epsilon, {"x": x, "out": out}, vectors, statistics, epilogue, ops))


def _emit_affine(ctx: Lowering, x: View, operands: Sequence[View], result: Value, order: Sequence[int]) -> None:
    """Scale and bias that differ from row to row, as a step of their own."""
    views = [broadcast(ctx, view, x.shape) for view in operands]
    tape = TapeBuilder([x.element, *(v.element for v in views)])
    total = tape.add("mul", x.element, 0, tape.cast(1, x.element))
    if len(views) > 1:
        total = tape.add("add", x.element, total, tape.cast(2, x.element))
    out = ctx.new(result, order)
    emit_pointwise(ctx, tape.tape(tape.cast(total, out.element)), [x, *views], [out])


# A residual addition before the norm


def skip_refusal(node: Node) -> str | None:
    """Why a norm behind a residual addition cannot be lowered, or None."""
    reason = refusal(node)
    if reason is not None:
        return reason
    if node.op in RMS and len(node.outputs) > 1 and node.outputs[1].use_count:
        return "its output 1, which stands for nothing, is read"
    for value in node.inputs[2:]:
        if value is not None and len(value.shape or ()) != 1:
            return f"{value.name} is no vector"
    return None


def takes_skip_group(node: Node, group: Group) -> bool:
    """Whether the norm can do the group's work on its results."""
    return skip_refusal(node) is None and takes_scalars(node, group)


def lower_skip_norm(ctx: Lowering, node: Node, group: Group | None) -> None:
    source, skip = node.inputs[0], node.inputs[1]
    assert source is not None
    assert skip is not None
    shape = shape_of(node.output)
    axis = len(shape) - 1
    result, epilogue, ops = behind(ctx, node, group)
    names = ("scale", "skip_bias") if node.op in RMS else ("scale", "bias", "skip_bias")
    given = {name: node.input(2 + i) for i, name in enumerate(names)}
    vectors = {n: row_vector(ctx, ctx.view(v), shape, axis) for n, v in given.items() if v is not None}
    rows = {
        "x": as_rows(ctx, ctx.view(source), axis),
        "skip": as_rows(ctx, broadcast(ctx, ctx.view(skip), shape), axis),
    }
    outputs = {name: node.outputs[i] for i, name in ((1, "mean"), (2, "deviation")) if len(node.outputs) > i}
    statistics = {name: v for name, v in outputs.items() if v.use_count}
    order = row_order(rows["x"], axis)
    with ExitStack() as stack:

        def place(value: Value) -> View:
            return stack.enter_context(written(ctx, value, order, lambda view: is_row(view, axis)))

        rows["out"] = place(result)
        if len(node.outputs) > 3 and node.outputs[3].use_count:
            rows["total"] = place(node.outputs[3])
        epsilon = node.float_attr("epsilon", 1e-12)
        emit_norm(ctx, node, Rows(axis, epsilon, rows, vectors, statistics, epilogue, ops))


# The kernel's step


def emit_norm(ctx: Lowering, node: Node, what: Rows) -> None:
    """Emit the norm of `x` (+ `skip` + `skip_bias`) to `out` (and `total`), times `scale`, plus `bias`.

    Statistics that are wanted are given memory, in the type that their values have.
    """
    rows, vectors, axis = what.rows, what.vectors, what.axis
    x, out = rows["x"], rows["out"]
    kind: Literal["layer", "rms"] = "rms" if node.op in RMS else "layer"
    length = product(x.shape[axis:])
    views = list(rows.values())
    names = list(rows)
    statistics: dict[str, View] = {}
    copies: list[tuple[View, View]] = []
    if what.statistics:
        statistics, copies = _statistics(ctx, what.statistics, kind == "rms", computed(x.element))
        names.append("statistics")
        views.append(next(iter(statistics.values())))
    if what.affine is not None:
        names.append("affine")
        views.append(what.affine)
    dims = loops(x.shape, [v.strides for v in views], [a for a in loop_order(x) if a < axis])
    spec = LayerNorm(
        kind=kind,
        dtype=x.element,
        out=out.element,
        epsilon=what.epsilon,
        scale=vectors["scale"].element if "scale" in vectors else None,
        bias=vectors["bias"].element if "bias" in vectors else None,
        skip=rows["skip"].element if "skip" in rows else None,
        skip_bias=vectors["skip_bias"].element if "skip_bias" in vectors else None,
        total=rows["total"].element if "total" in rows else None,
        statistics=bool(statistics),
        kept_rank=len(dims),
        length=length if isinstance(length, int) else None,
        epilogue=what.epilogue,
        by_row=what.affine is not None,
    )
    tile = tile_for(length)
    words: dict[str, Word] = {
        **{name: address(view) for name, view in (*rows.items(), *vectors.items(), *statistics.items())},
        "length": length, "tile": tile, **loop_words("kept", names, dims),
    }  # fmt: skip
    writes = [out, *statistics.values(), *([rows["total"]] if "total" in rows else [])]
    reads = [view for name, view in rows.items() if name in ("x", "skip")]
    in_place = [(view, out) for view in reads if same_whole(view, out)]
    ctx.emit(
        spec, words, grid(dims, tile), [*reads, *vectors.values()], writes,
        flops=x.size * 6, in_place=in_place, ops=what.ops,
    )  # fmt: skip
    for made, place in copies:
        tape = TapeBuilder([made.element])
        copy(ctx, made, place, tape.tape(tape.cast(0, place.element)))


def _statistics(
    ctx: Lowering, wanted: Mapping[str, Value], rms: bool, element: DType
) -> tuple[dict[str, View], list[tuple[View, View]]]:
    """Memory for the statistics, all with the same strides; what must be copied from there to its value."""
    names = ("deviation",) if rms else ("mean", "deviation")
    places = {name: ctx.new(value) for name, value in wanted.items()}
    direct = len(places) == len(names) and all(
        v.element is element and v.strides == places[names[0]].strides for v in places.values()
    )
    if direct:
        return {name: places[name] for name in names}, []
    shape = shape_of(next(iter(wanted.values())))
    made = {name: ctx.temporary(element, shape, label=name) for name in names}
    return made, [(made[name], place) for name, place in places.items()]


# Rows


def is_row(view: View, axis: int) -> bool:
    """Whether the axes from `axis` on lie in C order without gaps."""
    step: Known = 1
    for a in reversed(range(axis, view.rank)):
        if view.shape[a] != 1 and view.strides[a] != step:
            return False
        step = step * view.shape[a]
    return True


def row_order(view: View, axis: int) -> list[int]:
    """Axes from slow to fast: those before `axis` as they lie in memory, the others in C order."""
    return [*loop_order(view, range(axis)), *range(axis, view.rank)]


def as_rows(ctx: Lowering, view: View, axis: int) -> View:
    """`view` where its axes from `axis` on are rows, else a copy whose are."""
    return view if is_row(view, axis) else relayout(ctx, view, row_order(view, axis))


def _is_varied(view: View, shape: Sequence[Known], axis: int) -> bool:
    """Whether an operand differs (or may differ) along the axes before `axis` of `shape`."""
    before = view.rank - (len(shape) - axis)
    return any(extent != 1 for extent in view.shape[: max(before, 0)])


def row_vector(ctx: Lowering, view: View, shape: Sequence[Known], axis: int) -> View:
    """An operand that is the same for every row, as a row in memory."""
    while view.rank > len(shape) - axis:
        view = view.drop(0)
    row = broadcast(ctx, view, shape[axis:])
    return row if is_row(row, 0) else relayout(ctx, row)


NORM = Rule(lower_norm, refusal)
SKIP_NORM = Rule(lower_skip_norm, skip_refusal)
