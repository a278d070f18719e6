"""Products and convolutions of 8-bit integers: exact sums in int32, scaled and quantized before they are stored."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compiler.fuse import Group
from whet.compiler.lower.conv import lower_window, vector, window_refusal
from whet.compiler.lower.demand import broadcast, demand, need
from whet.compiler.lower.epilogue import Begin, Extra, finish, takes_group
from whet.compiler.lower.integers import (
    along,
    beside,
    bytes_refusal,
    centred,
    depth_refusal,
    is_one,
    parameter_refusal,
)
from whet.compiler.lower.matmul import emit_product
from whet.compiler.lower.pointwise import preferred_order, tensor_refusal
from whet.compiler.lower.quantize import check_numbers, emit_dynamic
from whet.compiler.lower.quantize_scalars import bad_scale, quantized
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.tape import TapeBuilder, computed
from whet.compiler.views import View, product
from whet.dtypes import FLOAT32, FLOAT64, INT16, INT32, UINT8, UINT16
from whet.graph import Node, TensorType, Value


def _operands_refusal(node: Node, a: Value, b: Value, a_zero: Value | None, b_zero: Value | None) -> str | None:
    """Why two 8-bit matrices with their zero points cannot be multiplied, or None."""
    reason = tensor_refusal(node) or bytes_refusal((a, b, a_zero, b_zero))
    if reason is not None:
        return reason
    if any(len(v.shape or ()) < 2 for v in (a, b)):
        return "an operand is no matrix"
    return parameter_refusal(a_zero, a, -2) or parameter_refusal(b_zero, b, -1)


def _depth(a: Value, b: Value) -> str | None:
    depths = [d for d in ((a.shape or (None,))[-1], (b.shape or (None, None))[-2]) if isinstance(d, int)]
    return depth_refusal(depths[0] if depths else None)


def _emit(
    ctx: Lowering, node: Node, group: Group | None, a: View, b: Value, transposed: bool, extras: Sequence[Extra],
    begin: Begin | None,
) -> None:  # fmt: skip
    """Emit the int32 product of `a` and `b`; `begin` says what becomes of its sums."""
    done = finish(ctx, node, group, INT32, -1, extras, begin)
    emit_product(ctx, a, b, transposed, INT32, ctx.new(done.result), done)


# MatMulInteger


def matmul_refusal(node: Node) -> str | None:
    """Why MatMulInteger cannot be lowered, or None."""
    return _operands_refusal(node, need(node, 0), need(node, 1), node.input(2), node.input(3))


def takes_matmul_group(node: Node, group: Group) -> bool:
    """Whether the product can do the group's work before it stores its sums."""
    return matmul_refusal(node) is None and takes_group(node, group, -1)


def lower_matmul(ctx: Lowering, node: Node, group: Group | None) -> None:
    a = centred(ctx, need(node, 0), node.input(2), -2)
    b = centred(ctx, need(node, 1), node.input(3), -1)
    _emit(ctx, node, group, ctx.view(a), b, False, [], None)


