"""Gradient (ai.onnx.preview.training): reverse-mode differentiation of a part of the graph, found by value names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.errors import InvalidArgument, NotImplemented
from whet.graph import Graph, Node, Value
from whet.ops.evaluate import Bound, bind
from whet.providers.reference.run import Run

GRADIENT = "ai.onnx.preview.training.Gradient"

Pull = Callable[[Node, Sequence[Any], Any, Any], Sequence[Any]]
"""`pull(node, inputs, output, gradient)`: the gradient of each input from that of the output."""


def _fit(gradient: Any, like: Any) -> Any:
    """A gradient summed over the axes along which `like` was broadcast."""
    extra = gradient.ndim - like.ndim
    gradient = np.asarray(gradient.sum(axis=tuple(range(extra))))
    axes = tuple(i for i, extent in enumerate(like.shape) if extent == 1 and gradient.shape[i] != 1)
    return gradient.sum(axis=axes, keepdims=True) if axes else gradient


def _mul(node: Node, x: Sequence[Any], y: Any, g: Any) -> Sequence[Any]:
    return [_fit(g * x[1], x[0]), _fit(g * x[0], x[1])]


def _div(node: Node, x: Sequence[Any], y: Any, g: Any) -> Sequence[Any]:
    return [_fit(g / x[1], x[0]), _fit(-g * y / x[1], x[1])]


def _matmul(node: Node, x: Sequence[Any], y: Any, g: Any) -> Sequence[Any]:
    if x[0].ndim < 2 or x[1].ndim < 2:
        raise NotImplemented("the gradient of a product with a vector", node=node.label)
    return [_fit(g @ x[1].swapaxes(-1, -2), x[0]), _fit(x[0].swapaxes(-1, -2) @ g, x[1])]


def _transpose(node: Node, x: Sequence[Any], y: Any, g: Any) -> Sequence[Any]:
    perm = node.ints_attr("perm", tuple(range(g.ndim))[::-1])
    return [g.transpose(np.argsort(perm))]


PULLS: dict[str, Pull] = {
    "Add": lambda node, x, y, g: [_fit(g, x[0]), _fit(g, x[1])],
    "Cos": lambda node, x, y, g: [-g * np.sin(x[0])],
    "Div": _div,
    "Exp": lambda node, x, y, g: [g * y],
    "Identity": lambda node, x, y, g: [g],
    "Log": lambda node, x, y, g: [g / x[0]],
    "MatMul": _matmul,
    "Mul": _mul,
    "Neg": lambda node, x, y, g: [-g],
    "Relu": lambda node, x, y, g: [g * (x[0] > 0)],
    "Reshape": lambda node, x, y, g: [g.reshape(x[0].shape), None],
    "Sigmoid": lambda node, x, y, g: [g * y * (1 - y)],
    "Sin": lambda node, x, y, g: [g * np.cos(x[0])],
    "Sqrt": lambda node, x, y, g: [g / (2 * y)],
    "Sub": lambda node, x, y, g: [_fit(g, x[0]), _fit(-g, x[1])],
    "Tanh": lambda node, x, y, g: [g * (1 - y * y)],
    "Transpose": _transpose,
}


@dataclass(frozen=True, slots=True)
class _Part:
    """The differentiated part: independent values, nodes in order, and the value that is differentiated."""

    sources: tuple[Value, ...]
    nodes: tuple[Node, ...]
    target: Value


def find_part(node: Node, graph: Graph) -> _Part | str:
    """The part of `graph` that the attributes of `node` name, or why there is none that can be differentiated."""
    xs, zs, y = node.attributes.get("xs"), node.attributes.get("zs", ()), node.attributes.get("y")
    if not isinstance(xs, tuple) or not isinstance(zs, tuple) or not isinstance(y, str):
        return "attributes xs and y are needed"
    values = [graph.find_value(str(name)) for name in (*xs, *zs, y)]
    if any(value is None for value in values):
        return f"the graph has not all of the values {', '.join(str(n) for n in (*xs, *zs, y))}"
    *sources, target = (value for value in values if value is not None)
    known = set(sources)
    nodes = []
    needed = _ancestors(target, known)
    for candidate in graph:
        if candidate not in needed:
            continue
        if candidate.op not in PULLS:
            return f"there is no derivative of operator {candidate.op} ({candidate.label})"
        missing = [v.name for v in candidate.inputs if v is not None and v.data is None and v not in known]
        if missing:
            return f"{', '.join(missing)} is neither constant nor among xs and zs"
        known.update(candidate.outputs)
        nodes.append(candidate)
    return _Part(tuple(sources), tuple(nodes), target)


def _ancestors(target: Value, stop: set[Value]) -> set[Node]:
    found: set[Node] = set()
    open_ = [target]
    while open_:
        value = open_.pop()
        if value in stop or value.producer is None or value.producer in found:
            continue
        found.add(value.producer)
        open_.extend(v for v in value.producer.inputs if v is not None)
    return found


def bind_gradient(node: Node, graph: Graph) -> Callable[[Sequence[Any], Run], list[Any]]:
    """The node as a function of the values named in `xs` and `zs`."""
    part = find_part(node, graph)
    if isinstance(part, str):
        raise NotImplemented(part, node=node.label)
    wanted = node.attributes["xs"]
    assert isinstance(wanted, tuple)
    steps: list[tuple[Node, Bound]] = [(inner, bind(inner)) for inner in part.nodes]

    def call(inputs: Sequence[Any], run: Run) -> list[Any]:
        if len(inputs) != len(part.sources):
            raise InvalidArgument(
                "one input for each of xs and zs is needed",
                node=node.label,
                found=len(inputs),
                expected=len(part.sources),
            )
        # Reversed, so that of a value named twice the first mention counts.
        values: dict[Value, Any] = dict(zip(reversed(part.sources), reversed(inputs), strict=True))

        def read(value: Value | None) -> Any:
            return None if value is None else values[value] if value.data is None else value.data.numpy()

        for inner, bound in steps:
            run.state.check()
            values[inner.output] = bound([read(v) for v in inner.inputs], run.limits)[0]
        gradients: dict[Value, Any] = {part.target: np.ones_like(values[part.target])}
        for inner, _ in reversed(steps):
            gradient = gradients.get(inner.output)
            if gradient is None:
                continue
            arguments = [read(v) for v in inner.inputs]
            for value, pulled in zip(
                inner.inputs, PULLS[inner.op](inner, arguments, values[inner.output], gradient), strict=False
            ):
                if value is not None and pulled is not None and value.data is None:
                    gradients[value] = pulled if value not in gradients else np.asarray(gradients[value] + pulled)
        sources = part.sources[: len(wanted)]
        return [gradients.get(v, np.zeros_like(values[v])) for v in sources[: len(node.outputs)]]

    return call
