"""Convolutions and matrix products with an activation behind them, as ONNX Runtime's fused operators."""

from __future__ import annotations

import math

import numpy as np

from whet import dtypes
from whet.graph import Attribute, Node, Patch, TensorType, Value
from whet.passes.base import NodePass, PassContext, producer
from whet.passes.export.lower import MICROSOFT

LARGEST = float(np.finfo(np.float32).max)


def is_float32(value: Value) -> bool:
    """Whether the value is known to be a float32 tensor, the one type of most fused kernels on the CPU."""
    return isinstance(value.type, TensorType) and value.type.dtype is dtypes.FLOAT32


def _parameters(node: Node) -> tuple[float, ...] | None:
    """The activation's parameters in the order of FusedConv's `activation_params`; None where they do not fit."""
    match node.op_type:
        case "LeakyRelu":
            return (node.float_attr("alpha", 0.01),)
        case "HardSigmoid":
            return (node.float_attr("alpha", 0.2), node.float_attr("beta", 0.5))
        case "Clip":
            bounds = []
            for index, missing in ((1, -LARGEST), (2, LARGEST)):
                bound = node.input(index)
                if bound is not None and bound.data is None:
                    return None
                bounds.append(missing if bound is None or bound.data is None else float(bound.data.scalar()))
            return tuple(bounds) if all(math.isfinite(b) for b in bounds) else None
        case _:
            return ()


class FuseConvActivation(NodePass):
    """activation(conv(x) + residual) becomes com.microsoft.FusedConv; the residual is optional."""

    name = "fused-conv"
    roots = frozenset({"Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid", "HardSwish"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        value = node.inputs[0]
        if value is None or value.only_use is not node or node.domain or not is_float32(value):
            return None
        conv, residual, add = producer(value, "Conv"), None, producer(value, "Add")
        if conv is None and add is not None:
            conv, residual = _residual(add)
        if conv is None or conv.graph is not node.graph:
            return None
        parameters = _parameters(node)
        if parameters is None:
            context.refuse(self.name, node, "its bounds are not finite constants")
            return None
        attributes: dict[str, Attribute] = dict(conv.attributes)
        attributes["activation"] = node.op_type
        if parameters:
            attributes["activation_params"] = parameters
        inputs = list(conv.inputs)
        if residual is not None:
            inputs = inputs + [None] * (3 - len(inputs)) + [residual]
        new = Node("FusedConv", inputs, [Value("", node.output.type)], attributes, domain=MICROSOFT)
        removed = [node, conv] if residual is None or add is None else [node, add, conv]
        return Patch(node, [new], {node.output: new.output}, removed)


def _residual(add: Node) -> tuple[Node | None, Value | None]:
    """The convolution among the addends that nothing else reads, and the other addend, of the same shape."""
    for index in (0, 1):
        own, other = add.inputs[index], add.inputs[1 - index]
        conv = producer(own, "Conv")
        if conv is None or own is None or other is None or own.only_use is not add or conv.graph is not add.graph:
            continue
        if own.shape is not None and None not in own.shape and own.shape == other.shape:
            return conv, other
    return None, None


class FuseGemmActivation(NodePass):
    """activation(Gemm) becomes com.microsoft.FusedGemm."""

    name = "fused-gemm"
    roots = frozenset({"Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "Elu", "Softplus", "Softsign"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        value = node.inputs[0]
        gemm = producer(value, "Gemm")
        if value is None or gemm is None or value.only_use is not node or node.domain or not is_float32(value):
            return None
        if gemm.graph is not node.graph or len(gemm.inputs) < 3 or gemm.inputs[2] is None:
            return None
        attributes: dict[str, Attribute] = dict(gemm.attributes)
        attributes["activation"] = node.op_type
        parameters = (node.float_attr("alpha", 1.0),) if node.op_type == "Elu" else _parameters(node)
        attributes |= dict(zip(("activation_alpha", "activation_beta"), parameters or (), strict=False))
        new = Node("FusedGemm", gemm.inputs, [Value("", node.output.type)], attributes, domain=MICROSOFT)
        return Patch(node, [new], {node.output: new.output}, [node, gemm])
