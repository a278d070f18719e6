"""Model files that are wrong: each gives a typed error that names the thing, or a right answer; never a crash."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from whet.config import DEFAULT_LIMITS, Limits
from whet.errors import (
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NoModel,
    NoSuchFile,
    ResourceExhausted,
    WhetError,
)
from whet.formats.onnx import from_text, load_model, to_proto
from whet.graph.verify import verify
from whet.passes.pipeline import optimize

F = TensorProto.FLOAT


def info(name: str, shape: list[Any] | None = None, code: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, code, [2, 3] if shape is None else shape)


def model(
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto] | None = None,
    *,
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
    opset: int = 21,
    ir: int = 10,
    **more: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x")] if inputs is None else inputs,
        [info("y")] if outputs is None else outputs,
        initializers or [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir, **more)


def relu() -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"], name="only")])


def refused(
    proto: onnx.ModelProto | bytes, *parts: str, kind: type[WhetError] = InvalidGraph, limits: Limits = DEFAULT_LIMITS
) -> WhetError:
    """Loading raises `kind`, and the message holds all of `parts`."""
    data = proto if isinstance(proto, bytes) else proto.SerializeToString()
    with pytest.raises(kind) as caught:
        load_model(data, limits)
    assert type(caught.value) is kind
    for part in parts:
        assert part in str(caught.value), f"{part!r} not in {caught.value}"
    assert len(str(caught.value)) < 4000
    return caught.value


# Bytes that are no model


def test_empty_file_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.write_bytes(b"")
    with pytest.raises(NoModel, match=r"empty.*empty\.onnx"):
        load_model(path)
    refused(b"", "empty", kind=NoModel)


def test_random_bytes() -> None:
    rng = np.random.default_rng(7)
    for size in (1, 2, 10, 100, 3000):
        for _ in range(200):
            with pytest.raises((InvalidProtobuf, InvalidGraph, NoModel)):
                load_model(rng.bytes(size))


def big_model() -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.arange(6000, dtype=np.float32).reshape(3, 2000), "w")
    return model([helper.make_node("MatMul", ["x", "w"], ["y"])], [weights], outputs=[info("y", [2, 2000])])


@pytest.mark.parametrize("sixteenth", range(1, 16))
def test_truncated(sixteenth: int, tmp_path: Path) -> None:
    data = big_model().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: len(data) * sixteenth // 16])
    with pytest.raises((InvalidProtobuf, InvalidGraph, NoModel)) as caught:
        load_model(path)
    assert caught.value.file == str(path)


def test_truncation_names_the_offset() -> None:
    data = big_model().SerializeToString()
    refused(data[:9000], "claims", "are left", kind=InvalidProtobuf)


def test_trailing_garbage() -> None:
    data = relu().SerializeToString()
    refused(data + b"\xff" * 40, kind=InvalidProtobuf)
    refused(data + b"\x00\x00", "field 0", kind=InvalidProtobuf)
    # A well-formed unknown field is no garbage: protobuf's way to extend a message.
    assert len(load_model(data + b"\xd2\x3e\x02ab").graph) == 1


def test_every_mutation_of_one_byte_is_survived() -> None:
    data = bytearray(model([helper.make_node("Softmax", ["x"], ["y"], axis=1)]).SerializeToString())
    for position in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            mutated = bytearray(data)
            mutated[position] ^= flip
            with contextlib.suppress(WhetError):
                verify(load_model(bytes(mutated)))


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(NoSuchFile, match="a directory"):
        load_model(tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NoSuchFile, match=r"no such file.*nothing\.onnx"):
        load_model(tmp_path / "nothing.onnx")
    with pytest.raises(NoSuchFile, match="NUL"):
        load_model("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_fifo_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "pipe.onnx"
    os.mkfifo(path)
    with pytest.raises(NoSuchFile, match="a FIFO"):
        load_model(path)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="this system has no device files")
def test_device_file() -> None:
    with pytest.raises(NoSuchFile, match="a character device"):
        load_model("/dev/zero")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.onnx"
    path.write_bytes(relu().SerializeToString())
    path.chmod(0)
    with pytest.raises(NoSuchFile, match="Permission denied"):
        load_model(path)


def test_a_model_of_another_type() -> None:
    with pytest.raises(InvalidArgument, match="ModelProto"):
        load_model(relu())  # type: ignore[arg-type]


# Versions


@pytest.mark.parametrize("version", [0, -1, 99, -(2**62)])
def test_ir_version(version: int) -> None:
    refused(model([helper.make_node("Relu", ["x"], ["y"])], ir=version), "IR version", f"found: {version}")


@pytest.mark.parametrize("version", [0, -1, 99, 2**62])
def test_opset_version(version: int) -> None:
    refused(model([helper.make_node("Relu", ["x"], ["y"])], opset=version), "opset", f"found: {version}", "1 to 28")


def test_missing_opset_import() -> None:
    proto = relu()
    del proto.opset_import[:]
    refused(proto, "imports no opset")
    proto.opset_import.add(domain="com.example", version=1)
    refused(proto, "does not import", "Relu(only)")


def test_contradicting_opset_imports() -> None:
    proto = relu()
    proto.opset_import.add(domain="ai.onnx", version=13)
    refused(proto, "two opsets", "21 and 13")


def test_unknown_domain() -> None:
    proto = model([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsft")])
    proto.opset_import.add(domain="com.microsoft", version=1)
    refused(proto, "com.microsft", "Did you mean 'com.microsoft'?")


def test_unknown_operator() -> None:
    refused(
        model([helper.make_node("Rellu", ["x"], ["y"], name="n1")]), "unknown operator", "n1", "Did you mean 'Relu'"
    )
    error = refused(model([helper.make_node("Gelu", ["x"], ["y"])], opset=13), "does not have yet", "ai.onnx 20")
    assert error.node is not None


def test_operators_of_other_domains_are_left_alone() -> None:
    proto = model([helper.make_node("Anything", ["x"], ["y"], domain="com.example", level=3)])
    proto.opset_import.add(domain="com.example", version=7)
    node = load_model(proto.SerializeToString()).graph.nodes[0]
    assert (node.op, node.attributes) == ("com.example.Anything", {"level": 3})


# Structure


def test_cycle() -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], name="first"), helper.make_node("Relu", ["a"], ["b"])]
    refused(model(nodes, outputs=[info("b")]), "cycle", "first")


def test_self_loop() -> None:
    refused(model([helper.make_node("Add", ["x", "y"], ["y"], name="self")]), "cycle", "self")


def test_unsorted_nodes_are_sorted() -> None:
    nodes = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Neg", ["x"], ["a"])]
    loaded = load_model(model(nodes).SerializeToString())
    verify(loaded)
    assert [n.op_type for n in loaded.graph] == ["Neg", "Relu"]


def test_a_subgraph_may_come_before_what_it_reads() -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (bool c, float[2] x) => (float[2] y) {
      y = If (c) <
        then_branch = t () => (float[2] r) { r = Neg(late) },
        else_branch = e () => (float[2] s) { s = Abs(x) }
      >
      late = Relu(x)
    }"""
    loaded = from_text(text)
    verify(loaded)
    assert [n.op_type for n in loaded.graph] == ["Relu", "If"]


