"""Lowering of pooling over windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

import whet
from tests.compiled_nodes import FLOATS, check, close, compiled, random_array, single_node, steps

SHAPES: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    1: ((2, 19, 23), (3,)),
    2: ((2, 19, 9, 11), (3, 2)),
    3: ((1, 19, 5, 6, 7), (2, 3, 2)),
}
"""By spatial axes: an input and a window."""


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("space", [1, 2, 3])
def test_windows(op: str, space: int) -> None:
    rng = np.random.default_rng(space)
    shape, kernel = SHAPES[space]
    x = random_array(rng, shape, np.float32)
    last = (0, *range(2, len(shape)), 1)
    variants: list[dict[str, Any]] = [
        {},
        {"strides": [2] * space},
        {"strides": [2] * space, "pads": [1] * (2 * space)},
        {"strides": [2] * space, "ceil_mode": 1},
        {"pads": [0] * space + [1] * space, "dilations": [2] * space},
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "SAME_LOWER", "strides": [2] * space},
        {"auto_pad": "VALID"},
    ]
    for number, options in enumerate(variants):
        order = last if number % 2 else None
        symbolic = number in (0, 1, 2, 4, 5, 7)
        check(*single_node(op, {"x": x}, order=order, symbolic=symbolic, kernel_shape=list(kernel), **options))
        if op == "AveragePool":
            options = {"count_include_pad": 1, **options}
            check(*single_node(op, {"x": x}, order=order, symbolic=symbolic, kernel_shape=list(kernel), **options))


@pytest.mark.parametrize("dtype", [*FLOATS, np.int8, np.uint8])
def test_types(dtype: Any) -> None:
    rng = np.random.default_rng(4)
    x = random_array(rng, (1, 70, 7, 7), dtype)
    options = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    for op in ("MaxPool", "AveragePool", "LpPool"):
        if np.dtype(dtype).kind not in "iu" or op == "MaxPool":
            check(*single_node(op, {"x": x}, **options))


@pytest.mark.parametrize("space", [1, 2, 3])
def test_positions(space: int) -> None:
    rng = np.random.default_rng(5)
    shape, kernel = SHAPES[space]
    x = random_array(rng, shape, np.float32)
    x[0, 3] = 1.0
    last = (0, *range(2, len(shape)), 1)
    for order in (None, last):
        for storage_order in (0, 1):
            for wanted in ([0, 1], [1]):
                options = {"kernel_shape": list(kernel), "strides": [2] * space, "pads": [1] * (2 * space)}
                options |= {"storage_order": storage_order}
                check(*single_node("MaxPool", {"x": x}, order=order, outputs=2, wanted=wanted, **options))


def test_norms_of_other_orders() -> None:
    x = random_array(np.random.default_rng(6), (1, 19, 8, 8), np.float32)
    for p in (1, 3, 4):
        check(*single_node("LpPool", {"x": x}, kernel_shape=[2, 2], p=p), tolerance=1e-5)


def test_nan_wins() -> None:
    x = random_array(np.random.default_rng(7), (1, 20, 6, 6), np.float32)
    x[0, 4, 2, 2] = np.nan
    check(*single_node("MaxPool", {"x": x}, kernel_shape=[3, 3]))


def test_work_behind_a_pool_is_part_of_it() -> None:
    x = random_array(np.random.default_rng(8), (1, 20, 6, 6), np.float32)
    behind = [("Relu", ["y"])]
    model, feeds = single_node("AveragePool", {"x": x}, order=(0, 2, 3, 1), behind=behind, kernel_shape=[2, 2])
    check(model, feeds)
    assert [s for s in steps(model) if s != "copy"] == ["pool"]


def test_one_program_for_many_extents() -> None:
    rng = np.random.default_rng(9)
    x = random_array(rng, (1, 8, 12, 12), np.float32)
    model, feeds = single_node("MaxPool", {"x": x}, symbolic=True, kernel_shape=[3, 3], strides=[2, 2])
    session = compiled(model)
    reference = whet.InferenceSession(model, providers=["ReferenceExecutionProvider"])
    for shape in ((1, 8, 12, 12), (2, 3, 7, 30), (1, 33, 100, 3)):
        feeds = {"x": random_array(rng, shape, np.float32)}
        close(session.run(None, feeds)[0], reference.run(None, feeds)[0])


def test_what_depends_on_an_extent_is_refused() -> None:
    x = random_array(np.random.default_rng(10), (1, 8, 12, 12), np.float32)
    for stride, options in ((2, {"auto_pad": "SAME_UPPER"}), (3, {"ceil_mode": 1})):
        model, feeds = single_node(
            "MaxPool", {"x": x}, symbolic=True, kernel_shape=[2, 2], strides=[stride] * 2, **options
        )
        session = whet.InferenceSession(model, providers=["CPUExecutionProvider"])
        assert session.placement.by_provider == {"ReferenceExecutionProvider": 1}
        assert "known at run" in session.placement.nodes[0].refusals[0][1]
        expected = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        close(session.run(None, feeds)[0], expected)


def test_against_onnxruntime() -> None:
    x = random_array(np.random.default_rng(11), (2, 16, 15, 15), np.float32)
    for op in ("MaxPool", "AveragePool"):
        options = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
        model, feeds = single_node(op, {"x": x}, **options)
        expected = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        close(compiled(model).run(None, feeds)[0], expected)
