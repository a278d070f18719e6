"""Pooling against loops over windows in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_cases import FLOATS, LENGTHS, Case, check, guarded, is_float, placed, poisoned, random_values, stride
from tests.kernel_tools import Array, run_kernel
from whet.codegen.lang import LanguageError
from whet.codegen.target import AVX2, AVX512, Target
from whet.dtypes import FLOAT16, FLOAT32, FLOAT64, INT8, INT64, UINT8, DType
from whet.kernels.base import build
from whet.kernels.pool import Pool, Window


def outputs(extents: Sequence[int], windows: Sequence[Window], ceil: bool) -> list[int]:
    """Extents of the result, as the standard computes them."""
    result = []
    for extent, w in zip(extents, windows, strict=True):
        span = extent + w.before + w.after - (w.size - 1) * w.dilation - 1
        count = (math.ceil(span / w.stride) if ceil else span // w.stride) + 1
        if ceil and (count - 1) * w.stride >= extent + w.before:
            count -= 1
        result.append(count)
    return result


def reference(spec: Pool, x: Array, extents: Sequence[int]) -> dict[str, Array]:
    """The pool of x[N, space..., C], element by element."""
    batch, *inputs, channels = x.shape
    values = x.astype(np.float64) if is_float(x.dtype) else x.astype(np.int64)
    result = np.zeros((batch, *extents, channels))
    where = np.full(result.shape, -1, np.int64)
    least = -np.inf if is_float(x.dtype) else np.iinfo(x.dtype).min
    order = inputs if spec.storage_order == 0 else inputs[::-1]
    for n, *at, c in itertools.product(*(range(e) for e in result.shape)):
        taps, padded = [], 0
        for tap in itertools.product(*(range(w.size) for w in spec.windows)):
            place = [o * w.stride - w.before + t * w.dilation for o, w, t in zip(at, spec.windows, tap, strict=True)]
            if all(0 <= p < e for p, e in zip(place, inputs, strict=True)):
                taps.append(place)
            ends = [e + w.after for e, w in zip(inputs, spec.windows, strict=True)]
            padded += all(p < end for p, end in zip(place, ends, strict=True))
        inside = np.array([values[(n, *p, c)] for p in taps])
        index = (n, *at, c)
        if spec.kind == "max":
            result[index] = inside.max() if len(inside) else least
            if spec.indices and len(inside):
                found = taps[int(inside.argmax())]
                flat = int(np.ravel_multi_index(found if spec.storage_order == 0 else found[::-1], order))
                where[index] = flat + (n * channels + c) * math.prod(inputs)
        elif spec.kind == "average":
            count = padded if spec.count_include_pad else len(taps)
            result[index] = inside.sum() / count if count else np.nan
        else:
            result[index] = (abs(inside) ** spec.p).sum() ** (1 / spec.p)
    return {"out": result, **({"indices": where} if spec.indices else {})}


def case(spec: Pool, x: Array, ceil: bool = False, tile: int = 2) -> Case:
    batch, *inputs, channels = x.shape
    extents = outputs(inputs, spec.windows, ceil)
    source = placed(x, spec.dtype, gap=3)
    out = poisoned((batch, *extents, channels), spec.out, gap=2)
    words: dict[str, Array | int] = {
        "x": source, "out": out, "batch": batch, "out_batch": stride(out, 0), "x_batch": stride(source, 0),
        "channels": channels, "tile": tile,
    }  # fmt: skip
    for i, (extent, output) in enumerate(zip(inputs, extents, strict=True)):
        words |= {f"input{i}": extent, f"output{i}": output}
        words |= {f"x_space{i}": stride(source, i + 1), f"out_space{i}": stride(out, i + 1)}
    if spec.indices:
        words["indices"] = poisoned((batch, *extents, channels), INT64, gap=2)
    tiles = batch * math.prod(extents[:-1]) * -(-extents[-1] // tile)
    expected = reference(spec, source, extents)
    if not is_float(source.dtype):
        expected["out"] = expected["out"].astype(source.dtype)
    return Case(spec, words, tiles, expected, rtol=1e-5, atol=1e-6, label=(x.shape, extents))


SHAPES: list[tuple[tuple[int, ...], tuple[Window, ...], bool]] = [
    ((1, 9, 5), (Window(3),), False),
    ((2, 9, 5), (Window(3, 2, 1, 1, 1),), False),
    ((1, 10, 3), (Window(2, 3, 3, 1, 0),), True),
    ((2, 6, 7, 3), (Window(3, 2, 1, 1, 1), Window(3, 2, 1, 1, 1)), False),
    ((1, 5, 6, 4), (Window(3, 2, 1, 0, 2), Window(2, 3, 2, 2, 1)), True),
    ((1, 4, 4, 2), (Window(5, 4, 1, 4, 4), Window(1)), False),
    ((1, 7, 7, 3), (Window(7), Window(7)), False),
    ((1, 3, 4, 5, 2), (Window(2), Window(2, 2, 1, 1, 0), Window(3, 2, 1, 1, 1)), True),
]
"""Shapes of x as (N, space..., C), windows, ceil_mode."""


def variants(dtype: DType) -> list[dict[str, Any]]:
    if dtype.is_integer:
        return [{"kind": "max"}, {"kind": "max", "indices": True}]
    return [
        {"kind": "max"}, {"kind": "max", "indices": True}, {"kind": "max", "indices": True, "storage_order": 1},
        {"kind": "average"}, {"kind": "average", "count_include_pad": True}, {"kind": "lp", "p": 1}, {"kind": "lp"},
        {"kind": "lp", "p": 3},
    ]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_windows(target: Target, number: int) -> None:
    shape, windows, ceil = SHAPES[number]
    rng = np.random.default_rng(number)
    cases = []
    for dtype in (FLOAT32, FLOAT64, FLOAT16, INT8, UINT8) if number in (3, 4) else (FLOAT32,):
        for variant in variants(dtype):
            spec = Pool(dtype=dtype, out=dtype, windows=windows, **variant)
            # Few different values, so that maxima have ties.
            x = rng.integers(0, 6, shape) if variant.get("indices") else random_values(rng, shape, dtype)
            cases.append(case(spec, x, ceil))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_every_remainder_of_channels(target: Target) -> None:
    rng = np.random.default_rng(1)
    windows = (Window(2, 1, 1, 1, 0),)
    cases = []
    for channels in LENGTHS:
        x = rng.standard_normal((1, 3, channels))
        cases.append(case(Pool("average", FLOAT32, FLOAT32, windows), x))
        cases.append(case(Pool("max", FLOAT32, FLOAT32, windows, indices=True), x))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_nan(target: Target) -> None:
    """A maximum is NaN where the window holds one; with positions, NaN wins only where it comes first."""
    nan = np.nan
    x = np.array([nan, 1, 2, nan, 3, nan, nan, 0, -np.inf]).reshape(1, -1, 1).repeat(20, axis=2)
    for dtype in FLOATS:
        plain = case(Pool("max", dtype, dtype, (Window(2),)), x)
        positions = case(Pool("max", dtype, dtype, (Window(2),), indices=True), x)
        expected = [nan, 2, 2, nan, 3, nan, nan, 0]
        positions.expected = {
            "out": np.array(expected).reshape(1, -1, 1).repeat(20, axis=2),
            "indices": np.array([0, 2, 2, 3, 4, 5, 6, 7]).reshape(1, -1, 1) + 9 * np.arange(20),
        }
        check(target, [plain, positions])


@pytest.mark.parametrize("target", [AVX512, AVX2], ids=["avx512", "avx2"])
def test_nothing_behind_the_end_is_read(target: Target) -> None:
    for channels in (1, 15, 17, 70):
        x = guarded(np.ones((1, 5, channels), np.float32))
        out = guarded(np.zeros((1, 3, channels), np.float32))
        words: dict[str, Array | int] = {
            "x": x, "out": out, "batch": 1, "out_batch": 0, "x_batch": 0, "channels": channels, "tile": 3, "input0": 5,
            "output0": 3, "x_space0": channels, "out_space0": channels,
        }  # fmt: skip
        run_kernel(target, Pool("average", FLOAT32, FLOAT32, (Window(3, 2, 1, 1, 1),)), words, 1)
        np.testing.assert_array_equal(out, 1)


def test_only_maxima_have_positions() -> None:
    with pytest.raises(LanguageError, match="positions"):
        build(Pool("average", FLOAT32, FLOAT32, (Window(2),), indices=True), AVX2)
