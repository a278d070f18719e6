"""Which nodes a step of a profile stands for."""

from __future__ import annotations

import numpy as np
import onnx.parser

import whet
from whet.graph import Graph, Node, Value
from whet.profiling.members import step_nodes, step_results

MODEL = """<ir_version: 10, opset_import: ["": 20]>
net (float[1, 4, 8, 8] x, float[4, 4, 3, 3] w) => (float[1, 4, 8, 8] y) {
    a = Relu(x)
    c = Conv<pads = [1, 1, 1, 1]>(a, w)
    s = Add(c, a)
    r = Relu(s)
    n = Neg(r)
    q = Mul(n, n)
    y = Transpose<perm = [0, 1, 3, 2]>(q)
}"""


def chain() -> list[Node]:
    x, w = Value("x"), Value("w")
    relu = Node("Relu", [x], ["a"])
    conv = Node("Conv", [relu.outputs[0], w], ["c"])
    add = Node("Add", [conv.outputs[0], relu.outputs[0]], ["s"])
    last = Node("Relu", [add.outputs[0]], ["r"])
    return [relu, conv, add, last]


def test_what_follows_an_anchor_is_taken_and_not_what_it_reads() -> None:
    nodes = chain()
    order = {node: index for index, node in enumerate(nodes)}
    assert step_nodes(nodes[1], "Conv+Add+Relu", order) == set(nodes[1:])
    assert step_nodes(nodes[1], "Conv", order) == {nodes[1]}


def test_a_pointwise_step_is_named_after_its_last_node() -> None:
    nodes = chain()
    order = {node: index for index, node in enumerate(nodes)}
    assert step_nodes(nodes[3], "Add+Relu", order) == set(nodes[2:])


def test_results_of_a_real_profile() -> None:
    model = onnx.parser.parse_model(MODEL).SerializeToString()
    session = whet.InferenceSession(model, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feed = {"x": rng.random((1, 4, 8, 8), np.float32), "w": rng.random((4, 4, 3, 3), np.float32)}
    events = session.profile(feed)
    graph: Graph = session.optimized_model.graph
    left = [[value.name for value in values] for values in step_results(graph, events)]
    assert len(left) == len(events)
    assert ["a"] in left
    assert left[-1] == ["y"]
    assert ["s"] not in left, "what is fused away is left nowhere"
