"""Every operator that the compiler lowers, with its rule: a literal table."""

from __future__ import annotations

from whet.compiler.fuse import AnchorTest
from whet.compiler.lower import (
    attention,
    channel_norm,
    conv,
    division,
    embed,
    gather,
    generate,
    group_norm,
    matmul,
    movement,
    norm,
    pool,
    quantize,
    reduce,
    resize,
    rnn,
    scan,
    softmax,
    views,
)
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
    "Resize": resize.RESIZE,
    "MatMul": matmul.MATMUL,
    "Gemm": matmul.GEMM,
    "Conv": conv.CONV,
    "Div": division.DIVISION,
    "Mod": division.DIVISION,
    "Attention": attention.ATTENTION,
    **dict.fromkeys(reduce.KINDS, reduce.REDUCE),
    "ArgMax": reduce.ARG,
    "ArgMin": reduce.ARG,
    "GlobalAveragePool": reduce.GLOBAL_POOL,
    "GlobalMaxPool": reduce.GLOBAL_POOL,
    "GlobalLpPool": reduce.GLOBAL_POOL,
    **dict.fromkeys(softmax.KINDS, softmax.SOFTMAX),
    "LayerNormalization": norm.NORM,
    "RMSNormalization": norm.NORM,
    "SimplifiedLayerNormalization": norm.NORM,
    "com.microsoft.EmbedLayerNormalization": embed.EMBED,
    "com.microsoft.SkipLayerNormalization": norm.SKIP_NORM,
    "com.microsoft.SkipSimplifiedLayerNormalization": norm.SKIP_NORM,
    "GroupNormalization": group_norm.GROUP_NORM,
    "InstanceNormalization": group_norm.GROUP_NORM,
    "BatchNormalization": channel_norm.BATCH_NORM,
    "LpNormalization": channel_norm.LP_NORM,
    "MeanVarianceNormalization": channel_norm.MEAN_VARIANCE,
    "LRN": channel_norm.LRN,
    **dict.fromkeys(rnn.CELLS, rnn.RECURRENT),
    **dict.fromkeys(pool.KINDS, pool.POOL),
    "QuantizeLinear": quantize.QUANTIZE,
    "com.microsoft.QuantizeLinear": quantize.QUANTIZE,
    "DequantizeLinear": quantize.DEQUANTIZE,
    "com.microsoft.DequantizeLinear": quantize.DEQUANTIZE,
    "DynamicQuantizeLinear": quantize.DYNAMIC_QUANTIZE,
}
"""Rules by operator, pointwise ones left out (see SCALAR_RULES)."""

ANCHORS: dict[str, AnchorTest] = {
    "MatMul": matmul.takes_epilogue,
    "Gemm": matmul.takes_epilogue,
    "Conv": conv.takes_epilogue,
    **dict.fromkeys(reduce.KINDS, reduce.takes_group),
    **dict.fromkeys(reduce.GLOBAL_KINDS, reduce.takes_global_group),
    "LayerNormalization": norm.takes_group,
    "RMSNormalization": norm.takes_group,
    "SimplifiedLayerNormalization": norm.takes_group,
    "com.microsoft.EmbedLayerNormalization": embed.takes_group,
    "com.microsoft.SkipLayerNormalization": norm.takes_skip_group,
    "com.microsoft.SkipSimplifiedLayerNormalization": norm.takes_skip_group,
    "GroupNormalization": group_norm.takes_group,
    "InstanceNormalization": group_norm.takes_group,
    "BatchNormalization": channel_norm.takes_batch_group,
    **dict.fromkeys(pool.KINDS, pool.takes_group),
}
"""Operators that can compute a pointwise group on their result before it is stored."""


def is_pointwise(node: Node) -> bool:
    """Whether the node is computed element by element."""
    return node.op in SCALAR_RULES and pointwise_refusal(node) is None and not division.needs_check(node)