def test_duplicate_node_names_become_unique() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"], name="n"), helper.make_node("Relu", ["a"], ["y"], name="n")]
    names = [n.name for n in load_model(model(nodes).SerializeToString()).graph]
    assert len(set(names)) == 2
    assert names[0] == "n"


def test_duplicate_value_names() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"], name="again")]
    refused(model(nodes), "made twice", "again", "value: y")
    refused(model([helper.make_node("Relu", ["x"], ["x"], name="over")], outputs=[info("x")]), "made twice", "over")
    refused(model([helper.make_node("Split", ["x"], ["y", "y"], num_outputs=2)]), "made twice")
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), "w")
    refused(model([helper.make_node("Add", ["x", "w"], ["y"])], [tensor, tensor]), "two initializers", "w")
    refused(model([helper.make_node("Relu", ["x"], ["y"])], inputs=[info("x"), info("x")]), "two graph inputs", "x")
    overridable = [info("x"), info("w", [2]), info("w", [2])]
    refused(model([helper.make_node("Add", ["x", "w"], ["y"])], [tensor], inputs=overridable), "two graph inputs", "w")


def test_undefined_input() -> None:
    nodes = [helper.make_node("Relu", ["image"], ["y"], name="reader")]
    refused(model(nodes, inputs=[info("imgae")]), "reader", "value: image", "Did you mean 'imgae'?")


