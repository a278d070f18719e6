"""Activation functions from the arithmetic in which exporters write them."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sqrt

from whet import dtypes
from whet.dtypes import DType
from whet.graph import Node, TensorType, Value
from whet.passes.base import PassContext
from whet.passes.pattern import (
    Match,
    MatchFailure,
    Op,
    Pattern,
    PatternPass,
    Scalar,
    Var,
    clip,
    commutative,
    erf,
    exp,
    is_constant,
    log,
    op,
    sigmoid,
    tanh,
)

FLOATS = frozenset({dtypes.FLOAT16, dtypes.FLOAT32, dtypes.FLOAT64, dtypes.BFLOAT16})
"""The element types of ONNX's activation functions."""
UP_TO_32_BITS = FLOATS - {dtypes.FLOAT64}
"""Types of those for which ONNX Runtime's CPU, unlike for their parts, has no kernel in float64."""

x = Var("x")


def is_float(value: Value, types: frozenset[DType] = FLOATS) -> bool:
    """Whether the value is known to be a tensor of one of these types."""
    return isinstance(value.type, TensorType) and value.type.dtype in types


class Activation(PatternPass):
    """A function of the variable `x` alone, to become one node."""

    types = FLOATS

    def check(self, found: Match) -> MatchFailure | None:
        if not is_float(found.root.output, self.types) and not is_float(found.value("x"), self.types):
            return MatchFailure(f"{found.root.output.name} is not known to be one of the floats that this is for")
        return None

    def replace(self, found: Match, context: PassContext) -> Sequence[Node] | MatchFailure:
        name, attributes = self.function(found)
        return (Node(name, [found.value("x")], [Value("")], attributes),)

    def function(self, found: Match) -> tuple[str, dict[str, float | str]]:
        """The standard operator and its attributes."""
        raise NotImplementedError


class FuseSigmoid(Activation):
    """1 / (1 + exp(-x))."""

    name = "sigmoid"
    pattern = op("Reciprocal", 1 + exp(-x)) | 1 / (1 + exp(-x))
    roots = pattern.roots()

    def function(self, found: Match) -> tuple[str, dict[str, float | str]]:
        return "Sigmoid", {}


class FuseSwish(Activation):
    """x * sigmoid(alpha * x): SiLU (alpha 1) and the quick Gelu (alpha 1.702)."""

    name = "swish"
    pattern = x * sigmoid(x) | x * sigmoid(Scalar("alpha") * x) | x / (1 + exp(-x))
    roots = pattern.roots()

    def function(self, found: Match) -> tuple[str, dict[str, float | str]]:
        return "Swish", {"alpha": found.number("alpha") if "alpha" in found.bound else 1.0}


class FuseSoftplus(Activation):
    """log(1 + exp(x))."""

    name = "softplus"
    types = UP_TO_32_BITS
    pattern = log(1 + exp(x))
    roots = pattern.roots()

    def function(self, found: Match) -> tuple[str, dict[str, float | str]]:
        return "Softplus", {}


class FuseMish(Activation):
    """x * tanh(softplus(x)) (Misra, 2019)."""

    name = "mish"
    types = UP_TO_32_BITS
    pattern = x * tanh(op("Softplus", x))
    roots = pattern.roots()

    def function(self, found: Match) -> tuple[str, dict[str, float | str]]:
        return "Mish", {}


class FuseHardSigmoid(Activation):
    """max(0, min(1, alpha * x + beta)), also written relu6(x + 3) / 6."""

    name = "hard-sigmoid"
    types = UP_TO_32_BITS
    pattern = clip(x + 3, 0, 6) / 6 | clip(Scalar("alpha") * x + Scalar("beta"), 0, 1)
    roots = pattern.roots()

    def function(self, found: Match) -> tuple[str, dict[str, float | str]]:
        if "alpha" in found.bound:
            return "HardSigmoid", {"alpha": found.number("alpha"), "beta": found.number("beta")}
        return "HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}


