"""Pointwise work, copies and softmax over rows of a few elements, as detectors do them with boxes, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import whet
from tests.compiled_nodes import lowered
from whet.codegen.target import host_target
from whet.dtypes import FLOAT32
from whet.kernels.expression import identity
from whet.kernels.short_rows import ShortRows, is_fast
from whet.kernels.softmax_short import SoftmaxShort

Array = np.ndarray[Any, np.dtype[Any]]
RNG = np.random.default_rng(11)


def masks() -> bool:
    """Whether this machine has what the kernels are made for."""
    return is_fast(host_target(), identity(FLOAT32))


def boxes_model(count: int | str, kind: int) -> bytes:
    """Centres and sizes to corners: halves of rows of four are read, computed with, and joined again."""
    priors = RNG.standard_normal((1, 1 if isinstance(count, str) else count, 4)).astype(np.float64)
    numpy_kind = helper.tensor_dtype_to_np_dtype(kind)
    constants = {
        "p": priors.astype(numpy_kind), "half": np.array(0.5, numpy_kind),
        "zero": np.array([0], np.int64), "two": np.array([2], np.int64), "four": np.array([4], np.int64),
        "last": np.array([2], np.int64), "scale": np.array([0.1, 0.2], numpy_kind),
    }  # fmt: skip
    nodes = [
        helper.make_node("Slice", ["x", "zero", "two", "last"], ["xy"]),
        helper.make_node("Slice", ["x", "two", "four", "last"], ["wh"]),
        helper.make_node("Slice", ["p", "zero", "two", "last"], ["pxy"]),
        helper.make_node("Slice", ["p", "two", "four", "last"], ["pwh"]),
        helper.make_node("Mul", ["xy", "scale"], ["a"]), helper.make_node("Add", ["a", "pxy"], ["centre"]),
        helper.make_node("Exp", ["wh"], ["e"]), helper.make_node("Mul", ["e", "pwh"], ["size"]),
        helper.make_node("Mul", ["size", "half"], ["h"]), helper.make_node("Sub", ["centre", "h"], ["low"]),
        helper.make_node("Add", ["centre", "h"], ["high"]), helper.make_node("Concat", ["low", "high"], ["y"], axis=2),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "boxes", [helper.make_tensor_value_info("x", kind, [1, count, 4])],
        [helper.make_tensor_value_info("y", kind, [1, count, 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def run(data: bytes, feeds: dict[str, Array], threads: int = 2) -> list[Array]:
    options = whet.SessionOptions()
    options.intra_op_num_threads = threads
    session = whet.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    assert set(session.placement.by_provider) == {"CPUExecutionProvider"}
    return [np.asarray(a) for a in session.run(None, feeds)]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE])
@pytest.mark.parametrize("count", [16, 17, 100, 4420])
@pytest.mark.parametrize("symbolic", [False, True])
def test_boxes(kind: int, count: int, symbolic: bool) -> None:
    data = boxes_model("n" if symbolic else count, kind)
    constants = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(data).graph.initializer}
    x = RNG.standard_normal((1, count, 4)).astype(constants["p"].dtype)
    wide, p = x.astype(np.float64), constants["p"].astype(np.float64)
    centre = wide[..., :2] * constants["scale"] + p[..., :2]
    half = np.exp(wide[..., 2:]) * p[..., 2:] / 2
    expected = np.concatenate([centre - half, centre + half], axis=2)
    (found,) = run(data, {"x": x})
    limit = 1e-6 if kind == TensorProto.FLOAT else 1e-13
    np.testing.assert_allclose(found, expected, rtol=limit, atol=limit * float(np.abs(expected).max()))
    if not symbolic and masks():
        assert any(isinstance(step.spec, ShortRows) for step in lowered(data).steps)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("shape", [(1, 4420, 2), (3, 33, 4), (2, 50, 3), (40, 8), (5, 2)], ids=str)
def test_softmax(op: str, shape: tuple[int, ...]) -> None:
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], axis=-1)], "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(shape))],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = bytes(model.SerializeToString())
    x = (RNG.standard_normal(shape) * 5).astype(np.float32)
    flat = x.reshape(-1, shape[-1])
    flat[0, 0], flat[1, 1], flat[2] = np.nan, np.inf, -np.inf
    with np.errstate(all="ignore"):
        away = x.astype(np.float64) - x.astype(np.float64).max(axis=-1, keepdims=True)
        total = np.exp(away).sum(axis=-1, keepdims=True)
        expected = np.exp(away) / total if op == "Softmax" else away - np.log(total)
    (found,) = run(data, {"x": x})
    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=1e-6)
    short = any(isinstance(step.spec, SoftmaxShort) for step in lowered(data).steps)
    lanes = host_target().lanes(FLOAT32)
    assert short == (shape[-1] in (2, 4, 8) and shape[-1] < lanes and flat.shape[0] >= 16 and masks())
