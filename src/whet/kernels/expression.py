"""Scalar expressions as data: what pointwise kernels compute, and what others do to a result before they store it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whet.codegen.lang import Function, Value
from whet.dtypes import DType
from whet.kernels.scalar_ops import CONSTANT, SCALAR_OPS
from whet.kernels.scalar_step import Step


@dataclass(frozen=True, slots=True)
class Tape:
    """A straight-line computation. Value i is input i, or step i - len(inputs); `outputs` are values."""

    inputs: tuple[DType, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    def dtype(self, value: int) -> DType:
        """The element type of a value."""
        return self.inputs[value] if value < len(self.inputs) else self.steps[value - len(self.inputs)].dtype

    def emit(self, k: Function, values: Sequence[Value], lanes: int) -> list[Value]:
        """The outputs for input `values` (vectors of `lanes`, or scalars, which count for every lane)."""
        computed = list(values)
        for step in self.steps:
            if step.op == CONSTANT:
                computed.append(k.constant(step.dtype, step.numbers[0], lanes))
                continue
            arguments = [computed[i] for i in step.args]
            computed.append(SCALAR_OPS[step.op](step, *arguments))
        return [computed[i] for i in self.outputs]


def identity(dtype: DType) -> Tape:
    """The tape that gives its only input."""
    return Tape((dtype,), (), (0,))


__all__ = ["Step", "Tape", "identity"]
