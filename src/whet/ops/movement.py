"""Inference for operators that move or replicate elements: reshapes, transposes, joins, splits, pads, resizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from whet.dtypes import INT64
from whet.errors import InvalidGraph
from whet.graph import Expr, Node, Shape, TensorData, TensorType, Type, Value
from whet.graph.dims import Dim, Known, bounded, broadcast, exact_div, floor_div, product
from whet.graph.types import format_shape
from whet.ops.common import (
    axes_in,
    axis_in,
    common_dtype,
    dtype_of,
    elements,
    never_negative,
    required,
    shape_of,
    static_ints,
    unknown,
)


def constant(node: Node) -> Sequence[Type | None]:
    value = node.attributes.get("value")
    return (TensorType(value.dtype, value.shape),) if isinstance(value, TensorData) else (None,)


def shape(node: Node) -> Sequence[Type | None]:
    """A vector as long as the part of the input's rank between `start` and `end`."""
    source = shape_of(required(node, 0))
    if source is None:
        return (TensorType(INT64, (None,)),)
    start, end = shape_range(node, len(source))
    return (TensorType(INT64, (max(end - start, 0),)),)


def shape_range(node: Node, rank: int) -> tuple[int, int]:
    """Attributes `start` and `end` of Shape, clamped to the rank."""
    start, end = node.int_attr("start", 0), node.int_attr("end", rank)
    start = min(max(start + rank if start < 0 else start, 0), rank)
    end = min(max(end + rank if end < 0 else end, 0), rank)
    return start, end


def size(node: Node) -> Sequence[Type | None]:
    return (TensorType(INT64, ()),)


def vector_length(value: Value | None) -> int | None:
    """How many elements a 1-D value has, where known."""
    dims = shape_of(value)
    return dims[0] if dims is not None and len(dims) == 1 and isinstance(dims[0], int) else None


def reshape(node: Node) -> Sequence[Type | None]:
    source, target = required(node, 0), required(node, 1)
    dtype = dtype_of(source)
    wanted = elements(target)
    if wanted is None:
        return (TensorType(dtype, unknown(vector_length(target))),)
    return (TensorType(dtype, reshaped(shape_of(source), wanted, node.int_attr("allowzero", 0) != 0)),)


def reshaped(source: Shape | None, wanted: Shape, allow_zero: bool) -> Shape:
    """The shape that Reshape makes of `source`. Raises InvalidGraph when the element counts cannot agree."""
    dims: list[Dim] = []
    open_at: list[int] = []  # positions of -1 and of elements that are not known
    for i, element in enumerate(wanted):
        if element == 0 and not allow_zero:
            if source is not None and i >= len(source):
                raise InvalidGraph(
                    "a 0 in the target shape copies an axis that the input lacks",
                    found=f"{format_shape(source)} to {format_shape(wanted)}",
                )
            copied = source[i] if source is not None else None
            dims.append(copied)
            continue
        if element == -1 or element is None:
            open_at.append(i)
            dims.append(None)
            continue
        if isinstance(element, int) and element < -1:
            raise InvalidGraph("a target extent is negative", found=format_shape(wanted), expected="-1, 0 or more")
        dims.append(element)
    if sum(e == -1 for e in wanted) > 1:
        raise InvalidGraph("the target shape has -1 more than once", found=format_shape(wanted))
    if source is None:
        return tuple(dims)
    if len(open_at) == 1:
        place = open_at[0]
        dims[place] = _missing(source, [d for i, d in enumerate(dims) if i != place], wanted)
    elif not open_at:
        have, made = product(source), product(dims)
        if isinstance(have, int) and isinstance(made, int) and have != made:
            raise InvalidGraph(
                "Reshape keeps the number of elements",
                found=f"{format_shape(source)} ({have} elements) to {format_shape(wanted)}",
                expected=f"a target of {have} elements",
            )
    return tuple(dims)


def _missing(source: Shape, others: Sequence[Dim], wanted: Shape) -> Dim:
    """The one extent that makes the products equal; equal factors cancel even where others are unknown."""
    have, rest = list(source), []
    for dim in others:
        if dim is not None and dim in have:
            have.remove(dim)
        else:
            rest.append(dim)
    if 0 in others or 0 in source:
        return None
    top, bottom = product(have), product(rest)
    if top is None or bottom is None or bottom == 0:
        return None
    found = exact_div(top, bottom)
    if found is None and isinstance(top, int) and isinstance(bottom, int):
        raise InvalidGraph(
            "the number of elements is not divisible by the target's known extents",
            found=f"{format_shape(source)} to {format_shape(wanted)}",
        )
    # Division that holds for the extents of a valid run only: the remainder is zero, so flooring is the quotient.
    return found if found is not None else floor_div(top, bottom)


