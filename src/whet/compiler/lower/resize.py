"""Resize: nearest elements in one copy, linear and cubic interpolation axis by axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import copy, relayout
from whet.compiler.lower.demand import demand, need
from whet.compiler.lower.movement import kept_axes, kept_tiles, kept_words
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, shape_of
from whet.compiler.step import Word, address
from whet.compiler.views import View, hint, memory_order, product
from whet.compiler.weights import Array
from whet.dtypes import BFLOAT16, BOOL, FLOAT16, FLOAT32, FLOAT64, INT32, DType
from whet.graph import Node, TensorType, Value
from whet.graph.dims import Known, ceil_div, floor_div, minimum
from whet.kernels.resize import Nearest, WeightedSum
from whet.kernels.resize_table import ResizeTable
from whet.ops.kernels.resize import nearest_elements, source_places, weighted_elements

BLOCK = 2048
"""Elements of the contiguous dimension in one tile."""
MOST_REPEATS = 8
"""Elements that are repeated so often, by whole factors, are spread in registers."""
SHORT_ROW = 256
ROWS = 4
TABLE_TILE = 256
MODES = ("nearest", "linear", "cubic")
COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize",
)  # fmt: skip
ROUNDING = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
POLICIES = ("stretch", "not_larger", "not_smaller")


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis that changes: its extents before and after, the scale where it is no ratio of them, the crop."""

    axis: int
    extent: Known
    size: Known
    scale: float | None
    region: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Table:
    """For one axis, the elements [taps, size] and, except for nearest, their weights."""

    index: View
    weight: View | None
    taps: Known


def refusal(node: Node) -> str | None:
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    for name, default, known in (
        ("mode", "nearest", MODES), ("coordinate_transformation_mode", "half_pixel", COORDINATES),
        ("nearest_mode", "round_prefer_floor", ROUNDING), ("keep_aspect_ratio_policy", "stretch", POLICIES),
    ):  # fmt: skip
        if node.str_attr(name, default) not in known:
            return f"no {name} {node.str_attr(name, default)}"
    kind = need(node, 0).type
    assert isinstance(kind, TensorType)
    mode = node.str_attr("mode", "nearest")
    if kind.dtype is BOOL and mode != "nearest":
        return "its input is bool"
    return "antialias does not go with mode nearest" if mode == "nearest" and node.int_attr("antialias", 0) else None


def lower_resize(ctx: Lowering, node: Node, group: Group | None) -> None:
    x = ctx.view(need(node, 0))
    changing = _changing(ctx, node, x)
    for axis in changing:
        demand(ctx, "at_most", minimum(axis.size, 1), axis.extent, "an empty axis cannot grow")
    if not changing:
        ctx.define(node.output, x)
    elif node.str_attr("mode", "nearest") == "nearest":
        _nearest(ctx, node, x, changing)
    else:
        _interpolate(ctx, node, x, changing)


def _changing(ctx: Lowering, node: Node, x: View) -> list[Axis]:
    axes = [a % x.rank for a in node.ints_attr("axes", range(x.rank))]
    shape = shape_of(node.output)
    scales, roi = _floats(ctx, node.input(2)), _floats(ctx, node.input(1))
    coordinates = node.str_attr("coordinate_transformation_mode", "half_pixel")
    factors: list[float | None] = [None] * len(axes)
    if scales:
        factors = list(scales)
    elif node.str_attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        factors = list(_kept_ratio(ctx, node, [x.shape[a] for a in axes]))
    found = []
    for i, axis in enumerate(axes):
        region = None
        if coordinates == "tf_crop_and_resize":
            if len(roi) != 2 * len(axes):
                raise ctx.refuse("roi does not hold a start and an end for each axis")
            region = (roi[i], roi[i + len(axes)])
        size, extent = shape[axis], x.shape[axis]
        if size == extent and factors[i] in (None, 1.0) and region in (None, (0.0, 1.0)):
            continue
        found.append(Axis(axis, extent, size, factors[i], region))
    return found


def _floats(ctx: Lowering, value: Value | None) -> tuple[float, ...]:
    if value is None or shape_of(value) == (0,):
        return ()
    if value.data is None:
        raise ctx.refuse(f"the elements of {value.name} are not known")
    return tuple(value.data.numpy().astype(np.float64).reshape(-1).tolist())


def _kept_ratio(ctx: Lowering, node: Node, extents: Sequence[Known]) -> list[float]:
    sizes = _floats(ctx, node.input(3))
    ratios = [s / e for s, e in zip(sizes, extents, strict=True) if isinstance(e, int) and e]
    if len(ratios) != len(sizes):
        raise ctx.refuse("an aspect ratio depends on the extents")
    choose = min if node.str_attr("keep_aspect_ratio_policy", "stretch") == "not_larger" else max
    return [choose(ratios)] * len(sizes)


