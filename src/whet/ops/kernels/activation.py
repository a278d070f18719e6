"""Activations and other functions of single elements. Floats below 32 bits are computed in float32."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.base import Kernel
from whet.ops.contrib.common import Array, Attributes, Inputs, Outputs, required, text
from whet.ops.kernels.common import BLOCK_BYTES, back, working
from whet.ops.kernels.special import erf

Elementwise = Callable[[Array], Array]


def blocked(function: Elementwise, x: Array) -> Array:
    """`function` on every element of `x`, in blocks whose intermediate results stay in the cache."""
    if x.size * x.itemsize <= 2 * BLOCK_BYTES:
        # A scalar becomes one element, as functions that work in place need an array.
        return back(np.asarray(function(working(np.atleast_1d(x)))), x.dtype).reshape(x.shape)
    flat = np.ascontiguousarray(x).reshape(-1)
    result = np.empty_like(flat)
    step = BLOCK_BYTES // x.itemsize
    for start in range(0, flat.size, step):
        result[start : start + step] = function(working(flat[start : start + step]))
    return result.reshape(x.shape)


def _simple(function: Elementwise) -> Kernel:
    def kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
        return [blocked(function, required(inputs, 0, "X"))]

    return kernel


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)); where exp overflows, the quotient is 0, as it should be."""
    e: Array = np.negative(x)
    np.exp(e, out=e)
    e += 1
    np.divide(x.dtype.type(1), e, out=e)
    return e


def _silu(x: Array) -> Array:
    e: Array = np.negative(x)
    np.exp(e, out=e)
    e += 1
    # 0 / inf and -inf / inf: the limit of x sigmoid(x) at -inf is 0.
    return np.where(x == -np.inf, x.dtype.type(0), np.divide(x, e, out=e))


def _gelu(x: Array) -> Array:
    result: Array = x * (erf(x * x.dtype.type(math.sqrt(0.5))) + 1)
    result *= x.dtype.type(0.5)
    return result


def _gelu_tanh(x: Array) -> Array:
    inner = x * x
    inner *= x.dtype.type(0.044715)
    inner += 1
    inner *= x
    inner *= x.dtype.type(math.sqrt(2 / math.pi))
    np.tanh(inner, out=inner)
    inner += 1
    inner *= x
    inner *= x.dtype.type(0.5)
    return inner


