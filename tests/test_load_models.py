"""Loading: what arrives in the graph, and where the weights stay."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from whet import dtypes
from whet.errors import InvalidGraph, InvalidProtobuf
from whet.formats.onnx import from_text, load_model, to_proto
from whet.formats.onnx.wire import LIFT_BYTES, lift, restore
from whet.graph import Graph, Model, SequenceType, TensorData, TensorType, Value
from whet.graph.dims import symbol
from whet.graph.verify import verify

Array = np.ndarray[Any, Any]
F = TensorProto.FLOAT


def constant_model(tensor: onnx.TensorProto) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", tensor.data_type, list(tensor.dims))],
        [tensor],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)


def only_constant(model: Model) -> TensorData:
    verify(model)
    value = model.graph.nodes[0].inputs[0]
    assert value is not None
    assert value.data is not None
    assert value.type == TensorType(value.data.dtype, value.data.shape)
    return value.data


def load_constant(tensor: onnx.TensorProto) -> TensorData:
    return only_constant(load_model(constant_model(tensor).SerializeToString()))


# Every element type, in every encoding, against onnx's own reader


def samples(dtype: dtypes.DType, count: int) -> Array:
    rng = np.random.default_rng(dtype.onnx_code)
    if dtype is dtypes.STRING:
        return np.array([f"text {i} é" for i in range(count)], object)
    if dtype.kind == "complex":
        return (rng.standard_normal(count) + 1j * rng.standard_normal(count)).astype(dtype.numpy)
    if dtype.kind == "bool":
        return rng.integers(0, 2, count).astype(bool)
    if dtype.is_float:
        return np.abs(rng.standard_normal(count)).astype(dtype.numpy)
    if dtype.is_packed:
        low = -(1 << (dtype.bits - 1)) if dtype.kind == "int" else 0
        return rng.integers(low, low + (1 << dtype.bits), count).astype(np.int8).astype(dtype.numpy)
    edges = np.iinfo(dtype.numpy)
    return np.resize(np.array([edges.min, edges.max, 0, 1, 7], dtype.numpy), count)


def same_bits(found: Array, expected: Array) -> None:
    assert found.shape == expected.shape
    if expected.dtype == object:
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_array_equal(found.view(np.uint8), expected.astype(found.dtype).view(np.uint8))


@pytest.mark.parametrize("count", [0, 1, 5, 3000])
@pytest.mark.parametrize("dtype", dtypes.ALL, ids=lambda d: d.name)
def test_raw_data(dtype: dtypes.DType, count: int) -> None:
    expected = samples(dtype, count)
    if dtype is dtypes.STRING:
        tensor = helper.make_tensor("w", dtype.onnx_code, [count], [s.encode() for s in expected])
    else:
        tensor = numpy_helper.from_array(expected, "w")
        assert tensor.HasField("raw_data")
    found = load_constant(tensor)
    assert found.dtype is dtype
    same_bits(found.numpy(), expected)


@pytest.mark.parametrize("dtype", [d for d in dtypes.ALL if d is not dtypes.STRING], ids=lambda d: d.name)
def test_typed_data(dtype: dtypes.DType) -> None:
    expected = samples(dtype, 7)
    tensor = onnx.TensorProto(name="w", data_type=dtype.onnx_code, dims=[7])
    if dtype.kind == "complex":
        parts = np.stack([expected.real, expected.imag], 1).ravel()
        (tensor.float_data if dtype.bits == 64 else tensor.double_data).extend(parts.tolist())
    elif dtype in (dtypes.FLOAT32, dtypes.FLOAT64):
        (tensor.float_data if dtype.bits == 32 else tensor.double_data).extend(expected.tolist())
    elif dtype is dtypes.INT64:
        tensor.int64_data.extend(expected.tolist())
    elif dtype in (dtypes.UINT32, dtypes.UINT64):
        tensor.uint64_data.extend(expected.tolist())
    elif dtype.is_packed:
        tensor.int32_data.extend(numpy_helper.from_array(expected).raw_data)
    elif dtype.is_float:
        tensor.int32_data.extend(expected.view(np.uint16 if dtype.bits == 16 else np.uint8).tolist())
    else:
        tensor.int32_data.extend(expected.astype(np.int32).tolist())
    same_bits(load_constant(tensor).numpy(), expected)
    same_bits(numpy_helper.to_array(tensor), expected)


def test_booleans_are_zero_or_one() -> None:
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.BOOL, dims=[4], raw_data=b"\x00\x01\x02\xff")
    found = load_constant(tensor).numpy()
    np.testing.assert_array_equal(found.view(np.uint8), [0, 1, 1, 1])


def test_scalars_and_empty_tensors() -> None:
    assert load_constant(numpy_helper.from_array(np.float32(3.5), "w")).scalar() == 3.5
    assert load_constant(numpy_helper.from_array(np.zeros((0, 4), np.float32), "w")).shape == (0, 4)


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_initializers_become_dense(linear: bool) -> None:
    positions = np.array([1, 5, 9], np.int64)
    indices = positions if linear else np.stack(np.unravel_index(positions, (3, 4)), 1).astype(np.int64)
    model = onnx.ModelProto()
    model.CopyFrom(constant_model(numpy_helper.from_array(np.zeros((3, 4), np.float32), "w")))
    del model.graph.initializer[:]
    model.graph.sparse_initializer.add(
        values=numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w"),
        indices=numpy_helper.from_array(indices, "w_i"),
        dims=[3, 4],
    )
    expected = np.zeros(12, np.float32)
    expected[positions] = [1, 2, 3]
    np.testing.assert_array_equal(only_constant(load_model(model.SerializeToString())).numpy(), expected.reshape(3, 4))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"value": numpy_helper.from_array(np.arange(6, dtype=np.int32).reshape(2, 3))}, np.arange(6).reshape(2, 3)),
        ({"value_float": 1.5}, np.float32(1.5)),
        ({"value_floats": [1.5, 2.5]}, np.array([1.5, 2.5], np.float32)),
        ({"value_int": 7}, np.int64(7)),
        ({"value_ints": [7, 8]}, np.array([7, 8])),
        ({"value_string": "a"}, np.array("a", object)),
        ({"value_strings": ["a", "bc"]}, np.array(["a", "bc"], object)),
    ],
)
def test_constant_nodes_become_constants(attributes: dict[str, Any], expected: Array) -> None:
    nodes = [helper.make_node("Constant", [], ["c"], **attributes), helper.make_node("Identity", ["c"], ["y"])]
    graph = helper.make_graph(nodes, "g", [], [helper.make_empty_tensor_value_info("y")])
    model = load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString())
    assert [n.op_type for n in model.graph] == ["Identity"]
    np.testing.assert_array_equal(only_constant(model).numpy(), expected)


def test_a_constant_may_be_an_output() -> None:
    model = from_text(
        '<ir_version: 8, opset_import: ["": 17]> g () => (float[2] y) { y = Constant <value_floats = [1.0, 2.0]> () }'
    )
    verify(model)
    (output,) = model.graph.outputs
    assert output.name == "y"
    np.testing.assert_array_equal(output.array, [1, 2])


# Where weights stay


def weight_address(data: TensorData) -> int:
    return int(np.frombuffer(data.raw(), np.uint8).ctypes.data)


def test_weights_are_not_copied(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    data = constant_model(numpy_helper.from_array(weights, "w")).SerializeToString()
    found = only_constant(load_model(data))
    start = int(np.frombuffer(data, np.uint8).ctypes.data)
    assert start < weight_address(found) < start + len(data)
    np.testing.assert_array_equal(found.numpy(), weights)
    assert not found.numpy().flags.writeable
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    mapped = only_constant(load_model(path))
    assert isinstance(mapped.raw().obj, mmap.mmap)
    # The map outlives its file's name, as when a model is replaced by a new one.
    os.unlink(path)
    np.testing.assert_array_equal(mapped.numpy(), weights)


def test_lift_and_restore_are_inverse() -> None:
    rng = np.random.default_rng(3)
    body = helper.make_graph(
        [helper.make_node("Constant", [], ["r"], value=numpy_helper.from_array(rng.standard_normal(900)))],
        "b",
        [],
        [helper.make_tensor_value_info("r", TensorProto.DOUBLE, [900])],
    )
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)]
    tensors = [numpy_helper.from_array(rng.standard_normal(n), f"w{n}") for n in (1, 127, 128, 129, 5000, 20000)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [900])],
        tensors,
    )
    data = helper.make_model(graph).SerializeToString()
    rest, payloads = lift(memoryview(data), None)
    assert len(payloads.items) == 6
    assert len(rest) < 6 * LIFT_BYTES
    onnx.ModelProto.FromString(rest)
    pieces, size = restore(memoryview(rest), payloads)
    whole = b"".join(pieces)
    assert len(whole) == size
    assert whole == data


def test_a_tensor_that_looks_like_a_token_is_itself() -> None:
    data = np.arange(24, dtype=np.uint8)
    np.testing.assert_array_equal(load_constant(numpy_helper.from_array(data, "w")).numpy(), data)


# Graph inputs, types, names


def test_types_of_inputs() -> None:
    tensor = helper.make_tensor_type_proto(F, ["n", 3, None])
    infos = [
        helper.make_value_info("a", tensor),
        helper.make_value_info("b", helper.make_sequence_type_proto(helper.make_tensor_type_proto(F, None))),
    ]
    nodes = [helper.make_node("Identity", ["a"], ["y"]), helper.make_node("Identity", ["b"], ["z"])]
    outputs = [helper.make_value_info("y", tensor), helper.make_empty_tensor_value_info("z")]
    graph = helper.make_graph(nodes, "g", infos, outputs)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model = load_model(proto.SerializeToString())
    a, b = model.graph.inputs
    assert a.type == TensorType(dtypes.FLOAT32, (symbol("n"), 3, None))
    assert b.type == SequenceType(TensorType(dtypes.FLOAT32, None))
    assert to_proto(model).graph.input[0] == infos[0]
    assert to_proto(model).graph.input[1] == infos[1]


def overridable() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info(n, F, [2]) for n in ("w", "x")],
        [helper.make_tensor_value_info("y", F, [2])],
        [numpy_helper.from_array(np.array([1, 2], np.float32), "w")],
    )
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=3).SerializeToString())


def test_initializers_that_are_inputs() -> None:
    model = load_model(overridable())
    verify(model)
    assert [v.name for v in model.graph.inputs] == ["x"]
    (value,) = model.graph.overridable
    assert value.name == "w"
    np.testing.assert_array_equal(value.array, [1, 2])
    written = to_proto(model)
    assert [v.name for v in written.graph.input] == ["x", "w"]
    assert [t.name for t in written.graph.initializer] == ["w"]


def test_initializers_as_true_inputs() -> None:
    model = load_model(overridable(), as_inputs=frozenset({"w"}))
    verify(model)
    assert [(v.name, v.data) for v in model.graph.inputs] == [("w", None), ("x", None)]
    assert model.graph.overridable == []


def test_header_is_kept() -> None:
    proto = onnx.ModelProto.FromString(overridable())
    proto.producer_name, proto.model_version, proto.doc_string = "someone", 7, "about"
    proto.graph.doc_string = "the graph"
    proto.metadata_props.add(key="labels", value="a,b")
    proto.graph.node[0].metadata_props.add(key="pkg", value="torch")
    model = load_model(proto.SerializeToString())
    assert model.opset_imports == {"": 9}
    written = to_proto(model)
    for field in ("producer_name", "model_version", "doc_string", "metadata_props"):
        assert getattr(written, field) == getattr(proto, field)
    assert written.graph.doc_string == "the graph"
    assert written.graph.node[0].metadata_props == proto.graph.node[0].metadata_props


def test_text_attributes_that_are_not_utf8_stay_bytes() -> None:
    node = helper.make_node("Op", [], ["y"], domain="d", a=b"\xff\x00", b="ok", c=[b"ok", b"\xfe"])
    graph = helper.make_graph([node], "g", [], [helper.make_empty_tensor_value_info("y")])
    model = load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("d", 1)]).SerializeToString())
    assert model.graph.nodes[0].attributes == {"a": b"\xff\x00", "b": "ok", "c": (b"ok", b"\xfe")}
    assert list(to_proto(model).graph.node[0].attribute) == list(node.attribute)


def test_subgraphs_read_outer_values_directly() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["": 21]>
    g (bool c, float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> {
      y = If (c) <
        then_branch = t () => (float[2] r) { r = Add(x, w) },
        else_branch = e () => (float[2] s) <float[2] w = {3.0, 4.0}> { s = Mul(x, w) }
      >
    }""")
    verify(model)
    node = model.graph.nodes[0]
    then, otherwise = node.attributes["then_branch"], node.attributes["else_branch"]
    assert isinstance(then, Graph)
    assert isinstance(otherwise, Graph)
    assert then.nodes[0].inputs[0] is model.graph.inputs[1]
    np.testing.assert_array_equal(then.nodes[0].inputs[1].array, [1, 2])
    np.testing.assert_array_equal(otherwise.nodes[0].inputs[1].array, [3, 4])


