"""Lowering of reductions, positions of extremes, global pooling and softmax."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.compiled_nodes import FLOATS, check, close, compiled, random_array, single_node, steps
from tests.session_models import model as from_text

KINDS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
INTEGERS = (np.int32, np.int64, np.uint8, np.int8, np.uint32, np.uint64)
TYPE_NAMES = {"float32": "float", "float64": "double"}
CHANNELS_LAST = (0, 2, 3, 1)


def axes_of(*axes: int) -> np.ndarray:
    return np.array(axes, np.int64)


@pytest.mark.parametrize("op", KINDS)
def test_reduce_axes_and_layouts(op: str) -> None:
    rng = np.random.default_rng(1)
    x = np.abs(random_array(rng, (2, 5, 3, 19), np.float32)) + np.float32(0.5)
    for order in (None, CHANNELS_LAST, (3, 0, 2, 1)):
        for axes in ((3,), (1,), (0, 2), (2, 3), (1, 3), (0, 1, 2, 3), (-4, -1)):
            for keep in (0, 1):
                inputs = {"x": x, "axes": axes_of(*axes)}
                check(*single_node(op, inputs, order=order, constant=["axes"], keepdims=keep, symbolic=keep == 0))


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
def test_reduce_types(dtype: Any) -> None:
    rng = np.random.default_rng(2)
    x = random_array(rng, (4, 21, 6), dtype)
    name = TYPE_NAMES.get(np.dtype(dtype).name, np.dtype(dtype).name)
    for op in KINDS:
        if f"tensor({name})" not in onnx.defs.get_schema(op).inputs[0].types:
            continue
        for axes in ((1,), (2,), (0, 1, 2)):
            inputs = {"x": np.abs(x) if op == "ReduceLogSum" else x, "axes": axes_of(*axes)}
            check(*single_node(op, inputs, constant=["axes"]))


def test_extremes_of_bool() -> None:
    x = random_array(np.random.default_rng(3), (3, 40), bool)
    for op in ("ReduceMax", "ReduceMin"):
        for axis in (0, 1):
            check(*single_node(op, {"x": x, "axes": axes_of(axis)}, constant=["axes"]))


def test_no_axes() -> None:
    x = random_array(np.random.default_rng(4), (3, 4), np.float32)
    for op in ("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceMean"):
        for noop in (0, 1):
            check(*single_node(op, {"x": x}, noop_with_empty_axes=noop))
            check(*single_node(op, {"x": x, "axes": axes_of()}, constant=["axes"], noop_with_empty_axes=noop))
    scalar = np.array(3.0, np.float32)
    check(*single_node("ReduceSum", {"x": scalar}))


@pytest.mark.parametrize("symbolic", [False, True])
def test_over_nothing(symbolic: bool) -> None:
    x = np.zeros((2, 0, 4), np.float32)
    for op in KINDS:
        if op != "ReduceMean":
            for keep in (0, 1):
                inputs = {"x": x, "axes": axes_of(1)}
                check(*single_node(op, inputs, constant=["axes"], symbolic=symbolic, keepdims=keep))
    check(*single_node("ReduceSum", {"x": x, "axes": axes_of(0)}, constant=["axes"], symbolic=symbolic))


def test_axes_given_at_run() -> None:
    x = random_array(np.random.default_rng(5), (3, 4, 5), np.float32)
    model, feeds = single_node("ReduceSum", {"x": x, "axes": axes_of(0, 2)})
    session = compiled(model)
    for axes in ((0, 2), (1, 2), (-1, 0)):
        feeds["axes"] = axes_of(*axes)
        close(session.run(None, feeds)[0], x.sum(axis=axes, keepdims=True))


@pytest.mark.parametrize(
    ("shape", "axes", "order"),
    [
        ((300_001,), (0,), None),
        ((3, 250_007), (1,), None),
        ((2, 40, 70, 90), (2, 3), CHANNELS_LAST),
        ((1, 2, 300, 290), (2, 3), None),
        ((5, 3, 40_000), (0, 2), None),
    ],
)  # fmt: skip
def test_long_reductions_are_shared(shape: tuple[int, ...], axes: tuple[int, ...], order: Any) -> None:
    x = random_array(np.random.default_rng(6), shape, np.float32)
    for op in ("ReduceMean", "ReduceLogSumExp", "ReduceL2", "ReduceMax"):
        inputs = {"x": x, "axes": axes_of(*axes)}
        model, feeds = single_node(op, inputs, order=order, constant=["axes"], behind=[("Neg", ["y"])])
        assert sorted({"reduce parts", "reduce combine"} & set(steps(model))) == ["reduce combine", "reduce parts"]
        results = [compiled(model, threads).run(None, feeds)[0] for threads in (1, 2)]
        np.testing.assert_array_equal(results[0], results[1])
        wide = x.astype(np.float64)
        expected = {
            "ReduceMean": wide.mean(axis=axes, keepdims=True),
            "ReduceLogSumExp": np.log(np.exp(wide).sum(axis=axes, keepdims=True)),
            "ReduceL2": np.sqrt(np.square(wide).sum(axis=axes, keepdims=True)),
            "ReduceMax": wide.max(axis=axes, keepdims=True),
        }[op]
        np.testing.assert_allclose(results[0], -expected, rtol=3e-7, atol=1e-7)


def test_long_integer_mean() -> None:
    x = random_array(np.random.default_rng(7), (200_000,), np.int32)
    x[:5] = 2_000_000_000  # sums pass the type's range
    check(*single_node("ReduceMean", {"x": x, "axes": axes_of(0)}, constant=["axes"]))


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_positions(op: str) -> None:
    rng = np.random.default_rng(8)
    for dtype in (np.float32, np.float64, np.int8, np.uint8, np.int64, np.float16):
        x = random_array(rng, (3, 17, 5, 37), dtype)
        for order in (None, CHANNELS_LAST):
            for axis in (0, 1, -1):
                last, keep = int(axis == 1), int(axis != 0)
                options = {"select_last_index": last, "keepdims": keep}
                check(*single_node(op, {"x": x}, order=order, symbolic=axis == 1, axis=axis, **options))


def test_position_of_nan() -> None:
    x = random_array(np.random.default_rng(9), (4, 33), np.float32)
    x[1, 7] = x[1, 20] = np.nan
    for op in ("ArgMax", "ArgMin"):
        for axis in (0, 1):
            check(*single_node(op, {"x": x}, axis=axis))


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
def test_global_pools(op: str) -> None:
    rng = np.random.default_rng(10)
    for dtype in FLOATS:
        x = random_array(rng, (2, 19, 6, 7), dtype)
        for order in (None, CHANNELS_LAST):
            for symbolic in (False, True):
                check(*single_node(op, {"x": x}, order=order, symbolic=symbolic))
    if op == "GlobalLpPool":
        for p in (1, 3, 5):
            check(*single_node(op, {"x": x.astype(np.float32)}, p=p), tolerance=1e-5)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax(op: str) -> None:
    rng = np.random.default_rng(11)
    for dtype in FLOATS:
        x = random_array(rng, (2, 9, 3, 70), dtype)
        for order in (None, CHANNELS_LAST, (3, 2, 0, 1)):
            for axis in (0, 1, -1):
                # The reference rounds each step to the type; one more rounding of a 16-bit float is seen there.
                tolerance = 3e-2 if dtype not in (np.float32, np.float64) and op == "LogSoftmax" else None
                check(*single_node(op, {"x": x}, order=order, symbolic=axis == 1, axis=axis), tolerance)


def test_softmax_against_onnxruntime() -> None:
    x = random_array(np.random.default_rng(12), (3, 5, 300), np.float32) * np.float32(8)
    for axis in (1, 2):
        model, feeds = single_node("Softmax", {"x": x}, axis=axis)
        expected = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        np.testing.assert_allclose(compiled(model).run(None, feeds)[0], expected, rtol=1e-5, atol=1e-8)


def test_work_behind_a_reduction_is_part_of_it() -> None:
    x = random_array(np.random.default_rng(13), (3, 40), np.float32)
    inputs = {"x": x, "axes": axes_of(1)}
    behind = [("Sqrt", ["y"]), ("Sigmoid", ["y"])]
    model, feeds = single_node("ReduceSumSquare", inputs, constant=["axes"], behind=behind)
    assert steps(model) == ["reduce"]
    close(compiled(model).run(None, feeds)[0], 1 / (1 + np.exp(-np.sqrt(np.square(x).sum(1, keepdims=True)))))


def test_results_inside_a_concatenation() -> None:
    text = """r (float[3, 4, 50] x) => (float[3, 4, 2] y) {
        axis = Constant <value_ints = [2]> ()
        a = ReduceMax <keepdims = 1> (x, axis)
        b = ReduceMin <keepdims = 1> (x, axis)
        y = Concat <axis = 2> (a, b)
    }"""
    x = random_array(np.random.default_rng(14), (3, 4, 50), np.float32)
    close(compiled(from_text(text)).run(None, {"x": x})[0], np.stack([x.max(2), x.min(2)], 2))
    text = text.replace("[2]>", "[0]>").replace("[3, 4, 2]", "[2, 4, 50]").replace("axis = 2", "axis = 0")
    close(compiled(from_text(text)).run(None, {"x": x})[0], np.stack([x.max(0), x.min(0)]))