def test_undefined_output() -> None:
    refused(model([helper.make_node("Relu", ["x"], ["y"])], outputs=[info("z")]), "never made", "value: z")


def test_no_graph() -> None:
    proto = relu()
    proto.ClearField("graph")
    refused(proto, "no graph", kind=NoModel)


def test_no_outputs() -> None:
    refused(model([helper.make_node("Relu", ["x"], ["y"])], outputs=[]), "no outputs")


def test_required_input_left_out() -> None:
    refused(model([helper.make_node("Add", ["", "x"], ["y"], name="sum")]), "left out", "sum", "value: A")
    refused(model([helper.make_node("Add", ["x"], ["y"], name="sum")]), "number of inputs", "found: 1", "expected: 2")
    refused(model([helper.make_node("Relu", ["x"], ["y", "z"])]), "number of outputs", "found: 2")


def test_shadowed_names_in_subgraphs_are_told_apart() -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (bool c, float[2] x) => (float[2] y) {
      a = Neg(x)
      y = If (c) <
        then_branch = t () => (float[2] r) { a = Abs(a) r = Relu(a) },
        else_branch = e () => (float[2] s) { s = Sin(a) }
      >
    }"""
    loaded = from_text(text)
    verify(loaded)
    then = next(loaded.graph.nodes[1].subgraphs())
    outer = loaded.graph.nodes[0].output
    inner = then.nodes[0]
    assert inner.inputs[0] is outer
    assert inner.output.name != outer.name
    assert then.nodes[1].inputs[0] is inner.output


def test_recursive_local_functions() -> None:
    def function(name: str, calls: str) -> onnx.FunctionProto:
        nodes = [helper.make_node(calls, ["a"], ["b"], domain="local")]
        return helper.make_function("local", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 21)])

    proto = model([helper.make_node("F", ["x"], ["y"], domain="local")])
    proto.opset_import.add(domain="local", version=1)
    proto.functions.extend([function("F", "G"), function("G", "F")])
    refused(proto, "calls itself", "local.F -> local.G -> local.F")


def test_functions_that_multiply_are_bounded() -> None:
    proto = model([helper.make_node("F0", ["x"], ["y"], domain="local")])
    proto.opset_import.add(domain="local", version=1)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    for level in range(40):
        callee = {"op_type": f"F{level + 1}", "domain": "local"} if level < 39 else {"op_type": "Relu"}
        nodes = [helper.make_node(inputs=["a"], outputs=["b"], **callee)]
        nodes.append(helper.make_node(inputs=["b"], outputs=["c"], **callee))
        proto.functions.append(helper.make_function("local", f"F{level}", ["a"], ["c"], nodes, imports))
    refused(proto, "too many nodes", "Limits.nodes", kind=ResourceExhausted, limits=Limits(nodes=20_000))


def test_two_functions_of_one_name() -> None:
    proto = relu()
    function = helper.make_function("d", "F", ["a"], ["a"], [], [helper.make_opsetid("", 21)])
    proto.functions.extend([function, function])
    refused(proto, "two local functions", "d.F")


def nested_if(depth: int) -> bytes:
    """If in If, `depth` deep, as bytes (protobuf itself would not build it)."""

    def field(number: int, payload: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(payload)) + payload

    def varint(value: int) -> bytes:
        out = b""
        while value > 127:
            out += bytes([value & 127 | 128])
            value >>= 7
        return out + bytes([value])

    output = info("r").SerializeToString()
    body = field(1, helper.make_node("Relu", ["x"], ["r"]).SerializeToString()) + field(12, output)
    for _ in range(depth):
        branches = b""
        for name in (b"then_branch", b"else_branch"):
            graph = body if name == b"then_branch" else field(
                1, helper.make_node("Abs", ["x"], ["r"]).SerializeToString()
            ) + field(12, output)  # fmt: skip
            branches += field(5, field(1, name) + field(6, graph) + b"\xa0\x01\x05")
        body = field(1, field(1, b"c") + field(2, b"r") + field(4, b"If") + branches) + field(12, output)
    graph = body + field(11, info("x").SerializeToString())
    graph += field(11, helper.make_tensor_value_info("c", TensorProto.BOOL, []).SerializeToString())
    opset = helper.make_opsetid("", 21).SerializeToString()
    return b"\x08\x0a" + field(7, graph) + field(8, opset)


def test_nested_if() -> None:
    loaded = load_model(nested_if(8))
    verify(loaded)
    assert len(list(loaded.graph.all_graphs())) == 17
    refused(nested_if(8), "nested too deeply", "Limits.nesting", kind=ResourceExhausted, limits=Limits(nesting=7))


def test_if_nested_ten_thousand_deep() -> None:
    refused(nested_if(10_000), "nested too deeply", kind=InvalidProtobuf)


def test_many_nodes() -> None:
    count = 20_000
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(count)]
    data = model(nodes, inputs=[info("v0")], outputs=[info(f"v{count}")]).SerializeToString()
    assert len(load_model(data).graph) == count
    with pytest.raises(ResourceExhausted, match=r"Limits\.nodes"):
        load_model(data, Limits(nodes=count - 1))


# Initializers


def with_tensor(tensor: onnx.TensorProto) -> onnx.ModelProto:
    tensor.name = tensor.name or "w"
    node = helper.make_node("Identity", [tensor.name], ["y"])
    return model([node], [tensor], inputs=[], outputs=[info("y", [])])


def raw(code: int, dims: list[int], data: bytes) -> onnx.ModelProto:
    return with_tensor(onnx.TensorProto(name="w", data_type=code, dims=dims, raw_data=data))


def test_unknown_data_type() -> None:
    refused(raw(77, [1], b"1234"), "data type 77", "value: w")
    refused(raw(0, [1], b"1234"), "without an element type", "value: w")
    refused(model([helper.make_node("Relu", ["x"], ["y"])], inputs=[info("x", code=77)]), "data type 77", "value: x")


def test_negative_dim() -> None:
    refused(raw(F, [2, -3], bytes(24)), "negative dimension", "[2, -3]", "value: w")


def test_dims_past_63_bits() -> None:
    refused(raw(F, [2**32, 2**32], b""), "63 bits", "value: w")
    refused(raw(F, [2**40, 2**40, 0], b""), "63 bits", "value: w")


def test_too_many_dims() -> None:
    refused(raw(F, [1] * 65, bytes(4)), "too many dimensions", "Limits.rank")


@pytest.mark.parametrize("length", [4, 23])
def test_raw_data_too_short(length: int) -> None:
    refused(raw(F, [2, 3], bytes(length)), "too short", f"found: {length} bytes", "24 bytes", "value: w")


def test_raw_data_too_long() -> None:
    refused(raw(F, [2, 3], bytes(28)), "too long", "found: 28 bytes")
    refused(raw(F, [500], bytes(2004)), "too long", "found: 2004 bytes")
    refused(raw(F, [], b""), "too short")


def test_raw_data_not_a_multiple() -> None:
    refused(raw(F, [2, 3], bytes(26)), "not a multiple of the element size 4")
    refused(raw(F, [500], bytes(1999)), "not a multiple of the element size 4")


def test_raw_and_typed_data() -> None:
    tensor = onnx.TensorProto(name="w", data_type=F, dims=[1], raw_data=bytes(4), float_data=[1.0])
    refused(with_tensor(tensor), "both raw and typed", "float_data", "value: w")


def test_typed_data_of_the_wrong_field_or_count() -> None:
    refused(with_tensor(onnx.TensorProto(data_type=F, dims=[1], int32_data=[1])), "wrong field", "float_data")
    refused(with_tensor(onnx.TensorProto(data_type=F, dims=[2], float_data=[1.0])), "number of elements", "found: 1 in")
    refused(with_tensor(onnx.TensorProto(data_type=F, dims=[2])), "number of elements", "expected: 2 for float32[2]")
    refused(with_tensor(onnx.TensorProto(data_type=TensorProto.STRING, dims=[2], string_data=[b"a"])), "elements")
    refused(with_tensor(onnx.TensorProto(data_type=TensorProto.STRING, dims=[1], raw_data=b"a")), "strings as raw")


@pytest.mark.parametrize(
    ("code", "number"),
    [(TensorProto.UINT8, 256), (TensorProto.INT8, -129), (TensorProto.FLOAT16, 65536), (TensorProto.INT4, 256)],
)
def test_elements_that_do_not_fit(code: int, number: int) -> None:
    refused(with_tensor(onnx.TensorProto(data_type=code, dims=[1], int32_data=[number])), "does not fit", str(number))


def test_odd_int4_count() -> None:
    good = load_model(raw(TensorProto.INT4, [3], b"\x21\x0f").SerializeToString())
    assert good.graph.outputs[0].producer is not None
    constant = good.graph.nodes[0].inputs[0]
    assert constant is not None
    assert constant.array is not None
    np.testing.assert_array_equal(constant.array.astype(np.int32), [1, 2, -1])
    refused(raw(TensorProto.INT4, [3], b"\x21"), "too short", "expected: 2 bytes for int4[3]")
    refused(raw(TensorProto.INT4, [3], b"\x21\x0f\x00"), "too long")


def test_segments() -> None:
    tensor = onnx.TensorProto(name="w", data_type=F, dims=[1], raw_data=bytes(4))
    tensor.segment.begin, tensor.segment.end = 0, 1
    with pytest.raises(WhetError, match="segments"):
        load_model(with_tensor(tensor).SerializeToString())


def test_sparse_tensors() -> None:
    def sparse(dims: list[int], values: Any, indices: Any) -> onnx.ModelProto:
        proto = model([helper.make_node("Relu", ["w"], ["y"])], inputs=[], outputs=[info("y", dims)])
        proto.graph.sparse_initializer.add(
            values=numpy_helper.from_array(np.array(values, np.float32), "w"),
            indices=numpy_helper.from_array(np.array(indices), "w_indices"),
            dims=dims,
        )
        return proto

    refused(sparse([2, 3], [1.0], [6]), "index outside", "value: w")
    refused(sparse([2, 3], [1.0], [-1]), "index outside")
    refused(sparse([2, 3], [1.0], [[0, 3]]), "index outside")
    refused(sparse([2, 3], [1.0, 2.0], [1]), "sparse indices", "int64[2]")
    refused(sparse([2, 3], [1.0], [1.0]), "sparse indices", "float64[1]")
    refused(sparse([10**6, 10**6], [1.0], [5]), "Limits.tensor_bytes", kind=ResourceExhausted)


# External data


def external(folder: Path, entries: dict[str, str], *, dims: tuple[int, ...] = (2, 3)) -> Path:
    tensor = onnx.TensorProto(name="w", data_type=F, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, text in entries.items():
        tensor.external_data.add(key=key, value=text)
    path = folder / "model.onnx"
    path.write_bytes(with_tensor(tensor).SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with a data file inside and a secret outside."""
    inner = tmp_path / "models"
    inner.mkdir()
    (inner / "sub").mkdir()
    weights = np.arange(6, dtype=np.float32).tobytes()
    (inner / "w.bin").write_bytes(weights)
    (inner / "sub" / "w.bin").write_bytes(weights)
    (tmp_path / "secret.bin").write_bytes(weights)
    return inner


