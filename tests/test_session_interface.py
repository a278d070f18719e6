"""What a session tells about its model and itself, in ONNX Runtime's words."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import whet
from tests.session_models import ADD, Array, model, session
from whet.errors import EPFail, InvalidArgument, NoModel, NoSuchFile
from whet.graph import Value
from whet.providers.base import RunState
from whet.providers.catalog import ONNXRUNTIME_PROVIDERS, is_available
from whet.runtime.values import RuntimeValue, Tensor
from whet.session.executor import Executor

KINDS = """kinds (float[N, 3, H] f, double d, float16[1] h, bfloat16[0] b, string[K] s, bool[2, 2] l, uint8[A, B] u,
    seq(float[N, 3]) q, optional(int64[N]) o, seq(string[K]) t)
    => (float[N, M, H] y, int64[R] n, seq(float[N, 3]) r) {
    y = Concat<axis = 1>(f, f)
    n = Shape(f)
    r = Identity(q)
}"""


def described(arguments: Any) -> list[tuple[str, str, list[Any]]]:
    return [(a.name, a.type, list(a.shape)) for a in arguments]


def test_inputs_and_outputs_are_described_as_onnxruntime_does() -> None:
    ours = session(KINDS)
    theirs = onnxruntime.InferenceSession(model(KINDS), providers=["CPUExecutionProvider"])
    assert described(ours.get_inputs()) == described(theirs.get_inputs())
    found, right = described(ours.get_outputs()), described(theirs.get_outputs())
    assert [(n, t) for n, t, _ in found] == [(n, t) for n, t, _ in right]
    assert found[0][2] == right[0][2] == ["N", 6, "H"]
    assert str(ours.get_inputs()[0]) == str(theirs.get_inputs()[0])


def test_unknown_dimensions_and_ranks() -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Neg", ["a"], ["b"])],
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", None), ("a", [None, 2, "n"]))],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", "b")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    ours, theirs = (
        lib.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        for lib in (whet, onnxruntime)
    )
    assert (
        described(ours.get_inputs())
        == described(theirs.get_inputs())
        == [
            ("x", "tensor(float)", []),
            ("a", "tensor(float)", [None, 2, "n"]),
        ]
    )
    x = np.ones((2, 1), np.float32)
    assert ours.run(["y"], {"x": x, "a": np.ones((1, 2, 3), np.float32)})[0].shape == (2, 1)


def test_metadata_is_that_of_the_file() -> None:
    proto = onnx.load_from_string(model(ADD))
    proto.producer_name, proto.domain, proto.doc_string, proto.model_version = "maker", "org.example", "words", 7
    proto.graph.doc_string = "more words"
    proto.metadata_props.add(key="labels", value="a,b")
    found = whet.InferenceSession(proto.SerializeToString()).get_modelmeta()
    right = onnxruntime.InferenceSession(proto.SerializeToString()).get_modelmeta()
    names = [n for n in dir(right) if not n.startswith("_")]
    assert len(names) == 7
    for name in names:
        assert getattr(found, name) == getattr(right, name), name
    assert found.custom_metadata_map == {"labels": "a,b"}


def test_models_come_from_paths_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "add.onnx"
    path.write_bytes(model(ADD))
    one = np.ones((1, 3), np.float32)
    for source in (path, str(path), model(ADD), bytearray(model(ADD)), memoryview(model(ADD))):
        made = whet.InferenceSession(source)
        np.testing.assert_array_equal(made.run(None, {"x": one, "y": one})[0], 2 * one)
    assert whet.InferenceSession(path)._model_path == str(path)


@pytest.mark.parametrize("source", [None, 3, ["a.onnx"], onnx.ModelProto()], ids=lambda s: type(s).__name__)
def test_anything_else_is_no_model(source: Any) -> None:
    with pytest.raises(TypeError, match=f"not as {type(source).__name__}"):
        whet.InferenceSession(source)


def test_missing_and_empty_models(tmp_path: Path) -> None:
    with pytest.raises(NoSuchFile):
        whet.InferenceSession(tmp_path / "none.onnx")
    with pytest.raises(NoModel):
        whet.InferenceSession(b"")


def test_arguments_are_checked() -> None:
    with pytest.raises(InvalidArgument, match="Did you mean 'provider_options'"):
        whet.InferenceSession(model(ADD), providr_options=[{}])
    with pytest.raises(TypeError, match=r"whet\.SessionOptions"):
        whet.InferenceSession(model(ADD), onnxruntime.SessionOptions())  # type: ignore[arg-type]
    one = np.ones((1, 3), np.float32)
    with pytest.raises(InvalidArgument, match=r"whet\.RunOptions"):
        session(ADD).run(None, {"x": one, "y": one}, {})  # type: ignore[arg-type]
    assert whet.InferenceSession(model(ADD), enable_fallback=0, read_config_from_model=0)


@pytest.mark.parametrize(
    ("providers", "options", "words"),
    [
        ("CPUExecutionProvider", None, "should be a sequence"),
        ([3], None, "either strings or"),
        ([("CPUExecutionProvider",)], None, "either strings or"),
        (["CPUExecutionProvider"], [{}, {}], "same length"),
        ([("CPUExecutionProvider", {})], [{}], "Only string values"),
        (["CPUExecutionProvidr"], None, "Did you mean 'CPUExecutionProvider'"),
        ([("CPUExecutionProvider", {"threds": 1})], None, "threds"),
    ],
)
def test_provider_lists_are_checked(providers: Any, options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        whet.InferenceSession(model(ADD), providers=providers, provider_options=options)
    assert isinstance(caught.value, InvalidArgument)


def absent() -> str:
    return next(name for name in ONNXRUNTIME_PROVIDERS if not is_available(name))


def test_a_provider_that_is_not_installed() -> None:
    with pytest.raises(EPFail, match="pip install") as caught:
        whet.InferenceSession(model(ADD), providers=[absent()])
    assert caught.value.found == absent()
    with pytest.warns(UserWarning, match="is not installed"):
        made = whet.InferenceSession(model(ADD), providers=[absent(), "CPUExecutionProvider"])
    assert absent() in made.placement.notes[0]
    assert made.get_providers()[0] == "CPUExecutionProvider"


def test_providers_of_a_session() -> None:
    made = session(ADD)
    assert made.get_providers()[0] == "CPUExecutionProvider"
    assert set(made.get_provider_options()) == set(made.get_providers())
    made.set_providers(["onnxruntime"])
    assert made.get_providers()[0] == "onnxruntime"
    assert made.placement.by_provider == {"onnxruntime": 1}
    one = np.ones((1, 3), np.float32)
    with pytest.raises(EPFail):
        made.set_providers([absent()])
    assert made.get_providers()[0] == "onnxruntime"
    np.testing.assert_array_equal(made.run(None, {"x": one, "y": one})[0], 2 * one)
    with pytest.warns(UserWarning, match="Duplicate provider"):
        made.set_providers(["CPUExecutionProvider", "CPUExecutionProvider"])
    made.disable_fallback()
    made.enable_fallback()


def test_providers_of_the_options() -> None:
    options = whet.SessionOptions()
    assert not options.has_providers()
    options.add_provider("onnxruntime", {})
    assert options.has_providers()
    assert whet.InferenceSession(model(ADD), options).get_providers()[0] == "onnxruntime"
    with pytest.warns(UserWarning, match="replace those of its SessionOptions"):
        made = whet.InferenceSession(model(ADD), options, providers=["CPUExecutionProvider"])
    assert made.get_providers()[0] == "CPUExecutionProvider"


def test_the_graph_assignment_needs_its_key() -> None:
    with pytest.raises(InvalidArgument, match="record_ep_graph_assignment_info"):
        session(ADD).get_provider_graph_assignment_info()
    options = whet.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    (part,) = session(ADD, options).get_provider_graph_assignment_info()
    assert part.ep_name == "CPUExecutionProvider"
    assert [(n.domain, n.op_type) for n in part.get_nodes()] == [("", "Add")]


def test_memory_is_the_cpus() -> None:
    made = session(ADD)
    other = onnxruntime.InferenceSession(model(ADD), providers=["CPUExecutionProvider"])
    theirs = other.get_input_memory_infos()
    found = made.get_input_memory_infos()
    assert [(m.name, m.device_id, int(m.mem_type)) for m in found] == [
        (m.name, m.device_id, int(m.mem_type)) for m in theirs
    ]
    assert len(made.get_output_memory_infos()) == 1


def test_no_answer_shares_memory_with_anything() -> None:
    graph = """g (float[N] x, float[1] o)
        => (float[N] same, float[K] constant, float[A, B] view, float[N] twice, float[1] o2)
        <float[2] constant = {1, 2}, float[1] o = {5}, int64[2] shape = {1, -1}> {
        same = Identity(x) view = Reshape(x, shape) twice = Identity(same) o2 = Identity(o)
    }"""
    made = session(graph)
    x = np.arange(3, dtype=np.float32)
    backup = x.copy()
    for names in (None, ["same", "same", "constant", "constant", "view", "o2"]):
        results = made.run(names, {"x": x})
        again = made.run(names, {"x": x})
        rights = copy.deepcopy(results)
        every = [x, *results, *again]
        for i, a in enumerate(every):
            for b in every[:i]:
                assert not np.shares_memory(a, b)
        for result in results:
            assert result.flags.writeable
            result[...] = -7
        np.testing.assert_array_equal(x, backup)
        for found in (again, made.run(names, {"x": x})):
            for a, right in zip(found, rights, strict=True):
                np.testing.assert_array_equal(a, right)


def test_a_value_that_is_two_outputs_is_given_twice() -> None:
    class Negate:
        """A part of one node."""

        def run(self, inputs: Any, state: RunState) -> list[RuntimeValue]:
            return [Tensor.from_numpy(-inputs[0].numpy())]

    x, y = Value("x"), Value("y")
    executor = Executor([x], [y, y, x], [(Negate(), [x], [y])])
    given = np.ones(2, np.float32)
    results = [r.numpy() for r in executor.run([Tensor.from_numpy(given)], RunState()) if isinstance(r, Tensor)]
    assert [r.tolist() for r in results] == [[-1, -1], [-1, -1], [1, 1]]
    assert not np.shares_memory(results[0], results[1])
    assert not np.shares_memory(results[2], given)


def test_sequences_are_given_in_memory_of_their_own() -> None:
    made = session("g (seq(float[N]) x) => (seq(float[N]) y, seq(float[N]) z) { y = Identity(x) z = Identity(y) }")
    items = [np.ones(2, np.float32), np.zeros(1, np.float32)]
    y, z = made.run(None, {"x": items})
    for a in (*y, *z):
        a[...] = 9
    assert [i.tolist() for i in items] == [[1, 1], [0]]
    assert all(not np.shares_memory(a, b) for a in y for b in z)


def test_an_input_that_is_an_output() -> None:
    made = session("g (float[N] x) => (float[N] x) { y = Neg(x) }")
    x = np.ones(2, np.float32)
    (found,) = made.run(None, {"x": x})
    assert not np.shares_memory(found, x)
    np.testing.assert_array_equal(found, x)


def test_functions_of_the_module() -> None:
    assert whet.get_device() == onnxruntime.get_device()
    assert whet.get_version_string() == whet.__version__
    assert whet.__version__ in whet.get_build_info()
    assert set(whet.get_available_providers()) <= set(whet.get_all_providers())
    assert not whet.has_collective_ops()
    whet.set_default_logger_severity(2)
    with pytest.raises(InvalidArgument, match="0 to 4"):
        whet.set_default_logger_severity(7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whet.disable_telemetry_events()
        whet.enable_telemetry_events()
        whet.preload_dlls(cuda=True, directory="")


def test_every_public_name_is_there() -> None:
    for name in whet.__all__:
        assert getattr(whet, name) is not None
    state = whet.capi.onnxruntime_pybind11_state
    theirs = onnxruntime.capi.onnxruntime_pybind11_state
    for name in dir(theirs):
        kind = getattr(theirs, name)
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert issubclass(getattr(state, name), Exception)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = whet.nothing


def test_custom_operators_in_python() -> None:
    def evaluate(inputs: Any, attributes: Any, count: int) -> list[Array]:
        return [inputs[0] * attributes.get("factor", 1.0)]

    options = whet.SessionOptions()
    options.register_custom_op(whet.CustomOp("org.example", "Scale", evaluate))
    head = '<ir_version: 10, opset_import: ["": 20, "org.example": 1]>'
    graph = "g (float[N] x) => (float[N] y) { s = org.example.Scale<factor: float = 3.0>(x) y = Neg(s) }"
    x = np.arange(3, dtype=np.float32)
    np.testing.assert_array_equal(session(graph, options, head).run(None, {"x": x})[0], -3 * x)
    assert options.snapshot()._custom_ops == options._custom_ops
