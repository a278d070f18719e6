"""Winograd convolutions along one axis against sums over taps in float64: remainders of tiles, channels and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_tools import Run, run_kernels
from tests.test_kernels_conv import convolve, window
from tests.test_kernels_gemm import BIAS_RELU, RESIDUAL, guarded, random, unused
from tests.test_kernels_winograd import SCALE_SUM_SILU
from whet.codegen.target import AVX2, AVX512, NEON, Target, host_target
from whet.dtypes import FLOAT32, FLOAT64, DType
from whet.kernels.tile import Epilogue
from whet.kernels.winograd_line import WinogradLine, pack_line_weights
from whet.kernels.winograd_points import weight_matrix
from whet.kernels.winograd_tile import choose_line_tile

Array = np.ndarray[Any, Any]

SMALLEST = {8: 2e-6, 6: 6e-7}
"""Largest error by points, relative to the sum of the products' sizes and to the largest value around."""


@dataclass
class Case:
    taps: int
    length: int
    channels: int
    outputs: int
    lines: int = 1
    pads: tuple[int, int] = (0, 0)
    down: bool = False
    """Whether a line is a column of the image."""
    epilogue: Epilogue | None = None
    fixed: bool = False
    images: int = 1
    dtype: DType = FLOAT32
    calls: int = 2


def cases(points: int, lanes: int) -> list[Case]:
    """All lengths of up to three tiles for every number of taps; channels and outputs around multiples of a vector."""
    found = []
    for taps in range(3, points):
        for extent in range(1, 3 * (points - taps + 1) + 2):
            half = taps // 2
            found.append(Case(taps, extent, 3, 5, 2, (half, taps - 1 - half), extent % 2 == 0, fixed=extent % 3 == 0))
    found += [Case(5, 11, c, 4, images=2) for c in (1, 2, lanes - 1, lanes, lanes + 1, 2 * lanes + 3, 40)]
    found += [Case(3, 9, 4, o, 3, epilogue=RESIDUAL) for o in (1, lanes, lanes + 1, 2 * lanes, 3 * lanes + 1, 40)]
    found += [
        Case(4, 13, 7, 9, 2, (0, 3), epilogue=BIAS_RELU),
        Case(3, 14, 7, 9, 5, (2, 1), True, RESIDUAL, fixed=True),
        Case(5, 6, 5, 2 * lanes + 1, 3, (4, 4), epilogue=BIAS_RELU, images=3),
        Case(3, 23, 5, 2 * lanes, 2, epilogue=SCALE_SUM_SILU, images=2),
        Case(3, 2 + 2 * (points - 2), 5, 2 * lanes + 1, 2, down=True, epilogue=SCALE_SUM_SILU, fixed=True, images=2),
        Case(5, 8, 3 * lanes, 3 * lanes, 4, (2, 2), epilogue=BIAS_RELU, fixed=True, calls=5),
        Case(5, 17, lanes + 1, lanes, images=2, dtype=FLOAT64),
    ]
    return found


@dataclass
class Prepared:
    run: Run
    output: Array
    expected: Array
    bound: float
    case: Case


