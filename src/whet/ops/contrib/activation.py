"""Activations and their fusions with a bias; the element-wise functions that other families use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.contrib.common import (
    Array,
    Attributes,
    Inputs,
    Outputs,
    axis_within,
    expect_broadcast,
    expect_divisible,
    expect_rank,
    expect_shape,
    integer,
    optional,
    product,
    required,
    scalar,
    trim,
    widen,
)

# W. J. Cody, "Rational Chebyshev approximations for the error function", Mathematics of Computation 23 (1969):
# coefficients from the highest power down.
_ERF_SMALL = (
    (1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2, 3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)
_ERFC_MIDDLE = (
    (
        2.15311535474403846e-8,
        5.64188496988670089e-1,
        8.88314979438837594,
        6.61191906371416295e1,
        2.98635138197400131e2,
        8.81952221241769090e2,
        1.71204761263407058e3,
        2.05107837782607147e3,
        1.23033935479799725e3,
    ),
    (
        1.0,
        1.57449261107098347e1,
        1.17693950891312499e2,
        5.37181101862009858e2,
        1.62138957456669019e3,
        3.29079923573345963e3,
        4.36261909014324716e3,
        3.43936767414372164e3,
        1.23033935480374942e3,
    ),
)
_ERFC_LARGE = (
    (
        1.63153871373020978e-2,
        3.05326634961232344e-1,
        3.60344899949804439e-1,
        1.25781726111229246e-1,
        1.60837851487422766e-2,
        6.58749161529837803e-4,
    ),
    (
        1.0,
        2.56852019228982242,
        1.87295284992346725,
        5.27905102951428412e-1,
        6.05183413124413191e-2,
        2.33520497626869185e-3,
    ),
)


def erf(x: Array) -> Array:
    """The error function of each element, in x's type; absolute error below 3e-16 in float64 (Cody, 1969)."""
    wide = x.astype(np.float64)
    magnitude = np.abs(wide)
    result = np.where(np.isnan(wide), wide, np.sign(wide))  # beyond 6 the answer is ±1 to the last bit

    small = magnitude <= 0.46875
    square = wide[small] ** 2
    result[small] = wide[small] * np.polyval(_ERF_SMALL[0], square) / np.polyval(_ERF_SMALL[1], square)

    middle = (magnitude > 0.46875) & (magnitude <= 4.0)
    y = magnitude[middle]
    complement = np.exp(-y * y) * np.polyval(_ERFC_MIDDLE[0], y) / np.polyval(_ERFC_MIDDLE[1], y)
    result[middle] = np.sign(wide[middle]) * (1.0 - complement)

    large = (magnitude > 4.0) & (magnitude < 6.0)
    y = magnitude[large]
    inverse = 1.0 / (y * y)
    tail = inverse * np.polyval(_ERFC_LARGE[0], inverse) / np.polyval(_ERFC_LARGE[1], inverse)
    complement = np.exp(-y * y) / y * (1.0 / math.sqrt(math.pi) - tail)
    result[large] = np.sign(wide[large]) * (1.0 - complement)
    return result.astype(x.dtype)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow for any x."""
    decay = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + decay), decay / (1 + decay)).astype(x.dtype)


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), without overflow for any x."""
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))), dtype=x.dtype)


def softmax(x: Array, axis: int) -> Array:
    """exp(x) / sum(exp(x)) along `axis`; a row of minus infinities gives zeros."""
    if x.size == 0:
        return x.copy()
    peak = x.max(axis=axis, keepdims=True)
    powers = np.exp(x - np.where(np.isneginf(peak), 0, peak).astype(x.dtype))
    total = powers.sum(axis=axis, keepdims=True)
    return np.asarray(powers / np.where(total == 0, 1, total), dtype=x.dtype)


def gelu(x: Array) -> Array:
    """0.5 x (1 + erf(x / sqrt 2))."""
    return np.asarray(0.5 * x * (1 + erf(x * math.sqrt(0.5))), dtype=x.dtype)


