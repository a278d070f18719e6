"""Transposed convolutions: a matrix product gives each input pixel's share in the outputs, sums of shares the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whet.compiler.fuse import Group
from whet.compiler.lower.along import WORK
from whet.compiler.lower.conv import channels_last, vector
from whet.compiler.lower.copy import cast_copy, copy, relayout
from whet.compiler.lower.demand import demand
from whet.compiler.lower.epilogue import Extra, Finish, finish, takes_group
from whet.compiler.lower.matmul import ELEMENTS, emit_panels, pack_at_run
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.step import Word, address
from whet.compiler.tape import TapeBuilder, computed
from whet.compiler.views import View, collapse, dense_strides, hint, product
from whet.dtypes import DType
from whet.graph import Node, Value
from whet.graph.dims import Known, ceil_div, floor_div, maximum
from whet.kernels.gemm import pack_b
from whet.kernels.tap_sum import TapSum

SHORTEST_ROW = 6
"""Rows of an image with fewer pixels make too small a product each."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """A transposed convolution; `channels` to `outputs` numbers a pixel in each group, `before` is cut off in front."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int
    channels: int
    outputs: int
    image: tuple[Known, ...]
    out: tuple[Known, ...]
    before: tuple[Known, ...]

    @property
    def taps(self) -> int:
        taps = 1
        for extent in self.kernel:
            taps *= extent
        return taps

    @property
    def is_tiling(self) -> bool:
        """Whether each output pixel is under one tap of one input pixel, and none is cut off or left over."""
        return (
            self.kernel == self.strides
            and all(d == 1 or k == 1 for d, k in zip(self.dilations, self.kernel, strict=True))
            and all(b == 0 for b in self.before)
            and all(o == i * s for o, i, s in zip(self.out, self.image, self.strides, strict=True))
        )


def refusal(node: Node) -> str | None:
    """Why a transposed convolution cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    if dtype_of(node.output) not in ELEMENTS:
        return f"no transposed convolution of {dtype_of(node.output)}"
    x, w = node.inputs[0], node.inputs[1]
    assert x is not None
    assert w is not None
    shape, weights = x.shape or (), w.shape or ()
    rank = len(shape) - 2
    if not 1 <= rank <= 3 or len(weights) != rank + 2:
        return f"no transposed convolution with {rank} spatial axes"
    if not all(isinstance(d, int) and d > 0 for d in weights):
        return "the extents of its weights are not known, or 0"
    strides, dilations = node.ints_attr("strides", (1,) * rank), node.ints_attr("dilations", (1,) * rank)
    pads, extra = node.ints_attr("pads", (0,) * (2 * rank)), node.ints_attr("output_padding", (0,) * rank)
    if (len(strides), len(dilations), len(pads), len(extra)) != (rank, rank, 2 * rank, rank):
        return "an attribute has the wrong length"
    if min(*strides, *dilations) < 1 or min(*pads, *extra) < 0:
        return "an attribute is out of range"
    groups = node.int_attr("group", 1)
    if groups < 1 or not isinstance(weights[0], int) or weights[0] % groups:
        return "its groups do not divide its channels"
    return None


def takes_epilogue(node: Node, group: Group) -> bool:
    """Whether the transposed convolution can do the group's work before it stores its sums."""
    return refusal(node) is None and takes_group(node, group, 1 - len(node.output.shape or ()))


def lower_conv_transpose(ctx: Lowering, node: Node, group: Group | None) -> None:
    source, w, bias = node.input(0), node.input(1), node.input(2)
    assert source is not None
    assert w is not None
    element = computed(dtype_of(node.output))
    x = ctx.view(source)
    if x.element is not element:
        x = cast_copy(ctx, x, element)
    weights = tuple(int(d) for d in shape_of(w) if isinstance(d, int))
    demand(ctx, "equal", x.shape[1], weights[0], "the input's channels are not the weight's")
    x = channels_last(ctx, replace(x, shape=(x.shape[0], weights[0], *x.shape[2:])))
    g = _geometry(ctx, node, x.shape[2:], weights)
    last = (0, *range(2, x.rank), 1)
    extras: list[Extra] = [] if bias is None else [(vector(ctx, ctx.view(bias)), "column")]

    def add(tape: TapeBuilder, total: int, operands: Sequence[int]) -> int:
        for operand in operands:
            total = tape.add("add", element, total, tape.cast(operand, element))
        return total

    done = finish(ctx, node, group, element, 1 - x.rank, extras, add)
    out = ctx.new(done.result, last)
    operands = []
    for view, kind in zip(done.operands, done.kinds, strict=True):
        if kind == "full":
            view = view.broadcast(out.shape)
            view = view if view.unit(1) else relayout(ctx, view, last)
        elif kind == "column":
            view = view.reshape((view.size,)) or view
            view = view if view.unit(0) else relayout(ctx, view)
        operands.append(view)
    done = Finish(done.epilogue, tuple(operands), done.kinds, done.result, done.ops)
    target = out if out.unit(1) else ctx.temporary(out.element, out.shape, last)
    if g.groups > 1 and g.channels == g.outputs == 1:
        _emit_sums(ctx, g, x, _depthwise_weights(ctx, w, g, element), target, done, element)
    elif not _emit_tiling(ctx, g, x, w, target, done, element):
        _emit_sums(ctx, g, _shares(ctx, g, x, w, element, done), None, target, done, element)
    if target is not out:
        copy(ctx, target, out)


