"""Activations that fused operators name in an attribute, as steps of a tape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from whet.compiler.tape import TapeBuilder
from whet.dtypes import DType

_Make = Callable[[TapeBuilder, DType, int, float, float], int]


def _plain(op: str) -> _Make:
    return lambda tape, dtype, x, a, b: tape.add(op, dtype, x)


def _alpha(op: str) -> _Make:
    return lambda tape, dtype, x, a, b: tape.add(op, dtype, x, numbers=(a,))


def _both(op: str) -> _Make:
    return lambda tape, dtype, x, a, b: tape.add(op, dtype, x, numbers=(a, b))


def _times(tape: TapeBuilder, dtype: DType, factor: float, x: int) -> int:
    return tape.add("mul", dtype, tape.constant(factor, dtype), x)


def _clip(tape: TapeBuilder, dtype: DType, x: int, a: float, b: float) -> int:
    above = tape.add("max", dtype, x, tape.constant(a, dtype))
    return tape.add("min", dtype, above, tape.constant(b, dtype))


def _hard_swish(tape: TapeBuilder, dtype: DType, x: int, a: float, b: float) -> int:
    return tape.add("mul", dtype, x, tape.add("hard_sigmoid", dtype, x, numbers=(a, b)))


def _affine(tape: TapeBuilder, dtype: DType, x: int, a: float, b: float) -> int:
    return tape.add("add", dtype, _times(tape, dtype, a, x), tape.constant(b, dtype))


def _scaled_tanh(tape: TapeBuilder, dtype: DType, x: int, a: float, b: float) -> int:
    return _times(tape, dtype, a, tape.add("tanh", dtype, _times(tape, dtype, b, x)))


def _parametric_softplus(tape: TapeBuilder, dtype: DType, x: int, a: float, b: float) -> int:
    return _times(tape, dtype, a, tape.add("softplus", dtype, _times(tape, dtype, b, x)))


_TABLE: dict[str, tuple[_Make, float, float]] = {
    "": (lambda tape, dtype, x, a, b: x, 0.0, 0.0),
    "identity": (lambda tape, dtype, x, a, b: x, 0.0, 0.0),
    "relu": (_plain("relu"), 0.0, 0.0),
    "tanh": (_plain("tanh"), 0.0, 0.0),
    "sigmoid": (_plain("sigmoid"), 0.0, 0.0),
    "leakyrelu": (_alpha("leaky_relu"), 0.01, 0.0),
    "thresholdedrelu": (_alpha("thresholded_relu"), 1.0, 0.0),
    "clip": (_clip, -math.inf, math.inf),
    "hardsigmoid": (_both("hard_sigmoid"), 0.2, 0.5),
    "hardswish": (_hard_swish, 1.0 / 6.0, 0.5),
    "affine": (_affine, 1.0, 0.0),
    "scaledtanh": (_scaled_tanh, 1.0, 1.0),
    "elu": (_alpha("elu"), 1.0, 0.0),
    "celu": (_alpha("celu"), 1.0, 0.0),
    "selu": (_both("selu"), 1.6732632423543772, 1.0507009873554805),
    "parametricsoftplus": (_parametric_softplus, 1.0, 1.0),
    "softsign": (_plain("softsign"), 0.0, 0.0),
    "softplus": (_plain("softplus"), 0.0, 0.0),
    "gelu": (_plain("gelu"), 0.0, 0.0),
    "silu": (_plain("silu"), 0.0, 0.0),
}
"""By name in small letters: the steps; alpha and beta (Selu: gamma) where the attributes do not give them."""


def activation_refusal(name: str) -> str | None:
    """Why no activation of this name is known, or None."""
    return None if name.lower() in _TABLE else f"no activation {name!r}"


def activate(tape: TapeBuilder, dtype: DType, x: int, name: str, parameters: Sequence[float]) -> int:
    """The activation of that name on `x`; `parameters` are alpha and beta as far as they are given."""
    make, alpha, beta = _TABLE[name.lower()]
    alpha = float(parameters[0]) if len(parameters) > 0 else alpha
    beta = float(parameters[1]) if len(parameters) > 1 else beta
    return make(tape, dtype, x, alpha, beta)
