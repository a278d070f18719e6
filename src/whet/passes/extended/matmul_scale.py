"""A constant factor before or after a matrix product moves into its constant weights."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from whet.graph import Node, Patch, Value
from whet.passes.base import NodePass, PassContext, producer
from whet.passes.extended.activations import is_float


class FoldMatMulScale(NodePass):
    """s * (x W + b) becomes x (s W) + s b, and (s * x) W the same; W and b are constants that nothing else reads.

    A power of two is exact. Another factor rounds each weight once, as the product rounded each result once. Weights
    that are shared are left alone: a scaled copy would be a second one in memory.
    """

    name = "matmul-scale"
    roots = frozenset({"Mul", "Div", "MatMul"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        if node.op == "MatMul":
            return self._scaled_operand(node, context)
        value, factor = _scaled(node)
        if value is None or factor is None or value.only_use is not node or value.quantization is not None:
            return None
        bias_add = producer(value, "Add")
        bias: Value | None = None
        product = producer(value, "MatMul")
        if bias_add is not None:
            for index in (0, 1):
                candidate = producer(bias_add.inputs[index], "MatMul")
                other = bias_add.inputs[1 - index]
                if candidate is not None and other is not None and other.data is not None:
                    product, bias = candidate, other
            if product is None or product.output.only_use is not bias_add:
                return None
        if product is None or product.graph is not node.graph or product.output.quantization is not None:
            return None
        weight = product.inputs[1]
        readers = [(weight, product), (bias, bias_add)] if bias is not None else [(weight, product)]
        for parameter, reader in readers:
            if parameter is None or parameter.data is None:
                return None
            if parameter.only_use is not reader:
                context.refuse(self.name, node, f"{parameter.name} has other readers")
                return None
        assert weight is not None
        scaled = _times(weight, factor, context)
        shift = _times(bias, factor, context) if bias is not None else None
        if scaled is None or (bias is not None and shift is None):
            context.refuse(self.name, node, f"the scaled constants do not fit {weight.type}")
            return None
        new = Node("MatMul", [product.inputs[0], scaled], [Value("", product.output.type)], name=product.name)
        if bias is None or bias_add is None:
            return Patch(node, [new], {node.output: new.output}, [node, product])
        add = Node("Add", [new.output, shift], [Value("", node.output.type)])
        return Patch(node, [new, add], {node.output: add.output}, [node, bias_add, product])

    def _scaled_operand(self, node: Node, context: PassContext) -> Patch | None:
        operand, weight = node.inputs
        scale = operand.producer if operand is not None else None
        if scale is None or weight is None or weight.data is None or scale.op not in ("Mul", "Div"):
            return None
        value, factor = _scaled(scale)
        if value is None or factor is None or scale.graph is not node.graph:
            return None
        assert operand is not None
        if operand.only_use is not node or weight.only_use is not node or operand.quantization is not None:
            context.refuse(self.name, node, f"{operand.name} or {weight.name} has other readers")
            return None
        scaled = _times(weight, factor, context)
        if scaled is None:
            context.refuse(self.name, node, f"the scaled constants do not fit {weight.type}")
            return None
        new = Node("MatMul", [value, scaled], [Value("", node.output.type)])
        return Patch(node, [new], {node.output: new.output}, [node, scale])


def _scaled(node: Node) -> tuple[Value | None, float | None]:
    """The value that `node` multiplies by a scalar constant, and the factor; None where it does not."""
    first, second = node.inputs
    assert first is not None
    assert second is not None
    if node.op == "Mul" and first.data is not None:
        first, second = second, first
    if second.data is None or second.data.size != 1 or first.data is not None or not is_float(first):
        return None, None
    if first.shape is None or len(second.data.shape) > len(first.shape):
        return None, None
    number = float(second.data.scalar())
    if not math.isfinite(number) or number == 0.0:
        return None, None
    return first, number if node.op == "Mul" else 1.0 / number


def _times(parameter: Value, factor: float, context: PassContext) -> Value | None:
    """`factor` times a constant, or None where a number overflows or loses digits below the type's normal range."""
    array = parameter.array
    assert array is not None
    with np.errstate(all="ignore"):
        wide = array.astype(np.float64) * factor
        scaled = wide.astype(array.dtype)
    small = float(ml_dtypes.finfo(array.dtype).smallest_normal)  # type: ignore[no-untyped-call]
    if not np.isfinite(scaled.astype(np.float64)).all() or bool(((wide != 0) & (np.abs(wide) < small)).any()):
        return None
    return Value.constant(context.model.names.fresh(f"{parameter.name}_scaled"), scaled)
