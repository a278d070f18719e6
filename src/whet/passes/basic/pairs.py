"""Two operators in a row that one, or none, can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from whet.dtypes import BY_NAME, STRING, DType
from whet.graph import Node, Patch, Value
from whet.ops.common import axes_in, dtype_of, provably_equal, shape_of, static_ints
from whet.passes.base import NodePass, PassContext, producer
from whet.passes.basic.common import bypass, constant, dtype_name, ints, substitute

_Rewrite = Callable[[Node], Patch | None]


# Casts ---------------------------------------------------------------------------------------------------------------

_FLOAT_HOLDS_INTEGER_BITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
_WIDER_FLOATS = {
    "float16": {"float32", "float64"},
    "bfloat16": {"float32", "float64"},
    "float32": {"float64"},
}


def lossless(source: DType, target: DType) -> bool:
    """Whether every value of `source` is exact in `target`."""
    if source is target:
        return True
    if source.kind == "bool":
        return target.is_integer or target.name in _FLOAT_HOLDS_INTEGER_BITS
    if source.is_integer:
        value_bits = source.bits - (source.kind == "int")
        if target.is_integer:
            signed = target.kind == "int"
            return (source.kind == "uint" or signed) and value_bits <= target.bits - signed
        return value_bits <= _FLOAT_HOLDS_INTEGER_BITS.get(target.name, 0)
    return target.name in _WIDER_FLOATS.get(source.name, ())


def _cast_cast(node: Node) -> Patch | None:
    inner = producer(node.input(0), "Cast")
    if inner is None or inner.inputs[0] is None:
        return None
    names = [dtype_name(v) for v in (inner.inputs[0], inner.output, node.output)]
    source, middle, target = (BY_NAME.get(n or "") for n in names)
    if source is None or middle is None or target is None or not lossless(source, middle):
        return None
    if target is STRING:
        return None  # the type between says how many digits are written, and whether there is a point
    if source is target:
        return bypass(node, inner.inputs[0])
    return substitute(node, "Cast", [inner.inputs[0]], node.attributes)


# Views ---------------------------------------------------------------------------------------------------------------

_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


def _view_reshape(node: Node) -> Patch | None:
    """A Reshape looks only at the order of elements, which no view changes, unless it copies extents."""
    source = node.input(0)
    inner = source.producer if source is not None else None
    if inner is None or inner.op not in _VIEWS or inner.inputs[0] is None:
        return None
    target = static_ints(node.input(1))
    if target is None:
        return None
    if node.int_attr("allowzero", 0) == 0:
        before, middle = shape_of(inner.inputs[0]), shape_of(inner.output)
        for i, extent in enumerate(target):
            if extent != 0:
                continue
            if before is None or middle is None or i >= len(before) or i >= len(middle):
                return None
            if not provably_equal(before[i : i + 1], middle[i : i + 1]):
                return None
    return substitute(node, "Reshape", [inner.inputs[0], node.input(1)], node.attributes)


def _axes(node: Node, rank: int | None) -> tuple[int, ...] | None:
    """The axes of a Squeeze or Unsqueeze, counted from the front in a tensor of `rank` axes."""
    given = static_ints(node.input(1))
    if given is None or (rank is None and any(a < 0 for a in given)):
        return None
    return given if rank is None else axes_in(given, rank)


def _rank(value: Value | None) -> int | None:
    dims = shape_of(value)
    return None if dims is None else len(dims)


def _squeeze(node: Node) -> Patch | None:
    source = node.input(0)
    if source is None or node.input(1) is None:
        return None
    outer = _axes(node, _rank(source))
    unsqueeze = producer(source, "Unsqueeze")
    if unsqueeze is not None and outer is not None:
        inner = _axes(unsqueeze, _rank(source))
        if inner is not None and set(inner) == set(outer) and unsqueeze.inputs[0] is not None:
            return bypass(node, unsqueeze.inputs[0])
    squeeze = producer(source, "Squeeze")
    if squeeze is not None and outer is not None and squeeze.input(1) is not None:
        rank = _rank(squeeze.inputs[0])
        inner = _axes(squeeze, rank)
        if inner is not None and rank is not None:
            left = [a for a in range(rank) if a not in inner]
            together = sorted({*inner, *(left[a] for a in outer)})
            return substitute(node, "Squeeze", [squeeze.inputs[0], ints(*together)], {})
    return None


def _unsqueeze(node: Node) -> Patch | None:
    source = node.input(0)
    rank = _rank(node.output)
    outer = _axes(node, rank)
    if outer is None or rank is None:
        return None
    squeeze = producer(source, "Squeeze")
    if squeeze is not None and squeeze.inputs[0] is not None and squeeze.input(1) is not None:
        inner = _axes(squeeze, rank) if _rank(squeeze.inputs[0]) == rank else None
        if inner is not None and set(inner) == set(outer):
            return bypass(node, squeeze.inputs[0])
    unsqueeze = producer(source, "Unsqueeze")
    if unsqueeze is not None:
        inner = _axes(unsqueeze, rank - len(outer))
        if inner is not None:
            kept = [a for a in range(rank) if a not in outer]
            together = sorted({*outer, *(kept[a] for a in inner)})
            return substitute(node, "Unsqueeze", [unsqueeze.inputs[0], ints(*together)], {})
    return None


# Transposes and slices -----------------------------------------------------------------------------------------------


def permutation(node: Node) -> tuple[int, ...] | None:
    """The permutation of a Transpose, also where it is left to the default; None when that needs an unknown rank."""
    perm = node.ints_attr("perm")
    if perm:
        return perm
    rank = _rank(node.input(0))
    return None if rank is None else tuple(range(rank - 1, -1, -1))


def _transpose_transpose(node: Node) -> Patch | None:
    inner = producer(node.input(0), "Transpose")
    if inner is None or inner.inputs[0] is None:
        return None
    first, second = permutation(inner), permutation(node)
    if first is None or second is None or len(first) != len(second):
        return None
    perm = tuple(first[p] for p in second)
    if perm == tuple(range(len(perm))):
        return bypass(node, inner.inputs[0])
    return substitute(node, "Transpose", [inner.inputs[0]], {"perm": perm})


def _slice_parts(node: Node) -> dict[int, tuple[int, int, int]] | None:
    """Start, end and step by axis (from the front) where all are constants."""
    rank = _rank(node.input(0))
    starts, ends = static_ints(node.input(1)), static_ints(node.input(2))
    if rank is None or starts is None or ends is None:
        return None
    axes = static_ints(node.input(3)) if node.input(3) is not None else tuple(range(len(starts)))
    steps = static_ints(node.input(4)) if node.input(4) is not None else (1,) * len(starts)
    if axes is None or steps is None:
        return None
    return dict(zip(axes_in(axes, rank), zip(starts, ends, steps, strict=True), strict=True))


def _slice_slice(node: Node) -> Patch | None:
    inner = producer(node.input(0), "Slice")
    if inner is None:
        return None
    first, second = _slice_parts(inner), _slice_parts(node)
    if first is None or second is None:
        return None
    together = dict(first)
    for axis, (start, end, step) in second.items():
        if axis not in first:
            together[axis] = (start, end, step)
            continue
        start0, end0, step0 = first[axis]
        if step != 1 or step0 != 1 or min(start, end, start0, end0) < 0:
            return None
        together[axis] = (start0 + start, min(end0, start0 + end), 1)
    far = 2**63 - 1
    axes = sorted(together)
    operands = [ints(*(min(together[a][i], far) for a in axes)) for i in range(3)]
    return substitute(node, "Slice", [inner.inputs[0], operands[0], operands[1], ints(*axes), operands[2]], {})


# Element-wise --------------------------------------------------------------------------------------------------------


def _relu(node: Node) -> Patch | None:
    source = node.input(0)
    relu = producer(source, "Relu")
    if relu is not None and source is not None:
        return bypass(node, source)
    clip = producer(source, "Clip")
    if clip is None:
        return None
    bounds = _bounds(clip)
    return _clip_with(node, clip.input(0), clamp_of_clamp(bounds, (0, None))) if bounds is not None else None


def _clip(node: Node) -> Patch | None:
    outer = _bounds(node)
    if outer is None:
        return None
    relu, clip = producer(node.input(0), "Relu"), producer(node.input(0), "Clip")
    if relu is not None:
        return _clip_with(node, relu.input(0), clamp_of_clamp((0, None), outer))
    inner = _bounds(clip) if clip is not None else None
    if clip is None or inner is None:
        return None
    return _clip_with(node, clip.input(0), clamp_of_clamp(inner, outer))


_Bounds = tuple[Any, Any]


def _bounds(clip: Node) -> _Bounds | None:
    """Constant bounds of a Clip (None: open), or None when they are not constant, NaN or the wrong way round."""
    found: list[Any] = []
    for value in (clip.input(1), clip.input(2)):
        if value is None:
            found.append(None)
        elif value.data is not None and value.data.size == 1:
            number = value.data.scalar()
            if number != number:
                return None
            found.append(number)
        else:
            return None
    low, high = found
    return None if low is not None and high is not None and low > high else (low, high)


def clamp_of_clamp(inner: _Bounds, outer: _Bounds) -> _Bounds:
    """The bounds of one clamp that equals `inner` followed by `outer`; both have low <= high."""

    def limit(number: Any) -> Any:
        if outer[0] is not None and number < outer[0]:
            return outer[0]
        return outer[1] if outer[1] is not None and number > outer[1] else number

    low = outer[0] if inner[0] is None else limit(inner[0])
    high = outer[1] if inner[1] is None else limit(inner[1])
    return low, high


def _clip_with(node: Node, source: Value | None, bounds: _Bounds) -> Patch | None:
    dtype = dtype_of(source)
    if dtype is None:
        return None
    values = [None if b is None else constant(np.array(b, dtype.numpy)) for b in bounds]
    while values and values[-1] is None:
        values.pop()
    return substitute(node, "Clip", [source, *values], {})


def _twice(op: str) -> _Rewrite:
    """An operator that undoes itself."""

    def check(node: Node) -> Patch | None:
        inner = producer(node.input(0), op)
        return bypass(node, inner.inputs[0]) if inner is not None and inner.inputs[0] is not None else None

    return check


def _concat_axis(node: Node) -> int | None:
    """The axis of a Concat, counted from the front, or None while the rank is unknown."""
    rank = _rank(node.output)
    return None if rank is None else axes_in((node.int_attr("axis", 0),), rank)[0]


def _concat_concat(node: Node) -> Patch | None:
    """Concats along one axis each of which only feeds the next: all at once, from the last one."""
    axis = _concat_axis(node)
    if axis is None:
        return None
    reader = node.output.only_use
    if reader is not None and reader.op == "Concat" and _concat_axis(reader) == axis:
        return None  # one at a time, a chain would be copied once for each link
    inputs: list[Value | None] = []
    waiting = [(v, node) for v in reversed(node.inputs)]
    while waiting:
        value, outer = waiting.pop()
        inner = producer(value, "Concat")
        if inner is not None and inner.output.only_use is outer and _concat_axis(inner) == axis:
            waiting.extend((v, inner) for v in reversed(inner.inputs))
        else:
            inputs.append(value)
    return substitute(node, "Concat", inputs, node.attributes) if len(inputs) > len(node.inputs) else None


PAIRS: Mapping[str, _Rewrite] = {
    "Cast": _cast_cast,
    "Reshape": _view_reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose_transpose,
    "Slice": _slice_slice,
    "Relu": _relu,
    "Clip": _clip,
    "Not": _twice("Not"),
    "Neg": _twice("Neg"),
    "Concat": _concat_concat,
}
"""The rewrite of each operator that may follow one of its own kind."""


class RedundantPairs(NodePass):
    """Lets one operator do what two in a row do, where the result is the same to the bit."""

    name = "redundant-pairs"
    roots = frozenset(PAIRS)

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        return PAIRS[node.op](node)
