"""Hyperbolic and inverse functions, and the circular functions and powers of float64, swept over all exponents.

float32 is compared with numpy's float64, float64 with numpy's long double where that has at least 64 bits of fraction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.codegen_tools import TARGETS, Call, elementwise, run
from whet.codegen.target import AVX512, NEON, Target
from whet.codegen.vecmath import double, hyperbolic, inverse
from whet.dtypes import FLOAT32, FLOAT64, DType

Array = np.ndarray[Any, Any]
Function = Callable[..., Any]

needs_long_double = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="long double is no wider")

# name: (function, reference, ULP that the docstring promises for float32 and for float64; None: not for this type)
FUNCTIONS: dict[str, tuple[Function, Function, float | None, float | None]] = {
    "expm1": (hyperbolic.expm1, np.expm1, 3.0, 3.0),
    "sinh": (hyperbolic.sinh, np.sinh, 4.0, 4.0),
    "cosh": (hyperbolic.cosh, np.cosh, 4.0, 4.0),
    "asinh": (hyperbolic.asinh, np.arcsinh, 4.0, 4.0),
    "acosh": (hyperbolic.acosh, np.arccosh, 4.0, 4.0),
    "atanh": (hyperbolic.atanh, np.arctanh, 4.0, 4.0),
    "atan": (inverse.atan, np.arctan, 2.0, 2.0),
    "asin": (inverse.asin, np.arcsin, 4.0, 4.0),
    "acos": (inverse.acos, np.arccos, 4.0, 4.0),
    "tan": (inverse.tan, np.tan, 5.0, None),
    "sin64": (double.sin, np.sin, None, 1.0),
    "cos64": (double.cos, np.cos, None, 1.0),
    "tan64": (double.tan, np.tan, None, 2.0),
}

_PLACES = [0.0, 1e-38, 0.25, 0.35, 0.41421356, 0.5, 0.625, 0.7853982, 1.0, 1.4142135, 1.5707964, 2.0, 2.4142135,
           3.1415927, 9.0, 22.0, 25.0, 45.0, 88.72, 89.4, 709.78, 710.4, 8192.0, 32768.0, 1048576.0, 268435456.0,
           np.inf, np.nan]  # fmt: skip


def sweep(dtype: Any, count: int) -> Array:
    """Numbers of every exponent and sign, many about 1, and all beside the places where something changes."""
    rng = np.random.default_rng(3)
    words = np.uint32 if dtype == np.float32 else np.uint64
    whole = rng.integers(0, np.iinfo(words).max, count, words).view(dtype)
    middle = (rng.standard_normal(count) * 10 ** rng.uniform(-6, 2, count)).astype(dtype)
    small = rng.uniform(-1.1, 1.1, count).astype(dtype)
    places = np.array(_PLACES, np.float64).astype(dtype).view(words)
    near = (places[:, None] + np.arange(-30, 31).astype(words)).reshape(-1).view(dtype)
    # Close to multiples of pi/2, and the float64 that is closest of all.
    turns = (np.arange(1, 400) * (math.pi / 2)).astype(dtype)
    hard = np.array([6381956970095103 * 2.0**797]).astype(dtype) if dtype == np.float64 else np.zeros(1, dtype)
    x = np.concatenate([whole, middle, small, near, turns, hard])
    x = np.concatenate([x, -x])
    return np.resize(x, -(-len(x) // 16) * 16)


def error_ulp(found: Array, exact: Array) -> Array:
    """Distance in units of the exact result's spacing; 0 for equal infinities and NaN beside NaN."""
    with np.errstate(all="ignore"):
        nearest = exact.astype(found.dtype)
        info = np.finfo(found.dtype)
        spacing = np.spacing(np.minimum(np.abs(nearest), info.max)).astype(exact.dtype)
        error = np.abs(found.astype(exact.dtype) - exact) / spacing
    agree = ((found == nearest) & ~np.isfinite(nearest)) | (np.isnan(found) & np.isnan(exact))
    return np.where(agree, 0.0, np.where(np.isnan(error), np.inf, error))


