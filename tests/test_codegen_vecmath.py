"""Vector mathematics swept over all exponents against float64 and, for float64, against decimal arithmetic."""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.codegen_tools import TARGETS, Call, elementwise, run
from whet.codegen import vecmath
from whet.codegen.target import AVX512, NEON, Target
from whet.dtypes import FLOAT32, FLOAT64

Array = np.ndarray[Any, Any]

_erf = np.vectorize(math.erf, otypes=[float])


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


# name: (reference in float64, ULP that the docstring promises for float32)
SINGLE: dict[str, tuple[Callable[[Array], Array], float]] = {
    "exp": (np.exp, 1.1),
    "exp2": (np.exp2, 1.0),
    "log": (np.log, 1.0),
    "log2": (np.log2, 2.0),
    "log1p": (np.log1p, 2.0),
    "sin": (np.sin, 2.0),
    "cos": (np.cos, 2.0),
    "tanh": (np.tanh, 2.5),
    "erf": (_erf, 6.0),
    "sigmoid": (_sigmoid, 3.5),
    "softplus": (lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))), 3.0),
    "silu": (lambda x: x * _sigmoid(x), 4.0),
    "reciprocal_sqrt": (lambda x: 1 / np.sqrt(x), 1.5),
}


def _sweep(stride: int) -> Array:
    """Every `stride`-th float32, and all of them beside the places where something changes."""
    everything = np.arange(0, 2**32, stride, dtype=np.uint64).astype(np.uint32)
    places = np.array([0, 1e-38, 1.2e-38, 0.35, 0.5, 0.625, 0.70710677, 1, 1.4142135, 1.5707964, 2, 3.92, 3.1415927,
                       4, 9.01, 9.98, 16, 17.3, 87, 87.33, 88.72, 89, 103.97, 104, 127.5, 128, 149, 150, 151, 32768,
                       8388608, 2147483648, 3.4028235e38, np.inf,
                       # nearest of all float32 to a multiple of pi/2
                       16367173 * 2.0**72], np.float32)  # fmt: skip
    near = (places.view(np.int32)[:, None] + np.arange(-64, 65)).astype(np.int64)
    near = near[near >= 0].astype(np.uint32)
    bits = np.concatenate([everything, near, near | np.uint32(1 << 31)])
    return np.resize(bits, -(-len(bits) // 16) * 16).view(np.float32)


def _error_ulp(found: Array, exact: Array) -> Array:
    """Distance in units of the exact result's own spacing; 0 for equal infinities and NaN beside NaN."""
    with np.errstate(all="ignore"):
        nearest = exact.astype(found.dtype)
        largest = np.finfo(found.dtype).max
        spacing = np.spacing(np.minimum(np.abs(nearest), largest)).astype(np.float64)
        error = np.abs(found.astype(np.float64) - exact) / spacing
    agree = (found == nearest) & ~np.isfinite(exact) | (np.isnan(found) & np.isnan(exact))
    # Past the largest float, infinity is the exact result rounded.
    agree |= (found == nearest) & np.isinf(found)
    return np.where(agree, 0.0, np.where(np.isnan(error), np.inf, error))


@pytest.mark.parametrize("target", TARGETS)
def test_float32_over_its_whole_range(target: Target) -> None:
    x = _sweep(400_009 if target is NEON else 16_411)
    calls = [Call(name, [x, np.zeros_like(x), len(x)]) for name in SINGLE]
    functions = {name: getattr(vecmath, name) for name in SINGLE}
    kinds = {name: [FLOAT32, FLOAT32] for name in SINGLE}
    run(elementwise(target, functions, kinds, dict.fromkeys(SINGLE, target.lanes(FLOAT32))), calls)
    for call, (name, (reference, bound)) in zip(calls, SINGLE.items(), strict=True):
        with np.errstate(all="ignore"):
            exact = reference(x.astype(np.float64))
        error = _error_ulp(call.arguments[1], exact)
        if name == "silu":
            far = x < -30
            assert error[far & (x >= -87)].max() <= 6
            assert (call.arguments[1][x < -87] == call.arguments[1][x == -87][0]).all()
            error[far] = 0
        worst = int(error.argmax())
        assert error[worst] <= bound, f"{name}({x[worst]!r}) = {call.arguments[1][worst]!r}, not {exact[worst]!r}"
        assert error.max() > 0.5, f"{name}: the reference is not independent"


# name: pairs of argument and result
SPECIAL: dict[str, list[tuple[float, float]]] = {
    "exp": [
        (0.0, 1),
        (-0.0, 1),
        (math.inf, math.inf),
        (-math.inf, 0),
        (1000.0, math.inf),
        (-1000.0, 0),
        (math.nan, math.nan),
    ],
    "exp2": [
        (0.0, 1),
        (-149.0, 2.0**-149),
        (127.0, 2.0**127),
        (math.inf, math.inf),
        (-math.inf, 0),
        (math.nan, math.nan),
    ],
    "log": [
        (0.0, -math.inf),
        (-0.0, -math.inf),
        (1.0, 0),
        (-1.0, math.nan),
        (math.inf, math.inf),
        (-math.inf, math.nan),
    ],
    "log2": [
        (0.0, -math.inf),
        (8.0, 3),
        (2.0**-149, -149),
        (math.inf, math.inf),
        (-1.0, math.nan),
        (math.nan, math.nan),
    ],
    "log1p": [(-1.0, -math.inf), (0.0, 0), (math.inf, math.inf), (-2.0, math.nan), (math.nan, math.nan)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (math.inf, math.nan), (-math.inf, math.nan), (math.nan, math.nan)],
    "cos": [(0.0, 1), (math.inf, math.nan), (math.nan, math.nan)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (math.inf, 1), (-math.inf, -1), (math.nan, math.nan)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (math.inf, 1), (-math.inf, -1), (math.nan, math.nan)],
    "sigmoid": [(0.0, 0.5), (math.inf, 1), (-math.inf, 0), (math.nan, math.nan)],
    "softplus": [(math.inf, math.inf), (-math.inf, 0), (math.nan, math.nan)],
    "silu": [(math.inf, math.inf), (-math.inf, -1.43185627725588e-36), (-0.0, -0.0), (math.nan, math.nan)],
    "gelu": [
        (math.inf, math.inf),
        (1e30, 1e30),
        (-1e30, -0.0),
        (-math.inf, -0.0),
        (0.0, 0),
        (-0.0, -0.0),
        (math.nan, math.nan),
    ],
    "reciprocal_sqrt": [(0.0, math.inf), (-0.0, -math.inf), (-1.0, math.nan), (math.inf, 0), (math.nan, math.nan)],
}


@pytest.mark.parametrize("target", TARGETS)
def test_special_values(target: Target) -> None:
    calls = []
    for name, table in SPECIAL.items():
        x = np.resize(np.array([x for x, _ in table], np.float32), 16)
        calls.append(Call(name, [x, np.zeros_like(x), 16]))
    functions = {name: getattr(vecmath, name) for name in SPECIAL}
    kinds = {name: [FLOAT32, FLOAT32] for name in SPECIAL}
    run(elementwise(target, functions, kinds, dict.fromkeys(SPECIAL, 16)), calls)
    for call, (name, table) in zip(calls, SPECIAL.items(), strict=True):
        want = np.resize(np.array([y for _, y in table], np.float32), 16)
        np.testing.assert_array_equal(call.arguments[1], want, err_msg=name)
        numbers = ~np.isnan(want)
        np.testing.assert_array_equal(np.signbit(call.arguments[1][numbers]), np.signbit(want[numbers]), err_msg=name)


@pytest.mark.parametrize("target", TARGETS)
def test_pow_over_all_kinds_of_pairs(target: Target) -> None:
    rng = np.random.default_rng(5)
    special = np.array([0.0, -0.0, 1, -1, 2, -2, 3, -3, 0.5, -0.5, 2.5, 1e9, 1e10, 16777217, np.inf, -np.inf, np.nan],
                       np.float32)  # fmt: skip
    pairs = np.array(np.meshgrid(special, special)).reshape(2, -1)
    count = 20_000
    bases = np.exp2(rng.uniform(-149, 128, count)).astype(np.float32)
    exponents = (rng.normal(0, 1, count) * 10 ** rng.uniform(-3, 2, count)).astype(np.float32)
    whole = np.rint(rng.uniform(-40, 40, count)).astype(np.float32)
    x = np.concatenate([pairs[0], bases, -bases, rng.uniform(0.9, 1.1, count).astype(np.float32)])
    y = np.concatenate([pairs[1], exponents, whole, exponents * 50])
    length = len(x) // 16 * 16
    x, y = x[:length].copy(), y[:length].copy()
    out = np.zeros_like(x)
    run(
        elementwise(target, {"pow": vecmath.pow}, {"pow": [FLOAT32] * 3}, {"pow": 16}),
        [Call("pow", [x, y, out, length])],
    )
    with np.errstate(all="ignore"):
        exact = np.power(x.astype(np.float64), y.astype(np.float64))
    error = _error_ulp(out, exact)
    worst = int(error.argmax())
    assert error[worst] <= 0.51, f"pow({x[worst]!r}, {y[worst]!r}) = {out[worst]!r}, not {exact[worst]!r}"
    zeros = exact == 0
    np.testing.assert_array_equal(np.signbit(out[zeros]), np.signbit(exact[zeros]))


@pytest.mark.parametrize("target", TARGETS)
def test_gelu_parts(target: Target) -> None:
    x = np.resize(np.concatenate([np.linspace(-12, 12, 4001), [0, 1e-30, -1e-30, 1e30]]), 4016).astype(np.float32)
    calls = [Call(name, [x, np.zeros_like(x), len(x)]) for name in ("gelu", "gelu_tanh")]
    functions = {call.name: getattr(vecmath, call.name) for call in calls}
    run(
        elementwise(target, functions, {name: [FLOAT32] * 2 for name in functions}, dict.fromkeys(functions, 16)), calls
    )
    wide = x.astype(np.float64)
    with np.errstate(over="ignore"):
        exact = [wide / 2 * (1 + _erf(wide / math.sqrt(2))),
                 wide / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))]  # fmt: skip
    for call, want in zip(calls, exact, strict=True):
        bound = 4 * 2.0**-24 * np.maximum(np.abs(wide), 1)
        assert (np.abs(call.arguments[1] - want) <= bound).all(), call.name


