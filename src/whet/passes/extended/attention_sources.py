"""Where an attention's keys and values come from: repeated heads, a cache of past ones, one packed projection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from whet.graph import Graph, Node, Value
from whet.graph.dims import Shape, product
from whet.passes.base import producer
from whet.passes.extended.attention_views import IDENTITY, Builder, View, peel, same, same_dims

_STATE_VIEWS = frozenset(
    {"Cast", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
_STATE_DEPTH = 6


@dataclass(frozen=True, slots=True)
class Cache:
    """Keys and values of earlier steps, put in front of the new ones by two Concat nodes."""

    past_key: Value
    past_value: Value
    present_key: Value
    present_value: Value


@dataclass(frozen=True, slots=True)
class Packed:
    """Query, key and value as parts of one projection (batch, rows, parts * heads * columns)."""

    source: Value
    parts: tuple[int, ...]
    count: int
    hidden: int


def ungroup(view: View) -> View:
    """A view whose heads are repeated (each `n` times in a row) as the view before the repetition."""
    axis = view.perm[1]
    node = view.base.producer
    shape = view.base.shape
    if node is None or shape is None:
        return view
    source: Value | None = None
    if node.op == "Reshape":
        source = _repeated_by_expand(node, axis, shape)
    elif node.op == "Gather" and node.int_attr("axis", 0) % len(shape) == axis:
        source = _repeated_by_gather(node, axis)
    elif node.op == "Expand":
        inner = node.inputs[0]
        if inner is not None and inner.shape is not None and len(inner.shape) == len(shape):
            one = (*shape[:axis], 1, *shape[axis + 1 :])
            source = inner if same_dims(inner.shape, one) else None
    return view if source is None else peel(replace(view, base=source), scales=False)


def _repeated_by_expand(node: Node, axis: int, shape: Shape) -> Value | None:
    """x in Reshape(Expand(Unsqueeze(x, axis + 1))), which merges the new axis into `axis`."""
    wide = node.inputs[0]
    if wide is None or wide.shape is None or len(wide.shape) != len(shape) + 1:
        return None
    merged = (*wide.shape[:axis], product(wide.shape[axis : axis + 2]), *wide.shape[axis + 2 :])
    expand = wide.producer
    if expand is None or expand.op not in ("Expand", "Tile") or not same_dims(merged, shape):
        return None
    narrow = expand.inputs[0]
    if narrow is None or narrow.shape is None or len(narrow.shape) != len(wide.shape):
        return None
    if not same_dims(narrow.shape, (*wide.shape[: axis + 1], 1, *wide.shape[axis + 2 :])):
        return None
    inner = narrow.producer
    if inner is None or inner.op not in ("Unsqueeze", "Reshape") or inner.inputs[0] is None:
        return None
    source = inner.inputs[0]
    wanted = (*narrow.shape[: axis + 1], *narrow.shape[axis + 2 :])
    return source if source.shape is not None and same_dims(source.shape, wanted) else None


def _repeated_by_gather(node: Node, axis: int) -> Value | None:
    """x in Gather(x, [0, 0, 1, 1, ...], axis)."""
    source, indices = node.inputs
    array = None if indices is None else indices.array
    if source is None or source.shape is None or array is None or array.ndim != 1:
        return None
    heads = source.shape[axis]
    if not isinstance(heads, int) or heads == 0 or array.size % heads:
        return None
    return source if np.array_equal(array, np.repeat(np.arange(heads), array.size // heads)) else None


def find_cache(key: View, value: View, graph: Graph | None) -> Cache | None:
    """The cache that both views are joined with along their rows, by nodes of `graph`, or None."""
    concats = [producer(view.base, "Concat") for view in (key, value)]
    if any(c is None or len(c.inputs) != 2 or c.int_attr("axis", 0) not in (2, -2) for c in concats):
        return None
    if key.perm != IDENTITY or value.perm != IDENTITY or any(c is None or c.graph is not graph for c in concats):
        return None
    if key.base.quantization is not None or value.base.quantization is not None:
        return None
    past = [c.inputs[0] for c in concats if c is not None]
    if any(p is None or p.shape is None or len(p.shape) != 4 or not _is_state(p) for p in past):
        return None
    past_key, past_value = past
    assert past_key is not None
    assert past_value is not None
    return Cache(past_key, past_value, key.base, value.base)


def _is_state(value: Value) -> bool:
    """Whether a value is a graph input, seen through movements of data."""
    for _ in range(_STATE_DEPTH):
        node = value.producer
        if node is None:
            return value.data is None
        if node.op not in _STATE_VIEWS or node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return False


def reaches(sources: Iterable[Value | None], targets: frozenset[Node]) -> bool:
    """Whether a value of `sources` depends on the result of a node of `targets`."""
    seen: set[Node] = set()
    stack = [v.producer for v in sources if v is not None and v.producer is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        if node in targets:
            return True
        seen.add(node)
        stack += [v.producer for v in (*node.inputs, *node.captured()) if v is not None and v.producer is not None]
    return False


def find_packed(views: tuple[View, View, View]) -> Packed | None:
    """The projection that was reshaped to (batch, rows, parts, heads, columns) and taken apart into `views`."""
    found = [_packed_part(view) for view in views]
    if any(f is None for f in found):
        return None
    (first, _), *_ = (f for f in found if f is not None)
    parts = tuple(index for source, index in (f for f in found if f is not None) if source is first)
    shape = first.shape
    if len(parts) != 3 or shape is None or len(shape) != 5:
        return None
    node = producer(first, "Reshape")
    count, heads, size = shape[2:]
    if node is None or not isinstance(count, int) or not isinstance(heads, int) or not isinstance(size, int):
        return None
    source = node.inputs[0]
    if source is None or source.shape is None or not same_dims(source.shape, (*shape[:2], count * heads * size)):
        return None
    return Packed(source, parts, count, heads * size)


def _packed_part(view: View) -> tuple[Value, int] | None:
    """(x, i) when `view` is x[:, :, i] of a rank-5 x with its axes as (batch, heads, rows, columns)."""
    if view.perm != IDENTITY:
        return None
    node, index = view.base.producer, 0
    if node is None:
        return None
    if node.op == "Squeeze":
        axes = node.input(1)
        split = node.inputs[0].producer if node.inputs[0] is not None else None
        if split is None or split.op != "Split" or split.int_attr("axis", 0) != 0 or axes is None or axes.array is None:
            return None
        if axes.array.tolist() != [0] or any(o.shape is None or not same(o.shape[0], 1) for o in split.outputs):
            return None
        assert node.inputs[0] is not None
        index, stacked = node.inputs[0].output_index, split.inputs[0]
    elif node.op == "Gather" and node.int_attr("axis", 0) == 0:
        stacked, position = node.inputs
        if position is None or position.array is None or position.array.ndim != 0 or position.array < 0:
            return None
        index = int(position.array)
    else:
        return None
    transpose = producer(stacked, "Transpose")
    if transpose is None or transpose.ints_attr("perm") != (2, 0, 3, 1, 4) or transpose.inputs[0] is None:
        return None
    return transpose.inputs[0], index


def split_packed(packed: Packed, builder: Builder) -> tuple[Value, ...]:
    """Query, key and value (batch, rows, heads * columns), cut from the projection."""
    shape = packed.source.shape
    assert shape is not None
    pieces = builder.split(packed.source, 2, packed.hidden, packed.count)
    return tuple(pieces[i] for i in packed.parts)
