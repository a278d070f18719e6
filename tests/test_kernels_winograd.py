"""Winograd convolutions against sums over taps in float64: every remainder of tiles, channels and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_tools import Run, run_kernels
from tests.test_kernels_conv import convolve, window
from tests.test_kernels_gemm import BIAS_RELU, RESIDUAL, guarded, random, unused
from whet.codegen.target import AVX2, AVX512, NEON, Target, host_target
from whet.dtypes import FLOAT32, FLOAT64, DType
from whet.kernels.expression import Step, Tape
from whet.kernels.tile import Epilogue
from whet.kernels.winograd import Winograd, pack_point_weights, pack_tap_weights
from whet.kernels.winograd_axis import Axis
from whet.kernels.winograd_few import WinogradFew, choose_few_tile
from whet.kernels.winograd_tile import choose_winograd_tile

Array = np.ndarray[Any, Any]
F = FLOAT32
SCALE_SUM_SILU = Epilogue(
    Tape(
        (F, F, F, F),
        (
            Step("mul", F, (0, 3)), Step("add", F, (4, 1)), Step("add", F, (5, 2)), Step("sigmoid", F, (6,)),
            Step("mul", F, (6, 7)),
        ),
        (8,),
    ),
    ("column", "full", "scalar"),
)  # fmt: skip
"""silu(sum * scalar + column + full), too long to be written out for every row."""
SMALLEST = {4: 2e-6, 2: 6e-7}
"""Largest error by m, relative to the sum of the products' sizes and to the largest value around."""


@dataclass
class Case:
    image: tuple[int, int]
    channels: int
    outputs: int
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    epilogue: Epilogue | None = None
    fixed: bool = False
    depth: int | None = None
    images: int = 1
    dtype: DType = FLOAT32
    calls: int = 2


def cases(m: int, lanes: int) -> list[Case]:
    """All extents of up to three tiles, and channels and outputs around multiples of a vector."""
    edge = 3 * m + 2
    sizes = [(h, (h * 5) % edge + 1) for h in range(1, edge + 1)]
    found = [Case(size, 3, 5, fixed=i % 2 == 0) for i, size in enumerate(sizes)]
    found += [Case((5, 6), c, 4, images=2) for c in (1, 2, lanes - 1, lanes, lanes + 1, 2 * lanes + 3, 40)]
    found += [Case((6, 5), 4, o, epilogue=RESIDUAL) for o in (1, lanes, lanes + 1, 2 * lanes, 3 * lanes + 1, 40)]
    found += [
        Case((7, 6), 7, 9, (0, 0, 0, 0), BIAS_RELU),
        Case((7, 6), 7, 9, (2, 0, 1, 3), RESIDUAL, fixed=True),
        Case((1, 14), 5, 2 * lanes + 1, (1, 2, 1, 2), BIAS_RELU, images=3),
        Case((9, 4), 5, 2 * lanes, epilogue=SCALE_SUM_SILU, images=2),
        Case((2 * m, m), 5, 2 * lanes + 1, epilogue=SCALE_SUM_SILU, fixed=True, images=2),
        *(Case((7, 9), c, lanes + 3, (1, 0, 0, 1), RESIDUAL, depth=lanes, images=2) for c in (3, lanes, 2 * lanes + 1)),
        Case((8, 8), 3 * lanes, 3 * lanes, epilogue=BIAS_RELU, fixed=True, depth=2 * lanes, calls=5),
        Case((5, 7), lanes + 1, lanes, images=2, dtype=FLOAT64),
        Case((5, 7), lanes + 1, lanes, images=2, dtype=FLOAT64, depth=lanes),
    ]
    return found


@dataclass
class Prepared:
    run: Run
    output: Array
    expected: Array
    bound: float
    case: Case


