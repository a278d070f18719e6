"""The masks of an attention as the one operand that the Attention operator takes, or as its causal switch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from whet.graph import Value
from whet.graph.dims import Dim, Shape
from whet.graph.types import format_shape
from whet.passes.base import producer
from whet.passes.extended.attention_scores import ABSORBING, Mask, Mismatch, uniform
from whet.passes.extended.attention_views import Builder, dtype_of, same, same_dims

LARGEST_PROVED_MASK = 1 << 24
"""Elements of a constant mask that are looked at to see whether it is causal."""


def split_causal(masks: list[Mask], queries: Dim, keys: Dim) -> tuple[bool, list[Mask]]:
    """Whether the masks contain plain causal masking (query i sees keys 0..i), and the masks without it.

    Masks that add nothing but zeros go too. Removal by a finite number is the same as by -inf only where each query
    keeps a key: causal masking sees to that by itself, together with other masks it does not (padding on the left).
    """
    masks = [m for m in masks if m.keep is not None or uniform(m.value) != 0.0]
    causal, rest = False, []
    for mask in masks:
        removal = causal_removal(mask, queries, keys)
        if removal is not None and (len(masks) == 1 or removal == -math.inf):
            causal = True
        else:
            rest.append(mask)
    return causal, rest


def causal_removal(mask: Mask, queries: Dim, keys: Dim) -> float | None:
    """What `mask` adds to scores where key > query (the largest number), if it leaves others alone; else None."""
    triangle = _triangle(mask)
    if triangle is not None:
        rows, columns, number = triangle
        return number if same(rows, queries) and same(columns, keys) else None
    data = mask.value.data
    if data is None or data.size > LARGEST_PROVED_MASK or len(data.shape) < 2:
        return None
    rows, columns = data.shape[-2:]
    if not same(rows, queries) or not same(columns, keys) or any(e != 1 for e in data.shape[:-2]):
        return None
    array = np.asarray(data.numpy()).reshape(rows, columns)
    lower = np.tril(np.ones((rows, columns), np.bool_))
    if mask.keep is not None:
        return mask.fill if bool((array.astype(np.bool_) == (lower == mask.keep)).all()) else None
    values = array.astype(np.float64) * mask.factor
    if not (values[lower] == 0).all() or not (values[~lower] <= -ABSORBING).all():
        return None
    return float(values[~lower].max(initial=-math.inf))


def _triangle(mask: Mask) -> tuple[Dim, Dim, float] | None:
    """The extents of a mask that Trilu cuts from one number, and what it adds above the diagonal."""
    node = producer(mask.value, "Trilu")
    value = mask.value
    while node is None and value.producer is not None and value.producer.op in ("Unsqueeze", "Cast", "Identity"):
        inner = value.producer.inputs[0]
        if inner is None:
            return None
        value, node = inner, producer(inner, "Trilu")
    shape = value.shape
    if node is None or mask.keep is not None or shape is None or len(shape) != 2:
        return None
    offset = node.input(1)
    diagonal = 0 if offset is None else int(offset.array.reshape(())) if offset.array is not None else None
    number = uniform(node.inputs[0])
    if node.int_attr("upper", 1) != 1 or diagonal != 1 or number is None:
        return None
    removal = number * mask.factor
    return (shape[0], shape[1], removal) if removal <= -ABSORBING else None


def combine(masks: list[Mask], scores: Shape, lifted: bool, query: Value, builder: Builder) -> Value | None:
    """One value that broadcasts to `scores` (batch, heads, queries, keys): boolean, or added. Raises Mismatch.

    `lifted`: the graph's own scores have rank 3 and batch and heads merged, `scores` has them apart.
    """
    if not masks:
        return None
    fitted = [_fit(mask, scores, lifted, builder) for mask in masks]
    only = fitted[0]
    if len(fitted) == 1 and only.keep is not None and np.isneginf(only.fill):
        return only.value if only.keep else builder.add("Not", [only.value], only.value, only.value.shape)
    total: Value | None = None
    for mask in fitted:
        if mask.keep is not None:
            total = _replacing(mask, total, query, builder)
            continue
        term = _additive(mask, query, builder)
        if total is None:
            total = term
        else:
            total = builder.add("Add", [total, term], query, _joined(total.shape, term.shape))
    return total


def _replacing(mask: Mask, total: Value | None, query: Value, builder: Builder) -> Value:
    """What is added to the scores so far, or the fill, which replaces what other masks have added."""
    kept = builder.number(0.0, query) if total is None else total
    fill = builder.number(mask.fill, query)
    choices = [kept, fill] if mask.keep else [fill, kept]
    return builder.add("Where", [mask.value, *choices], query, _joined(mask.value.shape, kept.shape))


def _additive(mask: Mask, query: Value, builder: Builder) -> Value:
    if dtype_of(mask.value) is not dtype_of(query):
        raise Mismatch(f"the mask {mask.value.name} has another type than the query")
    if mask.factor == 1.0:
        return mask.value
    return builder.add("Mul", [mask.value, builder.number(mask.factor, query)], query, mask.value.shape)


def _fit(mask: Mask, scores: Shape, lifted: bool, builder: Builder) -> Mask:
    """`mask` with a value of rank 2 to 4. Raises Mismatch.

    It is known not to enlarge the scores. The last extent must be the number of keys itself: Attention would pad a
    shorter one with -inf.
    """
    value = mask.value
    if mask.rank == 3 and len(value.shape or ()) == 3:
        if not lifted:
            assert value.shape is not None
            batch, rows, columns = value.shape
            value = builder.add("Unsqueeze", [value, builder.ints([1])], value, (batch, 1, rows, columns))
        elif value.shape is not None and not same(value.shape[0], 1):
            source = producer(value, "Reshape")
            split = source.inputs[0] if source is not None else None
            if split is None or split.shape is None or not same_dims(split.shape[2:], value.shape[1:]):
                raise Mismatch(f"the mask {value.name} has one matrix for each batch and head, unsplit")
            value = split
    shape = value.shape
    if not shape or len(shape) > 4:
        raise Mismatch(f"the mask {value.name} has {'an unknown rank' if shape is None else f'rank {len(shape)}'}")
    if not same(shape[-1], scores[-1]):
        raise Mismatch(f"the mask {value.name} {format_shape(shape)} is not known to have one column a key")
    if len(shape) == 1:
        value = builder.add("Unsqueeze", [value, builder.ints([0])], value, (1, *shape))
    return replace(mask, value=value)


def _joined(a: Shape | None, b: Shape | None) -> Shape | None:
    if a is None or b is None:
        return None
    rank = max(len(a), len(b))
    columns = zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True)
    return tuple(y if same(x, 1) else x for x, y in columns)
