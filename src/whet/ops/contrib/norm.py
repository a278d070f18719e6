"""Layer, RMS and group normalization, with the residual and embedding sums fused into them."""

from __future__ import annotations

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.contrib.activation import sigmoid, silu
from whet.ops.contrib.common import (
    Array,
    Attributes,
    Inputs,
    Outputs,
    axis_within,
    expect_broadcast,
    expect_divisible,
    expect_one_of_shapes,
    expect_rank,
    expect_shape,
    indices_within,
    integer,
    optional,
    required,
    scalar,
    text,
    trim,
    widen,
)


def _statistics(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array]:
    mean = x.mean(axis=axes, keepdims=True)
    variance = np.square(x - mean).mean(axis=axes, keepdims=True)
    return mean, 1 / np.sqrt(variance + epsilon)


def layer_normalize(x: Array, gamma: Array, beta: Array | None, epsilon: float) -> Array:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta over the last axis, in x's type."""
    mean, inverse = _statistics(x, (-1,), epsilon)
    result = (x - mean) * inverse * gamma
    return np.asarray(result) if beta is None else np.asarray(result + beta)


def rms_normalize(x: Array, gamma: Array | None, epsilon: float) -> Array:
    """x / sqrt(mean(x^2) + epsilon) * gamma over the last axis, in x's type."""
    result = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + epsilon)
    return np.asarray(result) if gamma is None else np.asarray(result * gamma)