def prepare(
    target: Target, case: Case, axis: Axis, rng: np.random.Generator, number: int, few: bool = False
) -> Prepared:
    """A run of one case. Input and output are parts of wider rows; tiles and blocks change with `number`."""
    m = axis.m
    win = window((3, 3), (axis.stride, axis.stride), pads=case.pads)
    extents = win.extents(case.image)
    whole = random(rng, case.images, *case.image, case.channels + 2, dtype=case.dtype)
    whole[..., case.channels :] = np.nan
    x = whole[..., : case.channels]
    weights = random(rng, case.outputs, case.channels, 3, 3, dtype=case.dtype)
    output = unused(case.images, *extents, case.outputs + 1, dtype=case.dtype)
    spec = Winograd(
        case.channels, case.outputs, m, case.pads[:2], case.dtype, (extents[0], extents[1]) if case.fixed else None,
        mr=(5, 3, 4)[number % 3], nv=(2, 1)[number % 2], block=(6, 5, 7, 1)[number % 4], panels=1 + number % 2,
        depth=case.depth, epilogue=case.epilogue, stride=axis.stride,
    )  # fmt: skip
    if few:
        rows = (4, 3, 1)[number % 3]
        spec = WinogradFew(
            case.channels, case.outputs, m, case.pads[:2], case.dtype, spec.extents, mr=rows, nv=1, block=rows,
            panels=1 + number % 2, depth=target.lanes(case.dtype) * (1 + number % 2), epilogue=case.epilogue,
        )  # fmt: skip
    strides = [s // whole.itemsize for s in whole.strides]
    width = spec.width(target)
    packed = pack_point_weights(weights, spec.axis.matrix(), width)
    if spec.depth is not None:
        packed = pack_tap_weights(weights, width, spec.depth)
    words: dict[str, Any] = {
        "x": whole, "zero": np.zeros(case.channels, case.dtype.numpy), "x_n": strides[0], "x_s0": strides[1],
        "x_s1": strides[2], "in0": case.image[0], "in1": case.image[1], "images": case.images, "w": packed,
        "c": output, "ldc": case.outputs + 1, "c_n": output[0].size,
    }  # fmt: skip
    if not case.fixed:
        words |= {"out0": extents[0], "out1": extents[1]}
    exact = convolve(x.astype(np.float64), weights.astype(np.float64), win, 1)
    sizes = convolve(np.abs(x).astype(np.float64), np.abs(weights).astype(np.float64), win, 1)
    relative = SMALLEST[m] * (1 if case.dtype is FLOAT32 else 1e-8)
    bound = relative * float(sizes.max() + 1)
    if case.epilogue is BIAS_RELU:
        words["e0"] = bias = random(rng, case.outputs)
        exact = np.maximum(exact + bias, 0)
    elif case.epilogue is RESIDUAL:
        words["e0"] = residual = random(rng, case.images, *extents, case.outputs)
        words |= {"e0_s": case.outputs, "e0_n": residual[0].size}
        exact = exact + residual
    elif case.epilogue is SCALE_SUM_SILU:
        words["e0"] = bias = random(rng, case.outputs)
        words["e1"] = residual = random(rng, case.images, *extents, case.outputs)
        words["e2"] = shift = random(rng, 1)
        words |= {"e1_s": case.outputs, "e1_n": residual[0].size}
        # The tape's inputs: the sum, column, full, scalar.
        total = exact * shift + bias + residual
        exact = total / (1 + np.exp(-total))
        bound *= 1 + abs(float(shift[0]))
    if target.runs_on(host_target()):
        words["x"] = guarded(words["x"], front=number % 4 < 2)
    run = Run(spec, words, spec.tiles(target, extents, case.images), calls=case.calls)
    return Prepared(run, output, exact, bound, case)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("axis", [Axis(2), Axis(4), Axis(2, 2), Axis(4, 2)], ids=str)
def test_every_remainder(target: Target, axis: Axis) -> None:
    rng = np.random.default_rng(axis.m)
    table = cases(axis.m * axis.stride, target.lanes(FLOAT32))
    check(target, [prepare(target, case, axis, rng, n) for n, case in enumerate(table)])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("m", [2, 4])
def test_few_tiles(target: Target, m: int) -> None:
    rng = np.random.default_rng(m)
    table = cases(m, target.lanes(FLOAT32))
    check(target, [prepare(target, case, Axis(m), rng, n, few=True) for n, case in enumerate(table)])


def check(target: Target, prepared: list[Prepared]) -> None:
    assert not any(run_kernels(target, [p.run for p in prepared]))
    for p in prepared:
        got = p.output[..., :-1]
        assert not np.isnan(got).any(), p.case
        assert np.abs(got - p.expected).max() <= p.bound, (p.case, np.abs(got - p.expected).max() / p.bound)
        assert np.isnan(p.output[..., -1]).all(), p.case


@pytest.mark.parametrize(
    ("axis", "most"), [(Axis(2), 5e-7), (Axis(4), 1.5e-6), (Axis(2, 2), 4e-7), (Axis(4, 2), 8e-7)], ids=str
)
@pytest.mark.parametrize("depth", [None, 64])
def test_errors_of_whole_layers(axis: Axis, most: float, depth: int | None) -> None:
    """Root mean square, relative to the values', on a layer behind a ReLU."""
    target = host_target()
    rng = np.random.default_rng(0)
    x = np.maximum(random(rng, 1, 14, 14, 128), 0)
    weights = random(rng, 64, 128, 3, 3)
    spec = Winograd(128, 64, axis.m, depth=depth, stride=axis.stride)
    size = 14 // axis.stride
    width = spec.width(target)
    packed = pack_point_weights(weights, spec.axis.matrix(), width)
    if depth is not None:
        packed = pack_tap_weights(weights, width, depth)
    output = unused(1, size, size, 64)
    words: dict[str, Any] = {
        "x": x, "zero": np.zeros(128, np.float32), "x_n": x.size, "x_s0": 14 * 128, "x_s1": 128, "in0": 14, "in1": 14,
        "out0": size, "out1": size, "images": 1, "w": packed, "c": output, "ldc": 64, "c_n": output.size,
    }  # fmt: skip
    assert run_kernels(target, [Run(spec, words, spec.tiles(target, (size, size), 1))]) == [0]
    win = window((3, 3), (axis.stride, axis.stride), pads=(1, 1, 1, 1))
    exact = convolve(x.astype(np.float64), weights.astype(np.float64), win, 1)
    assert np.sqrt(np.mean((output - exact) ** 2) / np.mean(exact**2)) < most


@pytest.mark.parametrize("axis", [Axis(2), Axis(4), Axis(2, 2), Axis(4, 2)], ids=str)
def test_weights_at_the_points(axis: Axis) -> None:
    weights = np.random.default_rng(0).standard_normal((5, 3, 3, 3))
    g, m = axis.matrix(), axis.m
    assert g.shape == (m + 2, 3)
    packed = pack_point_weights(weights, g, 4)
    assert packed.shape == (2, (m + 2) ** 2, 3, 4)
    expected = g @ weights[4, 2] @ g.T
    np.testing.assert_allclose(packed[1, :, 2, 0].reshape(m + 2, m + 2), expected, rtol=1e-13, atol=1e-13)
    assert not packed[1, :, :, 1:].any()


@pytest.mark.parametrize("target", [AVX512, AVX2, NEON], ids=["avx512", "avx2", "neon"])
@pytest.mark.parametrize("axis", [Axis(2), Axis(4), Axis(2, 2), Axis(4, 2)], ids=str)
def test_chosen_tiles_fit(target: Target, axis: Axis) -> None:
    for channels in (1, 16, 48, 100, 256, 1280):
        for outputs in (1, 16, 65, 512):
            for count in (None, 1, 4, 49, 1000):
                mr, nv, block, panels, depth = choose_winograd_tile(target, channels, outputs, count, axis, threads=2)
                assert mr * nv + nv + 1 <= target.vector_registers
                assert 1 <= block <= max(count or 10**6, 1)
                assert 1 <= panels <= -(-outputs // (nv * target.lanes(FLOAT32)))
                assert depth is None or depth % target.lanes(FLOAT32) == 0
                few = choose_few_tile(target, channels, outputs, count, axis, threads=2)
                assert few[0] == few[2]
                assert few[0] * axis.reach + 8 <= max(target.vector_registers, axis.reach + 8)
                assert few[4] % target.lanes(FLOAT32) == 0
                assert depth is None or channels * outputs * axis.weights**2 * 4 > 1 << 20
