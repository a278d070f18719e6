"""Which nodes the compiler takes, nodes with subgraphs included. What it takes it lowers, whatever the extents are."""

from __future__ import annotations

from collections.abc import Collection

from whet.compiler.extents import OPEN, name_extents, unbounded_nodes
from whet.compiler.lower.pointwise import IN_MEMORY, pointwise_refusal, tensor_refusal
from whet.compiler.lower.scalar_table import SCALAR_RULES
from whet.compiler.lower.table import LOWER
from whet.compiler.structural import is_known, shape_operands, sources
from whet.dtypes import INT32, INT64
from whet.errors import InvalidGraph, NotImplemented
from whet.graph import Graph, Node, TensorType, Value
from whet.graph.copy import copy_graph, extract
from whet.graph.dims import symbol

Inputs = Collection[Value]
"""The inputs of the main graph: of all values that no node makes, those that stay the same for a whole run."""

CONTROL = frozenset({"If", "Loop", "Scan"})


def refusal(node: Node, inputs: Inputs) -> str | None:
    """Why the node cannot be lowered once the model's small integers are known, or None."""
    if node.op == "If":
        reason = decided_before_refusal(node, inputs)
        if reason is None:
            return None
        other = run_refusal(node, inputs)
        return None if other is None else f"{other}; and {reason}"
    if node.op in CONTROL:
        return run_refusal(node, inputs)
    return _own_refusal(node, node, inputs)


def unbounded(graph: Graph) -> dict[Node, str]:
    """The nodes of a main graph that cannot follow what earlier ones leave to the data, with the reason."""
    if not any(node.op in OPEN for node in graph):
        return {}
    copy = copy_graph(graph, {})
    _name_inputs(copy)
    originals = dict(zip(copy.all_nodes(), graph.all_nodes(), strict=True))

    def guess(inner: Node) -> bool:
        return _waits(inner, originals[inner], graph.inputs)

    return {originals[node]: reason for node, reason in unbounded_nodes(copy, guess).items()}


def _name_inputs(graph: Graph) -> None:
    for index, value in enumerate(graph.inputs):
        kind = value.type
        if isinstance(kind, TensorType) and kind.shape is not None:
            dims = [symbol(f"input {index} axis {i}") if d is None else d for i, d in enumerate(kind.shape)]
            value.type = TensorType(kind.dtype, tuple(dims), kind.sparse)


def _own_refusal(node: Node, original: Node, inputs: Inputs) -> str | None:
    """Why a node without subgraphs cannot be lowered; `original` stands in the model, `node` may know its types."""
    reason: str | None = f"no lowering for {node.op}"
    if node.op in SCALAR_RULES:
        reason = pointwise_refusal(node)
    if node.op in LOWER and reason is not None:
        reason = LOWER[node.op].refusal(node)
    if reason is None:
        reason = _unknown_operand(node, original, inputs)
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
    if node.graph is not None and list(node.graph.inputs) == list(inputs):
        # What comes from outside the subgraph stays as it is; only a branch's own values become known.
        for value in node.captured():
            if value.data is None and not _is_complete(value):
                return f"the rank or element type of {value.name} is unknown"
    for graph in node.subgraphs():
        for inner in graph:
            reason = _perhaps_refusal(inner, inputs)
            if reason is not None:
                return f"{inner.label} in {graph.name or 'a branch'}: {reason}"
    return None


def _perhaps_refusal(node: Node, inputs: Inputs) -> str | None:
    """Why the node cannot be lowered, whatever is not known of its types yet; or None."""
    if node.op in CONTROL:
        return refusal(node, inputs)
    if not (node.op in SCALAR_RULES or node.op in LOWER):
        return f"no lowering for {node.op}"
    values = [v for v in (*node.inputs, *node.outputs) if v is not None]
    if all(_is_complete(v) for v in values):
        return refusal(node, inputs)
    for value in values:
        kind = value.type
        if kind is None:
            continue
        if not isinstance(kind, TensorType) or kind.sparse:
            return f"{value.name} is no dense tensor"
        if kind.dtype is not None and kind.dtype not in IN_MEMORY:
            return f"{value.name} has element type {kind.dtype}"
    return _unknown_operand(node, node, inputs)


