"""Lowering of normalizations."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.compiled_nodes import FLOATS, Array, check, close, compiled, random_array, single_node, steps
from tests.session_models import model as from_text
from whet.errors import InvalidArgument

CHANNELS_LAST = (0, 2, 3, 1)


def operands(rng: np.random.Generator, x: Array, shape: tuple[int, ...], *names: str) -> dict[str, Array | None]:
    """x and an operand of `shape` for each name."""
    return {"x": x, **{name: random_array(rng, shape, x.dtype) for name in names}}


@pytest.mark.parametrize("op", ["LayerNormalization", "RMSNormalization"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_row_norms(op: str, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    x = random_array(rng, (2, 5, 3, 70), dtype)
    names = ("scale", "bias") if op == "LayerNormalization" else ("scale",)
    for order in (None, CHANNELS_LAST, (3, 2, 0, 1)):
        for axis in (-1, 1, 2):
            inputs = operands(rng, x, x.shape[axis:], *names)
            check(*single_node(op, inputs, order=order, constant=names, symbolic=axis == -1, axis=axis))
            if order is None:
                check(*single_node(op, {k: inputs[k] for k in ("x", "scale")}, axis=axis, epsilon=0.1))


def test_long_rows() -> None:
    rng = np.random.default_rng(2)
    x = random_array(rng, (3, 5003), np.float32) + np.float32(100)
    for op in ("LayerNormalization", "RMSNormalization"):
        check(*single_node(op, operands(rng, x, (5003,), "scale"), constant=["scale"]), tolerance=1e-5)


def test_statistics_of_a_layer_norm() -> None:
    rng = np.random.default_rng(3)
    for dtype in (np.float32, np.float16):
        x = random_array(rng, (4, 3, 50), dtype)
        for axis in (1, 2):
            inputs = operands(rng, x, x.shape[axis:], "scale", "bias")
            for wanted in ([0, 1, 2], [0, 2], [0, 1]):
                check(*single_node("LayerNormalization", inputs, outputs=3, wanted=wanted, axis=axis))


@pytest.mark.parametrize("shape", [(1,), (3, 1), (4, 1, 1), (4, 3, 50), (1, 3, 50)])
def test_scale_that_broadcasts(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    x = random_array(rng, (4, 3, 50), np.float32)
    for op, names in (("LayerNormalization", ("scale", "bias")), ("RMSNormalization", ("scale",))):
        for axis in (1, 2):
            inputs = operands(rng, x, shape, *names)
            check(*single_node(op, inputs, axis=axis))
            check(*single_node(op, inputs, constant=names, axis=axis, behind=[("Relu", ["y"])]))


def test_work_behind_a_norm_is_part_of_it() -> None:
    rng = np.random.default_rng(5)
    x = random_array(rng, (4, 70), np.float32)
    inputs = operands(rng, x, (70,), "scale", "bias")
    model, feeds = single_node("LayerNormalization", inputs, constant=["scale", "bias"], behind=[("Gelu", ["y"])])
    assert steps(model) == ["layernorm"]
    check(model, feeds)
    x = random_array(rng, (2, 8, 5, 7), np.float32)
    inputs = operands(rng, x, (8,), "scale", "bias")
    behind = [("Sigmoid", ["y"])]
    model, feeds = single_node(
        "GroupNormalization", inputs, order=CHANNELS_LAST, constant=["scale", "bias"], behind=behind, num_groups=4
    )
    check(model, feeds)
    assert "pointwise" not in steps(model)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_residual_addition_before_a_norm(dtype: Any) -> None:
    rng = np.random.default_rng(6)
    x = random_array(rng, (2, 5, 70), dtype)
    vectors = {n: random_array(rng, (70,), dtype) for n in ("gamma", "beta", "bias")}
    for skip_shape in ((2, 5, 70), (1, 5, 70), (5, 70)):
        inputs = {"x": x, "skip": random_array(rng, skip_shape, dtype), **vectors}
        for outputs, wanted in ((1, [0]), (4, [0, 3]), (4, [0, 1, 2, 3])):
            check(
                *single_node("SkipLayerNormalization", inputs, outputs=outputs, wanted=wanted, domain="com.microsoft")
            )
        simple = {k: inputs[k] for k in ("x", "skip", "gamma", "bias")}
        for outputs, wanted in ((1, [0]), (4, [0, 3]), (4, [0, 2, 3])):
            model, feeds = single_node(
                "SkipSimplifiedLayerNormalization", simple, outputs=outputs, wanted=wanted, domain="com.microsoft"
            )
            check(model, feeds)
    inputs = {"x": x, "skip": random_array(rng, x.shape, dtype), "gamma": vectors["gamma"], "beta": None}
    check(*single_node("SkipLayerNormalization", inputs, domain="com.microsoft", epsilon=0.2))


@pytest.mark.parametrize("dtype", FLOATS)
def test_group_and_instance_norm(dtype: Any) -> None:
    rng = np.random.default_rng(7)
    for shape in ((2, 12, 5, 7), (3, 12, 9), (2, 12, 2, 3, 4), (1, 12, 40, 50)):
        x = random_array(rng, shape, dtype)
        inputs = operands(rng, x, (12,), "scale", "bias")
        last = (0, *range(2, len(shape)), 1)
        for order in (None, last):
            for groups in (1, 4, 12):
                options = {"num_groups": groups, "epsilon": 1e-3}
                names = ["scale", "bias"] if groups == 4 else []
                check(*single_node("GroupNormalization", inputs, order=order, constant=names, **options))
            check(*single_node("InstanceNormalization", inputs, order=order, constant=names, symbolic=bool(names)))


def test_group_norm_of_symbolic_extents() -> None:
    rng = np.random.default_rng(8)
    x = random_array(rng, (2, 64, 30, 31), np.float32) + np.float32(50)
    inputs = operands(rng, x, (64,), "scale", "bias")
    for order in (None, CHANNELS_LAST):
        names = ["scale", "bias"]
        model, feeds = single_node(
            "GroupNormalization", inputs, order=order, constant=names, symbolic=True, num_groups=8
        )
        check(model, feeds, tolerance=2e-5)
        results = [compiled(model, threads).run(None, feeds)[0] for threads in (1, 2)]
        np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize("last", [0, 1])
def test_contrib_group_norm(last: int) -> None:
    rng = np.random.default_rng(14)
    x = random_array(rng, (2, 6, 7, 12) if last else (2, 12, 6, 7), np.float32)
    inputs = operands(rng, x, (12,), "gamma", "beta")
    for activation in (0, 1):
        options = {"groups": 3, "activation": activation, "channels_last": last, "domain": "com.microsoft"}
        for order in (None, CHANNELS_LAST):
            check(*single_node("GroupNorm", inputs, order=order, symbolic=activation == 1, **options))


def test_simplified_layer_norm() -> None:
    rng = np.random.default_rng(15)
    x = random_array(rng, (2, 6, 70), np.float32)
    for axis in (-1, 1):
        inputs = operands(rng, x, x.shape[axis:], "scale")
        for wanted in ([0], [0, 1]):
            options = {"outputs": 2, "wanted": wanted, "domain": "com.microsoft", "axis": axis}
            check(*single_node("SimplifiedLayerNormalization", inputs, **options))


def test_extents_that_do_not_fit_end_the_run() -> None:
    rng = np.random.default_rng(16)
    x = random_array(rng, (2, 8, 6), np.float32)
    cases = [
        ("LayerNormalization", (6,), ("scale", "bias"), {}, (2, 8, 600)),
        ("GroupNormalization", (8,), ("scale", "bias"), {"num_groups": 4}, (2, 800, 6)),
        ("InstanceNormalization", (8,), ("scale", "bias"), {}, (2, 9, 6)),
        ("BatchNormalization", (8,), ("scale", "bias", "mean", "var"), {}, (2, 800, 6)),
    ]
    for op, shape, names, options, wrong in cases:
        inputs = {"x": x, **{n: np.abs(random_array(rng, shape, np.float32)) for n in names}}
        model, feeds = single_node(op, inputs, constant=names, symbolic=True, **options)
        session = compiled(model)
        session.run(None, feeds)
        with pytest.raises(InvalidArgument, match=op):
            session.run(None, {"x": random_array(rng, wrong, np.float32)})


@pytest.mark.parametrize("dtype", FLOATS)
def test_batch_norm(dtype: Any) -> None:
    rng = np.random.default_rng(9)
    for shape in ((2, 11, 5, 7), (3, 11), (2, 11, 4)):
        x = random_array(rng, shape, dtype)
        inputs = operands(rng, x, (11,), "scale", "bias", "mean", "var")
        inputs["var"] = np.abs(inputs["var"])
        for constant in (("scale", "bias", "mean", "var"), ("scale", "mean"), ()):
            model, feeds = single_node("BatchNormalization", inputs, constant=constant, behind=[("Relu", ["y"])])
            check(model, feeds)
        last = (0, *range(2, len(shape)), 1)
        constant = ("scale", "bias", "mean", "var")
        model, feeds = single_node("BatchNormalization", inputs, order=last, constant=constant, symbolic=True)
        check(model, feeds)
        assert steps(model).count("pointwise") == 1


def test_batch_norm_with_a_residual_behind() -> None:
    rng = np.random.default_rng(10)
    text = """b (
        float[2, 6, 5] x, float[2, 6, 5] r, float[6] s, float[6] b, float[6] m, float[6] v
    ) => (float[2, 6, 5] z) {
        y = BatchNormalization (x, s, b, m, v)
        t = Add (y, r)
        z = Relu (t)
    }"""
    feeds = {n: random_array(rng, (2, 6, 5), np.float32) for n in "xr"}
    feeds |= {n: np.abs(random_array(rng, (6,), np.float32)) + np.float32(0.1) for n in "sbmv"}
    check(from_text(text), feeds)
    assert steps(from_text(text)) == ["pointwise", "pointwise"]  # the channels' numbers, then everything else


@pytest.mark.parametrize("dtype", FLOATS)
def test_p_norms_and_mean_variance(dtype: Any) -> None:
    rng = np.random.default_rng(11)
    x = random_array(rng, (2, 9, 5, 7), dtype)
    x[0, :, 0, 0] = 0
    for order in (None, CHANNELS_LAST):
        for axis in (1, -1):
            for p in (1, 2):
                check(*single_node("LpNormalization", {"x": x}, order=order, axis=axis, p=p, symbolic=p == 1))
        for axes in ((0, 2, 3), (1,), (0, 1, 2, 3)):
            check(*single_node("MeanVarianceNormalization", {"x": x}, order=order, axes=list(axes)), tolerance=None)


@pytest.mark.parametrize("dtype", FLOATS)
def test_local_response(dtype: Any) -> None:
    rng = np.random.default_rng(12)
    for shape in ((2, 21, 4, 5), (2, 3, 4), (1, 40, 2, 2, 3)):
        x = random_array(rng, shape, dtype)
        for size, beta in ((1, 0.75), (4, 0.5), (5, 0.6)):
            last = (0, *range(2, len(shape)), 1)
            for order in (None, last):
                options = {"size": size, "beta": beta, "alpha": 0.02, "bias": 2.0}
                check(*single_node("LRN", {"x": x}, order=order, symbolic=size == 4, **options))


def test_against_onnxruntime() -> None:
    rng = np.random.default_rng(13)
    x = random_array(rng, (2, 16, 9, 9), np.float32)
    cases = [
        single_node("LayerNormalization", operands(rng, x, (9,), "scale", "bias")),
        single_node("InstanceNormalization", operands(rng, x, (16,), "scale", "bias")),
        single_node("LRN", {"x": x}, size=3),
        single_node("LpNormalization", {"x": x}, axis=1),
    ]
    for model, feeds in cases:
        expected = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        close(compiled(model).run(None, feeds)[0], expected, 1e-5)
