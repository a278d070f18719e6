"""Factors of what a convolution reads, one for each channel, become factors of its weights: squeeze-and-excite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import relayout
from whet.compiler.lower.epilogue import Finish
from whet.compiler.lower.matmul import constant_rows, emit_panels
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.step import Word, address
from whet.compiler.views import View, hint, product
from whet.dtypes import FLOAT32, FLOAT64, DType
from whet.graph import Node, Value
from whet.graph.dims import Known, ceil_div
from whet.kernels.scale_panels import ScalePanels


def leave_to_reader(ctx: Lowering, group: Group) -> bool:
    """Whether a group is a product that its one reader multiplies into its weights: then it must not be lowered."""
    pair = _factors(ctx, group.nodes[0]) if len(group.nodes) == 1 and group.nodes[0].op == "Mul" else None
    if pair is None:
        return False
    ctx.factored[group.root] = pair
    return True


def _factors(ctx: Lowering, node: Node) -> tuple[Value, Value] | None:
    """What the node multiplies and by which factors, where a convolution can take them."""
    reader = node.output.only_use
    shape, element = shape_of(node.output), dtype_of(node.output)
    if reader is None or reader.graph is not node.graph or reader.op != "Conv" or reader.inputs[0] is not node.output:
        return None
    if element not in (FLOAT32, FLOAT64) or len(shape) < 3 or ctx.env.tactics.get("conv") not in (None, "pointwise"):
        return None
    weights = reader.inputs[1]
    if weights is None or weights.data is None or reader.int_attr("group", 1) != 1:
        return None
    ones = (1,) * (len(shape) - 2)
    plain = weights.data.shape[2:] == ones and reader.ints_attr("strides", ones) == ones
    pads = any(reader.ints_attr("pads", ())) and reader.str_attr("auto_pad", "NOTSET") == "NOTSET"
    # Else an image has fewer numbers to multiply than the weights have.
    if not plain or pads or weights.data.shape[0] > hint(product(shape[2:])):
        return None
    for x, factors in (node.inputs, node.inputs[::-1]):
        assert x is not None
        assert factors is not None
        if shape_of(x) == shape and shape_of(factors) in ((shape[0], shape[1], *ones), (1, shape[1], *ones)):
            return x, factors
    return None


def emit_factored(
    ctx: Lowering, x: View, factors: View, w: Value, element: DType, out: View, done: Finish
) -> None:  # fmt: skip
    """Emit the 1x1 convolution of `x` [images, k, ...] times `factors` [images or 1, k, 1, ...] with constant weights.

    Pixels of `x`, `out` and of what the epilogue reads as a whole are evenly spaced, their channels neighbours.
    """
    images, shared = factors.shape[0], factors.shape[0] == 1
    factors = factors if factors.unit(1) else relayout(ctx, factors)

    def panels(width: int, batch_shape: Sequence[Known]) -> tuple[View, tuple[Known, ...]]:
        packed, n, k = constant_rows(ctx, w, element, width)
        count, size = ceil_div(n, width), ceil_div(n, width) * width * k
        spec = ScalePanels(width // ctx.target.lanes(element), k, element)
        scaled = ctx.temporary(element, (images, size), label=f"panels of {w.name} times {factors.buffer.label}")
        words: dict[str, Word] = {
            "packed": address(packed), "factors": address(factors), "scaled": address(scaled), "panels": count,
            "factors_i": factors.strides[0],
        }  # fmt: skip
        ctx.emit(spec, words, count * images, [packed, factors], [scaled], flops=scaled.size, tactic="scale weights")
        return scaled, (0,) * len(batch_shape) if shared else (size,)

    order = (0, *range(2, x.rank), 1)
    pixels = product(x.shape[2:])

    def rows(view: View) -> View:
        joined = view.transpose(order).reshape((view.shape[0], pixels, view.shape[1]))
        if joined is None:
            joined = relayout(ctx, view.transpose(order)).reshape((view.shape[0], pixels, view.shape[1]))
        assert joined is not None
        return joined

    operands = tuple(rows(v) if kind == "full" else v for v, kind in zip(done.operands, done.kinds, strict=True))
    done = replace(done, operands=operands)
    emit_panels(ctx, rows(x), panels, shared, element, rows(out), done)
