"""Scaled dot-product attention: heads as views, past and present, masks."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import cast_copy, copy, relayout
from whet.compiler.lower.demand import broadcast, demand, demand_same
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.step import Word, address
from whet.compiler.tape import computed
from whet.compiler.views import View, hint
from whet.dtypes import BFLOAT16, BOOL, FLOAT16, FLOAT32, INT32, INT64
from whet.graph import Node, Value
from whet.graph.dims import Dim, Known, ceil_div
from whet.kernels.attention import Attention

_TILE_QUERIES = (64, 128, 256)
_TILES = 64
"""Enough for a few threads to finish at about the same time."""
_STORED = frozenset({FLOAT32, FLOAT16, BFLOAT16})


def _head_extent(value: Value | None, heads: int) -> Dim:
    """The extent of one head of a 3-D operand with `heads` heads, or of a 4-D one."""
    shape = value.shape if value is not None else None
    if shape is None:
        return None
    last = shape[-1]
    if len(shape) == 4:
        return last
    return last // heads if isinstance(last, int) and heads and last % heads == 0 else None


def refusal(node: Node) -> str | None:
    """Why an Attention node cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    q, k, v, mask = (node.input(i) for i in range(4))
    assert q is not None
    assert k is not None
    assert v is not None
    if dtype_of(node.output) not in _STORED:
        return f"no attention of {dtype_of(node.output)}"
    if any(dtype_of(x) is not dtype_of(q) for x in (k, v)):
        return "queries, keys and values have different element types"
    if len(node.outputs) > 3 and (node.outputs[3].use_count or node.outputs[3].graph_outputs):
        return "the scores are asked for"
    ranks = {len(x.shape or ()) for x in (q, k, v)}
    if len(ranks) != 1 or not ranks <= {3, 4}:
        return "queries, keys and values have different ranks"
    heads, kv_heads = node.int_attr("q_num_heads", 0), node.int_attr("kv_num_heads", 0)
    if ranks == {3} and (heads < 1 or kv_heads < 1 or heads % kv_heads):
        return "its numbers of heads do not fit"
    sizes = (_head_extent(q, heads), _head_extent(k, kv_heads), _head_extent(v, kv_heads))
    if not all(isinstance(size, int) for size in sizes) or sizes[0] != sizes[1]:
        return "the extent of a head is not known"
    if ranks == {4} and not all(isinstance((x.shape or ())[1], int) for x in (q, k)):
        return "the number of heads is not known"
    if mask is not None:
        if dtype_of(mask) not in (*_STORED, BOOL):
            return f"no attention mask of {dtype_of(mask)}"
        if len(mask.shape or ()) > 4 or not mask.shape:
            return "the mask has no such rank"
        if mask.shape[-1] is None or mask.shape[-1] != _total(node):
            return "the mask may be shorter than the keys"
    lengths = node.input(6)
    if lengths is not None and dtype_of(lengths) not in (INT32, INT64):
        return f"lengths of type {dtype_of(lengths)}"
    return None


def _total(node: Node) -> Dim:
    """Keys, past ones included."""
    key, past = node.input(1), node.input(4)
    assert key is not None
    own = (key.shape or (None,))[-2]
    if past is None or own is None:
        return own
    before = (past.shape or (None,) * 4)[2]
    return None if before is None else own + before


def lower_attention(ctx: Lowering, node: Node, group: Group | None) -> None:
    q, k, v, mask, past_key, past_value, lengths = (node.input(i) for i in range(7))
    assert q is not None
    assert k is not None
    assert v is not None
    heads, kv_heads = node.int_attr("q_num_heads", 0), node.int_attr("kv_num_heads", 0)
    query, key, value = _heads(ctx, q, heads), _heads(ctx, k, kv_heads), _heads(ctx, v, kv_heads)
    demand_same(ctx, key.shape[:3], value.shape[:3], "keys and values have different extents")
    demand(ctx, "equal", query.shape[0], key.shape[0], "queries and keys have different batches")
    offset: Known = 0
    if past_key is not None and past_value is not None:
        offset = shape_of(past_key)[2]
        key = _joined(ctx, past_key, key, node.outputs[1] if len(node.outputs) > 1 else None)
        value = _joined(ctx, past_value, value, node.outputs[2] if len(node.outputs) > 2 else None)
    else:
        for index, view in ((1, key), (2, value)):
            if len(node.outputs) > index:
                present = ctx.new(node.outputs[index])
                copy(ctx, view, present)
    dtype = dtype_of(node.output)
    out = ctx.new(node.output)
    target = out if dtype is FLOAT32 else ctx.temporary(FLOAT32, out.shape)
    result = target
    if target.rank == 3:
        split = target.reshape((*target.shape[:2], query.shape[1], value.shape[3]))
        assert split is not None, "heads are parts of a row whose elements are neighbours"
        result = split.transpose((0, 2, 1, 3))
    emit_attention(
        ctx, query, key, value, result,
        scale=node.float_attr("scale", float("nan")),
        causal=bool(node.int_attr("is_causal", 0)),
        offset=offset,
        left=node.int_attr("left_window_size", -1),
        right=node.int_attr("right_window_size", -1),
        mask=None if mask is None else ctx.view(mask),
        lengths=None if lengths is None else ctx.view(lengths),
        softcap=node.float_attr("softcap", 0.0),
    )  # fmt: skip
    if target is not out:
        ctx.node = node
        from_single(ctx, target, out)