def wide_refusal(node: Node) -> str | None:
    """Why MatMulInteger16 cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is None and any(dtype_of(need(node, i)) not in (INT16, UINT16) for i in (0, 1)):
        reason = "its operands are not 16-bit integers"
    if reason is None and any(len(need(node, i).shape or ()) < 2 for i in (0, 1)):
        reason = "an operand is no matrix"
    return reason


def lower_wide(ctx: Lowering, node: Node, group: Group | None) -> None:
    """MatMulInteger16: the low 32 bits of the sums, signed or not."""
    a, b = (centred(ctx, need(node, i), None, -1) for i in (0, 1))
    made = dtype_of(node.output)
    _emit(ctx, node, group, ctx.view(a), b, False, [], lambda tape, total, operands: tape.cast(total, made))


# QLinearMatMul


def qlinear_refusal(node: Node) -> str | None:
    """Why QLinearMatMul cannot be lowered, or None."""
    a, b = need(node, 0), need(node, 3)
    reason = _operands_refusal(node, a, b, node.input(2), node.input(5)) or _depth(a, b)
    if reason is None:
        reason = bytes_refusal((node.output, node.input(7))) or _floats_refusal(node, (1, 4, 6))
    if reason is None:
        reason = parameter_refusal(node.input(1), a, -2) or parameter_refusal(node.input(4), b, -1)
    if reason is None:
        reason = parameter_refusal(node.input(6), a, -2)
    if reason is None and not is_one(node.input(7)):
        reason = "its result has more than one zero point"
    return reason


def _floats_refusal(node: Node, scales: Sequence[int]) -> str | None:
    for index in scales:
        value = node.input(index)
        if value is not None and dtype_of(value).kind != "float":
            return f"{value.name} has element type {dtype_of(value)}"
        reason = bad_scale(value) if node.domain == "" else None
        if reason is not None:
            return reason
    return None


def lower_qlinear(ctx: Lowering, node: Node, group: Group | None) -> None:
    a = centred(ctx, need(node, 0), node.input(2), -2)
    b = centred(ctx, need(node, 3), node.input(5), -1)
    shape = shape_of(node.output)
    for index in (1, 4, 6):
        if need(node, index).data is None:
            check_numbers(ctx, ctx.view(need(node, index)), positive=True)
    extras = []
    for index, axis in ((1, -2), (4, -1), (6, -2), (7, -1)):
        extras.append(beside(ctx, along(ctx.view(need(node, index)), len(shape), axis), shape, -1))
    made = dtype_of(node.output)

    def begin(tape: TapeBuilder, total: int, operands: Sequence[int]) -> int:
        a_scale, b_scale, y_scale = (tape.cast(o, FLOAT64) for o in operands[:3])
        exact = tape.cast(total, FLOAT64)
        for factor in (a_scale, b_scale):
            exact = tape.add("mul", FLOAT64, exact, factor)
        return tape.add("round_saturate", made, tape.add("div", FLOAT64, exact, y_scale), operands[3])

    _emit(ctx, node, group, ctx.view(a), b, False, extras, begin)


# Products scaled to floats


def to_float_refusal(node: Node) -> str | None:
    """Why MatMulIntegerToFloat cannot be lowered, or None."""
    a, b = need(node, 0), need(node, 1)
    reason = _operands_refusal(node, a, b, node.input(4), node.input(5)) or _depth(a, b)
    return reason or _scaled_refusal(node, b, (2,), 3, 6)


def _scaled_refusal(node: Node, b: Value, ones: Sequence[int], columns: int, bias: int) -> str | None:
    if dtype_of(node.output) is not FLOAT32:
        return f"no scaled product of {dtype_of(node.output)}"
    for index in (*ones, columns, bias):
        value = node.input(index)
        if value is not None and dtype_of(value) is not FLOAT32:
            return f"{value.name} has element type {dtype_of(value)}"
    if any(not is_one(node.input(index)) for index in ones):
        return "its scale is not known to be one number"
    added = node.input(bias)
    if added is not None and len(added.shape or ()) != 1:
        return "its bias is no vector"
    return parameter_refusal(node.input(columns), b, -1)


def lower_to_float(ctx: Lowering, node: Node, group: Group | None) -> None:
    a = centred(ctx, need(node, 0), node.input(4), -2)
    b = centred(ctx, need(node, 1), node.input(5), -1)
    _emit_scaled(ctx, node, group, ctx.view(a), b, ctx.view(need(node, 2)), 3, 6)


def _emit_scaled(
    ctx: Lowering, node: Node, group: Group | None, a: View, b: Value, scale: View, columns: int, bias: int
) -> None:
    """The product times (one scale * one for each column), plus a bias."""
    shape = shape_of(node.output)
    extras = [beside(ctx, along(scale, len(shape), -1), shape, -1)]
    extras.append(beside(ctx, along(ctx.view(need(node, columns)), len(shape), -1), shape, -1))
    added = node.input(bias)
    if added is not None:
        demand(ctx, "equal", shape_of(added)[0], shape[-1], "the bias does not fit the product")
        extras.append((vector(ctx, ctx.view(added)), "column"))

    def begin(tape: TapeBuilder, total: int, operands: Sequence[int]) -> int:
        factor = tape.add("mul", FLOAT32, operands[0], operands[1])
        result = tape.add("mul", FLOAT32, tape.cast(total, FLOAT32), factor)
        return tape.add("add", FLOAT32, result, operands[2]) if len(operands) > 2 else result

    _emit(ctx, node, group, a, b, False, extras, begin)


def dynamic_refusal(node: Node) -> str | None:
    """Why DynamicQuantizeMatMul cannot be lowered, or None."""
    a, b, b_zero = need(node, 0), need(node, 1), node.input(3)
    reason = tensor_refusal(node) or bytes_refusal((b, b_zero)) or _depth(a, b)
    if reason is not None:
        return reason
    if any(len(v.shape or ()) < 2 for v in (a, b)):
        return "an operand is no matrix"
    if dtype_of(a) is not FLOAT32:
        return f"no dynamic quantization of {dtype_of(a)}"
    return parameter_refusal(b_zero, b, -1) or _scaled_refusal(node, b, (), 2, 4)


def lower_dynamic(ctx: Lowering, node: Node, group: Group | None) -> None:
    x = ctx.view(need(node, 0))
    rounded = ctx.temporary(UINT8, x.shape, preferred_order([x], x.shape), "quantized")
    scale, zero = emit_dynamic(ctx, x, rounded, check=False)
    values = []
    for view in (rounded, zero):
        value = Value("", TensorType(UINT8, view.shape))
        ctx.define(value, view)
        values.append(value)
    a = centred(ctx, values[0], values[1], -2)
    b = centred(ctx, need(node, 1), node.input(3), -1)
    _emit_scaled(ctx, node, group, ctx.view(a), b, scale, 2, 4)


# QGemm


def gemm_refusal(node: Node) -> str | None:
    """Why QGemm cannot be lowered, or None."""
    a, b, c = need(node, 0), need(node, 3), node.input(6)
    b_axis = 0 if node.int_attr("transB", 0) else 1
    reason = tensor_refusal(node) or bytes_refusal((a, b, node.input(2), node.input(5)))
    if reason is not None:
        return reason
    if any(len(v.shape or ()) != 2 for v in (a, b)):
        return "an operand is no matrix"
    if any(dtype_of(need(node, i)) is not FLOAT32 for i in (1, 4)):
        return "its scales are not float32"
    if any(not is_one(node.input(i)) for i in (1, 2, 7, 8)):
        return "a scale or zero point is not known to be one number"
    if any(v is not None and not is_one(v) and len(v.shape or ()) != 1 for v in (node.input(4), node.input(5))):
        return "its scales are no vector"
    if node.input(7) is not None:
        reason = bytes_refusal((node.output, node.input(8)))
        if reason is not None or node.input(8) is None or dtype_of(need(node, 7)) is not FLOAT32:
            return reason or "its result has no zero point"
    if c is not None and (dtype_of(c) is not INT32 or len(c.shape or ()) > 2):
        return f"{c.name} is nothing to add"
    depth = (a.shape or (None, None))[0 if node.int_attr("transA", 0) else 1]
    return (
        depth_refusal(depth) or parameter_refusal(node.input(4), b, b_axis)
        or parameter_refusal(node.input(5), b, b_axis)
    )  # fmt: skip


def lower_gemm(ctx: Lowering, node: Node, group: Group | None) -> None:
    trans_a, trans_b = node.int_attr("transA", 0) != 0, node.int_attr("transB", 0) != 0
    a = ctx.view(centred(ctx, need(node, 0), node.input(2), -1))
    b = centred(ctx, need(node, 3), node.input(5), 0 if trans_b else 1)
    shape, c = shape_of(node.output), node.input(6)
    extras = [
        beside(ctx, along(ctx.view(need(node, i)), 2, 1), shape, -1) for i in (1, 4, 7, 8) if node.input(i) is not None
    ]
    count = len(extras)
    if c is not None:
        extras.append(beside(ctx, broadcast(ctx, ctx.view(c), shape) if not is_one(c) else ctx.view(c), shape, -1))
    alpha = node.float_attr("alpha", 1.0)

    def begin(tape: TapeBuilder, total: int, operands: Sequence[int]) -> int:
        if c is not None:
            total = tape.add("add", INT32, total, operands[count])
        factor = tape.add("mul", FLOAT32, operands[0], operands[1])
        factor = tape.add("mul", FLOAT32, factor, tape.constant(alpha, FLOAT32))
        result = tape.add("mul", FLOAT32, tape.cast(total, FLOAT32), factor)
        if count == 2:
            return result
        return quantized(tape, tape.add("div", FLOAT32, result, operands[2]), operands[3])

    _emit(ctx, node, group, a.transpose((1, 0)) if trans_a else a, b, trans_b, extras, begin)


# Convolutions


def conv_refusal(node: Node) -> str | None:
    """Why ConvInteger cannot be lowered, or None."""
    x, w = need(node, 0), need(node, 1)
    reason = tensor_refusal(node) or bytes_refusal((x, w, node.input(2), node.input(3)))
    if reason is not None:
        return reason
    if not is_one(node.input(2)):
        return "its operand has more than one zero point"
    return parameter_refusal(node.input(3), w, 0) or window_refusal(node, x.shape or (), w.shape or ())


def takes_conv_group(node: Node, group: Group) -> bool:
    """Whether the convolution can do the group's work before it stores its sums."""
    return conv_refusal(node) is None and takes_group(node, group, 1 - len(node.output.shape or ()))


