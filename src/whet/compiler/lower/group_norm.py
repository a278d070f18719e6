"""GroupNormalization channels-last, InstanceNormalization as the image lies."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compiler.fuse import Group
from whet.compiler.lower.along import WORK, behind, loops, takes_scalars, tile_for, written
from whet.compiler.lower.copy import relayout
from whet.compiler.lower.demand import demand
from whet.compiler.lower.matmul import same_whole
from whet.compiler.lower.norm import Rows, emit_norm, floats_refusal, is_row, row_order
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering
from whet.compiler.step import Word, address
from whet.compiler.tape import TapeBuilder, computed
from whet.compiler.views import View, hint, product
from whet.graph import Node
from whet.graph.dims import Known, ceil_div, floor_div, maximum
from whet.kernels.accumulate import SLOTS
from whet.kernels.group_norm import GroupNormApply, GroupNormCombine, GroupNormParts

BLOCKS = 32
"""Blocks that an image's statistics are gathered in, at most."""


def refusal(node: Node) -> str | None:
    """Why a norm of groups of channels cannot be lowered, or None."""
    reason = floats_refusal(node)
    if reason is not None:
        return reason
    shape = node.output.shape or ()
    if len(shape) < 2:
        return "it has no channels"
    if node.domain and len(shape) != 4:
        return "its operand has not four dimensions"
    channels = shape[_channel_axis(node)]
    for value in node.inputs[1:3]:
        own = value.shape if value is not None else None
        if own is None or len(own) != 1:
            return "scale and bias are no vectors"
        if isinstance(own[0], int) and isinstance(channels, int) and own[0] != channels:
            return "scale and bias have not one number a channel"
    groups = _group_count(node)
    if groups is not None and (groups < 1 or (isinstance(channels, int) and channels % groups)):
        return "the channels cannot be divided among the groups"
    return None


def takes_group(node: Node, group: Group) -> bool:
    """Whether the norm can do the group's work on its results."""
    return refusal(node) is None and takes_scalars(node, group) and not _has_silu(node)


def _channel_axis(node: Node) -> int:
    """Where the operand's channels are: `com.microsoft.GroupNorm` has them last unless it says otherwise."""
    return -1 if node.op == "com.microsoft.GroupNorm" and node.int_attr("channels_last", 1) else 1


def _group_count(node: Node) -> int | None:
    """The number of groups; None where every channel is one."""
    if node.op == "InstanceNormalization":
        return None
    return node.int_attr("groups" if node.op == "com.microsoft.GroupNorm" else "num_groups", 0)


def _has_silu(node: Node) -> bool:
    return node.op == "com.microsoft.GroupNorm" and node.int_attr("activation", 0) == 1


def lower_group_norm(ctx: Lowering, node: Node, group: Group | None) -> None:
    source, scale_value, bias_value = node.inputs[:3]
    assert source is not None
    assert scale_value is not None
    assert bias_value is not None
    result, epilogue, ops = behind(ctx, node, group)
    x = ctx.view(source)
    rank, last = x.rank, _channel_axis(node) == -1
    # Everything is done as if channels came second; `back` is where the result's dimensions are then.
    back = (0, rank - 1, *range(1, rank - 1)) if last else tuple(range(rank))
    order = tuple(range(rank)) if last else channels_last(rank)
    x = x.transpose(back)
    scale, bias = (channel_vector(ctx, ctx.view(v), x.shape[1]) for v in (scale_value, bias_value))
    if _has_silu(node):
        tape = TapeBuilder([computed(x.element)])
        epilogue = tape.tape(tape.add("silu", computed(x.element), 0, numbers=(1.0,)))
    if _group_count(node) is None and is_row(x, 2) and not (x.unit(1) and x.shape[1] != 1):
        # Channels by themselves whose pixels lie together are rows.
        affine = scale.expand_dims(0)
        for _ in range(2, rank):
            affine = affine.expand_dims(affine.rank)
        vectors, epsilon = {"scale": scale, "bias": bias}, node.float_attr("epsilon", 1e-5)
        with written(ctx, result, row_order(x, 2), lambda view: is_row(view, 2)) as out:
            rows = {"x": x, "out": out}
            emit_norm(ctx, node, Rows(2, epsilon, rows, vectors, {}, epilogue, ops, affine.broadcast(x.shape)))
        return
    if pixel_stride(x) is None:
        x = relayout(ctx, x, channels_last(rank))
    groups = x.shape[1] if (count := _group_count(node)) is None else count
    coefficients = _emit_statistics(ctx, x, scale, groups, node.float_attr("epsilon", 1e-5), ops)
    with written(ctx, result, order, lambda view: pixel_stride(view.transpose(back)) is not None) as made:
        out = made.transpose(back)
        spatial, x_row = _pixels(x)
        tile = tile_for(x.shape[1])
        words: dict[str, Word] = {
            "x": address(x), "out": address(out), "coefficients": address(coefficients), "bias": address(bias),
            "batch": x.shape[0], "spatial": spatial, "channels": x.shape[1], "tile": tile,
            "x_batch": x.strides[0], "x_row": x_row, "out_batch": out.strides[0], "out_row": _pixels(out)[1],
        }  # fmt: skip
        ctx.emit(
            GroupNormApply(x.element, out.element, bias.element, epilogue),
            words, x.shape[0] * ceil_div(spatial, tile), [x, coefficients, bias], [out],
            flops=x.size * 2, in_place=[(x, out)] if same_whole(x, out) else [], ops=ops,
        )  # fmt: skip