def gelu_tanh(x: Array) -> Array:
    """The tanh approximation of Gelu: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))), dtype=x.dtype)


def silu(x: Array) -> Array:
    """x * sigmoid(x)."""
    return x * sigmoid(x)


def leaky_relu(x: Array, alpha: float) -> Array:
    """x where x >= 0, else alpha x."""
    return np.where(x >= 0, x, alpha * x).astype(x.dtype)


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0))).astype(x.dtype)


def _celu(x: Array, alpha: float) -> Array:
    return (np.maximum(x, 0) + alpha * np.expm1(np.minimum(x, 0) / alpha)).astype(x.dtype)


# name: (function of x, alpha, beta; default of alpha, default of beta). The names are those of ONNX operators.
_ACTIVATIONS: dict[str, tuple[Callable[[Array, float, float], Array], float, float]] = {
    "": (lambda x, a, b: x, 0.0, 0.0),
    "Identity": (lambda x, a, b: x, 0.0, 0.0),
    "Relu": (lambda x, a, b: np.maximum(x, 0), 0.0, 0.0),
    "Tanh": (lambda x, a, b: np.tanh(x), 0.0, 0.0),
    "Sigmoid": (lambda x, a, b: sigmoid(x), 0.0, 0.0),
    "LeakyRelu": (lambda x, a, b: leaky_relu(x, a), 0.01, 0.0),
    "ThresholdedRelu": (lambda x, a, b: np.where(x > a, x, 0).astype(x.dtype), 1.0, 0.0),
    "Clip": (lambda x, a, b: np.clip(x, a, b), -math.inf, math.inf),
    "HardSigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), 0.2, 0.5),
    "HardSwish": (lambda x, a, b: x * np.clip(a * x + b, 0, 1), 1.0 / 6.0, 0.5),
    "Affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "ScaledTanh": (lambda x, a, b: a * np.tanh(b * x), 1.0, 1.0),
    "Elu": (lambda x, a, b: _elu(x, a), 1.0, 0.0),
    "Celu": (lambda x, a, b: _celu(x, a), 1.0, 0.0),
    "Selu": (lambda x, a, b: b * _elu(x, a), 1.6732632423543772, 1.0507009873554805),
    "ParametricSoftplus": (lambda x, a, b: a * softplus(b * x), 1.0, 1.0),
    "Softsign": (lambda x, a, b: x / (1 + np.abs(x)), 0.0, 0.0),
    "Softplus": (lambda x, a, b: softplus(x), 0.0, 0.0),
    "Gelu": (lambda x, a, b: gelu(x), 0.0, 0.0),
    "Silu": (lambda x, a, b: silu(x), 0.0, 0.0),
}


def activate(name: str, x: Array, parameters: Sequence[float] = ()) -> Array:
    """The activation of that ONNX name (in any case) on x; `parameters` are alpha and beta (Selu: gamma), as given."""
    found = {known.lower(): entry for known, entry in _ACTIVATIONS.items()}.get(name.lower())
    if found is None:
        raise InvalidArgument(
            "unknown activation", found=name, expected=", ".join(known for known in _ACTIVATIONS if known)
        )
    function, alpha, beta = found
    alpha = float(parameters[0]) if len(parameters) > 0 else alpha
    beta = float(parameters[1]) if len(parameters) > 1 else beta
    return function(x, alpha, beta)


def _biased(x: Array, bias: Array | None) -> Array:
    if bias is None:
        return x
    expect_rank(x, range(1, 65), "X")
    expect_shape(bias, (x.shape[-1],), "bias")
    return x + bias


def gelu_kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Gelu of X."""
    x = required(inputs, 0, "X")
    return [gelu(widen(x)).astype(x.dtype)]


