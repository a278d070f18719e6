"""Convolutions against sums over taps in float64: strides, dilations, padding, groups, layouts, odd channel counts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_tools import Run, run_kernels
from tests.test_kernels_gemm import BIAS_RELU, RESIDUAL, guarded, random, unused
from whet.codegen.target import Target, host_target
from whet.dtypes import FLOAT32
from whet.kernels.conv import Conv, Convolution, Window, pack_conv_weights
from whet.kernels.im2col import ConvIm2col
from whet.kernels.tile import Epilogue
from whet.kernels.winograd import Winograd, pack_tap_weights

Array = np.ndarray[Any, Any]


def convolve(x: Array, weights: Array, window: Window, groups: int) -> Array:
    """The convolution of x [images, spatial..., channels] in x's type, tap by tap."""
    rank = window.rank
    padding = [(0, 0), *((window.pads[i], window.pads[i + rank]) for i in range(rank)), (0, 0)]
    padded = np.pad(x, padding)
    extents = window.extents(x.shape[1:-1])
    outputs, channels = weights.shape[:2]
    result = np.zeros((x.shape[0], *extents, outputs), x.dtype)
    size = outputs // groups
    for tap in itertools.product(*map(range, window.kernel)):
        places = []
        for axis in range(rank):
            first = tap[axis] * window.dilations[axis]
            places.append(slice(first, first + (extents[axis] - 1) * window.strides[axis] + 1, window.strides[axis]))
        seen = padded[(slice(None), *places)]
        for g in range(groups):
            matrix = weights[(slice(g * size, (g + 1) * size), slice(None), *tap)]
            result[..., g * size : (g + 1) * size] += seen[..., g * channels : (g + 1) * channels] @ matrix.T
    return result


@dataclass
class Case:
    """A convolution to try: per-group channels and outputs, the input's spatial extents."""

    window: Window
    image: tuple[int, ...]
    channels: int
    outputs: int
    groups: int = 1
    epilogue: Epilogue | None = None
    fixed: bool = False
    images: int = 2


def window(
    kernel: Sequence[int], strides: Sequence[int] = (), dilations: Sequence[int] = (), pads: Sequence[int] = ()
) -> Window:
    ones = (1,) * len(kernel)
    return Window(
        tuple(kernel), tuple(strides) or ones, tuple(dilations) or ones, tuple(pads) or (0,) * 2 * len(kernel)
    )


SQUARE = window((3, 3), pads=(1, 1, 1, 1))
CASES = [
    *(Case(SQUARE, (5, 6), channels, 20) for channels in (1, 3, 5, 8, 17)),
    *(Case(SQUARE, (5, 6), 4, outputs) for outputs in (1, 15, 16, 33, 64)),
    *(Case(SQUARE, (h, 5), 4, 9, fixed=True) for h in (1, 2, 7)),
    Case(window((1, 1), strides=(2, 2)), (7, 8), 8, 12),
    Case(window((3, 2), (2, 1), (1, 3), (0, 2, 1, 1)), (9, 8), 5, 7, epilogue=BIAS_RELU),
    Case(window((3, 3), dilations=(2, 2), pads=(2, 2, 2, 2)), (6, 7), 8, 16, epilogue=RESIDUAL, fixed=True),
    Case(window((7, 7), (2, 2), pads=(3, 3, 3, 3)), (15, 40), 3, 10, epilogue=BIAS_RELU),
    Case(window((5,), (2,), pads=(4, 0)), (23,), 6, 8, epilogue=RESIDUAL),
    Case(window((2, 3, 2), (1, 2, 1), pads=(1, 0, 1, 0, 1, 1)), (3, 6, 4), 5, 6),
    Case(SQUARE, (6, 5), 8, 5, groups=3, epilogue=BIAS_RELU),
    Case(window((3, 3), (2, 2), pads=(1, 1, 0, 0)), (8, 8), 2, 3, groups=4, epilogue=RESIDUAL, fixed=True),
    Case(window((5, 5), pads=(4, 4, 4, 4)), (3, 2), 3, 4),
]


@dataclass
class Prepared:
    run: Run
    output: Array
    expected: Array
    bound: Array
    case: Case