def _emit_statistics(ctx: Lowering, x: View, scale: View, groups: Known, epsilon: float, ops: str) -> View:
    """Emit what makes each channel's mean and scaled inverse deviation, in memory [batch, 2, channels]."""
    batch, channels = x.shape[0], x.shape[1]
    spatial, x_row = _pixels(x)
    element = computed(x.element)
    demand(ctx, "equal", floor_div(channels, groups) * groups, channels, "the groups have different sizes")
    wide = SLOTS * ctx.target.lanes(element)
    column_tile = min(-(-hint(channels) // wide) * wide, 8 * wide)
    block = maximum(ceil_div(spatial, BLOCKS), max(1, WORK // column_tile))
    blocks = ceil_div(spatial, block)
    parts = ctx.temporary(element, (batch, blocks, 2, channels), label="statistics of blocks")
    extents: dict[str, Word] = {"batch": batch, "spatial": spatial, "channels": channels, "groups": groups}
    ctx.emit(
        GroupNormParts(x.element),
        {**extents, "x": address(x), "x_batch": x.strides[0], "x_row": x_row, "parts": address(parts), "block": block,
         "tile": column_tile},
        batch * blocks * ceil_div(channels, column_tile), [x], [parts], flops=x.size * 4, ops=ops,
    )  # fmt: skip
    coefficients = ctx.temporary(element, (batch, 2, channels), label="coefficients of channels")
    group_tile = 1 if isinstance(groups, int) and groups <= 64 else 64
    ctx.emit(
        GroupNormCombine(x.element, epsilon, scale.element),
        {**extents, "parts": address(parts), "coefficients": address(coefficients), "scale": address(scale),
         "block": block, "tile": group_tile},
        batch * ceil_div(groups, group_tile), [parts, scale], [coefficients], ops=ops,
    )  # fmt: skip
    return coefficients


def channels_last(rank: int) -> Sequence[int]:
    """The order in memory with channels innermost."""
    return (0, *range(2, rank), 1)


def pixel_stride(view: View) -> Known | None:
    """The stride between pixels where an image's pixels are one loop and its channels neighbours, else None."""
    if not view.unit(1):
        return None
    dims = loops(view.shape, [view.strides], range(2, view.rank))
    return dims[0][1][0] if len(dims) == 1 else None


def _pixels(view: View) -> tuple[Known, Known]:
    """How many pixels an image has, and the stride between them."""
    stride = pixel_stride(view)
    assert stride is not None
    return product(view.shape[2:]), stride


def channel_vector(ctx: Lowering, view: View, channels: Known) -> View:
    """A vector with a number for each channel, which lie in a row."""
    demand(ctx, "equal", view.shape[0], channels, "there is not one number a channel")
    return view if view.unit(0) else relayout(ctx, view)


GROUP_NORM = Rule(lower_group_norm, refusal)
