"""Inference for matrix products."""

from __future__ import annotations

from collections.abc import Sequence

from whet.dtypes import INT32, DType
from whet.errors import InvalidGraph
from whet.graph import Node, Shape, TensorType, Type
from whet.graph.dims import broadcast
from whet.graph.types import format_shape
from whet.ops.common import common_dtype, dtype_of, required, shape_of


def matmul(node: Node) -> Sequence[Type | None]:
    return (
        TensorType(
            common_dtype(node.inputs[:2]), product_shape(shape_of(required(node, 0)), shape_of(required(node, 1)))
        ),
    )


def matmul_integer(node: Node) -> Sequence[Type | None]:
    return (TensorType(INT32, product_shape(shape_of(required(node, 0)), shape_of(required(node, 1)))),)


def qlinear_matmul(node: Node) -> Sequence[Type | None]:
    shape = product_shape(shape_of(required(node, 0)), shape_of(required(node, 3)))
    return (TensorType(dtype_of(node.input(7)), shape),)


def product_shape(a: Shape | None, b: Shape | None) -> Shape | None:
    """The shape of numpy's matmul. Raises InvalidGraph when depths or batch axes cannot agree."""
    if a is None or b is None:
        return None
    if not a or not b:
        raise InvalidGraph("a matrix product needs at least one axis", found=f"{format_shape(a)} and {format_shape(b)}")
    left: Shape = (1, a[0]) if len(a) == 1 else a
    right: Shape = (b[0], 1) if len(b) == 1 else b
    depth, other = left[-1], right[-2]
    if isinstance(depth, int) and isinstance(other, int) and depth != other:
        raise InvalidGraph(
            "the depths of a matrix product differ",
            found=f"{format_shape(a)} times {format_shape(b)}",
            expected=f"{depth} rows in the second input",
        )
    try:
        batch = broadcast(left[:-2], right[:-2])
    except ValueError as error:
        raise InvalidGraph(
            "the batch axes of a matrix product do not broadcast", found=f"{format_shape(a)} times {format_shape(b)}"
        ) from error
    assert batch is not None
    rows = left[-2:-1] if len(a) > 1 else ()
    columns = right[-1:] if len(b) > 1 else ()
    return (*batch, *rows, *columns)


def gemm(node: Node) -> Sequence[Type | None]:
    dtype: DType | None = common_dtype(node.inputs)
    a, b = shape_of(required(node, 0)), shape_of(required(node, 1))
    for name, shape in (("A", a), ("B", b)):
        if shape is not None and len(shape) != 2:
            raise InvalidGraph(f"input {name} of Gemm is no matrix", found=format_shape(shape), expected="rank 2")
    transposed_a, transposed_b = node.int_attr("transA", 0) != 0, node.int_attr("transB", 0) != 0
    rows, depth = (None, None) if a is None else (a[1], a[0]) if transposed_a else (a[0], a[1])
    other, columns = (None, None) if b is None else (b[1], b[0]) if transposed_b else (b[0], b[1])
    if isinstance(depth, int) and isinstance(other, int) and depth != other:
        raise InvalidGraph(
            "the depths of a matrix product differ",
            found=f"{format_shape(a)} times {format_shape(b)}, transA {int(transposed_a)}, transB {int(transposed_b)}",
        )
    result: Shape = (rows, columns)
    c = shape_of(node.input(2))
    if c is not None:
        fits = len(c) <= 2 and all(
            d == 1 or not isinstance(d, int) or not isinstance(r, int) or d == r
            for d, r in zip(reversed(c), reversed(result), strict=False)
        )
        if not fits:
            raise InvalidGraph(
                "input C of Gemm does not broadcast to the product",
                found=format_shape(c),
                expected=format_shape(result),
            )
    return (TensorType(dtype, result),)
