"""Reads the expression between an attention's two products: scale, soft cap, masks and softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from whet.dtypes import DType
from whet.graph import Node, Value
from whet.passes.base import producer
from whet.passes.extended.attention_views import (
    View,
    constant_scale,
    dtype_of,
    no_training,
    same_dims,
    view_of,
)

ABSORBING = 1e30
"""A finite mask value of at least this size swallows any score that is added to it, in float32 as in float64."""

MOST_STEPS = 64
"""How many operators between softmax and product are looked through."""
MOST_PRODUCTS = 4
"""How many products in a row are looked through for the one number that a tensor holds."""


@dataclass(frozen=True, slots=True)
class Mask:
    """`value * factor` added to the scores; or, with `keep` set, scores replaced by `fill` where `value != keep`."""

    value: Value
    rank: int
    """The rank of the scores at the place where the mask is applied."""
    factor: float = 1.0
    keep: bool | None = None
    fill: float = -math.inf


@dataclass(slots=True)
class Scores:
    """softmax(cap(scale * query @ key') + masks), read from the softmax down; `key` has one row a key."""

    query: View
    key: View
    softmax: Node
    product: Node
    scale: float = 1.0
    softcap: float = 0.0
    masks: list[Mask] = field(default_factory=list)
    softmax_dtype: DType | None = None
    guarded: bool = False
    """Rows that are NaN, because every key is masked, are set to zero: what Attention does by itself."""


@dataclass(frozen=True, slots=True)
class Contraction:
    """(batch, heads, rows, columns) operands of one product; its value is the result with axes in the order `perm`."""

    left: Value
    right: View
    left_view: View
    perm: tuple[int, ...]


class Mismatch(Exception):
    """Why the expression is no attention; `near` when most of it is."""

    def __init__(self, reason: str, *, near: bool = True) -> None:
        super().__init__(reason)
        self.near = near


def read_scores(probabilities: Value) -> Scores:
    """The scores whose softmax `probabilities` is. Raises Mismatch."""
    value, guarded, back, readers = probabilities, False, None, 1
    unread: list[tuple[Value, int]] = []
    while True:
        node = value.producer
        if node is None:
            raise Mismatch("no softmax", near=False)
        if node.op == "Softmax":
            break
        if node.op in ("Identity", "Dropout") and no_training(node) and node.inputs[0] is not None:
            inner, inner_readers = node.inputs[0], 1
        elif node.op == "Cast" and node.inputs[0] is not None:
            inner, back, inner_readers = node.inputs[0], dtype_of(value), 1
        else:
            found = _nan_guard(node)
            if found is None:
                raise Mismatch("no softmax", near=False)
            inner, guarded, inner_readers = found, True, 2
        unread.append((value, readers))
        value, readers = inner, inner_readers
    unread.append((value, readers))
    rank = len(value.shape) if value.shape is not None else None
    if rank is None or node.int_attr("axis", -1) not in (-1, rank - 1):
        raise Mismatch("the softmax is not over the last axis", near=False)
    source = node.inputs[0]
    assert source is not None
    scores = _walk(source, 1.0, node)
    for inner, readers in unread:
        _expect_private(inner, readers)
    scores.guarded = guarded
    _settle_precision(scores, value, back)
    return scores


def read_product(node: Node) -> Contraction | None:
    """The two operands of a batched matrix product over (batch, heads), or None."""
    left, right = node.input(0), node.input(1)
    if left is None or right is None:
        return None
    if node.op == "MatMul":
        left_view, right_view = view_of(left), view_of(right)
        if left_view is None or right_view is None or len(left_view.perm) != len(right_view.perm):
            return None
        return Contraction(left, right_view.swapped(), left_view, tuple(range(len(left_view.perm))))
    if node.op == "Einsum" and len(node.inputs) == 2:
        return _einsum(node, left, right)
    return None


def _einsum(node: Node, left: Value, right: Value) -> Contraction | None:
    """An Einsum over two rank-4 operands that share two labels with the result and contract one.

    The operand whose own label comes first in the result is the left one; the result's other order is `perm`.
    """
    equation = node.str_attr("equation", "").replace(" ", "")
    terms, arrow, result = equation.partition("->")
    labels = terms.split(",")
    if not arrow or len(labels) != 2 or any(len(t) != 4 or len(set(t)) != 4 for t in (*labels, result)):
        return None
    first, second = labels
    if "." in equation:
        return None
    batch = [c for c in result if c in first and c in second]
    contracted = [c for c in first if c in second and c not in result]
    own = [c for c in result if (c in first) != (c in second)]
    if len(batch) != 2 or len(contracted) != 1 or len(own) != 2:
        return None
    operands = [(left, first), (right, second)]
    if own[0] in second:
        operands.reverse()
    (a, a_labels), (b, b_labels) = operands
    if own[0] not in a_labels or own[1] not in b_labels:
        return None
    a_perm = tuple(a_labels.index(c) for c in (*batch, own[0], *contracted))
    b_perm = tuple(b_labels.index(c) for c in (*batch, own[1], *contracted))
    order = (*batch, *own)
    return Contraction(a, View(b, b_perm), View(a, a_perm), tuple(order.index(c) for c in result))


def _walk(value: Value, factor: float, reader: Node, depth: int = 0) -> Scores:
    """The scores that `value` stands for; `factor` is what is multiplied onto them above. Raises Mismatch.

    `depth` counts the steps from the softmax. What is walked is a tree, because every value in it has one reader, so
    that the walk ends soon whatever the graph.
    """
    node = value.producer
    if depth > MOST_STEPS:
        raise Mismatch("there is too much between softmax and product", near=False)
    if node is None:
        raise Mismatch("the softmax is not over a product of query and key", near=False)
    contraction = read_product(node)
    if contraction is not None:
        if contraction.perm != tuple(range(len(contraction.perm))):
            raise Mismatch("the scores are not (batch, heads, queries, keys)")
        _expect_private(value)
        return Scores(contraction.left_view, contraction.right, reader, node, scale=factor)
    scaled = constant_scale(node)
    step = _STEPS.get(node.op)
    if scaled is None and step is None:
        raise Mismatch(f"{node.label} stands between softmax and product", near=False)
    _expect_private(value)
    if scaled is not None:
        return _walk(scaled[0], factor * scaled[1], reader, depth + 1)
    assert step is not None
    return step(node, factor, reader, depth + 1)


def _walk_add(node: Node, factor: float, reader: Node, depth: int) -> Scores:
    failure: Mismatch | None = None
    for inner, mask in (node.inputs, node.inputs[::-1]):
        if inner is None or mask is None or inner.data is not None:
            continue
        try:
            scores = _walk(inner, factor, reader, depth)
        except Mismatch as reason:
            failure = reason if failure is None or reason.near else failure
            continue
        if scores.softcap and factor != 1.0:
            raise Mismatch("a mask is scaled together with capped scores")
        scores.masks.append(Mask(mask, _expect_same_shape(node, inner), factor))
        return scores
    raise failure or Mismatch("no product under the mask", near=False)


def _walk_where(node: Node, factor: float, reader: Node, depth: int) -> Scores:
    condition = node.inputs[0]
    assert condition is not None
    for keep, inner, other in ((True, node.inputs[1], node.inputs[2]), (False, node.inputs[2], node.inputs[1])):
        fill = uniform(other)
        if inner is None or fill is None or inner.data is not None:
            continue
        scores = _walk(inner, factor, reader, depth)
        rank = _expect_same_shape(node, inner)
        fill *= factor
        if factor <= 0 or fill > -ABSORBING:
            raise Mismatch(f"masked scores become {fill:g}: a fully masked row would not stay uniform under a mask")
        scores.masks.append(Mask(condition, rank, keep=keep, fill=fill))
        return scores
    raise Mismatch("a Where chooses between two tensors", near=False)


def _walk_cast(node: Node, factor: float, reader: Node, depth: int) -> Scores:
    inner = node.inputs[0]
    assert inner is not None
    if reader.op != "Softmax" or factor != 1.0 or not all(r is reader for r in node.output.uses):
        raise Mismatch("the scores change type before they are masked")
    scores = _walk(inner, factor, reader, depth)
    scores.softmax_dtype = dtype_of(node.output)
    return scores


def _walk_reshape(node: Node, factor: float, reader: Node, depth: int) -> Scores:
    inner, outer = node.inputs[0], node.output
    assert inner is not None
    if inner.shape is None or outer.shape is None or not same_dims(inner.shape[-2:], outer.shape[-2:]):
        raise Mismatch("the scores are reshaped across queries and keys")
    if {len(inner.shape), len(outer.shape)} - {3, 4}:
        raise Mismatch(f"the scores have rank {len(inner.shape)} and {len(outer.shape)}")
    return _walk(inner, factor, reader, depth)


def _walk_tanh(node: Node, factor: float, reader: Node, depth: int) -> Scores:
    inner = node.inputs[0]
    assert inner is not None
    if factor <= 0:
        raise Mismatch("a soft cap is not positive")
    scores = _walk(inner, factor, reader, depth)
    if scores.masks or scores.softcap:
        raise Mismatch("the scores are masked before they are capped")
    scores.softcap = factor
    return scores


def _walk_identity(node: Node, factor: float, reader: Node, depth: int) -> Scores:
    if not no_training(node) or node.inputs[0] is None:
        raise Mismatch("a Dropout in training mode", near=False)
    return _walk(node.inputs[0], factor, reader, depth)


_STEPS = {
    "Add": _walk_add,
    "Cast": _walk_cast,
    "Dropout": _walk_identity,
    "Identity": _walk_identity,
    "Reshape": _walk_reshape,
    "Tanh": _walk_tanh,
    "Where": _walk_where,
}


def _nan_guard(node: Node) -> Value | None:
    """x in Where(IsNaN(x), 0, x), or None."""
    if node.op != "Where":
        return None
    test, zero, x = node.inputs
    if producer(test, "IsNaN") is None or uniform(zero) != 0.0:
        return None
    assert test is not None
    assert test.producer is not None
    return x if test.producer.inputs[0] is x else None


def _settle_precision(scores: Scores, probabilities: Value, back: DType | None) -> None:
    """Check that a softmax in a wider type is cast to it before and from it after."""
    own = dtype_of(scores.query.base)
    if scores.softmax_dtype is own:
        scores.softmax_dtype = None
    if back is not None and back is not own:
        raise Mismatch(f"the probabilities become {back}")
    if back is None and dtype_of(probabilities) is not own:
        raise Mismatch("query and probabilities have different types")


def _expect_private(value: Value, readers: int = 1) -> None:
    if value.graph_outputs:
        raise Mismatch(f"{value.name} inside the attention is an output of the graph")
    if value.quantization is not None:
        raise Mismatch(f"{value.name} inside the attention is quantized")
    if value.use_count != readers:
        raise Mismatch(f"{value.name} inside the attention is also read elsewhere")


def _expect_same_shape(node: Node, inner: Value) -> int:
    """The scores' rank. The mask must not enlarge them: Attention broadcasts the mask to them, never the reverse."""
    if inner.shape is None or node.output.shape is None or not same_dims(inner.shape, node.output.shape):
        raise Mismatch(f"the mask of {node.label} is not known to have the scores' shape or less")
    return len(inner.shape)


def uniform(value: Value | None, products: int = MOST_PRODUCTS) -> float | None:
    """The number that every element of a float tensor is, where that can be seen, else None."""
    while value is not None:
        if value.data is not None:
            if not value.data.dtype.is_float or value.data.size == 0:
                return None
            array = np.asarray(value.data.numpy())
            first = array.reshape(-1)[0]
            return float(first) if bool((array == first).all()) else None
        node = value.producer
        if node is None:
            return None
        if node.op == "ConstantOfShape":
            fill = node.attributes.get("value")
            numpy = getattr(fill, "numpy", None)
            return 0.0 if fill is None else float(numpy().reshape(-1)[0]) if numpy is not None else None
        if node.op == "Mul" and products:
            numbers = [uniform(v, products - 1) for v in node.inputs]
            return numbers[0] * numbers[1] if numbers[0] is not None and numbers[1] is not None else None
        if node.op not in ("Expand", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Transpose"):
            return None
        value = node.inputs[0]
    return None
