"""The one table of evaluation kernels of the `com.microsoft` operators."""

from __future__ import annotations

from whet.ops.base import Kernel
from whet.ops.contrib import activation, attention, matmul, norm, rotary

CONTRIB_KERNELS: dict[str, Kernel] = {
    # activations
    "BiasAdd": activation.bias_add_kernel,
    "BiasDropout": activation.bias_dropout_kernel,
    "BiasGelu": activation.bias_gelu_kernel,
    "BiasSoftmax": activation.bias_softmax_kernel,
    "BiasSplitGelu": activation.bias_split_gelu_kernel,
    "FastGelu": activation.fast_gelu_kernel,
    "GatedAdd": activation.gated_add_kernel,
    "Gelu": activation.gelu_kernel,
    "QuickGelu": activation.quick_gelu_kernel,
    "ScaledSiLU": activation.scaled_silu_kernel,
    # normalization
    "BranchwiseRMSNorm": norm.branchwise_rms_norm,
    "EmbedLayerNormalization": norm.embed_layer_normalization,
    "GatedRMSNorm": norm.gated_rms_norm,
    "GroupNorm": norm.group_norm,
    "LayerNormalization": norm.layer_normalization,
    "QEmbedLayerNormalization": norm.quantized_embed_layer_normalization,
    "SimplifiedLayerNormalization": norm.simplified_layer_normalization,
    "SkipGroupNorm": norm.skip_group_norm,
    "SkipLayerNormalization": norm.skip_layer_normalization,
    "SkipSimplifiedLayerNormalization": norm.skip_simplified_layer_normalization,
    # attention
    "Attention": attention.attention,
    "DecoderMaskedMultiHeadAttention": attention.decoder_masked_multi_head_attention,
    "GemmaRotaryEmbedding": rotary.gemma_rotary_embedding,
    "MRotaryEmbedding": rotary.multimodal_rotary_embedding,
    "MultiHeadAttention": attention.multi_head_attention,
    "QAttention": attention.quantized_attention,
    "RotaryEmbedding": rotary.rotary_embedding,
    # matrix products
    "FusedGemm": matmul.fused_gemm,
    "FusedMatMul": matmul.fused_matmul,
    "FusedMatMulActivation": matmul.fused_matmul_activation,
    "GemmFastGelu": matmul.gemm_fast_gelu,
    "MatMulInteger16": matmul.matmul_integer16,
    "TransposeMatMul": matmul.fused_matmul,
}
