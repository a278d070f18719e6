"""Convolutions of few channels a group against sums over taps in float64: how groups share vectors, and edges."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_tools import Run, run_kernels
from tests.test_kernels_conv import convolve, window
from tests.test_kernels_gemm import BIAS_RELU, RESIDUAL, guarded, random, unused
from whet.codegen.target import AVX2, AVX512, NEON, Target, host_target
from whet.dtypes import FLOAT32, FLOAT64
from whet.kernels.conv import Window
from whet.kernels.grouped import Grouped, bundle_of, choose_grouped_tile, pack_grouped_weights
from whet.kernels.tile import Epilogue

CASES: list[tuple[Window, tuple[int, int], Epilogue | None]] = [
    (window((3, 3), pads=(1, 1, 1, 1)), (5, 12), None),
    (window((3, 3), pads=(1, 1, 1, 1)), (1, 1), BIAS_RELU),
    (window((5, 5), pads=(2, 2, 2, 2)), (4, 9), RESIDUAL),
    (window((3, 3), (2, 2), pads=(0, 0, 1, 1)), (8, 11), BIAS_RELU),
    (window((3, 2), (1, 3), (2, 3), (2, 1, 0, 4)), (6, 14), None),
    (window((1, 7), pads=(0, 6, 0, 0)), (1, 13), RESIDUAL),
    (window((1, 1)), (3, 9), None),
    (window((3, 3), pads=(3, 1, 4, 1)), (2, 5), BIAS_RELU),
]
GROUPS = [
    (8, 8, 5), (16, 16, 3), (4, 4, 9), (2, 2, 17), (3, 3, 11), (5, 5, 4), (6, 6, 3), (12, 12, 2), (24, 24, 3),
    (32, 32, 2), (1, 2, 9), (1, 4, 5), (2, 8, 5), (8, 2, 5), (16, 7, 2), (3, 5, 7), (20, 33, 2), (1, 1, 35), (4, 4, 1),
]  # fmt: skip
"""(channels, outputs, groups)"""


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("known", [False, True], ids=["widths at run time", "widths known"])
def test_grouped(target: Target, known: bool) -> None:
    rng = np.random.default_rng(0)
    runs, checks, sums = [], [], []
    for number, (channels, outputs, groups) in enumerate(GROUPS):
        for taps, image, epilogue in (CASES[(number + i) % len(CASES)] for i in (0, 3)):
            case = len(runs)
            extents = taps.extents(image)
            whole = random(rng, 2, *image, groups * channels + 1)
            dtype = FLOAT64 if case % 7 == 3 and epilogue is None else FLOAT32
            if dtype is FLOAT64:
                whole = whole.astype(np.float64)
            # No number of the slack may be of any influence.
            whole[..., -1] = np.nan
            x = whole[..., :-1]
            weights = random(rng, groups * outputs, channels, *taps.kernel).astype(dtype.numpy)
            output = np.full((2, *extents, groups * outputs + 2), np.nan, dtype.numpy)
            spec = Grouped(
                taps, groups, channels, outputs, dtype, (image[1], extents[1]) if known else None, 4 - case % 2,
                2 + case % 2, 1 + case % 3, epilogue, 1 + case // 2 % 3,
                extents[0] if known and case % 3 else None, groups * channels + 1 if case % 5 < 3 else None,
                case % 2 == 1, case % 4 > 1,
            )  # fmt: skip
            words: dict[str, Any] = {
                "x": whole, "w": pack_grouped_weights(weights, groups, target.lanes(dtype)), "c": output,
                "in0": image[0], "out0": extents[0], "x_n": whole[0].size, "x_s0": whole[0, 0].size,
                "x_s1": groups * channels + 1, "ldc": groups * outputs + 2, "c_n": output[0].size,
            }  # fmt: skip
            words |= {} if known else {"in1": image[1], "out1": extents[1]}
            if spec.out_rows is not None:
                del words["out0"]
            if spec.pixel_stride is not None:
                del words["x_s1"]
            if target.runs_on(host_target()):
                words["x"] = guarded(words["x"], front=case % 4 < 2)
            exact = convolve(x.astype(np.float64), weights.astype(np.float64), taps, groups)
            size = convolve(np.abs(x).astype(np.float64), np.abs(weights).astype(np.float64), taps, groups)
            bound = (1e-6 if dtype is FLOAT32 else 1e-14) * (size + 1)
            if epilogue is BIAS_RELU:
                words["e0"] = bias = random(rng, groups * outputs)
                exact = np.maximum(exact + bias, 0)
            elif epilogue is RESIDUAL:
                words["e0"] = residual = random(rng, 2, *extents, groups * outputs)
                words |= {"e0_s": groups * outputs, "e0_n": residual[0].size}
                exact = exact + residual
            where = (channels, outputs, groups, taps, image)
            if spec.totals:
                totals = unused(2, -(-extents[0] // spec.rows), groups * outputs).astype(dtype.numpy)
                words |= {"totals": totals, "totals_n": totals[0].size}
                starts = range(0, extents[0], spec.rows)
                found = (np.add.reduceat(v.sum(2), starts, axis=1) for v in (exact, bound + 1e-6 * abs(exact)))
                sums.append((totals, *found, where))
            runs.append(Run(spec, words, spec.tiles(target, extents[0], 2), calls=2))
            checks.append((output, exact, bound, where))
    assert not any(run_kernels(target, runs))
    for output, exact, bound, where in checks:
        got = output[..., :-2]
        assert not np.isnan(got).any(), where
        assert (np.abs(got - exact) <= bound).all(), where
        assert np.isnan(output[..., -2:]).all(), where
    for got, exact, bound, where in sums:
        assert (np.abs(got - exact) <= bound).all(), where


def test_bundles() -> None:
    shapes = {(8, 8): (2, 1), (16, 16): (1, 1), (5, 5): (3, 1), (24, 24): (1, 2), (2, 8): (2, 1), (40, 4): (1, 1)}
    for (channels, outputs), (groups, vectors) in shapes.items():
        bundle = bundle_of(16, channels, outputs)
        assert (bundle.groups, bundle.vectors) == (groups, vectors)


def test_order_of_packed_weights() -> None:
    weights = np.arange(12, dtype=np.float32).reshape(3, 2, 1, 2)
    # Two groups in a vector of 4 lanes; the second bundle has one, and its other lanes are zeros.
    assert pack_grouped_weights(weights, 3, 4)[0, 0].tolist() == [
        [[[0, 4, 0, 0], [1, 5, 0, 0]], [[2, 6, 0, 0], [3, 7, 0, 0]]]
    ]
    assert pack_grouped_weights(weights, 3, 4)[1, 0].tolist() == [
        [[[8, 0, 0, 0], [9, 0, 0, 0]], [[10, 0, 0, 0], [11, 0, 0, 0]]]
    ]
    # One group in two vectors of 2 lanes.
    assert pack_grouped_weights(weights, 1, 2)[0].tolist() == [
        [[[[0, 4], [1, 5]], [[2, 6], [3, 7]]]], [[[[8, 0], [9, 0]], [[10, 0], [11, 0]]]],
    ]  # fmt: skip


@pytest.mark.parametrize("target", [AVX2, AVX512, NEON], ids=["avx2", "avx512", "neon"])
def test_choice_of_tile(target: Target) -> None:
    for out, channels, stride in itertools.product((1, 4, 7, 14, 28, 56, 113, None), (2, 8, 16, 32), (1, 2)):
        case = window((3, 3), (stride, stride), pads=(1, 1, 1, 1))
        tile = choose_grouped_tile(target, case, 9, channels, channels, out, out)
        assert tile.pixels * tile.lines <= target.vector_registers // 2
        assert min(tile.pixels, tile.lines, tile.rows, tile.bundles) >= 1
        assert tile.rows % tile.lines == 0