def results(target: Target, functions: dict[str, Function], dtype: DType, arguments: list[Array]) -> list[Array]:
    """Each function of the arguments."""
    calls = [Call(name, [*arguments, np.zeros_like(arguments[0]), len(arguments[0])]) for name in functions]
    kinds = {name: [dtype] * (len(arguments) + 1) for name in functions}
    run(elementwise(target, functions, kinds, dict.fromkeys(functions, target.lanes(dtype))), calls)
    return [np.asarray(call.arguments[len(arguments)]) for call in calls]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        pytest.param(FLOAT32, np.float64, id="float32"),
        pytest.param(FLOAT64, np.longdouble, id="float64", marks=needs_long_double),
    ],
)
def test_over_the_whole_range(target: Target, dtype: DType, wide: Any) -> None:
    chosen = {name: row for name, row in FUNCTIONS.items() if row[2 if dtype is FLOAT32 else 3] is not None}
    x = sweep(dtype.numpy, 2_000 if target is NEON else 30_000)
    found = results(target, {name: row[0] for name, row in chosen.items()}, dtype, [x])
    for (name, row), y in zip(chosen.items(), found, strict=True):
        with np.errstate(all="ignore"):
            exact = row[1](x.astype(wide))
        error = error_ulp(y, exact)
        bound = row[2 if dtype is FLOAT32 else 3]
        worst = int(error.argmax())
        assert error[worst] <= bound, f"{name}({x[worst]!r}) = {y[worst]!r}, not {exact[worst]!r}: {error[worst]} ULP"
        assert error.max() > 0.45, f"{name}: the reference is not independent"
        zeros = exact == 0
        np.testing.assert_array_equal(np.signbit(y[zeros]), np.signbit(exact[zeros]), err_msg=name)


@pytest.mark.parametrize("target", TARGETS)
@needs_long_double
def test_pow_of_float64_over_all_kinds_of_pairs(target: Target) -> None:
    rng = np.random.default_rng(5)
    special = np.array([0.0, -0.0, 1, -1, 2, -2, 3, -3, 0.5, -0.5, 2.5, 1e9, 2.0**53 + 2, 1e300, 5e-324, np.inf,
                        -np.inf, np.nan])  # fmt: skip
    pairs = np.array(np.meshgrid(special, special)).reshape(2, -1)
    count = 1_000 if target is NEON else 20_000
    bases = np.exp2(rng.uniform(-1074, 1023, count))
    fitting = rng.uniform(-1074, 1024, count) / np.log2(bases)
    near_one = 1 + rng.standard_normal(count) * 10.0 ** rng.uniform(-15, -1, count)
    with np.errstate(divide="ignore"):
        large = rng.uniform(-1074, 1024, count) / np.log2(np.abs(near_one))
    whole = np.rint(rng.uniform(-40, 40, count))
    x = np.concatenate([pairs[0], bases, near_one, -np.exp2(rng.uniform(-20, 20, count))])
    y = np.concatenate([pairs[1], fitting, np.where(np.isfinite(large), large, 1), whole])
    padding = -len(x) % 16
    x, y = np.concatenate([x, np.ones(padding)]), np.concatenate([y, np.ones(padding)])
    (found,) = results(target, {"pow": double.pow}, FLOAT64, [x, y])
    with np.errstate(all="ignore"):
        exact = np.power(x.astype(np.longdouble), y.astype(np.longdouble))
    error = error_ulp(found, exact)
    worst = int(error.argmax())
    assert error[worst] <= 2.0, f"pow({x[worst]!r}, {y[worst]!r}) = {found[worst]!r}, not {exact[worst]!r}"
    with np.errstate(all="ignore"):
        zeros = exact.astype(np.float64) == 0
    np.testing.assert_array_equal(np.signbit(found[zeros]), np.signbit(exact[zeros]))


def test_every_target_gives_the_same_bits() -> None:
    for dtype in (FLOAT32, FLOAT64):
        column = 2 if dtype is FLOAT32 else 3
        functions = {name: row[0] for name, row in FUNCTIONS.items() if row[column] is not None}
        x = sweep(dtype.numpy, 500)
        first, second = (results(t, functions, dtype, [x]) for t in (AVX512, TARGETS[1].values[0]))
        for name, a, b in zip(functions, first, second, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