def _table(ctx: Lowering, node: Node, axis: Axis, weights: DType | None) -> Table:
    """The table of one axis: a constant where its extents are known, else made by a step."""
    mode = node.str_attr("mode", "nearest")
    coordinates = node.str_attr("coordinate_transformation_mode", "half_pixel")
    spec = ResizeTable(
        mode, coordinates, axis.scale, weights or FLOAT32, node.str_attr("nearest_mode", "round_prefer_floor"),
        bool(node.int_attr("antialias", 0)), bool(node.int_attr("exclude_outside", 0)),
        node.float_attr("cubic_coeff_a", -0.75), axis.region,
    )  # fmt: skip
    if isinstance(axis.size, int) and isinstance(axis.extent, int):
        return _constant_table(ctx, node, spec, axis.size, axis.extent, weights)
    low, taps = _window(spec, axis)
    index = ctx.temporary(INT32, (taps, axis.size), None, f"elements along axis {axis.axis}")
    words: dict[str, Word] = {
        "index": address(index), "size": axis.size, "extent": axis.extent, "taps": taps, "low": low, "tile": TABLE_TILE,
    }  # fmt: skip
    made = [index]
    if weights is not None:
        made.append(ctx.temporary(weights, (taps, axis.size), None, f"weights along axis {axis.axis}"))
        words["weight"] = address(made[1])
    ctx.emit(spec, words, ceil_div(axis.size, TABLE_TILE), [], made, flops=index.size * 30)
    return Table(index, made[1] if weights is not None else None, taps)


