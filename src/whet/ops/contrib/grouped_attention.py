"""GroupQueryAttention: fewer key and value heads than query heads, a cache, rotary embedding, windows and sinks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.contrib.attention import merge_heads, score_scale, split_heads
from whet.ops.contrib.common import (
    Array,
    Attributes,
    Inputs,
    Outputs,
    expect_broadcast,
    expect_divisible,
    expect_rank,
    expect_shape,
    integer,
    optional,
    required,
    text,
    trim,
    whole,
    widen,
)
from whet.ops.contrib.norm import rms_normalize
from whet.ops.contrib.rotary import angles, rotate


@dataclass(frozen=True)
class _Lengths:
    """Per batch entry: rows in the cache before this call, and after it; `total` is their maximum."""

    before: list[int]
    after: list[int]
    total: int


def group_query_attention(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Output (B, S, hidden), present key and value (B, Nkv, capacity, H), and the scores that `qk_output` asks for.

    Rows of the present tensors past an entry's length are zero.
    """
    query = required(inputs, 0, "query")
    expect_rank(query, 3, "query")
    heads = integer(attributes, "num_heads", least=1)
    kv_heads = integer(attributes, "kv_num_heads", least=1)
    expect_divisible(heads, kv_heads, "num_heads", "kv_num_heads")
    if integer(attributes, "sliding_window_cache", 0):
        raise InvalidArgument("the cache layout of sliding_window_cache is not evaluated", found=1, expected=0)
    q, k, v = _split(query, optional(inputs, 1), optional(inputs, 2), heads, kv_heads)
    batch, _, sequence, head_size = q.shape
    past_key, past_value = _past(inputs, batch, kv_heads, head_size)
    capacity = 0 if past_key is None else past_key.shape[2]
    lengths = _lengths(inputs, batch, sequence, capacity, past_key is not None)

    if (norm := optional(inputs, 14)) is not None:
        q, k = _normalize_heads(q, k, norm, required(inputs, 15, "k_norm_weight"), attributes)
    if integer(attributes, "do_rotary", 0):
        q, k = _rotate(q, k, inputs, lengths, bool(integer(attributes, "rotary_interleaved", 0)))

    scales = (optional(inputs, 12), optional(inputs, 13))
    quantizers = [
        _CacheType(cache, scale, attributes, name)
        for cache, scale, name in zip((past_key, past_value), scales, ("k", "v"), strict=True)
    ]
    present = max(capacity, lengths.total)
    key = _append(past_key, k, lengths, present, quantizers[0])
    value = _append(past_value, v, lengths, present, quantizers[1])

    result, scores = _attend(
        q, quantizers[0].read(key, q.dtype), quantizers[1].read(value, q.dtype), lengths, inputs, attributes
    )
    dtype = query.dtype
    outputs: list[Array] = [
        result.astype(dtype),
        quantizers[0].stored(key, dtype),
        quantizers[1].stored(value, dtype),
        scores.astype(dtype),
    ]
    return trim(outputs, output_count)


def _split(
    query: Array, key: Array | None, value: Array | None, heads: int, kv_heads: int
) -> tuple[Array, Array, Array]:
    """Q, K, V as (B, N, S, H) from three tensors, or from one that holds them side by side."""
    if (key is None) != (value is None):
        raise InvalidArgument("key and value go together", value="key")
    if key is None or value is None:
        size = expect_divisible(query.shape[2], heads + 2 * kv_heads, "the last extent of packed QKV", "all heads")
        query, key, value = np.split(query, [heads * size, (heads + kv_heads) * size], axis=2)
    else:
        size = expect_divisible(query.shape[2], heads, "the last extent of query", "num_heads")
        expect_shape(key, (query.shape[0], query.shape[1], kv_heads * size), "key")
        expect_shape(value, key.shape, "value")
    return (
        split_heads(widen(query), heads, "query"),
        split_heads(widen(key), kv_heads, "key"),
        split_heads(widen(value), kv_heads, "value"),
    )