def refuse_external(path: Path, *parts: str, kind: type[WhetError] = InvalidGraph) -> None:
    with pytest.raises(kind) as caught:
        load_model(path)
    for part in (*parts, "value: w"):
        assert part in str(caught.value), f"{part!r} not in {caught.value}"


@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin", "./w.bin", "sub//w.bin"])
def test_external_data_in_the_folder(folder: Path, location: str) -> None:
    loaded = load_model(external(folder, {"location": location, "offset": "0", "length": "24"}))
    constant = loaded.graph.nodes[0].inputs[0]
    assert constant is not None
    np.testing.assert_array_equal(constant.array, np.arange(6, dtype=np.float32).reshape(2, 3))


@pytest.mark.parametrize("location", ["../secret.bin", "sub/../../secret.bin", "sub/../w.bin", "..\\secret.bin", ".."])
def test_external_data_outside_of_the_folder(folder: Path, location: str) -> None:
    refuse_external(external(folder, {"location": location}), "leaves the model's folder", repr(location))


def test_absolute_external_location(folder: Path, tmp_path: Path) -> None:
    refuse_external(external(folder, {"location": str(tmp_path / "secret.bin")}), "absolute")
    refuse_external(external(folder, {"location": "C:\\secret.bin"}), "absolute")


def test_nul_in_external_location(folder: Path) -> None:
    refuse_external(external(folder, {"location": "w.bin\0.txt"}), "NUL")


