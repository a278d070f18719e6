"""Tensors that no kernel may crash on: each gives a typed error that names node and input, or a defined answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from whet.config import Limits
from whet.errors import InvalidArgument, ResourceExhausted, RuntimeException, Terminated, WhetError
from whet.formats.onnx import from_text
from whet.graph import Graph, Node, TensorData, Value
from whet.ops.evaluate import evaluate_node
from whet.providers.base import CompileEnv, RunState, Subgraph
from whet.providers.reference import ReferenceExecutionProvider
from whet.runtime.cancel import CancelToken
from whet.runtime.values import Tensor

INT_MIN = {t: np.iinfo(t).min for t in (np.int8, np.int16, np.int32, np.int64)}
TERABYTES = Limits(tensor_bytes=1 << 30)


def node_of(op: str, inputs: Sequence[Any], outputs: int = 1, **attributes: Any) -> Node:
    names = [None if x is None else Value(f"in_{i}") for i, x in enumerate(inputs)]
    plain = {k: TensorData.from_array(v) if isinstance(v, np.ndarray) else v for k, v in attributes.items()}
    return Node(op, names, [f"out_{i}" for i in range(outputs)], plain, name="culprit")


def evaluate(op: str, *inputs: Any, outputs: int = 1, limits: Limits = TERABYTES, **attributes: Any) -> list[Any]:
    return evaluate_node(node_of(op, inputs, outputs, **attributes), inputs, limits)


def refused(expected: type[WhetError], op: str, *inputs: Any, value: str | None = None, **attributes: Any) -> WhetError:
    with pytest.raises(expected) as caught:
        evaluate(op, *inputs, **attributes)
    assert "culprit" in str(caught.value)
    assert op in str(caught.value)
    if value is not None:
        assert f"{value!r}" in str(caught.value)
    return caught.value


def i64(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


@pytest.mark.parametrize("dtype", INT_MIN)
def test_division_of_the_least_integer_by_minus_one_wraps(dtype: type) -> None:
    a, b = np.array([INT_MIN[dtype], 7, -7, -8, 7], dtype), np.array([-1, -1, 2, 2, -2], dtype)
    (found,) = evaluate("Div", a, b)
    assert found.dtype == dtype
    assert found.tolist() == [INT_MIN[dtype], -7, -3, -4, -3]


@pytest.mark.parametrize("dtype", INT_MIN)
@pytest.mark.parametrize("fmod", [0, 1])
def test_remainder_of_the_least_integer_by_minus_one_is_zero(dtype: type, fmod: int) -> None:
    a, b = np.array([INT_MIN[dtype], -7, 7], dtype), np.array([-1, 3, -3], dtype)
    (found,) = evaluate("Mod", a, b, fmod=fmod)
    assert found.tolist() == ([0, -1, 1] if fmod else [0, 2, -2])


@pytest.mark.parametrize("op", ["Div", "Mod"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_integer_division_by_zero_is_refused_with_its_position(op: str, dtype: type) -> None:
    error = refused(InvalidArgument, op, np.array([4, 6], dtype), np.array([2, 0], dtype), value="in_1")
    assert "[1]" in error.problem


def test_float_division_by_zero_is_infinite() -> None:
    (found,) = evaluate("Div", np.array([1, -1, 0], np.float32), np.zeros(3, np.float32))
    assert found[0] == np.inf
    assert found[1] == -np.inf
    assert np.isnan(found[2])


def test_shift_past_the_width() -> None:
    a = np.array([255, 1, 128], np.uint8)
    for direction, amount, expected in (
        ("LEFT", [8, 200, 1], [0, 0, 0]),
        ("RIGHT", [8, 255, 7], [0, 0, 1]),
    ):
        assert evaluate("BitShift", a, np.array(amount, np.uint8), direction=direction)[0].tolist() == expected
    signed = np.array([-8, -8, 8], np.int32)
    assert evaluate("BitShift", signed, np.array([40, -1, 99], np.int32), direction="RIGHT")[0].tolist() == [-1, -1, 0]


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32, np.uint64])
def test_nan_and_infinity_become_integers_by_rule(dtype: type) -> None:
    info = np.iinfo(dtype)
    x = np.array([np.nan, np.inf, -np.inf, 2.9, -0.5], np.float32)
    code = {np.int32: 6, np.int64: 7, np.uint32: 12, np.uint64: 13}[dtype]
    assert evaluate("Cast", x, to=code)[0].tolist() == [0, info.max, info.min, 2, 0]


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf, -1.0])
def test_quantization_by_a_useless_scale_is_refused(scale: float) -> None:
    refused(InvalidArgument, "QuantizeLinear", np.ones(3, np.float32), np.float32(scale).reshape(()), value="in_1")
    zero = np.array(0, np.uint8)
    one = np.array(1, np.float32)
    matrix = np.ones((2, 2), np.uint8)
    refused(
        InvalidArgument, "QLinearMatMul", matrix, one, zero, matrix, one, zero, np.array(scale, np.float32), zero,
        value="in_6",
    )  # fmt: skip


def test_quantization_of_nan_is_the_zero_point() -> None:
    x = np.array([np.nan, 1e30, -1e30], np.float32)
    (found,) = evaluate("QuantizeLinear", x, np.array(0.1, np.float32), np.array(7, np.uint8))
    assert found.tolist() == [7, 255, 0]


@pytest.mark.parametrize("k", [-1, 4, 1 << 62])
def test_top_k_out_of_range_is_refused(k: int) -> None:
    refused(InvalidArgument, "TopK", np.arange(3.0), i64(k), outputs=2, value="in_1")


def test_empty_reductions() -> None:
    x = np.zeros((2, 0), np.float32)
    expected = {"ReduceSum": 0, "ReduceProd": 1, "ReduceMax": -np.inf, "ReduceMin": np.inf, "ReduceL1": 0}
    for op, value in expected.items():
        assert evaluate(op, x, i64(1), keepdims=0)[0].tolist() == [value, value]
    assert np.isnan(evaluate("ReduceMean", x, i64(1))[0]).all()
    assert evaluate("ReduceMax", x.astype(np.int32), i64(1))[0].tolist() == [[INT_MIN[np.int32]]] * 2
    refused(InvalidArgument, "ReduceMean", x.astype(np.int64), i64(1))
    for op in ("ArgMax", "ArgMin"):
        refused(InvalidArgument, op, x, axis=1)
    assert evaluate("Softmax", x)[0].shape == (2, 0)


@pytest.mark.parametrize("lengths", [[1, 1], [2, 2], [4, -1], [1, 1, 1]])
def test_split_that_does_not_add_up_is_refused(lengths: list[int]) -> None:
    refused(InvalidArgument, "Split", np.arange(3.0), i64(*lengths), outputs=2, value="in_1")


@pytest.mark.parametrize(
    ("mode", "pads", "shape"),
    [
        ("reflect", [3, 0], (3,)),
        ("reflect", [0, 7], (3,)),
        ("reflect", [1, 0], (1,)),
        ("edge", [1, 0], (0,)),
        ("wrap", [1, 0], (0,)),
        ("constant", [-4, 0], (3,)),
        ("constant", [1], (3,)),
    ],
)
def test_padding_beyond_the_axis_is_refused(mode: str, pads: list[int], shape: tuple[int, ...]) -> None:
    refused(InvalidArgument, "Pad", np.ones(shape, np.float32), i64(*pads), mode=mode, value="in_1")


@pytest.mark.parametrize("shape", [[-1, -1], [7], [-2, 3], [0, 0, 0], [-1, 4]])
def test_reshape_to_what_does_not_fit_is_refused(shape: list[int]) -> None:
    refused(InvalidArgument, "Reshape", np.zeros((2, 3), np.float32), i64(*shape), value="in_1")


@pytest.mark.parametrize("index", [3, -4, 1 << 40])
def test_indices_out_of_bounds_are_refused_with_position_and_value(index: int) -> None:
    data, updates = np.zeros((3, 2), np.float32), np.ones((2, 2), np.float32)
    elements = np.array([[0, 0], [0, index]], np.int64)
    points = np.array([[0], [index]], np.int64)
    for op, inputs, attributes in (
        ("Gather", (data, i64(0, index)), {}),
        ("Gather", (data, np.array(index)), {}),
        ("GatherElements", (data, elements), {}),
        ("GatherND", (data, points), {}),
        ("ScatterND", (data, points, updates), {}),
        ("ScatterElements", (data, elements, updates), {}),
        ("ScatterElements", (data, elements, updates), {"reduction": "add"}),
    ):
        error = refused(InvalidArgument, op, *inputs, value="in_1", **attributes)
        assert error.found == index
        if np.ndim(inputs[1]):
            assert "1" in error.problem


def test_slices_are_clamped_and_step_zero_is_refused() -> None:
    x = np.arange(5.0)
    big = 1 << 62
    assert evaluate("Slice", x, i64(-big), i64(big))[0].tolist() == x.tolist()
    assert evaluate("Slice", x, i64(big), i64(-big), i64(0), i64(-1))[0].tolist() == x[::-1].tolist()
    assert evaluate("Slice", x, i64(4), i64(2))[0].tolist() == []
    refused(InvalidArgument, "Slice", x, i64(0), i64(3), i64(0), i64(0), value="in_4")
    refused(InvalidArgument, "Slice", x, i64(0), i64(3), i64(1), value=None)


def test_range_with_a_useless_delta_is_refused() -> None:
    for dtype in (np.int64, np.int32, np.float32):
        refused(InvalidArgument, "Range", np.array(0, dtype), np.array(3, dtype), np.array(0, dtype), value="in_2")
    refused(InvalidArgument, "Range", np.array(0.0), np.array(np.nan), np.array(1.0))
    assert evaluate("Range", np.array(3), np.array(0), np.array(1))[0].size == 0


HUGE: list[tuple[str, tuple[Any, ...], Mapping[str, Any]]] = [
    ("Tile", (np.ones(8, np.float32), i64(1 << 40)), {}),
    ("Expand", (np.ones(1, np.float32), i64(1 << 20, 1 << 20)), {}),
    ("Expand", (np.ones((1 << 16, 1), np.float32), i64(1 << 16)), {}),
    ("OneHot", (np.zeros(1 << 10, np.int64), np.array(1 << 40), np.array([0, 1], np.float32)), {}),
    ("ConstantOfShape", (i64(1 << 32, 1 << 31),), {}),
    ("Range", (np.array(0), np.array(1 << 60), np.array(1)), {}),
    ("Range", (np.array(0.0), np.array(1e18), np.array(1.0)), {}),
    ("Pad", (np.ones(2, np.float32), i64(1 << 50, 0)), {}),
    ("Resize", (np.ones((1, 1, 2, 2), np.float32), None, None, i64(1, 1, 1 << 20, 1 << 20)), {"mode": "nearest"}),
    ("Resize", (np.ones((1, 1, 2, 2), np.float32), None, np.array([1, 1, 1e9, 1e9], np.float32)), {"mode": "linear"}),
    ("Add", (np.ones((1 << 16, 1), np.float32), np.ones((1, 1 << 16), np.float32)), {}),
    ("Where", (np.ones((1 << 16, 1), bool), np.ones((1, 1 << 16), np.float32), np.ones(1, np.float32)), {}),
    ("MatMul", (np.ones((1 << 16, 1), np.float32), np.ones((1, 1 << 16), np.float32)), {}),
    ("Gather", (np.ones((1, 1 << 16), np.float32), np.zeros(1 << 16, np.int64)), {}),
    ("RandomNormal", (), {"shape": (1 << 30, 1 << 30)}),
    ("Conv", (np.ones((1, 1, 2, 2), np.float32), np.ones((1, 1, 1, 1), np.float32)), {"pads": (1 << 20,) * 4}),
    ("ConvTranspose", (np.ones((1, 1, 2), np.float32), np.ones((1, 1, 1), np.float32)), {"strides": (1 << 40,)}),
    ("HannWindow", (np.array(1 << 40),), {}),
]


@pytest.mark.parametrize(("op", "inputs", "attributes"), HUGE, ids=[f"{i}_{case[0]}" for i, case in enumerate(HUGE)])
def test_huge_results_are_refused_before_they_are_allocated(
    op: str, inputs: tuple[Any, ...], attributes: Mapping[str, Any]
) -> None:
    start = time.monotonic()
    error = refused(ResourceExhausted, op, *inputs, **attributes)
    assert "tensor_bytes" in str(error)
    assert time.monotonic() - start < 30


def test_huge_concat_is_refused() -> None:
    part = np.broadcast_to(np.float32(1), (1 << 28,))
    refused(ResourceExhausted, "Concat", part, part, part, axis=0)


def test_operands_that_do_not_broadcast_name_node_and_shapes() -> None:
    error = refused(InvalidArgument, "Add", np.ones((2, 3), np.float32), np.ones((4,), np.float32))
    assert "(2, 3)" in str(error)
    assert "(4,)" in str(error)
    refused(InvalidArgument, "Add", np.ones(2, np.float32), np.ones(2, np.float64), value="in_1")
    refused(InvalidArgument, "MatMul", np.ones((2, 3), np.float32), np.ones((2, 3), np.float32), value="in_1")
    refused(InvalidArgument, "Gemm", np.ones((2, 3), np.float32), np.ones((3, 2), np.float32), np.ones(5, np.float32))


@pytest.mark.parametrize(
    "attributes",
    [{"strides": (0, 1)}, {"dilations": (1, -1)}, {"group": 0}, {"group": 3}, {"pads": (-1, 0, 0, 0)},
     {"kernel_shape": (2, 2)}, {"strides": (1,)}, {"auto_pad": "SOME"}],
)  # fmt: skip
def test_convolution_attributes_out_of_range_are_refused(attributes: Mapping[str, Any]) -> None:
    refused(InvalidArgument, "Conv", np.ones((1, 2, 5, 5), np.float32), np.ones((2, 2, 3, 3), np.float32), **attributes)


def test_kernel_larger_than_the_input_is_refused() -> None:
    refused(InvalidArgument, "Conv", np.ones((1, 1, 2, 2), np.float32), np.ones((1, 1, 3, 3), np.float32))
    refused(InvalidArgument, "MaxPool", np.ones((1, 1, 2, 2), np.float32), kernel_shape=(3, 3))


def test_batch_zero_and_empty_inputs_give_empty_results() -> None:
    w = np.ones((4, 2, 3, 3), np.float32)
    assert evaluate("Conv", np.ones((0, 2, 5, 5), np.float32), w)[0].shape == (0, 4, 3, 3)
    assert evaluate("MatMul", np.ones((0, 3), np.float32), np.ones((3, 2), np.float32))[0].shape == (0, 2)
    assert evaluate("MatMul", np.ones((2, 0), np.float32), np.ones((0, 2), np.float32))[0].tolist() == [[0, 0]] * 2
    assert evaluate("LayerNormalization", np.ones((0, 3), np.float32), np.ones(3, np.float32))[0].shape == (0, 3)
    assert evaluate("MaxPool", np.ones((0, 1, 4, 4), np.float32), kernel_shape=(2, 2))[0].shape == (0, 1, 3, 3)
    q = np.ones((0, 2, 3, 4), np.float32)
    assert evaluate("Attention", q, q, q)[0].shape == (0, 2, 3, 4)


@pytest.mark.parametrize("view", ["strided", "reversed", "zero", "readonly", "transposed"])
def test_inputs_of_any_layout(view: str) -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    x = {
        "strided": base[::2, ::3],
        "reversed": base[::-1, ::-1],
        "zero": np.broadcast_to(base[0], (3, 6)),
        "readonly": base.copy(),
        "transposed": base.T,
    }[view]
    x.flags.writeable = False
    before = x.copy()
    for op in ("Relu", "Softmax", "Gelu", "Erf", "CumSum"):
        inputs = (x, np.array(0)) if op == "CumSum" else (x,)
        expected = evaluate(op, np.array(x, order="C"), *inputs[1:])[0]
        np.testing.assert_array_equal(evaluate(op, *inputs)[0], expected)
    np.testing.assert_array_equal(x, before)


def test_kernels_of_the_standard_library_raise_typed_errors() -> None:
    with pytest.raises(RuntimeException) as caught:
        evaluate("Det", np.ones((2, 3), np.float32))
    assert "culprit" in str(caught.value)
    assert "float32[2, 3]" in str(caught.value)


ENDLESS = """
<ir_version: 10, opset_import: ["" : 21]>
main (float[2] x) => (float[2] y) {
  trips = Constant<value = int64 {4611686018427387904}>()
  going = Constant<value = bool {1}>()
  y = Loop(trips, going, x) <body = again (int64 i, bool c, float[2] s) => (bool c2, float[2] s2) {
    c2 = Identity(c)
    s2 = Add(s, x)
  }>
}
"""


def executable(graph_text: str) -> Any:
    model = from_text(graph_text)
    return ReferenceExecutionProvider().compile(Subgraph(model.graph, model, tuple(model.graph)), CompileEnv())


def test_endless_loop_stops_on_terminate_and_on_the_deadline() -> None:
    run = executable(ENDLESS)
    inputs = [Tensor.from_numpy(np.ones(2, np.float32))]
    cancel = CancelToken()
    state = RunState(cancel=cancel)
    timer = threading.Timer(0.2, cancel.set)
    timer.start()
    with pytest.raises(Terminated):
        run.run(inputs, state)
    timer.join()
    with pytest.raises(Terminated):
        run.run(inputs, RunState(deadline=time.monotonic() + 0.2))


def test_scan_outputs_of_a_loop_stay_under_the_limit() -> None:
    text = ENDLESS.replace("=> (float[2] y) {", "=> (float[2] y, float[n, 1024] z) {")
    text = text.replace("y = Loop", "y, z = Loop").replace("float[2] s2)", "float[2] s2, float[1024] t)")
    text = text.replace(
        "s2 = Add(s, x)", "s2 = Add(s, x)\n w = Constant<value = int64[1] {1024}>()\n t = Expand(c3, w)"
    )
    text = text.replace("c2 = Identity(c)", "c2 = Identity(c)\n c3 = Constant<value = float {1}>()")
    model = from_text(text)
    run = ReferenceExecutionProvider().compile(
        Subgraph(model.graph, model, tuple(model.graph)), CompileEnv(limits=Limits(tensor_bytes=1 << 20))
    )
    with pytest.raises(ResourceExhausted) as caught:
        run.run([Tensor.from_numpy(np.ones(2, np.float32))], RunState())
    assert "Loop" in str(caught.value)


def test_condition_that_is_no_boolean_is_refused() -> None:
    graph, condition = Graph(), Value("c")
    graph.inputs = [condition]
    branches = {}
    for name in ("then_branch", "else_branch"):
        branch = Graph(name)
        branch.set_outputs([Value.constant(f"{name}_value", np.zeros(1, np.float32))])
        branches[name] = branch
    node = Node("If", [condition], ["y"], branches, name="culprit")
    graph.append(node)
    graph.set_outputs(node.outputs)
    model = from_text(ENDLESS)
    run = ReferenceExecutionProvider().compile(Subgraph(graph, model), CompileEnv())
    for wrong in (np.array([True, False]), np.array(1.0, np.float32), np.zeros(0, bool)):
        with pytest.raises(InvalidArgument) as caught:
            run.run([Tensor.from_numpy(wrong)], RunState())
        assert "culprit" in str(caught.value)
