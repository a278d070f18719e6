"""Matrix products that become Gemm: with a bias, or of transposed matrices."""

from __future__ import annotations

from whet.dtypes import DType
from whet.graph import Node, Patch, Shape, Value
from whet.ops.common import dtype_of, shape_of
from whet.passes.base import NodePass, PassContext, producer
from whet.passes.basic.common import substitute
from whet.passes.basic.pairs import permutation


def _is_matrix(value: Value | None) -> bool:
    shape = shape_of(value)
    return shape is not None and len(shape) == 2


def _is_float(dtype: DType | None) -> bool:
    return dtype is not None and dtype.is_float


class MatMulAddToGemm(NodePass):
    """Turns MatMul of two matrices, or Gemm without C, plus a constant bias that broadcasts to it into Gemm."""

    name = "matmul-add-to-gemm"
    roots = frozenset({"Add"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        for position in (0, 1):
            product = producer(node.input(position), "MatMul") or producer(node.input(position), "Gemm")
            bias = node.input(1 - position)
            if product is None or bias is None or bias.data is None or product.output.only_use is not node:
                continue
            if product.graph is not node.graph or product.input(2) is not None:
                continue
            a, b = product.inputs[:2]
            if not _is_matrix(a) or not _is_matrix(b) or not _is_float(dtype_of(a)):
                continue
            if not _broadcasts_into(bias.data.shape, product.output.shape):
                context.refuse(self.name, node, "the bias does not broadcast to the product")
                continue
            # A Gemm without C may carry any beta: it had nothing to scale.
            attributes = {**product.attributes, "beta": 1.0} if product.op == "Gemm" else {}
            patch = substitute(node, "Gemm", [a, b, bias], attributes)
            return Patch(node, patch.nodes, patch.replace, [node, product])
        return None


def _broadcasts_into(shape: tuple[int, ...], target: Shape | None) -> bool:
    """Whether `shape` broadcasts to just `target`, for all extents."""
    if target is None or len(shape) > len(target):
        return False
    return all(d in (1, t) for d, t in zip(reversed(shape), reversed(target), strict=False))


class TransposeIntoGemm(NodePass):
    """Lets Gemm read a transposed matrix itself; MatMul of two matrices, one transposed, becomes such a Gemm."""

    name = "transpose-into-gemm"
    roots = frozenset({"Gemm", "MatMul"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        a, b = node.inputs[:2]
        if not _is_matrix(a) or not _is_matrix(b) or not _is_float(dtype_of(a)):
            return None
        attributes = dict(node.attributes)
        operands = list(node.inputs)
        changed = False
        for i, name in enumerate(("transA", "transB")):
            transpose = producer(operands[i], "Transpose")
            if transpose is not None and permutation(transpose) == (1, 0):
                operands[i] = transpose.inputs[0]
                attributes[name] = 1 - (node.int_attr(name, 0) != 0)
                changed = True
        return substitute(node, "Gemm", operands, attributes) if changed else None
