"""Weights quantized block by block to a few bits: MatMulNBits, MatMulBnb4, GatherBlockQuantized."""

from __future__ import annotations

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.contrib.common import (
    Array,
    Attributes,
    Inputs,
    Outputs,
    axis_within,
    expect_rank,
    expect_shape,
    indices_within,
    integer,
    optional,
    required,
    widen,
)
from whet.ops.contrib.matmul import checked_matmul


def unpack_bits(packed: Array, bits: int) -> Array:
    """The unsigned numbers of `bits` bits (1, 2, 4, 8) in the last axis of uint8, low bits first."""
    if bits == 8:
        return packed
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return np.asarray(parts.reshape(*packed.shape[:-1], packed.shape[-1] * (8 // bits)))


def _block_size(attributes: Attributes, default: int | None = None) -> int:
    size = integer(attributes, "block_size", default, least=16)
    if size & (size - 1):
        raise InvalidArgument("attribute block_size is not a power of two", found=size, expected="16, 32, 64, ...")
    return size


def dequantize_blocks(
    packed: Array,
    scales: Array,
    zero_points: Array | None,
    *,
    n: int,
    k: int,
    bits: int,
    block: int,
    groups: Array | None,
) -> Array:
    """The (N, K) weights that MatMulNBits packs; `groups` (K,) names each column's block."""
    blocks = -(-k // block)
    blob = block * bits // 8
    if packed.dtype != np.uint8 or packed.size != n * blocks * blob:
        raise InvalidArgument(
            "B does not fit N, K, bits and block_size",
            value="B",
            found=f"{packed.dtype} {packed.shape}",
            expected=f"uint8 ({n}, {blocks}, {blob})",
        )
    if scales.size != n * blocks:
        raise InvalidArgument("scales has the wrong size", value="scales", found=scales.shape, expected=(n, blocks))
    numbers = unpack_bits(packed.reshape(n, blocks * blob), bits)[:, :k].astype(scales.dtype)
    factors = scales.reshape(n, blocks)
    offsets = np.full((n, blocks), 1 << (bits - 1), dtype=scales.dtype)
    if zero_points is not None and zero_points.dtype == np.uint8:
        row = -(-blocks * bits // 8)
        if zero_points.size != n * row:
            raise InvalidArgument(
                "zero_points has the wrong size", value="zero_points", found=zero_points.shape, expected=(n, row)
            )
        offsets = unpack_bits(zero_points.reshape(n, row), bits)[:, :blocks].astype(scales.dtype)
    elif zero_points is not None:
        if zero_points.size != n * blocks:
            raise InvalidArgument(
                "zero_points has the wrong size", value="zero_points", found=zero_points.shape, expected=(n, blocks)
            )
        offsets = zero_points.reshape(n, blocks).astype(scales.dtype)
    column = np.arange(k) // block if groups is None else groups
    return np.asarray((numbers - offsets[:, column]) * factors[:, column])


def matmul_nbits(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """A (..., K) times the transposed dequantized B (N, K), plus bias (N,)."""
    a, packed, scales = required(inputs, 0, "A"), required(inputs, 1, "B"), required(inputs, 2, "scales")
    k, n = integer(attributes, "K", least=1), integer(attributes, "N", least=1)
    bits, block = integer(attributes, "bits", 4), _block_size(attributes)
    if bits not in (2, 4, 8):
        raise InvalidArgument("attribute bits is not supported", found=bits, expected="2, 4 or 8")
    if integer(attributes, "weight_prepacked", 0):
        raise InvalidArgument("prepacked weights have a private layout", found="weight_prepacked", expected=0)
    expect_rank(a, range(1, 65), "A")
    groups = optional(inputs, 4)
    if groups is not None:
        if groups.size < k:
            raise InvalidArgument("g_idx has the wrong size", value="g_idx", found=groups.shape, expected=(k,))
        groups = indices_within(groups.reshape(-1)[:k], -(-k // block), "g_idx")
    weights = dequantize_blocks(
        packed, widen(scales), optional(inputs, 3), n=n, k=k, bits=bits, block=block, groups=groups
    )
    result = checked_matmul(widen(a), weights.T)
    bias = optional(inputs, 5)
    if bias is not None:
        expect_shape(bias, (n,), "bias")
        result = result + widen(bias)
    return [result.astype(a.dtype)]


# Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, appendix E (NF4); the 4-bit float has one
# sign, two exponent and one mantissa bit and is scaled so that its largest value is 1.
_FP4 = (0.0, 0.0052083333, 0.6666667, 1.0, 0.33333334, 0.5, 0.16666667, 0.25)
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def matmul_bnb4(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """A times B' (`transB` 1) or B, with B (N, K) in 4-bit floats (FP4 or NF4), one absolute maximum per block."""
    a, packed, peaks = required(inputs, 0, "A"), required(inputs, 1, "B"), required(inputs, 2, "absmax")
    k, n = integer(attributes, "K", least=1), integer(attributes, "N", least=1)
    block = _block_size(attributes)
    kind = integer(attributes, "quant_type", least=0, most=1)
    if packed.dtype != np.uint8 or packed.size != (n * k + 1) // 2:
        raise InvalidArgument("B does not fit N and K", value="B", found=packed.shape, expected=((n * k + 1) // 2,))
    if peaks.size != -(-n * k // block):
        raise InvalidArgument(
            "absmax has the wrong size", value="absmax", found=peaks.shape, expected=-(-n * k // block)
        )
    levels = np.asarray(_NF4 if kind else (*_FP4, *(-v for v in _FP4)), dtype=widen(a).dtype)
    codes = np.stack([packed.reshape(-1) >> 4, packed.reshape(-1) & 15], axis=-1).reshape(-1)[: n * k]
    weights = (levels[codes] * widen(peaks).reshape(-1)[np.arange(n * k) // block]).reshape(n, k)
    result = checked_matmul(widen(a), weights.T if integer(attributes, "transB", 1) else weights)
    return [result.astype(a.dtype)]


def gather_block_quantized(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Rows of a block-quantized tensor, picked along `gather_axis`, then dequantized.

    An index outside [-extent, extent) gives zeros, as the operator is defined.
    """
    data, indices, scales = required(inputs, 0, "data"), required(inputs, 1, "indices"), required(inputs, 2, "scales")
    zero_points = optional(inputs, 3)
    expect_rank(data, range(1, 65), "data")
    gather = axis_within(integer(attributes, "gather_axis", 0), data.ndim, "gather_axis")
    along = axis_within(integer(attributes, "quantize_axis", 1), data.ndim, "quantize_axis")
    block = _block_size(attributes, 128)
    numbers, offset = _numbers(data, attributes, gather)
    extent = numbers.shape[along]
    shape = [-(-extent // block) if axis == along else size for axis, size in enumerate(numbers.shape)]
    expect_shape(scales, shape, "scales")
    block_of = np.arange(extent) // block
    centre: Array | int = offset
    if zero_points is not None:
        zeros, _ = _numbers(zero_points, attributes, gather)
        zeros = np.take(zeros, np.arange(min(shape[-1], zeros.shape[-1])), axis=-1)
        expect_shape(zeros, shape, "zero_points")
        centre = np.take(zeros, block_of, axis=along)
    factor = np.take(widen(scales), block_of, axis=along)
    real = (numbers - centre).astype(factor.dtype) * factor
    index = indices.astype(np.int64)
    size = numbers.shape[gather]
    inside = (index >= -size) & (index < size)
    result = np.take(real, np.where(inside, index, 0) % max(size, 1), axis=gather)
    keep = inside.reshape((1,) * gather + inside.shape + (1,) * (data.ndim - gather - 1))
    return [np.where(keep, result, 0).astype(scales.dtype)]


def _numbers(data: Array, attributes: Attributes, gather: int) -> tuple[Array, int]:
    """Quantized data as int32, unpacked along the last axis, and its default zero point."""
    if data.dtype != np.uint8:
        if data.dtype.name not in ("int4", "uint4"):
            raise InvalidArgument(
                "data has an unsupported type", value="data", found=data.dtype, expected="uint8, int4, uint4"
            )
        return data.astype(np.int32), 0
    bits = integer(attributes, "bits", 4)
    if bits not in (2, 4, 8) or gather != 0:
        raise InvalidArgument(
            "uint8 data is gathered on axis 0 with 2, 4 or 8 bits", found=f"axis {gather}, {bits} bits"
        )
    return unpack_bits(data, bits).astype(np.int32), 1 << (bits - 1)
