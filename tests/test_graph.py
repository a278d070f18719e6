"""The graph itself: symbolic dimensions, packed tensors, use lists, patches, order, verification, text."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from whet import dtypes
from whet.dtypes import FLOAT32, INT64, DType
from whet.errors import InvalidGraph
from whet.graph import Expr, Graph, Model, Node, Patch, TensorData, TensorType, Value, apply
from whet.graph.dims import (
    Known,
    broadcast,
    ceil_div,
    exact_div,
    floor_div,
    maximum,
    minimum,
    multiple_of,
    product,
    symbol,
)
from whet.graph.order import sort
from whet.graph.tensor import pack
from whet.graph.text import format_graph
from whet.graph.verify import verify

# Dimensions ----------------------------------------------------------------------------------------------------------


def random_expression(generator: np.random.Generator, depth: int) -> tuple[Known, Any]:
    """An expression over h and w, and a plain function that computes it."""
    kind = int(generator.integers(0, 8 if depth else 2))
    if kind == 0:
        number = int(generator.integers(-3, 9))
        return number, lambda h, w: number
    if kind == 1:
        first = bool(generator.integers(0, 2))
        return symbol("h" if first else "w"), lambda h, w: h if first else w
    a, f = random_expression(generator, depth - 1)
    b, g = random_expression(generator, depth - 1)
    if kind == 2:
        return a + b, lambda h, w: f(h, w) + g(h, w)
    if kind == 3:
        return a - b, lambda h, w: f(h, w) - g(h, w)
    if kind == 4:
        return a * b, lambda h, w: f(h, w) * g(h, w)
    if kind == 5:
        return minimum(a, b), lambda h, w: min(f(h, w), g(h, w))
    if kind == 6:
        return maximum(a, b), lambda h, w: max(f(h, w), g(h, w))
    divisor = int(generator.integers(1, 7))
    if generator.integers(0, 2):
        return floor_div(a, divisor), lambda h, w: f(h, w) // divisor
    return ceil_div(a, divisor), lambda h, w: -(-f(h, w) // divisor)


def test_expressions_equal_the_arithmetic_they_stand_for() -> None:
    generator = np.random.default_rng(1)
    free = 0
    for _ in range(1500):
        expression, plain = random_expression(generator, 4)
        free += isinstance(expression, Expr)
        for h, w in ((0, 0), (1, 5), (7, 2), (16, 9)):
            value = expression if isinstance(expression, int) else expression.evaluate({"h": h, "w": w})
            assert value == plain(h, w), f"{expression} at h={h}, w={w}"
    assert free > 700


def test_equal_polynomials_are_equal_and_hash_alike() -> None:
    h, w = symbol("h"), symbol("w")
    assert (h + 1) * (w + 1) == w + h * w + 1 + h
    assert len({2 * h + h, 3 * h, h * 3}) == 1
    assert h - h == 0
    assert isinstance(h - h, int)
    assert h != w
    assert h * w == w * h


def test_division_has_one_normal_form() -> None:
    h = symbol("h")
    half = floor_div(h - 1, 2) + 1
    assert half == floor_div(h + 1, 2)
    assert floor_div(half - 1, 2) + 1 == floor_div(h + 3, 4)
    assert floor_div(4 * h + 6, 2) == 2 * h + 3
    assert floor_div(4 * h + 5, 4) == h + 1
    assert exact_div(6 * h, 3) == 2 * h
    assert exact_div(6 * h + 1, 3) is None
    assert multiple_of(12 * h * h + 18 * h) == 6
    assert multiple_of(12 * h + 1) == 1
    assert multiple_of(49) == 49
    assert multiple_of(0) == 0
    assert exact_div(h * symbol("w"), h) == symbol("w")
    assert floor_div(7, 2) == 3


def test_substitution_and_missing_names() -> None:
    h, w = symbol("h"), symbol("w")
    area = floor_div(h, 8) * w + 3
    assert isinstance(area, Expr)
    assert area.names() == {"h", "w"}
    assert area.substitute({"h": 16}) == 2 * w + 3
    assert area.evaluate({"h": 17, "w": 5}) == 13
    with pytest.raises(KeyError, match="w"):
        area.evaluate({"h": 8})
    assert h.name == "h"
    assert isinstance(2 * h, Expr)
    assert Expr.name.fget(2 * h) is None  # type: ignore[attr-defined]


def test_broadcast_rules() -> None:
    n, m = symbol("n"), symbol("m")
    assert broadcast((2, 1, 3), (4, 1)) == (2, 4, 3)
    assert broadcast((n, 1), (1, 7)) == (n, 7)
    assert broadcast((n,), (m,)) == (None,)
    assert broadcast((n,), (3,)) == (3,)
    assert broadcast((None, 1), (1, n)) == (None, n)
    assert broadcast((2,), None) is None
    assert broadcast((0,), (1,)) == (0,)
    with pytest.raises(ValueError, match="2 and 3"):
        broadcast((2,), (3,))


def test_products_with_zero_and_unknown() -> None:
    assert product((None, 0)) == 0
    assert product((None, 2)) is None
    assert product((symbol("n"), 3)) == 3 * symbol("n")
    assert product(()) == 1


# Tensors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [t for t in dtypes.ALL if t.is_packed], ids=str)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 9])
def test_packed_types_round_trip(dtype: DType, count: int) -> None:
    """Low bits first, as ONNX stores them; every code of the type appears."""
    codes = (np.arange(count) * 3 + 1) % (1 << dtype.bits)
    per_byte = 8 // dtype.bits
    expected = [
        sum(int(c) << (dtype.bits * i) for i, c in enumerate(codes[at : at + per_byte]))
        for at in range(0, count, per_byte)
    ]
    raw = memoryview(bytes(expected))
    tensor = TensorData.from_raw(dtype, (count,), raw)
    assert tensor.nbytes == len(expected)
    array = tensor.numpy()
    assert array.shape == (count,)
    assert array.dtype == dtype.numpy
    if dtype.kind == "int":
        half = 1 << (dtype.bits - 1)
        assert [int(v) for v in array] == [int(c) - 2 * half if c >= half else int(c) for c in codes]
    elif dtype.kind == "uint":
        assert [int(v) for v in array] == codes.tolist()
    else:
        assert array.view(np.uint8).tolist() == codes.tolist()
    assert bytes(pack(array, dtype)) == bytes(expected)
    assert bytes(TensorData.from_array(array, dtype).raw()) == bytes(expected)


def test_float4_values() -> None:
    tensor = TensorData.from_raw(dtypes.FLOAT4E2M1, (4,), memoryview(bytes([0x21, 0xFA])))
    assert tensor.numpy().astype(np.float32).tolist() == [0.5, 1.0, -1.0, -6.0]
    assert tensor.numpy().dtype == ml_dtypes.float4_e2m1fn


def test_digests_tell_content_type_and_shape_apart() -> None:
    zeros = np.zeros((2, 3), np.float32)
    tensors = [
        TensorData.from_array(a)
        for a in (zeros, -zeros, zeros.reshape(3, 2), zeros.astype(np.int32), np.array(["a", "bc"], object),
                  np.array(["ab", "c"], object))
    ]  # fmt: skip
    assert len({t.digest() for t in tensors}) == len(tensors)
    raw = TensorData.from_raw(FLOAT32, (2, 3), memoryview(zeros.tobytes()))
    assert raw.digest() == tensors[0].digest()


def test_tensors_are_read_only() -> None:
    array = np.zeros(3)
    tensor = TensorData.from_array(array)
    with pytest.raises(ValueError, match="read-only"):
        tensor.numpy()[0] = 1
    with pytest.raises(ValueError, match="one element"):
        tensor.scalar()
    big = TensorData.from_array(np.arange(3, dtype=">i4"))
    assert big.dtype is dtypes.INT32
    assert big.numpy().tolist() == [0, 1, 2]


# Nodes, uses, patches ------------------------------------------------------------------------------------------------


def chain() -> tuple[Model, Value, list[Node]]:
    """x -> Neg -> Exp -> Abs -> y, and Exp is read twice by an Add that makes z."""
    graph = Graph("g")
    x = Value("x", TensorType(FLOAT32, (2,)))
    graph.inputs.append(x)
    neg = Node("Neg", [x], ["a"], name="n")
    exp = Node("Exp", [neg.output], ["b"], name="e")
    add = Node("Add", [exp.output, exp.output], ["z"], name="s")
    last = Node("Abs", [exp.output], ["y"], name="t")
    nodes = [neg, exp, add, last]
    for node in nodes:
        graph.append(node)
    graph.set_outputs([last.output, add.output])
    model = Model(graph, {"": 28})
    for name in ("x", "a", "b", "z", "y", "n", "e", "s", "t"):
        model.names.reserve(name)
    return model, x, nodes


def test_uses_are_counted() -> None:
    _, x, (neg, exp, add, last) = chain()
    assert x.only_use is neg
    assert exp.output.use_count == 3
    assert dict(exp.output.uses) == {add: 2, last: 1}
    assert exp.output.only_use is None
    assert last.output.use_count == 1
    assert last.output.only_use is None
    add.set_input(0, x)
    assert dict(exp.output.uses) == {add: 1, last: 1}
    add.replace_input(exp.output, x)
    assert dict(x.uses) == {neg: 1, add: 2}
    assert exp.output.only_use is last


def test_a_patch_replaces_and_records_where_from() -> None:
    model, x, (neg, exp, _, _) = chain()
    new = Node("Gelu", [x], [""])
    number = apply(model, Patch(exp, [new], {exp.output: new.output}, [exp, neg]), "test-pass")
    verify(model)
    assert number == model.patches == 1
    assert [n.op for n in model.graph] == ["Gelu", "Add", "Abs"]
    assert new.provenance is not None
    assert (new.provenance.rewrite, new.provenance.patch, new.provenance.nodes) == ("test-pass", 1, ("e", "n"))
    assert new.name
    assert new.output.name


def test_a_replaced_output_hands_its_name_on() -> None:
    model, _, (_, exp, add, last) = chain()
    new = Node("Sqrt", [exp.output], [""])
    apply(model, Patch(last, [new], {last.output: new.output}, [last]), "p")
    verify(model)
    assert [v.name for v in model.graph.outputs] == ["y", "z"]
    assert model.graph.outputs[0].producer is new
    # Now both outputs are one value: an Identity must carry the second name.
    apply(model, Patch(add, (), {add.output: new.output}, [add]), "p")
    verify(model)
    assert [v.name for v in model.graph.outputs] == ["y", "z"]
    assert [n.op for n in model.graph] == ["Neg", "Exp", "Sqrt", "Identity"]


def test_an_output_replaced_by_an_input_or_a_constant_gets_an_identity() -> None:
    for replacement in ("input", "constant"):
        model, x, (_, _, _, last) = chain()
        new = x if replacement == "input" else Value.constant("", np.zeros(2, np.float32))
        apply(model, Patch(last, (), {last.output: new}, [last]), "p")
        verify(model)
        made = model.graph.outputs[0]
        assert made.name == "y"
        assert made.producer is not None
        assert made.producer.op == "Identity"
        assert made.producer.inputs == (new,)


def test_a_patch_that_removes_a_read_node_is_a_bug() -> None:
    model, _, (neg, exp, _, _) = chain()
    with pytest.raises(AssertionError, match="still read"):
        apply(model, Patch(exp, (), {}, [neg]), "p")


def test_values_are_replaced_inside_subgraphs_too() -> None:
    model, x, (neg, exp, _, _) = chain()
    inner = Graph("then")
    read = Node("Neg", [exp.output], ["i"])
    inner.append(read)
    inner.set_outputs([read.output])
    other = Graph("else")
    other.set_outputs([exp.output])
    branch = Node("If", [Value.constant("", np.array(True))], ["r"], {"then_branch": inner, "else_branch": other})
    model.graph.append(branch)
    assert branch.captured() == [exp.output]
    assert exp.output.uses[read] == 1
    apply(model, Patch(exp, (), {exp.output: x}, [exp]), "p")
    verify(model)
    assert read.inputs == (x,)
    assert other.outputs[0].producer is not None
    assert other.outputs[0].producer.op == "Identity"
    assert other.outputs[0].producer.inputs == (x,)
    apply(model, Patch(branch, remove=[branch]), "p")
    assert read not in x.uses, "a node thrown away with its subgraphs reads nothing any more"
    verify(model)
    assert neg.output.use_count == 0


def test_iterating_survives_removal_and_insertion() -> None:
    model, x, nodes = chain()
    seen = []
    for node in model.graph:
        seen.append(node.op)
        if node.op == "Exp":
            for value in list(node.output.uses):
                value.replace_input(node.output, x)
            model.graph.remove(node)
            model.graph.insert_before(nodes[2], Node("Tan", [x], ["new"]))
    assert seen == ["Neg", "Exp", "Add", "Abs"]
    assert [n.op for n in model.graph] == ["Neg", "Tan", "Add", "Abs"]
    assert [n.op for n in reversed(model.graph)] == ["Abs", "Add", "Tan", "Neg"]
    assert len(model.graph) == 4


# Order and verification ----------------------------------------------------------------------------------------------


def test_sorting_is_stable_and_respects_captures() -> None:
    model, _, (neg, exp, add, last) = chain()
    model.graph.reorder([add, last, exp, neg])
    with pytest.raises(InvalidGraph, match="before it is made"):
        verify(model)
    sort(model.graph)
    verify(model)
    assert model.graph.nodes == [neg, exp, add, last]


def test_a_cycle_names_its_nodes() -> None:
    model, _, (neg, exp, _, _) = chain()
    neg.set_input(0, exp.output)
    with pytest.raises(InvalidGraph, match="cycle") as caught:
        sort(model.graph)
    assert "Exp(e)" in str(caught.value)
    assert "Neg(n)" in str(caught.value)


def test_sorting_a_long_chain_needs_no_deep_stack() -> None:
    graph = Graph("g")
    value = Value("x")
    graph.inputs.append(value)
    nodes = []
    for i in range(20_000):
        node = Node("Neg", [value], [f"v{i}"])
        nodes.append(node)
        value = node.output
    for node in reversed(nodes):
        graph.append(node)
    sort(graph)
    assert graph.nodes == nodes


def broken_twice(model: Model, nodes: list[Node]) -> None:
    nodes[0].output.name = "b"


def broken_uses(model: Model, nodes: list[Node]) -> None:
    nodes[1].output._uses.clear()


def broken_producer(model: Model, nodes: list[Node]) -> None:
    nodes[1].output.producer = nodes[0]


def broken_output(model: Model, nodes: list[Node]) -> None:
    model.graph.set_outputs([Value("ghost")])


def broken_owner(model: Model, nodes: list[Node]) -> None:
    nodes[2]._owner = None


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (broken_twice, "share a name"),
        (broken_uses, "use list"),
        (broken_producer, "another producer"),
        (broken_output, "never made"),
        (broken_owner, "another graph"),
    ],
)
def test_verification_sees_damage(damage: Any, text: str) -> None:
    model, _, nodes = chain()
    verify(model)
    damage(model, nodes)
    with pytest.raises(InvalidGraph, match=text):
        verify(model)


def test_names_are_fresh() -> None:
    model, _, _ = chain()
    assert model.names.fresh("q") == "q"
    assert model.names.fresh("q") == "q_2"
    model.names.reserve("q_3")
    assert model.names.fresh("q") == "q_4"
    assert model.names.fresh("x") == "x_2"


def test_text_shows_types_attributes_and_constants() -> None:
    model, x, (_, _, _, last) = chain()
    last.set_input(0, Value.constant("k", np.array(2, np.int64)))
    last.attributes["axes"] = (1, 2)
    last.output.type = TensorType(INT64, (symbol("n"), None))
    text = format_graph(model.graph)
    assert text.splitlines()[0] == "g(x: float32[2]) => (y: int64[n,?], z: ?)"
    assert "y: int64[n,?] = Abs(k(2)) {axes=[1, 2]}" in text
    assert x.shape is not None
    assert math.prod(d for d in x.shape if isinstance(d, int)) == 2


@pytest.mark.parametrize("backwards", [False, True])
def test_iteration_goes_on_after_the_current_and_the_next_node_are_removed(backwards: bool) -> None:
    graph = Graph("g")
    value = Value("x", TensorType(dtypes.FLOAT32, (1,)))
    graph.inputs = [value]
    nodes = [Node("Relu", [value], [f"y{i}"]) for i in range(6)]
    for node in nodes:
        graph.append(node)
    order = list(reversed(nodes)) if backwards else nodes
    seen = []
    for node in reversed(graph) if backwards else graph:
        seen.append(node)
        if node is order[1]:
            for removed in order[1:4]:
                graph.remove(removed)
    assert seen == [order[0], order[1], order[4], order[5]]
