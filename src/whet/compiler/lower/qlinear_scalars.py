"""How the pointwise operators on 8-bit tensors (QLinear*) become steps of a tape: through float32 and back."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compiler.lower.quantize_scalars import quantized, type_of
from whet.compiler.lower.scalar_rule import Build, ScalarRule
from whet.compiler.tape import TapeBuilder
from whet.dtypes import FLOAT32, INT8, INT32, UINT8
from whet.graph import Node

_BYTES = (INT8, UINT8)
Args = Sequence[int | None]


def _given(args: Args, index: int) -> int | None:
    return args[index] if index < len(args) else None


def _needed(args: Args, index: int) -> int:
    value = args[index]
    assert value is not None
    return value


def read(tape: TapeBuilder, args: Args, index: int) -> int:
    """The number that operands index (data), index + 1 (scale) and index + 2 (zero point, if given) stand for."""
    value, scale, zero = _needed(args, index), _needed(args, index + 1), _given(args, index + 2)
    if zero is None:
        zero = tape.constant(0, tape.dtype(value))
    return tape.add("dequantize", FLOAT32, value, scale, zero)


def write(tape: TapeBuilder, node: Node, args: Args, index: int, value: int) -> int:
    """A number by the scale at `index` and the zero point (if given) behind it."""
    scale, zero = _needed(args, index), _given(args, index + 1)
    made = type_of(node.output)
    assert made is not None
    if zero is None:
        zero = tape.constant(0, made)
    return quantized(tape, tape.add("div", FLOAT32, value, scale), zero)


def _binary(op: str) -> Build:
    def build(tape: TapeBuilder, node: Node, args: Args) -> int:
        result = tape.add(op, FLOAT32, read(tape, args, 0), read(tape, args, 3))
        return write(tape, node, args, 6, result)

    return build


def _sigmoid(tape: TapeBuilder, node: Node, args: Args) -> int:
    return write(tape, node, args, 3, tape.add("sigmoid", FLOAT32, read(tape, args, 0)))


def _leaky_relu(tape: TapeBuilder, node: Node, args: Args) -> int:
    numbers = [node.float_attr("alpha", 0.01)]
    return write(tape, node, args, 3, tape.add("leaky_relu", FLOAT32, read(tape, args, 0), numbers=numbers))


def _where(tape: TapeBuilder, node: Node, args: Args) -> int:
    chosen = tape.add("where", FLOAT32, _needed(args, 0), read(tape, args, 1), read(tape, args, 4))
    return write(tape, node, args, 7, chosen)


def _mul_integer(tape: TapeBuilder, node: Node, args: Args) -> int:
    parts = []
    for index in (0, 2):
        number, zero = tape.cast(_needed(args, index), INT32), _given(args, index + 1)
        parts.append(number if zero is None else tape.add("sub", INT32, number, tape.cast(zero, INT32)))
    return tape.add("mul", INT32, *parts)


def refusal(data: Sequence[int], scales: Sequence[int], zeros: Sequence[int], node: Node) -> str | None:
    """Why the operands are not 8-bit data with one float32 scale and at most one zero point each; or None."""
    rank = len(node.output.shape or ())
    for index in (*data, *zeros):
        value = node.input(index)
        if value is not None and type_of(value) not in _BYTES:
            return f"{value.name} has element type {type_of(value)}"
    for index in (*scales, *zeros):
        value = node.input(index)
        if value is None:
            continue
        shape = value.shape
        if shape is None or len(shape) > rank or any(extent != 1 for extent in shape):
            return f"{value.name} is not known to be one number"
        if index in scales and type_of(value) is not FLOAT32:
            return f"{value.name} has element type {type_of(value)}"
    return None


def _rule(build: Build, data: Sequence[int], result: int) -> ScalarRule:
    """`data` are followed by their scales and zero points; `result` is the input with the result's scale."""
    scales, zeros = [*(d + 1 for d in data), result], [*(d + 2 for d in data), result + 1]

    def check(node: Node) -> str | None:
        reason = refusal(data, scales, zeros, node)
        zero = node.input(result + 1)
        if reason is None and zero is not None and type_of(zero) is not type_of(node.output):
            return "its zero point has another element type than its result"
        return reason

    return ScalarRule(build, "dequantize", check)


QLINEAR_SCALARS: dict[str, ScalarRule] = {
    "com.microsoft.QLinearAdd": _rule(_binary("add"), (0, 3), 6),
    "com.microsoft.QLinearMul": _rule(_binary("mul"), (0, 3), 6),
    "com.microsoft.QLinearSigmoid": _rule(_sigmoid, (0,), 3),
    "com.microsoft.QLinearLeakyRelu": _rule(_leaky_relu, (0,), 3),
    "com.microsoft.QLinearWhere": _rule(_where, (1, 4), 7),
    "com.microsoft.MulInteger": ScalarRule(
        _mul_integer, "mul", lambda node: refusal((0, 2), (), (1, 3), node)
    ),
}  # fmt: skip
