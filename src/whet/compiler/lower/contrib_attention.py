"""com.microsoft's Attention and MultiHeadAttention: heads out of packed rows, biases, masks, past and present."""

from __future__ import annotations

from whet.compiler.fuse import Group
from whet.compiler.lower.attention import emit_attention, from_single
from whet.compiler.lower.attention_masks import MaskForm, emit_mask, mask_refusal
from whet.compiler.lower.copy import copy
from whet.compiler.lower.demand import demand, demand_same, need
from whet.compiler.lower.epilogue import Finish
from whet.compiler.lower.matmul import emit_product
from whet.compiler.lower.pointwise import IN_MEMORY, emit_pointwise
from whet.compiler.lower.rotary import split_heads
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of
from whet.compiler.tape import TapeBuilder
from whet.compiler.views import View
from whet.dtypes import BFLOAT16, FLOAT16, FLOAT32
from whet.graph import Node, TensorType, Value
from whet.graph.dims import Known
from whet.kernels.tile import Epilogue, OperandKind

_STORED = frozenset({FLOAT32, FLOAT16, BFLOAT16})


def is_read(node: Node, index: int) -> bool:
    """Whether something reads an output of the node, which may be left out."""
    return index < len(node.outputs) and node.outputs[index].use_count > 0


def operands_refusal(node: Node) -> str | None:
    """Why the operands, or the results that are read, are nothing that the kernel can hold."""
    results = [v for i, v in enumerate(node.outputs) if i == 0 or is_read(node, i)]
    for value in (*node.inputs, *results):
        kind = value.type if value is not None else None
        if value is None:
            continue
        if not isinstance(kind, TensorType) or kind.dtype not in IN_MEMORY or kind.shape is None:
            return f"{value.name} has the type {kind}"
    if dtype_of(node.output) not in _STORED:
        return f"no attention of {dtype_of(node.output)}"
    return None


# MultiHeadAttention


def multi_head_refusal(node: Node) -> str | None:
    """Why MultiHeadAttention cannot be lowered, or None."""
    reason = operands_refusal(node)
    if reason is not None:
        return reason
    heads = node.int_attr("num_heads", 0)
    query, key, value, bias = (node.input(i) for i in range(4))
    if node.input(8) is not None or node.input(9) is not None:
        return "its past lies in a buffer with room for more"
    if is_read(node, 3):
        return "its scores are asked for"
    if heads < 1:
        return "its number of heads does not fit"
    assert query is not None
    packed = _packed_refusal(query, key, value, heads)
    if packed is not None:
        return packed
    past = node.input(6), node.input(7)
    cross = key is not None and len(key.shape or ()) == 4
    if (past[0] is None) != (past[1] is None) or (cross and past[0] is not None):
        return "its past does not fit its keys"
    if any(v is not None and len(v.shape or ()) != 4 for v in past):
        return "its past has not 4 dimensions"
    if bias is not None and len(bias.shape or ()) != 1:
        return "its bias is no vector"
    own = query if key is None else key
    keys = (own.shape or (None, None, None))[2 if cross else 1]
    form = MaskForm((query.shape or (None,))[0], (query.shape or (None, None))[1], keys)
    return mask_refusal(node, node.input(4), node.input(5), form)