class FuseHardSwish(Activation):
    """x * max(0, min(1, x / 6 + 1 / 2)) (Howard et al., 2019)."""

    name = "hard-swish"
    types = UP_TO_32_BITS
    pattern = x * Op("HardSigmoid", (x,), name="gate") | x * clip(x + 3, 0, 6) / 6
    roots = pattern.roots()

    def check(self, found: Match) -> MatchFailure | None:
        if "gate" in found.bound:
            gate = found.node("gate")
            alpha, beta = gate.float_attr("alpha", 0.2), gate.float_attr("beta", 0.5)
            if abs(alpha - 1 / 6) > 1e-6 or abs(beta - 0.5) > 1e-6:
                return MatchFailure(f"{gate.label} has alpha {alpha:g} and beta {beta:g}, expected 1/6 and 1/2")
        return super().check(found)

    def function(self, found: Match) -> tuple[str, dict[str, float | str]]:
        return "HardSwish", {}


class FuseGelu(Activation):
    """x/2 * (1 + erf(x / sqrt(2))) (Hendrycks and Gimpel, 2016)."""

    name = "gelu"
    pattern = 0.5 * x * (1 + erf(x / sqrt(2)))
    roots = pattern.roots()

    def function(self, found: Match) -> tuple[str, dict[str, float | str]]:
        return "Gelu", {"approximate": "none"}


CUBIC: Pattern = 0.044715 * x**3 | 0.044715 * x * x * x | 0.044715 * x**2 * x


class FuseGeluTanh(Activation):
    """The same with erf approximated: x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))."""

    name = "gelu-tanh"
    pattern = (
        0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + CUBIC)))
        | 0.5 * x * (1 + tanh(sqrt(2 / pi) * x * (1 + (0.044715 * x * x | 0.044715 * x**2))))
        | x * sigmoid(sqrt(8 / pi) * (x + CUBIC))
    )
    roots = pattern.roots()

    def function(self, found: Match) -> tuple[str, dict[str, float | str]]:
        return "Gelu", {"approximate": "tanh"}


class FuseRelu(Activation):
    """max(x, 0)."""

    name = "relu"
    pattern = commutative("Max", x, 0) | op("Clip", x, 0)
    roots = pattern.roots()

    def function(self, found: Match) -> tuple[str, dict[str, float | str]]:
        return "Relu", {}


class FuseLeakyRelu(Activation):
    """max(x, alpha * x) for alpha below 1, or x where it is positive and alpha * x elsewhere."""

    name = "leaky-relu"
    types = UP_TO_32_BITS
    slope: Pattern = Scalar("alpha") * x
    pattern = (
        commutative("Max", x, slope)
        | op("Where", op("Greater", x, 0) | op("GreaterOrEqual", x, 0), x, slope)
        | op("Where", op("Less", x, 0) | op("LessOrEqual", x, 0), slope, x)
    )
    roots = pattern.roots()

    def check(self, found: Match) -> MatchFailure | None:
        alpha = found.number("alpha")
        if found.root.op_type == "Max" and not 0 <= alpha <= 1:
            return MatchFailure(f"the larger of x and {alpha:g}*x is no LeakyRelu")
        return super().check(found)

    def function(self, found: Match) -> tuple[str, dict[str, float | str]]:
        return "LeakyRelu", {"alpha": found.number("alpha")}


class FusePRelu(PatternPass):
    """relu(x) - slope * relu(-x), as Keras writes it, with a constant slope."""

    name = "prelu"
    pattern = op("Relu", x) + Var("minus_slope", is_constant) * op("Relu", -x)
    roots = pattern.roots()

    def replace(self, found: Match, context: PassContext) -> Sequence[Node] | MatchFailure:
        minus_slope, value = found.value("minus_slope"), found.value("x")
        if not is_float(value, UP_TO_32_BITS) or value.shape is None:
            return MatchFailure(f"type or rank of {value.name} is not known")
        array = minus_slope.array
        assert array is not None
        if array.ndim > len(value.shape):
            return MatchFailure(f"the slope's shape {array.shape} raises the rank of {value.name}")
        if any(n not in (1, d) for n, d in zip(array.shape[::-1], value.shape[::-1], strict=False)):
            return MatchFailure(f"the slope's shape {array.shape} is not known to broadcast to {value.name}")
        slope = Value.constant(context.model.names.fresh(f"{minus_slope.name}_negated"), -array)
        return (Node("PRelu", [value, slope], [Value("")]),)
