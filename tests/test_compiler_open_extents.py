"""Results whose extents the data decides, inside of compiled programs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from tests.control_models import BOOL, FLOAT, INT, Array, agree, body, branch, loop_body, model, node, refusal, session
from whet.compiler.bounds import Bounds, upper
from whet.errors import InvalidArgument
from whet.graph.dims import Known, ceil_div, floor_div, maximum, minimum, symbol

RNG = np.random.default_rng(11)
N = symbol("n")
A, C = symbol("a"), symbol("c")


def sparse(*shape: int) -> Array:
    """Numbers of which about half are 0."""
    return (RNG.standard_normal(shape) * (RNG.random(shape) > 0.5)).astype(np.float32)


def filled(value: float, *shape: int) -> Array:
    return np.full(shape, value, np.float32)


def read(name: str, source: str, kind: int = INT, vector: bool = True) -> list[Any]:
    """Nodes that make an integer, which nothing knows before the run, of a large float tensor's maximum."""
    nodes = [
        node("ReduceMax", [source], [f"{name}_f"], keepdims=0),
        node("Cast", [f"{name}_f"], [f"{name}_i"], to=kind),
    ]
    return [*nodes, node("Unsqueeze" if vector else "Squeeze", [f"{name}_i", "axis0"][: 1 + vector], [name])]


AXIS0 = {"axis0": np.array([0])}


@pytest.mark.parametrize("kind", [FLOAT, TensorProto.DOUBLE, INT, TensorProto.INT8, TensorProto.FLOAT16, BOOL])
def test_non_zero(kind: int) -> None:
    proto = model(
        [node("Cast", ["x"], ["k"], to=kind), node("NonZero", ["k"], ["y"]), node("Neg", ["y"], ["z"])],
        [("x", FLOAT, ["n", "m"])], [("y", INT), ("z", INT)],
    )  # fmt: skip
    feeds = [{"x": 3 * x} for x in (sparse(5, 6), filled(0, 5, 6), filled(1, 4, 4), sparse(0, 3), sparse(70, 90))]
    agree(proto, feeds, with_onnxruntime=kind in (FLOAT, INT, BOOL))


def test_a_declared_extent_of_such_a_result_is_no_promise() -> None:
    proto = model([node("NonZero", ["x"], ["y"])], [("x", FLOAT, [4, 4])], [("y", INT)])
    proto.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 2
    proto.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 16
    (found,) = session(proto).run(None, {"x": np.eye(4, dtype=np.float32)})
    np.testing.assert_array_equal(found, [[0, 1, 2, 3]] * 2)


def test_what_a_mask_selects() -> None:
    proto = model(
        [
            node("NonZero", ["x"], ["at"]), node("Transpose", ["at"], ["rows"], perm=[1, 0]),
            node("GatherND", ["x", "rows"], ["v"]), node("Exp", ["v"], ["e"]), node("ReduceSum", ["e"], ["r"]),
            node("Shape", ["rows"], ["s"]),
        ],
        [("x", FLOAT, [5, 6])], [("e", FLOAT), ("r", FLOAT), ("s", INT)],
    )  # fmt: skip
    agree(proto, [{"x": sparse(5, 6)}, {"x": filled(0, 5, 6)}, {"x": filled(1, 5, 6)}])


@pytest.mark.parametrize("axis", [0, 1, -1, None])
def test_compress(axis: int | None) -> None:
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    proto = model(
        [node("Compress", ["x", "c"], ["y"], **attributes), node("Neg", ["y"], ["z"])],
        [("x", FLOAT, ["n", "m"]), ("c", BOOL, ["k"])], [("y", FLOAT), ("z", FLOAT)],
    )  # fmt: skip
    agree(proto, [{"x": sparse(5, 6), "c": np.array(c, bool)} for c in ([1, 0, 1, 1], [0, 0], [1], [0, 1, 1, 1, 1])])