def bias_gelu_kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Gelu of A + B, B along the last axis."""
    x = required(inputs, 0, "A")
    return [gelu(_biased(widen(x), widen(required(inputs, 1, "B")))).astype(x.dtype)]


def fast_gelu_kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The tanh approximation of Gelu of X + bias."""
    x = required(inputs, 0, "X")
    bias = optional(inputs, 1)
    return [gelu_tanh(_biased(widen(x), None if bias is None else widen(bias))).astype(x.dtype)]


def quick_gelu_kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """x * sigmoid(alpha x)."""
    x = required(inputs, 0, "X")
    wide = widen(x)
    return [(wide * sigmoid(float(attributes.get("alpha", 1.702)) * wide)).astype(x.dtype)]


def bias_split_gelu_kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Left half of X + bias times Gelu of its right half; X (N, S, D), Y (N, S, D / 2)."""
    x = required(inputs, 0, "X")
    expect_rank(x, 3, "X")
    half = expect_divisible(x.shape[-1], 2, "the last extent of X", "2")
    hidden = _biased(widen(x), widen(required(inputs, 1, "bias")))
    return [(hidden[..., :half] * gelu(hidden[..., half:])).astype(x.dtype)]


def bias_add_kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """X + bias + skip."""
    x = required(inputs, 0, "X")
    skip = required(inputs, 2, "skip")
    expect_shape(skip, x.shape, "skip")
    return [_biased(x, required(inputs, 1, "bias")) + skip]


def bias_softmax_kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Softmax of data + bias over the axes from `axis` on."""
    data, bias = required(inputs, 0, "data"), required(inputs, 1, "bias")
    axis = axis_within(integer(attributes, "axis", 1), data.ndim)
    inner = integer(attributes, "is_inner_broadcast", 1, least=0, most=1)
    rows, columns = product(data.shape[:axis]), product(data.shape[axis:])
    scores = widen(data).reshape(rows, columns)
    bias_rows = expect_divisible(bias.size, columns, "the size of bias", "the softmax extent") if columns else 0
    if columns and (bias_rows == 0 or rows % bias_rows):
        raise InvalidArgument(
            "bias does not repeat over data", value="bias", found=bias.shape, expected=f"rows that divide {rows}"
        )
    if columns:
        repeats = rows // bias_rows
        lines = widen(bias).reshape(bias_rows, columns)
        scores = scores + (np.repeat(lines, repeats, axis=0) if inner else np.tile(lines, (repeats, 1)))
    return [softmax(scores, 1).reshape(data.shape).astype(data.dtype)]


def bias_dropout_kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """data + bias + residual: dropout passes everything outside training; mask all true."""
    data, bias, residual = required(inputs, 0, "data"), required(inputs, 1, "bias"), optional(inputs, 2)
    training = optional(inputs, 4)
    if training is not None and bool(scalar(training, "training_mode")):
        raise InvalidArgument("BiasDropout runs for inference only", value="training_mode", found=True, expected=False)
    expect_broadcast(bias, data.shape, "bias")
    result = data + bias
    if residual is not None:
        expect_shape(residual, data.shape, "residual")
        result = result + residual
    return trim([result, np.ones(data.shape, dtype=np.bool_)], output_count)


def scaled_silu_kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """z sigmoid(z) with z = scale x, every step rounded to X's type."""
    x, scale = required(inputs, 0, "X"), optional(inputs, 1)
    factor = float(attributes.get("alpha", 1.0)) if scale is None else float(scalar(scale, "scale"))
    z = (widen(x) * factor).astype(x.dtype)
    s = sigmoid(widen(z)).astype(x.dtype)
    return [(widen(z) * widen(s)).astype(x.dtype)]


def gated_add_kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """X + Y * gate, gate (..., 1), the product rounded to X's type."""
    x, y, gate = (required(inputs, i, name) for i, name in enumerate(("X", "Y", "gate")))
    expect_rank(x, range(1, 65), "X")
    expect_shape(y, x.shape, "Y")
    expect_shape(gate, (*x.shape[:-1], 1), "gate")
    return [x + y * gate]
