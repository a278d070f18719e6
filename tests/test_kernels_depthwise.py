"""Depthwise convolutions against sums over taps in float64, with the image's edges known beforehand and not."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_tools import Run, run_kernels
from tests.test_kernels_conv import convolve, window
from tests.test_kernels_gemm import BIAS_RELU, RESIDUAL, guarded, random, unused
from whet.codegen.target import Target, host_target
from whet.kernels.conv import Window
from whet.kernels.depthwise import Depthwise, pack_depthwise_weights
from whet.kernels.tile import Epilogue

Array = np.ndarray[Any, Any]

CASES: list[tuple[Window, tuple[int, int], Epilogue | None]] = [
    (window((3, 3), pads=(1, 1, 1, 1)), (5, 12), None),
    (window((3, 3), pads=(1, 1, 1, 1)), (1, 1), BIAS_RELU),
    (window((5, 5), pads=(2, 2, 2, 2)), (4, 9), RESIDUAL),
    (window((3, 3), (2, 2), pads=(0, 0, 1, 1)), (8, 11), BIAS_RELU),
    (window((3, 2), (1, 3), (2, 3), (2, 1, 0, 4)), (6, 14), None),
    (window((1, 7), pads=(0, 6, 0, 0)), (1, 13), RESIDUAL),
    (window((2, 2)), (3, 9), None),
    (window((7, 7), pads=(3, 3, 3, 3)), (6, 8), BIAS_RELU),
    (window((3, 3), pads=(3, 1, 4, 1)), (2, 5), None),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("known", [False, True], ids=["widths at run time", "widths known"])
def test_depthwise(target: Target, known: bool) -> None:
    rng = np.random.default_rng(0)
    runs, checks, sums = [], [], []
    for number, (channels, (taps, image, epilogue)) in enumerate(itertools.product((3, 16, 36), CASES)):
        extents = taps.extents(image)
        whole = random(rng, 2, *image, channels + 1)
        x = whole[..., :channels]
        weights = random(rng, channels, 1, *taps.kernel)
        output = unused(2, *extents, channels + 2)
        columns = (image[1], extents[1]) if known else None
        spec = Depthwise(
            taps, channels, columns=columns, pixels=4 - number % 2, rows=2 + number % 2, vectors=1 + number % 3,
            epilogue=epilogue, lines=1 + number // 2 % 3, out_rows=extents[0] if known and number % 3 else None,
            pixel_stride=channels + 1 if number % 5 < 3 else None, totals=number % 2 == 1, by_channels=number % 4 > 1,
        )  # fmt: skip
        words: dict[str, Any] = {
            "x": whole, "w": pack_depthwise_weights(weights, target.lanes(spec.dtype)), "c": output, "in0": image[0],
            "out0": extents[0], "x_n": whole[0].size, "x_s0": whole[0, 0].size, "x_s1": channels + 1,
            "ldc": channels + 2, "c_n": output[0].size,
        }  # fmt: skip
        words |= {} if known else {"in1": image[1], "out1": extents[1]}
        if spec.out_rows is not None:
            del words["out0"]
        if spec.pixel_stride is not None:
            del words["x_s1"]
        if target.runs_on(host_target()):
            words["x"] = guarded(words["x"], front=number % 4 < 2)
        exact = convolve(x.astype(np.float64), weights.astype(np.float64), taps, channels)
        bound = 1e-6 * (convolve(np.abs(x).astype(np.float64), np.abs(weights).astype(np.float64), taps, channels) + 1)
        if epilogue is BIAS_RELU:
            words["e0"] = bias = random(rng, channels)
            exact = np.maximum(exact + bias, 0)
        elif epilogue is RESIDUAL:
            words["e0"] = residual = random(rng, 2, *extents, channels)
            words |= {"e0_s": channels, "e0_n": residual[0].size}
            exact = exact + residual
        totals = unused(2, -(-extents[0] // spec.rows), channels)
        words |= {"totals": totals, "totals_n": totals[0].size} if spec.totals else {}
        runs.append(Run(spec, words, spec.tiles(target, extents[0], 2), calls=2))
        checks.append((output, exact, bound, (channels, taps, image)))
        if spec.totals:
            starts = range(0, extents[0], spec.rows)
            exact_sums, bounds = (np.add.reduceat(v.sum(2), starts, axis=1) for v in (exact, bound + 1e-6 * abs(exact)))
            sums.append((totals, exact_sums, bounds, (channels, taps, image)))
    assert not any(run_kernels(target, runs))
    for output, exact, bound, where in checks:
        got = output[..., :-2]
        assert not np.isnan(got).any(), where
        assert (np.abs(got - exact) <= bound).all(), where
        assert np.isnan(output[..., -2:]).all(), where
    for got, exact, bound, where in sums:
        assert (np.abs(got - exact) <= bound).all(), where


def test_order_of_packed_weights() -> None:
    weights = np.arange(6, dtype=np.float32).reshape(3, 1, 2)
    assert pack_depthwise_weights(weights, 2).tolist() == [[[0, 2], [1, 3]], [[4, 0], [5, 0]]]
