"""Rules of the operators of com.microsoft, pointwise ones and norms left out."""

from __future__ import annotations

from whet.compiler.fuse import AnchorTest
from whet.compiler.lower import contrib_attention, contrib_products, integer_products, qlinear, rotary, split_gelu
from whet.compiler.lower.rule import Rule

CONTRIB_RULES: dict[str, Rule] = {
    "com.microsoft.BiasSplitGelu": split_gelu.SPLIT_GELU,
    "com.microsoft.FusedMatMul": contrib_products.FUSED_MATMUL,
    "com.microsoft.TransposeMatMul": contrib_products.FUSED_MATMUL,
    "com.microsoft.FusedMatMulActivation": contrib_products.FUSED_MATMUL,
    "com.microsoft.GemmFastGelu": contrib_products.FUSED_MATMUL,
    "com.microsoft.FusedGemm": contrib_products.FUSED_GEMM,
    "com.microsoft.FusedConv": contrib_products.FUSED_CONV,
    "com.microsoft.NhwcConv": contrib_products.NHWC_CONV,
    "com.microsoft.NhwcFusedConv": contrib_products.NHWC_CONV,
    "com.microsoft.RotaryEmbedding": rotary.ROTARY,
    "com.microsoft.MultiHeadAttention": contrib_attention.MULTI_HEAD,
    "com.microsoft.Attention": contrib_attention.CONTRIB_ATTENTION,
    "com.microsoft.MatMulIntegerToFloat": integer_products.TO_FLOAT,
    "com.microsoft.DynamicQuantizeMatMul": integer_products.DYNAMIC_MATMUL,
    "com.microsoft.MatMulInteger16": integer_products.MATMUL_INTEGER16,
    "com.microsoft.QGemm": integer_products.QGEMM,
    "com.microsoft.QLinearConv": integer_products.QLINEAR_CONV,
    "com.microsoft.QLinearConcat": qlinear.CONCAT,
    "com.microsoft.QLinearGlobalAveragePool": qlinear.MEAN,
    "com.microsoft.QLinearReduceMean": qlinear.MEAN,
    "com.microsoft.ReduceSumInteger": qlinear.SUM,
}
"""Rules by operator."""

CONTRIB_ANCHORS: dict[str, AnchorTest] = {
    "com.microsoft.FusedMatMul": contrib_products.takes_matmul_group,
    "com.microsoft.TransposeMatMul": contrib_products.takes_matmul_group,
    "com.microsoft.FusedMatMulActivation": contrib_products.takes_matmul_group,
    "com.microsoft.GemmFastGelu": contrib_products.takes_matmul_group,
    "com.microsoft.FusedGemm": contrib_products.takes_gemm_group,
    "com.microsoft.FusedConv": contrib_products.takes_conv_group,
}
"""Those that can compute a pointwise group on their result before it is stored."""
