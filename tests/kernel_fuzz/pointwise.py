"""Random tapes over operands of random strides."""

from __future__ import annotations

from typing import Any

import numpy as np

from whet.codegen.target import Target
from whet.dtypes import BOOL, FLOAT32, FLOAT64, INT8, INT16, INT32, UINT8, UINT16, DType
from whet.kernels.expression import Step, Tape
from whet.kernels.pointwise import Pointwise, Strides
from whet.kernels.scalar_ops import CONSTANT, supports

from .call import Array, Call, Operand
from .draw import ALL_TYPES, INTEGERS, Draw, tolerance
from .operands import changed, given, made, numbers

_UNARY = (
    "identity", "neg", "abs", "sign", "floor", "ceil", "round", "truncate", "sqrt", "reciprocal", "reciprocal_sqrt",
    "not", "bitwise_not", "exp", "expm1", "log", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh",
    "tanh", "asinh", "acosh", "atanh", "erf", "sigmoid", "relu", "hard_swish", "softplus", "softsign", "mish", "gelu",
    "gelu_tanh", "silu", "is_nan",
)  # fmt: skip
_BINARY = (
    "add", "sub", "mul", "div", "mod", "fmod", "pow", "max", "min", "prelu", "and", "or", "xor", "equal", "not_equal",
    "less", "less_or_equal", "greater", "greater_or_equal", "bitwise_and", "bitwise_or", "bitwise_xor", "shift_left",
    "shift_right", "round_saturate",
)  # fmt: skip
_TERNARY = ("where", "fma", "clip", "quantize", "dequantize")
_NUMBERED: dict[str, tuple[float, ...]] = {
    "is_inf": (1, 1), "leaky_relu": (0.1,), "elu": (1.5,), "selu": (1.6732632, 1.0507010), "celu": (1.5,),
    "thresholded_relu": (0.3,), "hard_sigmoid": (0.2, 0.5), "shrink": (0.1, 0.5), "clip": (0, 1), "pow": (2.0,),
}  # fmt: skip
_TO_BOOL = frozenset(("is_nan", "is_inf", "equal", "not_equal", "less", "less_or_equal", "greater", "greater_or_equal"))
_DIVISIONS = ("div", "mod", "fmod")
_EXACT: dict[str, Any] = {
    "identity": lambda a: a, "neg": np.negative, "abs": np.abs, "add": np.add, "sub": np.subtract, "mul": np.multiply,
    "max": np.maximum, "min": np.minimum, "less": np.less, "equal": np.equal, "greater": np.greater,
    "and": np.logical_and, "or": np.logical_or, "not": np.logical_not, "where": np.where, "floor": np.floor,
    "ceil": np.ceil, "bitwise_and": np.bitwise_and, "bitwise_or": np.bitwise_or, "bitwise_xor": np.bitwise_xor,
}  # fmt: skip


def random_tape(draw: Draw) -> Tape:
    """A tape of up to 3 inputs and 6 steps, whatever the table of operations takes."""
    inputs = tuple(draw.one(ALL_TYPES) for _ in range(draw.integer(0, 3)))
    if inputs and draw.chance(0.6):
        inputs = (draw.one((FLOAT32, FLOAT32, FLOAT64, inputs[0])),) * len(inputs)
    steps: list[Step] = []
    kinds = list(inputs)

    def add(op: str, dtype: DType, args: tuple[int, ...], fixed: tuple[float | int, ...] = ()) -> None:
        steps.append(Step(op, dtype, args, fixed))
        kinds.append(dtype)

    if not inputs or draw.chance(0.2):
        dtype = draw.one((FLOAT32, FLOAT64, BOOL, *INTEGERS))
        add(CONSTANT, dtype, (), (draw.integer(0, 1),))
    wanted = draw.integer(0 if inputs else 1, 6)
    for _ in range(60):
        if len(steps) >= wanted:
            break
        _add_step(draw, kinds, len(inputs), add)
    outputs = [len(kinds) - 1]
    if draw.chance(0.3) and len(kinds) > 1:
        outputs.insert(0, draw.integer(0, len(kinds) - 1))
    return Tape(inputs, tuple(steps), tuple(outputs))


