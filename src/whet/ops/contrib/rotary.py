"""Rotary position embeddings (Su et al., RoFormer, 2021) in the forms that the contrib operators take."""

from __future__ import annotations

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.contrib.common import (
    Array,
    Attributes,
    Inputs,
    Outputs,
    expect_divisible,
    expect_rank,
    expect_shape,
    indices_within,
    integer,
    required,
    widen,
)


def rotate(x: Array, cosine: Array, sine: Array, interleaved: bool) -> Array:
    """Rotate the leading 2 * R elements of each row of x (B, N, S, H) by angles (B, S, R); the others pass through.

    Pairs are (i, i + R), or neighbours where `interleaved`.
    """
    half = cosine.shape[-1]
    cosine, sine = cosine[:, None], sine[:, None]
    result = x.copy()
    if interleaved:
        real, imaginary = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
        result[..., 0 : 2 * half : 2] = real * cosine - imaginary * sine
        result[..., 1 : 2 * half : 2] = imaginary * cosine + real * sine
    else:
        real, imaginary = x[..., :half], x[..., half : 2 * half]
        result[..., :half] = real * cosine - imaginary * sine
        result[..., half : 2 * half] = imaginary * cosine + real * sine
    return result


def angles(cache: Array, positions: Array, name: str) -> Array:
    """Rows of the (max_sequence, R) cache at `positions`, each checked."""
    return widen(cache)[indices_within(positions, cache.shape[0], name)]


def _as_heads(x: Array, half: int, attributes: Attributes) -> tuple[Array, int]:
    """x as (B, N, S, H), and the number of rotated elements of a head."""
    heads = integer(attributes, "num_heads", 0, least=0)
    rotary = integer(attributes, "rotary_embedding_dim", 0, least=0)
    expect_rank(x, (3, 4), "input")
    if x.ndim == 4:
        head_size = x.shape[3]
        split = x
    else:
        if rotary and not heads:
            raise InvalidArgument("attribute num_heads is needed with rotary_embedding_dim", found=0, expected=">= 1")
        if heads:
            head_size = expect_divisible(x.shape[2], heads, "the hidden size", "num_heads")
        else:
            head_size = 2 * half
            heads = expect_divisible(x.shape[2], head_size, "the hidden size", "the head size of the cache")
        split = x.reshape(*x.shape[:2], heads, head_size).transpose(0, 2, 1, 3)
    rotary = rotary or head_size
    if rotary > head_size:
        raise InvalidArgument("rotary_embedding_dim exceeds the head size", found=rotary, expected=f"<= {head_size}")
    if rotary != 2 * half:
        raise InvalidArgument(
            "cos_cache does not fit the rotated part of a head",
            value="cos_cache",
            found=f"last extent {half}",
            expected=f"{rotary // 2}",
        )
    return split, rotary


def _merge_heads(x: Array, like: Array) -> Array:
    return x.astype(like.dtype) if like.ndim == 4 else x.transpose(0, 2, 1, 3).reshape(like.shape).astype(like.dtype)


def _caches(inputs: Inputs) -> tuple[Array, Array]:
    cosine, sine = required(inputs, 2, "cos_cache"), required(inputs, 3, "sin_cache")
    expect_rank(cosine, 2, "cos_cache")
    expect_shape(sine, cosine.shape, "sin_cache")
    return cosine, sine


def rotary_embedding(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Rotate input (B, S, hidden) or (B, N, S, H) at position_ids: (B, S), or (1,), the first row's position."""
    x, positions = required(inputs, 0, "input"), required(inputs, 1, "position_ids")
    cosine, sine = _caches(inputs)
    split, _ = _as_heads(x, cosine.shape[1], attributes)
    batch, _, sequence, _ = split.shape
    if positions.size == 1 and positions.ndim <= 1:
        rows = np.broadcast_to(int(positions.reshape(())) + np.arange(sequence, dtype=np.int64), (batch, sequence))
    else:
        expect_shape(positions, (batch, sequence), "position_ids")
        rows = positions
    interleaved = bool(integer(attributes, "interleaved", 0, least=0, most=1))
    turned = rotate(widen(split), angles(cosine, rows, "position_ids"), angles(sine, rows, "position_ids"), interleaved)
    return [_merge_heads(turned, x)]


def multimodal_rotary_embedding(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """RotaryEmbedding whose angles come from three position streams (3, B, S): time, height, width."""
    x, positions = required(inputs, 0, "input"), required(inputs, 1, "position_ids")
    cosine, sine = _caches(inputs)
    split, rotary = _as_heads(x, cosine.shape[1], attributes)
    half = rotary // 2
    batch, _, sequence, _ = split.shape
    expect_shape(positions, (3, batch, sequence), "position_ids")
    sections = tuple(int(s) for s in attributes.get("mrope_section", ()))
    if len(sections) != 3 or min(sections) < 0 or sum(sections) != half:
        raise InvalidArgument(
            "attribute mrope_section does not divide the rotated half", found=sections, expected=f"3 summing to {half}"
        )
    layout = integer(attributes, "mrope_layout", 0, least=0, most=1)
    column = np.arange(half)
    if layout == 0:
        stream = np.repeat(np.arange(3), sections)
    else:
        stream = np.where((column % 3 == 1) & (column < 3 * sections[1]), 1, 0)
        stream = np.where((column % 3 == 2) & (column < 3 * sections[2]), 2, stream)
    rows = np.moveaxis(indices_within(positions, cosine.shape[0], "position_ids")[stream], 0, -1)
    interleaved = bool(integer(attributes, "interleaved", 0, least=0, most=1))
    return [_merge_heads(rotate(widen(split), widen(cosine)[rows, column], widen(sine)[rows, column], interleaved), x)]


def gemma_rotary_embedding(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """q cos(emb) + q_rot sin(emb), and the same for k; emb (B, S, D), the others (B, N, S, D)."""
    emb, q, q_rot, k, k_rot = (required(inputs, i, name) for i, name in enumerate(("emb", "q", "q_rot", "k", "k_rot")))
    expect_rank(emb, 3, "emb")
    batch, sequence, size = emb.shape
    expect_shape(q, (batch, None, sequence, size), "q")
    expect_shape(q_rot, q.shape, "q_rot")
    expect_shape(k, (batch, None, sequence, size), "k")
    expect_shape(k_rot, k.shape, "k_rot")
    cosine, sine = np.cos(emb)[:, None].astype(q.dtype), np.sin(emb)[:, None].astype(q.dtype)
    return [q * cosine + q_rot * sine, k * cosine + k_rot * sine]