def _packed_refusal(query: Value, key: Value | None, value: Value | None, heads: int) -> str | None:
    """Why the forms of queries, keys and values do not fit each other, or None."""
    ranks = tuple(len(v.shape or ()) if v is not None else 0 for v in (query, key, value))
    if ranks not in ((5, 0, 0), (3, 5, 0), (3, 3, 3), (3, 4, 4)):
        return f"no queries, keys and values with {', '.join(map(str, ranks))} dimensions"
    for operand, rank in zip((query, key, value), ranks, strict=True):
        if operand is None:
            continue
        shape = operand.shape or ()
        if not isinstance(shape[-1], int):
            return "the extent of a head is not known"
        if rank == 3 and shape[-1] % heads:
            return "its number of heads does not fit"
        if rank == 5 and shape[2:4] != (heads, 3 if operand is query else 2):
            return "its packed operand does not fit"
        if rank == 4 and shape[1] != heads:
            return "its number of heads does not fit"
    if key is not None:
        head, own, rank = (query.shape or ())[-1], (key.shape or ())[-1], len(key.shape or ())
        if (head if rank == 3 else head // heads if isinstance(head, int) else None) != own:
            return "the heads of queries and keys differ"
    return None


def lower_multi_head(ctx: Lowering, node: Node, group: Group | None) -> None:
    heads = node.int_attr("num_heads", 0)
    query, key, value = _heads_of(ctx, node, heads)
    cross = node.input(1) is not None and len(need(node, 1).shape or ()) == 4
    bias = node.input(3)
    parts: list[View | None] = [None, None, None]
    if bias is not None:
        offset: Known = 0
        view = ctx.view(bias)
        for index, operand in enumerate((query, key, value)):
            extent = heads * _int(operand.shape[3])
            part = view.slice(0, offset, extent)
            parts[index] = None if cross and index else _per_head(part, heads)
            offset = offset + extent
        demand(ctx, "equal", view.shape[0], offset, "the bias does not fit the heads")
    query, key, value = (single(ctx, v, p) for v, p in zip((query, key, value), parts, strict=True))
    past = [node.input(6), node.input(7)]
    before: Known = 0
    if past[0] is not None:
        before = ctx.view(past[0]).shape[2]
    joined = []
    for index, (old, new) in enumerate(zip(past, (key, value), strict=True)):
        place = ctx.new(node.outputs[1 + index]) if is_read(node, 1 + index) else None
        joined.append(append(ctx, None if old is None else ctx.view(old), new, place))
    attend(ctx, node, query, joined[0], joined[1], before, node.input(4), node.input(5))


def _heads_of(ctx: Lowering, node: Node, heads: int) -> tuple[View, View, View]:
    """Queries, keys and values as [batch, heads, rows, head]."""
    query, key, value = ctx.view(need(node, 0)), node.input(1), node.input(2)
    if query.rank == 5:
        return _part(query, 0), _part(query, 1), _part(query, 2)
    q = split_heads(query, heads, _int(query.shape[2]) // heads)
    assert key is not None
    k = ctx.view(key)
    if k.rank == 5:
        return q, _part(k, 0), _part(k, 1)
    assert value is not None
    v = ctx.view(value)
    return q, split_heads(k, heads, _int(k.shape[-1]) // heads), split_heads(v, heads, _int(v.shape[-1]) // heads)


def _part(view: View, index: int) -> View:
    """One of the operands that are packed along axis 3."""
    return view.slice(3, index, 1).drop(3).transpose((0, 2, 1, 3))


def _per_head(view: View, heads: int) -> View:
    """A vector as [heads, 1, head]."""
    extent, stride = _int(view.shape[0]) // heads, view.strides[0]
    return View(view.buffer, (heads, 1, extent), (stride * extent, 0, stride), view.offset, view.dtype)


def _int(extent: Known) -> int:
    assert isinstance(extent, int)
    return extent


# Attention with its projection


def attention_refusal(node: Node) -> str | None:
    """Why Attention cannot be lowered, or None."""
    reason = operands_refusal(node)
    if reason is not None:
        return reason
    x, weights, bias, past = need(node, 0), need(node, 1), node.input(2), node.input(4)
    heads = node.int_attr("num_heads", 0)
    if len(x.shape or ()) != 3 or len(weights.shape or ()) != 2:
        return "its operands are not 3-D and a matrix"
    if node.int_attr("do_rotary", 0):
        return "it turns its heads"
    if past is not None and node.int_attr("past_present_share_buffer", 0):
        return "its past lies in a buffer with room for more"
    if past is not None and len(past.shape or ()) != 5:
        return "its past has not 5 dimensions"
    sizes = _sizes(node)
    if sizes is None or heads < 1 or any(size % heads for size in sizes) or sizes[0] != sizes[1]:
        return "its number of heads does not fit"
    if (past is not None or is_read(node, 1)) and sizes[0] != sizes[2]:
        return "its present needs heads of one extent"
    if bias is not None and len(bias.shape or ()) != 1:
        return "its bias is no vector"
    rows = (x.shape or (None, None))[1]
    return mask_refusal(node, node.input(3), node.input(5), MaskForm((x.shape or (None,))[0], rows, rows))


def _sizes(node: Node) -> tuple[int, int, int] | None:
    """How wide queries, keys and values are, side by side."""
    width = (need(node, 1).shape or (None, None))[1]
    sizes = node.ints_attr("qkv_hidden_sizes")
    if not isinstance(width, int):
        return None
    if not sizes:
        return (width // 3, width // 3, width // 3) if width % 3 == 0 else None
    return (sizes[0], sizes[1], sizes[2]) if len(sizes) == 3 and sum(sizes) == width and min(sizes) > 0 else None


def lower_attention(ctx: Lowering, node: Node, group: Group | None) -> None:
    x, weights, bias, past = need(node, 0), need(node, 1), node.input(2), node.input(4)
    heads, sizes = node.int_attr("num_heads", 0), _sizes(node)
    assert sizes is not None
    given = ctx.view(x)
    projected = ctx.temporary(FLOAT32, (*given.shape[:2], sum(sizes)), None, f"projection of {x.name}")
    epilogue: Epilogue | None = None
    operands: tuple[View, ...] = ()
    kinds: tuple[OperandKind, ...] = ()
    if bias is not None:
        view = ctx.view(bias)
        demand(ctx, "equal", view.shape[0], sum(sizes), "the bias does not fit the weights")
        tape = TapeBuilder([FLOAT32, view.element])
        total = tape.tape(tape.add("add", FLOAT32, 0, tape.cast(1, FLOAT32)))
        epilogue, operands, kinds = Epilogue(total, ("column",)), (view,), ("column",)
    emit_product(
        ctx, given, weights, False, FLOAT32, projected, Finish(epilogue, operands, kinds, node.output, "projection")
    )
    views = []
    offset = 0
    for size in sizes:
        views.append(split_heads(projected.slice(2, offset, size), heads, size // heads))
        offset += size
    query, key, value = views
    before: Known = 0
    old: list[View | None] = [None, None]
    if past is not None:
        view = ctx.view(past)
        before = view.shape[3]
        old = [view.slice(0, i, 1).drop(0) for i in range(2)]
    present = ctx.new(node.outputs[1]) if is_read(node, 1) else None
    places = [None if present is None else present.slice(0, i, 1).drop(0) for i in range(2)]
    key, value = (append(ctx, o, n, p) for o, n, p in zip(old, (key, value), places, strict=True))
    attend(ctx, node, query, key, value, before, node.input(3), node.input(5))


# What both share


def single(ctx: Lowering, view: View, bias: View | None) -> View:
    """Heads in float32, plus a bias [heads, 1, head]."""
    if bias is None and view.element is FLOAT32:
        return view
    tape = TapeBuilder([view.element] if bias is None else [view.element, bias.element])
    total = tape.cast(0, FLOAT32)
    if bias is not None:
        total = tape.add("add", FLOAT32, total, tape.cast(1, FLOAT32))
    out = ctx.temporary(FLOAT32, view.shape, (0, 2, 1, 3), view.buffer.label)
    emit_pointwise(ctx, tape.tape(total), [view] if bias is None else [view, bias.broadcast(view.shape)], [out])
    return out


def append(ctx: Lowering, past: View | None, new: View, place: View | None) -> View:
    """Past and new rows [batch, heads, rows, head] one behind the other, in `place` where there is one; in float32."""
    if past is None:
        if place is not None:
            put(ctx, new, place)
        return new
    demand_same(
        ctx, (*past.shape[:2], past.shape[3]), (*new.shape[:2], new.shape[3]), "the past does not fit the heads"
    )
    rows = past.shape[2]
    shape = (*past.shape[:2], rows + new.shape[2], past.shape[3])
    joined = place if place is not None else ctx.temporary(FLOAT32, shape)
    put(ctx, past, joined.slice(2, 0, rows))
    put(ctx, new, joined.slice(2, rows, new.shape[2]))
    return single(ctx, joined, None)


def put(ctx: Lowering, source: View, target: View) -> None:
    """Write elements as the type of `target`."""
    if source.element is target.element:
        copy(ctx, source, target)
        return
    tape = TapeBuilder([source.element])
    copy(ctx, source, target, tape.tape(tape.cast(0, target.element)))


def attend(
    ctx: Lowering, node: Node, query: View, key: View, value: View, before: Known, mask: Value | None,
    bias: Value | None,
) -> None:  # fmt: skip
    """Emit the attention of float32 heads to the node's first output, whose rows hold all heads."""
    batch, heads, rows, _ = query.shape
    demand_same(ctx, key.shape[:1], (batch,), "queries and keys have different batches")
    demand_same(ctx, value.shape[:3], key.shape[:3], "keys and values have different extents")
    total = key.shape[2]
    addend = emit_mask(ctx, node, mask, None if bias is None else ctx.view(bias), (batch, heads, rows, total))
    out = ctx.new(node.output)
    target = out if out.element is FLOAT32 and out.unit(2) else ctx.temporary(FLOAT32, out.shape)
    scale = node.float_attr("scale", 0.0)
    emit_attention(
        ctx, query, key, value, split_heads(target, _int(heads), _int(value.shape[3])),
        scale=scale if scale != 0.0 else float("nan"),
        causal=node.int_attr("unidirectional", 0) != 0,
        offset=before,
        mask=addend,
    )  # fmt: skip
    if target is not out:
        if out.element is FLOAT32:
            copy(ctx, target, out)
        else:
            from_single(ctx, target, out)


MULTI_HEAD = Rule(lower_multi_head, multi_head_refusal)
CONTRIB_ATTENTION = Rule(lower_attention, attention_refusal)
