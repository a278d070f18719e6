"""Convolutions from a padded copy of the image against sums over taps in float64: edges, blocks, layouts, groups."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_tools import Run, run_kernels
from tests.test_kernels_conv import Case, convolve, window
from tests.test_kernels_gemm import BIAS_RELU, RESIDUAL, guarded, random, unused
from whet.codegen.target import AVX2, AVX512, NEON, Target, host_target
from whet.kernels.conv import pack_conv_weights
from whet.kernels.conv_padded import ConvPadded, choose_padded_tile, copied_extents

CASES = [
    Case(window((3, 3), (2, 2), pads=(1, 1, 1, 1)), (9, 23), 3, 20, epilogue=BIAS_RELU),
    Case(window((3, 3), pads=(1, 1, 1, 1)), (1, 1), 1, 16, fixed=True),
    Case(window((7, 7), (2, 2), pads=(3, 3, 3, 3)), (15, 40), 3, 10, epilogue=BIAS_RELU, fixed=True),
    Case(window((5, 11), (4, 4), pads=(2, 2, 1, 1)), (12, 47), 4, 33),
    Case(window((3, 2), (2, 1), (3, 1), (0, 2, 1, 1)), (9, 8), 5, 7, epilogue=RESIDUAL),
    Case(window((1, 9), (1, 4), pads=(0, 5, 0, 3)), (1, 70), 2, 8, epilogue=RESIDUAL, fixed=True),
    Case(window((5, 5), pads=(4, 4, 4, 4)), (3, 2), 16, 5, groups=3, fixed=True),
    Case(window((2, 2)), (4, 9), 1, 1, groups=4),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layout", ["channels last", "channels first"])
def test_conv_padded(target: Target, layout: str) -> None:
    rng = np.random.default_rng(0)
    last = layout == "channels last"
    runs, checks = [], []
    for number, (case, dense) in enumerate(itertools.product(CASES, (False, True))):
        extents = case.window.extents(case.image)
        groups = case.groups
        channels, outputs = groups * case.channels, groups * case.outputs
        whole = random(rng, 2, *case.image, channels + (0 if dense else 2))
        x = whole[..., :channels]
        memory = whole if last else np.moveaxis(whole if dense else whole[:, :, ::2], -1, 1).copy()
        if not last and not dense:
            # Every second pixel of a wider image.
            memory = np.repeat(np.moveaxis(x, -1, 1), 2, axis=-1).copy()
        strides = [s // 4 for s in memory.strides]
        if not last:
            strides = [strides[0], strides[2], strides[3] * (1 if dense else 2), strides[1]]
        weights = random(rng, outputs, case.channels, *case.window.kernel)
        output = unused(2, *extents, outputs + 1)
        spec = ConvPadded(
            case.window, case.channels, case.outputs, groups, extents=(extents[0], extents[1]) if case.fixed else None,
            mr=(5, 3)[number % 2], nv=1 + number // 2 % 2, rows=1 + number % 3, columns=(6, 10, 7)[number % 3],
            epilogue=case.epilogue, channels_last=last, pixel_stride=strides[2] if dense else None,
        )  # fmt: skip
        words: dict[str, Any] = {
            "x": memory, "x_n": strides[0], "x_s0": strides[1], "x_s1": strides[2], "x_c": strides[3],
            "in0": case.image[0], "in1": case.image[1], "out0": extents[0], "out1": extents[1],
            "w": pack_conv_weights(weights, groups, spec.width(target), not last), "c": output, "ldc": outputs + 1,
            "c_n": output[0].size,
        }  # fmt: skip
        unasked = {"x_c"} if last else set()
        unasked |= {"out0", "out1"} if case.fixed else set()
        unasked |= {"x_s1"} if dense else set()
        for name in unasked:
            del words[name]
        if target.runs_on(host_target()):
            words["x"] = guarded(words["x"], front=number % 4 < 2)
        exact = convolve(x.astype(np.float64), weights.astype(np.float64), case.window, groups)
        sizes = convolve(np.abs(x).astype(np.float64), np.abs(weights).astype(np.float64), case.window, groups)
        if case.epilogue is BIAS_RELU:
            words["e0"] = bias = random(rng, outputs)
            exact = np.maximum(exact + bias, 0)
        elif case.epilogue is RESIDUAL:
            words["e0"] = residual = random(rng, 2, *extents, outputs)
            words |= {"e0_s": outputs, "e0_n": residual[0].size}
            exact = exact + residual
        runs.append(Run(spec, words, spec.tiles((extents[0], extents[1]), 2), calls=2))
        checks.append((output, exact, 1e-6 * (sizes + 1), (case, dense)))
    assert not any(run_kernels(target, runs))
    for output, exact, bound, where in checks:
        got = output[..., :-1]
        assert not np.isnan(got).any(), where
        assert (np.abs(got - exact) <= bound).all(), where
        assert np.isnan(output[..., -1:]).all(), where


@pytest.mark.parametrize("target", [AVX2, AVX512, NEON], ids=["avx2", "avx512", "neon"])
def test_choice_of_tile(target: Target) -> None:
    for taps, image in (((3, 3), 224), ((7, 7), 224), ((11, 11), 227), ((1, 256), 16000), ((3, 3), 2)):
        case = window(taps, (2, 2), pads=(1, taps[1] // 2, 1, taps[1] // 2))
        extents = case.extents((image, image))
        for channels, outputs, known in itertools.product((1, 3, 16), (8, 24, 64), (False, True)):
            out = (extents[0], extents[1]) if known else (None, None)
            tile = choose_padded_tile(target, case, channels, outputs, out)
            assert tile.mr * tile.nv <= target.vector_registers // 2
            assert min(tile.mr, tile.nv, tile.rows, tile.columns) >= 1
            pixels, rows = copied_extents(case, tile.rows, tile.columns)
            # Blocks stay in half of the first cache, unless the smallest does not.
            small = tile.rows == 1 and tile.columns <= 2 * tile.mr
            assert small or pixels * rows * channels * 4 <= target.l1_bytes // 2 + tile.mr * channels * rows * 8