def _add_step(draw: Draw, kinds: list[DType], inputs: int, add: Any) -> None:
    count = draw.one((1, 1, 2, 2, 2, 3, 0))
    if count == 0:
        value = draw.integer(0, len(kinds) - 1)
        add("cast", draw.one(ALL_TYPES), (value,))
        return
    op = draw.one({1: (*_UNARY, *_NUMBERED), 2: _BINARY, 3: _TERNARY}[count])
    args = [draw.integer(0, len(kinds) - 1)]
    for _ in range(count - 1):
        same = [i for i, k in enumerate(kinds) if k is kinds[args[0]]]
        args.append(
            draw.one(same)
            if op not in ("where", "quantize", "dequantize", "round_saturate") or draw.chance(0.3)
            else draw.integer(0, len(kinds) - 1)
        )
    types = tuple(kinds[a] for a in args)
    fixed = _NUMBERED.get(op, ()) if count == 1 else ()
    if supports(op, types) is not None:
        return
    if op in _DIVISIONS and types[0].is_integer and (args[1] >= inputs or args[1] == args[0]):
        return  # only inputs are known not to be 0
    if op == "pow" and count == 1 and types[0].is_integer:
        fixed = (2.0,)
    result = BOOL if op in _TO_BOOL else types[0]
    if op in ("where", "dequantize"):
        result = types[1]
    elif op == "quantize":
        result = types[2]
        if result not in (INT8, UINT8, INT16, UINT16, INT32):
            return
    elif op == "round_saturate":
        result = types[1]
    add(op, result, tuple(args), fixed)


def pointwise_spec(draw: Draw, target: Target) -> Pointwise:
    tape, rank = random_tape(draw), draw.integer(1, 4)

    def strides(source: bool) -> Strides:
        found: list[int | None] = [draw.one((None, None, None, 0)) if source else None for _ in range(rank)]
        found[-1] = draw.one((1, 1, 1, 0, None) if source else (1, 1, 1, None))
        return tuple(found)

    ins = tuple(strides(True) for _ in tape.inputs)
    return Pointwise(tape, rank, ins, tuple(strides(False) for _ in tape.outputs))


def _placed(draw: Draw, fixed: Strides, extents: tuple[int, ...]) -> tuple[int, ...]:
    found = draw.strides(extents, len(extents) - 1 if fixed[-1] == 1 else None, shared=0 in fixed, backwards=True)
    return tuple(s if f is None else f for f, s in zip(fixed, found, strict=True))


def pointwise_call(draw: Draw, spec: Pointwise, target: Target) -> Call:
    extents = draw.extents(spec.rank, 700)
    words: dict[str, Operand | int] = {**numbers("n", extents)}
    divisors = {s.args[1] for s in spec.tape.steps if s.op in _DIVISIONS}
    values = []
    for i, (dtype, fixed) in enumerate(zip(spec.tape.inputs, spec.inputs, strict=True)):
        strides = _placed(draw, fixed, extents)
        x = draw.values(dtype, [1 if s == 0 else e for e, s in zip(extents, strides, strict=True)], special=True)
        if i in divisors and dtype.is_integer:
            x = np.where(x == 0, np.full((), -1 if dtype.kind == "int" else 1, x.dtype), x)
        values.append(np.broadcast_to(x, extents))
        words |= _words(f"in{i}", given(dtype, values[-1], strides), fixed)
    expected = _exact(spec.tape, values)
    for i, (value, fixed) in enumerate(zip(spec.tape.outputs, spec.outputs, strict=True)):
        dtype = spec.tape.dtype(value)
        strides = _placed(draw, fixed, extents)
        limit = tolerance(dtype)
        first = words.get("in0")
        wanted = np.broadcast_to(expected[value], extents) if expected is not None else None
        alike = len(spec.tape.outputs) == 1 and spec.inputs[:1] == (fixed,) and spec.tape.inputs[0] is dtype
        if alike and isinstance(first, Operand) and 0 not in first.window.strides and draw.chance(0.4):
            shared = changed(dtype, values[0], first.window.strides, wanted, limit, limit)
            words |= {"in0": shared, **_words(f"out{i}", shared, fixed)}
            continue
        words |= _words(f"out{i}", made(dtype, extents, strides, wanted, limit, limit), fixed)
    block = draw.block(extents[-1])
    return Call({**words, "block": block}, spec.tiles(extents, block))


def _words(name: str, operand: Operand, fixed: Strides) -> dict[str, Operand | int]:
    found: dict[str, Operand | int] = {name: operand}
    return found | {f"{name}_s{d}": s for d, s in enumerate(operand.window.strides) if fixed[d] is None}


def _exact(tape: Tape, values: list[Array]) -> list[Array] | None:
    """What the tape makes of the inputs, where every step is one that numpy does alike; None elsewhere."""
    if len({d for d in tape.inputs if d is not BOOL}) > 1 or not tape.inputs:
        return None
    if any(s.op not in _EXACT for s in tape.steps):
        return None
    if any(d not in (FLOAT32, FLOAT64, BOOL, *INTEGERS) for d in tape.inputs):
        return None
    found = list(values)
    with np.errstate(all="ignore"):
        for step in tape.steps:
            found.append(np.asarray(_EXACT[step.op](*(found[a] for a in step.args))))
    return found
