"""Means over an image's pixels behind a depthwise convolution, which adds its results up, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import whet
from tests.compiled_nodes import lowered
from whet.kernels.depthwise import Depthwise

Array = np.ndarray[Any, np.dtype[Any]]


def model(
    image: tuple[int, ...], channels: int, reader: str, act: str | None, symbolic: bool, keep: int = 1, images: int = 2,
    axes: list[int] | None = None,
) -> tuple[bytes, dict[str, Array]]:  # fmt: skip
    """Depthwise convolution, activation, and a reduction, of which both results are asked for."""
    rng = np.random.default_rng(len(image) * channels)
    rank = len(image)
    x = rng.standard_normal((images, channels, *image)).astype(np.float32)
    w = rng.standard_normal((channels, 1, *(3,) * rank)).astype(np.float32)
    initializers = [numpy_helper.from_array(w, "w")]
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], group=channels, pads=[1] * 2 * rank, strides=[2] * rank)]
    last = "y"
    if act == "Swish":
        nodes += [helper.make_node("Sigmoid", ["y"], ["g"]), helper.make_node("Mul", ["y", "g"], ["z"])]
        last = "z"
    elif act is not None:
        nodes.append(helper.make_node(act, ["y"], ["z"]))
        last = "z"
    if reader == "GlobalAveragePool":
        nodes.append(helper.make_node(reader, [last], ["m"]))
    else:
        chosen = list(range(2, 2 + rank)) if axes is None else axes
        initializers.append(numpy_helper.from_array(np.array(chosen, np.int64), "axes"))
        nodes.append(helper.make_node(reader, [last, "axes"], ["m"], keepdims=keep))
    dims: list[Any] = ["n", channels, *(f"d{i}" for i in range(rank))] if symbolic else list(x.shape)
    graph = helper.make_graph(
        nodes, "graph", [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_empty_tensor_value_info("m"), helper.make_empty_tensor_value_info(last)], initializers,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return made.SerializeToString(), {"x": x}


def run(data: bytes, feeds: dict[str, Array], threads: int) -> list[Array]:
    options = whet.SessionOptions()
    options.intra_op_num_threads = threads
    session = whet.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    assert set(session.placement.by_provider) == {"CPUExecutionProvider"}
    return [np.asarray(a) for a in session.run(None, feeds)]


def depthwise(data: bytes) -> list[Depthwise]:
    return [step.spec for step in lowered(data).steps if isinstance(step.spec, Depthwise)]


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("reader", ["GlobalAveragePool", "ReduceMean", "ReduceSum"])
def test_sums(reader: str, symbolic: bool) -> None:
    for number, (image, channels) in enumerate((((37, 23), 20), ((1, 1), 48), ((9, 40), 3), ((50,), 17))):
        act = ("Swish", "Relu", None)[number % 3]
        data, feeds = model(image, channels, reader, act, symbolic, keep=number % 2)
        assert [spec.totals for spec in depthwise(data)] == [True]
        expected = onnxruntime.InferenceSession(data).run(None, feeds)
        one, two = run(data, feeds, 1), run(data, feeds, 2)
        for got, again, exact in zip(one, two, expected, strict=True):
            assert got.shape == exact.shape
            assert got.tobytes() == again.tobytes()
            np.testing.assert_allclose(got, exact, rtol=0, atol=2e-6 * max(1.0, float(np.abs(exact).max())))


def test_other_readers_get_no_sums() -> None:
    data, _ = model((9, 9), 8, "ReduceMean", "Relu", False, axes=[1, 2, 3])
    assert [spec.totals for spec in depthwise(data)] == [False]
    data, _ = model((9, 9), 8, "ReduceMax", "Relu", False)
    assert [spec.totals for spec in depthwise(data)] == [False]


def test_sums_of_nothing() -> None:
    data, feeds = model((9, 9), 8, "ReduceMean", "Relu", True, images=0)
    means, _ = run(data, feeds, 2)
    assert means.shape == (0, 8, 1, 1)
