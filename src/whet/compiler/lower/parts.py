"""Operators that are taken apart into simpler ones before lowering: what makes the nodes that take their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from whet.compiler.fuse import Group
from whet.compiler.lower.rule import Refusal, Rule
from whet.compiler.lowering import Lowering
from whet.graph import Attribute, Node, Value
from whet.graph.core import NameScope
from whet.graph.tensor import Array


class Parts:
    """Collects the nodes that take one node's place."""

    def __init__(self, node: Node, names: NameScope) -> None:
        self._names = names
        self._base = node.output.name
        self.nodes: list[Node] = []

    def constant(self, array: Array) -> Value:
        """A constant."""
        return Value.constant(self._names.fresh(f"{self._base}_constant"), array)

    def ints(self, *numbers: int) -> Value:
        """A row of int64 constants."""
        return self.constant(np.array(numbers, np.int64))

    def node(self, op: str, *inputs: Value, attributes: Mapping[str, Attribute] | None = None) -> Value:
        """The output of a new node; its type is left to inference."""
        self.nodes.append(Node(op, inputs, [Value("")], attributes))
        return self.nodes[-1].output


TakeApart = Callable[[Node, Parts], Sequence[Value] | None]
"""Makes the parts of a node: a value for each of its outputs; None where it stays whole."""


def taken_apart(refusal: Refusal) -> Rule:
    """The rule of an operator that no graph holds any more when it is lowered."""

    def lower(ctx: Lowering, node: Node, group: Group | None) -> None:
        raise ctx.refuse(f"{node.op} should have been taken apart")

    return Rule(lower, refusal)
