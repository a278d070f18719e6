"""Chains of convolutions against float64: with and without their ends, every cut of the work, padding and strides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_tools import Run, run_kernels
from tests.test_kernels_conv import convolve, window
from tests.test_kernels_gemm import BIAS_RELU, RESIDUAL, guarded, random, unused
from whet.codegen.target import Target, host_target
from whet.dtypes import FLOAT32
from whet.kernels.chain import Chain, Pointwise, Shape
from whet.kernels.conv import Window, pack_conv_weights
from whet.kernels.depthwise import pack_depthwise_weights
from whet.kernels.gemm import pack_b
from whet.kernels.pairs import in_pairs, pack_pairs
from whet.kernels.tile import Epilogue

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """A chain to try: vectors of channels in the middle, channels at its ends (None: no convolution there)."""

    window: Window
    image: tuple[int, int]
    vectors: int
    inputs: int | None
    outputs: int | None
    shape: Shape
    last: Epilogue | None = BIAS_RELU
    totals: bool = False


SAME = window((3, 3), pads=(1, 1, 1, 1))
CASES = [
    Case(SAME, (7, 9), 2, 5, 7, Shape(1, 2, 4, 4, 2, 3, 3, 2)),
    Case(SAME, (7, 9), 2, 5, 24, Shape(1, 2, 4, 4, 2, 3, 5, 2), RESIDUAL),
    Case(SAME, (3, 6), 2, 5, 20, Shape(1, 2, 4, 4, 2, 3, 4, 2)),
    Case(SAME, (6, 5), 4, 3, 33, Shape(2, 2, 2, 3, 1, 6, 4, 1), RESIDUAL),
    Case(SAME, (9, 4), 3, 8, None, Shape(1, 2, 4, 4, 2, 4)),
    Case(SAME, (5, 6), 4, None, 20, Shape(2, 2, 1, 6, 3, 4, 5, 2), RESIDUAL),
    Case(SAME, (5, 6), 3, None, None, Shape(3, 1, 1, 4, 2, 2), None, True),
    Case(SAME, (9, 7), 3, 4, None, Shape(1, 2, 4, 5, 1, 4), BIAS_RELU, True),
    Case(window((3, 3), (2, 2), pads=(0, 0, 1, 1)), (12, 11), 2, 4, 5, Shape(2, 1, 3, 2, 2, 2, 2, 1)),
    Case(window((5, 5), (2, 2), pads=(2, 2, 2, 2)), (11, 12), 2, 6, None, Shape(1, 1, 5, 3, 1, 6), RESIDUAL),
    Case(window((5, 5), pads=(2, 2, 2, 2)), (1, 3), 2, 2, 6, Shape(2, 1, 3, 2, 1, 1, 2, 1)),
    Case(window((3, 2), (1, 3), (2, 3), (2, 1, 0, 4)), (8, 10), 2, 3, 9, Shape(1, 2, 4, 4, 2, 5, 4, 1)),
    Case(window((1, 1), (2, 2)), (5, 6), 2, 7, 4, Shape(2, 1, 2, 2, 2, 2, 3, 1)),
    Case(window((3, 3), (4, 4), pads=(1, 0, 0, 0)), (9, 9), 1, 4, 4, Shape(1, 1, 3, 2, 2, 2, 3, 1)),
]


@pytest.mark.parametrize("target", TARGETS)
def test_chain(target: Target) -> None:
    rng = np.random.default_rng(0)
    runs, checks, sums = [], [], []
    for number, case in enumerate(CASES):
        run, output, exact, bound = _run(target, rng, case, number)
        runs.append(run)
        checks.append((output, exact, bound, number))
        if case.totals:
            band = case.shape.band
            parts = [exact[:, at : at + band].sum(axis=(1, 2)) for at in range(0, exact.shape[1], band)]
            sums.append((run.words["totals"], np.stack(parts, axis=1), bound.sum(axis=(1, 2)).max()))
    assert not any(run_kernels(target, runs))
    for output, exact, bound, where in checks:
        got = output[..., :-3]
        assert not np.isnan(got).any(), where
        assert (np.abs(got - exact) <= bound).all(), where
        assert np.isnan(output[..., -3:]).all(), where
    for got, exact, most in sums:
        assert (np.abs(got - exact) <= most).all()


def _run(target: Target, rng: np.random.Generator, case: Case, number: int) -> tuple[Run, Array, Array, Array]:
    channels = case.vectors * target.lanes(FLOAT32)
    first = case.inputs or channels
    outputs, extents = case.outputs or channels, case.window.extents(case.image)
    whole = random(rng, 2, *case.image, first + 1)
    x: Array = whole[..., :first].astype(np.float64)
    step = first + 1
    output = unused(2, *extents, outputs + 3)
    words: dict[str, Any] = {
        "x": whole, "x_n": whole[0].size, "c": output, "ldc": outputs + 3, "c_n": output[0].size,
    }  # fmt: skip
    error = 1e-7 * np.abs(x)
    if case.inputs is not None:
        w = random(rng, channels, first, 1, 1)
        words |= {
            "wx": pack_conv_weights(w, 1, case.shape.vectors * target.lanes(FLOAT32)),
            "x0": random(rng, channels),
        }
        x, error = _dense(x, error, w, words["x0"])
    w = random(rng, channels, 1, *case.window.kernel)
    words["wd"] = pack_depthwise_weights(w, target.lanes(FLOAT32))
    size = convolve(np.abs(x), np.abs(w).astype(np.float64), case.window, channels)
    error = convolve(error, np.abs(w).astype(np.float64), case.window, channels) + 1e-6 * size
    x = convolve(x, w.astype(np.float64), case.window, channels)
    epilogue = case.last
    if case.outputs is not None:
        words["d0"] = bias = random(rng, channels)
        x = np.maximum(x + bias, 0)
        w = random(rng, outputs, channels, 1, 1)
        columns, lanes = case.shape.project_vectors, target.lanes(FLOAT32)
        matrix = w.reshape(outputs, channels).T.copy()
        words["wp"] = pack_b(matrix, columns * lanes)
        if in_pairs(target, FLOAT32, outputs, columns):
            words["wp"] = pack_pairs(matrix, columns * lanes, lanes)
        x, error = _dense(x, error, w, None)
        epilogue = BIAS_RELU
    if case.last is BIAS_RELU:
        words["e0"] = bias = random(rng, outputs)
        x = np.maximum(x + bias, 0)
    elif case.last is RESIDUAL:
        words["e0"] = residual = random(rng, 2, *extents, outputs)
        words |= {"e0_s": outputs, "e0_n": residual[0].size}
        x = x + residual
    spec = Chain(
        case.window, channels, case.image, (extents[0], extents[1]), (case.image[1] * step, step), case.shape,
        None if case.inputs is None else Pointwise(first, BIAS_RELU),
        epilogue if case.outputs is not None else case.last,
        None if case.outputs is None else Pointwise(outputs, case.last), totals=case.totals,
    )  # fmt: skip
    if case.totals:
        words |= {"totals": unused(2, -(-extents[0] // case.shape.band), channels), "totals_n": 0}
        words["totals_n"] = words["totals"][0].size
    if target.runs_on(host_target()):
        words["x"] = guarded(whole, front=number % 2 == 0)
    return Run(spec, words, spec.tiles(target, 2), calls=2), output, x, error + 1e-5


def _dense(x: Array, error: Array, w: Array, bias: Array | None) -> tuple[Array, Array]:
    """A 1x1 convolution (with `bias`, a ReLU behind it), and a bound on the error of computing it."""
    matrix = w.reshape(w.shape[:2]).T.astype(np.float64)
    error = error @ np.abs(matrix) + 1e-6 * (np.abs(x) @ np.abs(matrix))
    x = x @ matrix
    return (x, error) if bias is None else (np.maximum(x + bias, 0), error)
