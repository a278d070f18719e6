"""Plans over slots: a graph bound once, run many times, from many threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whet.errors import InvalidGraph, NotImplemented
from whet.graph import Graph, Node, Value
from whet.ops.custom import CustomOp
from whet.ops.evaluate import Bound, bind, bind_kernel
from whet.providers.base import ProfileEvent
from whet.providers.reference.control import CONTROL
from whet.providers.reference.gradient import GRADIENT, bind_gradient
from whet.providers.reference.random import bind_random, is_random
from whet.providers.reference.run import Call, Run
from whet.providers.reference.widen import bit_cast_source, widen_node, widen_value

PROVIDER = "ReferenceExecutionProvider"


@dataclass(slots=True)
class Step:
    """One node: where its inputs lie, where its outputs go, which slots are dead afterwards."""

    node: Node
    call: Call
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dead: tuple[int, ...] = ()


@dataclass(slots=True)
class Plan:
    """A graph bound to slots. Slot 0 stays None: the input that is left out."""

    template: list[Any] = field(default_factory=lambda: [None])
    """The slots before a run: constants in place, all others None."""
    inputs: tuple[int, ...] = ()
    captures: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    steps: list[Step] = field(default_factory=list)
    constant_roots: frozenset[int] = frozenset()
    """Ids of the arrays that own the constants' memory, subgraphs included."""

    def run(self, inputs: Sequence[Any], captured: Sequence[Any], run: Run) -> list[Any]:
        """The outputs, which may be views of inputs or constants."""
        slots = self.template.copy()
        for slot, value in zip(self.inputs, inputs, strict=True):
            slots[slot] = value
        for slot, value in zip(self.captures, captured, strict=True):
            slots[slot] = value
        check = run.state.check
        events = run.state.events
        for step in self.steps:
            check()
            arguments = [slots[i] for i in step.inputs]
            if events is None:
                results = step.call(arguments, run)
            else:
                start = time.perf_counter_ns()
                results = step.call(arguments, run)
                duration = time.perf_counter_ns() - start
                events.append(ProfileEvent(step.node.name or step.node.label, step.node.op, PROVIDER, start, duration))
            for slot, result in zip(step.outputs, results, strict=True):
                slots[slot] = result
            del arguments, results
            for slot in step.dead:
                slots[slot] = None
        return [slots[i] for i in self.outputs]


class Builder:
    """Makes plans; constants that several graphs read are widened once."""

    def __init__(self, *, widen: bool, custom: Mapping[str, CustomOp]) -> None:
        self.widen = widen
        self._custom = custom
        self._constants: dict[Value, Any] = {}

    def plan(self, graph: Graph, captured: Sequence[Value] = ()) -> Plan:
        """Bind `graph`; `captured` are the values of enclosing graphs that it reads, in the order they are passed."""
        plan = Plan()
        slots: dict[Value, int] = {}
        roots: set[int] = set()

        def slot(value: Value, node: Node | None) -> int:
            found = slots.get(value)
            if found is not None:
                return found
            if value.data is None:
                raise InvalidGraph(
                    "a value is read before it is written", node=node.label if node else None, value=value.name
                )
            array = self._constant(value)
            roots.add(id(root_of(array)))
            return define(value, array)

        def define(value: Value, initial: Any = None) -> int:
            plan.template.append(initial)
            slots[value] = len(plan.template) - 1
            return slots[value]

        plan.inputs = tuple(define(value) for value in graph.inputs)
        plan.captures = tuple(define(value) for value in captured)
        for node in graph:
            outer = node.captured()
            call = self._control(node, outer, roots) if node.op in CONTROL else self._kernel(node, graph)
            inputs = tuple(0 if v is None else slot(v, node) for v in (*node.inputs, *outer))
            outputs = tuple(define(v) for v in node.outputs)
            plan.steps.append(Step(node, call, inputs, outputs))
        plan.outputs = tuple(slot(value, None) for value in graph.outputs)
        self._mark_dead(plan)
        plan.constant_roots = frozenset(roots)
        return plan

    @property
    def constant_bytes(self) -> int:
        """Bytes of the constants that the plans read; those that share memory count once."""
        return sum({id(owner): owner.nbytes for owner in map(root_of, self._constants.values())}.values())

    def _constant(self, value: Value) -> Any:
        array = self._constants.get(value)
        if array is None:
            assert value.data is not None
            array = value.data.numpy()
            if self.widen:
                array = widen_value(array)
            if not array.flags.aligned:
                # A tensor inside a mapped file starts at any byte; numpy would copy it anew for every product.
                array = array.copy()
            array.flags.writeable = False
            self._constants[value] = array
        return array

    @staticmethod
    def _mark_dead(plan: Plan) -> None:
        keep = {0, *plan.outputs}
        keep.update(i for i, value in enumerate(plan.template) if value is not None)
        seen: set[int] = set(keep)
        for step in reversed(plan.steps):
            dead = tuple(dict.fromkeys(i for i in (*step.inputs, *step.outputs) if i not in seen))
            seen.update(dead)
            step.dead = dead

    def _control(self, node: Node, outer: Sequence[Value], roots: set[int]) -> Call:
        plans: dict[str, tuple[Plan, tuple[int, ...]]] = {}
        for name, attribute in node.attributes.items():
            if isinstance(attribute, Graph):
                captured = attribute.captured()
                plan = self.plan(attribute, captured)
                roots |= plan.constant_roots
                plans[name] = (plan, tuple(outer.index(v) for v in captured))
        bodies = {name: _body(plan, positions) for name, (plan, positions) in plans.items()}
        return CONTROL[node.op](node, bodies, self.widen)

    def _kernel(self, node: Node, graph: Graph) -> Call:
        custom = self._custom.get(node.op)
        bound: Bound
        if custom is not None:
            bound = bind_kernel(node, custom.evaluate)
        elif node.op == GRADIENT:
            return self._widened(bind_gradient(node, graph))
        elif any(True for _ in node.subgraphs()):
            raise NotImplemented(f"operator {node.op} with subgraphs has no executor", node=node.label)
        elif is_random(node):
            return self._widened(bind_random(widen_node(node) if self.widen else node))
        elif self.widen:
            bound = bind(widen_node(node))
            source = bit_cast_source(node) if node.op == "BitCast" else None
            if source is not None:
                bound = _narrowed(bound, source)
        else:
            bound = bind(node)
        return self._widened(lambda inputs, run: bound(inputs, run.limits))

    def _widened(self, call: Call) -> Call:
        """`call` with its results widened, for the kernels whose result type does not follow their inputs."""
        if not self.widen:
            return call
        return lambda inputs, run: [widen_value(result) for result in call(inputs, run)]


def _body(plan: Plan, positions: tuple[int, ...]) -> Callable[[Sequence[Any], Sequence[Any], Run], list[Any]]:
    """A subgraph as a function of its inputs and all that the node captures."""

    def body(inputs: Sequence[Any], captured: Sequence[Any], run: Run) -> list[Any]:
        return plan.run(inputs, [captured[i] for i in positions], run)

    return body


def _narrowed(bound: Bound, source: np.dtype[Any]) -> Bound:
    """`bound` given its first input in the type that the model declares for it."""
    return lambda inputs, limits: bound([inputs[0].astype(source), *inputs[1:]], limits)


def root_of(array: Any) -> Any:
    """The array that owns the memory under a chain of views."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
