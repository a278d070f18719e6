"""Quantization as an annotation of values.

A DequantizeLinear whose scale and zero point are constants says that its output lies on a grid. `AnnotateQuantization`
writes that grid on the output value. It leaves the QuantizeLinear and DequantizeLinear nodes where they are: rounding
to the grid is part of what the model computes, at every level and for every provider, so that only a provider that
understands the annotation may drop the pair, and only together with a kernel that computes on the grid. A saved model
has its pairs because they never left.

The pattern matcher refuses to let an annotated value disappear inside a fusion, so that a fusion never computes in
floating point what the model says is computed on a grid. Annotations are derived facts, like types: every run of the
pass derives them anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from whet.dtypes import DType
from whet.graph import Graph, Node, Patch, TensorData, TensorType
from whet.passes.base import PassContext, producer


@dataclass(frozen=True, slots=True, eq=False)
class Quantization:
    """The grid (code - zero_point) * scale of a value.

    `axis` counts from 0; it means nothing for one scale. With `block_size` above 0, each scale covers that many
    elements along `axis`. `pair`: the value was rounded to the grid by a QuantizeLinear; else its codes are stored
    (weights) or come from an integer operator.
    """

    scale: TensorData
    zero_point: TensorData | None
    axis: int
    block_size: int
    dtype: DType
    pair: bool


class AnnotateQuantization:
    """Writes `value.quantization` on the outputs of DequantizeLinear nodes, and takes it off all others."""

    name = "annotate-quantization"

    def patches(self, graph: Graph, context: PassContext) -> Iterator[Patch]:
        for node in graph.all_nodes():
            for value in node.outputs:
                value.quantization = None
            if node.op == "DequantizeLinear":
                node.output.quantization = _quantization(node, context)
        yield from ()


def _quantization(node: Node, context: PassContext) -> Quantization | None:
    codes, scale, zero_point = node.inputs[0], node.inputs[1], node.input(2)
    assert codes is not None
    assert scale is not None
    if scale.data is None or (zero_point is not None and zero_point.data is None):
        context.refuse(AnnotateQuantization.name, node, "scale or zero point is not constant")
        return None
    if not isinstance(codes.type, TensorType) or codes.type.dtype is None:
        context.refuse(AnnotateQuantization.name, node, f"the element type of {codes.name} is not known")
        return None
    axis = node.int_attr("axis", 1)
    if axis < 0 and scale.data.size > 1:
        if codes.type.rank is None:
            context.refuse(AnnotateQuantization.name, node, f"the rank of {codes.name} is not known")
            return None
        axis += codes.type.rank
    return Quantization(
        scale=scale.data,
        zero_point=zero_point.data if zero_point is not None else None,
        axis=axis,
        block_size=node.int_attr("block_size", 0),
        dtype=codes.type.dtype,
        pair=producer(codes, "QuantizeLinear") is not None,
    )