def from_single(ctx: Lowering, source: View, out: View) -> None:
    """Write float32 elements as the type of `out`."""
    copy(ctx, cast_copy(ctx, source, out.element), out)


def _heads(ctx: Lowering, value: Value, heads: int) -> View:
    """[batch, heads, rows, head] of a 3- or 4-D operand, in float32."""
    view = ctx.view(value)
    if view.element is not computed(view.element):
        view = cast_copy(ctx, view, computed(view.element))
    if view.rank == 4:
        return view
    last = view.shape[2]
    assert isinstance(last, int)
    wanted = (*view.shape[:2], heads, last // heads)
    split = view.reshape(wanted)
    if split is None:
        split = relayout(ctx, view).reshape(wanted)
    assert split is not None
    return split.transpose((0, 2, 1, 3))


def _joined(ctx: Lowering, past: Value, new: View, present: Value | None) -> View:
    """Past and new keys or values one behind the other, which is an output of the node where it has one."""
    before = ctx.view(past)
    for axis in (0, 1, 3):
        demand(ctx, "equal", before.shape[axis], new.shape[axis], "past and new keys or values do not fit")
    shape = (*before.shape[:2], before.shape[2] + new.shape[2], before.shape[3])
    element = before.element
    if present is not None:
        joined = ctx.new(present)
    else:
        joined = ctx.temporary(element, shape)
    copy(ctx, before, joined.slice(2, 0, before.shape[2]))
    part = new if new.element is element else cast_copy(ctx, new, element)
    copy(ctx, part, joined.slice(2, before.shape[2], new.shape[2]))
    return joined if joined.element is FLOAT32 else cast_copy(ctx, joined, FLOAT32)


def emit_attention(
    ctx: Lowering, query: View, key: View, value: View, out: View, *, scale: float, causal: bool = False,
    offset: Known = 0, left: int = -1, right: int = -1, mask: View | None = None, lengths: View | None = None,
    softcap: float = 0.0,
) -> None:  # fmt: skip
    """Emit attention over float32 views [batch, heads, rows, head]; a `scale` of NaN is 1 / sqrt(head)."""
    head, value_head = query.shape[3], value.shape[3]
    assert isinstance(head, int)
    assert isinstance(value_head, int)
    query, key, value = (x if x.unit(3) else relayout(ctx, x) for x in (query, key, value))
    batch, heads, queries, keys = query.shape[0], query.shape[1], query.shape[2], key.shape[2]
    if mask is not None:
        mask = _mask(ctx, mask, (batch, heads, queries, keys))
    spec = Attention(
        head=head,
        value_head=value_head,
        scale=1.0 / max(head, 1) ** 0.5 if scale != scale else scale,
        causal=causal,
        left_window=left >= 0,
        right_window=right >= 0 and not causal,
        mask=None if mask is None else mask.element,
        lengths=None if lengths is None else lengths.element,
        offset_from_lengths=lengths is not None and (causal or left >= 0 or right >= 0),
        softcap=softcap,
        tile_queries=_tile_queries(ctx, hint(batch * heads), hint(queries), head + value_head),
    )
    words: dict[str, Word] = {
        "q": address(query), "k": address(key), "v": address(value), "y": address(out),
        "query_heads": heads, "key_heads": key.shape[1], "queries": queries, "keys": keys,
        "offset": offset, "left": left, "right": right,
    }  # fmt: skip
    for name, view in (("q", query), ("k", key), ("v", value), ("y", out)):
        for axis, axis_name in enumerate(("batch", "head", "row")):
            words[f"{name}_{axis_name}"] = view.strides[axis]
    reads = [query, key, value]
    if mask is not None:
        words["mask"] = address(mask)
        for axis, axis_name in enumerate(("batch", "head", "row", "key")):
            words[f"mask_{axis_name}"] = mask.strides[axis]
        reads.append(mask)
    if lengths is not None:
        demand(ctx, "equal", lengths.size, batch, "there is not one length for each batch entry")
        words["lengths"] = address(lengths)
        reads.append(lengths)
    tiles = batch * heads * ceil_div(queries, spec.tile_rows(ctx.target))
    flops = batch * heads * queries * keys * (2 * (head + value_head))
    ctx.emit(spec, words, tiles, reads, [out], flops=flops, tactic="attention")


def _tile_queries(ctx: Lowering, heads: int, queries: int, elements: int) -> int:
    """Queries in a tile: the more, the less often keys come from a distant cache, if there are tiles enough for some
    threads and a tile's queries and results, of so many elements together, leave room in L2."""
    fits = [
        size for size in _TILE_QUERIES
        if heads * -(-queries // size) >= _TILES and size * elements * 4 <= ctx.target.l2_bytes // 4
    ]  # fmt: skip
    return max(fits, default=min(_TILE_QUERIES))


def _mask(ctx: Lowering, mask: View, shape: Sequence[Known]) -> View:
    if mask.element not in (FLOAT32, BOOL):
        mask = cast_copy(ctx, mask, FLOAT32)
    return broadcast(ctx, mask, tuple(shape))


ATTENTION = Rule(lower_attention, refusal)
