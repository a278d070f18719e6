"""Random inputs that fit a model, for checks and timings; the same seed gives the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whet import dtypes
from whet.dtypes import DType
from whet.errors import InvalidArgument
from whet.graph import Expr, OptionalType, SequenceType, TensorType, Type, Value
from whet.graph.tensor import Array

DEFAULT_EXTENT = 1
"""Size of a free dimension that the caller gives no size: a batch of one."""

INTEGER_HIGH = 8
"""Integer inputs are drawn from 0 up to this bound (excluded): token ids and indices that small tables hold."""


def random_inputs(
    inputs: Sequence[Value], dims: Mapping[str, int] | None = None, seed: int = 0, batch: int | None = None
) -> dict[str, Any]:
    """A feed for `inputs`: standard normal floats, small integers, True masks.

    `dims` gives sizes to free dimensions by name; one that is not named takes `batch` when it is an input's first
    dimension, else 1. Raises InvalidArgument for a type that cannot be drawn.
    """
    rng = np.random.default_rng(seed)
    extents = dict(dims or {})
    return {value.name: _draw(value.name, value.type, rng, extents, batch) for value in inputs}


def _draw(
    name: str, declared: Type | None, rng: np.random.Generator, extents: dict[str, int], batch: int | None
) -> Any:
    if isinstance(declared, TensorType) and declared.dtype is not None:
        return _tensor(name, declared.dtype, _shape(declared, extents, batch), rng)
    if isinstance(declared, SequenceType):
        return [_draw(name, declared.element, rng, extents, batch)]
    if isinstance(declared, OptionalType):
        return _draw(name, declared.element, rng, extents, batch)
    raise InvalidArgument("no random value can be drawn for this input", value=name, found=str(declared))


def _shape(declared: TensorType, extents: dict[str, int], batch: int | None) -> tuple[int, ...]:
    if declared.shape is None:
        return (DEFAULT_EXTENT if batch is None else batch,)
    shape = []
    for axis, dim in enumerate(declared.shape):
        if isinstance(dim, int):
            shape.append(dim)
            continue
        fallback = batch if axis == 0 and batch is not None else DEFAULT_EXTENT
        if isinstance(dim, Expr):
            for free in dim.names():
                extents.setdefault(free, fallback)
            shape.append(max(dim.evaluate(extents), 0))
        else:
            shape.append(fallback)
    return tuple(shape)


def _tensor(name: str, dtype: DType, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if dtype.is_float:
        return rng.standard_normal(shape).astype(dtype.numpy)
    if dtype is dtypes.BOOL:
        return np.ones(shape, np.bool_)
    if dtype is dtypes.STRING:
        words = np.array(["whet", "stone", "edge", "blade"], dtype=np.object_)
        return np.asarray(words[rng.integers(0, len(words), shape)], dtype=np.object_)
    if dtype.kind == "complex":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype.numpy)
    if "mask" in name.lower():
        return np.ones(shape, dtype.numpy)
    high = min(INTEGER_HIGH, 2 ** min(dtype.bits - (dtype.kind == "int"), 31))
    return rng.integers(0, high, shape).astype(dtype.numpy)
