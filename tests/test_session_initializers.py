"""Initializers that a run overrides or the caller supplies, external data from elsewhere, and fixed free dimensions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import whet
from tests.session_models import Array, model
from whet.errors import Fail, InvalidArgument, InvalidGraph, NoSuchFile
from whet.session.inference_session import SPECIALIZATIONS

GRAPH = """g (float[N, 2] x, float[2, 2] w, float[2] b, float[1] c, float[1] d) => (float[N, 2] y)
    <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {5, 6}, float[1] c = {2}, float[1] d = {1}> {
    m = MatMul(x, w) s = Add(m, b) p = Mul(s, c) y = Div(p, d)
}"""
DEFAULTS = {
    "w": np.array([[1, 2], [3, 4]], np.float32),
    "b": np.array([5, 6], np.float32),
    "c": np.array([2], np.float32),
    "d": np.array([1], np.float32),
}
X = np.array([[1, -1], [0.5, 2]], np.float32)


def right(**given: Array) -> Array:
    v = {**DEFAULTS, **given}
    return ((X.astype(np.float64) @ v["w"] + v["b"]) * v["c"] / v["d"]).astype(np.float32)


def test_overridable_initializers_are_listed_as_onnxruntime_does() -> None:
    ours = whet.InferenceSession(model(GRAPH))
    theirs = onnxruntime.InferenceSession(model(GRAPH), providers=["CPUExecutionProvider"])
    assert [a.name for a in ours.get_inputs()] == [a.name for a in theirs.get_inputs()] == ["x"]
    found = {(a.name, a.type, tuple(a.shape)) for a in ours.get_overridable_initializers()}
    assert found == {(a.name, a.type, tuple(a.shape)) for a in theirs.get_overridable_initializers()}


@pytest.mark.parametrize("level", [0, 1, 2, 99])
def test_a_run_may_override_initializers(level: int) -> None:
    options = whet.SessionOptions()
    options.graph_optimization_level = whet.GraphOptimizationLevel(level)
    made = whet.InferenceSession(model(GRAPH), options)
    rng = np.random.default_rng(1)
    choices: list[tuple[str, ...]] = [(), ("w",), ("b",), ("w", "b"), ("c", "d"), ("d",), ("w", "b", "c", "d"), ()]
    for names in choices * 2:
        given = {n: (rng.random(DEFAULTS[n].shape) + 0.5).astype(np.float32) for n in names}
        np.testing.assert_allclose(made.run(None, {"x": X, **given})[0], right(**given), rtol=1e-5)
        assert len(made._specializations) <= SPECIALIZATIONS
    np.testing.assert_array_equal(made.run(None, {"x": X})[0], right())


def test_an_overriding_value_is_checked() -> None:
    made = whet.InferenceSession(model(GRAPH))
    for value, words in ((np.zeros(2), "wrong element type"), (np.zeros(3, np.float32), "wrong size")):
        with pytest.raises(InvalidArgument, match=words) as caught:
            made.run(None, {"x": X, "b": value})
        assert caught.value.value == "b"
    constant = whet.InferenceSession(model(GRAPH.replace(", float[1] d)", ")")))
    with pytest.raises(InvalidArgument, match="no such input"):
        constant.run(None, {"x": X, "d": DEFAULTS["d"]})


def test_overriding_reads_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model(GRAPH))
    made = whet.InferenceSession(path)
    given = {"x": X, "b": np.zeros(2, np.float32)}
    np.testing.assert_allclose(made.run(None, given)[0], right(b=given["b"]), rtol=1e-6)
    other = tmp_path / "other.onnx"
    other.write_bytes(model(GRAPH.replace("w = {1, 2, 3, 4}", "w = {9, 9, 9, 9}")))
    os.replace(other, path)
    with pytest.raises(Fail, match="the model file has changed") as caught:
        made.run(None, {"x": X, "c": np.ones(1, np.float32)})
    assert caught.value.file == str(path)
    np.testing.assert_allclose(made.run(None, given)[0], right(b=given["b"]), rtol=1e-6)
    np.testing.assert_array_equal(made.run(None, {"x": X})[0], right())


def supplied(names: list[str], arrays: list[Array]) -> whet.SessionOptions:
    options = whet.SessionOptions()
    options.add_external_initializers(names, [whet.OrtValue.ortvalue_from_numpy(a) for a in arrays])
    return options


def test_initializers_from_the_caller() -> None:
    w, b = np.array([[0, 1], [1, 0]], np.float32), np.array([-1, 1], np.float32)
    made = whet.InferenceSession(model(GRAPH), supplied(["w", "b"], [w, b]))
    np.testing.assert_allclose(made.run(None, {"x": X})[0], right(w=w, b=b), rtol=1e-6)
    np.testing.assert_allclose(made.run(None, {"x": X, "b": b + 1})[0], right(w=w, b=b + 1), rtol=1e-6)
    options = whet.SessionOptions()
    options.add_initializer("c", whet.OrtValue.ortvalue_from_numpy(np.array([4], np.float32)))
    found = whet.InferenceSession(model(GRAPH), options).run(None, {"x": X})[0]
    np.testing.assert_allclose(found, right(c=np.array([4])), rtol=1e-6)


def test_initializers_from_the_caller_are_checked() -> None:
    with pytest.raises(InvalidArgument, match="has the wrong type") as caught:
        whet.InferenceSession(model(GRAPH), supplied(["w"], [np.zeros((2, 3), np.float32)]))
    assert (caught.value.value, str(caught.value.found), str(caught.value.expected)) == (
        "w", "float32[2,3]", "float32[2,2]",
    )  # fmt: skip
    with pytest.raises(InvalidArgument, match="has the wrong type"):
        whet.InferenceSession(model(GRAPH), supplied(["w"], [np.zeros((2, 2))]))
    weights = model("g (float[2] x) => (float[2] y) <float[2] weights = {1, 2}> { y = Add(x, weights) }")
    with pytest.raises(InvalidArgument, match="Did you mean 'weights'"):
        whet.InferenceSession(weights, supplied(["weight"], [np.zeros(2, np.float32)]))
    with pytest.raises(InvalidArgument, match="differ in number"):
        supplied(["w", "b"], [DEFAULTS["w"]])
    with pytest.raises(InvalidArgument, match="OrtValue that holds a tensor"):
        whet.SessionOptions().add_initializer("w", DEFAULTS["w"])  # type: ignore[arg-type]


def external(folder: Path) -> tuple[Path, Array]:
    """A model whose weights lie in `weights.bin` beside it, and those weights."""
    w = np.random.default_rng(2).standard_normal((2, 2)).astype(np.float32)
    proto = onnx.load_from_string(
        model("g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {0, 0, 0, 0}> { y = MatMul(x, w) }")
    )
    tensor = proto.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    tensor.external_data.add(key="offset", value="16")
    tensor.external_data.add(key="length", value="16")
    path = folder / "external.onnx"
    path.write_bytes(proto.SerializeToString())
    (folder / "weights.bin").write_bytes(b"\0" * 16 + w.tobytes())
    return path, w


def test_external_data_that_is_missing_may_come_from_the_caller(tmp_path: Path) -> None:
    path, w = external(tmp_path)
    np.testing.assert_allclose(whet.InferenceSession(path).run(None, {"x": X})[0], X @ w, rtol=1e-5)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(NoSuchFile):
        whet.InferenceSession(path)
    for source in (path, path.read_bytes()):
        made = whet.InferenceSession(source, supplied(["w"], [2 * w]))
        np.testing.assert_allclose(made.run(None, {"x": X})[0], X @ (2 * w), rtol=1e-5)


def test_external_data_of_a_model_in_memory(tmp_path: Path) -> None:
    path, w = external(tmp_path)
    with pytest.raises(InvalidGraph, match="given as bytes"):
        whet.InferenceSession(path.read_bytes())
    options = whet.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
    made = whet.InferenceSession(path.read_bytes(), options)
    np.testing.assert_allclose(made.run(None, {"x": X})[0], X @ w, rtol=1e-5)


def test_external_files_in_memory(tmp_path: Path) -> None:
    path, w = external(tmp_path)
    content = bytearray((tmp_path / "weights.bin").read_bytes() + b"more")
    options = whet.SessionOptions()
    options.add_external_initializers_from_files_in_memory(["weights.bin"], [content], [len(content) - 4])
    made = whet.InferenceSession(path.read_bytes(), options)
    np.testing.assert_allclose(made.run(None, {"x": X})[0], X @ w, rtol=1e-5)
    short = whet.SessionOptions()
    short.add_external_initializers_from_files_in_memory(["weights.bin"], [content], [20])
    with pytest.raises(InvalidGraph, match="past the end"):
        whet.InferenceSession(path.read_bytes(), short)
    with pytest.raises(InvalidArgument, match="too short"):
        short.add_external_initializers_from_files_in_memory(["weights.bin"], [content], [100])


DIMS = """g (float[batch, length] x, int64[batch] k) => (float[batch, length] y, int64[R] s) {
    y = Exp(x) s = Shape(x)
}"""


def fixed(**changes: Any) -> whet.InferenceSession:
    options = whet.SessionOptions()
    for name, size in changes.get("names", {}).items():
        options.add_free_dimension_override_by_name(name, size)
    for name, size in changes.get("denotations", {}).items():
        options.add_free_dimension_override_by_denotation(name, size)
    proto = onnx.load_from_string(model(DIMS))
    proto.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    return whet.InferenceSession(proto.SerializeToString(), options)


@pytest.mark.parametrize("how", ["names", "denotations"])
def test_free_dimensions_are_fixed(how: str) -> None:
    made = fixed(**{how: {"batch" if how == "names" else "DATA_BATCH": 2}})
    assert [a.shape for a in made.get_inputs()] == [[2, "length"], [2]]
    assert made.get_outputs()[0].shape == [2, "length"]
    k = np.zeros(2, np.int64)
    y, s = made.run(None, {"x": np.zeros((2, 3), np.float32), "k": k})
    assert (y.shape, s.tolist()) == ((2, 3), [2, 3])
    with pytest.raises(InvalidArgument, match="wrong size in dimension 0"):
        made.run(None, {"x": np.zeros((3, 3), np.float32), "k": k})


def test_fixed_dimensions_fold() -> None:
    made = fixed(names={"batch": 2, "length": 5})
    assert "Shape" not in [n.op_type for n in made.optimized_model.graph]
    assert "Shape" in [n.op_type for n in fixed(names={"batch": 2}).optimized_model.graph]


@pytest.mark.parametrize("how", ["names", "denotations"])
def test_a_dimension_that_no_input_has(how: str) -> None:
    near = "batc" if how == "names" else "DATA_BATC"
    with pytest.raises(InvalidArgument, match=f"Did you mean '{near}h'" if how == "names" else "DATA_BATCH") as caught:
        fixed(**{how: {near: 2}})
    assert caught.value.value == near
    for size in (-1, 1.5, True, "2"):
        with pytest.raises(InvalidArgument, match="non-negative integer"):
            fixed(**{how: {"batch": size}})
