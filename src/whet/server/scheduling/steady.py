"""Whether what a run takes follows from the shapes of its inputs alone.

Only such a model may run on the event loop: another one may be quick a thousand times, and then get values that let it
go round a loop for ever, or make of ten numbers a tensor that fills the machine.
"""

from __future__ import annotations

from whet.compiler.structural import ALWAYS_KNOWN, SHAPE_OPERANDS, is_known
from whet.graph import Graph, Node, TensorType, Value

BY_VALUE = frozenset(
    {
        "Loop", "If", "NonZero", "Compress", "Unique", "NonMaxSuppression", "RoiAlign",
        "com.microsoft.BeamSearch", "com.microsoft.GreedySearch", "com.microsoft.Sampling",
        "com.microsoft.WhisperBeamSearch", "com.microsoft.GroupQueryAttention",
    }
)  # fmt: skip
"""Operators whose work depends on the elements of their inputs, wherever these come from."""

MORE_OPERANDS: dict[str, tuple[int, ...]] = {"SplitToSequence": (1,), "com.microsoft.Range": (0, 1, 2)}


def why_unsteady(graph: Graph) -> str | None:
    """The first reason that is found why runs with the same shapes may differ in what they take; None: they do not."""
    for value in graph.inputs:
        if not isinstance(value.type, TensorType) or value.type.dtype is None or value.type.dtype.kind == "string":
            return f"{value.name!r} has elements of any length"
    return _unsteady(graph, set())


def _unsteady(graph: Graph, by_value: set[Value]) -> str | None:
    """As `why_unsteady`; adds to `by_value` the values of `graph` that depend on elements of inputs."""
    by_value.update(value for value in graph.inputs if value.data is None)
    for node in graph:
        if node.op in BY_VALUE:
            return f"{node.label} works by the elements that it gets"
        for value in _operands(node):
            if value in by_value:
                return f"the extents of {node.label} depend on elements of {value.name!r}"
        for inner in node.subgraphs():
            if (reason := _unsteady(inner, by_value)) is not None:
                return reason
        if node.op in ALWAYS_KNOWN:
            continue
        if list(node.subgraphs()) or any(value in by_value for value in node.inputs):
            by_value.update(value for value in node.outputs if not is_known(value))
    return None


def _operands(node: Node) -> list[Value]:
    """What decides on extents, axes or the number of rounds of a node."""
    found = (node.input(index) for index in (*SHAPE_OPERANDS.get(node.op, ()), *MORE_OPERANDS.get(node.op, ())))
    return [value for value in found if value is not None]