def layer_normalization(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """LayerNormalization over the axes from `axis` on: output, mean, inverse standard deviation."""
    x, gamma, beta = required(inputs, 0, "X"), required(inputs, 1, "scale"), optional(inputs, 2)
    axes, wide = _normalized_axes(x, gamma, attributes)
    mean, inverse = _statistics(wide, axes, float(attributes.get("epsilon", 1e-5)))
    result = (wide - mean) * inverse * widen(gamma)
    if beta is not None:
        expect_broadcast(beta, tuple(x.shape[a] for a in axes), "B")
        result = result + widen(beta)
    return trim([result.astype(gamma.dtype), mean, inverse], output_count)


def simplified_layer_normalization(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """RMS normalization over the axes from `axis` on: output, inverse root of the mean of squares."""
    x, gamma = required(inputs, 0, "X"), required(inputs, 1, "scale")
    axes, wide = _normalized_axes(x, gamma, attributes)
    inverse = 1 / np.sqrt(np.square(wide).mean(axis=axes, keepdims=True) + float(attributes.get("epsilon", 1e-5)))
    return trim([(wide * inverse * widen(gamma)).astype(gamma.dtype), inverse], output_count)


def _normalized_axes(x: Array, gamma: Array, attributes: Attributes) -> tuple[tuple[int, ...], Array]:
    axis = axis_within(integer(attributes, "axis", -1), x.ndim)
    axes = tuple(range(axis, x.ndim))
    expect_broadcast(gamma, tuple(x.shape[a] for a in axes), "scale")
    return axes, widen(x)


def _skip_sum(inputs: Inputs, bias_index: int) -> tuple[Array, Array, Array]:
    """Input, gamma and the widened sum of input, skip and bias."""
    x, skip, gamma = required(inputs, 0, "input"), required(inputs, 1, "skip"), required(inputs, 2, "gamma")
    bias = optional(inputs, bias_index)
    expect_rank(x, (2, 3), "input")
    hidden = x.shape[-1]
    shapes = [x.shape, (1, *x.shape[1:]), x.shape[1:]] if x.ndim == 3 else [x.shape]
    expect_one_of_shapes(skip, shapes, "skip")
    expect_shape(gamma, (hidden,), "gamma")
    total = widen(x) + widen(skip)
    if bias is not None:
        expect_shape(bias, (hidden,), "bias")
        total = total + widen(bias)
    return x, gamma, total


def skip_layer_normalization(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Layer normalization of input + skip + bias: output, mean, inverse standard deviation, the sum."""
    x, gamma, total = _skip_sum(inputs, 4)
    beta = optional(inputs, 3)
    if beta is not None:
        expect_shape(beta, gamma.shape, "beta")
    epsilon = float(attributes.get("epsilon", 1e-12))
    mean, inverse = _statistics(total, (-1,), epsilon)
    result = layer_normalize(total, widen(gamma), None if beta is None else widen(beta), epsilon)
    return trim([result.astype(x.dtype), mean, inverse, total.astype(x.dtype)], output_count)


def skip_simplified_layer_normalization(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """RMS normalization of input + skip + bias: output, none, inverse root mean square, the sum."""
    x, gamma, total = _skip_sum(inputs, 3)
    epsilon = float(attributes.get("epsilon", 1e-12))
    inverse = 1 / np.sqrt(np.square(total).mean(axis=-1, keepdims=True) + epsilon)
    result = (total * inverse * widen(gamma)).astype(x.dtype)
    return trim([result, np.zeros_like(inverse), inverse, total.astype(x.dtype)], output_count)


def _embedding_sum(
    ids: Array,
    segments: Array | None,
    words: Array,
    positions: Array,
    segment_table: Array | None,
    position_ids: Array | None,
) -> Array:
    """Sum of the looked-up word, position and segment rows, (batch, sequence, hidden)."""
    expect_rank(ids, 2, "input_ids")
    expect_rank(words, 2, "word_embedding")
    batch, sequence = ids.shape
    hidden = words.shape[1]
    expect_shape(positions, (None, hidden), "position_embedding")
    total = words[indices_within(ids, words.shape[0], "input_ids")]
    if position_ids is None:
        if sequence > positions.shape[0]:
            raise InvalidArgument(
                "the sequence is longer than the position embedding",
                value="input_ids",
                found=sequence,
                expected=f"at most {positions.shape[0]} positions",
            )
        total = total + positions[:sequence]
    else:
        expect_one_of_shapes(position_ids, [(batch, sequence), (1, sequence)], "position_ids")
        total = total + positions[indices_within(position_ids, positions.shape[0], "position_ids")]
    if (segments is None) != (segment_table is None):
        raise InvalidArgument("segment_ids and segment_embedding go together", value="segment_ids")
    if segments is not None and segment_table is not None:
        expect_shape(segments, ids.shape, "segment_ids")
        expect_shape(segment_table, (None, hidden), "segment_embedding")
        total = total + segment_table[indices_within(segments, segment_table.shape[0], "segment_ids")]
    return total


def _mask_index(mask: Array | None, ids: Array) -> Array:
    if mask is None:
        return np.zeros(ids.shape[0], dtype=np.int32)
    expect_shape(mask, ids.shape, "mask")
    return np.asarray((mask == 1).sum(axis=1), dtype=np.int32)


def embed_layer_normalization(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Layer normalization of the embedding sum: output, number of ones in each mask row, the sum."""
    ids, segments = required(inputs, 0, "input_ids"), optional(inputs, 1)
    words, positions = required(inputs, 2, "word_embedding"), required(inputs, 3, "position_embedding")
    table, gamma, beta = optional(inputs, 4), required(inputs, 5, "gamma"), required(inputs, 6, "beta")
    total = _embedding_sum(
        ids, segments, widen(words), widen(positions), None if table is None else widen(table), optional(inputs, 8)
    )
    expect_shape(gamma, (words.shape[1],), "gamma")
    expect_shape(beta, (words.shape[1],), "beta")
    result = layer_normalize(total, widen(gamma), widen(beta), float(attributes.get("epsilon", 1e-12)))
    counts = _mask_index(optional(inputs, 7), ids)
    return trim([result.astype(words.dtype), counts, total.astype(words.dtype)], output_count)


def quantized_embed_layer_normalization(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """EmbedLayerNormalization whose five tables are 8-bit with one scale and zero point each."""

    def table(index: int, scale_index: int, name: str) -> Array:
        data = required(inputs, index, name)
        factor = scalar(required(inputs, scale_index, f"{name}_scale"), f"{name}_scale")
        zero = scalar(required(inputs, scale_index + 5, f"{name}_zero_point"), f"{name}_zero_point")
        return np.asarray((data.astype(np.int32) - int(zero)).astype(factor.dtype) * factor)

    ids, segments = required(inputs, 0, "input_ids"), optional(inputs, 1)
    words, positions = table(2, 8, "word_embedding"), table(3, 9, "position_embedding")
    segment_table = None if optional(inputs, 4) is None else table(4, 10, "segment_embedding")
    gamma, beta = table(5, 11, "gamma"), table(6, 12, "beta")
    total = _embedding_sum(ids, segments, words, positions, segment_table, None)
    expect_shape(gamma, (words.shape[1],), "gamma")
    expect_shape(beta, (words.shape[1],), "beta")
    result = layer_normalize(total, gamma, beta, float(attributes.get("epsilon", 1e-12)))
    return trim([result, _mask_index(optional(inputs, 7), ids)], output_count)


def _group_normalize(x: Array, gamma: Array, beta: Array, attributes: Attributes) -> Array:
    """Group normalization and its optional SiLU of a widened x in the layout that `channels_last` names."""
    channels_last = bool(integer(attributes, "channels_last", 1, least=0, most=1))
    activation = integer(attributes, "activation", least=0, most=1)
    groups = integer(attributes, "groups", least=1)
    first = np.moveaxis(x, -1, 1) if channels_last else x
    batch, channels = first.shape[:2]
    size = expect_divisible(channels, groups, "the number of channels", "the number of groups")
    expect_shape(gamma, (channels,), "gamma")
    expect_shape(beta, (channels,), "beta")
    grouped = first.reshape(batch, groups, size, *first.shape[2:])
    mean, inverse = _statistics(grouped, tuple(range(2, grouped.ndim)), float(attributes.get("epsilon", 1e-5)))
    lifted = (channels,) + (1,) * (first.ndim - 2)
    result = ((grouped - mean) * inverse).reshape(first.shape)
    result = result * widen(gamma).reshape(lifted) + widen(beta).reshape(lifted)
    result = silu(result) if activation else result
    return np.moveaxis(result, 1, -1) if channels_last else result


def group_norm(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Group normalization of X with per-channel gamma and beta, then SiLU where `activation` is 1."""
    x = required(inputs, 0, "X")
    expect_rank(x, 4, "X")
    gamma, beta = required(inputs, 1, "gamma"), required(inputs, 2, "beta")
    return [_group_normalize(widen(x), gamma, beta, attributes).astype(x.dtype)]


def skip_group_norm(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Group normalization of X + skip + bias: output, the sum."""
    x, gamma, beta = required(inputs, 0, "X"), required(inputs, 1, "gamma"), required(inputs, 2, "beta")
    skip, bias = required(inputs, 3, "skip"), optional(inputs, 4)
    expect_rank(x, 4, "X")
    last = bool(integer(attributes, "channels_last", 1, least=0, most=1))
    batch, channels = x.shape[0], x.shape[-1 if last else 1]
    per_image = (batch, 1, 1, channels) if last else (batch, channels, 1, 1)
    expect_one_of_shapes(skip, [x.shape, per_image, (batch, channels)], "skip")
    total = widen(x) + (widen(skip).reshape(per_image) if skip.ndim == 2 else widen(skip))
    if bias is not None:
        expect_shape(bias, (channels,), "bias")
        total = total + widen(bias).reshape((channels,) if last else (channels, 1, 1))
    result = _group_normalize(total, gamma, beta, attributes)
    return trim([result.astype(x.dtype), total.astype(x.dtype)], output_count)


def gated_rms_norm(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """RMS normalization over groups of the scale's length, times SiLU or sigmoid of the gate."""
    x, scale, gate = (required(inputs, i, name) for i, name in enumerate(("X", "scale", "gate")))
    activation = text(attributes, "activation", "silu", ("silu", "swish", "sigmoid"))
    expect_rank(x, range(1, 65), "X")
    expect_rank(scale, 1, "scale")
    expect_shape(gate, x.shape, "gate")
    groups = expect_divisible(x.shape[-1], scale.shape[0], "the last extent of X", "the length of scale")
    wide = widen(x).reshape(*x.shape[:-1], groups, scale.shape[0])
    result = rms_normalize(wide, widen(scale), float(attributes.get("epsilon", 1e-5))).reshape(x.shape)
    opening = sigmoid(widen(gate)) if activation == "sigmoid" else silu(widen(gate))
    return [(result * opening).astype(x.dtype)]


def branchwise_rms_norm(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """RMS normalization of each branch: X (..., C, H), or (..., C * H) with `num_branches`."""
    x, scale = required(inputs, 0, "X"), optional(inputs, 1)
    branches = integer(attributes, "num_branches", 0, least=0)
    if branches:
        expect_rank(x, range(1, 65), "X")
        size = expect_divisible(x.shape[-1], branches, "the last extent of X", "num_branches")
        wide = widen(x).reshape(*x.shape[:-1], branches, size)
    else:
        expect_rank(x, range(2, 65), "X")
        wide, (branches, size) = widen(x), x.shape[-2:]
    result = rms_normalize(wide, None, float(attributes.get("epsilon", 1e-5)))
    if scale is not None:
        expect_one_of_shapes(scale, [(branches * size,), (branches, size), (size,)], "scale")
        factors = scale if scale.shape == (size,) else scale.reshape(branches, size)
        result = result * widen(factors)
    return [result.reshape(x.shape).astype(x.dtype)]
