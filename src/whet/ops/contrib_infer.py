"""Inference for common operators of the `com.microsoft` domain."""

from __future__ import annotations

from collections.abc import Sequence

from whet.dtypes import FLOAT32, INT32, STRING
from whet.graph import Node, Shape, TensorType, Type
from whet.graph.dims import Dim, floor_div
from whet.ops.common import axis_in, broadcast_inputs, dtype_of, required, shape_of
from whet.ops.conv import conv_shape
from whet.ops.matmul import product_shape


def tokenizer(node: Node) -> Sequence[Type | None]:
    """Tokenizer: tokens on a new last axis, which is missing where there is no text."""
    return (TensorType(STRING),)


def skip_layer_norm(node: Node) -> Sequence[Type | None]:
    """SkipLayerNormalization and its simplified form: result, mean, inverse deviation, sum of input and skip."""
    source = required(node, 0)
    x = shape_of(source)
    reduced = TensorType(FLOAT32, None if x is None else (*x[:-1], 1))
    return (source.type, reduced, reduced, source.type)


def simplified_layer_norm(node: Node) -> Sequence[Type | None]:
    """SimplifiedLayerNormalization: the result in the scale's type, and the inverse deviation."""
    x = shape_of(required(node, 0))
    if x is None:
        return (TensorType(dtype_of(node.input(1))), TensorType(FLOAT32))
    axis = axis_in(node.int_attr("axis", -1), len(x))
    reduced = (*x[:axis], *(1,) * (len(x) - axis))
    return (TensorType(dtype_of(node.input(1)), x), TensorType(FLOAT32, reduced))


def embed_layer_norm(node: Node) -> Sequence[Type | None]:
    """EmbedLayerNormalization: embeddings, mask index, sum of embeddings."""
    ids, table = shape_of(required(node, 0)), shape_of(required(node, 2))
    dtype = dtype_of(node.input(2))
    if ids is None or len(ids) != 2:
        return (TensorType(dtype), TensorType(INT32), TensorType(dtype))
    hidden: Dim = table[-1] if table is not None and table else None
    mask: Shape = (ids[0],) if node.int_attr("mask_index_type", 1) == 1 else ids
    full = TensorType(dtype, (*ids, hidden))
    return (full, TensorType(INT32, mask), full)


def fused_matmul(node: Node) -> Sequence[Type | None]:
    a, b = shape_of(required(node, 0)), shape_of(required(node, 1))
    dtype = dtype_of(node.input(0))
    if a is None or b is None or node.int_attr("transBatchA", 0) or node.int_attr("transBatchB", 0):
        return (TensorType(dtype),)
    return (TensorType(dtype, product_shape(_swapped(a, node, "transA"), _swapped(b, node, "transB"))),)


def _swapped(shape: Shape, node: Node, attribute: str) -> Shape:
    if node.int_attr(attribute, 0) and len(shape) > 1:
        return (*shape[:-2], shape[-1], shape[-2])
    return shape


