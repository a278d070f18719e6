"""Pointwise groups: their tapes, the order in which memory is walked, and the kernel's step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import relayout
from whet.compiler.lower.demand import broadcast
from whet.compiler.lower.scalar_table import SCALAR_RULES
from whet.compiler.lower.short_rows import short_rows, short_rows_words
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.step import Word, address
from whet.compiler.tape import TapeBuilder, computed, scalar_constant
from whet.compiler.views import View, collapse, hint, memory_order
from whet.dtypes import (
    BFLOAT16,
    BOOL,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
)
from whet.graph import Node, TensorType, Value
from whet.graph.dims import Known, ceil_div
from whet.kernels.expression import Tape
from whet.kernels.pointwise import Pointwise
from whet.kernels.scalar_ops import CONSTANT, supports

IN_MEMORY = frozenset(
    {FLOAT32, FLOAT64, FLOAT16, BFLOAT16, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, BOOL}
)
"""Element types that kernels load and store."""
ONLY_FIRST = frozenset({"CastLike", "Dropout"})
"""Operators that read no element of their other operands, whose shapes may be any."""
MAX_RANK = 8
BLOCK = 4096
"""Innermost elements per tile."""
GATHER_ELEMENTS = 8192
"""Operands with fewer elements are read with strides rather than copied into order first."""


@dataclass(frozen=True, slots=True)
class GroupTape:
    """A group as a tape over the values that it reads from outside."""

    tape: Tape
    inputs: tuple[Value, ...]


def group_tape(group: Group, *, anchored: bool = False) -> GroupTape:
    """The group's tape; with `anchored` its first input is the anchor's output as it is computed, in registers.

    Inputs and outputs have the element types of memory; what is between is computed in the types of registers.
    """
    read = {v for node in group.nodes for v in (node.inputs[:1] if node.op in ONLY_FIRST else node.inputs)}
    outside = [v for v in group.inputs if v in read and scalar_constant(v) is None]
    first = [computed(dtype_of(group.anchor.output))] if anchored and group.anchor is not None else []
    builder = TapeBuilder([*first, *(dtype_of(v) for v in outside)])
    at: dict[Value, int] = {}
    for index, value in enumerate(outside):
        at[value] = builder.cast(index + len(first), computed(dtype_of(value)))
    if first:
        assert group.anchor is not None
        at[group.anchor.output] = 0
    for value in group.inputs:
        number = scalar_constant(value)
        if number is not None:
            at[value] = builder.constant(number, computed(dtype_of(value)))
    for node in group.nodes:
        arguments = [None if v is None else at.get(v) for v in node.inputs]
        at[node.output] = SCALAR_RULES[node.op].build(builder, node, arguments)
    root = builder.cast(at[group.root], dtype_of(group.root))
    return GroupTape(builder.tape(root), tuple(outside))


def single(node: Node) -> Group:
    """A group of one node."""
    return Group(node.output, [node])


def tensor_refusal(node: Node) -> str | None:
    """Why the node's operands or results are nothing that kernels can hold, or None."""
    for value in (*node.inputs, *node.outputs):
        if value is None:
            continue
        kind = value.type
        if not isinstance(kind, TensorType) or kind.sparse:
            return f"{value.name} is no dense tensor"
        if kind.dtype is None:
            return f"the element type of {value.name} is unknown"
        if kind.dtype not in IN_MEMORY:
            return f"{value.name} has element type {kind.dtype}"
        if kind.shape is None:
            return f"the rank of {value.name} is unknown"
        if len(kind.shape) > MAX_RANK:
            return f"{value.name} has more than {MAX_RANK} dimensions"
    return None


def pointwise_refusal(node: Node) -> str | None:
    """Why a pointwise operator cannot be computed in registers, or None."""
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    if any(v.use_count or v.graph_outputs for v in node.outputs[1:]):
        return "its second output is read"
    form = SCALAR_RULES[node.op].refusal
    reason = form(node) if form is not None else None
    if reason is not None:
        return reason
    tape = group_tape(single(node)).tape
    for step in tape.steps:
        if step.op != CONSTANT:
            reason = supports(step.op, tuple(tape.dtype(a) for a in step.args))
            if reason is not None:
                return reason
    return None


