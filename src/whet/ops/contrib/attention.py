"""Attention, MultiHeadAttention, DecoderMaskedMultiHeadAttention and QAttention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.contrib.activation import softmax
from whet.ops.contrib.common import (
    Array,
    Attributes,
    Inputs,
    Outputs,
    expect_broadcast,
    expect_divisible,
    expect_one_of_shapes,
    expect_rank,
    expect_shape,
    integer,
    optional,
    required,
    trim,
    whole,
    widen,
)
from whet.ops.contrib.rotary import rotate


@dataclass(frozen=True)
class AttentionResult:
    """Output (B, S, N * Hv), the scores before the softmax and after it (B, N, S, T)."""

    output: Array
    scores: Array
    probabilities: Array


def attend(query: Array, key: Array, value: Array, scale: float, bias: Array | None) -> AttentionResult:
    """softmax(scale Q K' + bias) V for Q (B, N, S, H), K (B, N, T, H), V (B, N, T, Hv)."""
    scores = np.matmul(query, np.swapaxes(key, -1, -2)) * query.dtype.type(scale)
    if bias is not None:
        scores = scores + bias
    probabilities = softmax(scores, -1)
    return AttentionResult(merge_heads(np.matmul(probabilities, value)), scores, probabilities)


def split_heads(x: Array, heads: int, name: str) -> Array:
    """(B, S, N * H) as (B, N, S, H)."""
    size = expect_divisible(x.shape[2], heads, f"the last extent of {name}", "num_heads")
    return x.reshape(x.shape[0], x.shape[1], heads, size).transpose(0, 2, 1, 3)


def merge_heads(x: Array) -> Array:
    """(B, N, S, H) as (B, S, N * H)."""
    batch, heads, sequence, size = x.shape
    return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(batch, sequence, heads * size)


def score_scale(attributes: Attributes, head_size: int) -> float:
    """The `scale` attribute; 1/sqrt(head_size) where it is absent or 0."""
    return float(attributes.get("scale", 0.0)) or 1.0 / math.sqrt(max(head_size, 1))


def mask_bias(
    mask: Array | None,
    attributes: Attributes,
    *,
    batch: int,
    sequence: int,
    past: int,
    total: int,
    dtype: np.dtype[np.floating],
) -> Array | None:
    """The additive form (B or 1, 1, S, T) of a padding mask merged with the causal one; None where neither is there.

    mask is raw, 1 for kept and 0 for masked: (B, T), (B, S, T), (B, 1, max, max) at row `past`; or it holds the end
    of each row's kept range (B,), or the ends and then the starts (2 * B,). Masked positions get `mask_filter_value`.
    """
    filter_value = float(attributes.get("mask_filter_value", -10000.0))
    merged = np.zeros((1, 1, 1, 1), dtype=dtype)
    if mask is not None:
        keep = _kept(mask, batch=batch, sequence=sequence, past=past, total=total)
        merged = np.where(keep, 0.0, filter_value).astype(dtype)
    if integer(attributes, "unidirectional", 0) and sequence > 1:
        future = np.arange(total) > np.arange(sequence)[:, None] + past
        merged = np.where(future, np.finfo(dtype).min, merged).astype(dtype)
    elif mask is None:
        return None
    return merged


def _kept(mask: Array, *, batch: int, sequence: int, past: int, total: int) -> Array:
    position = np.arange(total)
    if mask.ndim == 1 and mask.shape[0] == batch:
        return (position < mask[:, None])[:, None, None, :]
    if mask.ndim == 1 and mask.shape[0] == 2 * batch:
        ends, starts = mask[:batch, None], mask[batch:, None]
        return ((position < ends) & (position >= starts))[:, None, None, :]
    if mask.ndim == 4 and mask.shape[1] == 1 and mask.shape[2] >= past + sequence and mask.shape[3] >= total:
        expect_shape(mask, (batch, 1, None, None), "mask_index")
        return mask[:, :, past : past + sequence, :total] > 0
    raw = [(batch, total), (batch, sequence, total)]
    expect_one_of_shapes(mask, [(batch,), (2 * batch,), *raw, (batch, 1, past + sequence, total)], "mask_index")
    return (mask > 0).reshape(batch, 1, sequence if mask.ndim == 3 else 1, total)


def _add(first: Array | None, second: Array | None) -> Array | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _checked_bias(inputs: Inputs, index: int, scores: tuple[int, int, int, int]) -> Array | None:
    bias = optional(inputs, index)
    if bias is None:
        return None
    expect_rank(bias, 4, "attention_bias")
    expect_broadcast(bias, scores, "attention_bias")
    return widen(bias)


def attention(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Self-attention with its input projection: output (B, S, v_hidden) and present (2, B, N, T, H)."""
    x, weights, bias = required(inputs, 0, "input"), required(inputs, 1, "weights"), optional(inputs, 2)
    expect_rank(x, 3, "input")
    expect_shape(weights, (x.shape[2], None), "weights")
    projected = np.matmul(widen(x), widen(weights))
    if bias is not None:
        expect_shape(bias, (weights.shape[1],), "bias")
        projected = projected + widen(bias)
    if integer(attributes, "past_present_share_buffer", 0) and optional(inputs, 4) is not None:
        length = whole(required(inputs, 6, "past_sequence_length"), "past_sequence_length")
    else:
        length = None
    outputs = _project_and_attend(
        projected, attributes, mask=optional(inputs, 3), past=optional(inputs, 4), past_length=length,
        bias_inputs=(inputs, 5),
    )  # fmt: skip
    return trim([o.astype(x.dtype) for o in outputs], output_count)


def _project_and_attend(
    projected: Array,
    attributes: Attributes,
    *,
    mask: Array | None,
    past: Array | None,
    past_length: int | None,
    bias_inputs: tuple[Inputs, int],
) -> list[Array]:
    """Output and present from the projected Q, K, V side by side in (B, S, 2 * hidden + v_hidden)."""
    batch, sequence, width = projected.shape
    heads = integer(attributes, "num_heads", least=1)
    sizes = tuple(int(s) for s in attributes.get("qkv_hidden_sizes", ()))
    if not sizes:
        third = expect_divisible(width, 3, "the second extent of weights", "3 (Q, K and V)")
        sizes = (third, third, third)
    if len(sizes) != 3 or sizes[0] != sizes[1] or min(sizes) < 1 or sum(sizes) != width:
        raise InvalidArgument("attribute qkv_hidden_sizes does not fit", found=sizes, expected=f"q == k, sum {width}")
    query = split_heads(projected[..., : sizes[0]], heads, "Q")
    key = split_heads(projected[..., sizes[0] : 2 * sizes[0]], heads, "K")
    value = split_heads(projected[..., 2 * sizes[0] :], heads, "V")
    head_size = query.shape[-1]

    length = 0
    if past is not None:
        if value.shape[-1] != head_size:
            raise InvalidArgument("past needs equal hidden sizes of Q, K and V", found=sizes, expected="three equal")
        expect_shape(past, (2, batch, heads, None, head_size), "past")
        length = past.shape[3] if past_length is None else past_length
        needed = length if past_length is None else length + sequence
        if not 0 <= needed <= past.shape[3] or length < 0:
            raise InvalidArgument("past_sequence_length is out of range", found=length, expected=f"<= {past.shape[3]}")
    if integer(attributes, "do_rotary", 0):
        query, key = _rotate_by_position(query, key, length, attributes)
    if past is not None:
        wide = widen(past)[:, :, :, :length]
        key, value = np.concatenate([wide[0], key], axis=2), np.concatenate([wide[1], value], axis=2)
    total = key.shape[2]

    additive = mask_bias(
        mask, attributes, batch=batch, sequence=sequence, past=length, total=total, dtype=projected.dtype
    )
    inputs, index = bias_inputs
    additive = _add(_checked_bias(inputs, index, (batch, heads, sequence, total)), additive)
    result = attend(query, key, value, score_scale(attributes, head_size), additive)
    if value.shape[-1] != head_size:
        return [result.output]
    present = np.stack([key, value])
    if past is not None and past_length is not None:
        grown = widen(past).copy()
        grown[:, :, :, :total] = present
        present = grown
    return [result.output, present]


def _rotate_by_position(query: Array, key: Array, past: int, attributes: Attributes) -> tuple[Array, Array]:
    """Q and K turned by the angles of positions past, past + 1, ... with base 10000 (Su et al., 2021)."""
    head_size = query.shape[-1]
    size = integer(attributes, "rotary_embedding_dim", 0, least=0) or head_size
    if size % 2 or size > head_size:
        raise InvalidArgument(
            "attribute rotary_embedding_dim does not fit", found=size, expected=f"even, <= {head_size}"
        )
    rates = 10000.0 ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    angle = (past + np.arange(query.shape[2]))[:, None] * rates
    cosine, sine = np.cos(angle).astype(query.dtype)[None], np.sin(angle).astype(query.dtype)[None]
    return rotate(query, cosine, sine, False), rotate(key, cosine, sine, False)


def quantized_attention(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Attention whose input and weights are 8-bit: output (B, S, hidden) and present (2, B, N, T, H)."""
    x, weights, bias = required(inputs, 0, "input"), required(inputs, 1, "weight"), required(inputs, 2, "bias")
    x_scale, w_scale = required(inputs, 3, "input_scale"), required(inputs, 4, "weight_scale")
    expect_rank(x, 3, "input")
    expect_shape(weights, (x.shape[2], None), "weight")
    columns = weights.shape[1]
    expect_shape(bias, (columns,), "bias")
    expect_one_of_shapes(x_scale, [(), (1,)], "input_scale")
    expect_one_of_shapes(w_scale, [(), (1,), (columns,)], "weight_scale")
    centred = x.astype(np.int64) - _zero_point(inputs, 6, 1, "input_zero_point")
    centred_weights = weights.astype(np.int64) - _zero_point(inputs, 7, columns, "weight_zero_point")
    # int64 products in float64: exact, since 8-bit sums stay far below 2**53, and much faster than integer matmul
    products = np.matmul(centred.astype(np.float64), centred_weights.astype(np.float64))
    projected = products.astype(bias.dtype) * (x_scale.reshape(-1) * w_scale.reshape(-1)) + bias
    outputs = _project_and_attend(
        projected, attributes, mask=optional(inputs, 5), past=optional(inputs, 8), past_length=None,
        bias_inputs=((), 0),
    )  # fmt: skip
    return trim(outputs, output_count)


def _zero_point(inputs: Inputs, index: int, columns: int, name: str) -> Array:
    zero = optional(inputs, index)
    if zero is None:
        return np.zeros((1,), dtype=np.int64)
    expect_one_of_shapes(zero, [(), (1,), (columns,)], name)
    return zero.astype(np.int64)


def multi_head_attention(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Attention of projected Q, K, V: output, present key, present value, scaled scores before the softmax."""
    query = required(inputs, 0, "query")
    heads = integer(attributes, "num_heads", least=1)
    q, k, v, cross = _heads_of(query, optional(inputs, 1), optional(inputs, 2), optional(inputs, 3), heads)
    return _cached_attention(
        inputs, attributes, query, q, k, v,
        past_key=6, past_value=7, past_length=8, indirection=9, mask=4, bias=5, cross=cross,
        output_count=output_count,
    )  # fmt: skip


def _heads_of(
    query: Array, key: Array | None, value: Array | None, bias: Array | None, heads: int
) -> tuple[Array, Array, Array, bool]:
    """Q, K, V as (B, N, S, H) with their bias added, and whether K and V came already split (cross attention)."""
    expect_rank(query, (3, 5), "query")
    cross = False
    if query.ndim == 5:
        if key is not None or value is not None:
            raise InvalidArgument("packed QKV leaves out key and value", value="key", found="present")
        expect_shape(query, (None, None, heads, 3, None), "query")
        q, k, v = (widen(query)[:, :, :, part].transpose(0, 2, 1, 3) for part in range(3))
    elif key is None:
        raise InvalidArgument("input 1 (key) is missing", value="key")
    elif key.ndim == 5:
        if value is not None:
            raise InvalidArgument("packed KV leaves out value", value="value", found="present")
        expect_shape(key, (query.shape[0], None, heads, 2, query.shape[2] // heads), "key")
        q = split_heads(widen(query), heads, "query")
        k, v = (widen(key)[:, :, :, part].transpose(0, 2, 1, 3) for part in range(2))
    else:
        if value is None:
            raise InvalidArgument("input 2 (value) is missing", value="value")
        q = split_heads(widen(query), heads, "query")
        expect_rank(key, (3, 4), "key")
        if key.ndim == 4:
            cross = True
            expect_shape(key, (query.shape[0], heads, None, q.shape[-1]), "key")
            expect_shape(value, (query.shape[0], heads, key.shape[2], None), "value")
            k, v = widen(key), widen(value)
        else:
            expect_shape(key, (query.shape[0], None, query.shape[2]), "key")
            expect_shape(value, (query.shape[0], key.shape[1], None), "value")
            k, v = split_heads(widen(key), heads, "key"), split_heads(widen(value), heads, "value")
    if bias is None:
        return q, k, v, cross
    sizes = [heads * part.shape[-1] for part in (q, k, v)]
    expect_shape(bias, (sum(sizes),), "bias")
    parts = np.split(widen(bias), [sizes[0], sizes[0] + sizes[1]])
    lifted = [part.reshape(1, heads, 1, -1) for part in parts]
    return (q + lifted[0], k, v, True) if cross else (q + lifted[0], k + lifted[1], v + lifted[2], False)


def _cached_attention(
    inputs: Inputs,
    attributes: Attributes,
    original: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    past_key: int,
    past_value: int,
    past_length: int,
    indirection: int,
    mask: int,
    bias: int,
    cross: bool,
    output_count: int,
) -> Outputs:
    """Attend over past and new keys and values; the keyword integers are input numbers."""
    batch, heads, sequence, head_size = q.shape
    old_key, old_value = optional(inputs, past_key), optional(inputs, past_value)
    if (old_key is None) != (old_value is None):
        raise InvalidArgument("past_key and past_value go together", value="past_key")
    length, capacity = 0, None
    if old_key is not None and old_value is not None:
        if cross:
            raise InvalidArgument("past_key does not go with keys that are split already", value="past_key")
        expect_shape(old_key, (batch, heads, None, head_size), "past_key")
        expect_shape(old_value, (batch, heads, old_key.shape[2], v.shape[-1]), "past_value")
        length = old_key.shape[2]
        given = optional(inputs, past_length)
        if given is not None:  # the past lies in a buffer that has room for the new rows
            capacity, length = length, whole(given, "past_sequence_length")
            if length < 0 or length + k.shape[2] > capacity:
                raise InvalidArgument(
                    "past_sequence_length is out of range",
                    value="past_sequence_length",
                    found=length,
                    expected=f"within [0, {capacity - k.shape[2]}]",
                )
        k = np.concatenate([widen(old_key)[:, :, :length], k], axis=2)
        v = np.concatenate([widen(old_value)[:, :, :length], v], axis=2)
    total = k.shape[2]
    seen_key, seen_value = _reordered(optional(inputs, indirection), k, v, length)
    additive = _add(
        _checked_bias(inputs, bias, (batch, heads, sequence, total)),
        mask_bias(
            optional(inputs, mask), attributes, batch=batch, sequence=sequence, past=length, total=total, dtype=q.dtype
        ),
    )
    result = attend(q, seen_key, seen_value, score_scale(attributes, head_size), additive)
    if capacity is not None and old_key is not None and old_value is not None:
        grown_key, grown_value = widen(old_key).copy(), widen(old_value).copy()
        grown_key[:, :, :total], grown_value[:, :, :total] = k, v
        k, v = grown_key, grown_value
    dtype = original.dtype
    outputs = [result.output, np.ascontiguousarray(k), np.ascontiguousarray(v), result.scores]
    return trim([o.astype(dtype) for o in outputs], output_count)


def _reordered(indirection: Array | None, key: Array, value: Array, past: int) -> tuple[Array, Array]:
    """Past keys and values as each beam sees them: entry (b, j, t) names the beam that row t came from."""
    if indirection is None or past == 0:
        return key, value
    expect_rank(indirection, 3, "cache_indirection")
    groups, beams, _ = indirection.shape
    if groups * beams != key.shape[0] or indirection.shape[2] < past:
        raise InvalidArgument(
            "cache_indirection has the wrong shape",
            value="cache_indirection",
            found=indirection.shape,
            expected=f"batch * beams == {key.shape[0]}, at least {past} positions",
        )
    source = indirection[:, :, :past].astype(np.int64)
    if (source < 0).any() or (source >= beams).any():
        raise InvalidArgument(
            "cache_indirection names a beam that is not there",
            value="cache_indirection",
            found=int(source.min()) if (source < 0).any() else int(source.max()),
            expected=f"within [0, {beams})",
        )
    rows = (source + np.arange(groups)[:, None, None] * beams).reshape(groups * beams, past)
    seen_key, seen_value = key.copy(), value.copy()
    for row in range(groups * beams):
        seen_key[row, :, :past] = key[rows[row], :, np.arange(past)].swapaxes(0, 1)
        seen_value[row, :, :past] = value[rows[row], :, np.arange(past)].swapaxes(0, 1)
    return seen_key, seen_value


def decoder_masked_multi_head_attention(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """MultiHeadAttention for one new token (sequence length 1): output, present key, present value, scores."""
    query, key, value = required(inputs, 0, "query"), optional(inputs, 1), optional(inputs, 2)
    heads = integer(attributes, "num_heads", least=1)
    expect_shape(query, (None, 1, None), "query")
    if key is None:
        third = expect_divisible(query.shape[2], 3, "the last extent of query", "3 (Q, K and V)")
        query, key, value = (query[..., i * third : (i + 1) * third] for i in range(3))
    q, k, v, cross = _heads_of(query, key, value, optional(inputs, 10), heads)
    return _cached_attention(
        inputs, attributes, query, q, k, v,
        past_key=5, past_value=6, past_length=7, indirection=9, mask=3, bias=4, cross=cross,
        output_count=output_count,
    )  # fmt: skip
