"""Operators of recurrent and gated-delta language models."""

from __future__ import annotations

import numpy as np

from whet.ops.contrib.activation import sigmoid, silu, softplus
from whet.ops.contrib.common import (
    Attributes,
    Inputs,
    Outputs,
    expect_rank,
    expect_shape,
    integer,
    optional,
    required,
    text,
    trim,
    widen,
)


def linear_attention_gate(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """decay = decay_scale * softplus(a + dt_bias) and beta = sigmoid(b), all (B, T, H)."""
    a, bias, scale = (required(inputs, i, name) for i, name in enumerate(("a", "dt_bias", "decay_scale")))
    b = optional(inputs, 3)
    expect_rank(a, 3, "a")
    expect_shape(bias, (a.shape[2],), "dt_bias")
    expect_shape(scale, (a.shape[2],), "decay_scale")
    decay = (widen(scale) * softplus(widen(a) + widen(bias))).astype(a.dtype)
    if b is None:
        return [decay]
    expect_shape(b, a.shape, "b")
    return trim([decay, sigmoid(widen(b)).astype(b.dtype)], output_count)


def causal_conv_with_state(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Depthwise causal convolution of input (B, C, L) after the carried state: output, the state to carry on.

    Only one spatial axis, channels first, and the last state alone (state_window 0).
    """
    x, weight = required(inputs, 0, "input"), required(inputs, 1, "weight")
    bias, past = optional(inputs, 2), optional(inputs, 3)
    for name, only in (("ndim", 1), ("channels_last", 0), ("state_window", 0)):
        integer(attributes, name, only, least=only, most=only)
    activation = text(attributes, "activation", "none", ("none", "silu", "swish"))
    dilation = integer(attributes, "dilation", 1, least=1)
    expect_rank(x, 3, "input")
    batch, channels, length = x.shape
    expect_shape(weight, (channels, 1, None), "weight")
    taps = weight.shape[2]
    carried = (taps - 1) * dilation
    state = np.zeros((batch, channels, carried), dtype=x.dtype) if past is None else past
    expect_shape(state, (batch, channels, carried), "past_state")
    whole = np.concatenate([state, x], axis=2)
    result = np.zeros((batch, channels, length), dtype=widen(x).dtype)
    for tap in range(taps):
        result += widen(weight)[:, 0, tap, None] * widen(whole)[:, :, tap * dilation : tap * dilation + length]
    if bias is not None:
        expect_shape(bias, (channels,), "bias")
        result = result + widen(bias)[:, None]
    result = result if activation == "none" else silu(result)
    return trim([result.astype(x.dtype), whole[:, :, length:].copy()], output_count)
