"""Builds one random graph: values with a shape for every feed, bounds, and whether they are free of rounding."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

# The extent of one axis in each feed of the case; a static axis repeats one number.
Dim = tuple[int, ...]

FLOAT, DOUBLE, HALF = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16
INT32, INT64, BOOL, UINT8 = TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL, TensorProto.UINT8
FLOATS = (FLOAT, DOUBLE)
INTS = (INT32, INT64)

MOST_ELEMENTS = 4096
EXACT_STEPS = 2.0**22  # integers up to here survive sums and products in float32


@dataclass(frozen=True)
class Value:
    """A tensor; `grain` is the power of two that every element is a multiple of, None if elements may be rounded."""

    name: str
    dtype: int
    shape: tuple[Dim, ...]
    low: float
    high: float
    grain: float | None
    constant: np.ndarray | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def bound(self) -> float:
        return max(abs(self.low), abs(self.high))

    @property
    def exact(self) -> bool:
        return self.grain is not None

    def static(self, axis: int) -> bool:
        return len(set(self.shape[axis])) == 1

    @property
    def is_static(self) -> bool:
        return all(self.static(axis) for axis in range(self.rank))

    def extents(self) -> tuple[int, ...]:
        return tuple(dim[0] for dim in self.shape)


@dataclass(frozen=True)
class GraphInput:
    """One graph input: its symbolic shape and one array for each feed (None: the initializer's own value is used)."""

    info: ValueInfoProto
    arrays: tuple[np.ndarray | None, ...]


@dataclass
class Shared:
    """What the main graph and its subgraphs have in common."""

    random: random.Random
    data: np.random.Generator
    opset: int
    feeds: int
    symbols: dict[str, Dim]
    inputs: list[GraphInput] = field(default_factory=list)
    counter: int = 0
    node_count: int = 0
    domains: set[str] = field(default_factory=set)


class Builder:
    """Nodes, initializers and values of one graph or subgraph under construction."""

    def __init__(self, shared: Shared, parent: Builder | None = None) -> None:
        self.shared = shared
        self.parent = parent
        self.random = shared.random
        self.data = shared.data
        self.opset = shared.opset
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.pool: list[Value] = []
        self.wanted: list[Value] = []  # intermediates that must become outputs
        self.used: set[str] = set()

    # choosing

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def choose(self, items: Sequence[Any]) -> Any:
        return items[self.random.randrange(len(items))]

    def visible(self) -> list[Value]:
        outer = self.parent.visible() if self.parent is not None else []
        return outer + self.pool

    def pick(self, accept: Callable[[Value], bool]) -> Value | None:
        """A value that `accept` likes, the newer the likelier; None when there is none."""
        values = [value for value in self.visible() if accept(value)]
        if not values:
            return None
        place = len(values) - 1 - int(abs(self.random.gauss(0, 0.35)) * len(values))
        return values[max(place, 0)]

    def pick_float(self, ranks: Iterable[int] | None = None, dtypes: Sequence[int] = (FLOAT,)) -> Value | None:
        allowed = None if ranks is None else set(ranks)
        return self.pick(lambda v: v.dtype in dtypes and (allowed is None or v.rank in allowed))

    # constants and inputs

    def fresh(self, stem: str) -> str:
        self.shared.counter += 1
        return f"{stem}_{self.shared.counter}"

    def static_dim(self, extent: int) -> Dim:
        return (int(extent),) * self.shared.feeds

    def static_shape(self, extents: Iterable[int]) -> tuple[Dim, ...]:
        return tuple(self.static_dim(extent) for extent in extents)

    def constant(self, array: np.ndarray, *, grain: float | None = None, plain: bool = False) -> Value:
        """`array` as an initializer, a Constant node or (unless `plain`) a small subgraph of constants."""
        array = np.asarray(array)
        if array.dtype.kind != "f":
            grain = 1.0
        name = self.fresh("c")
        choice = self.random.random()
        if not plain and choice < 0.06 and array.dtype == np.float32 and array.size:
            self._split_constant(name, array)
        elif choice < 0.4 and (self.opset >= 9 or array.dtype.kind == "f"):
            self._constant_node(name, array)
        else:
            self._initializer(name, array)
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        return Value(name, dtype, self.static_shape(array.shape), low, high, grain, array)

    def _constant_node(self, name: str, array: np.ndarray) -> None:
        attributes: dict[str, Any] = {"value": numpy_helper.from_array(array, "")}
        if self.opset >= 12 and self.chance(0.3):
            if array.dtype == np.int64 and array.ndim == 1:
                attributes = {"value_ints": [int(v) for v in array]}
            elif array.dtype == np.int64 and array.ndim == 0:
                attributes = {"value_int": int(array)}
            elif array.dtype == np.float32 and array.ndim == 0:
                attributes = {"value_float": float(array)}
        node = helper.make_node("Constant", [], [name], name=self.fresh("n"))
        for key, content in attributes.items():
            node.attribute.append(helper.make_attribute(key, content, attr_type=_LIST_TYPES.get(key)))
        self.nodes.append(node)
        self.shared.node_count += 1

    def _initializer(self, name: str, array: np.ndarray) -> None:
        """Before IR 4 every initializer is an input of the main graph too, so bodies have none."""
        owner = self
        while self.opset < 9 and owner.parent is not None:
            owner = owner.parent
        owner.initializers.append(numpy_helper.from_array(array, name))
        if self.opset < 9:
            info = helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            self.shared.inputs.append(GraphInput(info, (None,) * self.shared.feeds))

    def _split_constant(self, name: str, array: np.ndarray) -> None:
        """Computes `array` from two constants, exactly: half of twice the array, or its double negation."""
        first = self.fresh("c")
        if self.chance(0.5):
            self._initializer(first, np.asarray(array * np.float32(2), np.float32))
            half = self.fresh("c")
            self._constant_node(half, np.asarray(0.5, np.float32))
            self.node("Mul", [first, half], [name])
        else:
            self._initializer(first, np.asarray(-array, np.float32))
            self.node("Neg", [first], [name])

    def ints(self, numbers: Iterable[int], dtype: type = np.int64) -> Value:
        return self.constant(np.asarray(list(numbers), dtype))

    def scalar(self, number: float, dtype: int = FLOAT) -> Value:
        """A constant of rank 0 (sometimes of shape [1])."""
        array = np.asarray(number, helper.tensor_dtype_to_np_dtype(dtype))
        if self.chance(0.2):
            array = array.reshape(1)
        return self.constant(array, grain=grain_of(float(number)))

    def weights(self, extents: Sequence[int], scale: float, *, dtype: int = FLOAT, exact: bool = False) -> Value:
        """Random constants: multiples of 0.5 when `exact`, else uniform in [-scale, scale]."""
        kind = helper.tensor_dtype_to_np_dtype(dtype)
        if exact:
            array = np.asarray(self.data.integers(-3, 4, size=tuple(extents)) * 0.5, kind)
            return self.constant(array, grain=0.5)
        array = np.asarray(self.data.uniform(-1, 1, size=tuple(extents)) * scale, kind)
        if array.ndim <= 2 and self.parent is None and self.opset >= 9 and self.chance(0.08):
            return self.overridable(array)
        return self.constant(array)

    def overridable(self, array: np.ndarray) -> Value:
        """An initializer that is also a graph input; some feeds replace it."""
        name = self.fresh("p")
        self.initializers.append(numpy_helper.from_array(array, name))
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        info = helper.make_tensor_value_info(name, dtype, array.shape)
        arrays = tuple(
            np.asarray(self.data.permutation(array.reshape(-1)).reshape(array.shape)) if self.chance(0.5) else None
            for _ in range(self.shared.feeds)
        )
        self.shared.inputs.append(GraphInput(info, arrays))
        bound = float(np.abs(array).max()) if array.size else 0.0
        return Value(name, dtype, self.static_shape(array.shape), -bound, bound, None)

    # nodes

    def node(self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> None:
        name = "" if self.chance(0.1) else self.fresh("n")
        kept = {key: content for key, content in attributes.items() if content is not None}
        made = helper.make_node(op, inputs, outputs, name=name, domain=domain)
        for key, content in sorted(kept.items()):
            made.attribute.append(helper.make_attribute(key, content, attr_type=_LIST_TYPES.get(key)))
        self.nodes.append(made)
        self.shared.node_count += 1
        self.shared.domains.add(domain)

    def emit(
        self,
        op: str,
        inputs: Sequence[Value | None],
        shape: Sequence[Dim],
        *,
        like: Value | None = None,
        dtype: int | None = None,
        low: float = 0.0,
        high: float = 1.0,
        grain: float | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> Value:
        """Adds a node with one output; `like` gives the output its element type, bounds and grain."""
        name = self.fresh("v")
        self.node(op, self.names(inputs), [name], domain, **attributes)
        if like is not None:
            made = replace(like, name=name, shape=tuple(shape), constant=None)
            return made if dtype is None else replace(made, dtype=dtype)
        if dtype is None:
            first = next(value for value in inputs if value is not None)
            dtype = first.dtype
        if grain is not None and max(abs(low), abs(high)) / grain > EXACT_STEPS:
            grain = None
        return Value(name, dtype, tuple(shape), low, high, grain)

    def names(self, inputs: Sequence[Value | None]) -> list[str]:
        names = ["" if value is None else value.name for value in inputs]
        self.used.update(names)
        while names and not names[-1]:
            names.pop()
        return names

    def keep(self, value: Value) -> Value:
        """Lets later nodes use `value`."""
        self.pool.append(value)
        return value

    def fits(self, shape: Sequence[Dim]) -> bool:
        """Whether a tensor of `shape` stays small and has few axes."""
        if len(shape) > 5:
            return False
        for feed in range(self.shared.feeds):
            count = 1
            for dim in shape:
                count *= dim[feed]
            if count > MOST_ELEMENTS:
                return False
        return True

    def broadcast(self, *shapes: Sequence[Dim]) -> tuple[Dim, ...] | None:
        """The broadcast shape, None when the shapes disagree in some feed or the result is too large."""
        rank = max(len(shape) for shape in shapes)
        one = self.static_dim(1)
        result: list[Dim] = []
        for axis in range(-rank, 0):
            dims = {shape[axis] for shape in shapes if len(shape) >= -axis} - {one}
            if len(dims) > 1:
                return None
            result.append(dims.pop() if dims else one)
        return tuple(result) if self.fits(result) else None

    def graph(self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> GraphProto:
        return helper.make_graph(self.nodes, name, list(inputs), list(outputs), self.initializers)

    def info(self, value: Value, *, shaped: bool = True) -> ValueInfoProto:
        """The declaration of `value`: static extents as numbers, others as fresh names; all unknown unless `shaped`."""
        dims: list[int | str | None] | None = None
        if shaped:
            dims = [dim[0] if len(set(dim)) == 1 else self.fresh("d") for dim in value.shape]
        elif self.parent is None:
            dims = [None] * value.rank  # the outputs of a model must at least say their rank
        return helper.make_tensor_value_info(value.name, value.dtype, dims)


def product(dims: Iterable[Dim], feeds: int) -> Dim:
    """The product of extents, feed by feed."""
    result = (1,) * feeds
    for dim in dims:
        result = tuple(a * b for a, b in zip(result, dim, strict=True))
    return result


def grain_of(number: float) -> float | None:
    """The largest power of two from 1 down to 1/64 that divides `number`, None when there is none."""
    for exponent in range(7):
        grain = 2.0**-exponent
        if number / grain == round(number / grain):
            return grain
    return None


# Attributes whose lists may be empty.
_LIST_TYPES: dict[str, int] = {"value_ints": AttributeProto.INTS, "axes": AttributeProto.INTS}
