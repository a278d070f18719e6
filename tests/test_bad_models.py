"""Model files that are wrong: each gives a typed error that names the thing, or a right answer; never a crash."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.bad_models import info, model, refused, relu
from whet.config import Limits
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


UNREADABLE = """
import os, sys
from whet.errors import NoSuchFile
from whet.formats.onnx import load_model
if os.geteuid() == 0:
    os.setuid(65534)  # root may read every file
try:
    load_model(sys.argv[1])
except NoSuchFile as error:
    assert "Permission denied" in str(error) and sys.argv[1] in str(error), error
    print("refused")
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.onnx"
    path.write_bytes(relu().SerializeToString())
    path.chmod(0)
    done = subprocess.run([sys.executable, "-c", UNREADABLE, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"


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


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def nested_if(depth: int) -> bytes:
    """If in If, `depth` deep, as bytes (protobuf itself would not build it), from the inside out."""
    output = field(12, info("r").SerializeToString())
    core = field(1, helper.make_node("Relu", ["x"], ["r"]).SerializeToString()) + output
    other = field(1, helper.make_node("Abs", ["x"], ["r"]).SerializeToString()) + output
    graph_type = b"\xa0\x01\x05"
    otherwise = field(5, field(1, b"else_branch") + field(6, other) + graph_type)
    before: list[bytes] = []
    after: list[bytes] = []
    size = len(core)

    def wrap(number: int, head: bytes = b"", tail: bytes = b"") -> None:
        """The message so far as field `number` of the next one, between `head` and `tail`."""
        nonlocal size
        tag = head + varint(number << 3 | 2) + varint(size)
        before.append(tag)
        after.append(tail)
        size += len(tag) + len(tail)

    for _ in range(depth):
        wrap(6, field(1, b"then_branch"), graph_type)
        wrap(5, field(1, b"c") + field(2, b"r") + field(4, b"If"), otherwise)
        wrap(1, tail=output)
    graph = b"".join([*reversed(before), core, *after])
    graph += field(11, info("x").SerializeToString())
    graph += field(11, helper.make_tensor_value_info("c", TensorProto.BOOL, []).SerializeToString())
    return b"\x08\x0a" + field(7, graph) + field(8, helper.make_opsetid("", 21).SerializeToString())


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