def prepare(target: Target, case: Case, points: int, rng: np.random.Generator, number: int) -> Prepared:
    """A run of one case. Input and output are parts of wider rows; tiles and blocks change with `number`."""
    kernel, pads, image = (1, case.taps), (0, case.pads[0], 0, case.pads[1]), (case.lines, case.length)
    if case.down:
        kernel, pads, image = (case.taps, 1), (case.pads[0], 0, case.pads[1], 0), (case.length, case.lines)
    win = window(kernel, pads=pads)
    extents = win.extents(image)
    along, across = (0, 1) if case.down else (1, 0)
    whole = random(rng, case.images, *image, case.channels + 2, dtype=case.dtype)
    whole[..., case.channels :] = np.nan
    x = whole[..., : case.channels]
    weights = random(rng, case.outputs, case.channels, *kernel, dtype=case.dtype)
    output = unused(case.images, *extents, case.outputs + 1, dtype=case.dtype)
    spec = WinogradLine(
        case.channels, case.outputs, case.taps, points, case.pads[0], case.dtype,
        extents[along] if case.fixed else None, mr=(5, 3, 4)[number % 3], nv=(2, 1)[number % 2],
        block=(6, 5, 7, 1)[number % 4], panels=1 + number % 2, epilogue=case.epilogue,
    )  # fmt: skip
    packed = pack_line_weights(weights.reshape(*weights.shape[:2], case.taps), points, spec.width(target))

    def strides(array: Array, names: tuple[str, str, str]) -> dict[str, int]:
        steps = [s // array.itemsize for s in array.strides]
        return dict(zip(names, (steps[0], steps[1 + across], steps[1 + along]), strict=True))

    words: dict[str, Any] = {
        "x": whole, "zero": np.zeros(case.channels, case.dtype.numpy), **strides(whole, ("x_n", "x_l", "x_s")),
        "in": case.length, "lines": case.lines, "images": case.images, "w": packed, "c": output,
        **strides(output, ("c_n", "c_l", "ldc")),
    }  # fmt: skip
    if not case.fixed:
        words["out"] = extents[along]
    exact = convolve(x.astype(np.float64), weights.astype(np.float64), win, 1)
    sizes = convolve(np.abs(x).astype(np.float64), np.abs(weights).astype(np.float64), win, 1)
    bound = SMALLEST[points] * (1 if case.dtype is FLOAT32 else 1e-8) * float(sizes.max() + 1)
    if case.epilogue is BIAS_RELU:
        words["e0"] = bias = random(rng, case.outputs)
        exact = np.maximum(exact + bias, 0)
    elif case.epilogue is RESIDUAL:
        words["e0"] = residual = random(rng, case.images, *extents, case.outputs)
        words |= strides(residual, ("e0_n", "e0_l", "e0_s"))
        exact = exact + residual
    elif case.epilogue is SCALE_SUM_SILU:
        words["e0"] = bias = random(rng, case.outputs)
        words["e1"] = residual = random(rng, case.images, *extents, case.outputs)
        words["e2"] = shift = random(rng, 1)
        words |= strides(residual, ("e1_n", "e1_l", "e1_s"))
        total = exact * shift + bias + residual
        exact = total / (1 + np.exp(-total))
        bound *= 1 + abs(float(shift[0]))
    if target.runs_on(host_target()):
        words["x"] = guarded(words["x"], front=number % 4 < 2)
    run = Run(spec, words, spec.tiles(target, extents[along], case.lines * case.images), calls=case.calls)
    return Prepared(run, output, exact, bound, case)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("points", [6, 8])
def test_every_remainder(target: Target, points: int) -> None:
    rng = np.random.default_rng(points)
    table = cases(points, target.lanes(FLOAT32))
    prepared = [prepare(target, case, points, rng, n) for n, case in enumerate(table)]
    assert not any(run_kernels(target, [p.run for p in prepared]))
    for p in prepared:
        got = p.output[..., :-1]
        assert not np.isnan(got).any(), p.case
        assert np.abs(got - p.expected).max() <= p.bound, (p.case, np.abs(got - p.expected).max() / p.bound)
        assert np.isnan(p.output[..., -1]).all(), p.case


@pytest.mark.parametrize(("points", "taps", "most"), [(6, 3, 5e-7), (8, 3, 1.1e-6), (8, 5, 1.1e-6), (8, 7, 1.3e-6)])
def test_errors_of_whole_layers(points: int, taps: int, most: float) -> None:
    """Root mean square, relative to the values', on a layer behind a ReLU."""
    target = host_target()
    rng = np.random.default_rng(0)
    x = np.maximum(random(rng, 1, 1, 100, 128), 0)
    weights = random(rng, 64, 128, 1, taps)
    out = 101 - taps
    spec = WinogradLine(128, 64, taps, points)
    output = unused(1, 1, out, 64)
    words: dict[str, Any] = {
        "x": x, "zero": np.zeros(128, np.float32), "x_n": x.size, "x_l": x.size, "x_s": 128, "in": 100, "out": out,
        "lines": 1, "images": 1, "w": pack_line_weights(weights[:, :, 0], points, spec.width(target)), "c": output,
        "ldc": 64, "c_n": output.size, "c_l": output.size,
    }  # fmt: skip
    assert run_kernels(target, [Run(spec, words, spec.tiles(target, out, 1))]) == [0]
    exact = convolve(x.astype(np.float64), weights.astype(np.float64), window((1, taps)), 1)
    assert np.sqrt(np.mean((output - exact) ** 2) / np.mean(exact**2)) < most


@pytest.mark.parametrize(("points", "taps"), [(6, 3), (6, 5), (8, 3), (8, 4), (8, 7)])
def test_weights_at_the_points(points: int, taps: int) -> None:
    weights = np.random.default_rng(0).standard_normal((5, 3, taps))
    packed = pack_line_weights(weights, points, 4)
    assert packed.shape == (2, points, 3, 4)
    expected = weight_matrix(points - taps + 1, taps) @ weights[4, 2]
    np.testing.assert_allclose(packed[1, :, 2, 0], expected, rtol=1e-13, atol=1e-13)
    assert not packed[1, :, :, 1:].any()


@pytest.mark.parametrize("target", [AVX512, AVX2, NEON], ids=["avx512", "avx2", "neon"])
def test_chosen_tiles_fit(target: Target) -> None:
    for channels in (1, 16, 100, 256, 1280):
        for outputs in (1, 16, 65, 512):
            for count in (None, 1, 4, 49, 1000):
                mr, nv, block, panels = choose_line_tile(target, channels, outputs, count, 8, threads=2)
                assert mr * nv + nv + 1 <= target.vector_registers
                assert 1 <= block <= max(count or 10**6, 1)
                assert 1 <= panels <= -(-outputs // (nv * target.lanes(FLOAT32)))
