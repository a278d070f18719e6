"""Vector mathematics: elementary functions by polynomials and quotients, in registers, the same on every target."""

from __future__ import annotations

from whet.codegen.vecmath.activation import (
    erf,
    gelu,
    gelu_tanh,
    reciprocal_sqrt,
    sigmoid,
    silu,
    softplus,
    tanh,
)
from whet.codegen.vecmath.exponential import exp, exp2, log, log1p, log2, pow
from whet.codegen.vecmath.trigonometric import cos, sin

__all__ = [
    "cos", "erf", "exp", "exp2", "gelu", "gelu_tanh", "log", "log1p", "log2", "pow", "reciprocal_sqrt", "sigmoid",
    "silu", "sin", "softplus", "tanh",
]  # fmt: skip