def _geometry(ctx: Lowering, node: Node, image: Sequence[Known], weights: Sequence[int]) -> Geometry:
    rank = len(image)
    strides, dilations = node.ints_attr("strides", (1,) * rank), node.ints_attr("dilations", (1,) * rank)
    groups = node.int_attr("group", 1)
    out = shape_of(node.output)[2:]
    mode = node.str_attr("auto_pad", "NOTSET")
    extra = node.ints_attr("output_padding", (0,) * rank)
    before: list[Known] = []
    for i in range(rank):
        if not node.ints_attr("output_shape") and mode not in ("SAME_UPPER", "SAME_LOWER"):
            before.append(node.ints_attr("pads", (0,) * (2 * rank))[i] if mode == "NOTSET" else 0)
            demand(ctx, "at_most", 0, out[i], "attribute pads cuts off more than the output")
            continue
        full = (image[i] - 1) * strides[i] + (weights[2 + i] - 1) * dilations[i] + 1 + extra[i]
        cut = maximum(full - out[i], 0)
        half = floor_div(cut, 2)
        before.append(half if mode == "SAME_UPPER" else cut - half)
    return Geometry(
        tuple(weights[2:]), strides, dilations, groups, weights[0] // groups, weights[1], tuple(image), tuple(out),
        tuple(before),
    )  # fmt: skip


def _shares(ctx: Lowering, g: Geometry, x: View, w: Value, element: DType, done: Finish) -> View:
    """What each input pixel adds to the outputs: [images, (group, tap, output), image's axes..], pixels outermost."""
    rank = len(g.image)
    order = (0, *range(2, 2 + rank), 1)
    pixels = x.shape[0] * product(g.image)
    rows = x.transpose(order).reshape((pixels, g.groups, g.channels))
    if rows is None or not rows.unit(2):
        rows = relayout(ctx, x, order).transpose(order).reshape((pixels, g.groups, g.channels))
    assert rows is not None
    columns = g.taps * g.outputs
    shares = ctx.temporary(element, (pixels, g.groups, columns), label=f"shares of {done.result.name}")
    plain = Finish(None, (), (), done.result, done.ops)

    def panels(width: int, batch_shape: Sequence[Known]) -> tuple[View, tuple[Known, ...]]:
        return _panels(ctx, g, w, 1, width, element, batch_shape)

    if g.groups == 1:
        one = (pixels, columns), (columns, 1)
        emit_panels(ctx, rows.drop(1), panels, True, element, View(shares.buffer, *one), plain)
    else:
        by_group = shares.transpose((1, 0, 2))
        emit_panels(ctx, rows.transpose((1, 0, 2)), panels, False, element, by_group, plain)
    shape = (x.shape[0], *g.image, g.groups * columns)
    return View(shares.buffer, shape, dense_strides(shape)).transpose((0, 1 + rank, *range(1, 1 + rank)))


def _emit_tiling(ctx: Lowering, g: Geometry, x: View, w: Value, out: View, done: Finish, element: DType) -> bool:
    """Emit one product that writes every output where it belongs, where no two taps meet; False where that is not so.

    Neighbouring taps along the last axis are neighbouring columns of the product; rows of the image are matrices of a
    batch, and so are the rows of taps.
    """
    rank, row = len(g.image), g.image[-1]
    if not g.is_tiling or g.groups > 1 or rank > 2 or (rank == 2 and hint(row) < SHORTEST_ROW):
        return False
    views = [out, *(v for v, kind in zip(done.operands, done.kinds, strict=True) if kind == "full")]
    if any(v.strides[-1] != g.outputs and row != 1 for v in views):
        return False
    columns = g.kernel[-1] * g.outputs
    shape: tuple[Known, ...] = (x.shape[0], row)
    source: tuple[Known, ...] = (x.strides[0], x.strides[2])
    if rank == 2:
        shape = (x.shape[0], g.image[0], g.kernel[0], row)
        source = (x.strides[0], x.strides[2], 0, x.strides[3])

    def spread(view: View) -> View:
        """An image of outputs as what the product writes."""
        n, space = view.strides[0], view.strides[2:]
        steps = (n, space[0] * g.kernel[0], space[0], columns) if rank == 2 else (n, columns)
        return replace(view, shape=(*shape, columns), strides=(*steps, 1))

    a = replace(x, shape=(*shape, g.channels), strides=(*source, 1))
    c = spread(out)
    operands = []
    batch = [a.strides[:-2], c.strides[:-2]]
    for view, kind in zip(done.operands, done.kinds, strict=True):
        if kind == "full":
            view = spread(view)
            batch.append(view.strides[:-2])
        operands.append(view)
    if rank == 2 and len(collapse(shape[:2], [s[:2] for s in batch], [i for i in (0, 1) if shape[i] != 1])) > 1:
        return False
    for i, kind in enumerate(done.kinds):
        if kind == "column":
            repeated = relayout(ctx, operands[i].broadcast((g.kernel[-1], g.outputs)))
            operands[i] = replace(repeated, shape=(columns,), strides=(1,))

    def panels(width: int, batch_shape: Sequence[Known]) -> tuple[View, tuple[Known, ...]]:
        return _panels(ctx, g, w, g.kernel[0] if rank == 2 else 1, width, element, batch_shape)

    finished = Finish(done.epilogue, tuple(operands), done.kinds, done.result, done.ops)
    emit_panels(ctx, a, panels, rank == 1, element, c, finished)
    return True


