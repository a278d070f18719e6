"""Operands of an attention as (batch, heads, rows, columns): seen through transposes, scales and reshapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from whet.dtypes import DType
from whet.graph import Attribute, Node, Value
from whet.graph.dims import Dim, Shape, product
from whet.graph.tensor import Array
from whet.graph.types import TensorType
from whet.passes.base import producer

IDENTITY = (0, 1, 2, 3)
HEADS_INNER = (0, 2, 1, 3)
"""(batch, rows, heads, columns) as (batch, heads, rows, columns): what splitting a hidden dimension leaves."""

_PASS_THROUGH = frozenset({"Identity", "Dropout"})


@dataclass(frozen=True, slots=True)
class View:
    """`base` with its axes in the order `perm`, times the constant `factor`."""

    base: Value
    perm: tuple[int, ...]
    factor: float = 1.0

    @property
    def shape(self) -> Shape | None:
        shape = self.base.shape
        return None if shape is None else tuple(shape[axis] for axis in self.perm)

    def swapped(self) -> View:
        """This view with its last two axes exchanged."""
        return replace(self, perm=(*self.perm[:-2], self.perm[-1], self.perm[-2]))


def view_of(value: Value) -> View | None:
    """The view that is `value` itself, or None when its rank is not 3 or 4."""
    shape = value.shape
    if shape is None or len(shape) not in (3, 4):
        return None
    return View(value, tuple(range(len(shape))))


def peel(view: View, *, scales: bool = True) -> View:
    """The same view, read from in front of the transposes, no-ops and (with `scales`) constant scales that make it."""
    while True:
        node = view.base.producer
        if node is None or view.base.output_index != 0 or view.base.quantization is not None:
            return view
        if node.op == "Transpose":
            source = node.inputs[0]
            if source is None or source.shape is None:
                return view
            order = node.ints_attr("perm", tuple(reversed(range(len(source.shape)))))
            view = replace(view, base=source, perm=tuple(order[axis] for axis in view.perm))
            continue
        if node.op in _PASS_THROUGH and node.inputs[0] is not None:
            if not no_training(node):
                return view
            view = replace(view, base=node.inputs[0])
            continue
        if node.op == "Reshape":
            split = _split_heads(view)
            if split is None:
                return view
            view = split
            continue
        scaled = constant_scale(node) if scales else None
        if scaled is None or scaled[0].shape is None or len(scaled[0].shape) != len(view.perm):
            return view
        view = replace(view, base=scaled[0], factor=view.factor * scaled[1])


def lift(view: View) -> View | None:
    """A rank-3 view (batch * heads, rows, columns) as the rank-4 view that a Reshape merged into it, or None."""
    node = producer(view.base, "Reshape")
    if node is None or view.perm[0] != 0 or node.inputs[0] is None:
        return None
    source, merged = node.inputs[0], view.base.shape
    if source.shape is None or merged is None or len(source.shape) != 4 or len(merged) != 3:
        return None
    if not same_dims(source.shape[2:], merged[1:]) or not same(product(source.shape[:2]), merged[0]):
        return None
    return View(source, (0, 1, view.perm[1] + 1, view.perm[2] + 1), view.factor)


def _split_heads(view: View) -> View | None:
    """A view of (batch, heads, ...) split from batch * heads, when both were merged from such a value before."""
    node, shape = view.base.producer, view.base.shape
    merged = node.inputs[0] if node is not None else None
    if merged is None or merged.shape is None or shape is None or len(merged.shape) != 3 or len(shape) != 4:
        return None
    if not same_dims(merged.shape[1:], shape[2:]):
        return None
    inner = lift(peel(View(merged, (0, 1, 2)), scales=False))
    if inner is None or inner.shape is None or not same_dims(inner.shape, shape):
        return None
    return replace(inner, perm=tuple(inner.perm[axis] for axis in view.perm), factor=view.factor)


def constant_scale(node: Node) -> tuple[Value, float] | None:
    """(x, c) when `node` computes x * c for a constant scalar c (a product or a quotient), else None."""
    if node.op == "Mul":
        for x, c in (node.inputs, node.inputs[::-1]):
            number = scalar(c)
            if x is not None and number is not None and x.data is None:
                return x, number
    if node.op == "Div" and node.inputs[0] is not None and node.inputs[0].data is None:
        number = scalar(node.inputs[1])
        if number:
            return node.inputs[0], 1.0 / number
    return None


def scalar(value: Value | None) -> float | None:
    """The number in a constant of one float element and at most the rank of an attention's scores, else None."""
    if value is None or value.data is None or value.data.size != 1 or not value.data.dtype.is_float:
        return None
    number = float(np.asarray(value.data.numpy()).reshape(()).astype(np.float64))
    return number if len(value.data.shape) <= 3 else None


