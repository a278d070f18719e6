"""Quantized pieces: QuantizeLinear and DequantizeLinear pairs around exact values, and weights held as int8."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from .arithmetic import add, tame, unary
from .builder import FLOAT, UINT8, Builder, Value
from .layers import matmul
from .movement import transpose

_RANGES = {np.int8: (-128, 127), np.uint8: (0, 255)}


def random_quantize_pair(b: Builder) -> Value | None:
    """DequantizeLinear(QuantizeLinear(x)) with a scale that is a power of two, so that rounding is never in doubt."""
    x = b.pick(lambda v: v.dtype == FLOAT and v.grain is not None and v.grain >= 0.125 and v.bound < 200)
    if x is None or b.opset < 10:
        return None
    scale = b.choose([0.125, 0.25, 0.5, 1.0])
    kind = b.choose([np.int8, np.uint8])
    zero = b.choose([0, 0, 3, -5]) if kind is np.int8 else b.choose([0, 128, 10])
    lowest, highest = _RANGES[kind]
    # Without a zero point the type is uint8.
    given = kind is np.int8 or zero != 0 or b.chance(0.6)
    parameters: list[Value | None] = [b.constant(np.asarray(scale, np.float32), plain=True)]
    if given:
        parameters.append(b.constant(np.asarray(zero, kind), plain=True))
    stored = TensorProto.INT8 if kind is np.int8 else UINT8
    small = b.emit("QuantizeLinear", [x, *parameters], x.shape, dtype=stored, low=lowest, high=highest, grain=1.0)
    if b.chance(0.25) and x.rank >= 2:
        small = transpose(b, small, [*range(x.rank - 2), x.rank - 1, x.rank - 2])
    if b.chance(0.3):
        parameters = [b.constant(np.asarray(scale, np.float32), plain=True), *parameters[1:]]
    low, high = max(x.low - scale, (lowest - zero) * scale), min(x.high + scale, (highest - zero) * scale)
    made = b.emit(
        "DequantizeLinear", [small, *parameters], small.shape, dtype=FLOAT, low=low, high=max(high, low), grain=scale
    )
    if b.chance(0.3):
        b.keep(made)
        made = unary(b, "Relu", made)
    return b.keep(made)


def random_quantized_matmul(b: Builder) -> Value | None:
    """MatMul with an int8 weight behind DequantizeLinear, one scale or (since opset 13) one per column."""
    x = b.pick_float(range(2, 4))
    if x is None or b.opset < 10 or not x.static(x.rank - 1):
        return None
    x = tame(b, x)
    depth, width = x.shape[-1][0], b.choose([2, 4, 5])
    numbers = b.data.integers(-127, 128, size=(depth, width))
    per_column = b.opset >= 13 and b.chance(0.5)
    scale = np.asarray(
        b.data.uniform(0.5, 1.0, size=width if per_column else ()) / (127 * math.sqrt(depth)), np.float32
    )
    kind = b.choose([np.int8, np.uint8])
    stored = b.constant(numbers.astype(np.int8) if kind is np.int8 else (numbers + 128).astype(np.uint8), plain=True)
    zero = np.zeros(scale.shape, kind) if kind is np.int8 else np.full(scale.shape, 128, kind)
    operands = [stored, b.constant(scale, plain=True)]
    if kind is np.uint8 or b.chance(0.6):
        operands.append(b.constant(zero, plain=True))
    weight = b.emit(
        "DequantizeLinear", operands, stored.shape, dtype=FLOAT, low=-1.0, high=1.0, axis=1 if b.opset >= 13 else None
    )
    made = matmul(b, x, weight)
    if made is None:
        return None
    if b.chance(0.5):
        made = add(b, made, b.weights([width], 0.5)) or made
    return b.keep(tame(b, made, 50.0))