def test_a_condition_longer_than_its_axis_is_an_error() -> None:
    proto = model(
        [node("Compress", ["x", "c"], ["y"], axis=0)], [("x", FLOAT, ["n", "m"]), ("c", BOOL, ["k"])], [("y", FLOAT)]
    )
    with pytest.raises(InvalidArgument, match="Compress"):
        session(proto).run(None, {"x": sparse(2, 3), "c": np.ones(5, bool)})


def test_two_counts_meet() -> None:
    proto = model(
        [
            node("Compress", ["x", "c"], ["a"], axis=0),
            node("Compress", ["x", "d"], ["b"], axis=0),
            node("Add", ["a", "b"], ["sum"]),
            node("Concat", ["b", "a"], ["both"], axis=0),
            node("Exp", ["both"], ["e"]),
            node("Concat", ["e", "sum"], ["all"], axis=0),
            node("MatMul", ["all", "w"], ["p"]),
            node("Softmax", ["p"], ["q"], axis=0),
        ],
        [("x", FLOAT, ["n", 6]), ("c", BOOL, ["k"]), ("d", BOOL, ["k"])],
        [("sum", FLOAT), ("e", FLOAT), ("q", FLOAT)],
        {"w": RNG.standard_normal((6, 3)).astype(np.float32)},
    )
    pairs = [([1, 0, 1, 1], [1, 1, 1, 0]), ([1, 0, 0, 0], [1, 1, 0, 1]), ([0] * 4, [0] * 4), ([1] * 4, [0, 0, 1, 0])]
    agree(proto, [{"x": sparse(5, 6), "c": np.array(c, bool), "d": np.array(d, bool)} for c, d in pairs])
    with pytest.raises(InvalidArgument):
        session(proto).run(
            None, {"x": sparse(5, 6), "c": np.array([1, 1, 0, 0], bool), "d": np.array([1, 1, 1, 0], bool)}
        )


def test_a_count_is_a_number_like_others() -> None:
    proto = model(
        [
            node("NonZero", ["x"], ["at"]),
            node("Shape", ["at"], ["s"]),
            node("Gather", ["s", "one"], ["count"], axis=0),
            node("Range", ["zero", "count", "one"], ["r"]),
            node("ConstantOfShape", ["s"], ["zeros"]),
            node("Cast", ["r"], ["rf"], to=FLOAT),
            node("Add", ["zeros", "rf"], ["y"]),
        ],
        [("x", FLOAT, ["n", "m"])],
        [("y", FLOAT), ("count", INT)],
        {"one": np.int64(1), "zero": np.int64(0)},
    )
    agree(proto, [{"x": sparse(5, 6)}, {"x": filled(0, 2, 2)}, {"x": sparse(40, 3)}])


RESHAPE = model(
    [
        *read("d", "big"), node("Concat", ["d", "rest"], ["shape"], axis=0), node("Reshape", ["x", "shape"], ["y"]),
        node("Exp", ["y"], ["e"]), node("ReduceSum", ["e", "axis1"], ["r"], keepdims=0),
    ],
    [("x", FLOAT, ["n", "k"]), ("big", FLOAT, ["q", "p"])], [("e", FLOAT), ("r", FLOAT)],
    {**AXIS0, "rest": np.array([-1]), "axis1": np.array([1])},
)  # fmt: skip


def test_reshape_to_what_the_data_says() -> None:
    agree(RESHAPE, [{"x": sparse(5, 6), "big": filled(value, 3, 30)} for value in (2, 3, 5, 1, 30, 0)])


@pytest.mark.parametrize("value", [7, -3, -1])
def test_a_reshape_to_another_size_is_an_error(value: int) -> None:
    with pytest.raises(InvalidArgument, match="Reshape"):
        session(RESHAPE).run(None, {"x": sparse(5, 6), "big": filled(value, 3, 30)})


