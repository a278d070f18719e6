"""The operators with subgraphs: If, Loop, Scan, SequenceMap and FlexAttention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from whet.errors import InvalidArgument, InvalidGraph, ResourceExhausted
from whet.graph import Graph, Node, TensorType, Value
from whet.providers.reference.flex import bind_flex_attention
from whet.providers.reference.run import Body, Call, Run
from whet.providers.reference.widen import widen_type

Bind = Callable[[Node, Mapping[str, Body], bool], Call]


def _bind_if(node: Node, bodies: Mapping[str, Body], widen: bool) -> Call:
    then_branch, else_branch = _body(node, bodies, "then_branch"), _body(node, bodies, "else_branch")

    def call(inputs: Sequence[Any], run: Run) -> list[Any]:
        branch = then_branch if _truth(node, inputs[0], "cond") else else_branch
        results = branch((), inputs[1:], run)
        _expect_count(node, results, len(node.outputs), "the branch")
        return results

    return call


def _bind_loop(node: Node, bodies: Mapping[str, Body], widen: bool) -> Call:
    body = _body(node, bodies, "body")
    graph = node.attributes["body"]
    assert isinstance(graph, Graph)
    given = len(node.inputs)
    state_count = max(given - 2, 0)
    scanned = graph.outputs[1 + state_count :]
    _expect_outputs(node, state_count + len(scanned))

    def call(inputs: Sequence[Any], run: Run) -> list[Any]:
        captured = inputs[given:]
        trips = None if given < 1 or inputs[0] is None else _whole(node, inputs[0], "M")
        going = True if given < 2 or inputs[1] is None else _truth(node, inputs[1], "cond")
        state = list(inputs[2:given])
        stacks = [_Stack(node, run, value) for value in scanned]
        iteration = 0
        while going and (trips is None or iteration < trips):
            run.state.check()
            results = body((np.array(iteration, np.int64), np.array(going), *state), captured, run)
            _expect_count(node, results, 1 + state_count + len(stacks), "the body")
            going = _truth(node, results[0], "the body's condition")
            state = results[1 : 1 + state_count]
            for stack, item in zip(stacks, results[1 + state_count :], strict=True):
                stack.append(item)
            iteration += 1
        return _outputs(node, [*state, *(stack.stacked(0, widen) for stack in stacks)])

    return call


def _bind_scan(node: Node, bodies: Mapping[str, Body], widen: bool) -> Call:
    body = _body(node, bodies, "body")
    graph = node.attributes["body"]
    assert isinstance(graph, Graph)
    given = len(node.inputs)
    scan_count = node.int_attr("num_scan_inputs", 0)
    state_count = given - scan_count
    if scan_count < 1 or state_count < 0:
        raise InvalidGraph(
            "attribute num_scan_inputs does not fit the inputs", node=node.label, found=scan_count,
            expected=f"within [1, {given}]",
        )  # fmt: skip
    scanned = graph.outputs[state_count:]
    _expect_outputs(node, state_count + len(scanned))
    in_axes = node.ints_attr("scan_input_axes", (0,) * scan_count)
    in_back = node.ints_attr("scan_input_directions", (0,) * scan_count)
    out_axes = node.ints_attr("scan_output_axes", (0,) * len(scanned))
    out_back = node.ints_attr("scan_output_directions", (0,) * len(scanned))
    for name, values, expected in (
        ("scan_input_axes", in_axes, scan_count),
        ("scan_input_directions", in_back, scan_count),
        ("scan_output_axes", out_axes, len(scanned)),
        ("scan_output_directions", out_back, len(scanned)),
    ):
        if len(values) != expected:
            raise InvalidGraph(
                f"attribute {name} has the wrong length", node=node.label, found=len(values), expected=expected
            )

    def call(inputs: Sequence[Any], run: Run) -> list[Any]:
        captured = inputs[given:]
        state = list(inputs[:state_count])
        sources = [
            np.moveaxis(array, _axis(node, axis, array.ndim), 0)[:: -1 if back else 1]
            for array, axis, back in zip(inputs[state_count:given], in_axes, in_back, strict=True)
        ]
        lengths = {len(source) for source in sources}
        if len(lengths) != 1:
            raise InvalidArgument(
                "the scan inputs differ in length", node=node.label,
                found=[len(source) for source in sources], expected="one length along the scanned axes",
            )  # fmt: skip
        stacks = [_Stack(node, run, value) for value in scanned]
        for iteration in range(lengths.pop()):
            run.state.check()
            results = body((*state, *(source[iteration] for source in sources)), captured, run)
            _expect_count(node, results, state_count + len(stacks), "the body")
            state = results[:state_count]
            for stack, item in zip(stacks, results[state_count:], strict=True):
                stack.append(item)
        return _outputs(
            node,
            [
                *state,
                *(
                    stack.stacked(axis, widen, backward=bool(back))
                    for stack, axis, back in zip(stacks, out_axes, out_back, strict=True)
                ),
            ],
        )

    return call


def _bind_sequence_map(node: Node, bodies: Mapping[str, Body], widen: bool) -> Call:
    body = _body(node, bodies, "body")
    given = len(node.inputs)

    def call(inputs: Sequence[Any], run: Run) -> list[Any]:
        captured = inputs[given:]
        first = inputs[0]
        if not isinstance(first, list):
            raise InvalidArgument("the first input must be a sequence", node=node.label, value="input_sequence")
        results: list[list[Any]] = [[] for _ in node.outputs]
        for position, item in enumerate(first):
            run.state.check()
            arguments = [item]
            for other in inputs[1:given]:
                if not isinstance(other, list):
                    arguments.append(other)
                elif position < len(other):
                    arguments.append(other[position])
                else:
                    raise InvalidArgument(
                        "the sequences differ in length", node=node.label, found=len(other), expected=len(first)
                    )
            outputs = body(arguments, captured, run)
            _expect_count(node, outputs, len(results), "the body")
            for result, output in zip(results, outputs, strict=True):
                result.append(output)
        return list(results)

    return call


CONTROL: dict[str, Bind] = {
    "If": _bind_if,
    "Loop": _bind_loop,
    "Scan": _bind_scan,
    "SequenceMap": _bind_sequence_map,
    "ai.onnx.preview.FlexAttention": bind_flex_attention,
}


class _Stack:
    """What a scan output collects, its total size kept under the limit."""

    def __init__(self, node: Node, run: Run, value: Value) -> None:
        self._node = node
        self._limit = run.limits.tensor_bytes
        self._value = value
        self._items: list[Any] = []
        self._bytes = 0

    def append(self, item: Any) -> None:
        if not isinstance(item, np.ndarray):
            raise InvalidArgument("a scan output must be a tensor", node=self._node.label, value=self._value.name)
        if self._items and item.shape != self._items[0].shape:
            raise InvalidArgument(
                "a scan output changes its shape between iterations",
                node=self._node.label,
                value=self._value.name,
                found=item.shape,
                expected=self._items[0].shape,
            )
        self._bytes += item.nbytes
        if self._bytes > self._limit:
            raise ResourceExhausted(
                "a scan output would be larger than the limit",
                node=self._node.label,
                value=self._value.name,
                found=f"more than {self._bytes} bytes",
                expected=f"at most {self._limit} bytes",
                hint="Raise Limits.tensor_bytes if this is meant.",
            )
        self._items.append(item)

    def stacked(self, axis: int, widen: bool, *, backward: bool = False) -> Any:
        """All items along a new axis; with none, an empty tensor of the declared type (unknown extents are 0)."""
        if self._items:
            items = self._items[::-1] if backward else self._items
            return np.stack(items, _axis(self._node, axis, items[0].ndim + 1))
        type_ = widen_type(self._value.type) if widen else self._value.type
        if not isinstance(type_, TensorType) or type_.dtype is None:
            raise InvalidArgument(
                "a scan output without iterations needs a declared type", node=self._node.label, value=self._value.name
            )
        inner = [d if isinstance(d, int) else 0 for d in type_.shape or ()]
        inner.insert(_axis(self._node, axis, len(inner) + 1), 0)
        return np.empty(inner, type_.dtype.numpy)


def _body(node: Node, bodies: Mapping[str, Body], name: str) -> Body:
    body = bodies.get(name)
    if body is None:
        raise InvalidGraph(f"attribute {name} is missing", node=node.label, expected="a graph")
    return body


def _expect_outputs(node: Node, made: int) -> None:
    if len(node.outputs) > made:
        raise InvalidGraph(
            "the node has more outputs than its body makes",
            node=node.label,
            found=len(node.outputs),
            expected=f"at most {made}",
        )


def _outputs(node: Node, results: list[Any]) -> list[Any]:
    return results[: len(node.outputs)]


def _axis(node: Node, axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise InvalidArgument("a scan axis is out of range", node=node.label, found=axis, expected=f"[{-rank}, {rank})")
    return axis % rank


def _truth(node: Node, value: Any, name: str) -> bool:
    if not isinstance(value, np.ndarray) or value.size != 1 or value.dtype != np.bool_:
        found = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise InvalidArgument(
            "a condition must be one boolean", node=node.label, value=name, found=found, expected="bool[]"
        )
    return bool(value.reshape(())[()])


def _whole(node: Node, value: Any, name: str) -> int:
    if not isinstance(value, np.ndarray) or value.size != 1 or value.dtype.kind not in "iu":
        found = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise InvalidArgument(
            "a trip count must be one integer", node=node.label, value=name, found=found, expected="int64[]"
        )
    return int(value.reshape(())[()])


def _expect_count(node: Node, results: Sequence[Any], count: int, what: str) -> None:
    if len(results) != count:
        raise InvalidGraph(
            f"{what} has the wrong number of outputs", node=node.label, found=len(results), expected=count
        )