def lower_group(ctx: Lowering, group: Group) -> None:
    """Emit a pointwise kernel for a group without an anchor."""
    ctx.node = group.nodes[-1]
    made = group_tape(group)
    ops = "+".join(n.op_type for n in group.nodes)
    emit_tape(ctx, made.tape, [ctx.view(v) for v in made.inputs], group.root, ops=ops)


def emit_tape(ctx: Lowering, tape: Tape, sources: Sequence[View], result: Value, *, ops: str = "") -> View:
    """Emit `tape` over views that broadcast to the shape of `result`, which is given memory."""
    shape = shape_of(result)
    views = [broadcast(ctx, v, shape) for v in sources]
    out = ctx.new(result, preferred_order(views, shape))
    emit_pointwise(ctx, tape, views, [out], ops=ops)
    return out


def preferred_order(views: Sequence[View], shape: Sequence[Known]) -> tuple[int, ...] | None:
    """The order of dimensions of the largest operand that is not repeated, or None where C order is as good."""
    best: View | None = None
    for view in views:
        whole = all(s != 0 or e == 1 for s, e in zip(view.strides, shape, strict=True))
        if whole and (best is None or (best.is_dense() and not view.is_dense() and best.buffer.place != "input")):
            best = view
    return None if best is None else memory_order(best)


def emit_pointwise(ctx: Lowering, tape: Tape, views: Sequence[View], outputs: Sequence[View], *, ops: str = "") -> None:
    """Emit the step of `tape` over views of one shape (repeated dimensions have stride 0)."""
    out = outputs[0]
    order = [axis for axis in memory_order(out) if out.shape[axis] != 1]
    inner = order[-1] if order else None
    sources: list[View] = []
    for view in views:
        whole = all(s != 0 or e == 1 for s, e in zip(view.strides, view.shape, strict=True))
        if inner is not None and whole and view.strides[inner] != 1 and hint(view.size) > GATHER_ELEMENTS:
            view = relayout(ctx, view, memory_order(out))
        sources.append(view)
    operands = [*sources, *outputs]
    dims = collapse(out.shape, [v.strides for v in operands], order)
    extents = [extent for extent, _ in dims] or [1]
    strides = [[s[i] for _, s in dims] or [1 if i >= len(sources) else 0] for i in range(len(operands))]
    kinds = [tuple(s if isinstance(s, int) and s in (0, 1) else None for s in row) for row in strides]
    count = len(sources)
    short = short_rows(ctx, tape, extents, strides[:count], strides[count:])
    spec = short or Pointwise(tape, len(extents), tuple(kinds[:count]), tuple(kinds[count:]))
    words: dict[str, Word] = {"block": BLOCK}
    for index, (view, row) in enumerate(zip(operands, strides, strict=True)):
        name = f"in{index}" if index < count else f"out{index - count}"
        words[name] = address(view)
        for d, stride in enumerate(row):
            words[f"{name}_s{d}"] = stride
    for d, extent in enumerate(extents):
        words[f"n{d}"] = extent
    tiles: Known = ceil_div(extents[-1], BLOCK)
    for extent in extents[:-1]:
        tiles = tiles * extent
    if short is not None:
        words, tiles = short_rows_words(
            extents[0], short.length, [address(v) for v in sources], [address(v) for v in outputs]
        )  # fmt: skip
    steps = max(1, len(tape.steps))
    in_place = [
        (source, out) for source in sources
        if source.strides == out.strides and source.offset == 0 and out.offset == 0
        and source.size == source.buffer.elements and out.size == out.buffer.elements
    ]  # fmt: skip
    ctx.emit(spec, words, tiles, sources, outputs, flops=out.size * steps, in_place=in_place, ops=ops)