def matmul_nbits(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    x = shape_of(source)
    return (TensorType(dtype_of(source), None if not x else (*x[:-1], node.int_attr("N", 0) or None)),)


def attention(node: Node) -> Sequence[Type | None]:
    """Attention over a packed projection: the result and the present state."""
    source, weight = required(node, 0), required(node, 1)
    x, w = shape_of(source), shape_of(weight)
    dtype = dtype_of(source)
    if x is None or len(x) != 3:
        return (TensorType(dtype), TensorType(dtype))
    sizes = node.ints_attr("qkv_hidden_sizes")
    packed = w[1] if w is not None and len(w) == 2 else None
    hidden: Dim = sizes[2] if len(sizes) == 3 else None if packed is None else floor_div(packed, 3)
    heads, past = node.int_attr("num_heads", 0), shape_of(node.input(4))
    head: Dim = None if hidden is None or not heads else floor_div(hidden, heads)
    total: Dim = x[1]
    if past is not None and len(past) == 5:
        total = past[3] if node.int_attr("past_present_share_buffer", 0) else _sum(past[3], total)
    elif node.input(4) is not None:
        total = None
    return (TensorType(dtype, (x[0], x[1], hidden)), TensorType(dtype, (2, x[0], heads or None, total, head)))


def _sum(a: Dim, b: Dim) -> Dim:
    return None if a is None or b is None else a + b


def multi_head_attention(node: Node) -> Sequence[Type | None]:
    q, v = shape_of(required(node, 0)), shape_of(node.input(2))
    dtype = dtype_of(node.input(0))
    result: Shape | None = None
    if q is not None and len(q) == 3 and v is not None:
        hidden = v[2] if len(v) == 3 else None if v[1] is None or v[3] is None else v[1] * v[3]
        result = (q[0], q[1], hidden)
    elif q is not None and len(q) == 5:
        result = (q[0], q[1], None if q[2] is None or q[4] is None else q[2] * q[4])
    elif q is not None and len(q) == 3 and len(shape_of(node.input(1)) or ()) == 5:
        result = q
    present = tuple(_present(node, i) for i in (0, 1))
    return (TensorType(dtype, result), *(TensorType(dtype, p) for p in present), TensorType(dtype))


def _present(node: Node, which: int) -> Shape | None:
    """MultiHeadAttention's present key (0) or value (1): past rows, then new ones."""
    heads: Dim = node.int_attr("num_heads", 0) or None
    q, k, v, past = (shape_of(node.input(i)) for i in (0, 1, 2, 6 + which))
    if node.input(8) is not None:
        return past
    if q is not None and len(q) == 5:
        batch, rows, head = q[0], q[1], q[4]
    elif k is not None and len(k) == 5:
        batch, rows, head = k[0], k[1], k[4]
    else:
        own = k if which == 0 else v
        if own is None or len(own) not in (3, 4):
            return None
        if len(own) == 4:
            return own
        batch, rows = own[0], own[1]
        head = None if own[2] is None or heads is None else floor_div(own[2], heads)
    if node.input(6 + which) is not None:
        rows = None if past is None or len(past) != 4 else _sum(past[2], rows)
    return (batch, heads, rows, head)


def grouped_attention(node: Node) -> Sequence[Type | None]:
    """GroupQueryAttention: the result as wide as the query, present key and value."""
    q = shape_of(required(node, 0))
    dtype = dtype_of(node.input(0))
    if q is None or len(q) != 3:
        return (TensorType(dtype), TensorType(dtype), TensorType(dtype))
    hidden = q[2]
    if node.input(1) is None and hidden is not None:
        heads, kv_heads = node.int_attr("num_heads", 0), node.int_attr("kv_num_heads", 0)
        hidden = floor_div(hidden * heads, heads + 2 * kv_heads) if heads else None
    return (TensorType(dtype, (q[0], q[1], hidden)), TensorType(dtype), TensorType(dtype))


def qlinear_binary(node: Node) -> Sequence[Type | None]:
    """QLinearAdd, QLinearMul: both quantized inputs broadcast."""
    pair = (required(node, 0), required(node, 3))
    return (TensorType(dtype_of(pair[0]), broadcast_inputs(pair)),)


def gemm_fast_gelu(node: Node) -> Sequence[Type | None]:
    shape = product_shape(shape_of(required(node, 0)), shape_of(required(node, 1)))
    return (TensorType(dtype_of(node.input(0)), shape),)


def nhwc_conv(node: Node) -> Sequence[Type | None]:
    """A convolution whose input and result have their channels last."""
    x = shape_of(required(node, 0))
    first = None if x is None else (x[0], x[-1], *x[1:-1])
    shape = conv_shape(node, first, shape_of(required(node, 1)))
    return (TensorType(dtype_of(node.input(0)), None if shape is None else (shape[0], *shape[2:], shape[1])),)


def bias_split_gelu(node: Node) -> Sequence[Type | None]:
    """Half as wide as its input."""
    source = required(node, 0)
    x = shape_of(source)
    half: Dim = None if not x or x[-1] is None else floor_div(x[-1], 2)
    return (TensorType(dtype_of(source), None if not x else (*x[:-1], half)),)
