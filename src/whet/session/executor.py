"""Runs the parts of a model in order: slots for values, release after the last read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whet.graph import Value
from whet.graph.tensor import TensorData
from whet.providers.base import Executable, MemoryUse, ReportsMemory, RunState
from whet.runtime.values import Map, Optional, RuntimeValue, Tensor
from whet.runtime.values import Sequence as SequenceValue


@dataclass(frozen=True, slots=True)
class Step:
    """One part: what to run, the slots it reads and fills, and the slots that nobody reads after it."""

    executable: Executable
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    release: tuple[int, ...]


class Executor:
    """The compiled form of a whole model. Immutable after construction; runs are independent of each other."""

    def __init__(
        self,
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        parts: Sequence[tuple[Executable, Sequence[Value], Sequence[Value]]],
    ) -> None:
        slots: dict[Value, int] = {value: i for i, value in enumerate(inputs)}
        for _, _, made in parts:
            for value in made:
                slots[value] = len(slots)
        self._input_count = len(inputs)
        self._slot_count = len(slots)
        self._outputs: list[int | TensorData] = [
            value.data if value.data is not None else slots[value] for value in outputs
        ]
        kept = {slots[v] for v in outputs if v.data is None}
        last_read: dict[int, int] = {}
        for index, (_, read, _) in enumerate(parts):
            for value in read:
                last_read[slots[value]] = index
        self._steps = tuple(
            Step(
                executable,
                tuple(slots[v] for v in read),
                tuple(slots[v] for v in made),
                tuple(s for s, last in last_read.items() if last == index and s not in kept),
            )
            for index, (executable, read, made) in enumerate(parts)
        )

    def only_part(self) -> Executable | None:
        """The one executable, where it reads the model's inputs and gives its outputs, all in order; else None."""
        if len(self._steps) != 1 or self._steps[0].inputs != tuple(range(self._input_count)):
            return None
        made = self._steps[0].outputs
        if any(isinstance(o, TensorData) for o in self._outputs) or tuple(self._outputs) != made:
            return None
        return self._steps[0].executable

    @property
    def executables(self) -> tuple[Executable, ...]:
        """The parts, in the order in which they run."""
        return tuple(step.executable for step in self._steps)

    def memory(self) -> MemoryUse:
        """What the parts hold, as far as their providers tell."""
        found = (e.memory() for e in self.executables if isinstance(e, ReportsMemory))
        return sum(found, MemoryUse())

    def run(self, inputs: Sequence[RuntimeValue], state: RunState) -> list[RuntimeValue]:
        """Compute all outputs. Results alias neither inputs nor constants nor each other."""
        values: list[RuntimeValue | None] = [*inputs, *([None] * (self._slot_count - self._input_count))]
        for step in self._steps:
            state.check()
            results = step.executable.run([_present(values[i]) for i in step.inputs], state)
            for slot, result in zip(step.outputs, results, strict=True):
                values[slot] = result
            for slot in step.release:
                values[slot] = None
        finished: list[RuntimeValue] = []
        given: set[int] = set()
        for source in self._outputs:
            if isinstance(source, TensorData):
                finished.append(Tensor.from_numpy(source.numpy().copy(), source.dtype))
            elif source < self._input_count or source in given:
                finished.append(copied(_present(values[source])))
            else:
                given.add(source)
                finished.append(_present(values[source]))
        return finished


def _present(value: RuntimeValue | None) -> RuntimeValue:
    assert value is not None, "a slot is read before it is filled"
    return value


def copied(value: RuntimeValue) -> RuntimeValue:
    """The same value in memory of its own."""
    if isinstance(value, Tensor):
        return Tensor.from_numpy(value.numpy().copy(), value.dtype)
    if isinstance(value, SequenceValue):
        return SequenceValue(tuple(copied(item) for item in value.items))
    if isinstance(value, Optional):
        return Optional(None if value.value is None else copied(value.value))
    return Map(dict(value.items))
