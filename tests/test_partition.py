"""The partitioner: who gets which node, convex parts in an order that runs, and a report that adds up."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.random_graphs.generator import generate
from whet.errors import NotImplemented
from whet.formats.onnx import from_text, load_model
from whet.graph import Graph, Model, Node, extract
from whet.passes.pipeline import optimize
from whet.providers.base import Accept, Claim, CompileEnv, RunState, Subgraph
from whet.providers.partition import Part, Refuse, partition
from whet.providers.reference import ReferenceExecutionProvider
from whet.runtime.values import RuntimeValue, Tensor
from whet.session.executor import Executor

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'


@dataclass
class Fake:
    """Accepts the nodes whose operator or name is listed, and runs them on the reference provider."""

    name: str
    accepted: frozenset[str] = frozenset()
    compiled: list[Subgraph] = field(default_factory=list)

    def claim(self, node: Node, graph: Graph) -> Claim:
        listed = node.op_type in self.accepted or node.outputs[0].name in self.accepted
        return Accept() if listed else Refuse(f"{self.name} has no {node.op_type}")

    def passes(self, level: str) -> tuple[()]:
        return ()

    def compile(self, subgraph: Subgraph, env: CompileEnv) -> object:
        self.compiled.append(subgraph)
        return ReferenceExecutionProvider().compile(subgraph, env)

    def options(self) -> dict[str, str]:
        return {}


def fake(name: str, *accepted: str) -> Fake:
    return Fake(name, frozenset(accepted))


def inferred(text: str) -> Model:
    model = from_text(text)
    optimize(model, "disabled")
    return model


def run_parts(model: Model, parts: list[Part], feeds: dict[str, np.ndarray]) -> list[RuntimeValue]:
    compiled = []
    for i, part in enumerate(parts):
        graph = extract(model.graph, part.nodes, part.inputs, part.outputs, f"part{i}")
        around = Model(graph=graph, opset_imports=dict(model.opset_imports), names=model.names)
        compiled.append((part.provider.compile(Subgraph(graph, around), CompileEnv()), part.inputs, part.outputs))
    executor = Executor(model.graph.inputs, model.graph.outputs, compiled)
    return executor.run([Tensor.from_numpy(feeds[v.name]) for v in model.graph.inputs], RunState())


def check_parts(model: Model, parts: list[Part]) -> None:
    """Every node in one part; every part's inputs made before it; outputs exactly what others read."""
    placed = [node for part in parts for node in part.nodes]
    assert len(placed) == len(set(placed)) == len(model.graph)
    known = set(model.graph.inputs)
    for part in parts:
        inside: set[object] = set()
        for node in part.nodes:
            for value in (*node.inputs, *node.captured()):
                if value is not None and value.data is None:
                    assert value in inside or value in part.inputs, "a node reads what its part does not have"
            inside.update(node.outputs)
        assert all(v in known for v in part.inputs), "a part reads what no earlier part has made"
        assert len(set(part.inputs)) == len(part.inputs)
        read = {v for other in parts if other is not part for v in other.inputs} | set(model.graph.outputs)
        assert set(part.outputs) == {v for node in part.nodes for v in node.outputs if v in read}
        known.update(part.outputs)


DIAMOND = (
    HEADER
    + """g (float[2,3] x) => (float[2,3] y) {
    a = Relu(x)
    b = Neg(a)
    c = Abs(a)
    y = Add(b, c)
}"""
)


def test_priority_order_decides_and_refusals_are_recorded() -> None:
    model = inferred(DIAMOND)
    first, second = fake("first", "Relu"), fake("second", "Relu", "Neg", "Abs", "Add")
    _, placement = partition(model, [first, second], ["a note"])
    assert [n.provider for n in placement.nodes] == ["first", "second", "second", "second"]
    assert placement.nodes[0].refusals == ()
    assert placement.nodes[1].refusals == (("first", "first has no Neg"),)
    assert placement.by_provider == {"first": 1, "second": 3}
    assert placement.refusal_counts()[("first", "first has no Add")] == ["Add(-> y)"]
    assert placement.notes == ("a note",)
    assert placement.summary() == "1/4 nodes on first, 3/4 nodes on second; 2 partitions; 24 bytes crossing"


def test_a_part_never_reaches_around_another() -> None:
    """Relu and Add on one provider with Neg between them on another would be a circle: three parts are needed."""
    model = inferred(DIAMOND)
    parts, placement = partition(model, [fake("odd", "Neg"), fake("rest", "Relu", "Abs", "Add")])
    assert [(p.provider.name, [n.op_type for n in p.nodes]) for p in parts] == [
        ("rest", ["Relu", "Abs"]),
        ("odd", ["Neg"]),
        ("rest", ["Add"]),
    ]
    check_parts(model, parts)
    # a goes to odd, b to the last part, c from the first part to the last: 3 values of 24 bytes.
    assert [(c.value, c.source, c.target, c.nbytes) for c in placement.crossings] == [
        ("a", "rest", "odd", 24),
        ("b", "odd", "rest", 24),
        ("c", "rest", "rest", 24),
    ]
    assert placement.crossing_bytes == 72