def test_missing_external_location(folder: Path) -> None:
    refuse_external(external(folder, {}), "without a location")
    refuse_external(external(folder, {"location": "gone.bin"}), "missing", "gone.bin", kind=NoSuchFile)


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege on Windows")
def test_external_symlinks(folder: Path, tmp_path: Path) -> None:
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    refuse_external(external(folder, {"location": "link.bin"}), "symbolic link")
    (folder / "up").symlink_to(tmp_path)
    refuse_external(external(folder, {"location": "up/secret.bin"}), "symbolic link")
    (folder / "dangling").symlink_to(tmp_path / "nothing")
    refuse_external(external(folder, {"location": "dangling"}), "symbolic link")


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege on Windows")
def test_the_folder_itself_may_be_reached_through_a_link(folder: Path, tmp_path: Path) -> None:
    external(folder, {"location": "w.bin"})
    (tmp_path / "alias").symlink_to(folder)
    assert len(load_model(tmp_path / "alias" / "model.onnx").graph) == 1


def test_external_hardlink(folder: Path, tmp_path: Path) -> None:
    os.link(tmp_path / "secret.bin", folder / "hard.bin")
    refuse_external(external(folder, {"location": "hard.bin"}), "hard links")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_external_special_files(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(NoSuchFile, match="a FIFO"):
        load_model(external(folder, {"location": "pipe"}))
    with pytest.raises(NoSuchFile, match="a directory"):
        load_model(external(folder, {"location": "sub"}))


@pytest.mark.parametrize("text", ["-1", "four", "1.5", "", " 4", "0x4", "9" * 30, "٣"])
@pytest.mark.parametrize("key", ["offset", "length"])
def test_external_numbers(folder: Path, key: str, text: str) -> None:
    refuse_external(external(folder, {"location": "w.bin", key: text}), f"bad {key}")


def test_external_ranges(folder: Path) -> None:
    refuse_external(external(folder, {"location": "w.bin", "offset": "4"}), "past the end", "bytes 4 to 28", "24")
    refuse_external(external(folder, {"location": "w.bin", "length": "20"}), "wrong length", "length 20", "24 bytes")
    petabyte = {"location": "w.bin", "length": str(10**15)}
    refuse_external(external(folder, petabyte), "wrong length", "24 bytes")
    refuse_external(external(folder, petabyte, dims=(250, 10**12)), "past the end", "24, the size of the file")
    (folder / "long.bin").write_bytes(bytes(100))
    refuse_external(external(folder, {"location": "long.bin"}), "wrong size", "100 bytes")


def test_external_and_embedded_data(folder: Path) -> None:
    path = external(folder, {"location": "w.bin"})
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].raw_data = bytes(24)
    path.write_bytes(proto.SerializeToString())
    refuse_external(path, "both external and embedded")


