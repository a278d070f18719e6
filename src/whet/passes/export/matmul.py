"""Matrix products with transposed operands and a factor, as com.microsoft.FusedMatMul."""

from __future__ import annotations

from whet.graph import Attribute, Node, Patch, Value
from whet.passes.base import NodePass, PassContext, producer
from whet.passes.export.conv import is_float32
from whet.passes.export.lower import MICROSOFT


class FuseMatMul(NodePass):
    """alpha * (A or its transpose) (B or its transpose); only the two last axes are exchanged."""

    name = "fused-matmul"
    roots = frozenset({"MatMul", "Mul", "Div"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        product, alpha = node, 1.0
        if node.op != "MatMul":
            value, alpha = scaled(node)
            found = producer(value, "MatMul")
            if found is None or value is None or value.only_use is not node or found.graph is not node.graph:
                return None
            product = found
        elif node.output.only_use is not None and scaled(node.output.only_use)[0] is node.output:
            return None  # the factor's own turn comes
        if not is_float32(product.output):
            return None
        operands: list[Value] = []
        attributes: dict[str, Attribute] = {}
        removed = [node] if product is node else [node, product]
        # The reader takes a vector beside a transposed matrix for a row.
        matrices = all(v is not None and v.shape is not None and len(v.shape) >= 2 for v in product.inputs)
        for operand, flag in zip(product.inputs, ("transA", "transB"), strict=True):
            assert operand is not None
            current = operand
            for _ in range(2):  # a factor and a transpose, in either order
                made = current.producer
                if made is None or current.only_use not in removed or made.graph is not node.graph:
                    break
                inner, factor = scaled(made)
                if inner is not None:
                    alpha *= factor
                elif matrices and flag not in attributes and _exchanges_last(made):
                    attributes[flag] = 1
                    inner = made.inputs[0]
                if inner is None:
                    break
                removed.append(made)
                current = inner
            operands.append(current)
        if alpha == 1.0 and not attributes:
            return None
        attributes["alpha"] = alpha
        new = Node("FusedMatMul", operands, [Value("", node.output.type)], attributes, domain=MICROSOFT)
        return Patch(node, [new], {node.output: new.output}, removed)


def scaled(node: Node) -> tuple[Value | None, float]:
    """What `node` multiplies by a constant scalar, and the factor; (None, 1) where it does not."""
    if node.op not in ("Mul", "Div"):
        return None, 1.0
    first, second = node.inputs
    if node.op == "Mul" and first is not None and first.data is not None:
        first, second = second, first
    if first is None or second is None or second.data is None or second.data.size != 1 or not is_float32(first):
        return None, 1.0
    if first.data is not None or first.shape is None or len(second.data.shape) > len(first.shape):
        return None, 1.0
    number = float(second.data.scalar())
    if number == 0.0 or number - number != 0.0:
        return None, 1.0
    return first, number if node.op == "Mul" else 1.0 / number


def _exchanges_last(node: Node) -> bool:
    perm = node.ints_attr("perm")
    rank = len(perm)
    return node.op == "Transpose" and rank >= 2 and perm == (*range(rank - 2), rank - 1, rank - 2)
