"""From a group of pointwise nodes to the tape that kernels evaluate."""

from __future__ import annotations

from collections.abc import Sequence

from whet.dtypes import BFLOAT16, BOOL, FLOAT16, FLOAT32, DType
from whet.graph import Value
from whet.kernels.expression import Step, Tape
from whet.kernels.scalar_ops import CONSTANT

COMPUTED_AS = {FLOAT16: FLOAT32, BFLOAT16: FLOAT32}
"""Types that are only stored: what stands in for them in registers."""


def computed(dtype: DType) -> DType:
    """The type that values of `dtype` have in registers."""
    return COMPUTED_AS.get(dtype, dtype)


class TapeBuilder:
    """Collects the steps of a tape. Values are numbers; equal steps are made once."""

    def __init__(self, inputs: Sequence[DType]) -> None:
        self.inputs = tuple(inputs)
        self._steps: list[Step] = []
        self._known: dict[Step, int] = {}

    def dtype(self, value: int) -> DType:
        """The type of a value."""
        return self.inputs[value] if value < len(self.inputs) else self._steps[value - len(self.inputs)].dtype

    def add(self, op: str, dtype: DType, *args: int, numbers: Sequence[float | int] = ()) -> int:
        """A step `op` of SCALAR_OPS with a result of `dtype`."""
        step = Step(op, dtype, args, tuple(numbers))
        found = self._known.get(step)
        if found is None:
            self._steps.append(step)
            found = self._known[step] = len(self.inputs) + len(self._steps) - 1
        return found

    def constant(self, number: float | int | bool, dtype: DType) -> int:
        """A fixed number."""
        if dtype.kind == "bool":
            number = int(bool(number))
        elif dtype.is_integer:
            number = int(number)
        # Python's equality would merge 0.0 with -0.0 and 1 with 1.0; the sign is kept in a second number.
        sign = 1 if str(number).startswith("-") else 0
        return self.add(CONSTANT, dtype, numbers=(number, sign))

    def cast(self, value: int, dtype: DType) -> int:
        """The value as `dtype`, as the operator Cast converts."""
        return value if self.dtype(value) is dtype else self.add("cast", dtype, value)

    def tape(self, *outputs: int) -> Tape:
        """The finished tape; steps that no output needs are left out."""
        needed: set[int] = set()
        waiting = list(outputs)
        while waiting:
            value = waiting.pop()
            if value not in needed:
                needed.add(value)
                if value >= len(self.inputs):
                    waiting.extend(self._steps[value - len(self.inputs)].args)
        count = len(self.inputs)
        new = {i: i for i in range(count)}
        steps: list[Step] = []
        for index, step in enumerate(self._steps):
            if count + index in needed:
                new[count + index] = count + len(steps)
                steps.append(Step(step.op, step.dtype, tuple(new[a] for a in step.args), step.numbers))
        return Tape(self.inputs, tuple(steps), tuple(new[o] for o in outputs))


def scalar_constant(value: Value) -> float | int | bool | None:
    """The number of a constant with one element of a type that registers hold, else None."""
    data = value.data
    if data is None or data.size != 1:
        return None
    number_type = (data.dtype.is_float and data.dtype.bits >= 16) or (data.dtype.is_integer and data.dtype.bits >= 8)
    if not number_type and data.dtype is not BOOL:
        return None
    number = data.scalar()
    return float(number) if data.dtype.is_float else number