def _panels(
    ctx: Lowering, g: Geometry, w: Value, rows: int, width: int, element: DType, batch_shape: Sequence[Known]
) -> tuple[View, tuple[Known, ...]]:
    """The weights as matrices [channels, (tap, output)] in panels of `width` columns: one for each group, and for each
    of `rows` rows of taps."""
    taps = g.taps // rows
    columns, count = taps * g.outputs, g.groups * rows
    split = (g.groups, g.channels, g.outputs, rows, taps)
    matrices_shape = (count, g.channels, columns)
    if w.data is None:
        view = ctx.view(w)
        if view.element is not element:
            view = cast_copy(ctx, view, element)
        parts = view.reshape(split) or relayout(ctx, view).reshape(split)
        assert parts is not None
        matrices = relayout(ctx, parts.transpose((0, 3, 1, 4, 2))).reshape(matrices_shape)
        assert matrices is not None
        return pack_at_run(ctx, matrices.drop(0) if count == 1 else matrices, element, width, batch_shape)
    data = w.data

    def make() -> np.ndarray[Any, Any]:
        parts = data.numpy().astype(element.numpy, copy=False).reshape(split)
        matrices = parts.transpose(0, 3, 1, 4, 2).reshape(matrices_shape)
        return np.stack([pack_b(matrix, width) for matrix in matrices])

    buffer = ctx.weight(("transposed", data.identity(), g.groups, rows, width, element.name), make, element)
    size = -(-columns // width) * width * g.channels
    steps = (0,) * (len(batch_shape) - 1) + (size if count > 1 else 0,) if batch_shape else ()
    return View(buffer, (count, size), (size, 1)), steps


def _depthwise_weights(ctx: Lowering, w: Value, g: Geometry, element: DType) -> View:
    """[tap, channel]."""
    if w.data is None:
        view = ctx.view(w)
        if view.element is not element:
            view = cast_copy(ctx, view, element)
        flat = view.reshape((g.groups, g.taps)) or relayout(ctx, view).reshape((g.groups, g.taps))
        assert flat is not None
        return relayout(ctx, flat.transpose((1, 0)))
    data = w.data

    def make() -> np.ndarray[Any, Any]:
        array = data.numpy().astype(element.numpy, copy=False)
        return np.ascontiguousarray(array.reshape(g.groups, g.taps).T)

    buffer = ctx.weight(("taps", data.identity(), element.name), make, element)
    return View(buffer, (g.taps, g.groups), (g.groups, 1))


def _emit_sums(
    ctx: Lowering, g: Geometry, z: View, weights: View | None, out: View, done: Finish, element: DType
) -> None:
    """Emit the sums of shares `z`, or with `weights` of the input `z` times a number for each tap and channel."""
    per_group = 1 if weights is not None else g.outputs
    spec = TapSum(g.kernel, g.strides, g.dilations, per_group, g.groups, weights is not None, element, done.epilogue)
    row = g.groups if weights is not None else g.outputs
    meeting = max(1, g.taps // max(1, int(np.prod(g.strides))))
    tile = max(1, WORK // (row * (meeting + 1)))
    words: dict[str, Word] = {"z": address(z), "c": address(out), "batch": out.shape[0], "tile": tile}
    if weights is not None:
        words["w"] = address(weights)
    full = [
        (f"e{i}", view) for i, (view, kind) in enumerate(zip(done.operands, done.kinds, strict=True)) if kind == "full"
    ]
    words |= {f"e{i}": address(view) for i, view in enumerate(done.operands)}
    for name, view in (("z", z), ("c", out), *full):
        words[f"{name}_n"] = view.strides[0]
        for i in range(len(g.kernel)):
            words[f"{name}_s{i}"] = view.strides[2 + i]
    for i in range(len(g.kernel)):
        words[f"out{i}"], words[f"in{i}"], words[f"before{i}"] = g.out[i], g.image[i], g.before[i]
    groups = 1 if weights is not None else g.groups
    tiles = out.shape[0] * groups * product(g.out[:-1]) * ceil_div(g.out[-1], tile)
    reads = [z, *([weights] if weights is not None else []), *done.operands]
    ctx.emit(spec, words, tiles, reads, [out], flops=out.size * 2 * meeting, ops=done.ops, tactic="tap-sum")


CONV_TRANSPOSE = Rule(lower_conv_transpose, refusal)
