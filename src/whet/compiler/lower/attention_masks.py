"""Padding masks of com.microsoft's attention as numbers that are added to the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whet.compiler.lower.demand import broadcast, demand, demand_same
from whet.compiler.lower.pointwise import emit_pointwise
from whet.compiler.lowering import Lowering, dtype_of
from whet.compiler.step import address
from whet.compiler.tape import TapeBuilder
from whet.compiler.views import View
from whet.dtypes import BOOL, FLOAT32, INT32, INT64, DType
from whet.graph import Node, TensorData, Value
from whet.graph.dims import Dim, Known, ceil_div
from whet.kernels.generate import Range

_TILE = 4096
_LEAST = -10000.0
"""What is added where a mask hides a key, unless an attribute says otherwise."""


@dataclass(frozen=True, slots=True)
class MaskForm:
    """Extents that a claim compares with a mask's: batch, rows of queries, rows of new keys."""

    batch: Dim
    rows: Dim
    keys: Dim


def mask_refusal(node: Node, mask: Value | None, bias: Value | None, form: MaskForm) -> str | None:
    """Why a padding mask, an addend or the causal mask cannot be lowered; or None."""
    if node.int_attr("unidirectional", 0) and (form.rows is None or form.rows != form.keys):
        return "it is causal and its keys are not its queries"
    if bias is not None and (len(bias.shape or ()) != 4 or dtype_of(bias).kind != "float"):
        return "its addend has not 4 dimensions"
    if mask is None:
        return None
    shape = mask.shape or ()
    if dtype_of(mask) not in (INT32, INT64):
        return f"its mask has element type {dtype_of(mask)}"
    if len(shape) == 1:
        own, batch = shape[0], form.batch
        if own is None or batch is None or own not in (batch, batch * 2):
            return "its mask is not known to hold ends (or ends and starts) of the batch"
    elif len(shape) not in (2, 3):
        return f"its mask has {len(shape)} dimensions"
    return None


def emit_mask(
    ctx: Lowering, node: Node, mask: Value | None, bias: View | None, shape: tuple[Known, Known, Known, Known]
) -> View | None:
    """Numbers [batch or 1, heads or 1, rows or 1, keys] to add to the scores of that `shape`; None where nothing is."""
    if bias is not None:
        broadcast(ctx, bias, shape)
    if mask is None:
        return bias
    kept = _kept(ctx, ctx.view(mask), node.float_attr("mask_filter_value", _LEAST), shape)
    if bias is None:
        return kept
    whole = (shape[0], bias.shape[1], shape[2], shape[3])
    out = ctx.temporary(FLOAT32, whole, None, "mask and addend")
    tape = TapeBuilder([bias.element, FLOAT32])
    total = tape.tape(tape.add("add", FLOAT32, tape.cast(0, FLOAT32), 1))
    emit_pointwise(ctx, total, [bias.broadcast(whole), kept.broadcast(whole)], [out])
    return out


def _kept(ctx: Lowering, mask: View, least: float, shape: tuple[Known, Known, Known, Known]) -> View:
    """0 for keys that a mask shows, `least` for the others."""
    batch, _, rows, keys = shape
    if mask.rank > 1:
        wanted = (batch, keys) if mask.rank == 2 else (batch, rows, keys)
        demand_same(ctx, mask.shape, wanted, "the mask does not fit the scores")
        tape = TapeBuilder([mask.element])
        shown = tape.add("greater", BOOL, 0, tape.constant(0, mask.element))
        out = _numbers(ctx, tape, shown, [mask], wanted, least)
        return out.expand_dims(1).expand_dims(1) if mask.rank == 2 else out.expand_dims(1)
    positions = _positions(ctx, mask.element, keys)
    ends = mask.slice(0, 0, batch).expand_dims(1)
    tape = TapeBuilder([mask.element] * 3)
    shown = tape.add("less", BOOL, 0, 1)
    views = [positions, ends]
    if mask.shape[0] == batch * 2:
        from_start = tape.add("greater_or_equal", BOOL, 0, 2)
        shown = tape.add("and", BOOL, shown, from_start)
        views.append(mask.slice(0, batch, batch).expand_dims(1))
    else:
        demand(ctx, "equal", mask.shape[0], batch, "the mask does not fit the batch")
        views.append(ends)
    views = [v.broadcast((batch, keys)) for v in views]
    return _numbers(ctx, tape, shown, views, (batch, keys), least).expand_dims(1).expand_dims(1)


def _numbers(
    ctx: Lowering, tape: TapeBuilder, shown: int, views: Sequence[View], shape: Sequence[Known], least: float
) -> View:
    out = ctx.temporary(FLOAT32, shape, None, "mask")
    number = tape.add("where", FLOAT32, shown, tape.constant(0.0, FLOAT32), tape.constant(least, FLOAT32))
    emit_pointwise(ctx, tape.tape(number), views, [out])
    return out


def _positions(ctx: Lowering, element: DType, count: Known) -> View:
    """0, 1, 2 and so on."""
    start, delta = (ctx.constant(TensorData.from_array(np.array([n], element.numpy))) for n in (0, 1))
    out = ctx.temporary(element, (count,), None, "positions")
    words = {"start": address(start), "delta": address(delta), "out": address(out), "count": count, "tile": _TILE}
    ctx.emit(Range(element), words, ceil_div(count, _TILE), [start, delta], [out], tactic="positions")
    return out
