"""Operands of integer products: their numbers without the zero point, as int32.

Products of 8-bit numbers are computed in int32: sums keep their low 32 bits, which is all of them while the depth is
at most MOST_DEPTH. Constants are brought to this form when the program is made.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whet.compiler.lower.copy import relayout
from whet.compiler.lower.demand import broadcast
from whet.compiler.lower.epilogue import Extra, operand_kind
from whet.compiler.lower.pointwise import emit_pointwise
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.tape import TapeBuilder
from whet.compiler.views import View, memory_order
from whet.dtypes import INT8, INT32, UINT8
from whet.graph import TensorType, Value
from whet.graph.dims import Dim, Known

BYTES = frozenset({INT8, UINT8})
MOST_DEPTH = ((1 << 31) - 1) // (255 * 255)
"""Products of numbers of at most 255 whose sum cannot pass 31 bits."""


def is_one(value: Value | None) -> bool:
    """Whether an operand is known to be one number (or is left out)."""
    return value is None or (value.shape is not None and all(extent == 1 for extent in value.shape))


def bytes_refusal(values: Sequence[Value | None]) -> str | None:
    """Why these operands are not all 8-bit integers, or None."""
    for value in values:
        if value is not None and dtype_of(value) not in BYTES:
            return f"{value.name} has element type {dtype_of(value)}"
    return None


def depth_refusal(depth: Dim) -> str | None:
    """Why sums over so many products may pass 32 bits where they must not, or None."""
    return f"sums of {depth} products may pass 32 bits" if isinstance(depth, int) and depth > MOST_DEPTH else None


def parameter_refusal(value: Value | None, of: Value, axis: int | None) -> str | None:
    """Why a scale or zero point is neither one number nor one for each index of `axis` of `of`; or None."""
    if is_one(value):
        return None
    assert value is not None
    shape, whole = value.shape or (), of.shape or ()
    if axis is None or len(shape) not in (1, len(whole)):
        return f"{value.name} is not known to be one number"
    axis %= len(whole)
    if len(shape) > 1 and any(d != 1 and d != w for d, w in zip(shape, whole, strict=True)):
        return f"{value.name} does not broadcast"
    if len(shape) == 1 and shape[0] not in (1, whole[axis]):
        return f"{value.name} is not known to fit its operand"
    return None


def along(view: View, rank: int, axis: int) -> View:
    """A parameter so that it broadcasts over a tensor: one number, one for each index of `axis`, or of full rank."""
    if all(extent == 1 for extent in view.shape):
        while view.rank:
            view = view.drop(0)
        return view
    if view.rank == 1:
        for _ in range(rank - 1 - axis % rank):
            view = view.expand_dims(view.rank)
    return view


def centred(ctx: Lowering, value: Value, zero: Value | None, axis: int) -> Value:
    """The integers minus their zero point (one, or one for each index of `axis`) as a value of int32."""
    shape = shape_of(value)
    if value.data is not None and (zero is None or zero.data is not None):
        array = value.data.numpy().astype(np.int32)
        if zero is not None and zero.data is not None:
            offset = zero.data.numpy().astype(np.int32)
            if offset.size == 1:
                offset = offset.reshape(())
            elif offset.ndim == 1:
                offset = offset.reshape(-1, *(1,) * (array.ndim - 1 - axis % array.ndim))
            array = array - offset
        return Value.constant(f"{value.name} (int32)", array)
    view = ctx.view(value)
    out = ctx.temporary(INT32, shape, memory_order(view), value.name)
    views = [view]
    tape = TapeBuilder([view.element] if zero is None else [view.element, dtype_of(zero)])
    number = tape.cast(0, INT32)
    if zero is not None:
        views.append(broadcast(ctx, along(ctx.view(zero), view.rank, axis), shape).broadcast(shape))
        number = tape.add("sub", INT32, number, tape.cast(1, INT32))
    emit_pointwise(ctx, tape.tape(number), views, [out], ops="centred")
    result = Value(f"{value.name} (int32)", TensorType(INT32, shape))
    ctx.define(result, out)
    return result


def beside(ctx: Lowering, view: View, shape: Sequence[Known], channel: int) -> Extra:
    """A parameter that broadcasts over a product of this shape, as an operand of its epilogue."""
    kind = operand_kind(view.shape, shape, channel)
    if kind == "column" and view.rank > 1:
        flat = view.reshape((view.size,))
        view = flat if flat is not None else relayout(ctx, view)
    if kind is None or (kind == "full" and view.rank != len(shape)):
        return relayout(ctx, broadcast(ctx, view, shape).broadcast(tuple(shape))), "full"
    return view, kind
