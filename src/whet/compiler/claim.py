"""Which nodes the compiler takes, nodes with subgraphs included. What it takes it lowers, whatever the extents are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from whet.compiler.lower.pointwise import IN_MEMORY, pointwise_refusal
from whet.compiler.lower.scalar_table import SCALAR_RULES
from whet.compiler.lower.table import LOWER
from whet.compiler.structural import shape_operands, sources
from whet.graph import Graph, Node, TensorType, Value

Inputs = Collection[Value]
"""The inputs of the main graph: of all values that no node makes, those that stay the same for a whole run."""


def refusal(node: Node, inputs: Inputs) -> str | None:
    """Why the node cannot be lowered once the model's small integers are known, or None."""
    if node.op == "If":
        reason = decided_before_refusal(node, inputs)
        return None if reason is None else _or(reason, run_refusal(node, inputs))
    reason: str | None = f"no lowering for {node.op}"
    if node.op in SCALAR_RULES:
        reason = pointwise_refusal(node)
    if node.op in LOWER and reason is not None:
        reason = LOWER[node.op].refusal(node)
    if reason is None:
        reason = _unknown_operand(node, inputs)
    return reason


def decided_before_refusal(node: Node, inputs: Inputs) -> str | None:
    """Why an If cannot give way to one of its branches before the program is made, or None.

    What a branch holds may be of unknown rank as long as the other one may be taken. So a node counts as one that can
    be lowered when its operator can and nothing that is known of its types speaks against it.
    """
    condition = node.input(0)
    assert condition is not None
    reason = sources(condition, {}, set(), inputs)
    if reason is not None:
        return f"its condition is not known before the model runs: {reason}"
    for graph in node.subgraphs():
        for inner in graph:
            reason = _perhaps_refusal(inner, inputs)
            if reason is not None:
                return f"{inner.label} in {graph.name or 'a branch'}: {reason}"
    return None


def _perhaps_refusal(node: Node, inputs: Inputs) -> str | None:
    """Why the node cannot be lowered, whatever is not known of its types yet; or None."""
    if node.op == "If":
        return refusal(node, inputs)
    if not (node.op in SCALAR_RULES or node.op in LOWER):
        return f"no lowering for {node.op}"
    values = [v for v in (*node.inputs, *node.outputs) if v is not None]
    if all(_complete(v) for v in values):
        return refusal(node, inputs)
    for value in values:
        kind = value.type
        if kind is None:
            continue
        if not isinstance(kind, TensorType) or kind.sparse:
            return f"{value.name} is no dense tensor"
        if kind.dtype is not None and kind.dtype not in IN_MEMORY:
            return f"{value.name} has element type {kind.dtype}"
    return _unknown_operand(node, inputs)


def _complete(value: Value) -> bool:
    """Whether the element type and the rank are known."""
    return isinstance(value.type, TensorType) and value.type.dtype is not None and value.type.shape is not None


def run_refusal(node: Node, inputs: Inputs) -> str | None:
    """Why both branches of an If cannot be parts of one program, or None."""
    return "both branches in one program are not supported"


def _or(first: str, second: str | None) -> str | None:
    return None if second is None else f"{first}; and {second}"


def _unknown_operand(node: Node, inputs: Inputs) -> str | None:
    """Why an operand that shapes the result cannot be known before the program is made, or None."""
    for value in shape_operands(node):
        reason = sources(value, {}, set(), inputs)
        if reason is not None:
            return f"{value.name} decides its shape, and {reason}"
    return None
