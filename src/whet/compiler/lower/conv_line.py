"""Convolutions along one axis, by Winograd's method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from whet.compiler.lower.epilogue import Finish
from whet.compiler.lowering import Lowering
from whet.compiler.step import Word, address
from whet.compiler.tactics.conv import Geometry, line_axis, line_tiles
from whet.compiler.views import View
from whet.dtypes import DType
from whet.graph import Value
from whet.graph.dims import Known, ceil_div
from whet.kernels.winograd_line import WinogradLine, pack_line_weights
from whet.kernels.winograd_tile import choose_line_tile


def emit_line(
    ctx: Lowering, g: Geometry, x: View, w: Value, out: View, done: Finish, element: DType, points: int,
    flops: Known, in_place: Sequence[tuple[View, View]],
) -> None:  # fmt: skip
    """Emit a convolution at `points` points; channels of `x` and `out` are neighbours."""
    axis = line_axis(g)
    assert axis is not None
    taps, extent = g.window.kernel[axis], g.out[axis]
    mr, nv, block, panels = choose_line_tile(
        ctx.target, g.channels, g.outputs, line_tiles(g, points), points, element, ctx.env.threads
    )
    fixed = extent if isinstance(extent, int) else None
    pad = g.window.pads[axis]
    spec = WinogradLine(g.channels, g.outputs, taps, points, pad, element, fixed, mr, nv, block, panels, done.epilogue)
    packed = _weights(ctx, w, spec)
    zero = ctx.zeros(g.channels, element)
    other = None if g.window.rank == 1 else 3 - axis
    lines: Known = 1 if other is None else g.out[other - 2]

    def line(view: View) -> Word:
        return 0 if other is None else view.strides[other]

    words: dict[str, Word] = {
        "x": address(x), "zero": address(zero), "x_n": x.strides[0], "x_l": line(x), "x_s": x.strides[2 + axis],
        "in": g.image[axis], "out": extent, "lines": lines, "images": g.images, "w": address(packed),
        "c": address(out), "ldc": out.strides[2 + axis], "c_n": out.strides[0], "c_l": line(out),
    }  # fmt: skip
    for i, (view, kind) in enumerate(zip(done.operands, done.kinds, strict=True)):
        words[f"e{i}"] = address(view)
        if kind == "full":
            words |= {f"e{i}_s": view.strides[2 + axis], f"e{i}_n": view.strides[0], f"e{i}_l": line(view)}
    parts = -(-g.outputs // (spec.width(ctx.target) * panels))
    tiles = ceil_div(ceil_div(extent, spec.tile) * lines * g.images, block) * parts
    ctx.emit(
        spec, words, tiles, [x, packed, zero, *done.operands], [out], flops=flops, in_place=in_place, ops=done.ops,
        tactic=f"winograd-line{points}",
    )  # fmt: skip


def _weights(ctx: Lowering, w: Value, spec: WinogradLine) -> View:
    assert w.data is not None
    data, element, points, width = w.data, spec.dtype, spec.points, spec.width(ctx.target)

    def make() -> np.ndarray[Any, Any]:
        array = data.numpy().astype(element.numpy, copy=False)
        return pack_line_weights(array.reshape(spec.outputs, spec.channels, spec.taps), points, width)

    buffer = ctx.weight(("winograd line", data.identity(), points, width, element.name), make, element)
    return View(buffer, (buffer.elements,), (1,))