def test_bytes_with_external_data(folder: Path) -> None:
    data = external(folder, {"location": "w.bin"}).read_bytes()
    refused(data, "given as bytes", "value: w", "path")


# Attributes


def attribute_model(op: str, inputs: int = 1, opset: int = 21, rank: int = 4, **attributes: Any) -> onnx.ModelProto:
    names = [f"x{i}" for i in range(inputs)]
    node = helper.make_node(op, names, ["y"], name="the_node", **attributes)
    return model([node], inputs=[info(n, [2] * rank) for n in names], opset=opset)


@pytest.mark.parametrize(
    ("proto", "parts"),
    [
        (attribute_model("Concat", 2), ["required attribute is missing", "value: axis"]),
        (attribute_model("Cast"), ["required attribute is missing", "value: to"]),
        (attribute_model("Softmax", axis="1"), ["wrong type", "found: STRING", "expected: INT"]),
        (attribute_model("Softmax", axis=1.0), ["wrong type", "found: FLOAT", "expected: INT"]),
        (attribute_model("Transpose", perm=2), ["wrong type", "found: INT", "expected: INTS"]),
        (attribute_model("Softmax", axes=1), ["does not have", "value: axes", "Did you mean 'axis'?"]),
        (attribute_model("Softmax", axis=4), ["value: axis", "found: 4", "-4 to 3"]),
        (attribute_model("Softmax", axis=-5), ["value: axis", "found: -5"]),
        (attribute_model("Concat", 2, axis=4), ["value: axis", "found: 4"]),
        (attribute_model("Gather", 2, axis=9), ["value: axis", "found: 9"]),
        (attribute_model("Flatten", axis=5), ["value: axis", "found: 5"]),
        (attribute_model("Transpose", perm=[0, 1, 1, 2]), ["value: perm", "(0, 1, 1, 2)", "once"]),
        (attribute_model("Transpose", perm=[0, 1]), ["value: perm", "4 axes"]),
        (attribute_model("Transpose", perm=[0, 1, 2, 4]), ["value: perm"]),
        (attribute_model("MaxPool", kernel_shape=[0, 2]), ["value: kernel_shape", "(0, 2)", "positive"]),
        (attribute_model("MaxPool", kernel_shape=[2, 2], strides=[1, -1]), ["value: strides", "(1, -1)"]),
        (attribute_model("Conv", 2, dilations=[0, 1]), ["value: dilations"]),
        (attribute_model("Conv", 2, strides=[0, 0]), ["value: strides"]),
        (attribute_model("Conv", 2, group=0), ["value: group", "found: 0"]),
        (attribute_model("Conv", 2, group=-2), ["value: group", "found: -2"]),
        (attribute_model("Conv", 2, auto_pad="SAME"), ["value: auto_pad", "SAME_UPPER"]),
        (attribute_model("DepthToSpace", blocksize=0), ["value: blocksize"]),
        (attribute_model("ReduceMean", opset=13, axes=[4]), ["value: axes", "(4,)"]),
        (attribute_model("Squeeze", opset=11, axes=[0, -4]), ["value: axes", "each axis once"]),
        (attribute_model("Einsum", 2, rank=2, equation="ij,jk->ik)"), ["value: equation"]),
        (attribute_model("Einsum", 2, rank=2, equation="ij->ji"), ["value: equation", "each of the 2 inputs"]),
        (attribute_model("Einsum", 2, rank=2, equation="ij,jk->il"), ["value: equation", "letters of the inputs"]),
        (attribute_model("Einsum", 2, rank=2, equation="ij,jk->ii"), ["value: equation"]),
        (attribute_model("Einsum", 2, rank=2, equation="ijk,jk->i"), ["value: equation", "2 letters for input 'x0'"]),
        (attribute_model("Einsum", 1, rank=2, equation="i..j"), ["value: equation"]),
        (attribute_model("Einsum", 1, rank=2, equation="ij->i->j"), ["value: equation"]),
        (attribute_model("Upsample", opset=8, scales=[1.0, 1.0, float("nan"), 2.0]), ["value: scales", "finite"]),
    ],
    ids=lambda p: "" if isinstance(p, list) else None,
)
def test_attributes(proto: onnx.ModelProto, parts: list[str]) -> None:
    refused(proto, "the_node", *parts)