def gelu(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Gelu(20): by erf, or by tanh where `approximate` says so."""
    mode = text(attributes, "approximate", "none", ("none", "tanh"))
    return [blocked(_gelu_tanh if mode == "tanh" else _gelu, required(inputs, 0, "X"))]


def swish(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Swish(24): x sigmoid(alpha x)."""
    alpha = float(attributes.get("alpha", 1.0))
    x = required(inputs, 0, "X")
    if alpha == 1.0:
        return [blocked(_silu, x)]
    return [blocked(lambda v: np.multiply(v, sigmoid(v * v.dtype.type(alpha))), x)]


def softplus(x: Array) -> Array:
    """log(1 + exp(x)) without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def softsign(x: Array) -> Array:
    """x / (1 + |x|)."""
    result: Array = x / (1 + np.abs(x))
    return result


def hard_sigmoid(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """HardSigmoid: alpha x + beta within [0, 1]."""
    alpha, beta = float(attributes.get("alpha", 0.2)), float(attributes.get("beta", 0.5))
    return [blocked(lambda v: np.clip(v * v.dtype.type(alpha) + v.dtype.type(beta), 0, 1), required(inputs, 0, "X"))]


def _hard_swish(x: Array) -> Array:
    gate: Array = np.clip(x * x.dtype.type(1 / 6) + x.dtype.type(0.5), 0, 1)
    gate *= x
    return gate


def leaky_relu(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """LeakyRelu: x, or alpha x below 0."""
    alpha = float(attributes.get("alpha", 0.01))
    return [blocked(lambda v: np.where(v < 0, v * v.dtype.type(alpha), v), required(inputs, 0, "X"))]


def elu(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Elu: x, or alpha (exp(x) - 1) below 0."""
    alpha = float(attributes.get("alpha", 1.0))
    return [
        blocked(
            lambda v: np.where(v < 0, np.expm1(np.minimum(v, 0)) * v.dtype.type(alpha), v), required(inputs, 0, "X")
        )
    ]


def celu(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Celu: max(0, x) + min(0, alpha (exp(x / alpha) - 1))."""
    alpha = float(attributes.get("alpha", 1.0))

    def function(v: Array) -> Array:
        a = v.dtype.type(alpha)
        low: Array = np.minimum(a * np.expm1(np.minimum(v / a, 0) if alpha > 0 else v / a), 0)
        low += np.maximum(v, 0)
        return low

    return [blocked(function, required(inputs, 0, "X"))]


def selu(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Selu: gamma x, or gamma alpha (exp(x) - 1) below 0."""
    alpha = float(attributes.get("alpha", 1.67326319217681884765625))
    gamma = float(attributes.get("gamma", 1.05070102214813232421875))

    def function(v: Array) -> Array:
        result: Array = np.where(v <= 0, np.expm1(np.minimum(v, 0)) * v.dtype.type(alpha), v)
        result *= v.dtype.type(gamma)
        return result

    return [blocked(function, required(inputs, 0, "X"))]


def thresholded_relu(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """ThresholdedRelu: x above alpha, else 0."""
    alpha = float(attributes.get("alpha", 1.0))
    return [blocked(lambda v: np.where(v > v.dtype.type(alpha), v, v.dtype.type(0)), required(inputs, 0, "X"))]


def relu(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Relu, of integers too."""
    x = required(inputs, 0, "X")
    return [np.maximum(x, x.dtype.type(0))]


def prelu(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """PRelu: x, or slope x below 0; the slope broadcasts to x alone."""
    x, slope = required(inputs, 0, "X"), required(inputs, 1, "slope")
    if slope.ndim == 1 and x.ndim > 2 and slope.shape[0] == x.shape[1] and slope.shape[0] != x.shape[-1]:
        # The per-channel form that exporters wrote before broadcasting was unidirectional.
        slope = slope.reshape(slope.shape[0], *(1,) * (x.ndim - 2))
    scaled = x * slope
    if scaled.shape != x.shape:
        raise InvalidArgument(
            "the slope does not broadcast", value="slope", found=slope.shape, expected=f"broadcastable to {x.shape}"
        )
    return [np.where(x < 0, scaled, x)]


def clip(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Clip: where min exceeds max, max wins."""
    result = required(inputs, 0, "input")
    for index, bound, name in ((1, np.maximum, "min"), (2, np.minimum, "max")):
        limit = inputs[index] if index < len(inputs) else None
        if limit is not None:
            if limit.size != 1:
                raise InvalidArgument("a bound must be a scalar", value=name, found=limit.shape, expected="()")
            result = bound(result, limit.reshape(()))
    return [result]


def mish(x: Array) -> Array:
    """x tanh(softplus(x))."""
    return x * np.tanh(softplus(x))


ACTIVATIONS: dict[str, Kernel] = {
    "Abs": _simple(np.abs),
    "Acos": _simple(np.arccos),
    "Acosh": _simple(np.arccosh),
    "Asin": _simple(np.arcsin),
    "Asinh": _simple(np.arcsinh),
    "Atan": _simple(np.arctan),
    "Atanh": _simple(np.arctanh),
    "Ceil": _simple(np.ceil),
    "Celu": celu,
    "Clip": clip,
    "Cos": _simple(np.cos),
    "Cosh": _simple(np.cosh),
    "Elu": elu,
    "Erf": _simple(erf),
    "Exp": _simple(np.exp),
    "Floor": _simple(np.floor),
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": _simple(_hard_swish),
    "LeakyRelu": leaky_relu,
    "Log": _simple(np.log),
    "Mish": _simple(mish),
    "Neg": _simple(np.negative),
    "PRelu": prelu,
    "Reciprocal": _simple(np.reciprocal),
    "Relu": relu,
    "Round": _simple(np.rint),
    "Selu": selu,
    "Sigmoid": _simple(sigmoid),
    "Sign": _simple(np.sign),
    "Sin": _simple(np.sin),
    "Sinh": _simple(np.sinh),
    "Softplus": _simple(softplus),
    "Softsign": _simple(softsign),
    "Sqrt": _simple(np.sqrt),
    "Swish": swish,
    "Tan": _simple(np.tan),
    "Tanh": _simple(np.tanh),
    "ThresholdedRelu": thresholded_relu,
}
