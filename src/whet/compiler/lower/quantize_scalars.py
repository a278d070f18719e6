"""How quantization with one scale becomes steps of a tape, so that it is computed with its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compiler.lower.scalar_rule import ScalarRule, result_type
from whet.compiler.tape import TapeBuilder, computed
from whet.dtypes import BFLOAT16, BOOL, FLOAT16, FLOAT32, FLOAT64, INT8, INT16, INT32, UINT8, UINT16, DType
from whet.graph import Node, TensorType, Value

STORED = frozenset({INT8, UINT8, INT16, UINT16})
"""Types that QuantizeLinear makes."""
FLOATS = frozenset({FLOAT32, FLOAT16, BFLOAT16})


def type_of(value: Value | None) -> DType | None:
    """The element type of a value, None where it is left out or unknown."""
    kind = value.type if value is not None else None
    return kind.dtype if isinstance(kind, TensorType) else None


# Tapes


def quantize_steps(tape: TapeBuilder, node: Node, value: int, scale: int, zero: int | None) -> int:
    """round(value / scale) + zero point, by the rules of the node's operator; operands in the types of registers."""
    made = type_of(node.output)
    given, factor = type_of(node.input(0)), type_of(node.input(1))
    assert made is not None
    if zero is None:
        zero = tape.constant(0, made)
    if not tape.dtype(value).is_float:
        value = tape.cast(value, FLOAT64)
    wide = FLOAT64 if FLOAT64 in (tape.dtype(value), tape.dtype(scale)) else FLOAT32
    steps = tape.add("div", wide, tape.cast(value, wide), tape.cast(scale, wide))
    if node.domain == "com.microsoft":
        return quantized(tape, steps, zero)
    if given is factor and given is not None and given is not computed(given):
        steps = tape.cast(tape.cast(steps, given), wide)  # the quotient is one of the 16-bit type
    return tape.add("round_saturate", made, steps, zero)


def quantized(tape: TapeBuilder, steps: int, zero: int) -> int:
    """round(steps) + zero point as com.microsoft has it: NaN gives the least number."""
    dtype = tape.dtype(zero)
    least = tape.constant(0 if dtype.kind == "uint" else -(1 << dtype.bits - 1), dtype)
    rounded = tape.add("round_saturate", dtype, steps, zero)
    return tape.add("where", dtype, tape.add("not_equal", BOOL, steps, steps), least, rounded)


def dequantize_steps(tape: TapeBuilder, node: Node, value: int, scale: int, zero: int | None) -> int:
    """(value - zero point) * scale, by the rules of the node's operator; the result is in its type of registers."""
    factor = type_of(node.input(1))
    assert factor is not None
    if zero is None:
        zero = tape.constant(0, tape.dtype(value))
    if node.domain == "com.microsoft":
        centred = tape.add("sub", INT32, tape.cast(value, INT32), tape.cast(zero, INT32))
        return tape.add("mul", tape.dtype(scale), _as(tape, centred, factor), scale)
    product = tape.add("dequantize", tape.dtype(scale), value, scale, zero)
    return tape.cast(product, result_type(node))


def _as(tape: TapeBuilder, value: int, dtype: DType) -> int:
    """A number rounded to `dtype`, in its type of registers."""
    return tape.cast(tape.cast(value, dtype), computed(dtype))


# Refusals


def quantize_refusal(node: Node) -> str | None:
    """Why a form of QuantizeLinear is none that the compiler computes, whatever its shapes; or None."""
    made, given, factor = type_of(node.output), type_of(node.input(0)), type_of(node.input(1))
    if made not in STORED:
        return f"no quantization to {made}"
    if node.int_attr("precision", 0):
        return "its quotient has a precision of its own"
    if given not in (*FLOATS, INT32):
        return f"no quantization of {given}"
    if factor not in FLOATS:
        return f"its scale has element type {factor}"
    zero = node.input(2)
    if zero is not None and type_of(zero) is not made:
        return "its zero point has another element type than its result"
    return bad_scale(node.input(1)) if node.domain == "" else None


def dequantize_refusal(node: Node) -> str | None:
    """Why a form of DequantizeLinear is none that the compiler computes, whatever its shapes; or None."""
    given, factor = type_of(node.input(0)), type_of(node.input(1))
    if given not in (*STORED, INT32):
        return f"no dequantization of {given}"
    if factor not in FLOATS:
        return f"its scale has element type {factor}"
    if type_of(node.output) not in FLOATS:
        return f"no dequantization to {type_of(node.output)}"
    zero = node.input(2)
    if zero is not None and type_of(zero) is not given:
        return "its zero point has another element type than its operand"
    return None


def bad_scale(scale: Value | None) -> str | None:
    """Why a constant scale is none: the reference provider says so in full when the model runs."""
    if scale is None or scale.data is None:
        return None
    numbers = scale.data.numpy().astype("float64")
    good = (numbers > 0) & (numbers < float("inf"))
    return None if good.all() else f"{scale.name} is not positive and finite throughout"


def _one_scale(node: Node) -> str | None:
    """Why this is no matter of one number for scale and zero point each, of no more dimensions than the operand."""
    x, scale = node.input(0), node.input(1)
    if node.op == "QuantizeLinear" and scale is not None and scale.data is None:
        return "its scale is looked at when the model runs"
    if node.op_type == "DequantizeLinear" and all(v is None or v.data is not None for v in node.inputs):
        return "it is a constant"
    rank = len(x.shape or ()) if x is not None else 0
    for value in (node.input(1), node.input(2)):
        if value is None:
            continue
        shape = value.shape
        if shape is None or any(extent != 1 for extent in shape) or len(shape) > rank:
            return "it has more than one scale"
    return None


def _build_quantize(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
    value, scale = args[0], args[1]
    assert value is not None
    assert scale is not None
    return quantize_steps(tape, node, value, scale, args[2] if len(args) > 2 else None)


def _build_dequantize(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
    value, scale = args[0], args[1]
    assert value is not None
    assert scale is not None
    return dequantize_steps(tape, node, value, scale, args[2] if len(args) > 2 else None)


_QUANTIZE = ScalarRule(_build_quantize, "quantize", lambda node: quantize_refusal(node) or _one_scale(node))
_DEQUANTIZE = ScalarRule(_build_dequantize, "dequantize", lambda node: dequantize_refusal(node) or _one_scale(node))

QUANTIZE_SCALARS: dict[str, ScalarRule] = {
    "QuantizeLinear": _QUANTIZE,
    "com.microsoft.QuantizeLinear": _QUANTIZE,
    "DequantizeLinear": _DEQUANTIZE,
    "com.microsoft.DequantizeLinear": _DEQUANTIZE,
}
"""Forms with one scale; the others have rules of their own."""
