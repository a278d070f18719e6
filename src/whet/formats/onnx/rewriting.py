"""Small tools with which the opset adapters rewrite a node in its graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from whet.formats.onnx.facts import dtype_of
from whet.graph import Attribute, Graph, Node, TensorData, Value
from whet.graph.core import NameScope


class Rewriter:
    """Makes nodes and constants with names that are free in the model."""

    def __init__(self, names: NameScope) -> None:
        self._names = names

    def constant(self, node: Node, suffix: str, array: Any) -> Value:
        """A constant named after `node`."""
        return Value.constant(self._names.fresh(f"{_stem(node)}_{suffix}"), TensorData.from_array(array))

    def ints(self, node: Node, suffix: str, numbers: Iterable[int]) -> Value:
        """A constant int64 vector named after `node`."""
        return self.constant(node, suffix, np.array(list(numbers), np.int64))

    def insert(
        self,
        before: Node,
        op_type: str,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Attribute] | None = None,
    ) -> Value:
        """A new node with one output in front of `before`; returns the output."""
        stem = f"{_stem(before)}_{op_type.lower()}"
        node = Node(op_type, inputs, [self._names.fresh(f"{stem}_output")], attributes, name=self._names.fresh(stem))
        graph = before.graph
        assert graph is not None
        graph.insert_before(before, node)
        return node.output

    def replace(
        self,
        node: Node,
        op_type: str,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Attribute] | None = None,
        outputs: Sequence[Value] | None = None,
    ) -> Node:
        """A node in place of `node` that makes its output values (or `outputs`)."""
        graph = node.graph
        assert graph is not None
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        new = Node(
            op_type,
            given,
            node.outputs if outputs is None else outputs,
            node.attributes if attributes is None else attributes,
            domain=node.domain,
            name=node.name,
        )
        new.metadata = node.metadata
        graph.insert_before(node, new)
        node.attributes = {}  # its subgraphs, if any, now belong to the new node
        graph.remove(node)
        return new

    def like(self, node: Node, suffix: str, number: float, value: Value | None) -> Value:
        """The scalar `number` in the element type of `value`."""
        dtype = dtype_of(value)
        if dtype is not None:
            # A bound outside of a narrow type's range becomes infinite there, which is what it means.
            with np.errstate(over="ignore"):
                return self.constant(node, suffix, np.asarray(number).astype(dtype.numpy))
        scalar = self.constant(node, suffix, np.float32(number))
        return self.insert(node, "CastLike", [scalar, value])

    def fresh(self, base: str) -> str:
        """A free name."""
        return self._names.fresh(base)

    def subgraph(self, name: str) -> Graph:
        """An empty graph for a new node's attribute."""
        return Graph(name)


Adapter = Callable[[Rewriter, Node], Node | None]
"""Rewrites a node one step; returns the node that carries on, or None when nothing is left to adapt."""


def without(node: Node, *names: str) -> dict[str, Attribute]:
    """The node's attributes but for `names`."""
    return {k: v for k, v in node.attributes.items() if k not in names}


def _stem(node: Node) -> str:
    return node.name or next((o.name for o in node.outputs if o.name), node.op_type)