@pytest.mark.parametrize("allow_zero", [0, 1])
def test_reshape_in_every_place(allow_zero: int) -> None:
    proto = model(
        [*read("a", "p"), *read("b", "q"), node("Concat", ["a", "b"], ["shape"], axis=0),
         node("Reshape", ["x", "shape"], ["y"], allowzero=allow_zero), node("Neg", ["y"], ["z"])],
        [("x", FLOAT, [5, 6]), ("p", FLOAT, [80]), ("q", FLOAT, [80])], [("z", FLOAT)], AXIS0,
    )  # fmt: skip
    targets = [(3, 10), (-1, 6), (15, -1), (30, 1)] + ([] if allow_zero else [(0, -1), (0, 6), (-1, 0)])
    agree(proto, [{"x": sparse(5, 6), "p": filled(a, 80), "q": filled(b, 80)} for a, b in targets])


@pytest.mark.parametrize("step", [1, 2, -1, -2])
@pytest.mark.parametrize("kind", [INT, TensorProto.INT32])
def test_slice_from_and_to_what_the_data_says(step: int, kind: int) -> None:
    numbers = np.int64 if kind == INT else np.int32
    proto = model(
        [*read("from", "p", kind), *read("to", "q", kind), node("Slice", ["x", "from", "to", "axes", "step"], ["y"]),
         node("Exp", ["y"], ["e"])],
        [("x", FLOAT, ["n", "k"]), ("p", FLOAT, [80]), ("q", FLOAT, [80])], [("e", FLOAT)],
        {**AXIS0, "axes": np.array([1], numbers), "step": np.array([step], numbers)},
    )  # fmt: skip
    ends = (-9, -6, -2, 0, 3, 5, 6, 8)
    feeds = [{"x": sparse(5, 6), "p": filled(a, 80), "q": filled(b, 80)} for a in ends for b in ends]
    # A start far in front of the axis, walking back: onnxruntime gives the first element, numpy nothing.
    agree(proto, feeds, with_onnxruntime=step > 0)


def test_top_k_of_what_the_data_says() -> None:
    proto = model(
        [*read("k", "p"), node("TopK", ["x", "k"], ["v", "i"]), node("Neg", ["v"], ["nv"]), node("Neg", ["i"], ["ni"])],
        [("x", FLOAT, ["n", "m"]), ("p", FLOAT, [80])], [("nv", FLOAT), ("ni", INT)], AXIS0,
    )  # fmt: skip
    x = RNG.standard_normal((5, 6)).astype(np.float32)
    agree(proto, [{"x": x, "p": filled(k, 80)} for k in (0, 1, 3, 6)])
    for wrong in (7, -1):
        with pytest.raises(InvalidArgument, match="TopK"):
            session(proto).run(None, {"x": x, "p": filled(wrong, 80)})


def test_counts_in_loops() -> None:
    graph = loop_body(
        [
            node("Add", ["s", "x"], ["next"]), node("Greater", ["next", "zero"], ["positive"]),
            node("Compress", ["x", "positive"], ["kept"], axis=0), node("Exp", ["kept"], ["e"]),
            node("ReduceSum", ["e"], ["sum"], keepdims=0),
        ],
        ["s"], ["next", "sum"],
    )  # fmt: skip
    proto = model(
        [node("Loop", ["m", "", "s0"], ["last", "sums"], body=graph)],
        [("m", INT, []), ("s0", FLOAT, ["n"]), ("x", FLOAT, ["n"])],
        [("last", FLOAT), ("sums", FLOAT)],
        {"zero": np.float32(0)},
    )
    feeds = [{"m": np.array(m), "s0": sparse(n), "x": sparse(n)} for m in (1, 6) for n in (5, 70)]
    agree(proto, feeds)


