"""Quantization of whole tensors: scales along an axis or in blocks, and scales found at run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from whet.compiler.fuse import Group
from whet.compiler.lower.demand import broadcast, demand_same, need
from whet.compiler.lower.pointwise import MAX_RANK, emit_pointwise, preferred_order, tensor_refusal
from whet.compiler.lower.quantize_scalars import (
    FLOATS,
    dequantize_refusal,
    dequantize_steps,
    quantize_refusal,
    quantize_steps,
    type_of,
)
from whet.compiler.lower.reduce import Reduction, reduce_view
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of
from whet.compiler.step import address
from whet.compiler.tape import TapeBuilder, computed
from whet.compiler.views import View
from whet.dtypes import BOOL, FLOAT32, INT4, UINT4, UINT8
from whet.graph import Node, Value
from whet.graph.dims import Known
from whet.kernels.check_numbers import CheckNumbers
from whet.kernels.reduce import ReduceKind
from whet.ops.base import Kernel
from whet.ops.contrib.quantized import dequantize_linear as contrib_dequantize
from whet.ops.kernels.quantize import dequantize_linear

PACKED = frozenset({INT4, UINT4})
"""Types of constants that are made floats when the program is made."""
_EVALUATE: dict[str, Kernel] = {"": dequantize_linear, "com.microsoft": contrib_dequantize}


def refusal(node: Node) -> str | None:
    """Why QuantizeLinear with any form of scale cannot be lowered, or None."""
    return tensor_refusal(node) or quantize_refusal(node) or _form_refusal(node)


def dequantize_form_refusal(node: Node) -> str | None:
    """Why DequantizeLinear with any form of scale cannot be lowered, or None."""
    packed = type_of(need(node, 0)) in PACKED and type_of(node.output) in FLOATS and type_of(need(node, 1)) in FLOATS
    if packed and _is_constant(node):
        return None
    return tensor_refusal(node) or dequantize_refusal(node) or _form_refusal(node)


def _is_constant(node: Node) -> bool:
    return all(v is None or v.data is not None for v in node.inputs)


def _form_refusal(node: Node) -> str | None:
    """Why the shapes of scale and zero point are none that can be lowered, or None."""
    x, scale, zero = need(node, 0), need(node, 1), node.input(2)
    rank = len(x.shape or ())
    own = len(scale.shape or ())
    block = node.int_attr("block_size", 0)
    if not -rank <= node.int_attr("axis", 1) < max(rank, 1) and not _is_one(scale):
        return "its axis is out of range"
    if zero is not None and len(zero.shape or ()) != own:
        return "scale and zero point have different ranks"
    if block:
        extent = (x.shape or ())[node.int_attr("axis", 1)] if own else 1
        if own not in (0, rank) or rank >= MAX_RANK:
            return "its scale has not the rank that blocks need"
        if not isinstance(extent, int) or block < 0:
            return "the extent of the axis of its blocks is not known"
    elif own > 1 and not _is_one(scale):
        return "its scale is no vector"
    return None


def _is_one(value: Value) -> bool:
    return value.shape is not None and all(extent == 1 for extent in value.shape)


def lower_quantize(ctx: Lowering, node: Node, group: Group | None) -> None:
    """QuantizeLinear, DequantizeLinear: element by element, with scale and zero point spread over the operand."""
    steps = dequantize_steps if node.op_type == "DequantizeLinear" else quantize_steps
    if steps is dequantize_steps and _is_constant(node):
        _evaluate(ctx, node)
        return
    x = ctx.view(need(node, 0))
    parameters = [ctx.view(v) for v in node.inputs[1:3] if v is not None]
    if steps is quantize_steps and node.domain == "" and need(node, 1).data is None:
        check_numbers(ctx, parameters[0], positive=True)
    out = ctx.new(node.output, preferred_order([x], x.shape))
    tape = TapeBuilder([x.element, *(v.element for v in parameters)])
    operands = [tape.cast(i, computed(v.element)) for i, v in enumerate((x, *parameters))]
    result = steps(tape, node, operands[0], operands[1], operands[2] if len(operands) > 2 else None)
    done = tape.tape(tape.cast(result, out.element))
    axis, block = node.int_attr("axis", 1), node.int_attr("block_size", 0)
    if block and parameters[0].rank == x.rank and x.rank:
        _emit_blocks(ctx, x, parameters, out, axis % x.rank, block, lambda s, o: emit_pointwise(ctx, done, s, [o]))
        return
    spread_out = [broadcast(ctx, spread(v, x.shape, axis), x.shape) for v in parameters]
    emit_pointwise(ctx, done, [x, *spread_out], [out])


def spread(view: View, shape: Sequence[Known], axis: int) -> View:
    """A parameter so that it broadcasts over `shape`: one number, or one for each index of `axis`."""
    if all(extent == 1 for extent in view.shape):
        while view.rank:
            view = view.drop(0)
        return view
    axis %= len(shape)
    for _ in range(len(shape) - 1 - axis):
        view = view.expand_dims(view.rank)
    return view


def _emit_blocks(
    ctx: Lowering, x: View, parameters: Sequence[View], out: View, axis: int, block: int,
    emit: Callable[[Sequence[View], View], None],
) -> None:  # fmt: skip
    """Emit in two parts: whole blocks, with an axis for the elements of a block, and what is left of the last one."""
    extent = x.shape[axis]
    assert isinstance(extent, int)
    for view in parameters:
        wanted = (*x.shape[:axis], -(-extent // block), *x.shape[axis + 1 :])
        demand_same(ctx, view.shape, wanted, "a scale or zero point does not fit the blocks")
    whole = extent // block
    if whole:
        parts = [_split(view.slice(axis, 0, whole * block), axis, block) for view in (x, out)]
        numbers = [v.slice(axis, 0, whole).expand_dims(axis + 1).broadcast(parts[0].shape) for v in parameters]
        emit([parts[0], *numbers], parts[1])
    if extent % block:
        rest = [view.slice(axis, whole * block, extent % block) for view in (x, out)]
        numbers = [v.slice(axis, whole, 1).broadcast(rest[0].shape) for v in parameters]
        emit([rest[0], *numbers], rest[1])


def _split(view: View, axis: int, block: int) -> View:
    """`view` with its axis as two: blocks, and the elements of a block."""
    extent, stride = view.shape[axis], view.strides[axis]
    assert isinstance(extent, int)
    shape = (*view.shape[:axis], extent // block, block, *view.shape[axis + 1 :])
    strides = (*view.strides[:axis], stride * block, stride, *view.strides[axis + 1 :])
    return View(view.buffer, shape, strides, view.offset, view.dtype)


def _evaluate(ctx: Lowering, node: Node) -> None:
    """A constant in floats, made when the program is: whoever reads it may pack it then."""
    inputs = [None if v is None or v.data is None else v.data.numpy() for v in node.inputs]
    attributes: dict[str, Any] = {
        name: node.int_attr(name, 0) for name in ("axis", "block_size", "output_dtype") if name in node.attributes
    }
    array = np.asarray(_EVALUATE[node.domain](inputs, attributes, 1)[0])
    value = Value.constant(f"{node.output.name} (dequantized)", array)
    ctx.define(node.output, ctx.view(value))
    for reader in list(node.output.uses):
        reader.replace_input(node.output, value)


def check_numbers(ctx: Lowering, view: View, *, positive: bool) -> None:
    """Emit a step that ends the run where a number of `view` is not finite (and above zero)."""
    flat = view.reshape((view.size,))
    if flat is None:
        return
    words = {"x": address(flat), "count": flat.size, "x_stride": flat.strides[0]}
    ctx.emit(CheckNumbers(view.element, positive), words, 1, [view], (), nbytes=0, parallel=False, tactic="check")


# Scales found at run


def dynamic_refusal(node: Node) -> str | None:
    """Why DynamicQuantizeLinear cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is None and dtype_of(need(node, 0)) is not FLOAT32:
        return f"no dynamic quantization of {dtype_of(need(node, 0))}"
    return reason


