"""Saving: the file says what the graph says, at an opset that readers know, whole or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from whet.errors import InvalidArgument, InvalidGraph, NoSuchFile
from whet.formats.onnx import READER_OPSET, from_text, load_model, node_to_proto, save_model, to_proto
from whet.formats.onnx.detached import to_bytes_detached
from whet.graph import Graph, Model, Node, Value
from whet.graph.verify import verify

ort = pytest.importorskip("onnxruntime")

Array = np.ndarray[Any, Any]
F = TensorProto.FLOAT


def run(source: bytes | str, feed: dict[str, Array]) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(ort.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, feed))


def rand(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def big() -> onnx.ModelProto:
    """Two large weights, a small one, a large tensor inside of an attribute."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("MatMul", ["c", "w2"], ["d"]),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(rand(500, seed=4))),
        helper.make_node("Add", ["d", "k"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, ["n", 20])],
        [helper.make_tensor_value_info("y", F, ["n", 500])],
        [
            numpy_helper.from_array(rand(20, 300, seed=1), "w1"),
            numpy_helper.from_array(rand(1, seed=2), "b"),
            numpy_helper.from_array(rand(300, 500, seed=3), "w2"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def load(proto: onnx.ModelProto) -> Model:
    model = load_model(proto.SerializeToString())
    verify(model)
    return model


@pytest.mark.parametrize("external", [None, False, True])
def test_round_trip(tmp_path: Path, external: bool | None) -> None:
    feed = {"x": rand(3, 20)}
    (expected,) = run(big().SerializeToString(), feed)
    path = tmp_path / "saved.onnx"
    save_model(load(big()), path, external_data=external)
    assert sorted(os.listdir(tmp_path)) == ["saved.onnx", "saved.onnx.data"][: 2 if external else 1]
    np.testing.assert_array_equal(run(str(path), feed)[0], expected)
    onnx.checker.check_model(str(path), full_check=True)
    again = load_model(path)
    verify(again)
    np.testing.assert_array_equal(run(to_proto(again).SerializeToString(), feed)[0], expected)


def test_saved_bytes_are_those_of_the_proto(tmp_path: Path) -> None:
    path = tmp_path / "saved.onnx"
    save_model(load(big()), path)
    assert path.read_bytes() == to_proto(load(big())).SerializeToString()


def test_external_tensors_are_aligned_and_in_bounds(tmp_path: Path) -> None:
    path = tmp_path / "saved.onnx"
    save_model(load(big()), path, external_data=True)
    proto = onnx.load(path, load_external_data=False)
    size = (tmp_path / "saved.onnx.data").stat().st_size
    entries = [{e.key: e.value for e in t.external_data} for t in proto.graph.initializer if t.external_data]
    assert len(entries) == 3
    for entry in entries:
        assert entry["location"] == "saved.onnx.data"
        assert int(entry["offset"]) % 4096 == 0
        assert int(entry["offset"]) + int(entry["length"]) <= size


def test_a_model_past_protobufs_bound_gets_external_data(tmp_path: Path) -> None:
    # The bound is lowered: the real one would need 2 GB of disk.
    path = tmp_path / "saved.onnx"
    save_model(load(big()), path, embedded_bytes=100_000)
    assert (tmp_path / "saved.onnx.data").exists()
    feed = {"x": rand(3, 20)}
    np.testing.assert_array_equal(run(str(path), feed)[0], run(big().SerializeToString(), feed)[0])
    with pytest.raises(InvalidArgument, match="too large for one file"):
        save_model(load(big()), tmp_path / "other.onnx", external_data=False, embedded_bytes=100_000)
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize("external", [False, True])
def test_saving_over_the_loaded_file(tmp_path: Path, external: bool) -> None:
    path = tmp_path / "m.onnx"
    save_model(load(big()), path, external_data=external)
    feed = {"x": rand(3, 20)}
    (expected,) = run(str(path), feed)
    model = load_model(path)
    save_model(model, path, external_data=external)
    np.testing.assert_array_equal(run(str(path), feed)[0], expected)
    # The old map still serves the model that was loaded from it.
    np.testing.assert_array_equal(run(to_proto(model).SerializeToString(), feed)[0], expected)


INTERRUPTED = """
import resource, signal, sys
from whet.errors import Fail
from whet.formats.onnx import load_model, save_model

model = load_model(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    save_model(model, sys.argv[2], external_data=sys.argv[3] == "True")
except Fail as error:
    assert "cannot write the model: File too large" in str(error) and sys.argv[2] in str(error)
    print("refused")
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX resource limits")
@pytest.mark.parametrize("external", [False, True])
def test_a_save_that_fails_half_way_leaves_the_old_file_alone(tmp_path: Path, external: bool) -> None:
    (tmp_path / "source.onnx").write_bytes(big().SerializeToString())
    target = tmp_path / "out" / "m.onnx"
    target.parent.mkdir()
    target.write_bytes(b"the old file")
    arguments = [str(tmp_path / "source.onnx"), str(target), str(external)]
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
    assert os.listdir(target.parent) == ["m.onnx"]
    assert target.read_bytes() == b"the old file"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NoSuchFile, match="cannot write"):
        save_model(load(big()), tmp_path / "no" / "m.onnx")


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_saved_files_have_plain_permissions(tmp_path: Path) -> None:
    save_model(load(big()), tmp_path / "m.onnx")
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "m.onnx").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_detached_weights() -> None:
    model = load(big())
    data, detached = to_bytes_detached(model)
    assert sorted(detached) == ["k", "w1", "w2"]
    assert len(data) < 3000
    options = ort.SessionOptions()
    values = [ort.OrtValue.ortvalue_from_numpy(np.array(d.numpy())) for d in detached.values()]
    options.add_external_initializers(list(detached), values)
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    feed = {"x": rand(3, 20)}
    np.testing.assert_allclose(
        session.run(None, feed)[0], run(big().SerializeToString(), feed)[0], rtol=1e-5, atol=1e-5
    )


# Opsets


def opset_of(text: str, **options: Any) -> int:
    proto = to_proto(from_text(text), **options)
    (entry,) = [o for o in proto.opset_import if not o.domain]
    onnx.checker.check_model(proto)
    run(proto.SerializeToString(), {i.name: np.ones([d.dim_value for d in i.type.tensor_type.shape.dim], np.float32)
                                    for i in proto.graph.input})  # fmt: skip
    return int(entry.version)


def one(opset: int, node: str) -> str:
    return f'<ir_version: 10, opset_import: ["": {opset}]> g (float[2,3] x) => (float[2,3] y) {{ y = {node} }}'


@pytest.mark.parametrize(
    ("opset", "node", "expected"),
    [
        (11, "Relu(x)", 17),
        (17, "Relu(x)", 17),
        (19, "Relu(x)", 19),
        (13, "Softmax<axis = 1>(x)", 17),
        (13, "ReduceMean<axes = [1]>(x)", 18),
        (20, 'Gelu<approximate = "tanh">(x)', 20),
        (28, "Relu(x)", 26),
        (27, "Cast<to = 1>(x)", 26),
        (24, "Swish(x)", 24),
    ],
)
def test_the_least_opset_that_fits_is_written(opset: int, node: str, expected: int) -> None:
    assert opset_of(one(opset, node)) == expected


def test_passes_may_raise_the_opset() -> None:
    model = from_text(one(17, "Relu(x)"))
    old = model.graph.nodes[0]
    new = Node("Gelu", old.inputs, old.outputs, name="raised")
    model.graph.insert_before(old, new)
    model.graph.remove(old)
    assert to_proto(model).opset_import[0].version == 20


def test_a_chosen_opset() -> None:
    assert opset_of(one(13, "Relu(x)"), opset=13) == 13
    assert opset_of(one(13, "Relu(x)"), opset=22) == 22
    with pytest.raises(InvalidGraph, match=r"opset 13.*Gelu.*does not exist there"):
        to_proto(from_text(one(20, "Gelu(x)")), opset=13)
    with pytest.raises(InvalidGraph, match=r"opset 11.*Softmax.*since opset 13"):
        to_proto(from_text(one(13, "Softmax(x)")), opset=11)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('<ir_version: 14, opset_import: ["": 28]> g (int8[2] x) => (int8[2] y) '
         '{ y = BitShift<direction="LEFT">(x, x) }', r"BitShift.*int8"),
        ('<ir_version: 14, opset_import: ["": 28]> g (float[2] x) => (float[2] y) { y = Mod(x, x) }', "Mod.*fmod=0"),
        ('<ir_version: 14, opset_import: ["": 28]> g (float[1,4,2,2] x) => (float[1,16,1,1] y) '
         '{ y = SpaceToDepth<blocksize = 2, mode = "CRD">(x) }', "SpaceToDepth.*attribute mode"),
    ],
)  # fmt: skip
def test_what_no_reader_knows_is_refused_by_name(text: str, reason: str) -> None:
    model = from_text(text)
    with pytest.raises(InvalidGraph, match=reason):
        to_proto(model)
    assert to_proto(model, opset=28).opset_import[0].version == 28


def test_defaults_of_newer_forms_are_left_out() -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 19]> g (float[2] x) => (int32[2] y) { y = Cast<to = 6, saturate = 1>(x) }'
    )
    assert [a.name for a in to_proto(from_text(text), opset=13).graph.node[0].attribute] == ["to"]
    text = text.replace("saturate = 1", "saturate = 0")
    with pytest.raises(InvalidGraph, match="saturate does not exist"):
        to_proto(from_text(text), opset=13)


def test_the_reader_knows_the_reader_opset() -> None:
    (written,) = {o.version for o in to_proto(from_text(one(28, "Relu(x)"))).opset_import}
    assert written == READER_OPSET[""]
    feed = {"x": np.ones((2, 3), np.float32)}
    run(to_proto(from_text(one(28, "Relu(x)"))).SerializeToString(), feed)
    newer = to_proto(from_text(one(28, "Relu(x)")), opset=READER_OPSET[""] + 1)
    with pytest.raises(Exception, match="opset"):
        run(newer.SerializeToString(), feed)


def test_tree_ensembles_keep_a_version_that_has_them() -> None:
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1, nodes_treeids=[0], nodes_nodeids=[0],
        nodes_featureids=[0], nodes_values=[0.0], nodes_modes=["LEAF"], nodes_truenodeids=[0], nodes_falsenodeids=[0],
        target_ids=[0], target_nodeids=[0], target_treeids=[0], target_weights=[2.5],
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", F, [2, 1])],
        [helper.make_tensor_value_info("y", F, [2, 1])],
    )
    imports = [helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 3)]
    proto = to_proto(load(helper.make_model(graph, opset_imports=imports, ir_version=8)))
    assert {o.domain: o.version for o in proto.opset_import}["ai.onnx.ml"] == 3
    np.testing.assert_array_equal(run(proto.SerializeToString(), {"x": rand(2, 1)})[0], [[2.5], [2.5]])


# Graphs as passes leave them


def test_nameless_and_clashing_constants_get_names() -> None:
    model = from_text(one(17, "Relu(x)"))
    (node,) = model.graph
    clash = Value.constant("x", np.float32(2))
    nameless = Value.constant("", np.float32(3))
    first = Node("Mul", [node.inputs[0], clash], ["m"])
    second = Node("Mul", [first.output, nameless], ["m2"])
    model.graph.insert_before(node, first)
    model.graph.insert_before(node, second)
    node.set_input(0, second.output)
    proto = to_proto(model)
    x = rand(2, 3)
    np.testing.assert_allclose(run(proto.SerializeToString(), {"x": x})[0], np.maximum(x * 6, 0), rtol=1e-6)


def test_branches_that_return_outer_values_and_constants() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["": 21]>
    g (bool c, float[2] x) => (float[2] y, float[2] z) {
      a = Neg(x)
      y, z = If (c) <
        then_branch = t () => (float[2] r, float[2] q) { r = Abs(x) q = Abs(a) },
        else_branch = e () => (float[2] s, float[2] u) { s = Sin(x) u = Cos(x) }
      >
    }""")
    then = model.graph.nodes[1].attributes["then_branch"]
    assert isinstance(then, Graph)
    outer = model.graph.nodes[0].output
    for node in then.nodes:
        then.set_outputs([])
        then.remove(node)
    then.set_outputs([outer, outer])
    otherwise = model.graph.nodes[1].attributes["else_branch"]
    assert isinstance(otherwise, Graph)
    otherwise.replace_output(otherwise.outputs[0], Value.constant("k", np.array([5, 6], np.float32)))
    verify(model)
    x = rand(2)
    proto = to_proto(model)
    for condition, expected in ((True, [-x, -x]), (False, [np.array([5, 6], np.float32), np.cos(x)])):
        found = run(proto.SerializeToString(), {"c": np.array(condition), "x": x})
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_constant_outputs_are_written() -> None:
    model = from_text('<ir_version: 8, opset_import: ["": 17]> g (float[1] x) => (float[2] y, float[1] z) '
                      "{ y = Constant <value_floats = [1.0, 2.0]> () z = Neg(x) }")  # fmt: skip
    found = run(to_proto(model).SerializeToString(), {"x": rand(1)})
    np.testing.assert_array_equal(found[0], [1, 2])


def test_node_to_proto() -> None:
    model = from_text(one(11, "Clip(x)"))
    node = model.graph.nodes[0]
    node.name = "clip"
    proto = node_to_proto(node)
    assert (proto.op_type, list(proto.input), list(proto.output), proto.name) == ("Clip", ["x"], ["y"], "clip")
    left_out = Node("Clip", [node.inputs[0], None, Value("high")], ["z"], {"a": (1, 2)})
    assert list(node_to_proto(left_out).input) == ["x", "", "high"]


def test_empty_list_attributes_keep_their_type() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["": 21]>
    g (float[3,1,4] x, float[1,8,4] w, float[1,8,2] r) => (y) { y, h, c = LSTM <hidden_size = 2> (x, w, r) }""")
    model.graph.nodes[0].attributes["activation_alpha"] = ()
    found = {a.name: a.type for a in to_proto(model).graph.node[0].attribute}
    assert found["activation_alpha"] == onnx.AttributeProto.FLOATS
