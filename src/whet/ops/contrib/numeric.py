"""Linear algebra, distances, Fourier transforms, complex products and hashes."""

from __future__ import annotations

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.contrib.common import (
    Array,
    Attributes,
    Inputs,
    Outputs,
    broadcast_shape,
    expect_rank,
    expect_shape,
    integer,
    required,
    text,
    trim,
    widen,
)


def inverse(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The inverse of each matrix of X (..., M, M)."""
    x = required(inputs, 0, "X")
    expect_rank(x, range(2, 65), "X")
    expect_shape(x, (*x.shape[:-2], x.shape[-1], x.shape[-1]), "X")
    try:
        return [np.linalg.inv(widen(x)).astype(x.dtype)]
    except np.linalg.LinAlgError as error:
        raise InvalidArgument("X holds a singular matrix", value="X", expected="invertible matrices") from error


def cdist(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """(Squared) Euclidean distances between the rows of A (M, N) and of B (K, N): (M, K)."""
    a, b = required(inputs, 0, "A"), required(inputs, 1, "B")
    expect_rank(a, 2, "A")
    expect_shape(b, (None, a.shape[1]), "B")
    metric = text(attributes, "metric", "sqeuclidean", ("sqeuclidean", "euclidean"))
    squares = np.square(a[:, None] - b[None]).sum(axis=-1)
    return [np.asarray(np.sqrt(squares) if metric == "euclidean" else squares)]


def _complex_operands(inputs: Inputs) -> tuple[Array, Array, Array, Array]:
    a, b = required(inputs, 0, "A"), required(inputs, 1, "B")
    for array, name in ((a, "A"), (b, "B")):
        expect_rank(array, range(1, 65), name)
        expect_shape(array, (*array.shape[:-1], 2), name)
    broadcast_shape((a.shape, b.shape), "A and B")
    return a[..., 0], a[..., 1], b[..., 0], b[..., 1]


def complex_mul(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The product of complex numbers kept as pairs in the last axis."""
    p, q, r, s = _complex_operands(inputs)
    return [np.stack([p * r - q * s, p * s + q * r], axis=-1)]


def complex_mul_conj(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """A times the conjugate of B, complex numbers kept as pairs in the last axis."""
    p, q, r, s = _complex_operands(inputs)
    return [np.stack([p * r + q * s, q * r - p * s], axis=-1)]


def _signal_axes(attributes: Attributes, rank: int) -> tuple[int, ...]:
    count = integer(attributes, "signal_ndim", 1, least=1, most=min(rank, 3))
    if integer(attributes, "onesided", 1) != 1 or integer(attributes, "normalized", 0) != 0:
        raise InvalidArgument(
            "only one-sided transforms without normalization exist", expected="onesided 1, normalized 0"
        )
    return tuple(range(rank - count, rank))


def rfft(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The one-sided Fourier transform over the last `signal_ndim` axes; real and imaginary part on a new last axis."""
    x = required(inputs, 0, "X")
    expect_rank(x, range(1, 65), "X")
    axes = _signal_axes(attributes, x.ndim)
    if min(x.shape[axis] for axis in axes) < 1:
        raise InvalidArgument(
            "X has no samples", value="X", found=x.shape, expected="at least 1 along each signal axis"
        )
    spectrum = np.fft.rfftn(x, axes=axes)
    return [np.stack([spectrum.real, spectrum.imag], axis=-1).astype(x.dtype)]


def irfft(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The inverse of Rfft, to an even length."""
    x = required(inputs, 0, "X")
    expect_rank(x, range(2, 65), "X")
    expect_shape(x, (*x.shape[:-1], 2), "X")
    spectrum = x[..., 0] + 1j * x[..., 1]
    axes = _signal_axes(attributes, x.ndim - 1)
    if min(x.shape[axis] for axis in axes) < 1 or x.shape[axes[-1]] < 2:
        raise InvalidArgument(
            "X has too few frequencies", value="X", found=x.shape, expected="2 or more on the last axis"
        )
    return [np.fft.irfftn(spectrum, axes=axes).astype(x.dtype)]


def _rotate_left(x: Array, bits: int) -> Array:
    return ((x << np.uint32(bits)) | (x >> np.uint32(32 - bits))).astype(np.uint32)


def _murmur3(words: Array, tail: Array, length: Array | int, seed: int) -> Array:
    """MurmurHash3_x86_32 (Appleby, 2011): words (n, blocks) of uint32, the mixed-in tail word (n,), length in bytes."""
    state = np.full(words.shape[0], seed, dtype=np.uint32)

    def mix(k: Array) -> Array:
        return _rotate_left(k * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)

    for block in range(words.shape[1]):
        state = _rotate_left(state ^ mix(words[:, block]), 13) * np.uint32(5) + np.uint32(0xE6546B64)
    state = state ^ mix(tail) ^ np.asarray(length, dtype=np.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ (state >> np.uint32(shift))) * np.uint32(factor)
    return np.asarray(state ^ (state >> np.uint32(16)), dtype=np.uint32)


def murmur_hash3(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The 32-bit MurmurHash3 of each element's bytes (UTF-8 for strings), uint32, or int32 with `positive` 0."""
    x = required(inputs, 0, "X")
    seed = integer(attributes, "seed", 0) & 0xFFFFFFFF
    if x.dtype.kind in "OUS":
        hashes = np.array([_hash_text(element, seed) for element in x.reshape(-1)], dtype=np.uint32)
    else:
        if x.dtype.itemsize not in (4, 8):
            raise InvalidArgument(
                "X has an unsupported type", value="X", found=x.dtype, expected="32 or 64 bits, string"
            )
        blocks = x.dtype.itemsize // 4
        words = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("<")).reshape(-1).view(np.uint32).reshape(-1, blocks)
        hashes = _murmur3(words, np.zeros(words.shape[0], dtype=np.uint32), x.dtype.itemsize, seed)
    result = hashes.reshape(x.shape)
    return [result if integer(attributes, "positive", 1) else result.view(np.int32)]


def _hash_text(element: object, seed: int) -> int:
    data = element if isinstance(element, bytes) else str(element).encode()
    whole = len(data) // 4 * 4
    words = np.frombuffer(data[:whole], dtype="<u4").astype(np.uint32).reshape(1, -1)
    tail = np.array([int.from_bytes(data[whole:], "little")], dtype=np.uint32)
    return int(_murmur3(words, tail, len(data), seed)[0])


def dynamic_time_warping(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The cheapest path through a cost matrix (M, N) or (1, M, N) from its first to its last cell: (2, length)."""
    x = required(inputs, 0, "input")
    expect_rank(x, (2, 3), "input")
    if x.ndim == 3:
        expect_shape(x, (1, None, None), "input")
    costs = x[0] if x.ndim == 3 else x
    rows, columns = costs.shape
    if not rows or not columns:
        raise InvalidArgument("the cost matrix is empty", value="input", found=x.shape)
    total = np.full((rows + 1, columns + 1), np.inf, dtype=widen(costs).dtype)
    total[0, 0] = 0
    origin = np.zeros((rows, columns), dtype=np.int8)
    for column in range(columns):
        for row in range(rows):
            candidates = (total[row, column], total[row, column + 1], total[row + 1, column])
            diagonal, above, left = candidates
            step = 0 if diagonal < above and diagonal < left else 1 if above < diagonal and above < left else 2
            origin[row, column] = step
            total[row + 1, column + 1] = costs[row, column] + candidates[step]
    path, row, column = [], rows - 1, columns - 1
    while row >= 0 and column >= 0:
        path.append((row, column))
        step = 1 if column == 0 and row > 0 else 2 if row == 0 and column > 0 else int(origin[row, column])
        row, column = row - (step != 2), column - (step != 1)
    return trim([np.array(path[::-1], dtype=np.int32).T.copy()], output_count)
