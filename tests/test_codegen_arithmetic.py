"""The kernel language's arithmetic against Python's integers and numpy, on every target."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.codegen_tools import TARGETS, Call, elementwise, run
from whet import dtypes
from whet.codegen import lang
from whet.codegen.target import AVX512_BF16, AVX512_VNNI, Target
from whet.dtypes import BFLOAT16, BOOL, FLOAT16, FLOAT32, FLOAT64, INT32, INT64, UINT32, UINT64, DType

INTEGERS = [t for t in dtypes.ALL if t.is_integer and t.bits >= 8]
RNG = np.random.default_rng(7)


def _edges(dtype: DType, count: int = 256) -> np.ndarray[Any, Any]:
    low, high = lang.integer_range(dtype)
    info = [low, low + 1, high, high - 1, 0, 1, 2, 3, 7, dtype.bits - 1, dtype.bits, max(low, -1), max(low, -2)]
    some = RNG.integers(low, high, count, dtype=dtype.numpy, endpoint=True)
    picks = np.array(info, dtype=dtype.numpy)[RNG.integers(0, len(info), count)]
    return np.where(RNG.random(count) < 0.5, picks, some).astype(dtype.numpy)


def _wrap(value: int, dtype: DType) -> int:
    value &= (1 << dtype.bits) - 1
    return value - (1 << dtype.bits) if dtype.kind == "int" and value >> (dtype.bits - 1) else value


def _divide(a: int, b: int) -> int:
    return 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _hold(value: int, dtype: DType) -> int:
    low, high = lang.integer_range(dtype)
    return min(max(value, low), high)


INTEGER_OPERATIONS: dict[str, tuple[Callable[..., Any], Callable[[int, int, DType], int]]] = {
    "add": (operator.add, lambda a, b, t: a + b),
    "sub": (operator.sub, lambda a, b, t: a - b),
    "mul": (operator.mul, lambda a, b, t: a * b),
    "and": (operator.and_, lambda a, b, t: a & b),
    "or": (operator.or_, lambda a, b, t: a | b),
    "xor": (operator.xor, lambda a, b, t: a ^ b),
    "div": (operator.truediv, lambda a, b, t: _divide(a, b)),
    "mod": (operator.mod, lambda a, b, t: 0 if b == 0 else a - b * _divide(a, b)),
    "div7": (lambda a, b: a / 7, lambda a, b, t: _divide(a, 7)),
    "shl": (operator.lshift, lambda a, b, t: a << min(b % (1 << t.bits), t.bits)),
    "shr": (operator.rshift, lambda a, b, t: a >> min(b % (1 << t.bits), t.bits)),
    "shr3": (lambda a, b: a >> 3, lambda a, b, t: a >> 3),
    "neg": (lambda a, b: -a, lambda a, b, t: -a),
    "not": (lambda a, b: ~a, lambda a, b, t: ~a),
    "rsub": (lambda a, b: 5 - a, lambda a, b, t: 5 - a),
    "min": (lang.minimum, lambda a, b, t: min(a, b)),
    "max": (lang.maximum, lambda a, b, t: max(a, b)),
    "abs": (lambda a, b: lang.absolute(a), lambda a, b, t: abs(a)),
    "add_sat": (lang.add_saturating, lambda a, b, t: _hold(a + b, t)),
    "sub_sat": (lang.subtract_saturating, lambda a, b, t: _hold(a - b, t)),
    "clz": (lambda a, b: lang.count_leading_zeros(a), lambda a, b, t: t.bits - (a % (1 << t.bits)).bit_length()),
    "ones": (lambda a, b: lang.count_ones(a), lambda a, b, t: (a % (1 << t.bits)).bit_count()),
    "less": (lambda a, b: lang.select(a < b, a.like(1), 0), lambda a, b, t: a < b),
    "not_less": (lambda a, b: lang.select(a >= b, a.like(1), 0), lambda a, b, t: a >= b),
    "equal": (lambda a, b: lang.select((a == b) | (a > b), a.like(1), 0), lambda a, b, t: a >= b),
    "between": (lambda a, b: lang.select((a != b) & ~(a <= b), a.like(1), 0), lambda a, b, t: a > b),
}  # fmt: skip


@pytest.mark.parametrize("lanes", [1, 16])
@pytest.mark.parametrize("target", TARGETS)
def test_integer_operations_wrap_and_never_trap(target: Target, lanes: int) -> None:
    calls, wanted = [], []
    functions: dict[str, Callable[..., Any]] = {}
    types: dict[str, list[DType]] = {}
    for dtype in INTEGERS:
        a, b = _edges(dtype), _edges(dtype)
        for name, (function, reference) in INTEGER_OPERATIONS.items():
            full = f"{name}_{dtype}"
            functions[full], types[full] = function, [dtype] * 3
            calls.append(Call(full, [a, b, np.zeros_like(a), len(a)]))
            wanted.append([_wrap(int(reference(int(x), int(y), dtype)), dtype) for x, y in zip(a, b, strict=True)])
    run(elementwise(target, functions, types, dict.fromkeys(functions, lanes)), calls)
    for call, want in zip(calls, wanted, strict=True):
        assert call.arguments[2].tolist() == want, call.name


SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 1e-45, 3e38, 8388609.0, -0.49999997]


def _floats(dtype: DType, count: int = 256) -> np.ndarray[Any, Any]:
    values = np.where(RNG.random(count) < 0.5, RNG.choice(SPECIAL, count), RNG.normal(0, 100, count))
    return values.astype(dtype.numpy)


def _maximum_second(a: Any, b: Any) -> Any:
    return np.where(a > b, a, b)


FLOAT_OPERATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "add": (operator.add, np.add),
    "sub": (operator.sub, np.subtract),
    "mul": (operator.mul, np.multiply),
    "div": (operator.truediv, np.divide),
    "rdiv": (lambda a, b: 3 / a, lambda a, b: a.dtype.type(3) / a),
    "neg": (lambda a, b: -a, lambda a, b: -a),
    "abs": (lambda a, b: lang.absolute(a), lambda a, b: np.abs(a)),
    "sqrt": (lambda a, b: lang.sqrt(a), lambda a, b: np.sqrt(a)),
    "floor": (lambda a, b: lang.floor(a), lambda a, b: np.floor(a)),
    "ceil": (lambda a, b: lang.ceil(a), lambda a, b: np.ceil(a)),
    "trunc": (lambda a, b: lang.truncate(a), lambda a, b: np.trunc(a)),
    "round": (lambda a, b: lang.round_even(a), lambda a, b: np.rint(a)),
    "copysign": (lang.copysign, np.copysign),
    "min": (lang.minimum, np.minimum),
    "max": (lang.maximum, np.maximum),
    "max_second": (lang.greater_or_second, _maximum_second),
    "min_second": (lang.less_or_second, lambda a, b: np.where(a < b, a, b)),
    "clamp": (lambda a, b: lang.clamp(a, -1.0, 2.0), lambda a, b: np.clip(a, -1, 2)),
    "less": (lambda a, b: lang.select(a < b, a, 7.0), lambda a, b: np.where(a < b, a, a.dtype.type(7))),
    "unequal": (lambda a, b: lang.select(a != b, a, 7.0), lambda a, b: np.where(a != b, a, a.dtype.type(7))),
    "equal": (lambda a, b: lang.select(a == b, a, 7.0), lambda a, b: np.where(a == b, a, a.dtype.type(7))),
    "polynomial": (lambda a, b: lang.polynomial(a, [2.0]), lambda a, b: np.full_like(a, 2)),
}


@pytest.mark.parametrize("target", TARGETS)
def test_float_operations_match_numpy_bit_for_bit(target: Target) -> None:
    calls, wanted = [], []
    functions: dict[str, Callable[..., Any]] = {}
    types: dict[str, list[DType]] = {}
    lanes = {}
    with np.errstate(all="ignore"):
        for dtype in (FLOAT32, FLOAT64):
            a, b = _floats(dtype), _floats(dtype)
            for name, (function, reference) in FLOAT_OPERATIONS.items():
                full = f"{name}_{dtype}"
                functions[full], types[full], lanes[full] = function, [dtype] * 3, 8
                calls.append(Call(full, [a, b, np.zeros_like(a), len(a)]))
                wanted.append(reference(a, b))
    run(elementwise(target, functions, types, lanes), calls)
    for call, want in zip(calls, wanted, strict=True):
        np.testing.assert_array_equal(call.arguments[2], want, err_msg=call.name)
        if not call.name.startswith(("min_f", "max_f", "clamp")):
            same = np.signbit(call.arguments[2]) == np.signbit(want)
            assert (same | np.isnan(want)).all(), call.name


@pytest.mark.parametrize("target", TARGETS)
def test_fma_rounds_once(target: Target) -> None:
    a = (1 + RNG.integers(0, 2**23, 64) * 2.0**-23).astype(np.float32)
    c = (-(a.astype(np.float64) ** 2)).astype(np.float32)
    out = np.zeros_like(a)
    module = elementwise(target, {"f": lambda x, y: lang.fma(x, x, y)}, {"f": [FLOAT32] * 3}, {"f": 16})
    run(module, [Call("f", [a, c, out, 64])])
    np.testing.assert_array_equal(out, (a.astype(np.float64) ** 2 + c).astype(np.float32))
    assert (out != 0).any()


REDUCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sum": (lang.reduce_sum, lambda x: x.sum(axis=1, dtype=x.dtype)),
    "max": (lang.reduce_maximum, lambda x: x.max(axis=1)),
    "min": (lang.reduce_minimum, lambda x: x.min(axis=1)),
}


@pytest.mark.parametrize("target", TARGETS)
def test_reductions(target: Target) -> None:
    module = lang.Module(target)
    calls, wanted = [], []
    for dtype in (FLOAT32, INT32, UINT64, dtypes.INT8):
        x = RNG.integers(-60 if dtype.kind != "uint" else 0, 60, (8, 32)).astype(dtype.numpy)
        for name, (reduction, reference) in REDUCTIONS.items():
            with module.function(f"{name}_{dtype}") as k:
                source, out = k.pointer("x", dtype), k.pointer("y", dtype)
                with k.loop(8) as row:
                    out.store(reduction(source.load(row * 32, 32)), row)
            calls.append(Call(f"{name}_{dtype}", [x, np.zeros(8, dtype.numpy)]))
            wanted.append(reference(x))
    nan = np.ones((1, 8), np.float32)
    nan[0, 5] = np.nan
    with module.function("nan") as k:
        k.pointer("y", FLOAT32).store(lang.reduce_maximum(k.pointer("x", FLOAT32).load(0, 8)))
    result = np.zeros(1, np.float32)
    run(module, [*calls, Call("nan", [result, nan])])
    for call, want in zip(calls, wanted, strict=True):
        np.testing.assert_array_equal(call.arguments[1], want, err_msg=call.name)
    assert np.isnan(result[0])


@pytest.mark.parametrize("target", TARGETS)
def test_lanes_move_as_told(target: Target) -> None:
    module = lang.Module(target)
    shapes: dict[str, tuple[Callable[..., Any], list[int]]] = {
        "reverse": (lambda a, b: lang.shuffle(a, None, range(7, -1, -1)), list(range(7, -1, -1))),
        "interleave": (lang.interleave, [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15]),
        "both": (lang.concatenate, list(range(16))),
        "upper": (lambda a, b: lang.halves(b)[1], [12, 13, 14, 15]),
        "lane": (lambda a, b: lang.broadcast(b.lane(3), 8), [11] * 8),
        "replaced": (lambda a, b: a.with_lane(2, b.lane(0)), [0, 1, 8, 3, 4, 5, 6, 7]),
        "iota": (lambda a, b: lang.convert(lang.iota(a), FLOAT32), list(range(8))),
    }
    calls = []
    for name, (function, wanted) in shapes.items():
        with module.function(name) as k:
            a, out = k.pointer("a", FLOAT32), k.pointer("out", FLOAT32)
            out.store(function(a.load(0, 8), a.load(8, 8)))
        calls.append(Call(name, [np.arange(16, dtype=np.float32), np.zeros(len(wanted), np.float32)]))
    run(module, calls)
    for call, (_, wanted) in zip(calls, shapes.values(), strict=True):
        assert call.arguments[1].tolist() == wanted, call.name


def _reference_convert(x: np.ndarray[Any, Any], dtype: DType) -> np.ndarray[Any, Any]:
    if dtype is BOOL:
        return x != 0
    if dtype.is_integer and x.dtype.kind not in "iub":
        low, high = lang.integer_range(dtype)
        exact = [0 if v != v else low if v < low else high if v > high else int(v) for v in x.astype(np.float64)]
        return np.array(exact, dtype.numpy)
    if dtype in (FLOAT16, BFLOAT16) and x.dtype.kind in "iu" and x.dtype.itemsize > 4:
        # numpy goes through float32 or float64 first; a fraction below half a unit decides ties exactly.
        return np.array([_exact_small_float(int(v), dtype) for v in x], dtype.numpy)
    return x.astype(dtype.numpy)


def _exact_small_float(v: int, dtype: DType) -> Any:
    bits = 11 if dtype is FLOAT16 else 8
    shift = max(0, abs(v).bit_length() - bits)
    unit = 1 << shift
    low = abs(v) // unit
    rest = abs(v) - low * unit
    if 2 * rest > unit or (2 * rest == unit and low & 1):
        low += 1
    with np.errstate(over="ignore"):
        return np.float64(low * unit * (-1 if v < 0 else 1)).astype(dtype.numpy)


@pytest.mark.parametrize("target", TARGETS)
def test_every_conversion(target: Target) -> None:
    kinds = [*INTEGERS, BOOL, FLOAT16, BFLOAT16, FLOAT32, FLOAT64]
    functions: dict[str, Callable[..., Any]] = {}
    types: dict[str, list[DType]] = {}
    calls, wanted = [], []
    with np.errstate(all="ignore"):
        for source in kinds:
            if source.is_integer:
                x = _edges(source)
            elif source is BOOL:
                x = RNG.random(256) < 0.5
            else:
                spread = RNG.choice([1.0, 1e-7, 1e5, 1e9, 1e19, 1e-40], 256)
                x = (_floats(FLOAT64) * spread).astype(source.numpy)
            for to in kinds:
                name = f"{source}_to_{to}"
                functions[name], types[name] = (lambda v, to=to: lang.convert(v, to)), [source, to]
                calls.append(Call(name, [x, np.zeros(256, to.numpy), 256]))
                wanted.append(_reference_convert(x, to))
    run(elementwise(target, functions, types, dict.fromkeys(functions, 16)), calls)
    for call, want in zip(calls, wanted, strict=True):
        found = call.arguments[1]
        if want.dtype == ml_dtypes.bfloat16:  # numpy does not know its NaNs as equal
            found, want = found.astype(np.float32), want.astype(np.float32)
        np.testing.assert_array_equal(found, want, err_msg=call.name)


@pytest.mark.parametrize("target", TARGETS)
def test_every_16_bit_float_there_and_back(target: Target) -> None:
    calls, smalls, everything = [], [], np.arange(65536, dtype=np.uint16)
    functions: dict[str, Callable[..., Any]] = {}
    types: dict[str, list[DType]] = {}
    for small in (FLOAT16, BFLOAT16):
        for wide in (FLOAT32, FLOAT64):
            for name, function, kinds in (
                ("widen", lambda v, wide=wide: lang.convert(v, wide), [small, wide]),
                ("narrow", lambda v, small=small: lang.convert(v, small), [wide, small]),
            ):
                full = f"{name}_{small}_{wide}"
                functions[full], types[full] = function, kinds
            widened, narrowed = np.zeros(65536, wide.numpy), np.zeros(65536, np.uint16)
            smalls.append(small.numpy)
            calls.append(Call(f"widen_{small}_{wide}", [everything, widened, 65536]))
            calls.append(Call(f"narrow_{small}_{wide}", [widened, narrowed, 65536]))
    run(elementwise(target, functions, types, dict.fromkeys(functions, 16)), calls)
    for small, up, down in zip(smalls, calls[::2], calls[1::2], strict=True):
        with np.errstate(invalid="ignore"):  # numpy warns of signalling NaNs
            want = everything.view(small).astype(up.arguments[1].dtype)
            back = down.arguments[1].view(small).astype(np.float64)
        np.testing.assert_array_equal(up.arguments[1], want, err_msg=up.name)
        numbers = ~np.isnan(want)
        assert (down.arguments[1] == everything)[numbers].all(), down.name
        assert np.isnan(back[~numbers]).all(), down.name


@pytest.mark.parametrize("target", TARGETS)
def test_narrowing_float64_rounds_once(target: Target) -> None:
    # Just beside the middle of two 16-bit floats, closer than float32 can tell.
    base = RNG.integers(0x0400, 0x7BFF, 512).astype(np.uint16)
    low = base.view(np.float16).astype(np.float64)
    high = (base + 1).astype(np.uint16).view(np.float16).astype(np.float64)
    middle = (low + high) / 2
    x = np.concatenate([middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf), -np.nextafter(middle, 0)])
    out = np.zeros(len(x), np.float16)
    module = elementwise(target, {"f": lambda v: lang.convert(v, FLOAT16)}, {"f": [FLOAT64, FLOAT16]}, {"f": 8})
    run(module, [Call("f", [x, out, len(x)])])
    np.testing.assert_array_equal(out, x.astype(np.float16))


@pytest.mark.parametrize("target", TARGETS)
def test_narrowing_64_bit_integers_rounds_once(target: Target) -> None:
    # One beside the middle of two bfloat16 numbers, closer than float64 can tell; and what float64 holds exactly.
    middles = (np.arange(128, 256) * 2 + 1) << 54
    signed = np.concatenate([middles - 1, middles, middles + 1, -middles - 1, -middles + 1, np.arange(-500, 500) * 257])
    signed = np.resize(signed, -(-len(signed) // 8) * 8)
    unsigned = np.abs(signed).astype(np.uint64)
    calls = [
        Call(name, [x, np.zeros(len(x), ml_dtypes.bfloat16), len(x)]) for name, x in (("i", signed), ("u", unsigned))
    ]
    kinds = {"i": [INT64, BFLOAT16], "u": [UINT64, BFLOAT16]}
    convert = {name: lambda v: lang.convert(v, BFLOAT16) for name in kinds}
    run(elementwise(target, convert, kinds, dict.fromkeys(kinds, 8)), calls)
    for call in calls:
        want = [float(_exact_small_float(int(v), BFLOAT16)) for v in call.arguments[0]]
        assert call.arguments[1].astype(np.float64).tolist() == want, call.name


@pytest.mark.parametrize("target", TARGETS)
def test_saturating_and_reinterpreting(target: Target) -> None:
    x = _edges(INT32)
    narrow, words = np.zeros(256, np.int8), np.zeros(256, np.uint32)
    module = elementwise(
        target,
        {
            "narrow": lambda v: lang.convert_saturating(v, dtypes.INT8),
            "bits": lambda v: lang.reinterpret(lang.reinterpret(v, dtypes.UINT8), UINT32),
        },
        {"narrow": [INT32, dtypes.INT8], "bits": [INT32, UINT32]},
        {"narrow": 16, "bits": 16},
    )
    run(module, [Call("narrow", [x, narrow, 256]), Call("bits", [x, words, 256])])
    np.testing.assert_array_equal(narrow, np.clip(x, -128, 127).astype(np.int8))
    np.testing.assert_array_equal(words, x.view(np.uint32))


def test_dot_products_of_small_types() -> None:
    a = RNG.integers(0, 256, 64).astype(np.uint8)
    b = RNG.integers(-128, 128, 64).astype(np.int8)
    sums = np.arange(16, dtype=np.int32)
    module = lang.Module(AVX512_VNNI)
    with module.function("dot") as k:
        c = k.pointer("c", INT32)
        x, y = k.pointer("a", dtypes.UINT8).load(0, 64), k.pointer("b", dtypes.INT8).load(0, 64)
        c.store(lang.dot_u8s8(c.load(0, 16), x, y))
    want = sums + (a.astype(np.int32) * b).reshape(16, 4).sum(axis=1)
    run(module, [Call("dot", [sums, a, b])])
    np.testing.assert_array_equal(sums, want)


def test_dot_products_of_bfloat16() -> None:
    p, q = (RNG.integers(-16, 17, 32).astype(ml_dtypes.bfloat16) for _ in range(2))
    sums = np.arange(16, dtype=np.float32)
    module = lang.Module(AVX512_BF16)
    with module.function("dot") as k:
        c = k.pointer("c", FLOAT32)
        x, y = k.pointer("a", BFLOAT16).load(0, 32), k.pointer("b", BFLOAT16).load(0, 32)
        c.store(lang.dot_bf16(c.load(0, 16), x, y))
    want = sums + (p.astype(np.float32) * q.astype(np.float32)).reshape(16, 2).sum(axis=1)
    run(module, [Call("dot", [sums, p, q])])
    np.testing.assert_array_equal(sums, want)


def test_elements_of_a_table_in_registers() -> None:
    table = RNG.standard_normal(32).astype(np.float32)
    places = RNG.integers(-(2**31), 2**31, 16).astype(np.int32)
    found = np.zeros(16, np.float32)
    module = lang.Module(AVX512_VNNI)
    with module.function("look_up") as k:
        rows = k.pointer("table", FLOAT32)
        numbers = k.pointer("places", INT32).load(0, 16)
        k.pointer("found", FLOAT32).store(lang.look_up(rows.load(0, 16), rows.load(16, 16), numbers))
    run(module, [Call("look_up", [table, places, found])])
    np.testing.assert_array_equal(found, table[places & 31])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, INT32, INT64], ids=str)
def test_permutation_at_run_time(target: Target, dtype: DType) -> None:
    lanes, kind = target.lanes(dtype), INT32 if dtype.bits == 32 else INT64
    x = RNG.integers(-(2**31), 2**31, lanes).astype(dtype.numpy)
    places = RNG.integers(0, lanes, lanes).astype(kind.numpy)
    found = np.zeros(lanes, dtype.numpy)
    module = lang.Module(target)
    with module.function("permute") as k:
        values, numbers = k.pointer("x", dtype).load(0, lanes), k.pointer("places", kind).load(0, lanes)
        k.pointer("found", dtype).store(lang.permute(values, numbers))
    run(module, [Call("permute", [x, places, found])])
    np.testing.assert_array_equal(found, x[places])


def test_permutations_of_other_shapes_are_refused() -> None:
    module = lang.Module(AVX512_VNNI)
    with module.function("f") as k:
        x = k.pointer("x", FLOAT32)
        places = k.pointer("places", INT32)
        for values, numbers in ((x.load(0, 8), places.load(0, 8)), (x.load(0, 16), places.load(0, 8))):
            with pytest.raises(lang.LanguageError, match="no such permutation"):
                lang.permute(values, numbers)


def test_int64_constants_keep_all_bits() -> None:
    module = lang.Module(AVX512_VNNI)
    with module.function("f") as k:
        k.pointer("y", INT64).store(k.constant(INT64, -(2**63)))
    out = np.zeros(1, np.int64)
    run(module, [Call("f", [out])])
    assert out[0] == -(2**63)
