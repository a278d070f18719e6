"""Merging of equal constants and of nodes that compute the same."""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterator

from whet.dtypes import STRING
from whet.graph import Attribute, Graph, Node, Patch, TensorData, Value
from whet.ops.base import NON_DETERMINISTIC
from whet.passes.base import PassContext
from whet.passes.basic.common import constant_true, keep_type

_NEVER = NON_DETERMINISTIC | {"Identity"}
"""Not merged: random operators; Identity, which only carries names by the time that it stays."""


class ConstantMerging:
    """Lets equal constants of at most `Limits.cse_bytes` be one value, in all graphs."""

    name = "constant-merging"

    def patches(self, graph: Graph, context: PassContext) -> Iterator[Patch]:
        kept: dict[bytes, Value] = {}
        seen: set[Value] = set()
        yield from self._merge(graph, context.limits.cse_bytes, kept, seen)

    def _merge(self, graph: Graph, largest: int, kept: dict[bytes, Value], seen: set[Value]) -> Iterator[Patch]:
        for node in graph:
            for value in node.inputs:
                if value is None or value.data is None or value in seen:
                    continue
                seen.add(value)
                data = value.data
                if data.size > largest or (data.dtype is not STRING and data.nbytes > largest):
                    continue
                first = kept.setdefault(value.data.digest(), value)
                if first is not value and not value.graph_outputs:
                    yield Patch(node, (), {value: first})
            for subgraph in node.subgraphs():
                yield from self._merge(subgraph, largest, kept, seen)


class CommonSubexpressions:
    """Lets nodes of one graph with the same operator, inputs and attributes be one node.

    Attributes are compared exactly (floats by their bits, tensors by digest); nodes with subgraphs are left alone.
    """

    name = "common-subexpressions"

    def patches(self, graph: Graph, context: PassContext) -> Iterator[Patch]:
        alike: dict[Hashable, Node] = {}
        equal: dict[Hashable, Node] = {}
        for node in graph:
            for subgraph in node.subgraphs():
                yield from self.patches(subgraph, context)
            if node.op_type in _NEVER or (node.op_type == "Dropout" and constant_true(node.input(2)) is not False):
                continue
            # Values hash by identity, so that this says: the very same inputs. Attributes, which may be long, are only
            # looked at where all else agrees.
            key = (node.op, node.inputs, len(node.outputs))
            other = alike.setdefault(key, node)
            if other is node:
                continue
            equal.setdefault((key, _attributes(other)), other)
            first = equal.setdefault((key, _attributes(node)), node)
            if first is node or _attributes(node) is None:
                continue
            same = {b: a for a, b in zip(first.outputs, node.outputs, strict=True) if b.use_count}
            for later, earlier in same.items():
                keep_type(earlier, later)
            if same:
                yield Patch(node, (), same, [node])


def _attributes(node: Node) -> Hashable | None:
    """The attributes as something that is equal exactly when they are; None when a graph is among them."""
    attributes: list[tuple[str, Hashable]] = []
    for name in sorted(node.attributes):
        frozen = _freeze(node.attributes[name])
        if frozen is None:
            return None
        attributes.append((name, frozen))
    return tuple(attributes)


def _freeze(attribute: Attribute) -> Hashable | None:
    """The attribute as something that is equal exactly when the attribute is; None when it holds a graph."""
    if isinstance(attribute, Graph):
        return None
    if isinstance(attribute, float):
        return ("float", struct.pack("<d", attribute))
    if isinstance(attribute, TensorData):
        return ("tensor", attribute.digest())
    if isinstance(attribute, tuple):
        parts = tuple(_freeze(a) for a in attribute)
        return None if None in parts else ("tuple", parts)
    return (type(attribute).__name__, attribute)