def _decimal_erf(x: Decimal) -> Decimal:
    pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
    total, term, k = Decimal(0), x, 0
    while abs(term) > Decimal("1e-45"):
        total += term
        k += 1
        term *= 2 * x * x / (2 * k + 1)
    return 2 / pi.sqrt() * (-x * x).exp() * total


def _decimal_tanh(x: Decimal) -> Decimal:
    e = (2 * x).exp()
    return (e - 1) / (e + 1)


# name: (reference, arguments, ULP that the docstring promises for float64)
DOUBLE: dict[str, tuple[Callable[[Decimal], Decimal], Array, float]] = {
    "exp": (lambda x: x.exp(), np.concatenate([np.linspace(-745, 709.7, 999), np.linspace(-1, 1, 999)]), 1.0),
    "exp2": (lambda x: (x * Decimal(2).ln()).exp(), np.linspace(-1070, 1023.9, 999), 1.0),
    "log": (lambda x: x.ln(), np.concatenate([np.exp2(np.linspace(-1070, 1023, 999)), np.linspace(0.5, 2, 998)]), 1.0),
    "log2": (lambda x: x.ln() / Decimal(2).ln(), np.concatenate([np.exp2(np.linspace(-1070, 1023, 999)),
             np.linspace(0.5, 2, 998)]), 2.0),
    "tanh": (_decimal_tanh, np.concatenate([np.linspace(-20, 20, 999), np.linspace(-0.7, 0.7, 1000)]), 2.0),
    "erf": (_decimal_erf, np.concatenate([np.linspace(-6.5, 6.5, 499), np.linspace(0.9, 1.1, 200)]), 2.0),
    "sigmoid": (lambda x: 1 / (1 + (-x).exp()), np.linspace(-700, 40, 999), 3.0),
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_float64_against_decimal_arithmetic(target: Target) -> None:
    calls = []
    for name, (_, x, _) in DOUBLE.items():
        padded = np.resize(x, -(-len(x) // 8) * 8)
        calls.append(Call(name, [padded, np.zeros_like(padded), len(padded)]))
    functions = {name: getattr(vecmath, name) for name in DOUBLE}
    kinds = {name: [FLOAT64, FLOAT64] for name in DOUBLE}
    run(elementwise(target, functions, kinds, dict.fromkeys(DOUBLE, target.lanes(FLOAT64))), calls)
    with decimal.localcontext() as context:
        context.prec = 50
        for call, (name, (reference, x, bound)) in zip(calls, DOUBLE.items(), strict=True):
            worst = 0.0
            for argument, found in zip(x.tolist(), call.arguments[1].tolist(), strict=False):
                exact = reference(Decimal(argument))
                error = float(abs(Decimal(found) - exact) / Decimal(math.ulp(float(exact))))
                assert error <= bound, f"{name}({argument!r}) = {found!r}, not {exact}: {error} ULP"
                worst = max(worst, error)
            assert worst > 0.4, f"{name}: the reference is not independent"


@pytest.mark.parametrize("target", TARGETS)
def test_float64_special_values(target: Target) -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, -1.0, 1e300])
    want = {
        "exp": [1, 1, np.inf, 0, np.nan, 1, math.exp(-1), np.inf],
        "log": [-np.inf, -np.inf, np.inf, np.nan, np.nan, math.log(5e-324), np.nan, math.log(1e300)],
        "tanh": [0.0, -0.0, 1, -1, np.nan, 5e-324, math.tanh(-1), 1],
        "erf": [0.0, -0.0, 1, -1, np.nan, 5e-324, math.erf(-1), 1],
    }
    calls = [Call(name, [x, np.zeros_like(x), 8]) for name in want]
    functions = {name: getattr(vecmath, name) for name in want}
    run(elementwise(target, functions, {name: [FLOAT64] * 2 for name in want}, dict.fromkeys(want, 8)), calls)
    for call, values in zip(calls, want.values(), strict=True):
        np.testing.assert_allclose(call.arguments[1], values, rtol=4e-16, err_msg=call.name)
        zeros = np.array(values) == 0
        np.testing.assert_array_equal(np.signbit(call.arguments[1][zeros]), np.signbit(np.array(values)[zeros]))


@pytest.mark.parametrize("target", TARGETS[1:])
def test_every_target_gives_the_same_bits(target: Target) -> None:
    """Whole registers of AVX-512 scale by an instruction of their own; nothing else may show, either."""
    x = _sweep(1_000_003)
    functions = {name: getattr(vecmath, name) for name in SINGLE}
    results = []
    for each in (AVX512, target):
        calls = [Call(name, [x, np.zeros_like(x), len(x)]) for name in SINGLE]
        kinds = {name: [FLOAT32, FLOAT32] for name in SINGLE}
        run(elementwise(each, functions, kinds, dict.fromkeys(SINGLE, 16)), calls)
        results.append([call.arguments[1] for call in calls])
    for name, first, second in zip(SINGLE, *results, strict=True):
        np.testing.assert_array_equal(first, second, err_msg=name)


def test_the_coefficients_are_what_the_tool_derives(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parent.parent
    scope: dict[str, Any] = {"__name__": "fit_vecmath"}
    before = decimal.getcontext().prec
    try:
        exec(compile((root / "tools/fit_vecmath.py").read_text(), "fit_vecmath.py", "exec"), scope)
        scope["main"]()
    finally:
        decimal.getcontext().prec = before
    assert capsys.readouterr().out == (root / "src/whet/codegen/vecmath/coefficients.py").read_text()