def test_bad_text() -> None:
    with pytest.raises(InvalidProtobuf, match="no model"):
        from_text("this is not a model")


# Local functions


FUNCTIONS = """<ir_version: 10, opset_import: ["": 21, "local": 1]>
g (float[2,3] x) => (float[2,3] y, float[2,3] z) {
  y = local.Scaled <factor = 3.0> (x, x)
  t = local.Twice (x)
  z = local.Scaled (t)
}
<opset_import: ["": 11, "local": 1], domain: "local">
Scaled <factor: float = 2.0> (a, b) => (c) {
  f = Constant <value_float: float = @factor> ()
  m = Mul (a, f)
  k = ReduceSum <axes = [1], keepdims = 1> (m)
  c = Div (m, k)
}
<opset_import: ["": 21, "local": 1], domain: "local">
Twice (a) => (c) {
  f = local.Half (a)
  c = Add (f, a)
}
<opset_import: ["": 21], domain: "local">
Half (a) => (c) {
  h = Constant <value_float = 0.5> ()
  c = Mul (a, h)
}
"""


def test_functions_are_expanded_at_their_own_opset() -> None:
    text = FUNCTIONS.replace("value_float: float = @factor", "value: tensor = @factor")
    with pytest.raises(InvalidGraph, match="Constant"):
        from_text(text)
    model = from_text(FUNCTIONS.replace('"": 11', '"": 12'))
    verify(model)
    assert not [n for n in model.graph if n.domain]
    sums = [n for n in model.graph if n.op_type == "ReduceSum"]
    # Opset 12's attribute is an input in the graph's own opset.
    assert all(len(n.inputs) == 2 and "axes" not in n.attributes for n in sums)
    names = [o.name for n in model.graph for o in n.outputs]
    assert len(set(names)) == len(names)
    assert [v.name for v in model.graph.outputs] == ["y", "z"]
    x = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    y, z = ReferenceEvaluator(to_proto(model)).run(None, {"x": x})
    np.testing.assert_allclose(y, x / x.sum(1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(z, x / x.sum(1, keepdims=True), rtol=1e-6)


def test_an_argument_left_out_of_a_call() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["": 21, "local": 1]>
    g (float[2] x) => (float[2] y) { y = local.F (x) }
    <opset_import: ["": 21], domain: "local"> F (a, low, high) => (c) { c = Clip (a, low, high) }""")
    verify(model)
    assert model.graph.nodes[0].inputs == (model.graph.inputs[0],)


def test_a_function_that_passes_its_input_on() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["": 21, "local": 1]>
    g (float[2] x) => (float[2] y) { y = local.F (x) }
    <opset_import: ["": 21], domain: "local"> F (a) => (a) { b = Neg (a) }""")
    verify(model)
    assert model.graph.outputs[0].name == "y"
    assert model.graph.outputs[0].producer is not None
    assert model.graph.outputs[0].producer.op_type == "Identity"


def test_a_function_takes_precedence_over_an_operator_of_its_name() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
    g (float[2] x) => (float[2] y) { y = com.microsoft.Gelu (x) }
    <opset_import: ["": 21], domain: "com.microsoft"> Gelu (a) => (b) { b = Neg (a) }""")
    assert [n.op for n in model.graph] == ["Neg"]


def test_calls_that_do_not_fit() -> None:
    function = '<opset_import: ["": 21], domain: "local"> F (a) => (b) { b = Neg (a) }'
    head = '<ir_version: 10, opset_import: ["": 21, "local": 1]> g (float[2] x) => (float[2] y)'
    with pytest.raises(InvalidGraph, match="does not fit"):
        from_text(f"{head} {{ y = local.F (x, x) }} {function}")
    with pytest.raises(InvalidGraph, match="never makes"):
        from_text(f"{head} {{ y = local.F (x) }} {function.replace('b = Neg', 'c = Neg')}")


def test_functions_with_subgraphs_and_attributes() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["": 21, "local": 1]>
    g (bool c, float[2] x) => (float[2] y) {
      a = local.F <slope = 0.5> (c, x)
      y = local.F <slope = 0.25> (c, a)
    }
    <opset_import: ["": 21], domain: "local"> F <slope> (c, a) => (b) {
      b = If (c) <
        then_branch = t () => (r) { r = LeakyRelu <alpha: float = @slope> (a) },
        else_branch = e () => (r) { r = Neg (a) }
      >
    }""")
    verify(model)
    slopes = [n.attributes["alpha"] for n in model.graph.all_nodes() if n.op_type == "LeakyRelu"]
    assert slopes == [0.5, 0.25]


def test_names_of_outputs_survive_clashes() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["": 21]>
    g (bool c, float[2] x) => (float[2] y) {
      a = If (c) <then_branch = t () => (float[2] y) { y = Neg(x) }, else_branch = e () => (float[2] y) { y = Abs(x) }>
      y = Relu(a)
    }""")
    verify(model)
    assert model.graph.outputs[0].name == "y"
    inner = [v for g in model.graph.nodes[0].subgraphs() for v in g.outputs]
    assert len({v.name for v in inner} | {"y"}) == 3


def test_no_weight_is_read_while_loading() -> None:
    weights = numpy_helper.from_array(np.zeros(4096, ml_dtypes.bfloat16), "w")
    value = load_model(constant_model(weights).SerializeToString()).graph.nodes[0].inputs[0]
    assert isinstance(value, Value)
    assert value.data is not None
    assert value.data._array is None
