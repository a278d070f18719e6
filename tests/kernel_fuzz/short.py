"""Rows of a few elements: pointwise tapes and softmax of several such rows in a vector."""

from __future__ import annotations

from typing import Any

import numpy as np

from whet.codegen.target import Target
from whet.dtypes import BOOL, FLOAT32, FLOAT64, INT8, INT32, DType
from whet.kernels.expression import Step, Tape
from whet.kernels.short_rows import MOST_APART, ShortRows, can_hold
from whet.kernels.softmax_short import SoftmaxShort

from .call import Array, Call, Operand
from .draw import Draw, tolerance
from .operands import changed, given, made

_STEPS: dict[str, Any] = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def rows_spec(draw: Draw, target: Target) -> ShortRows:
    while True:
        dtype = draw.one((FLOAT32, FLOAT32, FLOAT64, INT32, INT8, BOOL))
        count = draw.integer(1, 3)
        steps: list[Step] = []
        while dtype is not BOOL and len(steps) < draw.integer(0, 3):
            last = count + len(steps) - 1
            steps.append(Step(draw.one(tuple(_STEPS)), dtype, (draw.integer(0, last), draw.integer(0, last))))
        tape = Tape((dtype,) * count, tuple(steps), (count + len(steps) - 1,))
        length = draw.one((2, 2, 4, 8))
        if can_hold(target, tape, length):
            break

    def stride() -> int:
        return length * draw.integer(1, MOST_APART)

    return ShortRows(tape, length, tuple(draw.one((stride(), stride(), 0, None)) for _ in range(count)), (stride(),))


def rows_call(draw: Draw, spec: ShortRows, target: Target) -> Call:
    (rows,) = draw.extents(1, 300)
    extents, (out,), dtype = (rows, spec.length), spec.outputs, spec.tape.inputs[0]
    words: dict[str, Operand | int] = {}
    values: list[Array] = []
    for i, stride in enumerate(spec.inputs):
        strides = (0, 0) if stride is None else (stride, 1)
        shape = [1 if s == 0 else e for e, s in zip(extents, strides, strict=True)]
        values.append(np.broadcast_to(draw.values(dtype, shape), extents))
        words[f"in{i}"] = given(dtype, values[-1], strides)
    with np.errstate(all="ignore"):
        found = list(values)
        for step in spec.tape.steps:
            found.append(_STEPS[step.op](*(found[a] for a in step.args)))
    expected, limit = found[spec.tape.outputs[0]], tolerance(dtype)
    if spec.inputs[0] == out and draw.chance(0.4):
        words["in0"] = words["out0"] = changed(dtype, values[0], (out, 1), expected, limit, limit)
    else:
        words["out0"] = made(dtype, extents, (out, 1), expected, limit, limit)
    block = draw.block(rows)
    return Call({**words, "n0": rows, "block": block}, -(-rows // block))


def softmax_spec(draw: Draw, target: Target) -> SoftmaxShort:
    while True:
        dtype: DType = draw.one((FLOAT32, FLOAT32, FLOAT64))
        length = draw.one((2, 2, 4, 8))
        of, to = (length * draw.integer(1, MOST_APART) for _ in range(2))
        if SoftmaxShort.suits(target, dtype, length, of, to):
            return SoftmaxShort(draw.one(("softmax", "log_softmax")), length, of, to, dtype)


def softmax_call(draw: Draw, spec: SoftmaxShort, target: Target) -> Call:
    (rows,) = draw.extents(1, 300)
    extents = (rows, spec.length)
    values = draw.values(spec.dtype, extents)
    wide = values.astype(np.float64)
    with np.errstate(all="ignore"):
        away = wide - wide.max(axis=1, keepdims=True)
        sums = np.exp(away).sum(axis=1, keepdims=True)
        expected = np.exp(away) / sums if spec.kind == "softmax" else away - np.log(sums)
    limit = 4 * tolerance(spec.dtype)
    if spec.x == spec.out and draw.chance(0.4):
        shared = changed(spec.dtype, values, (spec.x, 1), expected, limit, limit)
        words: dict[str, Operand | int] = {"x": shared, "out": shared}
    else:
        words = {
            "x": given(spec.dtype, values, (spec.x, 1)),
            "out": made(spec.dtype, extents, (spec.out, 1), expected, limit, limit),
        }
    block = draw.block(rows)
    return Call({**words, "n0": rows, "block": block}, -(-rows // block))
