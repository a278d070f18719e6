"""A compiled subgraph of the reference provider, and the way of values in and out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whet.config import Limits
from whet.errors import InvalidArgument, ResourceExhausted
from whet.graph import Graph, OptionalType, SequenceType, Value
from whet.graph.types import Type
from whet.ops.custom import CustomOp
from whet.providers.base import MemoryUse, RunState
from whet.providers.reference.interpreter import Builder, root_of
from whet.providers.reference.run import Run
from whet.providers.reference.widen import widen_value
from whet.runtime.values import Map, Optional, RuntimeValue, Tensor
from whet.runtime.values import Sequence as SequenceValue


class ReferenceExecutable:
    """Runs one graph by interpretation. Thread-safe: nothing is written after construction."""

    def __init__(self, graph: Graph, *, limits: Limits, widen: bool, custom: Mapping[str, CustomOp]) -> None:
        self._limits = limits
        self._widen = widen
        self._inputs: tuple[Value, ...] = tuple(graph.inputs)
        self._outputs: tuple[Value, ...] = graph.outputs
        builder = Builder(widen=widen, custom=custom)
        self._plan = builder.plan(graph)
        self._constant_bytes = builder.constant_bytes

    def run(self, inputs: Sequence[RuntimeValue], state: RunState) -> list[RuntimeValue]:
        """The graph's outputs for these inputs, in order; no output shares memory with an input or a constant."""
        if len(inputs) != len(self._inputs):
            raise InvalidArgument(
                "wrong number of inputs for the subgraph", found=len(inputs), expected=len(self._inputs)
            )
        values = [unwrap(value) for value in inputs]
        shared = {id(root_of(array)) for value in values for array in _arrays(value)}
        shared |= self._plan.constant_roots
        if self._widen:
            values = [widen_value(value) for value in values]
        with np.errstate(all="ignore"):
            results = self._plan.run(values, (), Run(state, self._limits))
        return [wrap(_output(r, v, shared), v.type) for r, v in zip(results, self._outputs, strict=True)]

    def memory(self) -> MemoryUse:
        """Its constants, those of subgraphs too; values of a run are gone with it."""
        return MemoryUse(weights=self._constant_bytes)


def unwrap(value: RuntimeValue) -> Any:
    """The interpreter's form of a value: array, list, dict, or None for an empty optional."""
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, SequenceValue):
        return [unwrap(item) for item in value.items]
    if isinstance(value, Map):
        return value.items
    return None if value.value is None else unwrap(value.value)


def wrap(value: Any, type_: Type | None) -> RuntimeValue:
    """The run-time form of an interpreter value of a declared type."""
    if isinstance(type_, OptionalType):
        return Optional(None if value is None else wrap(value, type_.element))
    if value is None:
        return Optional(None)
    if isinstance(value, list):
        element = type_.element if isinstance(type_, SequenceType) else None
        return SequenceValue(tuple(wrap(item, element) for item in value))
    if isinstance(value, dict):
        return Map(value)
    return Tensor.from_numpy(value)


def _arrays(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [array for item in value for array in _arrays(item)]
    return [value] if isinstance(value, np.ndarray) else []


def _output(result: Any, value: Value, shared: set[int]) -> Any:
    try:
        return _owned(result, shared)
    except MemoryError as error:
        raise ResourceExhausted("there is not enough memory for an output", value=value.name) from error


def _owned(value: Any, shared: set[int]) -> Any:
    """`value` in C order and in memory of its own; `shared` (ids of memory owners) gains what it keeps."""
    if isinstance(value, list):
        return [_owned(item, shared) for item in value]
    if isinstance(value, dict):
        return dict(value)
    if not isinstance(value, np.ndarray):
        return value
    root = root_of(value)
    owner = id(root)
    # A small view of a large array would keep all of it alive.
    wasteful = root.nbytes > 2 * value.nbytes + 4096
    if owner in shared or wasteful or not value.flags.c_contiguous or not value.flags.writeable:
        value = np.array(value, order="C")
        owner = id(value)
    shared.add(owner)
    return value
