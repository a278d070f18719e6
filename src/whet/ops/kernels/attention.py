"""Attention(25) and RotaryEmbedding(23)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.base import Kernel
from whet.ops.contrib.common import Array, Attributes, Inputs, Outputs, expect_divisible, integer, optional, required
from whet.ops.kernels.common import back, working
from whet.ops.kernels.quantize import element_type
from whet.ops.kernels.reduce import row_sum

_SCORE_BYTES = 64 << 20
"""Scores of a group of heads take at most about this much, unless they are an output."""


@dataclass(frozen=True, slots=True)
class _Heads:
    """Query (B, N, S, H), key (B, K, T, H), value (B, K, T, Hv), past included; `offset` of the queries in the keys."""

    query: Array
    key: Array
    value: Array
    present_key: Array
    present_value: Array
    offset: Any


def _split(x: Array, heads: int, name: str) -> Array:
    size = expect_divisible(x.shape[2], heads, f"the last extent of {name}", "its number of heads")
    return x.reshape(x.shape[0], x.shape[1], heads, size).transpose(0, 2, 1, 3)


def _heads(inputs: Inputs, attributes: Attributes) -> _Heads:
    q, k, v = required(inputs, 0, "Q"), required(inputs, 1, "K"), required(inputs, 2, "V")
    past_key, past_value, lengths = optional(inputs, 4), optional(inputs, 5), optional(inputs, 6)
    if not (q.ndim == k.ndim == v.ndim) or q.ndim not in (3, 4):
        raise InvalidArgument(
            "Q, K and V must have one rank, 3 or 4", value="Q", found=f"{q.shape}, {k.shape}, {v.shape}"
        )
    if q.ndim == 3:
        heads = integer(attributes, "q_num_heads", least=1)
        kv_heads = integer(attributes, "kv_num_heads", least=1)
        q, k, v = _split(q, heads, "Q"), _split(k, kv_heads, "K"), _split(v, kv_heads, "V")
    if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise InvalidArgument(
            "the shapes of Q, K and V do not fit", value="K", found=f"{q.shape}, {k.shape}, {v.shape}"
        )
    expect_divisible(q.shape[1], k.shape[1], "the number of query heads", "the number of key heads")
    if (past_key is None) != (past_value is None):
        raise InvalidArgument("past_key and past_value come together", value="past_value")
    offset: Any = 0
    if past_key is not None and past_value is not None:
        if lengths is not None:
            raise InvalidArgument("nonpad_kv_seqlen and a past exclude each other", value="nonpad_kv_seqlen")
        k, v = np.concatenate((past_key, k), axis=2), np.concatenate((past_value, v), axis=2)
        offset = past_key.shape[2]
    elif lengths is not None:
        offset = (lengths.reshape(-1) - q.shape[2]).reshape(-1, 1, 1, 1)
    return _Heads(q, k, v, k, v, offset)


def _bias(inputs: Inputs, attributes: Attributes, h: _Heads) -> Array | None:
    """All masks together as an addend that broadcasts to (B, N, S, T), or None where there is none."""
    kind = h.query.dtype
    total, rows = h.key.shape[2], h.query.shape[2]
    mask = optional(inputs, 3)
    bias: Array | None = None
    if mask is not None:
        missing = total - mask.shape[-1]
        if missing < 0:
            raise InvalidArgument(
                "attn_mask is longer than the keys", value="attn_mask", found=mask.shape, expected=f"(..., {total})"
            )
        if mask.dtype == np.bool_:
            mask = np.where(mask, kind.type(0), kind.type(-np.inf))
        if missing:
            mask = np.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, missing)], constant_values=-np.inf)
        bias = mask.astype(kind, copy=False)
    keep: Array | None = None
    distance = np.arange(rows)[:, None] + h.offset - np.arange(total)
    left, right = int(attributes.get("left_window_size", -1)), int(attributes.get("right_window_size", -1))
    if left < -1 or right < -1:
        raise InvalidArgument("a window size is negative", found=min(left, right), expected="-1 or more")
    conditions = []
    if integer(attributes, "is_causal", 0):
        conditions.append(distance >= 0)
    if left >= 0:
        conditions.append(distance <= left)
    if right >= 0:
        conditions.append(-distance <= right)
    lengths = optional(inputs, 6)
    if lengths is not None:
        conditions.append(np.arange(total) < lengths.reshape(-1, 1, 1, 1))
    for condition in conditions:
        keep = condition if keep is None else keep & condition
    if keep is None:
        return bias
    masked: Array = np.where(keep, kind.type(0), kind.type(-np.inf))
    return masked if bias is None else np.add(bias, masked)


def attention(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Attention(25): a row whose keys are all masked gives zeros."""
    h = _heads(inputs, attributes)
    given = h.query.dtype
    bias = _bias(inputs, attributes, h)
    batch, heads, rows, size = h.query.shape
    groups, total = h.key.shape[1], h.key.shape[2]
    scale = attributes.get("scale")
    # The scale goes half to the queries and half to the keys, each rounded to their type, as the function body does.
    root = given.type(math.sqrt(1 / math.sqrt(max(size, 1)) if scale is None else float(scale)))
    precision = attributes.get("softmax_precision")
    kind = given if precision is None else element_type(precision, "softmax_precision")
    mode = integer(attributes, "qk_matmul_output_mode", 0, least=0, most=3)
    softcap = float(attributes.get("softcap", 0.0))
    want_scores = output_count > 3
    query, key = working(h.query * root), working(h.key * root)
    value = working(h.value)
    output = np.empty((batch, heads, rows, value.shape[3]), given)
    scores_out = np.empty((batch, heads, rows, total), given) if want_scores else None
    each = heads // groups
    if bias is not None:
        try:
            bias = np.broadcast_to(bias, (batch, heads, rows, total))
        except ValueError as error:
            raise InvalidArgument(
                "the mask does not broadcast", value="attn_mask", found=bias.shape,
                expected=f"broadcastable to {(batch, heads, rows, total)}",
            ) from error  # fmt: skip
    step = max(_SCORE_BYTES // max(each * rows * total * query.itemsize, 1), 1)
    for b in range(batch):
        for start in range(0, groups, step):
            part = slice(start, min(start + step, groups))
            hs = slice(part.start * each, part.stop * each)
            count = part.stop - part.start
            q = query[b, hs].reshape(count, each, rows, size)
            scores = np.matmul(q, key[b, part, None].swapaxes(-1, -2))
            scores = back(scores.reshape(count * each, rows, total), given)
            exposed = scores if want_scores and mode == 0 else None
            if softcap > 0:
                cap = given.type(softcap)
                scores = np.tanh(scores / cap) * cap
            exposed = scores if want_scores and mode == 1 else exposed
            dead: Array | None = None
            if bias is not None:
                addend = bias[b, hs]
                scores = scores + addend
                dead = np.isneginf(addend.max(axis=-1, keepdims=True)) if total else None
            exposed = scores if want_scores and mode == 2 else exposed
            weights = back(_softmax(scores.astype(kind, copy=False), dead), given)
            exposed = weights if want_scores and mode == 3 else exposed
            if scores_out is not None:
                scores_out[b, hs] = exposed
            grouped = working(weights).reshape(count, each, rows, total)
            output[b, hs] = np.matmul(grouped, value[b, part, None]).reshape(count * each, rows, value.shape[3])
    result: Array = output
    if required(inputs, 0, "Q").ndim == 3:
        result = output.transpose(0, 2, 1, 3).reshape(batch, rows, output.shape[1] * output.shape[3])
    return [result, h.present_key, h.present_value, scores_out][: max(output_count, 1)]


def _softmax(scores: Array, dead: Array | None) -> Array:
    if not scores.shape[-1]:
        return scores
    kind = scores.dtype.type
    top = scores.max(axis=-1, keepdims=True)
    y: Array = scores - np.where(np.isneginf(top), kind(0), top)
    np.exp(y, out=y)
    total = row_sum(y, -1)
    y /= np.where(total == 0, kind(1), total)
    return y if dead is None else np.where(dead, y.dtype.type(0), y)


def rotary_embedding(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """RotaryEmbedding(23): pairs of each head's first `rotary_embedding_dim` elements, turned by an angle."""
    given = required(inputs, 0, "X")
    cos, sin = required(inputs, 1, "cos_cache"), required(inputs, 2, "sin_cache")
    positions = optional(inputs, 3)
    if given.ndim == 3:
        heads = integer(attributes, "num_heads", least=1)
        size = expect_divisible(given.shape[2], heads, "the last extent of X", "num_heads")
        x = given.reshape(given.shape[0], given.shape[1], heads, size)
    elif given.ndim == 4:
        x = given.transpose(0, 2, 1, 3)
    else:
        raise InvalidArgument("X must have 3 or 4 dimensions", value="X", found=given.shape)
    turned = int(attributes.get("rotary_embedding_dim", 0)) or x.shape[3]
    half = expect_divisible(turned, 2, "the rotated extent", "2")
    if positions is not None:
        low, high = (int(positions.min()), int(positions.max())) if positions.size else (0, 0)
        if low < -cos.shape[0] or high >= cos.shape[0]:
            raise InvalidArgument(
                "a position is out of range", value="position_ids", found=low if low < 0 else high,
                expected=f"[0, {cos.shape[0]})",
            )  # fmt: skip
        cos, sin = cos[positions], sin[positions]
    if cos.shape != (*x.shape[:2], half) or sin.shape != cos.shape:
        raise InvalidArgument(
            "the caches do not fit X", value="cos_cache", found=f"{cos.shape}, {sin.shape}",
            expected=(*x.shape[:2], half),
        )  # fmt: skip
    cos, sin = cos[:, :, None], sin[:, :, None]
    result = x.copy()
    if integer(attributes, "interleaved", 0):
        first, second = x[..., 0:turned:2], x[..., 1:turned:2]
        result[..., 0:turned:2] = cos * first - sin * second
        result[..., 1:turned:2] = sin * first + cos * second
    else:
        first, second = x[..., :half], x[..., half:turned]
        result[..., :half] = cos * first - sin * second
        result[..., half:turned] = sin * first + cos * second
    return [result.reshape(given.shape) if given.ndim == 3 else result.transpose(0, 2, 1, 3)]


ATTENTION: dict[str, Kernel] = {
    "Attention": attention,
    "RotaryEmbedding": rotary_embedding,
}
