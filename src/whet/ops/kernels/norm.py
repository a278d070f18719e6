"""Normalizations. Statistics are computed in the input's type, but at least in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.base import Kernel
from whet.ops.contrib.common import (
    Array,
    Attributes,
    Inputs,
    Outputs,
    axis_within,
    expect_divisible,
    expect_shape,
    integer,
    optional,
    required,
)
from whet.ops.kernels.common import back, mean_along, working


def _per_channel(array: Array, rank: int, channels: int, name: str, dtype: np.dtype[Any]) -> Array:
    """A vector over the channels, shaped to broadcast along axis 1 of a tensor of `rank` dimensions."""
    expect_shape(array, (channels,), name)
    return array.astype(dtype, copy=False).reshape(-1, *(1,) * (rank - 2))


def _rank(x: Array, least: int, name: str) -> None:
    if x.ndim < least:
        raise InvalidArgument(
            f"{name} has too few dimensions", value=name, found=x.shape, expected=f"at least {least} dimensions"
        )


def batch_normalization(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """BatchNormalization(15): Y, and in training mode the running mean and variance."""
    given = required(inputs, 0, "X")
    x = working(given)
    scale, bias = required(inputs, 1, "scale"), required(inputs, 2, "B")
    mean, var = required(inputs, 3, "input_mean"), required(inputs, 4, "input_var")
    _rank(x, 1, "X")
    if x.ndim == 1:
        x = x[:, None]
    channels, rank = x.shape[1], x.ndim
    epsilon = float(attributes.get("epsilon", 1e-5))
    wide = np.result_type(x.dtype, *(working(v).dtype for v in (scale, bias, mean, var)))
    outputs: list[Array | None] = []
    if integer(attributes, "training_mode", 0):
        momentum = float(attributes.get("momentum", 0.9))
        axes = tuple(i for i in range(rank) if i != 1)
        current_mean, current_var = mean_along(x, axes, keepdims=False), x.var(axis=axes)
        for running, current in ((mean, current_mean), (var, current_var)):
            outputs.append(back(working(running) * momentum + current * (1 - momentum), running.dtype))
        mean, var = current_mean, current_var
    factor = scale.astype(wide) / np.sqrt(var.astype(wide) + wide.type(epsilon))
    offset = bias.astype(wide) - mean.astype(wide) * factor
    y = x * _per_channel(factor, rank, channels, "scale", wide)
    y += _per_channel(offset, rank, channels, "B", wide)
    return [back(y, given.dtype).reshape(given.shape), *outputs]


def layer_normalization(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """LayerNormalization(17): Y, and the mean and inverse deviation that it was made with."""
    given = required(inputs, 0, "X")
    x = working(given)
    axis = axis_within(int(attributes.get("axis", -1)), x.ndim)
    axes = tuple(range(axis, x.ndim))
    mean = mean_along(x, axes)
    y = x - mean
    inverse = _inverse_deviation(mean_along(np.square(y), axes), attributes)
    y *= inverse
    y = _affine(back(y, given.dtype), optional(inputs, 1), optional(inputs, 2))
    return [y, mean, inverse][: max(output_count, 1)]


def rms_normalization(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """RMSNormalization(23)."""
    given = required(inputs, 0, "X")
    x = working(given)
    axis = axis_within(int(attributes.get("axis", -1)), x.ndim)
    axes = tuple(range(axis, x.ndim))
    y = x * _inverse_deviation(mean_along(np.square(x), axes), attributes)
    return [_affine(back(y, given.dtype), required(inputs, 1, "scale"), None)]


def _inverse_deviation(variance: Array, attributes: Attributes) -> Array:
    epsilon = float(attributes.get("epsilon", 1e-5))
    result: Array = 1 / np.sqrt(variance + variance.dtype.type(epsilon))
    return result


def _affine(y: Array, scale: Array | None, bias: Array | None) -> Array:
    """y scale + bias, in the wider of the types, as y's type broadcast within y's shape."""
    for operand, name in ((scale, "Scale"), (bias, "B")):
        if operand is not None and np.broadcast_shapes(operand.shape, y.shape) != y.shape:
            raise InvalidArgument(
                f"{name} does not broadcast", value=name, found=operand.shape, expected=f"broadcastable to {y.shape}"
            )
    result = y if scale is None else y * back(scale, y.dtype)
    return result if bias is None else result + back(bias, y.dtype)


def instance_normalization(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """InstanceNormalization(22): over the spatial axes of each channel of each sample."""
    given = required(inputs, 0, "input")
    _rank(given, 3, "input")
    x = working(given)
    axes = tuple(range(2, x.ndim))
    y = x - mean_along(x, axes)
    y *= _inverse_deviation(mean_along(np.square(y), axes), attributes)
    y *= _per_channel(required(inputs, 1, "scale"), x.ndim, x.shape[1], "scale", y.dtype)
    y += _per_channel(required(inputs, 2, "B"), x.ndim, x.shape[1], "B", y.dtype)
    return [back(y, given.dtype)]


def group_normalization(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """GroupNormalization(21): scale and bias for each channel."""
    given = required(inputs, 0, "X")
    _rank(given, 2, "X")
    x = working(given)
    groups = integer(attributes, "num_groups", least=1)
    expect_divisible(x.shape[1], groups, "the number of channels", "num_groups")
    y: Array = x.reshape(x.shape[0], groups, -1)
    y = y - mean_along(y, 2)
    y *= _inverse_deviation(mean_along(np.square(y), 2), attributes)
    y = y.reshape(x.shape)
    y *= _per_channel(required(inputs, 1, "scale"), x.ndim, x.shape[1], "scale", y.dtype)
    y += _per_channel(required(inputs, 2, "bias"), x.ndim, x.shape[1], "bias", y.dtype)
    return [back(y, given.dtype)]


def mean_variance_normalization(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """MeanVarianceNormalization(13): (x - mean) / (deviation + 1e-9), as the operator's function body has it."""
    given = required(inputs, 0, "X")
    x = working(given)
    axes = tuple(axis_within(int(a), x.ndim, "axes") for a in attributes.get("axes", (0, 2, 3)))
    mean = mean_along(x, axes)
    variance = mean_along(np.square(x), axes) - np.square(mean)
    return [back((x - mean) / (np.sqrt(variance) + x.dtype.type(1e-9)), given.dtype)]


