"""Pooling over windows, in the layout that the image has."""

from __future__ import annotations

from typing import Literal

from whet.compiler.fuse import Group
from whet.compiler.lower.along import WORK, behind, takes_scalars, written
from whet.compiler.lower.copy import copy, relayout
from whet.compiler.lower.demand import demand
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.step import Word, address
from whet.compiler.views import View, hint, product
from whet.graph import Node
from whet.graph.dims import Dim, Known, ceil_div
from whet.kernels.pool import Pool, Window
from whet.kernels.pool_rows import PoolRows

KINDS: dict[str, Literal["max", "average", "lp"]] = {"MaxPool": "max", "AveragePool": "average", "LpPool": "lp"}


def refusal(node: Node) -> str | None:
    """Why a pooling cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    element = dtype_of(node.output)
    if element.kind != "float" and (node.op != "MaxPool" or not element.is_integer):
        return f"no {node.op} of {element}"
    source = node.inputs[0]
    shape = source.shape if source is not None else None
    if shape is None or len(shape) < 3:
        return "it has no spatial axis"
    space = len(shape) - 2
    kernel = node.ints_attr("kernel_shape")
    strides, dilations = node.ints_attr("strides", (1,) * space), node.ints_attr("dilations", (1,) * space)
    pads = node.ints_attr("pads", (0,) * (2 * space))
    if (len(kernel), len(strides), len(dilations), len(pads)) != (space, space, space, 2 * space):
        return "an attribute has the wrong length"
    if min(*kernel, *strides, *dilations) < 1 or min(pads) < 0:
        return "a window attribute is out of range"
    if node.op == "LpPool" and node.int_attr("p", 2) < 1:
        return "p is less than 1"
    mode = node.str_attr("auto_pad", "NOTSET")
    for axis, extent in enumerate(shape[2:]):
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        padding = pads[axis] + pads[axis + space] if mode == "NOTSET" else 0
        if isinstance(extent, int) and extent + padding < reach and not mode.startswith("SAME"):
            return "the window is larger than the padded input"
        reason = _extent_refusal(node, extent, kernel[axis], strides[axis], dilations[axis], pads[axis + space], mode)
        if reason is not None:
            return reason
    return None


def _extent_refusal(
    node: Node, extent: Dim, size: int, stride: int, dilation: int, after: int, mode: str
) -> str | None:
    """Why windows along an axis need its extent before the program is made, or None."""
    if isinstance(extent, int):
        return None
    if mode in ("SAME_UPPER", "SAME_LOWER") and stride > 1:
        return "its padding depends on an extent that is known at run"
    reach = dilation * (size - 1) + 1
    if mode == "NOTSET" and node.int_attr("ceil_mode", 0) and after + stride > reach:
        return "its last window depends on an extent that is known at run"
    return None


def takes_group(node: Node, group: Group) -> bool:
    """Whether the pooling can do the group's work on its results."""
    return refusal(node) is None and takes_scalars(node, group)


def lower_pool(ctx: Lowering, node: Node, group: Group | None) -> None:
    source = node.inputs[0]
    assert source is not None
    x = ctx.view(source)
    order = (0, *range(2, x.rank), 1)
    indices = node.outputs[1] if len(node.outputs) > 1 and node.outputs[1].use_count else None
    if indices is None and x.unit(x.rank - 1) and not (x.unit(1) and x.shape[1] != 1):
        _along_rows(ctx, node, group, x)
        return
    if not x.unit(1):
        x = relayout(ctx, x, order)
    result, epilogue, ops = behind(ctx, node, group)
    windows = _windows(ctx, node, x)
    spec = Pool(
        kind=KINDS[node.op],
        dtype=x.element,
        out=dtype_of(result),
        windows=windows,
        count_include_pad=node.op == "AveragePool" and node.int_attr("count_include_pad", 0) != 0,
        p=node.int_attr("p", 2),
        indices=indices is not None,
        storage_order=1 if node.int_attr("storage_order", 0) else 0,
        epilogue=epilogue,
    )
    if indices is None:
        with written(ctx, result, order, lambda view: view.unit(1)) as out:
            _emit(ctx, spec, x, out, None, ops)
        return
    places = [ctx.new(value, order) for value in (result, indices)]
    # The kernel has one set of strides for values and positions.
    if all(view.unit(1) for view in places) and places[0].strides == places[1].strides:
        _emit(ctx, spec, x, places[0], places[1], ops)
        return
    made = [ctx.temporary(view.element, view.shape, order) for view in places]
    _emit(ctx, spec, x, made[0], made[1], ops)
    for source_view, place in zip(made, places, strict=True):
        copy(ctx, source_view, place)