def test_nan_attribute_gives_nan() -> None:
    node = load_model(attribute_model("LeakyRelu", alpha=float("nan")).SerializeToString()).graph.nodes[0]
    assert np.isnan(node.float_attr("alpha", 0.0))


def test_attribute_without_content_or_type() -> None:
    proto = attribute_model("Softmax", axis=1)
    attribute = proto.graph.node[0].attribute[0]
    attribute.type = onnx.AttributeProto.STRING
    refused(proto, "not of its type", "value: axis", "found: INT", "expected: STRING")
    attribute.type = onnx.AttributeProto.UNDEFINED
    assert load_model(proto.SerializeToString()).graph.nodes[0].attributes == {"axis": 1}
    attribute.ClearField("i")
    refused(proto, "without a type", "value: axis")


def test_duplicate_attribute() -> None:
    proto = attribute_model("Softmax", axis=1)
    proto.graph.node[0].attribute.append(helper.make_attribute("axis", 2))
    refused(proto, "two attributes", "value: axis", "the_node")


def test_attribute_reference_outside_of_a_function() -> None:
    proto = attribute_model("Softmax", axis=1)
    proto.graph.node[0].attribute[0].ref_attr_name = "axis"
    refused(proto, "outside of a function", "the_node")


@pytest.mark.parametrize(
    "attributes", [{}, {"value_int": 1, "value_float": 1.0}, {"value_int": 1.0}, {"value_ints": [1.0]}]
)
def test_bad_constants(attributes: dict[str, Any]) -> None:
    refused(model([helper.make_node("Constant", [], ["y"], name="c", **attributes)], inputs=[]), "Constant")


# Constants that would fill the memory

TERABYTES = {
    "ConstantOfShape": "ConstantOfShape(big)",
    "Expand": "Expand(one, big)",
    "Tile": "Tile(one, big)",
    "Range": "Range(zero, trillion, step)",
    "OneHot": "OneHot(zero, trillion, pair)",
    "twice": "Expand(half, big)",
}