def test_independent_chains_of_one_provider_share_a_part() -> None:
    model = inferred(
        HEADER
        + """g (float[n] x, float[n] y) => (float[n] p, float[n] q) {
        a = Relu(x)
        b = Neg(y)
        p = Relu(a)
        q = Neg(b)
    }"""
    )
    parts, placement = partition(model, [fake("r", "Relu"), fake("n", "Neg")])
    assert [len(p.nodes) for p in parts] == [2, 2]
    assert placement.crossings == ()
    check_parts(model, parts)


def test_free_extents_leave_crossing_bytes_open() -> None:
    model = inferred(HEADER + "g (float[n] x) => (float[n] y) { a = Relu(x) y = Neg(a) }")
    _, placement = partition(model, [fake("r", "Relu"), fake("n", "Neg")])
    assert [c.nbytes for c in placement.crossings] == [None]
    assert placement.crossing_bytes == 0


def test_a_node_takes_its_subgraphs_and_what_they_capture() -> None:
    model = inferred(
        HEADER
        + """g (bool c, float[n] x) => (float[n] y) {
        a = Relu(x)
        b = Neg(x)
        y = If(c) <then_branch = t () => (float[n] u) { u = Add(a, b) }, else_branch = e () => (float[n] v) { v = Sub(a, b) }>
    }"""  # noqa: E501
    )
    branching = fake("branching", "If")
    parts, _ = partition(model, [branching, fake("rest", "Relu", "Neg")])
    assert {v.name for v in parts[-1].inputs} == {"c", "a", "b"}
    check_parts(model, parts)
    for condition, expected in ((True, 0.0), (False, 4.0)):
        (y,) = run_parts(model, parts, {"c": np.array(condition), "x": np.array([2.0], np.float32)})
        assert y.numpy() == expected


def test_outputs_that_are_inputs_or_constants_need_no_part() -> None:
    model = inferred(HEADER + "g (float[2] x) => (float[2] x2, float[2] k) <float[2] k = {1, 2}> { x2 = Neg(x) }")
    parts, _ = partition(model, [fake("n", "Neg")])
    x2, k = run_parts(model, parts, {"x": np.array([1, -1], np.float32)})
    np.testing.assert_array_equal(x2.numpy(), [-1, 1])
    np.testing.assert_array_equal(k.numpy(), [1, 2])


def test_a_node_that_nobody_takes_is_an_error_with_every_reason() -> None:
    model = inferred(DIAMOND)
    with pytest.raises(NotImplemented) as caught:
        partition(model, [fake("first", "Relu"), fake("second")])
    text = str(caught.value)
    assert "Neg(-> b)" in text
    assert "first: first has no Neg" in text
    assert "second: second has no Neg" in text


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_split_at_random_run_as_one(seed: int) -> None:
    case = generate(seed)
    whole = load_model(case.model.SerializeToString())
    split = load_model(case.model.SerializeToString())
    optimize(whole, "disabled")
    optimize(split, "disabled")
    rng = random.Random(seed)
    shares: list[set[str]] = [set(), set(), set()]
    for node in split.graph:
        shares[rng.randrange(3)].add(node.outputs[0].name)
    providers = [Fake(f"p{i}", frozenset(share)) for i, share in enumerate(shares)]
    parts, placement = partition(split, providers)
    check_parts(split, parts)
    assert sum(count for _, count in placement.partitions) == len(split.graph)
    one, _ = partition(whole, [ReferenceExecutionProvider()])
    assert len(one) <= 1
    for feeds in case.feeds:
        expected = run_parts(whole, one, feeds)
        for found, wanted in zip(run_parts(split, parts, feeds), expected, strict=True):
            np.testing.assert_array_equal(found.numpy(), wanted.numpy())


def test_many_alternating_nodes_stay_quick() -> None:
    """2,000 nodes that alternate between two providers in one chain: as many parts, in order."""
    body = "\n".join(f"v{i + 1} = {'Neg' if i % 2 else 'Relu'}(v{i})" for i in range(2000))
    model = inferred(HEADER + "g (float[1] v0) => (float[1] v2000) {\n" + body + "\n}")
    parts, _ = partition(model, [fake("r", "Relu"), fake("n", "Neg")])
    assert len(parts) == 2000
    check_parts_order = [p.nodes[0].outputs[0].name for p in parts]
    assert check_parts_order == [f"v{i}" for i in range(1, 2001)]
