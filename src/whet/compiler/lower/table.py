"""Every operator that the compiler lowers, with its rule: a literal table."""

from __future__ import annotations

from whet.compiler.fuse import AnchorTest
from whet.compiler.lower import attention, conv, gather, generate, matmul, movement, scan, views
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
    "Gather": gather.GATHER,
    "GatherElements": gather.GATHER_ELEMENTS,
    "GatherND": gather.GATHER_ND,
    "Scatter": gather.SCATTER_ELEMENTS,
    "ScatterElements": gather.SCATTER_ELEMENTS,
    "ScatterND": gather.SCATTER_ND,
    "Pad": movement.PAD,
    "Tile": movement.TILE,
    "DepthToSpace": movement.DEPTH_TO_SPACE,
    "SpaceToDepth": movement.SPACE_TO_DEPTH,
    "Trilu": movement.TRILU,
    "ReverseSequence": movement.REVERSE_SEQUENCE,
    "Shape": generate.SHAPE,
    "Size": generate.SIZE,
    "ConstantOfShape": generate.CONSTANT_OF_SHAPE,
    "Range": generate.RANGE,
    "EyeLike": generate.EYE_LIKE,
    "OneHot": generate.ONE_HOT,
    "CumSum": scan.CUMULATIVE,
    "CumProd": scan.CUMULATIVE,
    "TopK": scan.TOP_K,
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