@pytest.mark.parametrize("level", ["disabled", "basic", "extended"])
@pytest.mark.parametrize("name", TERABYTES)
def test_constant_folding_to_terabytes_is_left_undone(name: str, level: str) -> None:
    loaded = from_text(f"""<ir_version: 10, opset_import: ["": 21]>
    g (float[1] x) => (float[1] y, z) <
      int64[1] big = {{1000000000000}}, int64[1] one = {{1}}, int64 zero = {{0}}, int64 step = {{1}},
      int64 trillion = {{1000000000000}}, int64[2] pair = {{0, 1}}, int64[1] million = {{1000000}}
    > {{
      y = Neg(x)
      half = Expand(one, one)
      z = {TERABYTES[name]}
    }}""")
    optimize(loaded, level)
    verify(loaded)
    producer = next(v for v in loaded.graph.outputs if v.name == "z").producer
    assert producer is not None
    assert producer.op_type == TERABYTES[name].split("(")[0]
    held = sum(v.data.nbytes for v in loaded.graph.constants() if v.data is not None)
    assert held < 1000


# Names


@pytest.mark.parametrize(
    "name", ["node_name", "HardSigmoid", "wire_1", "alpha", "input_x", "output_y", "weights_w", "com.domain"]
)
def test_names_that_are_not_utf8(name: str) -> None:
    nodes = [
        helper.make_node("HardSigmoid", ["input_x"], ["wire_1"], name="node_name", alpha=0.5),
        helper.make_node("Add", ["wire_1", "weights_w"], ["output_y"]),
    ]
    weights = numpy_helper.from_array(np.zeros(3, np.float32), "weights_w")
    proto = model(nodes, [weights], inputs=[info("input_x")], outputs=[info("output_y")])
    proto.opset_import.add(domain="com.domain", version=1)
    data = proto.SerializeToString()
    broken = name[:-2].encode() + b"\xff\xfe"
    refused(data.replace(name.encode(), broken), "UTF-8", repr(broken)[1:-1], kind=InvalidProtobuf)


def test_documentation_that_is_not_utf8_is_kept_readable() -> None:
    proto = relu()
    proto.doc_string = "plain_text"
    data = proto.SerializeToString().replace(b"plain_text", b"plain\xff\xffxxx")
    assert load_model(data).doc_string == "plain\ufffd\ufffdxxx"


def test_names_of_a_megabyte() -> None:
    name = "n" * 2**20
    for nodes in (
        [helper.make_node("Relu", ["x"], [name]), helper.make_node("Relu", [name], ["y"])],
        [helper.make_node("Relu", ["x"], ["y"], name=name)],
    ):
        error = refused(model(nodes), "name is too long", "Limits.name_bytes", kind=ResourceExhausted)
        assert len(str(error)) < 1000
    refused(model([helper.make_node("R" * 2**20, ["x"], ["y"])]), "unknown operator")
    refused(model([helper.make_node("Relu", [name], ["y"])]), "nothing makes")


def test_names_with_html() -> None:
    name = '<script>alert("x")</script>'
    nodes = [helper.make_node("Relu", ["x"], [name], name=name), helper.make_node("Neg", [name], ["y"])]
    loaded = load_model(model(nodes).SerializeToString())
    assert loaded.graph.nodes[0].output.name == name
    assert to_proto(loaded).graph.node[1].input[0] == name


def test_control_characters_are_escaped_in_messages() -> None:
    error = refused(model([helper.make_node("Relu", ["a\nb\x1b[31m"], ["y"])]), "nothing makes")
    assert "\x1b" not in str(error)
    assert "\n" not in str(error)


# Types of graph inputs and outputs


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.map_type.value_type.tensor_type.SetInParent(),
        lambda t: t.sequence_type.elem_type.tensor_type.__setattr__("elem_type", 99),
        lambda t: t.tensor_type.__setattr__("elem_type", -4),
    ],
)
def test_bad_types(change: Callable[[onnx.TypeProto], None]) -> None:
    proto = relu()
    change(proto.graph.input[0].type)
    refused(proto, "value: x")


def test_negative_dims_of_inputs_are_unknown() -> None:
    value = load_model(model([helper.make_node("Relu", ["x"], ["y"])], inputs=[info("x", [-1, 3])]).SerializeToString())
    assert value.graph.inputs[0].shape == (None, 3)
