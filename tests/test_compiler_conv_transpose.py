"""Lowering of transposed convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

import whet
from tests.compiled_nodes import FLOATS, check, close, compiled, random_array, single_node, steps

IMAGES: dict[int, tuple[int, ...]] = {1: (23,), 2: (7, 9), 3: (3, 5, 4)}
KERNELS: dict[int, tuple[int, ...]] = {1: (4,), 2: (3, 4), 3: (2, 3, 3)}


def weights_of(rng: np.random.Generator, channels: int, outputs: int, kernel: tuple[int, ...]) -> Any:
    return (random_array(rng, (channels, outputs, *kernel), np.float32) / np.sqrt(channels)).astype(np.float32)


@pytest.mark.parametrize("space", [1, 2, 3])
def test_windows(space: int) -> None:
    rng = np.random.default_rng(space)
    x = random_array(rng, (2, 6, *IMAGES[space]), np.float32)
    last = (0, *range(2, space + 2), 1)
    for number, options in enumerate(
        [
            {},
            {"strides": [2] * space},
            {"strides": [2] * space, "pads": [1] * (2 * space), "output_padding": [1] * space},
            {"strides": [3] * space, "dilations": [2] * space},
            {"strides": [4] * space, "dilations": [6] * space},
            {"strides": [2] * space, "dilations": [4] * space, "pads": [0] * space + [2] * space},
            {"strides": [5] * space, "output_padding": [3] * space},
            {"auto_pad": "SAME_UPPER", "strides": [2] * space},
            {"auto_pad": "SAME_LOWER", "strides": [3] * space},
            {"auto_pad": "VALID", "strides": [2] * space},
            {"output_shape": [2 * e + 1 for e in IMAGES[space]], "strides": [2] * space},
            {"group": 2, "strides": [2] * space},
        ]
    ):
        for outputs in (1, 19, 70):
            w = weights_of(rng, 6, outputs, KERNELS[space])
            for constant in (["w", "b"], []):
                b = random_array(rng, (outputs * options.get("group", 1),), np.float32)
                order = last if number % 2 else None
                model, feeds = single_node(
                    "ConvTranspose", {"x": x, "w": w, "b": b}, order=order, constant=constant,
                    symbolic="output_shape" not in options and number % 3 == 0, **options,
                )  # fmt: skip
                check(model, feeds, 1e-5)


@pytest.mark.parametrize("space", [1, 2, 3])
def test_channels_by_themselves(space: int) -> None:
    rng = np.random.default_rng(7)
    kernel = KERNELS[space]
    for channels in (2, 16, 83):
        x, w = random_array(rng, (2, channels, *IMAGES[space]), np.float32), weights_of(rng, channels, 1, kernel)
        for constant in (["w"], []):
            model, feeds = single_node(
                "ConvTranspose", {"x": x, "w": w}, constant=constant, group=channels, strides=[2] * space,
                pads=[1] * (2 * space),
            )  # fmt: skip
            check(model, feeds)
            assert "gemm" not in steps(model)


@pytest.mark.parametrize("kernel", [2, 4])
def test_windows_side_by_side(kernel: int) -> None:
    """Strides as large as the window: no two taps meet."""
    rng = np.random.default_rng(8)
    for outputs in (3, 16, 40):
        x, w = random_array(rng, (2, 24, 5, 9), np.float32), weights_of(rng, 24, outputs, (kernel, kernel))
        b = random_array(rng, (outputs,), np.float32)
        for order in (None, (0, 2, 3, 1)):
            for symbolic in (False, True):
                model, feeds = single_node(
                    "ConvTranspose", {"x": x, "w": w, "b": b}, order=order, constant=["w", "b"], symbolic=symbolic,
                    strides=[kernel, kernel],
                )  # fmt: skip
                check(model, feeds, 1e-5)
            model, feeds = single_node(
                "ConvTranspose", {"x": x, "w": w, "b": b}, order=order, behind=[("Relu", ["y"]), ("Mul", ["y", "y"])],
                strides=[kernel, kernel],
            )  # fmt: skip
            check(model, feeds, 1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
def test_types(dtype: Any) -> None:
    rng = np.random.default_rng(9)
    x, w = random_array(rng, (1, 8, 5, 6), dtype), random_array(rng, (8, 17, 3, 3), dtype)
    for strides in ([2, 2], [3, 3]):
        check(*single_node("ConvTranspose", {"x": x, "w": w}, constant=["w"], strides=strides))


def test_one_program_for_many_extents() -> None:
    rng = np.random.default_rng(10)
    w = weights_of(rng, 8, 12, (3, 2))
    for options in ({"strides": [2, 3]}, {"strides": [2, 2], "output_shape": [15, 17]}, {"strides": [3, 2]}):
        x = random_array(rng, (1, 8, 7, 8), np.float32)
        model, feeds = single_node("ConvTranspose", {"x": x, "w": w}, constant=["w"], symbolic=True, **options)
        session = compiled(model)
        reference = whet.InferenceSession(model, providers=["ReferenceExecutionProvider"])
        for shape in ((1, 8, 7, 8), (3, 8, 6, 7), (1, 8, 1, 1)):
            feeds = {"x": random_array(rng, shape, np.float32)}
            close(session.run(None, feeds)[0], reference.run(None, feeds)[0], 1e-5)


def test_against_onnxruntime() -> None:
    rng = np.random.default_rng(11)
    x, w = random_array(rng, (2, 32, 9, 11), np.float32), weights_of(rng, 32, 24, (4, 4))
    for options in ({"strides": [2, 2], "pads": [1] * 4}, {"strides": [3, 2], "output_padding": [2, 1], "group": 2}):
        model, feeds = single_node("ConvTranspose", {"x": x, "w": w}, constant=["w"], **options)
        expected = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        close(compiled(model).run(None, feeds)[0], expected, 1e-5)