def no_training(node: Node) -> bool:
    """Whether a Dropout (or Identity) hands its input through: no mask is read, the training flag is off."""
    if node.op == "Identity":
        return True
    training = node.input(2)
    off = training is None or (training.array is not None and not training.array.any())
    return off and all(output.use_count == 0 for output in node.outputs[1:])


def same(a: Dim, b: Dim) -> bool:
    """Whether both extents are known and equal."""
    return a is not None and a == b


def same_dims(a: Shape, b: Shape) -> bool:
    """Whether two shapes are known and equal."""
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def finite_positive(number: float) -> bool:
    """Whether `number` can be an attention's scale."""
    return math.isfinite(number) and number > 0.0


class Builder:
    """Nodes of a patch under construction; every new value gets its type, so that later rewrites can go on from it."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add(
        self,
        op: str,
        inputs: Sequence[Value | None],
        like: Value,
        shape: Shape | None,
        attributes: Mapping[str, Attribute] | None = None,
        *,
        dtype: DType | None = None,
    ) -> Value:
        """Append a node with one output of `like`'s element type, or of `dtype`; returns the output."""
        output = Value("", TensorType(dtype or dtype_of(like), shape))
        self.nodes.append(Node(op, inputs, [output], attributes))
        return output

    def constant(self, array: Array) -> Value:
        """A new constant without a name (constants are known by identity)."""
        return Value.constant("", array)

    def ints(self, numbers: Sequence[int]) -> Value:
        """A constant int64 vector."""
        return self.constant(np.array(numbers, np.int64))

    def number(self, number: float, like: Value) -> Value:
        """A constant scalar of `like`'s element type."""
        dtype = dtype_of(like)
        assert dtype is not None
        return self.constant(np.array(number, dtype.numpy))

    def transpose(self, value: Value, perm: tuple[int, ...]) -> Value:
        """`value` with its axes in another order (itself for the identity)."""
        if perm == tuple(range(len(perm))):
            return value
        shape = value.shape
        target = None if shape is None else tuple(shape[axis] for axis in perm)
        return self.add("Transpose", [value], value, target, {"perm": perm})

    def split(self, value: Value, axis: int, extent: int, count: int) -> tuple[Value, ...]:
        """`value` cut into `count` equal parts along `axis`."""
        shape = value.shape
        assert shape is not None
        part = TensorType(dtype_of(value), (*shape[:axis], extent, *shape[axis + 1 :]))
        outputs = [Value("", part) for _ in range(count)]
        self.nodes.append(Node("Split", [value, self.ints([extent] * count)], outputs, {"axis": axis}))
        return tuple(outputs)

    def reshape(self, value: Value, dims: Shape) -> Value | None:
        """`value` in another shape; None when more than one extent is only known at run."""
        free = [not isinstance(d, int) for d in dims]
        if sum(free) > 1 or (any(free) and any(d == 0 for d in dims)):
            return None
        return self.add("Reshape", [value, self.ints([d if isinstance(d, int) else -1 for d in dims])], value, dims)

    def merge_last_two(self, value: Value) -> Value:
        """(batch, rows, heads, columns) as (batch, rows, heads * columns); reuses the tensor that was split."""
        shape = value.shape
        assert shape is not None
        hidden = product(shape[2:])
        target: Shape = (shape[0], shape[1], hidden)
        node = producer(value, "Reshape")
        if node is not None and node.inputs[0] is not None:
            source = node.inputs[0]
            if source.shape is not None and same_dims(source.shape, target):
                return source
        assert isinstance(hidden, int)
        return self.add("Reshape", [value, self.ints([0, 0, hidden])], value, target)


def dtype_of(value: Value) -> DType | None:
    """The element type, or None when it is not known."""
    return value.type.dtype if isinstance(value.type, TensorType) else None