def _along_rows(ctx: Lowering, node: Node, group: Group | None, x: View) -> None:
    """Pool an image whose rows are contiguous as it lies."""
    result, epilogue, ops = behind(ctx, node, group)
    windows = _windows(ctx, node, x)
    width, wide = x.shape[-1], shape_of(result)[-1]
    spec = PoolRows(
        kind=KINDS[node.op],
        dtype=x.element,
        out=dtype_of(result),
        windows=windows,
        count_include_pad=node.op == "AveragePool" and node.int_attr("count_include_pad", 0) != 0,
        p=node.int_attr("p", 2),
        epilogue=epilogue,
        columns=(width, wide) if isinstance(width, int) and isinstance(wide, int) else None,
        never_empty=all(map(_meets, windows, x.shape[2:], shape_of(result)[2:])),
    )
    with written(ctx, result, range(x.rank), lambda view: view.unit(x.rank - 1)) as out:
        words: dict[str, Word] = {"x": address(x), "out": address(out), "batch": x.shape[0], "channels": x.shape[1]}
        for name, view in (("x", x), ("out", out)):
            words |= {f"{name}_batch": view.strides[0], f"{name}_channel": view.strides[1]}
            words |= {f"{name}_space{i}": stride for i, stride in enumerate(view.strides[2:-1])}
        for i in range(len(windows)):
            words[f"input{i}"], words[f"output{i}"] = x.shape[2 + i], out.shape[2 + i]
        tiles = product(out.shape[:-1]) * ceil_div(out.shape[-1], spec.chunk)
        taps = product(window.size for window in windows)
        ctx.emit(spec, words, tiles, [x], [out], flops=out.size * taps, ops=ops, tactic="pool")


def _meets(window: Window, extent: Known, outputs: Known) -> bool:
    """Whether every window along an axis is known to have a tap inside, and taps are neighbours."""
    if not isinstance(extent, int) or not isinstance(outputs, int) or window.dilation != 1 or extent == 0:
        return False
    return window.before < window.size and (outputs - 1) * window.stride - window.before < extent


def _emit(ctx: Lowering, spec: Pool, x: View, out: View, indices: View | None, ops: str) -> None:
    channels = x.shape[1]
    taps = product(window.size for window in spec.windows)
    tile = max(1, WORK // max(1, hint(channels * taps)))
    words: dict[str, Word] = {
        "x": address(x), "out": address(out), "batch": x.shape[0], "channels": channels, "tile": tile,
        "x_batch": x.strides[0], "out_batch": out.strides[0],
    }  # fmt: skip
    for i in range(len(spec.windows)):
        words[f"input{i}"], words[f"output{i}"] = x.shape[2 + i], out.shape[2 + i]
        words[f"x_space{i}"], words[f"out_space{i}"] = x.strides[2 + i], out.strides[2 + i]
    writes = [out]
    if indices is not None:
        words["indices"] = address(indices)
        writes.append(indices)
    tiles = x.shape[0] * product(out.shape[2:-1]) * ceil_div(out.shape[-1], tile)
    ctx.emit(spec, words, tiles, [x], writes, flops=out.size * taps, ops=ops)


def _windows(ctx: Lowering, node: Node, x: View) -> tuple[Window, ...]:
    space = x.rank - 2
    kernel = node.ints_attr("kernel_shape")
    strides, dilations = node.ints_attr("strides", (1,) * space), node.ints_attr("dilations", (1,) * space)
    pads = node.ints_attr("pads", (0,) * (2 * space))
    mode = node.str_attr("auto_pad", "NOTSET")
    outputs = shape_of(node.output)[2:]
    result = []
    for i in range(space):
        reach = (kernel[i] - 1) * dilations[i] + 1
        before, after = (pads[i], pads[i + space]) if mode == "NOTSET" else (0, 0)
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            # With a stride of 1 this is a number for every extent.
            total = (outputs[i] - 1) * strides[i] + reach - x.shape[2 + i]
            assert isinstance(total, int), "the padding is not known"
            small = max(total, 0) // 2
            large = max(total, 0) - small
            before, after = (small, large) if mode == "SAME_UPPER" else (large, small)
        if mode not in ("SAME_UPPER", "SAME_LOWER"):
            padded = x.shape[2 + i] + before + after
            demand(ctx, "at_most", reach, padded, "the window is larger than the padded input")
        result.append(Window(kernel[i], strides[i], dilations[i], before, after))
    return tuple(result)


POOL = Rule(lower_pool, refusal)
