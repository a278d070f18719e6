"""Convolutions: which tactic, which layout, and the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from whet.compiler.fuse import Group
from whet.compiler.lower.conv_line import emit_line
from whet.compiler.lower.copy import cast_copy, copy, relayout
from whet.compiler.lower.dealt import dealt_by_columns
from whet.compiler.lower.demand import demand
from whet.compiler.lower.epilogue import Begin, Extra, Finish, finish, takes_group
from whet.compiler.lower.factors import emit_factored
from whet.compiler.lower.matmul import ELEMENTS, After, emit_rows, pack_at_run, same_whole
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.reduce import wants_spatial_sums
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.step import Word, address
from whet.compiler.tactics.choice import choose
from whet.compiler.tactics.conv import CONV_TACTICS, Geometry, winograd_tiles
from whet.compiler.tape import TapeBuilder, computed
from whet.compiler.views import View, product
from whet.dtypes import FLOAT32, DType
from whet.graph import Node, Value
from whet.graph.dims import Dim, Known, ceil_div
from whet.kernels.conv import Conv, Window, choose_conv_tile, pack_conv_weights
from whet.kernels.conv_padded import ConvPadded, choose_padded_tile
from whet.kernels.depthwise import Depthwise, choose_depthwise_tile, pack_depthwise_weights
from whet.kernels.gemm_tile import GemmTile
from whet.kernels.grouped import Grouped, choose_grouped_tile, pack_grouped_weights
from whet.kernels.im2col import ConvIm2col
from whet.kernels.winograd import Winograd, pack_point_weights, pack_tap_weights
from whet.kernels.winograd_axis import Axis
from whet.kernels.winograd_few import WinogradFew, choose_few_tile
from whet.kernels.winograd_tile import choose_winograd_tile


def window_of(node: Node, kernel: Sequence[int], image: Sequence[Known], out: Sequence[Known]) -> Window | None:
    """The node's window with its padding in numbers; None where padding depends on extents that are not known."""
    rank = len(kernel)
    strides = node.ints_attr("strides", (1,) * rank)
    dilations = node.ints_attr("dilations", (1,) * rank)
    auto = node.str_attr("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return Window(tuple(kernel), strides, dilations, node.ints_attr("pads", (0,) * (2 * rank)))
    if auto == "VALID":
        return Window(tuple(kernel), strides, dilations, (0,) * (2 * rank))
    begins, ends = [], []
    for i in range(rank):
        total: Known = (out[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - image[i]
        if not isinstance(total, int):
            return None
        total = max(total, 0)
        small = total // 2
        begins.append(small if auto == "SAME_UPPER" else total - small)
        ends.append(total - begins[-1])
    return Window(tuple(kernel), strides, dilations, (*begins, *ends))


def refusal(node: Node) -> str | None:
    """Why a convolution cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    if dtype_of(node.output) not in ELEMENTS:
        return f"no convolution of {dtype_of(node.output)}"
    x, w = node.inputs[0], node.inputs[1]
    assert x is not None
    assert w is not None
    return window_refusal(node, x.shape or (), w.shape or ())


def window_refusal(node: Node, shape: Sequence[Dim], weights: Sequence[Dim]) -> str | None:
    """Why a convolution over an image [images, channels, ..] cannot be lowered, whatever its types; or None."""
    if not 3 <= len(shape) <= 5:
        return f"no convolution with {len(shape) - 2} spatial axes"
    if not all(isinstance(d, int) for d in weights):
        return "the extents of its weights are not known"
    if node.str_attr("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        strides = node.ints_attr("strides", (1,) * (len(shape) - 2))
        for extent, stride in zip(shape[2:], strides, strict=True):
            if stride != 1 and not isinstance(extent, int):
                return "its padding depends on extents that are not known"
    return None


def takes_epilogue(node: Node, group: Group) -> bool:
    """Whether the convolution can do the group's work before it stores its sums."""
    return refusal(node) is None and takes_group(node, group, 1 - len(node.output.shape or ()))


def lower_conv(ctx: Lowering, node: Node, group: Group | None) -> None:
    x, w, bias = node.input(0), node.input(1), node.input(2)
    assert x is not None
    assert w is not None
    extras: list[Extra] = [] if bias is None else [(vector(ctx, ctx.view(bias)), "column")]
    if bias is not None:
        demand(ctx, "equal", shape_of(bias)[0], shape_of(w)[0], "the bias of a convolution has another extent")
    image, factors = ctx.factored.get(x, (x, None))
    lower_window(
        ctx, node, group, ctx.view(image), w, extras, factors=None if factors is None else ctx.view(factors)
    )  # fmt: skip


def lower_window(
    ctx: Lowering, node: Node, group: Group | None, x: View, w: Value, extras: Sequence[Extra],
    after: After | None = None, *, element: DType | None = None, begin: Begin | None = None, nhwc: bool = False,
    factors: View | None = None,
) -> None:  # fmt: skip
    """Emit a node's convolution of `x` [images, channels, ..] with `w`, whose sums have type `element`.

    `x` counts times `factors` [images or 1, channels, 1, ..] (where `lower.factors` leaves them to it). To the sums
    `extras` are added, then comes what `after` does; or `begin` says what becomes of them. With `nhwc` the
    node's result has its channels behind its spatial axes (as `extras` that are whole have).
    """
    element = element or computed(dtype_of(node.output))
    if x.element is not element:
        x = cast_copy(ctx, x, element)
    weights = tuple(int(d) for d in shape_of(w) if isinstance(d, int))
    rank = len(weights) - 2
    last, first = (0, *range(2, 2 + rank), 1), (0, 1 + rank, *range(1, 1 + rank))
    shape = shape_of(node.output)
    if nhwc:
        shape = tuple(shape[axis] for axis in first)
    window = window_of(node, weights[2:], x.shape[2:], shape[2:])
    if window is None:
        raise ctx.refuse("its padding depends on extents that are not known")
    groups = node.int_attr("group", 1)
    demand(ctx, "equal", x.shape[1], weights[1] * groups, "the channels of a convolution differ from its weights'")
    for axis, image in enumerate(x.shape[2:]):
        reach = (window.kernel[axis] - 1) * window.dilations[axis] + 1
        if reach > 1 and not node.str_attr("auto_pad", "NOTSET").startswith("SAME"):
            padded = image + window.pads[axis] + window.pads[axis + rank]
            demand(ctx, "at_most", reach, padded, "the kernel is larger than the padded input")
    geometry = Geometry(
        window, groups, weights[1], weights[0] // groups, shape[0], x.shape[2:], shape[2:], element, w.data is not None
    )
    kind = element

    def add(tape: TapeBuilder, total: int, operands: Sequence[int]) -> int:
        for operand in operands:
            total = tape.add("add", kind, total, tape.cast(operand, kind))
        return total if after is None else after(tape, total)

    done = finish(ctx, node, group, element, -1 if nhwc else -1 - rank, extras, begin or add)
    if nhwc:
        out = ctx.new(done.result).transpose(first)
        moved = [v.transpose(first) if k == "full" else v for v, k in zip(done.operands, done.kinds, strict=True)]
        done = Finish(done.epilogue, tuple(moved), done.kinds, done.result, done.ops)
    else:
        out = ctx.new(done.result, last)
    target = out
    if pixel_stride(out) is None:
        # Written into a part of another tensor whose rows are not evenly spaced.
        target = ctx.temporary(out.element, out.shape, last)
    operands = tuple(
        even_pixels(ctx, v.broadcast(out.shape), last) if kind == "full" else vector_operand(ctx, v, kind)
        for v, kind in zip(done.operands, done.kinds, strict=True)
    )
    sums = not nhwc and wants_spatial_sums(done.result)
    done = Finish(done.epilogue, operands, done.kinds, done.result, done.ops, sums)
    if factors is None:
        emit_window(ctx, geometry, x, w, target, done, element)
    else:
        emit_factored(ctx, channels_last(ctx, x), factors, w, element, target, done)
    if target is not out:
        copy(ctx, target, out)


def emit_window(ctx: Lowering, g: Geometry, x: View, w: Value, out: View, done: Finish, element: DType) -> None:
    """Emit a convolution by the tactic that suits its extents; pixels of `out` are evenly spaced, channels a row."""
    where = ctx.node.label if ctx.node is not None else None
    detail = (done.epilogue, "channels last" if x.unit(1) else "channels first")
    _EMIT[choose("conv", CONV_TACTICS, g, ctx.env, where, detail=detail)](ctx, g, x, w, out, done, element)


def vector(ctx: Lowering, view: View) -> View:
    """A bias whose numbers are neighbours."""
    return view if view.unit(0) else relayout(ctx, view)


def vector_operand(ctx: Lowering, view: View, kind: str) -> View:
    """A column operand: one number for each channel, next to each other."""
    if kind != "column":
        return view
    flat = view.reshape((view.size,))
    return flat if flat is not None and flat.unit(0) else relayout(ctx, view).reshape((view.size,)) or view


def channels_last(ctx: Lowering, view: View) -> View:
    """The view where its channels are next to each other already, else a copy."""
    if view.unit(1):
        return view
    return relayout(ctx, view, (0, *range(2, view.rank), 1))


def pixel_stride(view: View) -> Known | None:
    """Elements from one pixel to the next, where channels are neighbours and pixels are evenly spaced."""
    if not view.unit(1):
        return None
    spatial = View(view.buffer, view.shape[2:], view.strides[2:])
    joined = spatial.reshape((product(view.shape[2:]),))
    if joined is None:
        return None
    if joined.shape[0] == 1:
        return view.shape[1]
    return joined.strides[0]


def even_pixels(ctx: Lowering, view: View, order: Sequence[int]) -> View:
    return view if pixel_stride(view) is not None else relayout(ctx, view, order)


def finish_words(words: dict[str, Word], done: Finish) -> None:
    for i, (view, kind) in enumerate(zip(done.operands, done.kinds, strict=True)):
        words[f"e{i}"] = address(view)
        if kind == "full":
            stride = pixel_stride(view)
            assert stride is not None
            words[f"e{i}_s"] = stride
            words[f"e{i}_n"] = view.strides[0]


def out_words(words: dict[str, Word], out: View) -> None:
    stride = pixel_stride(out)
    assert stride is not None
    words |= {"c": address(out), "ldc": stride, "c_n": out.strides[0]}


def _image_words(g: Geometry, x: View) -> dict[str, Word]:
    words: dict[str, Word] = {"x": address(x), "x_n": x.strides[0], "x_c": x.strides[1]}
    for i in range(g.window.rank):
        words |= {f"x_s{i}": x.strides[2 + i], f"in{i}": g.image[i], f"out{i}": g.out[i]}
    return words


def _fixed(extents: Sequence[Known]) -> tuple[int, ...] | None:
    numbers = tuple(e for e in extents if isinstance(e, int))
    return numbers if len(numbers) == len(extents) else None


def _flops(g: Geometry) -> Known:
    return product(g.out) * g.images * (2 * g.groups * g.outputs * g.channels * g.window.taps)


def in_place_pairs(done: Finish, out: View) -> list[tuple[View, View]]:
    return [(v, out) for v, k in zip(done.operands, done.kinds, strict=True) if k == "full" and same_whole(v, out)]


def _weights(ctx: Lowering, w: Value, g: Geometry, width: int, element: DType, first: bool) -> View:
    """The packed weights; `first`: channels before taps."""
    if w.data is not None:
        data = w.data

        def make() -> np.ndarray[Any, Any]:
            array = data.numpy().astype(element.numpy, copy=False)
            return pack_conv_weights(array, g.groups, width, first)

        buffer = ctx.weight(("conv", data.identity(), g.groups, width, first, element.name), make, element)
        return View(buffer, (buffer.elements,), (1,))
    view = ctx.view(w)
    if view.element is not element:
        view = cast_copy(ctx, view, element)
    taps = g.window.taps
    flat = view.reshape((g.groups, g.outputs, g.channels, taps)) or relayout(ctx, view).reshape(
        (g.groups, g.outputs, g.channels, taps)
    )
    assert flat is not None
    ordered = relayout(ctx, flat.transpose((0, 2, 3, 1) if first else (0, 3, 2, 1)))
    matrices = ordered.reshape((g.groups, taps * g.channels, g.outputs))
    assert matrices is not None
    return pack_at_run(ctx, matrices, element, width, (g.groups,))[0]


def _emit_direct(ctx: Lowering, g: Geometry, x: View, w: Value, out: View, done: Finish, element: DType) -> None:
    x = channels_last(ctx, x)
    tile = _tile(ctx, g, element, False)
    spec = Conv(
        g.window, g.channels, g.outputs, g.groups, element, _fixed(g.out), tile.mr, tile.nv, tile.m_block, tile.panels,
        done.epilogue, tile.ahead,
    )  # fmt: skip
    width = spec.width(ctx.target)
    packed = _weights(ctx, w, g, width, element, False)
    zero = ctx.zeros(g.channels * g.groups, element)
    words = _image_words(g, x)
    words |= {"w": address(packed), "zero": address(zero)}
    out_words(words, out)
    finish_words(words, done)
    columns = width * tile.panels
    tiles = g.images * g.groups * (-(-g.outputs // columns)) * ceil_div(product(g.out), tile.m_block)
    ctx.emit(
        spec, words, tiles, [x, packed, zero, *done.operands], [out], flops=_flops(g),
        in_place=in_place_pairs(done, out), ops=done.ops, tactic="conv",
    )  # fmt: skip


def _tile(ctx: Lowering, g: Geometry, element: DType, gathered: bool) -> GemmTile:
    pixels = product(g.out)
    known = pixels if isinstance(pixels, int) else None
    return choose_conv_tile(
        ctx.target, g.window, g.channels, g.outputs, known, gathered, element, ctx.env.threads
    )  # fmt: skip


def _emit_im2col(ctx: Lowering, g: Geometry, x: View, w: Value, out: View, done: Finish, element: DType) -> None:
    last = x.unit(1) and g.channels * g.groups > 1
    stride = x.strides[-1]
    tile = _tile(ctx, g, element, True)
    spec = ConvIm2col(
        g.window, g.channels, g.outputs, g.groups, element, _fixed(g.out), tile.mr, tile.nv, tile.m_block, tile.panels,
        done.epilogue, last, stride if isinstance(stride, int) else None,
    )  # fmt: skip
    width = spec.width(ctx.target)
    packed = _weights(ctx, w, g, width, element, not last)
    words = _image_words(g, x)
    words["w"] = address(packed)
    out_words(words, out)
    finish_words(words, done)
    columns = width * tile.panels
    tiles = g.images * g.groups * (-(-g.outputs // columns)) * ceil_div(product(g.out), tile.m_block)
    ctx.emit(
        spec, words, tiles, [x, packed, *done.operands], [out], flops=_flops(g),
        in_place=in_place_pairs(done, out), ops=done.ops, tactic="conv-im2col",
    )  # fmt: skip


def _emit_padded(ctx: Lowering, g: Geometry, x: View, w: Value, out: View, done: Finish, element: DType) -> None:
    last = x.unit(1) and g.channels * g.groups > 1
    window, image, spatial, steps = _plane(g, x)
    stride = steps[1]
    height, width = (n if isinstance(n, int) else None for n in spatial)
    tile = choose_padded_tile(ctx.target, window, g.channels, g.outputs, (height, width), element)
    extents = None if height is None or width is None else (height, width)
    spec = ConvPadded(
        window, g.channels, g.outputs, g.groups, element, extents, tile.mr, tile.nv, tile.rows, tile.columns,
        done.epilogue, last, stride if isinstance(stride, int) else None,
    )  # fmt: skip
    packed = _weights(ctx, w, g, spec.width(ctx.target), element, not last)
    words: dict[str, Word] = {
        "x": address(x), "x_n": x.strides[0], "x_s0": steps[0], "x_s1": stride, "x_c": x.strides[1], "in0": image[0],
        "in1": image[1], "out0": spatial[0], "out1": spatial[1], "w": address(packed),
    }  # fmt: skip
    out_words(words, out)
    finish_words(words, done)
    tiles = g.images * g.groups * ceil_div(spatial[0], spec.rows) * ceil_div(spatial[1], spec.columns)
    ctx.emit(
        spec, words, tiles, [x, packed, *done.operands], [out], flops=_flops(g),
        in_place=in_place_pairs(done, out), ops=done.ops, tactic="conv-padded",
    )  # fmt: skip


def _plane(g: Geometry, x: View) -> tuple[Window, tuple[Known, ...], tuple[Known, ...], tuple[Known, ...]]:
    """Window, extents of input and output, and strides along two spatial axes, where there may be one only."""
    window = g.window
    if window.rank == 2:
        return window, g.image, g.out, x.strides[2:]
    pads = (0, window.pads[0], 0, window.pads[1])
    line = Window((1, *window.kernel), (1, *window.strides), (1, *window.dilations), pads)
    return line, (1, *g.image), (1, *g.out), (0, *x.strides[2:])


def _emit_pointwise(ctx: Lowering, g: Geometry, x: View, w: Value, out: View, done: Finish, element: DType) -> None:
    """A 1x1 convolution: pixels are rows of a matrix product."""
    x = channels_last(ctx, x)
    rank = g.window.rank
    order = (0, *range(2, 2 + rank), 1)
    operands = tuple(
        v.transpose(order) if kind == "full" else v for v, kind in zip(done.operands, done.kinds, strict=True)
    )
    done = Finish(done.epilogue, operands, done.kinds, done.result, done.ops)
    emit_rows(ctx, x.transpose(order), w, element, out.transpose(order), done)


def _emit_depthwise(ctx: Lowering, g: Geometry, x: View, w: Value, out: View, done: Finish, element: DType) -> None:
    x = channels_last(ctx, x)
    window, image, spatial, steps = _plane(g, x)
    columns, height, step = _fixed_plane(image, spatial, steps)
    tile = choose_depthwise_tile(ctx.target, window, height, columns and columns[1], g.groups, element)
    spec = Depthwise(
        window, g.groups, element, columns, tile.pixels, tile.rows, tile.vectors, done.epilogue, tile.lines, height,
        step, _adds_up(done, element),
    )  # fmt: skip
    spec = replace(spec, by_channels=dealt_by_columns(ctx, x, spec.parts(ctx.target)))
    _emit_strips(ctx, g, x, depthwise_weights(ctx, w, element), out, done, spec)


def _emit_grouped(ctx: Lowering, g: Geometry, x: View, w: Value, out: View, done: Finish, element: DType) -> None:
    x = channels_last(ctx, x)
    window, image, spatial, steps = _plane(g, x)
    columns, height, step = _fixed_plane(image, spatial, steps)
    tile = choose_grouped_tile(
        ctx.target, window, g.groups, g.channels, g.outputs, height, columns and columns[1], element
    )
    spec = Grouped(
        window, g.groups, g.channels, g.outputs, element, columns, tile.pixels, tile.rows, tile.bundles, done.epilogue,
        tile.lines, height, step, _adds_up(done, element), True,
    )  # fmt: skip
    data = w.data
    assert data is not None
    lanes, kernel = ctx.target.lanes(element), window.kernel

    def make() -> np.ndarray[Any, Any]:
        array = data.numpy().astype(element.numpy, copy=False)
        return pack_grouped_weights(array.reshape(*array.shape[:2], *kernel), g.groups, lanes)

    buffer = ctx.weight(("grouped", data.identity(), g.groups, element.name, lanes), make, element)
    _emit_strips(ctx, g, x, View(buffer, (buffer.elements,), (1,)), out, done, spec)


def _fixed_plane(
    image: Sequence[Known], out: Sequence[Known], steps: Sequence[Known]
) -> tuple[tuple[int, int] | None, int | None, int | None]:
    """(columns of input and output, rows of the output, elements from pixel to pixel), each where it is known."""
    fixed = _fixed((image[1], out[1]))
    height, step = (n if isinstance(n, int) else None for n in (out[0], steps[1]))
    return (fixed[0], fixed[1]) if fixed is not None else None, height, step


def _adds_up(done: Finish, element: DType) -> bool:
    """Whether the step adds its results up for a reader."""
    return done.sums and element is FLOAT32 and dtype_of(done.result) is FLOAT32


def _emit_strips(
    ctx: Lowering, g: Geometry, x: View, packed: View, out: View, done: Finish, spec: Depthwise | Grouped
) -> None:  # fmt: skip
    """Emit a convolution whose kernel works through an image in strips, and adds its results up for a reader."""
    _, image, spatial, steps = _plane(g, x)
    words: dict[str, Word] = {
        "x": address(x), "x_n": x.strides[0], "x_s0": steps[0], "x_s1": steps[1], "in0": image[0], "in1": image[1],
        "out0": spatial[0], "out1": spatial[1], "w": address(packed),
    }  # fmt: skip
    out_words(words, out)
    finish_words(words, done)
    blocks, channels = ceil_div(spatial[0], spec.rows), g.groups * g.outputs
    writes = [out]
    if spec.totals:
        parts = ctx.temporary(spec.dtype, (g.images, blocks, channels), label=f"sums of {done.result.name}")
        words |= {"totals": address(parts), "totals_n": parts.strides[0]}
        writes.append(parts)
        ones, zeros = (1,) * (g.window.rank - 1), (0,) * (g.window.rank - 1)
        # As an image of as many pixels as there are parts.
        shape, strides = (g.images, channels, blocks, *ones), (parts.strides[0], 1, parts.strides[1], *zeros)
        ctx.spatial_sums[done.result] = View(parts.buffer, shape, strides)
    ctx.emit(
        spec, words, g.images * spec.parts(ctx.target) * blocks, [x, packed, *done.operands], writes, flops=_flops(g),
        in_place=in_place_pairs(done, out), ops=done.ops, tactic=type(spec).__name__.lower(),
    )  # fmt: skip


def depthwise_weights(ctx: Lowering, w: Value, element: DType) -> View:
    if w.data is not None:
        data = w.data
        lanes = ctx.target.lanes(element)

        def make() -> np.ndarray[Any, Any]:
            return pack_depthwise_weights(data.numpy().astype(element.numpy, copy=False), lanes)

        buffer = ctx.weight(("depthwise", data.identity(), element.name, lanes), make, element)
        return View(buffer, (buffer.elements,), (1,))
    raise ctx.refuse("depthwise weights that are not constant")


def _emit_winograd(
    ctx: Lowering, g: Geometry, x: View, w: Value, out: View, done: Finish, element: DType, axis: Axis,
    few: bool = False,
) -> None:  # fmt: skip
    x = channels_last(ctx, x)
    m = axis.m
    choose_tile = choose_few_tile if few else choose_winograd_tile
    mr, nv, block, panels, depth = choose_tile(
        ctx.target, g.channels, g.outputs, winograd_tiles(g, m), axis, element, ctx.env.threads
    )
    fixed = _fixed(g.out)
    extents = (fixed[0], fixed[1]) if fixed is not None else None
    pads = (g.window.pads[0], g.window.pads[1])
    spec = (WinogradFew if few else Winograd)(
        g.channels, g.outputs, m, pads, element, extents, mr, nv, block, panels, depth, done.epilogue, axis.stride
    )
    packed = _winograd_weights(ctx, w, spec)
    zero = ctx.zeros(g.channels, element)
    words = _image_words(g, x)
    words |= {"w": address(packed), "zero": address(zero), "images": g.images}
    out_words(words, out)
    finish_words(words, done)
    parts = -(-g.outputs // (spec.width(ctx.target) * panels))
    tiles = ceil_div(product([ceil_div(extent, m) for extent in g.out]) * g.images, block) * parts
    ctx.emit(
        spec, words, tiles, [x, packed, zero, *done.operands], [out], flops=_flops(g),
        in_place=in_place_pairs(done, out), ops=done.ops,
        tactic=f"winograd{m}" + ("-few" if few else "" if axis.stride == 1 else f"-stride{axis.stride}"),
    )  # fmt: skip


def _winograd_weights(ctx: Lowering, w: Value, spec: Winograd) -> View:
    assert w.data is not None
    data, element, depth, width = w.data, spec.dtype, spec.depth, spec.width(ctx.target)

    def make() -> np.ndarray[Any, Any]:
        array = data.numpy().astype(element.numpy, copy=False)
        if depth is None:
            return pack_point_weights(array, spec.axis.matrix(), width)
        return pack_tap_weights(array, width, depth)

    how = ("points", spec.tile, spec.stride) if depth is None else ("taps", depth)
    buffer = ctx.weight(("winograd", data.identity(), *how, width, element.name), make, element)
    return View(buffer, (buffer.elements,), (1,))


def _emit_winograd4(ctx: Lowering, g: Geometry, x: View, w: Value, out: View, done: Finish, element: DType) -> None:
    _emit_winograd(ctx, g, x, w, out, done, element, Axis(4))


def _emit_winograd2(ctx: Lowering, g: Geometry, x: View, w: Value, out: View, done: Finish, element: DType) -> None:
    _emit_winograd(ctx, g, x, w, out, done, element, Axis(2))


def _emit_few4(ctx: Lowering, g: Geometry, x: View, w: Value, out: View, done: Finish, element: DType) -> None:
    _emit_winograd(ctx, g, x, w, out, done, element, Axis(4), True)


def _emit_strided4(ctx: Lowering, g: Geometry, x: View, w: Value, out: View, done: Finish, element: DType) -> None:
    _emit_winograd(ctx, g, x, w, out, done, element, Axis(4, 2))


def _emit_strided2(ctx: Lowering, g: Geometry, x: View, w: Value, out: View, done: Finish, element: DType) -> None:
    _emit_winograd(ctx, g, x, w, out, done, element, Axis(2, 2))


def _emit_line8(ctx: Lowering, g: Geometry, x: View, w: Value, out: View, done: Finish, element: DType) -> None:
    emit_line(ctx, g, channels_last(ctx, x), w, out, done, element, 8, _flops(g), in_place_pairs(done, out))


def _emit_line6(ctx: Lowering, g: Geometry, x: View, w: Value, out: View, done: Finish, element: DType) -> None:
    emit_line(ctx, g, channels_last(ctx, x), w, out, done, element, 6, _flops(g), in_place_pairs(done, out))


_EMIT: dict[str, Callable[[Lowering, Geometry, View, Value, View, Finish, DType], None]] = {
    "pointwise": _emit_pointwise,
    "depthwise": _emit_depthwise,
    "grouped": _emit_grouped,
    "im2col": _emit_im2col,
    "padded": _emit_padded,
    "direct": _emit_direct,
    "winograd4": _emit_winograd4,
    "winograd2": _emit_winograd2,
    "winograd4-few": _emit_few4,
    "winograd4-stride2": _emit_strided4,
    "winograd2-stride2": _emit_strided2,
    "winograd-line8": _emit_line8,
    "winograd-line6": _emit_line6,
}

CONV = Rule(lower_conv, refusal)
