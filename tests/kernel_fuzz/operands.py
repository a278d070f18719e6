"""Shorthands that most families use to make operands and words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from whet.dtypes import DType
from whet.kernels.expression import Step, Tape
from whet.kernels.walk import working

from .call import Array, Operand, Window, dense
from .draw import Draw, tolerance

__all__ = [
    "given", "made", "changed", "names", "tile_count", "split_axes", "wide", "epilogue_tape", "apply_tape", "dense",
]  # fmt: skip


def given(dtype: DType, values: Array, strides: Sequence[int] | None = None, align: int = 1) -> Operand:
    """An input; without strides it is contiguous."""
    values = np.asarray(values, dtype.numpy)
    window = Window(values.shape, dense(values.shape) if strides is None else tuple(strides))
    return Operand("in", dtype.numpy, window, values, align=align)


def made(
    dtype: DType,
    extents: Sequence[int],
    strides: Sequence[int] | None = None,
    expected: Array | None = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    align: int = 1,
) -> Operand:
    """An output; without strides it is contiguous."""
    window = Window(tuple(extents), dense(tuple(extents)) if strides is None else tuple(strides))
    return Operand("out", dtype.numpy, window, None, expected, rtol, atol, align)


def changed(
    dtype: DType,
    values: Array,
    strides: Sequence[int] | None = None,
    expected: Array | None = None,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> Operand:
    """An operand that is changed in place."""
    values = np.asarray(values, dtype.numpy)
    window = Window(values.shape, dense(values.shape) if strides is None else tuple(strides))
    return Operand("update", dtype.numpy, window, values, expected, rtol, atol)


def names(prefix: str, rank: int, unit: bool = False) -> list[str]:
    """`prefix`0, ..., the last one without a word if `unit`."""
    found = [f"{prefix}{i}" for i in range(rank)]
    if unit:
        found[-1] = ""
    return found


def numbers(prefix: str, values: Sequence[int]) -> dict[str, int]:
    """Words `prefix`0, ... ."""
    return {f"{prefix}{i}": int(v) for i, v in enumerate(values)}


def tile_count(extents: Sequence[int], tile: int) -> int:
    """product(extents[:-1]) * ceil(extents[-1] / tile)."""
    return math.prod(extents[:-1]) * -(-extents[-1] // tile)


def wide(values: Array) -> Array:
    """The same numbers as float64 (integers as they are)."""
    return values if values.dtype.kind in "iub" else values.astype(np.float64)


def epilogue_tape(draw: Draw, source: DType, result: DType) -> Tape:
    """A cheap tape of one input, from `source` to `result` through float32 where it must."""
    middle = working(source)
    steps: list[Step] = []

    def add(op: str, dtype: DType, *args: int, fixed: tuple[Any, ...] = ()) -> int:
        steps.append(Step(op, dtype, args, fixed))
        return len(steps)

    here = 0 if middle is source else add("cast", middle, 0)
    for op in draw.random.sample(("relu", "neg", "abs", "square"), draw.integer(0, 2)):
        here = add("mul", middle, here, here) if op == "square" else add(op, middle, here)
    if result is not middle:
        here = add("cast", result, here)
    return Tape((source,), tuple(steps), (here,))


def apply_tape(tape: Tape, *values: Array) -> Array:
    """What a tape of `epilogue_tape`'s operations makes of float64 numbers."""
    found = [np.asarray(v, np.float64) for v in values]
    for step in tape.steps:
        a = [found[i] for i in step.args]
        if step.op == "relu":
            found.append(np.where(np.isnan(a[0]), a[0], np.maximum(a[0], 0)))
        elif step.op == "neg":
            found.append(-a[0])
        elif step.op == "abs":
            found.append(np.abs(a[0]))
        elif step.op == "tanh":
            found.append(np.tanh(a[0]))
        elif step.op == "mul":
            found.append(a[0] * a[1])
        elif step.op == "add":
            found.append(a[0] + a[1])
        elif step.op == "cast":
            found.append(a[0])
        else:
            raise AssertionError(step.op)
    return found[tape.outputs[0]]


def split_axes(draw: Draw, kept: Sequence[int], axis: int, unit: str = "", shared: bool = False) -> tuple[int, ...]:
    """Strides of [*kept, axis]; `unit` is "axis", "kept" (the last of them) or ""."""
    extents = (*kept, axis)
    at = {"axis": len(extents) - 1, "kept": len(extents) - 2, "": None}[unit]
    return draw.strides(extents, at, shared=shared)


def rounding(*dtypes: DType) -> float:
    return tolerance(*dtypes)