def lower_conv(ctx: Lowering, node: Node, group: Group | None) -> None:
    x = centred(ctx, need(node, 0), node.input(2), 0)
    w = centred(ctx, need(node, 1), node.input(3), 0)
    lower_window(ctx, node, group, ctx.view(x), w, [], element=INT32)


def qconv_refusal(node: Node) -> str | None:
    """Why QLinearConv cannot be lowered, or None."""
    x, w = need(node, 0), need(node, 3)
    reason = tensor_refusal(node) or bytes_refusal((x, w, node.input(2), node.input(5), node.output, node.input(7)))
    if reason is not None:
        return reason
    if any(not is_one(node.input(i)) for i in (1, 2, 6, 7)):
        return "a scale or zero point is not known to be one number"
    for index in (4, 5):
        own = node.input(index)
        if own is not None and not is_one(own) and len(own.shape or ()) != 1:
            return f"{own.name} is no vector"
    bias = node.input(8)
    if bias is not None and (dtype_of(bias) is not INT32 or len(bias.shape or ()) != 1):
        return "its bias is no vector of int32"
    if node.domain != "" and any(dtype_of(need(node, i)) is not FLOAT32 for i in (1, 4, 6)):
        return "its scales are not float32"
    shape, weights = x.shape or (), w.shape or ()
    if node.int_attr("channels_last", 0):
        shape = (*shape[:1], shape[-1], *shape[1:-1]) if shape else ()
    reason = window_refusal(node, shape, weights) or _floats_refusal(node, (1, 6))
    if reason is not None:
        return reason
    depth = product(d for d in weights[1:] if d is not None)
    return depth_refusal(depth) or parameter_refusal(need(node, 4), w, 0) or parameter_refusal(node.input(5), w, 0)


