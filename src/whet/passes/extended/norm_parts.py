"""What the normalization fusions share: the formulas' common part, and checks of axes and parameters."""

from __future__ import annotations

import numpy as np

from whet import dtypes
from whet.dtypes import DType
from whet.graph import TensorType, Value
from whet.graph.dims import static_shape
from whet.graph.tensor import Array
from whet.passes.base import PassContext
from whet.passes.pattern import Match, MatchFailure, Op, Pattern, Scalar, Var, op, sqrt

NORM_FLOATS = frozenset({dtypes.FLOAT16, dtypes.FLOAT32, dtypes.BFLOAT16})
"""Types whose normalization may be raised: the operators compute in float32, which would round a double."""


def mean(x: Pattern, name: str) -> Pattern:
    """The mean of `x` over constant axes, which `constant_axes(match, name)` reads."""
    return Op("ReduceMean", (x, Var(f"{name}_axes")), name=name)


def over_root(x: Pattern, radicand: Pattern) -> Pattern:
    """x / sqrt(radicand), as a quotient, as a product with the reciprocal, or as a power."""
    return x / sqrt(radicand) | x * 1.0 / sqrt(radicand) | x * op("Pow", radicand, -0.5)


def centred(x: Pattern, again: str = "") -> Pattern:
    """x - mean(x). Exporters may write it twice: `again` keeps the two apart."""
    return x - mean(x, f"mean{again}")


def variance(x: Pattern) -> Pattern:
    """mean((x - mean(x))^2), or mean(x^2) - mean(x)^2."""
    return mean(centred(x, "_again") ** 2, "variance") | mean(x**2, "variance") - mean(x, "mean_again") ** 2


def normalized(x: Pattern) -> Pattern:
    """(x - mean(x)) / sqrt(variance(x) + epsilon)."""
    return over_root(centred(x), variance(x) + Scalar("epsilon"))


def root_mean_square_normalized(x: Pattern) -> Pattern:
    """x / sqrt(mean(x^2) + epsilon)."""
    return over_root(x, mean(x**2, "variance") + Scalar("epsilon"))


MEANS = ("mean", "mean_again", "variance")


def reduced_axes(found: Match, data: Value, names: tuple[str, ...] = MEANS) -> tuple[int, ...] | MatchFailure:
    """The axes that all reductions of the match go over, counted from 0 (from -1 down when the rank is unknown)."""
    seen: tuple[int, ...] | None = None
    for name in names:
        if name not in found.bound:
            continue
        node = found.node(name)
        axes = found.value(f"{name}_axes").array
        if axes is None:
            return MatchFailure(f"{node.label} has axes that are not constant")
        if node.int_attr("keepdims", 1) != 1:
            return MatchFailure(f"{node.label} drops the dimensions that it reduces")
        rank = None if data.shape is None else len(data.shape)
        counted = tuple(sorted(int(a) if rank is None or a >= 0 else int(a) + rank for a in axes.ravel()))
        if seen is not None and seen != counted:
            return MatchFailure(f"{node.label} goes over axes {list(counted)}, another one over {list(seen)}")
        seen = counted
    return seen if seen else MatchFailure("no axis is reduced")


def trailing_shape(data: Value, axes: tuple[int, ...]) -> tuple[int, ...] | MatchFailure:
    """The static extents of the last dimensions, when `axes` are just these."""
    if data.shape is None:
        return MatchFailure(f"the rank of {data.name} is not known")
    rank = len(data.shape)
    if axes != tuple(range(rank - len(axes), rank)):
        return MatchFailure(f"axes {list(axes)} are not the last ones of {data.name}, which has {rank} dimensions")
    extents = static_shape(data.shape[axes[0] :])
    if extents is None:
        return MatchFailure(f"the normalized extents of {data.name} are not static")
    return extents


def channels(data: Value) -> int | MatchFailure:
    """The static extent of axis 1 of a tensor with at least three dimensions."""
    if data.shape is None or len(data.shape) < 3:
        return MatchFailure(f"{data.name} is not known to have batch, channel and spatial dimensions")
    count = data.shape[1]
    return count if isinstance(count, int) else MatchFailure(f"the channels of {data.name} are not static")


def norm_type(value: Value) -> DType | MatchFailure:
    """The element type, when its normalization may be raised."""
    if isinstance(value.type, TensorType) and value.type.dtype in NORM_FLOATS:
        return value.type.dtype
    return MatchFailure(f"{value.name} is not known to be a float of at most 32 bits")


def filled(context: PassContext, name: str, shape: tuple[int, ...], dtype: DType, number: float) -> Value:
    """A new constant with one value everywhere."""
    return Value.constant(context.model.names.fresh(name), np.full(shape, number, dtype.numpy))


def is_filled(value: Value | None, number: float) -> bool:
    """Whether `value` is a constant that is `number` everywhere."""
    return value is not None and value.array is not None and bool(np.all(value.array == number))


def per_channel(parameter: Value, rank: int, count: int) -> Array | None:
    """A constant that broadcasts along axis 1 only of a tensor of `rank`, as a vector of `count`; else None."""
    array = parameter.array
    if array is None or array.ndim > rank:
        return None
    aligned = array.reshape((1,) * (rank - array.ndim) + array.shape)
    if aligned.size != aligned.shape[1] or aligned.shape[1] not in (1, count):
        return None
    vector: Array = np.broadcast_to(aligned.reshape(-1), (count,))
    return vector
