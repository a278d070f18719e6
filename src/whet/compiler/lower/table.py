"""Every operator that the compiler lowers, with its rule: a literal table."""

from __future__ import annotations

from whet.compiler.fuse import AnchorTest
from whet.compiler.lower import attention, conv, matmul, views
from whet.compiler.lower.pointwise import pointwise_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lower.scalar_table import SCALAR_RULES
from whet.graph import Node

LOWER: dict[str, Rule] = {
    "Reshape": views.RESHAPE,
    "Flatten": views.RESHAPE,
    "Squeeze": views.RESHAPE,
    "Unsqueeze": views.RESHAPE,
    "Transpose": views.TRANSPOSE,
    "Expand": views.EXPAND,
    "Slice": views.SLICE,
    "Split": views.SPLIT,
    "Concat": views.CONCAT,
    "MatMul": matmul.MATMUL,
    "Gemm": matmul.GEMM,
    "Conv": conv.CONV,
    "Attention": attention.ATTENTION,
}
"""Rules by operator, pointwise ones left out (see SCALAR_RULES)."""

ANCHORS: dict[str, AnchorTest] = {
    "MatMul": matmul.takes_epilogue,
    "Gemm": matmul.takes_epilogue,
    "Conv": conv.takes_epilogue,
}
"""Operators that can compute a pointwise group on their result before it is stored."""


def is_pointwise(node: Node) -> bool:
    """Whether the node is computed element by element."""
    return node.op in SCALAR_RULES and pointwise_refusal(node) is None
