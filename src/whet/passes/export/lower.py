"""Operators that ONNX Runtime's CPU runs as a chain of small kernels, rewritten to what it has kernels for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from whet.graph import Attribute, Node, Patch, TensorType, Value
from whet.graph.dims import product
from whet.graph.tensor import Array
from whet.passes.base import NodePass, PassContext

MICROSOFT = "com.microsoft"


class LowerSwish(NodePass):
    """Swish becomes com.microsoft.QuickGelu: the same function under another name, with a kernel of its own."""

    name = "lower-swish"
    roots = frozenset({"Swish"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        attributes = {"alpha": node.float_attr("alpha", 1.0)}
        new = Node("QuickGelu", node.inputs, [Value("", node.output.type)], attributes, domain=MICROSOFT)
        return Patch(node, [new], {node.output: new.output}, [node])


class LowerGroupNorm(NodePass):
    """GroupNormalization becomes InstanceNormalization over reshaped groups, then scale and bias for each channel."""

    name = "lower-group-norm"
    roots = frozenset({"GroupNormalization"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        data, scale, bias = node.inputs
        assert data is not None
        assert scale is not None
        assert bias is not None
        if data.shape is None or len(data.shape) < 3:
            context.refuse(self.name, node, f"{data.name} is not known to have at least three dimensions")
            return None
        if not isinstance(data.type, TensorType) or data.type.dtype is None:
            context.refuse(self.name, node, f"the element type of {data.name} is not known")
            return None
        groups, numpy_type = node.int_attr("num_groups", 1), data.type.dtype.numpy
        build = _Builder(node, context)
        # -1 only where it must be: it cannot be worked out in a batch of nothing.
        elements = product(data.shape[1:])
        each = elements // groups if isinstance(elements, int) and elements else -1
        grouped = build.node("Reshape", data, build.constant("groups", np.array([0, groups, each], np.int64)))
        ones, zeros = (build.constant(f"{n}s", np.full(groups, n, numpy_type)) for n in (1, 0))
        epsilon = {"epsilon": node.float_attr("epsilon", 1e-5)}
        normal = build.node("InstanceNormalization", grouped, ones, zeros, attributes=epsilon)
        result = build.node("Reshape", normal, build.shape_of(data))
        column = (-1,) + (1,) * (len(data.shape) - 2)
        for op, parameter in (("Mul", scale), ("Add", bias)):
            if parameter.array is not None:
                aligned = build.constant(op.lower(), parameter.array.reshape(column))
            else:
                target = build.constant(f"{op.lower()}_shape", np.array(column, np.int64))
                aligned = build.node("Reshape", parameter, target)
            result = build.node(op, result, aligned)
        result.type = node.output.type
        return Patch(node, build.nodes, {node.output: result}, [node])


class _Builder:
    """Makes the nodes and constants that take one node's place."""

    def __init__(self, node: Node, context: PassContext) -> None:
        self._names = context.model.names
        self._base = node.output.name
        self.nodes: list[Node] = []

    def constant(self, suffix: str, array: Array) -> Value:
        return Value.constant(self._names.fresh(f"{self._base}_{suffix}"), array)

    def node(self, op: str, *inputs: Value, attributes: Mapping[str, Attribute] | None = None) -> Value:
        self.nodes.append(Node(op, inputs, [Value("")], attributes))
        return self.nodes[-1].output

    def shape_of(self, data: Value) -> Value:
        """The shape of `data` as a tensor: a constant where only the batch is free, which a Reshape target copies."""
        assert data.shape is not None
        extents = [d for d in data.shape[1:] if isinstance(d, int)]
        if len(extents) == len(data.shape) - 1 and 0 not in extents:
            return self.constant("shape", np.array([0, *extents], np.int64))
        return self.node("Shape", data)
