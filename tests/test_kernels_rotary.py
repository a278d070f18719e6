"""Rotary embedding kernels against the definition in float64.

Tolerance: 4 units in the last place of the type at the magnitude of the operands (two products and a sum, all near 1).
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_tools import Run, code_and_element, run_kernel, run_kernels
from whet.codegen.target import AVX2, AVX512, Target
from whet.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64
from whet.kernels.base import INDEX_OUT_OF_BOUNDS
from whet.kernels.rotary import Positions, RotaryEmbedding

Array = np.ndarray[Any, Any]
BATCH, HEADS, ROWS, CACHE_ROWS = 2, 3, 5, 11
TOLERANCE = {np.float32: 1e-6, np.float64: 4e-15, np.float16: 8e-3, ml_dtypes.bfloat16: 6e-2}


def operands(spec: RotaryEmbedding, merged: bool) -> dict[str, Any]:
    """Words of a kernel: heads as views of [batch, rows, heads * head] if `merged`."""
    rng = np.random.default_rng(spec.half)
    kind = spec.dtype.numpy
    if merged:
        x = rng.standard_normal((BATCH, ROWS, HEADS, spec.head)).astype(kind).transpose(0, 2, 1, 3)
        y = np.full((BATCH, ROWS, HEADS, spec.head), np.nan, kind).transpose(0, 2, 1, 3)
    else:
        x = rng.standard_normal((BATCH, HEADS, ROWS, spec.head)).astype(kind)
        y = np.full((BATCH, HEADS, ROWS, spec.head), np.nan, kind)
    words: dict[str, Any] = {"x": x, "y": y, "heads": HEADS, "rows": ROWS, "cache_row": spec.half}
    for name in "xy":
        for axis, part in enumerate(("batch", "head", "row")):
            words[f"{name}_{part}"] = words[name].strides[axis] // x.itemsize
    shape = (BATCH, ROWS, spec.half) if spec.positions == "rows" else (CACHE_ROWS, spec.half)
    angles = rng.uniform(-3, 3, shape)
    words |= {"cos": np.cos(angles).astype(kind), "sin": np.sin(angles).astype(kind)}
    if spec.positions == "rows":
        words["cache_batch"] = ROWS * spec.half
        return words
    words["cache_rows"] = CACHE_ROWS
    if spec.positions == "first":
        words["position_ids"] = np.array([CACHE_ROWS - ROWS], np.int64)
        return words
    low = -CACHE_ROWS if spec.from_end else 0
    ids = rng.integers(low, CACHE_ROWS, (BATCH, ROWS))
    ids[0, :2] = low, CACHE_ROWS - 1
    return words | {"position_ids": ids, "ids_batch": ROWS, "ids_row": 1}


def expected(spec: RotaryEmbedding, words: dict[str, Any]) -> Array:
    """The definition, in float64."""
    x, cos, sin = (words[name].astype(np.float64) for name in ("x", "cos", "sin"))
    if spec.positions == "ids":
        cos, sin = cos[words["position_ids"]], sin[words["position_ids"]]
    elif spec.positions == "first":
        start = int(words["position_ids"][0])
        cos, sin = (np.tile(cache[start : start + ROWS], (BATCH, 1, 1)) for cache in (cos, sin))
    cos, sin = cos[:, None], sin[:, None]
    end = 2 * spec.half
    first, second = (slice(0, end, 2), slice(1, end, 2)) if spec.interleaved else (
        slice(0, spec.half), slice(spec.half, end)
    )  # fmt: skip
    result = x.copy()
    result[..., first] = x[..., first] * cos - x[..., second] * sin
    result[..., second] = x[..., first] * sin + x[..., second] * cos
    return result


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_every_form(target: Target, interleaved: bool) -> None:
    forms: list[tuple[Positions, bool]] = [("rows", False), ("ids", False), ("ids", True), ("first", False)]
    runs, specs = [], []
    for dtype in (FLOAT32, FLOAT64, FLOAT16, BFLOAT16):
        for number, (head, half) in enumerate([(2, 1), (7, 3), (8, 4), (64, 32), (41, 19), (80, 20), (3, 0)]):
            positions, from_end = forms[number % len(forms)]
            spec = RotaryEmbedding(dtype, head, half, interleaved, positions, from_end)
            specs.append(spec)
            runs.append(Run(spec, operands(spec, merged=number % 2 == 0), BATCH * ROWS, 1 + number % 3))
    assert run_kernels(target, runs) == [0] * len(runs)
    for spec, run in zip(specs, runs, strict=True):
        words: dict[str, Any] = dict(run.words)
        tolerance = TOLERANCE[spec.dtype.numpy.type]
        np.testing.assert_allclose(words["y"].astype(np.float64), expected(spec, words), rtol=0, atol=4 * tolerance)


@pytest.mark.parametrize("target", [AVX512, AVX2], ids=["avx512", "avx2"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_in_place(target: Target, interleaved: bool) -> None:
    spec = RotaryEmbedding(FLOAT32, 40, 19, interleaved)
    words = operands(spec, merged=True)
    want = expected(spec, words)
    words |= {"y": words["x"]}
    assert run_kernel(target, spec, words, BATCH * ROWS) == 0
    np.testing.assert_allclose(words["x"], want, rtol=0, atol=4e-6)


@pytest.mark.parametrize(
    ("positions", "from_end", "place", "bad", "element"),
    [
        ("ids", False, (1, 3), CACHE_ROWS, 8),
        ("ids", False, (0, 4), -1, 4),
        ("ids", True, (1, 0), -CACHE_ROWS - 1, 5),
        ("ids", True, (0, 0), 2**63 - 1, 0),
        ("ids", True, (0, 0), -(2**63), 0),
        ("first", False, (0,), CACHE_ROWS - ROWS + 1, ROWS - 1),
        ("first", False, (0,), 2**63 - 1, 0),
        ("first", False, (0,), -1, 0),
    ],
)
def test_positions_are_checked(
    positions: Positions, from_end: bool, place: tuple[int, ...], bad: int, element: int
) -> None:
    spec = RotaryEmbedding(FLOAT32, 8, 4, False, positions, from_end)
    words = operands(spec, merged=False)
    words["position_ids"][place] = bad
    status = run_kernel(AVX2, spec, words, BATCH * ROWS)
    assert code_and_element(status) == (INDEX_OUT_OF_BOUNDS, element)
