"""Activations and norms written out in parts, as exporters write them, and near misses of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .arithmetic import add, cast, clip, div, maximum, minimum, mul, power, sub, tame, unary
from .builder import DOUBLE, FLOAT, Builder, Value
from .layers import reduce, softmax
from .movement import concat, reshape, slice_axis, split, transpose

_ONE_CHANGE = 0.25  # how often a recipe becomes a near miss


class NoFitError(Exception):
    """The recipe cannot go on with these shapes."""


class Recipe:
    """Writes a known pattern, changing at most one thing: a constant, an operand, or who else reads an intermediate."""

    def __init__(self, b: Builder) -> None:
        self.b = b
        self.change = b.random.randrange(12) if b.chance(_ONE_CHANGE) else -1
        self.step = 0

    def _turn(self) -> bool:
        self.step += 1
        return self.step - 1 == self.change

    def number(self, value: float, dtype: int = FLOAT) -> Value:
        if self._turn():
            value = value * self.b.choose([1.5, 0.75, 1.02, 2.0])
        return self.b.scalar(value, dtype)

    def seen(self, value: Value | None) -> Value:
        """An intermediate; a near miss lets other nodes or the caller of the graph see it too."""
        if value is None:
            raise NoFitError
        if self._turn():
            if self.b.chance(0.5):
                self.b.keep(value)
            elif self.b.parent is None:
                self.b.wanted.append(value)
        return value

    def operand(self, value: Value) -> Value:
        """`value`, or another one of the same shape in a near miss."""
        if self._turn():
            other = self.b.pick(lambda v: v.dtype == value.dtype and v.shape == value.shape and v.bound <= value.bound)
            return value if other is None else other
        return value

    def add(self, x: Value, y: Value) -> Value:
        return self.seen(add(self.b, x, y) if self.b.chance(0.6) else add(self.b, y, x))

    def mul(self, x: Value, y: Value) -> Value:
        return self.seen(mul(self.b, x, y) if self.b.chance(0.6) else mul(self.b, y, x))

    def sub(self, x: Value, y: Value) -> Value:
        return self.seen(sub(self.b, x, y))

    def div(self, x: Value, y: Value) -> Value:
        return self.seen(div(self.b, x, y))

    def unary(self, op: str, x: Value) -> Value:
        return self.seen(unary(self.b, op, x))

    def power(self, x: Value, exponent: float) -> Value:
        return self.seen(power(self.b, x, exponent))

    def reduce(self, op: str, x: Value, axes: list[int]) -> Value:
        return self.seen(reduce(self.b, op, x, axes, 1))


def _half_of(r: Recipe, x: Value, gate: Value) -> Value:
    """0.5 * x * gate in one of its three groupings."""
    way = r.b.random.randrange(3)
    if way == 0:
        return r.mul(r.mul(x, r.number(0.5)), gate)
    if way == 1:
        return r.mul(r.mul(x, gate), r.number(0.5))
    return r.mul(x, r.mul(gate, r.number(0.5)))


def gelu_exact(r: Recipe, x: Value) -> Value:
    if r.b.opset < 9:
        raise NoFitError
    if r.b.chance(0.5):
        scaled = r.div(x, r.number(math.sqrt(2.0)))
    else:
        scaled = r.mul(x, r.number(1.0 / math.sqrt(2.0)))
    gate = r.add(r.unary("Erf", scaled), r.number(1.0))
    return _half_of(r, r.operand(x), gate)


def gelu_tanh(r: Recipe, x: Value) -> Value:
    if r.b.chance(0.5):
        cube = r.power(x, 3.0)
    else:
        cube = r.mul(r.mul(x, x), r.operand(x))
    inner = r.mul(r.add(x, r.mul(cube, r.number(0.044715))), r.number(math.sqrt(2.0 / math.pi)))
    gate = r.add(r.unary("Tanh", inner), r.number(1.0))
    return _half_of(r, x, gate)


def gelu_tanh_factored(r: Recipe, x: Value) -> Value:
    """x * 0.7978845608 * (1 + 0.044715 * x * x) inside the tanh, as some exporters write it."""
    square = r.mul(r.mul(x, r.number(0.044715)), x)
    inner = r.mul(r.mul(x, r.number(math.sqrt(2.0 / math.pi))), r.add(square, r.number(1.0)))
    return _half_of(r, x, r.add(r.unary("Tanh", inner), r.number(1.0)))


def gelu_quick(r: Recipe, x: Value) -> Value:
    return r.mul(r.operand(x), r.unary("Sigmoid", r.mul(x, r.number(1.702))))


def silu(r: Recipe, x: Value) -> Value:
    return r.mul(r.operand(x), r.unary("Sigmoid", x))


def hard_swish(r: Recipe, x: Value) -> Value:
    way = r.b.random.randrange(4)
    if way == 0 and r.b.opset >= 14:
        gate = r.seen(r.b.emit("HardSigmoid", [x], x.shape, alpha=r.b.choose([1 / 6, 1 / 6, 0.2]), beta=0.5))
        return r.mul(r.operand(x), gate)
    shifted = r.add(x, r.number(3.0))
    gate = r.seen(clip(r.b, shifted, 0.0, r.b.choose([6.0, 6.0, 6.0, 5.0])))
    if way == 1:
        return r.div(r.mul(r.operand(x), gate), r.number(6.0))
    if way == 2:
        return r.mul(r.operand(x), r.div(gate, r.number(6.0)))
    return r.mul(r.mul(x, gate), r.number(1.0 / 6.0))


def mish(r: Recipe, x: Value) -> Value:
    return r.mul(r.operand(x), r.unary("Tanh", r.unary("Softplus", x)))


def leaky_parts(r: Recipe, x: Value) -> Value:
    if r.b.opset < 8 or r.b.chance(0.5):
        negative = r.unary("Relu", r.unary("Neg", x))
        return r.sub(r.unary("Relu", r.operand(x)), r.mul(negative, r.number(0.1)))
    return r.seen(maximum(r.b, x, r.mul(x, r.number(0.1))))


def _vector(r: Recipe, x: Value, scale: float = 1.0) -> Value:
    if not x.static(x.rank - 1):
        raise NoFitError
    return r.b.weights([x.shape[-1][0]], scale)


def _epsilon(r: Recipe, dtype: int = FLOAT) -> Value:
    return r.b.scalar(r.b.choose([1e-2, 1e-3, 1e-3]), dtype)


def _scaled_and_shifted(r: Recipe, x: Value, shift: bool = True) -> Value:
    x = r.mul(x, _vector(r, x))
    return r.add(x, _vector(r, x)) if shift else x


def layer_norm(r: Recipe, x: Value) -> Value:
    if x.rank < 2 or not x.static(x.rank - 1) or x.shape[-1][0] < 2:
        raise NoFitError
    axis = x.rank - 1 if r.b.opset < 11 or r.b.chance(0.5) else -1
    if r._turn():
        axis = 0
    mean = r.reduce("ReduceMean", x, [axis])
    centered = r.sub(x, mean)
    again = r.sub(x, mean) if r.b.chance(0.2) else centered
    square = r.power(again, 2.0) if r.b.chance(0.6) else r.mul(again, again)
    variance = r.reduce("ReduceMean", square, [axis])
    total = r.add(variance, _epsilon(r))
    total = replace(total, low=max(total.low, 9e-4))
    limit = math.sqrt(max(x.shape[axis]))
    way = r.b.random.randrange(3)
    if way == 0:
        scaled = r.div(centered, r.unary("Sqrt", total))
    elif way == 1:
        scaled = r.mul(centered, r.unary("Reciprocal", r.unary("Sqrt", total)))
    else:
        scaled = r.div(centered, replace(r.seen(_raw_power(r.b, total, 0.5)), low=0.03))
    scaled = replace(scaled, low=-limit, high=limit)
    return _scaled_and_shifted(r, scaled)


def _raw_power(b: Builder, x: Value, exponent: float) -> Value:
    low, high = sorted((x.low**exponent, x.high**exponent))
    return b.emit("Pow", [x, b.scalar(exponent, x.dtype)], x.shape, low=low, high=high)


def rms_norm(r: Recipe, x: Value) -> Value:
    if x.rank < 2 or not x.static(x.rank - 1) or x.shape[-1][0] < 2:
        raise NoFitError
    axis = x.rank - 1 if r.b.opset < 11 or r.b.chance(0.5) else -1
    wide = r.b.chance(0.2)
    operand = cast(r.b, x, DOUBLE) if wide else x
    square = r.power(operand, 2.0) if r.b.chance(0.6) else r.mul(operand, operand)
    total = r.add(r.reduce("ReduceMean", square, [axis]), _epsilon(r, operand.dtype))
    total = replace(total, low=9e-4)
    limit = math.sqrt(max(x.shape[axis]))
    root = r.unary("Sqrt", total)
    if r.b.chance(0.5):
        scaled = r.mul(operand, r.unary("Reciprocal", root))
    else:
        scaled = r.div(operand, root)
    if wide:
        scaled = cast(r.b, scaled, FLOAT)
    return _scaled_and_shifted(r, replace(scaled, low=-limit, high=limit), shift=r.b.chance(0.2))


def l2_normalize(r: Recipe, x: Value) -> Value:
    if x.rank < 1:
        raise NoFitError
    norm = r.reduce("ReduceL2", x, [x.rank - 1])
    norm = r.seen(clip(r.b, norm, 0.5, None))
    return r.div(x, replace(norm, low=0.5, high=max(norm.high, 0.5)))


def softmax_parts(r: Recipe, x: Value) -> Value:
    if x.rank < 1:
        raise NoFitError
    axis = x.rank - 1
    shifted = r.sub(x, r.reduce("ReduceMax", x, [axis]))
    exponent = r.seen(r.b.emit("Exp", [shifted], x.shape, low=0.0, high=1.0))
    total = replace(r.reduce("ReduceSum", exponent, [axis]), low=1.0)
    return replace(r.div(exponent, total), low=0.0, high=1.0)


def group_norm(r: Recipe, x: Value) -> Value:
    if x.rank != 4 or not x.is_static:
        raise NoFitError
    batch, channels, height, width = x.extents()
    groups = r.b.choose([g for g in (1, 2, 3, 4, channels) if channels % g == 0])
    shaped = reshape(r.b, x, r.b.static_shape([batch, groups, channels // groups * height * width]))
    if shaped is None:
        raise NoFitError
    ones = r.b.constant(np.ones(groups, np.float32), plain=True)
    zeros = r.b.constant(np.zeros(groups, np.float32), plain=True)
    limit = math.sqrt(channels // groups * height * width) + 1.0
    normed = r.seen(
        r.b.emit("InstanceNormalization", [shaped, ones, zeros], shaped.shape, low=-limit, high=limit, epsilon=1e-2)
    )
    back = reshape(r.b, normed, x.shape)
    if back is None:
        raise NoFitError
    scaled = r.mul(back, r.b.weights([channels, 1, 1], 1.0))
    return r.add(scaled, r.b.weights([channels, 1, 1], 1.0))


def batch_norm_parts(r: Recipe, x: Value) -> Value:
    if x.rank < 3 or not x.static(1):
        raise NoFitError
    extents = [x.shape[1][0]] + [1] * (x.rank - 2)
    centered = r.sub(x, r.b.weights(extents, 1.0))
    deviation = r.b.constant(r.b.data.uniform(0.5, 2.0, size=extents).astype(np.float32))
    scaled = r.div(centered, deviation) if r.b.chance(0.5) else r.mul(centered, deviation)
    return r.add(r.mul(scaled, r.b.weights(extents, 1.0)), r.b.weights(extents, 1.0))


def gated(r: Recipe, x: Value) -> Value:
    """GLU, SwiGLU or GEGLU over the last axis."""
    if x.rank < 1 or not x.static(x.rank - 1) or x.shape[-1][0] % 2:
        raise NoFitError
    left, right = split(r.b, x, x.rank - 1, None, 2)
    way = r.b.random.randrange(3)
    gate = r.unary("Sigmoid", right) if way == 0 else silu(r, right) if way == 1 else gelu_tanh(r, right)
    return r.mul(left, gate)


def no_ops(r: Recipe, x: Value) -> Value:
    """A chain that changes nothing, or nearly nothing."""
    b = r.b
    zero, one = (np.zeros([1] * b.random.randrange(x.rank + 1), np.float32) for _ in range(2))
    for _ in range(b.choose([1, 2, 2, 3])):
        way = b.random.randrange(10)
        if way == 0:
            x = r.add(x, b.constant(zero, grain=1.0) if b.chance(0.7) else r.number(0.0))
        elif way == 1:
            x = r.mul(x, b.constant(one + np.float32(1.0), grain=1.0) if b.chance(0.7) else r.number(1.0))
        elif way == 2:
            x = r.div(x, r.number(1.0))
        elif way == 3:
            x = r.unary("Neg", r.unary("Neg", x))
        elif way == 4 and x.rank >= 2:
            order = b.random.sample(range(x.rank), x.rank)
            moved = r.seen(transpose(b, x, order))
            x = r.seen(transpose(b, moved, [int(axis) for axis in np.argsort(order)]))
        elif way == 5:
            x = r.seen(cast(b, r.seen(cast(b, x, DOUBLE)), FLOAT))
        elif way == 6:
            x = r.unary("Relu", r.unary("Relu", x)) if b.chance(0.5) else r.unary("Abs", r.unary("Abs", x))
        elif way == 7 and x.rank >= 1:
            x = r.seen(slice_axis(b, x, b.random.randrange(x.rank), 0, b.choose([2**63 - 1, 2**31 - 1])))
        elif way == 8 and x.rank >= 1:
            x = r.seen(concat(b, [x], b.random.randrange(x.rank)))
        else:
            x = r.unary("Identity", x)
    return x


def clips(r: Recipe, x: Value) -> Value:
    """Chains of Relu, Clip, Min and Max, which merge when the bounds nest."""
    b = r.b
    for _ in range(b.choose([2, 2, 3])):
        way = b.random.randrange(4)
        if way == 0:
            x = r.unary("Relu", x)
        elif way == 1:
            x = r.seen(clip(b, x, b.choose([-1.0, 0.0, None]), b.choose([1.0, 6.0, 4.0, None])))
        elif way == 2 and b.opset >= 8:
            x = r.seen(maximum(b, x, b.scalar(b.choose([0.0, -1.0]))))
        elif b.opset >= 8:
            x = r.seen(minimum(b, x, b.scalar(b.choose([6.0, 2.0]))))
    return x


def affine_chain(r: Recipe, x: Value) -> Value:
    """Scales and shifts by constants in a row."""
    for _ in range(r.b.choose([2, 3, 4])):
        operand = r.b.scalar(r.b.choose([2.0, 0.5, -1.0, 3.0, 0.3])) if r.b.chance(0.5) else _vector(r, _ranked(x))
        x = r.mul(x, operand) if r.b.chance(0.5) else r.add(x, operand) if r.b.chance(0.7) else r.sub(operand, x)
    return x


def _ranked(x: Value) -> Value:
    if x.rank == 0:
        raise NoFitError
    return x


def transposed_relus(r: Recipe, x: Value) -> Value:
    """Transposes that meet through pointwise operators."""
    if x.rank < 2:
        raise NoFitError
    b = r.b
    order = b.random.sample(range(x.rank), x.rank)
    moved = r.seen(transpose(b, x, order))
    moved = r.add(r.unary("Tanh", moved), r.seen(transpose(b, x, order)))
    return r.seen(transpose(b, moved, [int(axis) for axis in np.argsort(order)]))


def probabilities(r: Recipe, x: Value) -> Value:
    """-log(softmax), or the log of a sum of exponents."""
    if x.rank < 1:
        raise NoFitError
    shares = r.seen(softmax(r.b, x, x.rank - 1))
    shifted = r.add(shares, r.number(0.25))
    return r.unary("Neg", r.unary("Log", replace(shifted, low=0.18)))


RECIPES: tuple[Callable[[Recipe, Value], Value], ...] = (
    gelu_exact, gelu_exact, gelu_tanh, gelu_tanh_factored, gelu_quick, silu, hard_swish, hard_swish, mish, leaky_parts,
    layer_norm, layer_norm, layer_norm, rms_norm, rms_norm, l2_normalize, softmax_parts, group_norm, group_norm,
    batch_norm_parts, gated, no_ops, no_ops, clips, affine_chain, transposed_relus, probabilities,
)  # fmt: skip


def random_recipe(b: Builder) -> Value | None:
    recipe = b.choose(RECIPES)
    x = b.pick(lambda v: v.dtype == FLOAT and (recipe is not group_norm or v.rank == 4))
    if x is None:
        return None
    x = tame(b, x, 8.0)
    try:
        return b.keep(tame(b, recipe(Recipe(b), x)))
    except NoFitError:
        return None
