"""Inference for quantization."""

from __future__ import annotations

from collections.abc import Sequence

from whet.dtypes import FLOAT32, UINT8
from whet.graph import Node, TensorType, Type
from whet.ops.common import attribute_dtype, dtype_of, required, shape_of


def quantize(node: Node) -> Sequence[Type | None]:
    dtype = dtype_of(node.input(2)) if node.input(2) is not None else attribute_dtype(node, "output_dtype", UINT8)
    return (TensorType(dtype, shape_of(required(node, 0))),)


def dequantize(node: Node) -> Sequence[Type | None]:
    dtype = attribute_dtype(node, "output_dtype", dtype_of(required(node, 1)))
    return (TensorType(dtype, shape_of(required(node, 0))),)


def dynamic_quantize(node: Node) -> Sequence[Type | None]:
    return (TensorType(UINT8, shape_of(required(node, 0))), TensorType(FLOAT32, ()), TensorType(UINT8, ()))