def local_response_normalization(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """LRN(13): each element over a power of the sum of squares of neighbouring channels."""
    given = required(inputs, 0, "X")
    _rank(given, 2, "X")
    x = working(given)
    size = integer(attributes, "size", least=1)
    alpha, beta = float(attributes.get("alpha", 1e-4)), float(attributes.get("beta", 0.75))
    bias = float(attributes.get("bias", 1.0))
    channels = x.shape[1]
    before = (size - 1) // 2
    squares = np.zeros((x.shape[0], channels + size - 1, *x.shape[2:]), x.dtype)
    squares[:, before : before + channels] = np.square(x)
    total = squares[:, :channels].copy()
    for offset in range(1, size):
        total += squares[:, offset : offset + channels]
    kind = x.dtype.type
    return [back(x / (kind(bias) + kind(alpha / size) * total) ** kind(beta), given.dtype)]


def lp_normalization(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """LpNormalization(22): over one axis; a vector of norm 0 stays 0."""
    given = required(inputs, 0, "input")
    x = working(given)
    axis = axis_within(int(attributes.get("axis", -1)), x.ndim)
    order = integer(attributes, "p", 2, least=1, most=2)
    norm = (
        np.abs(x).sum(axis=axis, keepdims=True) if order == 1 else np.sqrt(np.square(x).sum(axis=axis, keepdims=True))
    )
    return [back(np.where(norm == 0, x.dtype.type(0), x / norm), given.dtype)]


NORMS: dict[str, Kernel] = {
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": local_response_normalization,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
}
