"""Operators that only move elements: padding, tiling, blocks of channels, triangles, sequences turned round."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import copy, dense, relayout
from whet.compiler.lower.demand import demand, demand_same, integers, need, numbers
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, shape_of
from whet.compiler.step import Word, address
from whet.compiler.views import View, collapse, hint, memory_order, product
from whet.dtypes import INT64
from whet.graph import Node, TensorType
from whet.graph.dims import Known, ceil_div, maximum, minimum
from whet.kernels.generate import Trilu
from whet.kernels.periodic import Periodic
from whet.kernels.reverse import ReverseSequence

FILL_BYTES = 1 << 17
"""Results up to this size are filled whole before the inside is written, which are fewer steps than borders alone."""
ROWS = 16
"""Rows in one tile."""
BLOCK = 4096
PAD_MODES = ("constant", "reflect", "edge", "wrap")


def pad_refusal(node: Node) -> str | None:
    if node.str_attr("mode", "constant") not in PAD_MODES:
        return f"no padding {node.str_attr('mode', 'constant')}"
    return tensor_refusal(node)


def lower_pad(ctx: Lowering, node: Node, group: Group | None) -> None:
    data, mode = ctx.view(need(node, 0)), node.str_attr("mode", "constant")
    amounts, chosen = numbers(ctx, need(node, 1)), integers(ctx, node.input(3))
    assert amounts is not None
    axes = [a % data.rank for a in chosen] if chosen is not None else list(range(data.rank))
    before: list[Known] = [0] * data.rank
    after: list[Known] = [0] * data.rank
    for position, axis in enumerate(axes):
        front, back = amounts[position], amounts[position + len(axes)]
        cut = maximum(-front, 0)
        left = maximum(data.shape[axis] - cut - maximum(-back, 0), 0)
        # What is cut off more than there is leaves an empty axis: its start must not lie outside.
        data = data.slice(axis, minimum(cut, data.shape[axis]), left)
        before[axis], after[axis] = maximum(front, 0), maximum(back, 0)
        demand(ctx, "at_most", 0, shape_of(node.output)[axis], "the pads cut off more than there is")
    out = ctx.new(node.output, memory_order(data))
    if mode == "constant":
        value = node.input(2)
        fill = ctx.view(value).reshape(()) if value is not None else ctx.zeros(1, data.element).drop(0)
        assert fill is not None
        _fill_around(ctx, fill, out, before, data.shape)
        copy(ctx, data, _window(out, before, data.shape))
        return
    copy(ctx, data, _window(out, before, data.shape))
    for axis in range(out.rank):
        front, length, back = before[axis], data.shape[axis], after[axis]
        if front == 0 and back == 0:
            continue
        # What lies around along the axes before is there already.
        place = _window(
            out, [*(0 for _ in range(axis + 1)), *before[axis + 1 :]],
            [*out.shape[: axis + 1], *data.shape[axis + 1 :]],
        )  # fmt: skip
        _continue(ctx, mode, place, axis, front, length, back)


def _window(out: View, starts: Sequence[Known], extents: Sequence[Known]) -> View:
    for axis, (start, extent) in enumerate(zip(starts, extents, strict=True)):
        out = out.slice(axis, start, extent)
    return out


def _fill_around(ctx: Lowering, fill: View, out: View, before: Sequence[Known], extents: Sequence[Known]) -> None:
    """Write `fill` to every element of `out` that lies outside of the window [before, before + extents)."""
    if hint(out.size) * (out.element.bits // 8) <= FILL_BYTES:
        copy(ctx, fill.broadcast(out.shape), out)
        return
    place = out
    for axis in range(out.rank):
        start, length, end = before[axis], extents[axis], before[axis] + extents[axis]
        for first, count in ((0, start), (end, out.shape[axis] - end)):
            if count != 0:
                part = place.slice(axis, first, count)
                copy(ctx, fill.broadcast(part.shape), part)
        place = place.slice(axis, start, length)


def _continue(ctx: Lowering, mode: str, place: View, axis: int, front: Known, length: Known, back: Known) -> None:
    """Fill `front` and `back` elements along an axis round the `length` ones between them."""
    short = f"axis {axis} is too short for padding of mode {mode}"
    demand(ctx, "equal", front + length + back, place.shape[axis], short)
    end = front + length
    if mode == "edge":
        demand(ctx, "at_most", 1, length, short)
        sources = (place.slice(axis, front, 1), place.slice(axis, end - 1, 1))
    elif mode == "reflect":
        demand(ctx, "at_most", maximum(front, back) + 1, length, short)
        sources = (place.slice(axis, front * 2, front, -1), place.slice(axis, end - 2, back, -1))
    else:
        demand(ctx, "at_most", 1, length, short)
        extents, (strides,) = kept_axes([place], [axis])
        spec = Periodic(place.element.bits // 8, len(extents), strides[-1] == 1)
        words: dict[str, Word] = {
            "x": address(place), "axis": place.strides[axis], "before": front, "length": length, "after": back,
            "tile": BLOCK, **kept_words(extents, {"x": strides}),
        }  # fmt: skip
        ctx.emit(spec, words, kept_tiles(extents, BLOCK), [place], [place])
        return
    for source, start, count in ((sources[0], 0, front), (sources[1], end, back)):
        if count != 0:
            target = place.slice(axis, start, count)
            copy(ctx, source.broadcast(target.shape), target)


def kept_axes(views: Sequence[View], without: Sequence[int]) -> tuple[list[Known], list[list[Known]]]:
    """The axes that are left, joined where memory allows it, from slow to fast in the last view: extents, and strides
    for each view. There is at least one."""
    last = views[-1]
    order = [axis for axis in memory_order(last) if axis not in without and last.shape[axis] != 1]
    dims = collapse(last.shape, [v.strides for v in views], order)
    if not dims:
        return [1], [[1] for _ in views]
    return [extent for extent, _ in dims], [[strides[i] for _, strides in dims] for i in range(len(views))]


def kept_words(extents: Sequence[Known], strides: dict[str, list[Known]]) -> dict[str, Word]:
    """The words `kept{i}` and `{operand}_kept{i}`."""
    words: dict[str, Word] = {f"kept{i}": extent for i, extent in enumerate(extents)}
    for name, row in strides.items():
        words |= {f"{name}_kept{i}": stride for i, stride in enumerate(row)}
    return words


def kept_tiles(extents: Sequence[Known], tile: int) -> Known:
    """Tiles of a grid over kept axes."""
    return product(extents[:-1]) * ceil_div(extents[-1], tile)


def _divided(view: View, axis: int, extents: Sequence[Known]) -> View:
    """One axis as several, whose extents multiply to its own."""
    strides: list[Known] = []
    step = view.strides[axis]
    for extent in reversed(extents):
        strides.insert(0, step)
        step = step * extent
    shape = (*view.shape[:axis], *extents, *view.shape[axis + 1 :])
    return View(
        view.buffer, shape, (*view.strides[:axis], *strides, *view.strides[axis + 1 :]), view.offset, view.dtype
    )


def lower_tile(ctx: Lowering, node: Node, group: Group | None) -> None:
    """A copy of the operand, repeated along an axis before each of its own."""
    data, counts = ctx.view(need(node, 0)), numbers(ctx, need(node, 1))
    assert counts is not None
    target = ctx.new(node.output, memory_order(data))
    for axis in reversed(range(data.rank)):
        if counts[axis] != 1:
            target = _divided(target, axis, (counts[axis], data.shape[axis]))
            data = data.expand_dims(axis)
    copy(ctx, data.broadcast(target.shape), target)


def lower_depth_to_space(ctx: Lowering, node: Node, group: Group | None) -> None:
    data, block = ctx.view(need(node, 0)), node.int_attr("blocksize", 1)
    deep = shape_of(node.output)[1]
    demand(ctx, "equal", deep * block * block, data.shape[1], "the channels do not divide into blocks")
    if node.str_attr("mode", "DCR") == "DCR":
        parts = _divided(data, 1, (block, block, deep)).transpose((0, 3, 4, 1, 5, 2))
    else:
        parts = _divided(data, 1, (deep, block, block)).transpose((0, 1, 4, 2, 5, 3))
    out = ctx.new(node.output, memory_order(data))
    copy(ctx, parts, _divided(_divided(out, 3, (data.shape[3], block)), 2, (data.shape[2], block)))


def lower_space_to_depth(ctx: Lowering, node: Node, group: Group | None) -> None:
    data, block = ctx.view(need(node, 0)), node.int_attr("blocksize", 1)
    _, _, h, w = shape_of(node.output)
    demand_same(ctx, (h * block, w * block), data.shape[2:], "the image does not divide into blocks")
    out = ctx.new(node.output, memory_order(data))
    parts = _divided(_divided(data, 3, (w, block)), 2, (h, block))
    if node.str_attr("mode", "DCR") == "DCR":
        copy(ctx, parts.transpose((0, 3, 5, 1, 2, 4)), _divided(out, 1, (block, block, data.shape[1])))
    else:
        copy(ctx, parts.transpose((0, 1, 3, 5, 2, 4)), _divided(out, 1, (data.shape[1], block, block)))


def _image_refusal(node: Node) -> str | None:
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    if len(need(node, 0).shape or ()) != 4:
        return "its input is no image"
    if node.int_attr("blocksize", 1) < 1:
        return "its blocksize is not positive"
    if node.str_attr("mode", "DCR") not in ("DCR", "CRD"):
        return f"no mode {node.str_attr('mode', 'DCR')}"
    return None


def lower_trilu(ctx: Lowering, node: Node, group: Group | None) -> None:
    data, diagonal = ctx.view(need(node, 0)), numbers(ctx, node.input(1))
    if not data.unit(data.rank - 1):
        data = relayout(ctx, data)
    out = ctx.new(node.output)
    direct = out if out.unit(out.rank - 1) else ctx.temporary(data.element, out.shape, None, node.output.name)
    # Rows stay the last axis: the kernel counts along them.
    rows = data.rank - 2
    extents, (of, to) = kept_axes([data, direct], [rows, rows + 1])
    extents, of, to = [*extents, data.shape[rows]], [*of, data.strides[rows]], [*to, direct.strides[rows]]
    words: dict[str, Word] = {
        "x": address(data), "out": address(direct), "columns": data.shape[-1], "tile": ROWS,
        "diagonal": 0 if not diagonal else diagonal[0], **kept_words(extents, {"x": of, "out": to}),
    }  # fmt: skip
    spec = Trilu(data.element, bool(node.int_attr("upper", 1)), len(extents))
    ctx.emit(spec, words, kept_tiles(extents, ROWS), [data], [direct])
    if direct is not out:
        copy(ctx, direct, out)


def _matrix_refusal(node: Node) -> str | None:
    reason = tensor_refusal(node)
    return reason or ("its input is no matrix" if len(need(node, 0).shape or ()) < 2 else None)


def lower_reverse_sequence(ctx: Lowering, node: Node, group: Group | None) -> None:
    data, lengths = ctx.view(need(node, 0)), dense(ctx, ctx.view(need(node, 1)))
    batch, time = node.int_attr("batch_axis", 1) % data.rank, node.int_attr("time_axis", 0) % data.rank
    demand(ctx, "equal", lengths.shape[0], data.shape[batch], "there is not one length for each sequence")
    if not _rows(data).is_dense():
        data = relayout(ctx, data)
    result = ctx.new(node.output)
    out = result if _rows(result).is_dense() else ctx.temporary(data.element, result.shape, None, node.output.name)
    words: dict[str, Word] = {
        "x": address(data), "lengths": address(lengths), "out": address(out), "batch": data.shape[batch],
        "time": data.shape[time], "inner": _rows(data).size, "x_batch": data.strides[batch],
        "x_time": data.strides[time], "out_batch": out.strides[batch], "out_time": out.strides[time],
    }  # fmt: skip
    spec = ReverseSequence(data.element.bits // 8)
    ctx.emit(spec, words, data.shape[batch] * data.shape[time], [data, lengths], [out])
    if out is not result:
        copy(ctx, out, result)


def _rows(view: View) -> View:
    """What is left without the first two axes."""
    return View(view.buffer, view.shape[2:], view.strides[2:])


def _sequence_refusal(node: Node) -> str | None:
    reason = _matrix_refusal(node)
    if reason is not None:
        return reason
    lengths = need(node, 1).type
    assert isinstance(lengths, TensorType)
    if lengths.dtype is not INT64:
        return f"its lengths have element type {lengths.dtype}"
    rank = len(need(node, 0).shape or ())
    axes = {node.int_attr("batch_axis", 1) % rank, node.int_attr("time_axis", 0) % rank}
    return None if axes == {0, 1} else "its axes are not the first two"


PAD = Rule(lower_pad, pad_refusal)
TILE = Rule(lower_tile, tensor_refusal)
DEPTH_TO_SPACE = Rule(lower_depth_to_space, _image_refusal)
SPACE_TO_DEPTH = Rule(lower_space_to_depth, _image_refusal)
TRILU = Rule(lower_trilu, _matrix_refusal)
REVERSE_SEQUENCE = Rule(lower_reverse_sequence, _sequence_refusal)
