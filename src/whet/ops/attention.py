"""Inference for ONNX's attention operators."""

from __future__ import annotations

from collections.abc import Sequence

from whet.graph import Node, TensorType, Type
from whet.graph.dims import Dim, floor_div
from whet.ops.common import dtype_of, required, shape_of


def attention(node: Node) -> Sequence[Type | None]:
    """Attention: the result, present key and value, and the scores; rank 3 (heads by attribute) or rank 4."""
    q, k, v = (shape_of(required(node, i)) for i in range(3))
    dtype = dtype_of(required(node, 0))
    nothing = (TensorType(dtype),) * 4
    if q is None or k is None or v is None:
        return nothing
    past = shape_of(node.input(4))
    if len(q) == 4 and len(k) == 4 and len(v) == 4:
        batch, heads, length, _ = q
        kv_heads, kv_length, width, v_width = k[1], k[2], k[3], v[3]
        result: tuple[Dim, ...] = (batch, heads, length, v_width)
    elif len(q) == 3 and len(k) == 3 and len(v) == 3:
        heads, kv_heads = node.int_attr("q_num_heads", 0), node.int_attr("kv_num_heads", 0)
        if heads < 1 or kv_heads < 1:
            return nothing
        batch, length, _ = q
        kv_length = k[1]
        width = None if k[2] is None else floor_div(k[2], kv_heads)
        v_width = None if v[2] is None else floor_div(v[2], kv_heads)
        result = (batch, length, None if v_width is None else v_width * heads)
    else:
        return nothing
    total = kv_length
    if node.input(4) is not None:
        before = past[2] if past is not None and len(past) == 4 else None
        total = None if before is None or kv_length is None else before + kv_length
    return (
        TensorType(dtype, result),
        TensorType(dtype_of(node.input(1)), (batch, kv_heads, total, width)),
        TensorType(dtype_of(node.input(2)), (batch, kv_heads, total, v_width)),
        TensorType(dtype, (batch, heads, length, total)),
    )