def prepare(target: Target, case: Case, rng: np.random.Generator, layout: str, number: int) -> Prepared:
    """A run of one case. Input and output are parts of wider rows, and the panels and blocks change with `number`."""
    groups, rank = case.groups, case.window.rank
    extents = case.window.extents(case.image)
    all_channels, all_outputs = groups * case.channels, groups * case.outputs
    whole = random(rng, case.images, *case.image, all_channels + 2)
    x = whole[..., :all_channels]
    weights = random(rng, all_outputs, case.channels, *case.window.kernel)
    output = unused(case.images, *extents, all_outputs + 1)
    settings: dict[str, Any] = {
        "window": case.window, "channels": case.channels, "outputs": case.outputs, "groups": groups,
        "extents": extents if case.fixed else None, "mr": (5, 3)[number % 2], "nv": (2, 1)[number % 2],
        "m_block": (10, 9, 8)[number % 3], "panels": 1 + number % 2, "epilogue": case.epilogue,
    }  # fmt: skip
    strides = [s // 4 for s in whole.strides]
    spec: Convolution
    words: dict[str, Any] = {"x": whole}
    if layout == "direct":
        spec = Conv(**settings)
        words["zero"] = np.zeros(case.channels, np.float32)
    elif layout == "last":
        # A pixel's channels lie side by side in a dense input; here the first case of each pair is not dense.
        dense = number % 2 == 1
        words["x"] = memory = x.copy() if dense else whole
        strides = [s // 4 for s in memory.strides]
        spec = ConvIm2col(**settings, pixel_stride=strides[-2] if dense else None)
    else:
        words["x"] = memory = np.moveaxis(x, -1, 1).copy()
        strides = [s // 4 for s in memory.strides]
        strides.append(strides.pop(1))
        spec = ConvIm2col(**settings, channels_last=False, pixel_stride=1 if number % 2 else None)
        words["x_c"] = strides[-1]
    words |= {"w": pack_conv_weights(weights, groups, spec.width(target), layout == "first"), "c": output}
    words |= {"x_n": strides[0], "ldc": all_outputs + 1, "c_n": output[0].size}
    words |= {f"x_s{i}": strides[1 + i] for i in range(rank)}
    words |= {f"in{i}": case.image[i] for i in range(rank)}
    if not case.fixed:
        words |= {f"out{i}": extents[i] for i in range(rank)}
    if isinstance(spec, ConvIm2col) and spec.pixel_stride is not None:
        del words[f"x_s{rank - 1}"]
    exact = convolve(x.astype(np.float64), weights.astype(np.float64), case.window, groups)
    bound = 1e-5 * (convolve(np.abs(x).astype(np.float64), np.abs(weights).astype(np.float64), case.window, groups) + 1)
    if case.epilogue is BIAS_RELU:
        words["e0"] = bias = random(rng, all_outputs)
        exact = np.maximum(exact + bias, 0)
    elif case.epilogue is RESIDUAL:
        words["e0"] = residual = random(rng, case.images, *extents, all_outputs)
        words |= {"e0_s": all_outputs, "e0_n": residual[0].size}
        exact = exact + residual
    if target.runs_on(host_target()):
        words["x"] = guarded(words["x"], front=number % 4 < 2)
    run = Run(spec, words, spec.tiles(target, prod(extents), case.images), calls=2)
    return Prepared(run, output, exact, bound, case)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layout", ["direct", "last", "first"])
def test_convolutions(target: Target, layout: str) -> None:
    rng = np.random.default_rng(0)
    prepared = [prepare(target, case, rng, layout, n) for n, case in enumerate([*CASES, *CASES[1:]])]
    assert not any(run_kernels(target, [p.run for p in prepared]))
    for p in prepared:
        got = p.output[..., :-1]
        assert not np.isnan(got).any(), p.case
        assert (np.abs(got - p.expected) <= p.bound).all(), p.case
        assert np.isnan(p.output[..., -1]).all(), p.case


@pytest.mark.parametrize("step", [-3, 0], ids=["mirrored", "repeated"])
@pytest.mark.parametrize("target", TARGETS)
def test_gathered_pixels_may_lie_before_each_other(target: Target, step: int) -> None:
    """A Slice from the end and an Expand are views: what follows a pixel in memory is not its neighbour."""
    rng = np.random.default_rng(0)
    memory = random(rng, 29 if step else 1, 3)
    if target.runs_on(host_target()):
        memory = guarded(memory)
    # The array whose address is given is the first pixel, the last one in memory.
    spec = ConvIm2col(window((1,)), 3, 13, extents=(29,), mr=2, m_block=9)
    weights = random(rng, 13, 3, 1)
    output = unused(1, 29, 13)
    words = {
        "x": memory[-1:], "x_n": 0, "x_s0": step, "in0": 29, "w": pack_conv_weights(weights, 1, spec.width(target)),
        "c": output, "ldc": 13, "c_n": output.size,
    }  # fmt: skip
    assert not any(run_kernels(target, [Run(spec, words, spec.tiles(target, 29, 1), calls=2)]))
    seen = memory[::-1] if step else np.repeat(memory, 29, 0)
    np.testing.assert_allclose(output[0], seen @ weights[..., 0].T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("nv", [1, 2, 3])
@pytest.mark.parametrize("target", TARGETS)
def test_winograd_from_taps(target: Target, nv: int) -> None:
    """Panels of any width, of which AVX2's and NEON's need not be whole cache lines."""
    rng = np.random.default_rng(0)
    depth = target.lanes(FLOAT32)
    channels = 2 * depth
    spec = Winograd(channels, 19, mr=4, nv=nv, block=6, panels=2, depth=depth)
    x, weights, output = random(rng, 1, 7, 6, channels), random(rng, 19, channels, 3, 3), unused(1, 7, 6, 19)
    words: dict[str, Any] = {
        "x": x, "zero": np.zeros(channels, np.float32), "x_n": x.size, "x_s0": 6 * channels, "x_s1": channels,
        "in0": 7, "in1": 6, "out0": 7, "out1": 6, "images": 1,
        "w": pack_tap_weights(weights, spec.width(target), depth), "c": output, "ldc": 19, "c_n": output.size,
    }  # fmt: skip
    assert not any(run_kernels(target, [Run(spec, words, spec.tiles(target, (7, 6), 1), calls=2)]))
    expected = convolve(x.astype(np.float64), weights.astype(np.float64), SQUARE, 1)
    np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-3)


def test_order_of_packed_weights() -> None:
    weights = np.arange(2 * 3 * 2, dtype=np.float32).reshape(2, 3, 2)
    assert pack_conv_weights(weights, 1, 2)[0, 0].reshape(2, 3, 2)[1, 2].tolist() == [
        weights[0, 2, 1],
        weights[1, 2, 1],
    ]
    first = pack_conv_weights(weights, 1, 2, channels_first=True)
    assert first[0, 0].reshape(3, 2, 2)[2, 1].tolist() == [weights[0, 2, 1], weights[1, 2, 1]]
    grouped = pack_conv_weights(weights, 2, 4)
    assert grouped.shape == (2, 1, 6, 4)
    assert grouped[1, 0, 0].tolist() == [weights[1, 0, 0], 0, 0, 0]