def _past(inputs: Inputs, batch: int, kv_heads: int, head_size: int) -> tuple[Array | None, Array | None]:
    key, value = optional(inputs, 3), optional(inputs, 4)
    if (key is None) != (value is None):
        raise InvalidArgument("past_key and past_value go together", value="past_key")
    if key is not None and value is not None:
        expect_shape(key, (batch, kv_heads, None, None), "past_key")
        expect_shape(value, key.shape, "past_value")
        packed = key.dtype == np.uint8
        if key.shape[3] != (head_size // 2 if packed else head_size):
            raise InvalidArgument(
                "past_key has the wrong head size", value="past_key", found=key.shape, expected=f"head size {head_size}"
            )
    return key, value


def _lengths(inputs: Inputs, batch: int, sequence: int, capacity: int, has_past: bool) -> _Lengths:
    given = required(inputs, 5, "seqlens_k")
    if given.size != batch:
        raise InvalidArgument("seqlens_k has the wrong shape", value="seqlens_k", found=given.shape, expected=(batch,))
    total = whole(required(inputs, 6, "total_sequence_length"), "total_sequence_length")
    if total < sequence:
        raise InvalidArgument(
            "total_sequence_length is shorter than the new tokens",
            value="total_sequence_length",
            found=total,
            expected=f">= {sequence}",
        )
    after = [int(length) + 1 for length in given.reshape(-1)]
    first_prompt = total == sequence
    before = [0 if first_prompt else length - sequence for length in after]
    for entry, (old, new) in enumerate(zip(before, after, strict=True)):
        if old < 0 or new < 1 or new > total or old > capacity:
            raise InvalidArgument(
                f"seqlens_k at position {entry} is out of range",
                value="seqlens_k",
                found=new - 1,
                expected=f"within [{0 if first_prompt else sequence - 1}, {total - 1}], past rows <= {capacity}",
            )
    if not has_past and not first_prompt:
        raise InvalidArgument("past_key is missing while decoding", value="past_key", found=None)
    return _Lengths(before, after, total)


def _normalize_heads(
    q: Array, k: Array, q_weight: Array, k_weight: Array, attributes: Attributes
) -> tuple[Array, Array]:
    expect_shape(q_weight, (q.shape[-1],), "q_norm_weight")
    expect_shape(k_weight, (q.shape[-1],), "k_norm_weight")
    epsilon = float(attributes.get("qk_norm_epsilon", 1e-6))
    return rms_normalize(q, widen(q_weight), epsilon), rms_normalize(k, widen(k_weight), epsilon)


def _rotate(q: Array, k: Array, inputs: Inputs, lengths: _Lengths, interleaved: bool) -> tuple[Array, Array]:
    cosine, sine = required(inputs, 7, "cos_cache"), required(inputs, 8, "sin_cache")
    expect_rank(cosine, 2, "cos_cache")
    expect_shape(sine, cosine.shape, "sin_cache")
    batch, _, sequence, head_size = q.shape
    if 2 * cosine.shape[1] > head_size:
        raise InvalidArgument(
            "cos_cache is wider than half a head",
            value="cos_cache",
            found=cosine.shape,
            expected=f"<= {head_size // 2}",
        )
    positions = optional(inputs, 9)
    if positions is None:
        rows = np.asarray(lengths.before)[:, None] + np.arange(sequence)
    elif lengths.total == sequence:  # the first prompt counts on from the first position alone
        if positions.size == 0:
            raise InvalidArgument("position_ids is empty", value="position_ids", found=positions.shape)
        rows = np.broadcast_to(int(positions.reshape(-1)[0]) + np.arange(sequence), (batch, sequence))
    else:
        expect_shape(positions, (batch, sequence), "position_ids")
        rows = positions
    turns = angles(cosine, rows, "position_ids"), angles(sine, rows, "position_ids")
    return rotate(q, *turns, interleaved), rotate(k, *turns, interleaved)


class _CacheType:
    """How one cache stores its rows: as floats, or as 8- or 4-bit integers with a scale."""

    def __init__(self, cache: Array | None, scale: Array | None, attributes: Attributes, name: str) -> None:
        self.mode = text(attributes, f"{name}_quant_type", "NONE", ("NONE", "PER_TENSOR", "PER_CHANNEL"))
        self.bits = integer(attributes, "kv_cache_bit_width", 0)
        self.scale = scale
        if self.mode == "NONE":
            return
        if scale is None:
            raise InvalidArgument(f"input {name}_scale is missing", value=f"{name}_scale", expected=self.mode)
        if cache is None or cache.dtype not in (np.int8, np.uint8) or self.bits not in (4, 8):
            found = None if cache is None else cache.dtype
            raise InvalidArgument(
                "a quantized cache is int8, or uint8 with 4 bits", found=found, expected="int8, uint8"
            )
        if (cache.dtype == np.uint8) != (self.bits == 4):
            raise InvalidArgument("attribute kv_cache_bit_width does not fit the cache", found=self.bits)

    @property
    def _peak(self) -> int:
        return 7 if self.bits == 4 else 127

    def rows(self, x: Array) -> Array:
        """New float rows (B, N, S, H) in the numbers that the cache keeps (unpacked where it has 4 bits)."""
        if self.mode == "NONE" or self.scale is None:
            return x
        return np.clip(np.rint(x / self._factor(x.shape)), -self._peak - 1, self._peak)

    def unpack(self, cache: Array) -> Array:
        """The kept numbers of a stored cache, as floats or small integers."""
        if self.mode == "NONE":
            return widen(cache)
        if self.bits == 8:
            return cache.astype(np.int16)
        halves = np.stack([cache & 15, cache >> 4], axis=-1).astype(np.int16) - 8
        return halves.reshape(*cache.shape[:-1], 2 * cache.shape[-1])

    def read(self, kept: Array, dtype: np.dtype[np.floating]) -> Array:
        """The float rows that kept numbers stand for."""
        return kept if self.mode == "NONE" else (kept * self._factor(kept.shape)).astype(dtype)

    def stored(self, kept: Array, dtype: np.dtype[np.floating]) -> Array:
        """Kept numbers in the cache's own type and packing."""
        if self.mode == "NONE":
            return kept.astype(dtype)
        if self.bits == 8:
            return kept.astype(np.int8)
        shifted = (kept + 8).astype(np.uint8)
        return shifted[..., 0::2] | (shifted[..., 1::2] << 4)

    def _factor(self, shape: tuple[int, ...]) -> Array:
        if self.scale is None:
            raise InvalidArgument("a quantized cache needs its scale")
        if self.scale.size == 1:
            return self.scale.reshape(())
        if self.scale.size == shape[1] * shape[3]:
            return self.scale.reshape(1, shape[1], 1, shape[3])
        raise InvalidArgument(
            "the cache scale has the wrong shape",
            found=self.scale.shape,
            expected=f"(1,) or (1, {shape[1]}, 1, {shape[3]})",
        )


def _append(past: Array | None, new: Array, lengths: _Lengths, capacity: int, kind: _CacheType) -> Array:
    rows = kind.rows(new)
    batch, heads, sequence, size = rows.shape
    result = np.zeros((batch, heads, capacity, size), dtype=rows.dtype)
    old = None if past is None else kind.unpack(past)
    for entry, start in enumerate(lengths.before):
        if old is not None:
            result[entry, :, :start] = old[entry, :, :start]
        result[entry, :, start : start + sequence] = rows[entry]
    return result


def _attend(
    q: Array, key: Array, value: Array, lengths: _Lengths, inputs: Inputs, attributes: Attributes
) -> tuple[Array, Array]:
    """The merged output, and the scores (B, N, S, total) before (`qk_output` 1) or after (2) the softmax."""
    batch, heads, sequence, head_size = q.shape
    group = heads // key.shape[1]
    scale = q.dtype.type(score_scale(attributes, head_size))
    softcap = float(attributes.get("softcap", 0.0))
    causal = bool(integer(attributes, "causal", 1, least=0, most=1))
    window = integer(attributes, "local_window_size", -1)
    bias, sink = optional(inputs, 10), optional(inputs, 11)
    if bias is not None:
        expect_rank(bias, 4, "attention_bias")
        expect_broadcast(bias[..., : lengths.total], (batch, heads, sequence, lengths.total), "attention_bias")
    if sink is not None:
        expect_shape(sink, (heads,), "head_sink")
    smooth = bool(integer(attributes, "smooth_softmax", 0))
    output = np.zeros((batch, heads, sequence, head_size), dtype=q.dtype)
    asked = integer(attributes, "qk_output", 0, least=0, most=2)
    shown = np.zeros((batch, heads, sequence, lengths.total), dtype=q.dtype)
    for entry, (old, new) in enumerate(zip(lengths.before, lengths.after, strict=True)):
        end = max(new, old + sequence) if lengths.total == sequence else new
        keys = np.repeat(key[entry, :, :end], group, axis=0)
        values = np.repeat(value[entry, :, :end], group, axis=0)
        scores = np.matmul(q[entry], keys.swapaxes(-1, -2)) * scale
        if softcap > 0:
            scores = softcap * np.tanh(scores / softcap)
        if bias is not None:
            lines = widen(bias)[entry if bias.shape[0] > 1 else 0]
            scores = scores + lines[..., :end]
        row, column = np.arange(old, old + sequence)[:, None], np.arange(end)
        seen = column <= row if causal else column < new
        if window > 0 and causal:
            seen = seen & (column > row - window)
        scores = np.where(seen, scores, -np.inf).astype(q.dtype)
        drain = np.full((heads, 1, 1), -np.inf, dtype=q.dtype)
        if sink is not None:
            drain = widen(sink).reshape(heads, 1, 1).astype(q.dtype)
        elif smooth:
            drain = np.zeros((heads, 1, 1), dtype=q.dtype)
        weights = _softmax_with_sink(scores, drain)
        output[entry] = np.matmul(weights, values)
        shown[entry, ..., :end] = weights if asked == 2 else np.where(seen, scores, 0)
    return merge_heads(output), shown


def _softmax_with_sink(scores: Array, drain: Array) -> Array:
    """exp(scores) / (exp(drain) + sum exp(scores)) along the last axis; minus infinity leaves an entry out."""
    peak = np.maximum(scores.max(axis=-1, keepdims=True, initial=-math.inf), drain)
    peak = np.where(np.isneginf(peak), 0, peak).astype(scores.dtype)
    powers = np.exp(scores - peak)
    total = powers.sum(axis=-1, keepdims=True) + np.exp(drain - peak)
    return np.asarray(powers / np.where(total == 0, 1, total), dtype=scores.dtype)