def flatten(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    dims = shape_of(source)
    if dims is None:
        return (TensorType(dtype_of(source), (None, None)),)
    axis = node.int_attr("axis", 1)
    axis = len(dims) if axis == len(dims) else axis_in(axis, len(dims))
    return (TensorType(dtype_of(source), (product(dims[:axis]), product(dims[axis:]))),)


def squeeze(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    dims = shape_of(source)
    dtype = dtype_of(source)
    if dims is None:
        return (TensorType(dtype),)
    if node.input(1) is None:
        if not all(isinstance(d, int) for d in dims):
            return (TensorType(dtype),)
        return (TensorType(dtype, tuple(d for d in dims if d != 1)),)
    axes = static_ints(node.input(1))
    if axes is None:
        count = vector_length(node.input(1))
        return (TensorType(dtype, unknown(None if count is None else len(dims) - count)),)
    dropped = axes_in(axes, len(dims))
    for axis in dropped:
        extent = dims[axis]
        if isinstance(extent, int) and extent != 1:
            raise InvalidGraph(
                "only axes of extent 1 can be squeezed", found=format_shape(dims), expected=f"1 at {axis}"
            )
    return (TensorType(dtype, tuple(d for i, d in enumerate(dims) if i not in dropped)),)


def unsqueeze(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    dims = shape_of(source)
    axes = static_ints(required(node, 1))
    if dims is None or axes is None:
        count = vector_length(node.input(1))
        rank = None if dims is None or count is None else len(dims) + count
        return (TensorType(dtype_of(source), unknown(rank)),)
    new = axes_in(axes, len(dims) + len(axes))
    rest = iter(dims)
    result = tuple(1 if i in new else next(rest) for i in range(len(dims) + len(axes)))
    return (TensorType(dtype_of(source), result),)


def transpose(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    dims = shape_of(source)
    if dims is None:
        return (TensorType(dtype_of(source)),)
    perm = node.ints_attr("perm", range(len(dims) - 1, -1, -1))
    if sorted(perm) != list(range(len(dims))):
        raise InvalidGraph("perm is no permutation of the input's axes", found=list(perm), expected=f"rank {len(dims)}")
    return (TensorType(dtype_of(source), tuple(dims[p] for p in perm)),)


def concat(node: Node) -> Sequence[Type | None]:
    dtype = common_dtype(node.inputs)
    shapes = [shape_of(v) for v in node.inputs]
    known = [s for s in shapes if s is not None]
    if not known:
        return (TensorType(dtype),)
    rank = len(known[0])
    if any(len(s) != rank for s in known):
        raise InvalidGraph("the inputs' ranks differ", found=", ".join(map(format_shape, known)), expected="one rank")
    axis = axis_in(node.int_attr("axis", 0), rank)
    dims: list[Dim] = []
    for i in range(rank):
        if i == axis:
            total: Dim = 0
            for one in shapes:
                extent = None if one is None else one[i]
                total = None if total is None or extent is None else bounded(total + extent)
            dims.append(total)
            continue
        dims.append(_agree(known, i))
    return (TensorType(dtype, tuple(dims)),)


def _agree(shapes: Sequence[Shape], axis: int) -> Dim:
    """The extent that all shapes must share: a number where one has it, else any that is known."""
    found: Dim = None
    for shape_ in shapes:
        extent = shape_[axis]
        if isinstance(extent, int):
            if isinstance(found, int) and found != extent:
                raise InvalidGraph(
                    f"extents differ along axis {axis}, which is not the one concatenated",
                    found=", ".join(map(format_shape, shapes)),
                )
            found = extent
        elif found is None or (isinstance(found, Expr) and extent is not None and _plainer(extent, found)):
            found = extent
    return found


def _plainer(a: Expr, b: Expr) -> bool:
    """Which of two expressions for one extent to go on with: after up- and downsampling, the shorter one."""
    return a != b and len(str(a)) < len(str(b))


def split(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    dims = shape_of(source)
    count = len(node.outputs)
    if dims is None:
        return (TensorType(dtype_of(source)),) * count
    axis = axis_in(node.int_attr("axis", 0), len(dims))
    total = dims[axis]
    parts: Sequence[Dim]
    if node.input(1) is not None:
        sizes = elements(node.input(1))
        parts = sizes if sizes is not None else (None,) * count
        if len(parts) != count:
            raise InvalidGraph("Split makes one output a size", found=f"{len(parts)} sizes", expected=f"{count} sizes")
        known = [p for p in parts if isinstance(p, int)]
        if isinstance(total, int) and len(known) == count and (sum(known) != total or min(known) < 0):
            raise InvalidGraph("the sizes do not add up to the axis", found=known, expected=f"a sum of {total}")
    else:
        number = node.int_attr("num_outputs", count)
        if isinstance(total, int):
            chunk = -(-total // number)
            parts = [max(min(chunk, total - i * chunk), 0) for i in range(count)]
        elif total is None:
            parts = (None,) * count
        else:
            even = exact_div(total, number)
            parts = (even,) * count
    return tuple(TensorType(dtype_of(source), (*dims[:axis], p, *dims[axis + 1 :])) for p in parts)


def expand(node: Node) -> Sequence[Type | None]:
    source, target = required(node, 0), required(node, 1)
    dims, wanted = shape_of(source), elements(target)
    if dims is None:
        return (TensorType(dtype_of(source)),)
    if wanted is None:
        length = vector_length(target)
        return (TensorType(dtype_of(source), unknown(None if length is None else max(length, len(dims)))),)
    try:
        return (TensorType(dtype_of(source), broadcast(dims, wanted)),)
    except ValueError as error:
        raise InvalidGraph(
            "the input cannot be expanded to the target shape",
            found=f"{format_shape(dims)} to {format_shape(wanted)}",
            expected="extents that are equal or 1",
        ) from error


def tile(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    dims, repeats = shape_of(source), elements(required(node, 1))
    if dims is None or repeats is None:
        return (TensorType(dtype_of(source), unknown(None if dims is None else len(dims))),)
    if len(repeats) != len(dims):
        raise InvalidGraph("Tile needs one repeat an axis", found=len(repeats), expected=len(dims))
    return (TensorType(dtype_of(source), tuple(_times(d, r) for d, r in zip(dims, repeats, strict=True))),)


def _times(a: Dim, b: Dim) -> Dim:
    return None if a is None or b is None else a * b


def pad(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    dims = shape_of(source)
    if dims is None:
        return (TensorType(dtype_of(source)),)
    pads = elements(required(node, 1))
    if node.input(3) is not None:
        given = static_ints(node.input(3))
        if given is None:
            return (TensorType(dtype_of(source), unknown(len(dims))),)
        axes = axes_in(given, len(dims))
    else:
        axes = tuple(range(len(dims)))
    if pads is None:
        return (TensorType(dtype_of(source), unknown(len(dims))),)
    if len(pads) != 2 * len(axes):
        raise InvalidGraph("Pad needs a begin and an end for each axis", found=len(pads), expected=2 * len(axes))
    result = list(dims)
    for i, axis in enumerate(axes):
        extent, before, after = result[axis], pads[i], pads[i + len(axes)]
        result[axis] = None if extent is None or before is None or after is None else extent + before + after
        padded = result[axis]
        if isinstance(padded, int) and padded < 0:
            raise InvalidGraph("negative pads remove more than the axis has", found=list(pads), value=source.name)
    return (TensorType(dtype_of(source), tuple(result)),)


def resize(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    dims = shape_of(source)
    if dims is None:
        return (TensorType(dtype_of(source)),)
    axes = axes_in(node.ints_attr("axes", range(len(dims))), len(dims))
    result: list[Dim] = list(dims)
    sizes = node.input(3)
    scales = node.input(2)
    if sizes is not None:
        wanted = elements(sizes)
        if wanted is not None and len(wanted) == len(axes):
            wanted = _kept_ratio(node, [dims[axis] for axis in axes], wanted)
        for i, axis in enumerate(axes):
            result[axis] = wanted[i] if wanted is not None and i < len(wanted) else None
    else:
        factors = scales.array if scales is not None else None
        for i, axis in enumerate(axes):
            extent = result[axis]
            known = factors is not None and factors.ndim == 1 and i < factors.size and extent is not None
            result[axis] = scaled(extent, float(factors[i])) if known and factors is not None else None  # type: ignore[arg-type]
    return (TensorType(dtype_of(source), tuple(result)),)


def _kept_ratio(node: Node, extents: Sequence[Dim], wanted: Shape) -> Shape:
    """The sizes of a Resize after its keep_aspect_ratio_policy."""
    policy = node.str_attr("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return wanted
    pairs = [(w, e) for w, e in zip(wanted, extents, strict=True) if isinstance(w, int) and isinstance(e, int) and e]
    if len(pairs) != len(wanted):
        return (None,) * len(wanted)
    choose = min if policy == "not_larger" else max
    factor = choose(w / e for w, e in pairs)
    return tuple(int(e * factor + 0.5) for _, e in pairs)


def scaled(extent: Known, factor: float) -> Dim:
    """`floor(extent * factor)`; for a free extent only where the factor is a small fraction."""
    if isinstance(extent, int):
        # In single precision, as ONNX Runtime multiplies: 10 x 2.3 is 23.
        return math.floor(float(np.float32(extent) * np.float32(factor)))
    ratio = Fraction(factor)
    if ratio.denominator <= 4096 and ratio > 0 and never_negative(extent):
        return floor_div(extent * ratio.numerator, ratio.denominator)
    return None


def depth_to_space(node: Node) -> Sequence[Type | None]:
    return _blocks(node, grow=True)


def space_to_depth(node: Node) -> Sequence[Type | None]:
    return _blocks(node, grow=False)


def _blocks(node: Node, grow: bool) -> Sequence[Type | None]:
    source = required(node, 0)
    dims, block = shape_of(source), node.int_attr("blocksize", 1)
    if dims is None or len(dims) != 4 or block <= 0:
        return (TensorType(dtype_of(source), unknown(4)),)
    n, c, h, w = dims
    if grow:
        deep = None if c is None else floor_div(c, block * block)
        return (TensorType(dtype_of(source), (n, deep, _times(h, block), _times(w, block))),)
    flat = tuple(None if d is None else floor_div(d, block) for d in (h, w))
    return (TensorType(dtype_of(source), (n, _times(c, block * block), *flat)),)
