"""How each pointwise operator becomes steps of a tape."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compiler.lower.contrib_scalars import CONTRIB_SCALARS
from whet.compiler.lower.ml_scalars import ML_SCALARS
from whet.compiler.lower.qlinear_scalars import QLINEAR_SCALARS
from whet.compiler.lower.quantize_scalars import QUANTIZE_SCALARS
from whet.compiler.lower.scalar_rule import ScalarRule, result_type
from whet.compiler.tape import TapeBuilder
from whet.dtypes import BOOL
from whet.graph import Node, TensorType


def _args(args: Sequence[int | None]) -> list[int]:
    return [a for a in args if a is not None]


def _plain(op: str) -> ScalarRule:
    """All operands in, one result of the node's type out."""

    def build(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
        return tape.add(op, result_type(node), *_args(args))

    return ScalarRule(build, op)


def _folded(op: str) -> ScalarRule:
    """A binary operation over any number of operands, from the left."""

    def build(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
        total, *rest = _args(args)
        for other in rest:
            total = tape.add(op, result_type(node), total, other)
        return total

    return ScalarRule(build, op)


def _with(op: str, *attributes: tuple[str, float]) -> ScalarRule:
    """One operand, and float attributes with their defaults."""

    def build(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
        numbers = [node.float_attr(name, default) for name, default in attributes]
        return tape.add(op, result_type(node), *_args(args), numbers=numbers)

    return ScalarRule(build, op)


def _identity(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
    return _args(args)[0]


def _training(node: Node) -> str | None:
    """Why a Dropout may drop elements, or None."""
    training = node.input(2)
    if training is None or (training.data is not None and not training.data.numpy().any()):
        return None
    return "it may be in training mode"


def _cast(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
    value = tape.cast(_args(args)[0], result_type(node))
    kind = node.output.type
    assert isinstance(kind, TensorType)
    if kind.dtype is not None and kind.dtype is not result_type(node):
        # What a 16-bit float cannot hold is rounded away here and not only where the result is stored.
        value = tape.cast(tape.cast(value, kind.dtype), result_type(node))
    return value


def _mean(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
    total, *rest = _args(args)
    for other in rest:
        total = tape.add("add", result_type(node), total, other)
    return tape.add("div", result_type(node), total, tape.constant(len(rest) + 1, result_type(node)))


def _mod(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
    return tape.add("fmod" if node.int_attr("fmod", 0) else "mod", result_type(node), *_args(args))


def _clip(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
    dtype, value = result_type(node), args[0]
    assert value is not None
    for op, bound in (("max", args[1] if len(args) > 1 else None), ("min", args[2] if len(args) > 2 else None)):
        if bound is not None:
            value = tape.add(op, dtype, value, bound)
    return value


def _shift(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
    op = "shift_left" if node.str_attr("direction", "") == "LEFT" else "shift_right"
    return tape.add(op, result_type(node), *_args(args))


def _is_inf(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
    numbers = (node.int_attr("detect_negative", 1), node.int_attr("detect_positive", 1))
    return tape.add("is_inf", BOOL, *_args(args), numbers=numbers)


def _gelu(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
    op = "gelu_tanh" if node.str_attr("approximate", "none") == "tanh" else "gelu"
    return tape.add(op, result_type(node), *_args(args)[:1])


def _pow(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
    base, exponent = _args(args)
    return tape.add("pow", result_type(node), base, exponent)


def _greater_or_equal(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
    return tape.add(_COMPARE[node.op_type], BOOL, *_args(args))


_COMPARE = {
    "Equal": "equal", "Less": "less", "Greater": "greater",
    "LessOrEqual": "less_or_equal", "GreaterOrEqual": "greater_or_equal",
}  # fmt: skip

_SELU = (("alpha", 1.67326319217681884765625), ("gamma", 1.05070102214813232421875))

SCALAR_RULES: dict[str, ScalarRule] = {
    "Add": _plain("add"),
    "Sub": _plain("sub"),
    "Mul": _plain("mul"),
    "Div": _plain("div"),
    "Mod": ScalarRule(_mod, "mod"),
    "Pow": ScalarRule(_pow, "pow"),
    "Max": _folded("max"),
    "Min": _folded("min"),
    "Sum": _folded("add"),
    "Mean": ScalarRule(_mean, "add"),
    "And": _plain("and"),
    "Or": _plain("or"),
    "Xor": _plain("xor"),
    "Not": _plain("not"),
    **{name: ScalarRule(_greater_or_equal, op) for name, op in _COMPARE.items()},
    "Where": _plain("where"),
    "Cast": ScalarRule(_cast, "cast"),
    "CastLike": ScalarRule(_cast, "cast"),
    "Identity": ScalarRule(_identity, "identity"),
    "Dropout": ScalarRule(_identity, "identity", _training),
    "Neg": _plain("neg"),
    "Abs": _plain("abs"),
    "Sign": _plain("sign"),
    "Floor": _plain("floor"),
    "Ceil": _plain("ceil"),
    "Round": _plain("round"),
    "Sqrt": _plain("sqrt"),
    "Reciprocal": _plain("reciprocal"),
    "Exp": _plain("exp"),
    "Log": _plain("log"),
    "Sin": _plain("sin"),
    "Cos": _plain("cos"),
    "Tan": _plain("tan"),
    "Asin": _plain("asin"),
    "Acos": _plain("acos"),
    "Atan": _plain("atan"),
    "Sinh": _plain("sinh"),
    "Cosh": _plain("cosh"),
    "Tanh": _plain("tanh"),
    "Asinh": _plain("asinh"),
    "Acosh": _plain("acosh"),
    "Atanh": _plain("atanh"),
    "Erf": _plain("erf"),
    "Sigmoid": _plain("sigmoid"),
    "Relu": _plain("relu"),
    "LeakyRelu": _with("leaky_relu", ("alpha", 0.01)),
    "Elu": _with("elu", ("alpha", 1.0)),
    "Selu": _with("selu", *_SELU),
    "Celu": _with("celu", ("alpha", 1.0)),
    "ThresholdedRelu": _with("thresholded_relu", ("alpha", 1.0)),
    "HardSigmoid": _with("hard_sigmoid", ("alpha", 0.2), ("beta", 0.5)),
    "HardSwish": _plain("hard_swish"),
    "Softplus": _plain("softplus"),
    "Softsign": _plain("softsign"),
    "Mish": _plain("mish"),
    "Gelu": ScalarRule(_gelu, "gelu"),
    "Swish": _with("silu", ("alpha", 1.0)),
    "PRelu": _plain("prelu"),
    "Clip": ScalarRule(_clip, "max"),
    "IsNaN": _plain("is_nan"),
    "IsInf": ScalarRule(_is_inf, "is_inf"),
    "BitShift": ScalarRule(_shift, "shift_left"),
    "BitwiseAnd": _plain("bitwise_and"),
    "BitwiseOr": _plain("bitwise_or"),
    "BitwiseXor": _plain("bitwise_xor"),
    "BitwiseNot": _plain("bitwise_not"),
    "Shrink": _with("shrink", ("bias", 0.0), ("lambd", 0.5)),
    **CONTRIB_SCALARS,
    **QUANTIZE_SCALARS,
    **QLINEAR_SCALARS,
    **ML_SCALARS,
}
"""Operators whose result's element depends on one element of each operand."""
