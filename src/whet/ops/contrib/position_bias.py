"""Relative position biases: T5's buckets, and the gated form of WavLM."""

from __future__ import annotations

import math

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.contrib.activation import sigmoid
from whet.ops.contrib.attention import split_heads
from whet.ops.contrib.common import (
    Attributes,
    Inputs,
    Outputs,
    expect_allocatable,
    expect_divisible,
    expect_rank,
    expect_shape,
    integer,
    optional,
    required,
    whole,
    widen,
)


def relative_position_bias(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """bias_table (buckets, heads) at the bucket of key - query position: (1, heads, query, key) (Raffel, 2020)."""
    table = required(inputs, 0, "bias_table")
    expect_rank(table, 2, "bias_table")
    query, key = (whole(required(inputs, i, n), n) for i, n in ((1, "query_length"), (2, "key_length")))
    furthest = integer(attributes, "max_distance", least=2)
    if query < 0 or key < 0:
        raise InvalidArgument("query_length and key_length must not be negative", found=(query, key))
    expect_allocatable((table.shape[1], query, key), np.dtype(np.int64), "the bias")
    buckets = table.shape[0]
    relative = np.arange(key) - np.arange(query)[:, None]
    start = np.zeros_like(relative)
    if integer(attributes, "is_bidirectional", 0):
        buckets //= 2
        start = np.where(relative > 0, buckets, 0)
        distance = np.abs(relative)
    else:
        distance = np.maximum(-relative, 0)
    exact = buckets // 2
    if exact < 1 or furthest <= exact:
        raise InvalidArgument(
            "bias_table has too few buckets", value="bias_table", found=table.shape, expected=furthest
        )
    # T5 computes the logarithm in float32; so do all that follow it, bucket borders included
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(math.log(furthest / exact)) * np.float32(buckets - exact)
    far = np.minimum(exact + steps.astype(np.int64), buckets - 1)
    bucket = start + np.where(distance < exact, distance, far)
    return [np.ascontiguousarray(table[bucket].transpose(2, 0, 1)[None])]


def gated_relative_position_bias(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """rel_pos (1, N, S, S) scaled by a gate computed from the query: (B, N, S, S); Chen et al., WavLM, 2022."""
    names = ("query_layer", "query_bias", "rel_pos", "weight", "bias", "eco_a")
    query, query_bias, positions, weight, bias, eco = (required(inputs, i, name) for i, name in enumerate(names))
    heads = integer(attributes, "num_heads", least=1)
    if optional(inputs, 6) is not None:
        raise InvalidArgument(
            "token_offset (packed tokens) is not evaluated", value="token_offset", expected="left out"
        )
    expect_rank(query, 3, "query_layer")
    batch, sequence, hidden = query.shape
    size = expect_divisible(hidden, heads, "the hidden size", "num_heads")
    expect_shape(query_bias, (hidden,), "query_bias")
    expect_shape(positions, (1, heads, sequence, sequence), "rel_pos")
    expect_shape(weight, (size, None), "weight")
    width = weight.shape[1]
    half = expect_divisible(width, 2, "the second extent of weight", "2")
    expect_shape(bias, (width,), "bias")
    expect_shape(eco, (1, heads, 1, 1), "eco_a")
    layer = split_heads(widen(query) + widen(query_bias), heads, "query_layer")
    projected = np.matmul(layer, widen(weight)) + widen(bias)
    gates = sigmoid(projected.reshape(batch, heads, sequence, 2, half).sum(axis=-1))
    gate_u, gate_r = gates[..., :1], gates[..., 1:]
    return [((gate_u * (gate_r * widen(eco) - 1) + 2) * widen(positions)).astype(query.dtype)]
