"""Models with branches, loops and extents that the data decides, and how the compiler is held to their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

import whet

Array = np.ndarray[Any, np.dtype[Any]]
Declared = tuple[str, int, Sequence[int | str] | None]
FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
CPU = "CPUExecutionProvider"
node = helper.make_node


def _infos(values: Sequence[Declared]) -> list[Any]:
    return [helper.make_tensor_value_info(*value) for value in values]


def _constants(values: Mapping[str, Any]) -> list[TensorProto]:
    return [numpy_helper.from_array(np.array(array), name) for name, array in values.items()]


def body(nodes: Sequence[NodeProto], inputs: Sequence[Declared], outputs: Sequence[Declared]) -> GraphProto:
    """A graph inside of a node."""
    return helper.make_graph(nodes, "body", _infos(inputs), _infos(outputs))


def branch(nodes: Sequence[NodeProto], *outputs: tuple[str, int]) -> GraphProto:
    """A branch of an If; its results' shapes are not declared."""
    return body(nodes, [], [(name, kind, None) for name, kind in outputs])


def loop_body(
    nodes: Sequence[NodeProto], states: Sequence[str], results: Sequence[str], *, going: str | None = None
) -> GraphProto:
    """The body of a Loop over float states; `i` is the round, and `going` the condition (the one before unless given).

    The first results are the new states, the others are stacked.
    """
    if going is None:
        nodes, going = [*nodes, node("Identity", ["before"], ["after"])], "after"
    return body(
        nodes,
        [("i", INT, []), ("before", BOOL, []), *((name, FLOAT, None) for name in states)],
        [(going, BOOL, []), *((name, FLOAT, None) for name in results)],
    )


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[Declared],
    outputs: Sequence[tuple[str, int]],
    constants: Mapping[str, Any] | None = None,
    opset: int = 18,
) -> ModelProto:
    """A model whose results' shapes are not declared."""
    graph = helper.make_graph(
        nodes, "g", _infos(inputs), _infos([(n, kind, None) for n, kind in outputs]), _constants(constants or {})
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def session(proto: ModelProto, *, compiled: bool = True, **options: Any) -> whet.InferenceSession:
    """A session on the CPU provider, which takes the model whole, or (not `compiled`) leaves something of it."""
    made = whet.InferenceSession(proto.SerializeToString(), providers=[CPU], **options)
    assert (set(made.placement.by_provider) == {CPU}) == compiled, made.placement.refusal_counts()
    return made


def agree(
    proto: ModelProto, feeds: Sequence[dict[str, Array]], *, compiled: bool = True, with_onnxruntime: bool = True
) -> whet.InferenceSession:
    """Compare each feed, twice and in turn, with the reference provider and with onnxruntime."""
    ours = session(proto, compiled=compiled)
    reference = whet.InferenceSession(proto.SerializeToString(), providers=["ReferenceExecutionProvider"])
    theirs = onnxruntime.InferenceSession(proto.SerializeToString(), providers=[CPU]) if with_onnxruntime else None
    for _ in range(2):
        for feed in feeds:
            found = ours.run(None, feed)
            expected = [reference.run(None, feed)]
            if theirs is not None:
                expected.append(theirs.run(None, feed))
            for results in expected:
                for one, other in zip(found, results, strict=True):
                    assert one.dtype == other.dtype
                    assert one.shape == other.shape
                    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    return ours


def refusal(proto: ModelProto, op: str) -> str:
    """Why the CPU provider leaves the node of type `op` to another one."""
    placement = session(proto, compiled=False).placement
    (reason,) = {r for n in placement.nodes if n.op == op for provider, r in n.refusals if provider == CPU}
    return reason