def _is_complete(value: Value) -> bool:
    """Whether the element type and the rank are known."""
    return isinstance(value.type, TensorType) and value.type.dtype is not None and value.type.shape is not None


def is_decided_at_run(node: Node, inputs: Inputs) -> bool:
    """Whether the node is an If whose condition may be anything, because both branches can be parts of one program."""
    return node.op == "If" and run_refusal(node, inputs) is None


def run_refusal(node: Node, inputs: Inputs) -> str | None:
    """Why an If, Loop or Scan cannot be rows of a program that decide as it runs, or None.

    It is tried with a copy, in which every extent that is not known yet has a name.
    """
    outside = [v for v in dict.fromkeys((*node.inputs, *node.captured())) if v is not None]
    for value in outside:
        if not _is_complete(value):
            return f"the rank or element type of {value.name} is unknown"
    reason = tensor_refusal(node)
    if reason is not None and "rank" not in reason and "element type of" not in reason:
        return reason
    assert node.graph is not None
    trial = extract(node.graph, [node], [v for v in outside if v.data is None], node.outputs, "trial")
    _name_inputs(trial)
    originals = dict(zip(trial.all_nodes(), _with_inner(node), strict=True))

    def guess(inner: Node) -> bool:
        return _waits(inner, originals[inner], inputs)

    try:
        name_extents(trial, guess)
    except NotImplemented as error:
        return f"{error.problem} ({error.node})"
    except InvalidGraph as error:
        return str(error)
    for inner, original in originals.items():
        reason = _control_refusal(inner) if inner.op in CONTROL else _own_refusal(inner, original, inputs)
        if reason is not None:
            return reason if original is node else f"{inner.label}: {reason}"
    return None


def _with_inner(node: Node) -> list[Node]:
    return [node, *(inner for graph in node.subgraphs() for inner in graph.all_nodes())]


def _control_refusal(node: Node) -> str | None:
    """What is wrong with the tensors that enter and leave a node with subgraphs."""
    reason = tensor_refusal(node)
    if reason is None and node.op == "If" and node.inputs[0] is not None and len(node.inputs[0].shape or ()) > 1:
        reason = "its condition is no scalar"
    for graph in node.subgraphs():
        for value in graph.outputs:
            kind = value.type
            if reason is None and not (isinstance(kind, TensorType) and kind.dtype in IN_MEMORY and not kind.sparse):
                reason = f"{value.name} is no tensor that kernels hold"
    return reason


def _unknown_operand(node: Node, original: Node, inputs: Inputs) -> str | None:
    """Why an operand that shapes the result cannot be known before the program is made, or None."""
    for value, other in zip(shape_operands(node), shape_operands(original), strict=True):
        if is_known(value):
            continue
        reason = sources(other, {}, set(), inputs)
        if reason is not None and not _is_bounded(node, value):
            return f"{value.name} decides its shape, and {reason}"
    return None


def _waits(node: Node, original: Node, inputs: Inputs) -> bool:
    """Whether the node's extents are unknown only as long as the model's small integers are."""
    return any(True for _ in shape_operands(node)) and _unknown_operand(node, original, inputs) is None


def _is_bounded(node: Node, value: Value) -> bool:
    """Whether an operand may be read as the program runs, because the result is no larger than the first operand."""
    kind = value.type
    if not isinstance(kind, TensorType) or kind.dtype not in (INT64, INT32) or kind.shape is None:
        return False
    if any(not isinstance(d, int) for d in kind.shape):
        return False
    if node.op == "Slice":
        fixed = all(v is None or v.data is not None for v in (node.input(3), node.input(4)))
        return fixed and value in node.inputs[1:3]
    return node.op in ("Reshape", "TopK") and value is node.input(1)