def lower_qconv(ctx: Lowering, node: Node, group: Group | None) -> None:
    nhwc = node.int_attr("channels_last", 0) != 0
    x = ctx.view(centred(ctx, need(node, 0), node.input(2), 0))
    w = centred(ctx, need(node, 3), node.input(5), 0)
    if nhwc:
        x = x.transpose((0, x.rank - 1, *range(1, x.rank - 1)))
    bias, made, channels = node.input(8), dtype_of(node.output), shape_of(w)[0]
    if node.domain == "":
        for index in (1, 6):
            if need(node, index).data is None:
                check_numbers(ctx, ctx.view(need(node, index)), positive=True)
    extras: list[Extra] = []
    for index in (1, 4, 6, 7, 8):
        value = node.input(index)
        if value is None:
            continue
        view = along(ctx.view(value), 1, 0)
        if view.rank:
            demand(ctx, "equal", view.shape[0], channels, f"{value.name} does not fit the filters")
            extras.append((vector(ctx, view), "column"))
        else:
            extras.append((view, "scalar"))

    def begin(tape: TapeBuilder, total: int, operands: Sequence[int]) -> int:
        if bias is not None:
            total = tape.add("add", INT32, total, operands[4])
        wide = FLOAT64 if node.domain == "" else FLOAT32
        x_scale, w_scale, y_scale = (tape.cast(tape.cast(o, computed(tape.dtype(o))), wide) for o in operands[:3])
        factor = tape.add("div", wide, tape.add("mul", wide, x_scale, w_scale), y_scale)
        steps = tape.add("mul", wide, tape.cast(total, wide), factor)
        if node.domain == "":
            return tape.add("round_saturate", made, steps, operands[3])
        return quantized(tape, steps, operands[3])

    lower_window(ctx, node, group, x, w, extras, element=INT32, begin=begin, nhwc=nhwc)


MATMUL_INTEGER = Rule(lower_matmul, matmul_refusal)
MATMUL_INTEGER16 = Rule(lower_wide, wide_refusal)
QLINEAR_MATMUL = Rule(lower_qlinear, qlinear_refusal)
TO_FLOAT = Rule(lower_to_float, to_float_refusal)
DYNAMIC_MATMUL = Rule(lower_dynamic, dynamic_refusal)
QGEMM = Rule(lower_gemm, gemm_refusal)
CONV_INTEGER = Rule(lower_conv, conv_refusal)
QLINEAR_CONV = Rule(lower_qconv, qconv_refusal)
