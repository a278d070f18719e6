"""What hostile inputs and models may do to compiled parts: belie types, overflow sizes, leave less than no elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import whet
from whet.errors import InvalidArgument, ResourceExhausted

CPU = "CPUExecutionProvider"
REFERENCE = "ReferenceExecutionProvider"
FLOAT = TensorProto.FLOAT

Shape = list[int | str] | None


def make(
    nodes: list[Any], inputs: dict[str, Shape], outputs: dict[str, Shape], constants: dict[str, Any] | None = None,
    declared: dict[str, Shape] | None = None,
) -> bytes:  # fmt: skip
    """A model whose inputs and outputs are float32; `declared` are the shapes that it claims for inner values."""
    infos = [
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in named.items()]
        for named in (inputs, outputs, declared or {})
    ]
    initializers = [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", infos[0], infos[1], initializers, value_info=infos[2])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def session(model: bytes, providers: list[Any], **config: str) -> whet.InferenceSession:
    options = whet.SessionOptions()
    options.graph_optimization_level = whet.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in config.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    return whet.InferenceSession(model, options, providers=providers)


def ones(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, np.float32)


node = helper.make_node


def test_a_value_from_another_provider_is_as_long_as_its_type_says() -> None:
    """The types declare u and b equally long, and what Unique gives is as long as the data says."""
    model = make(
        [node("Unique", ["x"], ["u"]), node("Relu", ["u"], ["v"]), node("Add", ["v", "b"], ["y"])],
        {"x": ["N"], "b": ["M"]}, {"y": ["M"]}, declared={"u": ["M"]},
    )  # fmt: skip
    made = session(model, [CPU])
    assert made.placement.by_provider == {REFERENCE: 1, CPU: 2}
    x = np.array([3, 1, 2], np.float32)
    np.testing.assert_array_equal(made.run(None, {"x": x, "b": ones(3)})[0], [2, 3, 4])
    for length in (1, 2, 4):
        with pytest.raises(InvalidArgument, match="does not agree"):
            made.run(None, {"x": x, "b": ones(length)})
    np.testing.assert_array_equal(made.run(None, {"x": x, "b": ones(3)})[0], [2, 3, 4])


def test_a_value_from_another_provider_has_the_extent_that_its_type_says() -> None:
    model = make([node("Unique", ["x"], ["u"]), node("Relu", ["u"], ["y"])], {"x": ["N"]}, {"y": [5000]},
                 declared={"u": [5000]})  # fmt: skip
    made = session(model, [CPU])
    assert made.placement.by_provider == {REFERENCE: 1, CPU: 1}
    x = np.arange(5000, dtype=np.float32)
    np.testing.assert_array_equal(made.run(None, {"x": x})[0], x)
    with pytest.raises(InvalidArgument, match="does not agree"):
        made.run(None, {"x": ones(5000)})


def test_a_value_that_the_reference_provider_widens_is_read_as_its_declared_type() -> None:
    model = make(
        [node("Unique", ["x"], ["u"]), node("Relu", ["u"], ["v"]), node("Mul", ["v", "v"], ["y"])],
        {"x": ["N"]}, {"y": ["Q"]},
    )  # fmt: skip
    made = session(model, [CPU, (REFERENCE, {"compute_dtype": "float64"})])
    assert made.placement.by_provider == {REFERENCE: 1, CPU: 2}
    found = made.run(None, {"x": np.array([3, 1, 2], np.float32)})[0]
    np.testing.assert_array_equal(found, [1, 4, 9])


@pytest.mark.parametrize(("rows", "columns"), [(2**32, 2**32), (2**33, 2**31), (2**32 + 16, 2**32), (2**40, 2**25)])
def test_extents_whose_product_wraps_around_are_refused(rows: int, columns: int) -> None:
    """Operands without elements take no memory; their product has 2^64 elements or more, which is 0 in 64 bits."""
    model = make(
        [node("MatMul", ["a", "b"], ["c"]), node("Relu", ["c"], ["d"]), node("ReduceSum", ["d", "axes"], ["y"])],
        {"a": ["M", "K"], "b": ["K", "N"]}, {"y": None}, {"axes": np.array([0, 1])},
    )  # fmt: skip
    made = session(model, [CPU])
    assert set(made.placement.by_provider) == {CPU}
    assert made.run(None, {"a": ones(2, 0), "b": ones(0, 3)})[0].item() == 0
    with pytest.raises(ResourceExhausted):
        made.run(None, {"a": ones(rows, 0), "b": ones(0, columns)})


def test_extents_that_fit_where_those_of_their_class_do_not() -> None:
    model = make(
        [node("Unsqueeze", ["a", "one"], ["c"]), node("Mul", ["c", "b"], ["d"]), node("Softmax", ["d"], ["e"], axis=0),
         node("MatMul", ["e", "v"], ["y"])],
        {"a": ["A"], "b": ["B"], "v": ["B", 1]}, {"y": None}, {"one": np.array([1])},
    )  # fmt: skip
    made = session(model, [CPU], limits__tensor_bytes=str(110 * 110 * 4))
    for size in (110, 64, 110):
        found = made.run(None, {"a": ones(size), "b": ones(size), "v": ones(size, 1)})[0]
        np.testing.assert_allclose(found, np.ones((size, 1)), rtol=1e-5)
    with pytest.raises(ResourceExhausted):
        made.run(None, {"a": ones(111), "b": ones(111), "v": ones(111, 1)})


@pytest.mark.parametrize("last", ["GlobalAveragePool", "ReduceSum"])
@pytest.mark.parametrize("extents", [(3, 3), (1, 1), (0, 0), (2, 6)])
def test_two_extents_below_zero_are_no_size(last: str, extents: tuple[int, int]) -> None:
    """A kernel of 5 leaves 3 - 4 rows of 3 - 4 columns: in product, one element."""
    model = make(
        [node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["d"]),
         node(last, ["d", "axes"] if last == "ReduceSum" else ["d"], ["y"])],
        {"x": ["B", 2, "H", "W"]}, {"y": None}, {"w": ones(3, 2, 5, 5), "axes": np.array([2, 3])},
    )  # fmt: skip
    made = session(model, [CPU])
    assert set(made.placement.by_provider) == {CPU}
    assert made.run(None, {"x": ones(1, 2, 6, 6)})[0].shape == (1, 3, 1, 1)
    for _ in range(2):
        with pytest.raises(InvalidArgument, match="less than no elements"):
            made.run(None, {"x": ones(1, 2, *extents)})


@pytest.mark.parametrize("extents", [(4, 4), (4, 9)])
def test_a_kernel_that_is_larger_than_the_image_is_refused(extents: tuple[int, int]) -> None:
    """It would leave no row, and a sum over none of them."""
    model = make(
        [node("Conv", ["x", "w"], ["c"]), node("ReduceSum", ["c", "axes"], ["y"])],
        {"x": ["B", 2, "H", "W"]}, {"y": None}, {"w": ones(3, 2, 5, 5), "axes": np.array([2, 3])},
    )  # fmt: skip
    made = session(model, [CPU])
    assert made.run(None, {"x": ones(1, 2, 5, 5)})[0].ravel().tolist() == [50, 50, 50]
    with pytest.raises(InvalidArgument, match="Conv"):
        made.run(None, {"x": ones(1, 2, *extents)})


def test_shape_arithmetic_below_zero_is_refused() -> None:
    model = make(
        [node("Shape", ["x"], ["s"]), node("Sub", ["s", "five"], ["q"]), node("ConstantOfShape", ["q"], ["z"]),
         node("ReduceSum", ["z"], ["y"], keepdims=0)],
        {"x": ["A", "B"]}, {"y": None}, {"five": np.array([5, 5])},
    )  # fmt: skip
    made = session(model, [CPU])
    assert made.run(None, {"x": ones(5, 7)})[0] == 0
    with pytest.raises(InvalidArgument, match="less than no elements"):
        made.run(None, {"x": ones(3, 3)})


LARGE, SMALL = 2**63 - 1, -(2**63)


@pytest.mark.parametrize("step", [1, 3, -2, LARGE, SMALL])
def test_slices_from_anywhere_to_anywhere(step: int) -> None:
    """Starts and ends that the data decides as the program runs, and that no sum may be made of unlooked."""
    integers = [helper.make_tensor_value_info(n, TensorProto.INT64, [1]) for n in ("a", "b")]
    nodes = [
        node("CumSum", ["a", "axis"], ["start"]), node("CumSum", ["b", "axis"], ["end"]),
        node("Slice", ["x", "start", "end", "axes", "step"], ["z"]), node("Relu", ["z"], ["y"]),
    ]  # fmt: skip
    constants = {"axis": np.array(0), "axes": np.array([0]), "step": np.array([step])}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, ["N", "K"]), *integers],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    made = session(model.SerializeToString(), [CPU])
    assert set(made.placement.by_provider) == {CPU}
    x = np.arange(15, dtype=np.float32).reshape(5, 3)
    for start in (SMALL, LARGE, -3, 0, 2, 7, -100):
        for end in (SMALL, LARGE, -1, 0, 3, 9):
            found = made.run(None, {"x": x, "a": np.array([start]), "b": np.array([end])})[0]
            np.testing.assert_array_equal(found, x[start:end:step], err_msg=f"{start}:{end}")


@pytest.mark.parametrize("wanted", [(2**32, 2**32), (2**62, 4), (2**63 - 1, 1), (SMALL, 2), (5, 3), (-2, -6)])
def test_shapes_from_the_data_that_do_not_fit(wanted: tuple[int, int]) -> None:
    shape = helper.make_tensor_value_info("a", TensorProto.INT64, [2])
    graph = helper.make_graph(
        [node("CumSum", ["a", "axis"], ["s"]), node("Reshape", ["x", "s"], ["z"]), node("Relu", ["z"], ["y"])], "g",
        [helper.make_tensor_value_info("x", FLOAT, ["N", "K"]), shape],
        [helper.make_tensor_value_info("y", FLOAT, None)], [numpy_helper.from_array(np.array(0), "axis")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    made = session(model.SerializeToString(), [CPU])
    assert set(made.placement.by_provider) == {CPU}
    x = ones(4, 3)
    assert made.run(None, {"x": x, "a": np.array([3, 1])})[0].shape == (3, 4)
    with np.errstate(over="ignore"):
        steps = np.array([wanted[0], np.int64(wanted[1]) - np.int64(wanted[0])])
    for given in (x, x[:0]) if wanted[0] > 2**31 else (x,):
        with pytest.raises(InvalidArgument, match="Reshape"):
            made.run(None, {"x": given, "a": steps})