def test_counts_in_branches() -> None:
    proto = model(
        [
            node("ReduceSum", ["x"], ["sum"], keepdims=0), node("Greater", ["sum", "zero"], ["c"]),
            node("If", ["c"], ["y"], then_branch=branch([node("NonZero", ["x"], ["t"])], ("t", INT)),
                 else_branch=branch([node("Less", ["x", "zero"], ["l"]), node("NonZero", ["l"], ["e"])], ("e", INT))),
            node("Neg", ["y"], ["z"]),
        ],
        [("x", FLOAT, ["n", "m"])], [("z", INT), ("y", INT)], {"zero": np.float32(0)},
    )  # fmt: skip
    agree(proto, [{"x": sign * x} for x in (sparse(5, 6), sparse(9, 2), filled(0, 2, 2)) for sign in (1, -1)])


def test_rows_whose_shape_follows_the_round_are_refused() -> None:
    graph = body(
        [node("Compress", ["x", "c"], ["row"], axis=0), node("Identity", ["before"], ["after"])],
        [("i", INT, []), ("before", BOOL, [])], [("after", BOOL, []), ("row", FLOAT, None)],
    )  # fmt: skip
    proto = model(
        [node("Loop", ["m", "go"], ["rows"], body=graph)],
        [("m", INT, []), ("go", BOOL, []), ("x", FLOAT, ["n"]), ("c", BOOL, ["n"])],
        [("rows", FLOAT)],
    )
    assert "depends on the round" in refusal(proto, "Loop")


@pytest.mark.parametrize("op", ["ConstantOfShape", "Expand", "Range"])
def test_sizes_that_nothing_bounds_are_refused(op: str) -> None:
    inputs = {"ConstantOfShape": ["d"], "Expand": ["x0", "d"], "Range": ["zero", "d", "one"]}[op]
    proto = model(
        [*read("d", "x", vector=op != "Range"), node("ReduceMin", ["x"], ["x0"]), node(op, inputs, ["y"])],
        [("x", FLOAT, [80, 2])],
        [("y", INT if op == "Range" else FLOAT)],
        {**AXIS0, "zero": np.int64(0), "one": np.int64(1)},
    )
    assert "decides its shape" in refusal(proto, op)
    agree(proto, [{"x": filled(3, 80, 2)}], compiled=False)


def test_a_node_that_cannot_follow_a_count_is_left_to_another_provider() -> None:
    proto = model(
        [node("Compress", ["x", "c"], ["y"], axis=0), node("Split", ["y"], ["p", "q"], axis=0, num_outputs=2),
         node("Exp", ["p"], ["e"])],
        [("x", FLOAT, ["n", 6]), ("c", BOOL, ["n"])], [("e", FLOAT), ("q", FLOAT)],
    )  # fmt: skip
    refusal(proto, "Split")
    agree(
        proto, [{"x": sparse(5, 6), "c": np.array(c, bool)} for c in ([1, 0, 0, 1, 1], [1, 0, 0, 0, 1])], compiled=False
    )


@pytest.mark.parametrize(
    ("value", "most"),
    [
        (A + N * 2, N * 3),
        (N * 5 - A, N * 5),
        (A * C * 3, N * 15),
        (minimum(C, 3) * A, N * 3),
        (maximum(A, C), maximum(N, 5)),
        (ceil_div(A, 4) * 4, ceil_div(N, 4) * 4),
        (floor_div(N, A + 1), N),
        (symbol("endless"), None),
        (minimum(symbol("endless"), 7), 7),
        (N - symbol("endless"), N),
    ],
    ids=str,
)
def test_the_most_that_an_expression_may_be(value: Known, most: Known | None) -> None:
    bounds = Bounds()
    bounds |= {"a": N, "c": 5, "endless": None}
    assert upper(value, bounds) == most


def test_names_that_have_a_bound_together() -> None:
    bounds = Bounds()
    bounds |= {"a": N, "c": N}
    bounds.products["a", "c"] = N
    assert upper(A * C * 4, bounds) == N * 4
    assert upper(A * 4, bounds) == N * 4