def _window(spec: ResizeTable, axis: Axis) -> tuple[Known, Known]:
    """The offset of the first tap, and the number of taps."""
    if spec.mode == "nearest":
        return 0, 1
    radius = 1 if spec.mode == "linear" else 2
    low: Known = 1 - radius
    if spec.antialias and axis.scale is None:
        # Shrinking widens the filter by extent / size.
        low = minimum(low, floor_div(axis.extent * -radius, axis.size) + 1)
    elif spec.antialias and axis.scale is not None and axis.scale < 1:
        low = int(-radius / Fraction(axis.scale) // 1) + 1
    return low, 2 - low * 2


def _constant_table(
    ctx: Lowering, node: Node, spec: ResizeTable, size: int, extent: int, weights: DType | None
) -> Table:
    scale = spec.scale if spec.scale is not None else (size / extent if extent else 1.0)
    attributes = dict(node.attributes)

    def made() -> tuple[Array, Array]:
        places = source_places(spec.coordinates, size, extent, scale, spec.region or (0.0, 1.0))
        if weights is None:
            index, found = nearest_elements(places, extent, attributes)[:, None], np.zeros((size, 0))
        else:
            index, found = weighted_elements(places, extent, scale, spec.mode, attributes)
        if spec.region is not None:
            index = index.copy()
            index[(places < 0) | (places > extent - 1), 0] = -1
        return index.T.astype(np.int32), found.T

    def build(part: int, dtype: DType) -> Callable[[], Array]:
        return lambda: made()[part].astype(dtype.numpy)

    taps = 1 if weights is None else made()[0].shape[0]
    buffer = ctx.weight(("resize elements", spec, size, extent), build(0, INT32), INT32)
    index = View(buffer, (taps, size), (size, 1))
    if weights is None:
        return Table(index, None, taps)
    buffer = ctx.weight(("resize weights", spec, size, extent), build(1, weights), weights)
    return Table(index, View(buffer, (taps, size), (size, 1)), taps)


def _innermost(view: View) -> int | None:
    """The fastest dimension in memory of those that are longer than 1."""
    order = [axis for axis in memory_order(view) if view.shape[axis] != 1]
    return order[-1] if order else None


def _nearest(ctx: Lowering, node: Node, x: View, changing: Sequence[Axis]) -> None:
    out = ctx.new(node.output, memory_order(x))
    tables = {axis.axis: _table(ctx, node, axis, None) for axis in changing}
    inner = _innermost(out)
    if inner is not None and inner not in tables and not x.unit(inner):
        x = relayout(ctx, x, memory_order(out))
    filled = changing[0].region is not None
    repeats = None
    if inner in tables and x.unit(inner):
        repeats = _repeats(node, next(axis for axis in changing if axis.axis == inner))
        if repeats is not None:
            del tables[inner]
    # Neighbours of which neither is looked up are one dimension.
    dims: list[tuple[Known, Known, Known, int | None]] = []
    for axis in [a for a in memory_order(out) if out.shape[a] != 1 or a in tables]:
        extent, of, to = out.shape[axis], x.strides[axis], out.strides[axis]
        chosen = axis if axis in tables else None
        if repeats is not None and axis == inner:
            dims.append((extent, 1, 1, None))
        elif (
            dims
            and chosen is None
            and dims[-1][3] is None
            and dims[-1][1] == of * extent
            and dims[-1][2] == to * extent
        ):
            dims[-1] = (dims[-1][0] * extent, of, to, None)
        else:
            dims.append((extent, of, to, chosen))
    if dims[-1][2] != 1 or (dims[-1][3] is None and dims[-1][1] != 1):
        dims.append((1, 1, 1, None))
    size = dims[-1][0]
    row = size if repeats is not None and isinstance(size, int) and size <= SHORT_ROW else None
    spec = Nearest(x.element.bits // 8, tuple(d[3] is not None for d in dims), filled, repeats, row)
    block = BLOCK if repeats is None else BLOCK * repeats
    words: dict[str, Word] = {"x": address(x), "out": address(out), "tile": block}
    reads = [x]
    for d, (extent, of, to, chosen) in enumerate(dims):
        words |= {f"n{d}": extent, f"x_n{d}": of, f"out_n{d}": to}
        if chosen is not None:
            words[f"table{d}"] = address(tables[chosen].index)
            reads.append(tables[chosen].index)
    if filled:
        fill = _fill(ctx, node, x.element)
        words["fill"] = address(fill)
        reads.append(fill)
    tiles = product(d[0] for d in dims[:-1]) * ceil_div(dims[-1][0], block)
    ctx.emit(spec, words, tiles, reads, [out])


def _repeats(node: Node, axis: Axis) -> int | None:
    """How often every element of the axis stands in the result, in a row; None where it is not so."""
    if axis.region is not None:
        return None
    mode = node.str_attr("coordinate_transformation_mode", "half_pixel")
    if isinstance(axis.size, int) and isinstance(axis.extent, int):
        times = axis.size // max(axis.extent, 1)
        if not 2 <= times <= MOST_REPEATS or axis.size != axis.extent * times:
            return None
        places = source_places(mode, axis.size, axis.extent, axis.scale or float(times), (0.0, 1.0))
        found = nearest_elements(places, axis.extent, dict(node.attributes))
        return times if np.array_equal(found, np.arange(axis.size) // times) else None
    scale = axis.scale
    if scale is None or scale not in range(2, MOST_REPEATS + 1) or axis.size != axis.extent * int(scale):
        return None
    # Half a pixel never falls on the middle between two, and a floor is a floor.
    floors = mode == "asymmetric" and node.str_attr("nearest_mode", "round_prefer_floor") == "floor"
    rounds = mode == "half_pixel" and node.str_attr("nearest_mode", "round_prefer_floor").startswith("round")
    return int(scale) if floors or rounds else None


def _fill(ctx: Lowering, node: Node, element: DType) -> View:
    number = node.float_attr("extrapolation_value", 0.0)
    buffer = ctx.weight(
        ("fill", element.name, number), lambda: np.array([number]).astype(element.numpy), element
    )  # fmt: skip
    return View(buffer, (1,), (1,))


def _middle(element: DType) -> DType:
    """What sums are made in."""
    return FLOAT32 if element in (FLOAT32, FLOAT16, BFLOAT16) else FLOAT64


def _interpolate(ctx: Lowering, node: Node, x: View, changing: Sequence[Axis]) -> None:
    element, middle = x.element, _middle(x.element)
    out = ctx.new(node.output, memory_order(x))
    # What shrinks most goes first: less is left for the others.
    order = sorted(changing, key=lambda a: hint(a.size) / max(hint(a.extent), 1))
    number = node.float_attr("extrapolation_value", 0.0)
    for position, axis in enumerate(order):
        shape = list(x.shape)
        shape[axis.axis] = axis.size
        if position == len(order) - 1:
            result = out
        else:
            result = ctx.temporary(middle, shape, memory_order(out), node.output.name)
        _sum_along(ctx, x, result, axis, _table(ctx, node, axis, middle), middle, number)
        x = result
    assert out.element is element


def _sum_along(ctx: Lowering, x: View, out: View, axis: Axis, table: Table, middle: DType, fill: float) -> None:
    along = _innermost(out) in (axis.axis, None)
    extents, (of, to) = kept_axes([x, out], [axis.axis])
    if along and out.strides[axis.axis] != 1:
        # One element along the axis, perhaps with a stride that comes from elsewhere: a row of its own then.
        along = False
    if not along and (of[-1] != 1 or to[-1] != 1):
        if to[-1] != 1:
            place = ctx.temporary(out.element, out.shape, memory_order(out), out.buffer.label)
            _sum_along(ctx, x, place, axis, table, middle, fill)
            copy(ctx, place, out)
            return
        x = relayout(ctx, x, (axis.axis, *(a for a in memory_order(out) if a != axis.axis)))
        extents, (of, to) = kept_axes([x, out], [axis.axis])
    if not along:
        extents = [*extents[:-1], axis.size, extents[-1]]
        of, to = [*of[:-1], 0, 1], [*to[:-1], out.strides[axis.axis], 1]
    tile = ROWS if along else BLOCK
    spec = WeightedSum(
        x.element, middle, out.element, "rows" if along else "columns",
        table.taps if isinstance(table.taps, int) else None, len(extents),
        along and x.strides[axis.axis] == 1, fill if axis.region is not None else None,
    )  # fmt: skip
    assert table.weight is not None
    words: dict[str, Word] = {
        "x": address(x), "index": address(table.index), "weight": address(table.weight), "out": address(out),
        "size": axis.size, "x_axis": x.strides[axis.axis], "taps": table.taps, "tile": tile,
        **kept_words(extents, {"x": of, "out": to}),
    }  # fmt: skip
    reads = [x, table.index, table.weight]
    ctx.emit(spec, words, kept_tiles(extents, tile), reads, [out], flops=out.size * table.taps * 2)


RESIZE = Rule(lower_resize, refusal)
