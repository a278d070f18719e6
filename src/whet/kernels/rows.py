"""The innermost loop of pointwise kernels: one tape over one row, vectorized, whatever the strides and the length."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from whet.codegen.lang import (
    Function,
    Operand,
    Pointer,
    Value,
    broadcast,
    minimum,
    prefix_mask,
)
from whet.codegen.target import Target
from whet.dtypes import FLOAT32, INT64, DType
from whet.kernels.expression import Step, Tape
from whet.kernels.scalar_ops import CONSTANT, COSTS

_CHEAP = 12
"""Cost of a tape (in instructions, about) up to which four vectors in flight are needed to keep the CPU busy."""


@dataclass(frozen=True)
class RowOperand:
    """One input or output of a row: where element 0 is, and elements from one to the next (0: the same for all)."""

    base: Pointer
    stride: Operand

    @property
    def is_uniform(self) -> bool:
        return not isinstance(self.stride, Value) and self.stride == 0

    @property
    def is_unit(self) -> bool:
        return not isinstance(self.stride, Value) and self.stride == 1


@functools.cache
def split(tape: Tape, uniform: tuple[bool, ...]) -> tuple[Tape, Tape]:
    """A tape as (head, body): what follows from `uniform` inputs alone, and the rest.

    The head reads the uniform inputs in order. The body reads the others in order, then the head's outputs.
    """
    first = len(tape.inputs)
    is_constant = [False] * first + [s.op == CONSTANT for s in tape.steps]
    fixed = list(uniform)
    for step in tape.steps:
        fixed.append(step.op != CONSTANT and all(fixed[a] or is_constant[a] for a in step.args))
    moving = [i for i in range(len(fixed)) if not fixed[i]]
    read = {a for i in moving if i >= first for a in tape.steps[i - first].args} | set(tape.outputs)
    handed = [i for i in sorted(read) if fixed[i]]

    head_inputs = [i for i in range(first) if fixed[i]]
    # Constants serve both parts.
    head_steps = [i for i in range(first, len(fixed)) if fixed[i] or is_constant[i]]
    head = _part(tape, head_inputs, [], head_steps, handed)
    body_inputs = [i for i in range(first) if not fixed[i]]
    body_steps = [i for i in moving if i >= first]
    return head, _part(tape, body_inputs, handed, body_steps, list(tape.outputs))


def _part(tape: Tape, inputs: list[int], more: list[int], steps: list[int], outputs: list[int]) -> Tape:
    place = {value: i for i, value in enumerate([*inputs, *more, *steps])}
    made = []
    for value in steps:
        step = tape.steps[value - len(tape.inputs)]
        made.append(Step(step.op, step.dtype, tuple(place[a] for a in step.args), step.numbers))
    return Tape(
        tuple(tape.dtype(i) for i in [*inputs, *more]),
        tuple(made),
        tuple(place[o] for o in outputs),
    )


def lanes_for(tape: Tape, target: Target, strided: bool) -> int:
    """Elements that one round of a tape's loop computes: a register of its widest type, at most 32-bit ones if some
    operand is `strided` and its elements come one by one."""
    kinds = [*tape.inputs, *(s.dtype for s in tape.steps)]
    lanes = min((target.lanes(d) for d in kinds), default=target.lanes(FLOAT32))
    return min(lanes, target.lanes(FLOAT32)) if strided else lanes


def can_mask(dtype: DType, target: Target) -> bool:
    """Whether the target loads and stores part of a vector of these elements by a mask."""
    if target.has("avx512bw") and target.has("avx512vl"):
        return True
    return target.has("avx2") and dtype.bits >= 32


class Row:
    """The code of one tape over rows of memory. Make one per place in the kernel; `emit` writes the loop.

    Elements past the row are neither read nor written. An output may be an input's memory with the same strides.
    """

    def __init__(self, k: Function, tape: Tape, inputs: Sequence[RowOperand], outputs: Sequence[RowOperand]) -> None:
        self.k = k
        uniform = tuple(o.is_uniform for o in inputs)
        head, self._body = split(tape, uniform)
        self._inputs = [o for o in inputs if not o.is_uniform]
        self._outputs = list(outputs)
        moving = [*self._inputs, *self._outputs]
        strided = any(not o.is_unit for o in moving)
        self._lanes = lanes_for(self._body, k.target, strided)
        cost = sum(COSTS.get(s.op, 1) for s in self._body.steps)
        self._unroll = 1 if strided else 4 if cost <= _CHEAP else 2
        self._masked_rest = all(can_mask(o.base.dtype, k.target) for o in moving) and k.target.vector_bits == 512
        scalars = head.emit(k, [o.base.load() for o in inputs if o.is_uniform], 1)
        self._splats = [_filled(v, self._lanes) for v in scalars]

    def emit(self, start: Operand, stop: Operand) -> None:
        """Compute elements `start` to `stop`-1."""
        k, lanes = self.k, self._lanes
        first, last = k.index(start), k.index(stop)
        step = self._unroll * lanes
        if self._unroll > 1:
            with k.loop(last - (step - 1), start=first, step=step) as i:
                self._whole([i + u * lanes for u in range(self._unroll)])
            first = first + ((last - first) & -step)
        if self._masked_rest and all(o.is_unit for o in [*self._inputs, *self._outputs]):
            with k.loop(last, start=first, step=lanes) as i:
                self._part(i, last)
            return
        with k.loop(last - (lanes - 1), start=first, step=lanes) as i:
            self._whole([i])
        rest = first + ((last - first) & -lanes)
        with k.when(rest < last):
            self._part(rest, last)

    def _whole(self, places: Sequence[Value]) -> None:
        loaded = [[self._load(o, i) for o in self._inputs] for i in places]
        for i, vectors in zip(places, loaded, strict=True):
            for o, value in zip(self._outputs, self._compute(vectors), strict=True):
                if o.is_unit:
                    o.base.store(value, i)
                else:
                    (o.base + i * o.stride).scatter(self._steps(o), value)

    def _part(self, i: Value, stop: Value) -> None:
        """Elements i to stop-1, at most one vector of them; none is allowed."""
        count = stop - i
        vectors = [self._load_part(o, i, count) for o in self._inputs]
        for o, value in zip(self._outputs, self._compute(vectors), strict=True):
            self._store_part(o, value, i, count)

    def _compute(self, vectors: Sequence[Value]) -> list[Value]:
        results = self._body.emit(self.k, [*vectors, *self._splats], self._lanes)
        return [_filled(r, self._lanes) for r in results]

    def _steps(self, o: RowOperand, most: Value | None = None) -> Value:
        """The lanes' offsets from the first one, at most `most` elements away."""
        lane = self.k.constant_vector(INT64, range(self._lanes))
        if most is not None:
            lane = minimum(lane, broadcast(most, self._lanes))
        return lane * o.stride

    def _load(self, o: RowOperand, i: Value) -> Value:
        if o.is_unit:
            return o.base.load(i, self._lanes)
        return (o.base + i * o.stride).gather(self._steps(o))

    def _load_part(self, o: RowOperand, i: Value, count: Value) -> Value:
        k = self.k
        if not o.is_unit:
            # Lanes past the row read its last element again.
            return (o.base + i * o.stride).gather(self._steps(o, most=count - 1))
        if can_mask(o.base.dtype, k.target):
            return o.base.load_masked(prefix_mask(count, self._lanes), i)
        stage = k.stack_array(o.base.dtype, self._lanes)
        stage.store(_zero(k, o.base.dtype, self._lanes))
        with k.loop(count) as j:
            stage.store(o.base.load(i + j), j)
        return stage.load(0, self._lanes)

    def _store_part(self, o: RowOperand, value: Value, i: Value, count: Value) -> None:
        k = self.k
        if o.is_unit and can_mask(o.base.dtype, k.target):
            o.base.store_masked(prefix_mask(count, self._lanes), value, i)
            return
        stage = k.stack_array(o.base.dtype, self._lanes)
        stage.store(value)
        with k.loop(count) as j:
            o.base.store(stage.load(j), (i + j) * o.stride)


def _filled(value: Value, lanes: int) -> Value:
    return broadcast(value, lanes) if value.lanes != lanes else value


def _zero(k: Function, dtype: DType, lanes: int) -> Value:
    return Value(k, dtype, lanes, "zeroinitializer" if lanes > 1 else "0")
