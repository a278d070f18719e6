"""Inference through subgraphs: If, Loop, Scan, SequenceMap."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from whet.dtypes import BOOL, INT64
from whet.errors import InvalidGraph
from whet.graph import Graph, Node, SequenceType, Shape, TensorType, Type, Value
from whet.graph.dims import Dim
from whet.ops.common import axis_in, element_type, static_ints, tensor
from whet.ops.merge import join, refine

InferGraph = Callable[[Graph], None]
ControlInfer = Callable[[Node, InferGraph, int], Sequence[Type | None]]
"""`rule(node, infer, depth)`: `infer` does a subgraph, `depth` counts the graphs around the node."""

_FIXPOINT_DEPTH = 4
"""Loops nested deeper get no fixpoint, which would double the work at each level: their states keep no shape."""


def subgraph(node: Node, name: str) -> Graph:
    """The graph in attribute `name`. Raises InvalidGraph when there is none."""
    graph = node.attributes.get(name)
    if not isinstance(graph, Graph):
        raise InvalidGraph(f"attribute {name!r} is missing or no graph", expected="a subgraph")
    return graph


def if_(node: Node, infer: InferGraph, depth: int) -> Sequence[Type | None]:
    """What holds for the outputs of both branches, or of the one that is going to be taken.

    The other one is not looked at: with the extents at hand it may make no sense.
    """
    branches = [subgraph(node, name) for name in ("then_branch", "else_branch")]
    truth = static_ints(node.input(0))
    if truth is not None and len(truth) == 1:
        branches = branches[:1] if truth[0] else branches[1:]
    for branch in branches:
        infer(branch)
        if len(branch.outputs) != len(node.outputs):
            raise InvalidGraph(
                "a branch of an If makes another number of outputs than the If",
                found=f"{len(branch.outputs)} in {branch.name!r}",
                expected=len(node.outputs),
            )
    then, other = branches[0], branches[-1]
    return [join(a.type, b.type) for a, b in zip(then.outputs, other.outputs, strict=True)]


def loop(node: Node, infer: InferGraph, depth: int) -> Sequence[Type | None]:
    """Carried values by fixpoint; stacked values with an open first extent."""
    body = subgraph(node, "body")
    carried = len(body.inputs) - 2
    if carried < 0 or len(node.inputs) != carried + 2 or len(body.outputs) < carried + 1:
        raise InvalidGraph(
            "a Loop's inputs and its body's inputs and outputs do not match",
            found=f"{len(node.inputs)} inputs; body: {len(body.inputs)} inputs, {len(body.outputs)} outputs",
            expected="n + 2 inputs on both, and at least n + 1 outputs of the body",
        )
    body.inputs[0].type = refine(TensorType(INT64, ()), body.inputs[0].type)
    body.inputs[1].type = refine(TensorType(BOOL, ()), body.inputs[1].type)
    initial = [v.type if v is not None else None for v in node.inputs[2:]]
    states = _fixpoint(body, body.inputs[2:], initial, body.outputs[1 : carried + 1], infer, depth)
    stacked = [_stacked(v, None, 0) for v in body.outputs[carried + 1 :]]
    return [*states, *stacked]


def scan(node: Node, infer: InferGraph, depth: int) -> Sequence[Type | None]:
    """States by fixpoint; scanned inputs lose an axis, stacked outputs gain one."""
    body = subgraph(node, "body")
    scanned = node.int_attr("num_scan_inputs", 0)
    states = len(node.inputs) - scanned
    if not 1 <= scanned <= len(node.inputs):
        raise InvalidGraph(
            "a Scan's num_scan_inputs does not fit its inputs",
            found=scanned,
            expected=f"within [1, {len(node.inputs)}]",
        )
    if len(body.inputs) != len(node.inputs) or not states <= len(body.outputs) == len(node.outputs):
        raise InvalidGraph(
            "a Scan's inputs and outputs do not match its body's",
            found=f"{len(body.inputs)} body inputs, {len(body.outputs)} body outputs",
            expected=f"{len(node.inputs)} and {len(node.outputs)}",
        )
    axes = _axes(node, "scan_input_axes", scanned)
    length: Dim = None
    for value, inner, axis in zip(node.inputs[states:], body.inputs[states:], axes, strict=True):
        outer = tensor(value)
        if outer is None:
            continue
        shape = outer.shape
        if shape is not None:
            axis = axis_in(axis, len(shape))
            length = shape[axis] if length is None else length
            shape = (*shape[:axis], *shape[axis + 1 :])
        inner.type = TensorType(outer.dtype, shape)
    initial = [v.type if v is not None else None for v in node.inputs[:states]]
    finals = _fixpoint(body, body.inputs[:states], initial, body.outputs[:states], infer, depth)
    out_axes = _axes(node, "scan_output_axes", len(body.outputs) - states)
    stacked = [_stacked(v, length, axis) for v, axis in zip(body.outputs[states:], out_axes, strict=True)]
    return [*finals, *stacked]


def _axes(node: Node, name: str, count: int) -> Sequence[int]:
    """One axis for each scanned input or output, all 0 where the attribute is missing."""
    axes = node.ints_attr(name, (0,) * count)
    if len(axes) != count:
        raise InvalidGraph(f"attribute {name} has the wrong length", found=len(axes), expected=count)
    return axes


def sequence_map(node: Node, infer: InferGraph, depth: int) -> Sequence[Type | None]:
    body = subgraph(node, "body")
    for value, inner in zip(node.inputs, body.inputs, strict=False):
        if value is not None and isinstance(value.type, SequenceType):
            inner.type = element_type(value)
        elif value is not None:
            inner.type = value.type
    infer(body)
    return [SequenceType(v.type) for v in body.outputs]


def _fixpoint(
    body: Graph,
    inputs: Sequence[Value],
    initial: Sequence[Type | None],
    outputs: Sequence[Value],
    infer: InferGraph,
    depth: int,
) -> list[Type | None]:
    """Types that hold for the states before the first and after every iteration.

    Starts from the initial values' types and widens what an iteration changes until nothing does; inner types of a
    round that assumed too much are thrown away.
    """
    inner = [v for graph in body.all_graphs() for node in graph for v in node.outputs]
    inner += [v for graph in body.all_graphs() if graph is not body for v in graph.inputs]
    declared = [v.type for v in inner]
    states = [_state(t, v.type) for t, v in zip(initial, inputs, strict=True)]
    if depth >= _FIXPOINT_DEPTH:
        states = [_state(None, t) for t in states]
        for value, kind in zip(inputs, states, strict=True):
            value.type = kind
        infer(body)
        return states
    while True:
        for value, kind in zip(inputs, states, strict=True):
            value.type = kind
        infer(body)
        widened = [join(state, made.type) for state, made in zip(states, outputs, strict=True)]
        if widened == states:
            return states
        states = widened
        for value, kind in zip(inner, declared, strict=True):
            value.type = kind
            value.symbolic = None


def _state(initial: Type | None, declared: Type | None) -> Type | None:
    """A state's first type. Its declared shape is not used: it may change from one iteration to the next."""
    element = TensorType(declared.dtype) if isinstance(declared, TensorType) else declared
    return element if initial is None else refine(initial, element)


def _stacked(value: Value, length: Dim, axis: int) -> Type | None:
    kind = tensor(value)
    if kind is None:
        return None
    shape: Shape | None = kind.shape
    if shape is not None:
        axis = axis_in(axis, len(shape) + 1)
        shape = (*shape[:axis], length, *shape[axis:])
    return TensorType(kind.dtype, shape)