def lower_dynamic(ctx: Lowering, node: Node, group: Group | None) -> None:
    x = ctx.view(need(node, 0))
    out = ctx.new(node.output, preferred_order([x], x.shape))
    places = {i: ctx.new(node.outputs[i]) for i in (1, 2) if len(node.outputs) > i}
    emit_dynamic(ctx, x, out, places, check=True)


def emit_dynamic(
    ctx: Lowering, x: View, out: View, places: Mapping[int, View] | None = None, *, check: bool
) -> tuple[View, View]:
    """Quantize `x` to uint8 `out` by the range of all its elements, 0 included; the scale and the zero point.

    They are written to the `places` 1 and 2 where those are given. `check`: end the run for what is not finite.
    """
    places = places or {}
    axes = range(x.rank)
    extremes = []
    kinds: tuple[ReduceKind, ReduceKind] = ("min", "max")
    for kind in kinds:
        tape = TapeBuilder([FLOAT32])
        stretched = tape.tape(tape.add(kind, FLOAT32, 0, tape.constant(0.0, FLOAT32)))
        if x.rank:
            found = reduce_view(ctx, x, axes, Reduction(kind, None, stretched), FLOAT32)
        else:
            found = ctx.temporary(FLOAT32, ())
            emit_pointwise(ctx, stretched, [x], [found])
        while found.rank:
            found = found.drop(0)
        extremes.append(found)
        if check:
            check_numbers(ctx, found, positive=False)
    scale = places.get(1) or ctx.temporary(FLOAT32, (), label="a scale")
    zero = places.get(2) or ctx.temporary(UINT8, (), label="a zero point")
    tape = TapeBuilder([FLOAT32, FLOAT32])
    low, high = 0, 1
    factor = tape.add("div", FLOAT32, tape.add("sub", FLOAT32, high, low), tape.constant(255.0, FLOAT32))
    is_zero = tape.add("equal", BOOL, factor, tape.constant(0.0, FLOAT32))
    factor = tape.add("where", FLOAT32, is_zero, tape.constant(1.0, FLOAT32), factor)
    steps = tape.add("div", FLOAT32, tape.add("neg", FLOAT32, low), factor)
    offset = tape.add("round_saturate", UINT8, steps, tape.constant(0, UINT8))
    emit_pointwise(ctx, tape.tape(factor), extremes, [scale], ops="DynamicQuantizeLinear")
    emit_pointwise(ctx, tape.tape(offset), extremes, [zero], ops="DynamicQuantizeLinear")
    tape = TapeBuilder([FLOAT32, FLOAT32, UINT8])
    made = tape.add("quantize", UINT8, 0, 1, 2)
    emit_pointwise(ctx, tape.tape(made), [x, scale.broadcast(x.shape), zero.broadcast(x.shape)], [out])
    return scale, zero


QUANTIZE = Rule(lower_quantize, refusal)
DEQUANTIZE = Rule(lower_quantize, dequantize_form_refusal)
DYNAMIC_QUANTIZE = Rule(lower_dynamic, dynamic_refusal)
