"""Rewrites for this compiler alone: they change no answer, and bring together what its kernels can do at once."""

from __future__ import annotations

from whet.compiler.lower.scalar_table import SCALAR_RULES
from whet.compiler.tape import scalar_constant
from whet.graph import Node, Patch, TensorType, Value
from whet.passes.base import NodePass, PassContext, only_reader, producer

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})


class ReshapeBehindPointwise(NodePass):
    """Product, Reshape, pointwise becomes product, pointwise, Reshape: the product's kernel does the pointwise work.

    Only where the pointwise operator has one operand that is not a single number.
    """

    name = "reshape-behind-pointwise"
    roots = frozenset(op for op in SCALAR_RULES if "." not in op)

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        operands = [v for v in node.inputs if v is not None and scalar_constant(v) is None]
        if len(operands) != 1 or len(node.outputs) != 1 or list(node.inputs).count(operands[0]) != 1:
            return None
        reshape = producer(operands[0], "Reshape")
        if reshape is None or only_reader(reshape.output, node.op) is not node:
            return None
        source = reshape.inputs[0]
        made = source.producer if source is not None else None
        if source is None or made is None or made.op not in PRODUCTS or source.only_use is not reshape:
            return None
        kind, old = source.type, node.output.type
        if not isinstance(kind, TensorType) or not isinstance(old, TensorType) or kind.shape is None:
            return None
        if any(v is not None and v is not operands[0] and len(v.shape or ()) > len(kind.shape) for v in node.inputs):
            return None
        inner = Value("", TensorType(old.dtype, kind.shape))
        moved = Node(
            node.op_type, [source if v is operands[0] else v for v in node.inputs], [inner], node.attributes,
            domain=node.domain,
        )  # fmt: skip
        result = Value("", old)
        again = Node("Reshape", [inner, reshape.inputs[1]], [result], reshape.attributes)
        return Patch(node, [moved, again], {node.output: result}, [node, reshape])


CPU_PASSES = (ReshapeBehindPointwise(),)
"""What runs on a subgraph of this provider at level `all`."""
