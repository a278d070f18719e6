"""Operators that move, pick, pad or count elements."""

from __future__ import annotations

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.contrib.common import (
    Array,
    Attributes,
    Inputs,
    Outputs,
    axis_within,
    expect_allocatable,
    expect_rank,
    expect_shape,
    indices_within,
    integer,
    optional,
    required,
    scalar,
    text,
    trim,
    whole,
)


def trilu(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The upper (`upper` 1) or lower triangle of each matrix from diagonal k on; zeros elsewhere."""
    x, k = required(inputs, 0, "X"), optional(inputs, 1)
    expect_rank(x, range(2, 65), "X")
    diagonal = 0 if k is None else whole(k, "k")
    row, column = np.arange(x.shape[-2])[:, None], np.arange(x.shape[-1])
    kept = column - row >= diagonal if integer(attributes, "upper", 1) else column - row <= diagonal
    return [np.where(kept, x, np.zeros((), dtype=x.dtype))]


def expand_dims(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """X with an axis of extent 1 inserted."""
    x = required(inputs, 0, "X")
    axis = whole(required(inputs, 1, "axis"), "axis")
    return [np.expand_dims(x, axis_within(axis, x.ndim + 1))]


def pad(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """data padded (or cropped, where negative) at both ends of every axis: constant, reflect or edge."""
    data, amounts, value = required(inputs, 0, "data"), required(inputs, 1, "pads"), optional(inputs, 2)
    mode = text(attributes, "mode", "constant", ("constant", "reflect", "edge"))
    if amounts.shape not in ((2 * data.ndim,), (1, 2 * data.ndim)):
        raise InvalidArgument("pads has the wrong shape", value="pads", found=amounts.shape, expected=(2 * data.ndim,))
    sizes = [int(a) for a in amounts.reshape(-1)]
    pairs = list(zip(sizes[: data.ndim], sizes[data.ndim :], strict=True))
    for axis, (begin, end) in enumerate(pairs):
        if data.shape[axis] + min(begin, 0) + min(end, 0) < 0:
            raise InvalidArgument(
                "pads crops more than there is", value="pads", found=(begin, end), expected=f"axis {axis}"
            )
    cropped = data[tuple(slice(max(-b, 0), size - max(-e, 0)) for (b, e), size in zip(pairs, data.shape, strict=True))]
    widths = [(max(b, 0), max(e, 0)) for b, e in pairs]
    if mode == "constant":
        fill = 0 if value is None else scalar(value, "value")
        return [np.pad(cropped, widths, constant_values=fill)]
    for axis, (begin, end) in enumerate(widths):
        least = 1 if mode == "edge" else max(begin, end) + 1
        if (begin or end) and cropped.shape[axis] < least:
            raise InvalidArgument(
                f"axis {axis} is too short to pad", value="data", found=cropped.shape[axis], expected=f">= {least}"
            )
    return [np.pad(cropped, widths, mode="reflect" if mode == "reflect" else "edge")]


def unique(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The distinct values of a vector in order of appearance, the index of each element in them, their counts."""
    x = required(inputs, 0, "x")
    expect_rank(x, 1, "x")
    _, first, inverse, counts = np.unique(x, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    return trim(
        [x[first[order]], rank[inverse.reshape(-1)].astype(np.int64), counts[order].astype(np.int64)], output_count
    )


def range_kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """start, start + delta, ... up to but not including limit."""
    start, limit = required(inputs, 0, "start"), required(inputs, 1, "limit")
    given = optional(inputs, 2)
    begin, end = scalar(start, "start"), scalar(limit, "limit")
    step = start.dtype.type(1) if given is None else scalar(given, "delta")
    if step == 0:
        raise InvalidArgument("delta must not be 0", value="delta", found=0)
    distance = float(end) - float(begin) if start.dtype.kind == "f" else int(end) - int(begin)
    count = max(int(np.ceil(distance / (float(step) if start.dtype.kind == "f" else int(step)))), 0)
    expect_allocatable((count,), start.dtype, "the range")
    return [(begin + np.arange(count).astype(start.dtype) * step).astype(start.dtype)]


def gather_nd(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Slices of data at the coordinates in the last axis of indices; negative coordinates count from the end."""
    data, indices = required(inputs, 0, "data"), required(inputs, 1, "indices")
    expect_rank(data, range(1, 65), "data")
    expect_rank(indices, range(1, 65), "indices")
    depth = indices.shape[-1]
    if not 1 <= depth <= data.ndim:
        raise InvalidArgument(
            "indices has coordinates of the wrong length", value="indices", found=depth, expected=f"1 to {data.ndim}"
        )
    where = tuple(
        indices_within(indices[..., axis], data.shape[axis], f"indices[..., {axis}]", negative=True)
        for axis in range(depth)
    )
    return [data[where]]


def unfold_tensor(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Every `step`-th slice of length `size` along `dim`, the slice's elements on a new last axis."""
    x = required(inputs, 0, "input")
    axis = axis_within(integer(attributes, "dim", -1), x.ndim, "dim")
    size = integer(attributes, "size", least=1, most=x.shape[axis])
    step = integer(attributes, "step", 1, least=1)
    views = np.lib.stride_tricks.sliding_window_view(x, size, axis=axis)
    return [np.ascontiguousarray(views[(slice(None),) * axis + (slice(None, None, step),)])]


def torch_embedding(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Rows of weight (N, M) at indices."""
    weight, indices = required(inputs, 0, "weight"), required(inputs, 1, "indices")
    expect_rank(weight, 2, "weight")
    return [weight[indices_within(indices, weight.shape[0], "indices")]]


def sample_op(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """X itself."""
    return [required(inputs, 0, "X").copy()]


def ngram_repeat_block(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """scores with minus infinity where the token would complete an n-gram that input_ids holds already."""
    ids, scores = required(inputs, 0, "input_ids"), required(inputs, 1, "scores")
    size = integer(attributes, "ngram_size", least=1)
    expect_rank(ids, 2, "input_ids")
    expect_shape(scores, (ids.shape[0], None), "scores")
    result, length = scores.copy(), ids.shape[1]
    tokens = indices_within(ids, scores.shape[1], "input_ids")
    if length < size:
        return [result]
    for row in range(ids.shape[0]):
        tail = tokens[row, length - size + 1 :]
        heads = np.lib.stride_tricks.sliding_window_view(tokens[row], size)
        banned = heads[(heads[:, :-1] == tail).all(axis=1), -1]
        result[row, banned] = -np.inf
    return [result]


def remove_padding(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Kept tokens (total, hidden), token_offset (B, S), cumulated lengths (B + 1,), the longest length (1,)."""
    x, counts = required(inputs, 0, "input"), required(inputs, 1, "sequence_token_count")
    expect_rank(x, 3, "input")
    batch, sequence, hidden = x.shape
    expect_shape(counts, (batch,), "sequence_token_count")
    if (counts < 0).any() or (counts > sequence).any():
        raise InvalidArgument(
            "sequence_token_count is out of range",
            value="sequence_token_count",
            found=counts.tolist(),
            expected=f"within [0, {sequence}]",
        )
    kept = np.arange(sequence) < counts[:, None]
    flat = kept.reshape(-1)
    offsets = np.concatenate([np.flatnonzero(flat), np.flatnonzero(~flat)]).reshape(batch, sequence)
    cumulated = np.concatenate([[0], np.cumsum(counts)])
    longest = np.asarray([counts.max(initial=0)])
    outputs = [x.reshape(-1, hidden)[flat], *(a.astype(np.int32) for a in (offsets, cumulated, longest))]
    return trim(outputs, output_count)


def restore_padding(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Kept tokens (total, hidden) back at their offsets in (B, S, hidden); zeros elsewhere."""
    x, offsets = required(inputs, 0, "input"), required(inputs, 1, "token_offset")
    expect_rank(x, 2, "input")
    expect_rank(offsets, 2, "token_offset")
    total, places = x.shape[0], offsets.size
    if total > places:
        raise InvalidArgument("there are more tokens than offsets", value="input", found=total, expected=f"<= {places}")
    result = np.zeros((places, x.shape[1]), dtype=x.dtype)
    result[indices_within(offsets.reshape(-1)[:total], places, "token_offset")] = x
    return [result.reshape(*offsets.shape, x.shape[1])]


def is_all_finite(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Whether no input holds a NaN or an infinity (or, by attribute, only one of the two is looked for)."""
    nan_only = bool(integer(attributes, "isnan_only", 0))
    inf_only = bool(integer(attributes, "isinf_only", 0))
    if nan_only and inf_only:
        raise InvalidArgument("isnan_only and isinf_only exclude each other", found="both 1")
    wrong = np.isnan if nan_only else np.isinf if inf_only else lambda a: ~np.isfinite(a)

    def clean(array: Array) -> bool:
        return not bool(np.any(wrong(array)))

    return [np.asarray(all(clean(array) for array in inputs if array is not None))]
