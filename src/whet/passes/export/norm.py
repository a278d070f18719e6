"""A residual before a normalization, and a bias before a Gelu, as ONNX Runtime's fused operators."""

from __future__ import annotations

from whet.graph import Node, Patch, Value
from whet.passes.base import NodePass, PassContext, producer
from whet.passes.export.conv import is_float32
from whet.passes.export.lower import MICROSOFT


class FuseSkipNorm(NodePass):
    """Layer or root-mean-square normalization of a sum becomes com.microsoft.Skip(Simplified)LayerNormalization.

    A sum that others read too (the residual stream of a transformer) comes out of the fused operator as well.
    """

    name = "skip-layer-norm"
    roots = frozenset({"LayerNormalization", "RMSNormalization"})

    def __init__(self, *, absorb_bias: bool = True) -> None:
        self.absorb_bias = absorb_bias

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        total = node.inputs[0]
        add = producer(total, "Add")
        if total is None or add is None or add.graph is not node.graph or not is_float32(total):
            return None
        if len(node.outputs) > 1 or total.shape is None or len(total.shape) not in (2, 3):
            return None
        left, right = add.inputs
        scale = node.inputs[1]
        width = total.shape[-1]
        assert left is not None
        assert right is not None
        assert scale is not None
        if any(v is not None and v.data is None for v in node.inputs[1:]):
            context.refuse(self.name, node, "its scale or bias is not constant")
            return None
        if None in total.shape or left.shape != total.shape or right.shape != total.shape:
            context.refuse(self.name, node, f"{left.name} and {right.name} are not known to have one shape")
            return None
        if node.int_attr("axis", -1) not in (-1, len(total.shape) - 1) or scale.shape != (width,):
            context.refuse(self.name, node, "it normalizes more than the last axis")
            return None
        simplified = node.op_type == "RMSNormalization"
        inputs: list[Value | None] = [left, right, *node.inputs[1:]]
        for index in (0, 1) if self.absorb_bias else ():
            bias_add = producer(inputs[index], "Add")
            if bias_add is None or bias_add.output.only_use is not add or bias_add.graph is not node.graph:
                continue
            parts = [v for v in bias_add.inputs if v is not None]
            bias = next((v for v in parts if v.data is not None and v.shape == (width,)), None)
            value = next((v for v in parts if v is not bias), None)
            if bias is not None and value is not None and value.shape == total.shape:
                place = 3 if simplified else 4
                inputs = inputs + [None] * (place - len(inputs)) + [bias]
                inputs[index] = value
                break
        else:
            bias_add = None
        name = "SkipSimplifiedLayerNormalization" if simplified else "SkipLayerNormalization"
        outputs = [Value("", node.output.type)]
        shared = total.only_use is not node
        if shared:
            outputs += [Value(""), Value(""), Value("", total.type)]
        attributes = {"epsilon": node.float_attr("epsilon", 1e-5)}
        new = Node(name, inputs, outputs, attributes, domain=MICROSOFT)
        replace = {node.output: outputs[0]}
        if shared:
            replace[total] = outputs[3]
        gone = [node, add] + ([bias_add] if bias_add is not None else [])
        return Patch(node, [new], replace, gone)


class FuseBiasGelu(NodePass):
    """Gelu(x + bias) becomes com.microsoft.BiasGelu (erf) or FastGelu (tanh)."""

    name = "bias-gelu"
    roots = frozenset({"Gelu"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        total = node.inputs[0]
        add = producer(total, "Add")
        if total is None or add is None or total.only_use is not node or not is_float32(total):
            return None
        for index in (0, 1):
            bias, value = add.inputs[index], add.inputs[1 - index]
            if bias is None or value is None or value.shape is None or not value.shape or bias.data is None:
                continue
            if bias.shape == value.shape[-1:] and add.graph is node.graph:
                op = "FastGelu" if node.str_attr("approximate", "none") == "tanh" else "BiasGelu"
                new = Node(op, [value, bias], [Value("", node.output.type)], domain=MICROSOFT)
                return Patch(node, [new], {node.output: new.output}, [node, add])
        return None
