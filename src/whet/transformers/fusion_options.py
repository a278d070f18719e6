"""Which fusions `optimize_model` makes: ONNX Runtime's names, and the passes that they turn off."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class AttentionMaskFormat:
    """How ONNX Runtime's own fusions pass a padding mask. Whet hands each mask on as the model computes it."""

    MaskIndexEnd = 0
    MaskIndexEndAndStart = 1
    AttentionMask = 2
    NoMask = 3


class AttentionOpType(Enum):
    """The operators among which ONNX Runtime's own fusions choose. Whet makes the standard Attention of them all."""

    Attention = "Attention"
    MultiHeadAttention = "MultiHeadAttention"
    GroupQueryAttention = "GroupQueryAttention"
    PagedAttention = "PagedAttention"

    def __str__(self) -> str:
        return self.value


PASSES: Mapping[str, frozenset[str]] = {
    "enable_gelu": frozenset({"gelu", "gelu-tanh", "swish", "bias-gelu"}),
    "enable_layer_norm": frozenset({"layer-norm", "layer-norm-folded", "rms-norm"}),
    "enable_attention": frozenset({"attention"}),
    "enable_rotary_embeddings": frozenset({"rotary-embedding"}),
    "enable_skip_layer_norm": frozenset({"skip-layer-norm"}),
    "enable_embed_layer_norm": frozenset({"embed-layer-norm"}),
    "enable_bias_gelu": frozenset({"bias-gelu"}),
    "enable_group_norm": frozenset({"group-norm"}),
}
"""The passes that an option turns off when it is false."""

NO_EFFECT: frozenset[str] = frozenset(
    {
        # Forms of one operator, of which Whet has one; a mask is never dropped, whatever its format.
        "attention_mask_format", "attention_op_type", "use_multi_head_attention", "disable_multi_head_attention_bias",
        # Kernels that only ONNX Runtime's GPU providers have.
        "enable_gemm_fast_gelu", "enable_qordered_matmul", "enable_nhwc_conv", "enable_skip_group_norm",
        "enable_bias_splitgelu", "enable_packed_qkv", "enable_packed_kv", "enable_bias_add", "group_norm_channels_last",
        # Whet's fusions rest on inferred shapes.
        "enable_shape_inference",
    }
)  # fmt: skip
"""Options that are accepted and change nothing."""


class FusionOptions:
    """Switches for each kind of fusion; all attributes of ONNX Runtime's class are here, with its defaults."""

    def __init__(self, model_type: str) -> None:
        self.enable_gelu = True
        self.enable_layer_norm = True
        self.enable_attention = True
        self.enable_rotary_embeddings = True
        self.use_multi_head_attention = False
        self.disable_multi_head_attention_bias = False
        self.enable_skip_layer_norm = True
        self.enable_embed_layer_norm = model_type not in ("clip", "qwen3")
        self.enable_bias_skip_layer_norm = True
        self.enable_bias_gelu = True
        self.enable_gelu_approximation = False
        """Replace exact Gelu by its tanh form, which changes answers by up to 5e-4."""
        self.enable_qordered_matmul = True
        self.enable_shape_inference = True
        self.enable_gemm_fast_gelu = False
        self.group_norm_channels_last = True
        self.attention_mask_format = AttentionMaskFormat.AttentionMask
        if model_type == "bert":
            self.attention_mask_format = AttentionMaskFormat.MaskIndexEnd
        elif model_type in ("vit", "qwen3"):
            self.attention_mask_format = AttentionMaskFormat.NoMask
        self.attention_op_type: AttentionOpType | None = None
        if model_type in ("unet", "vae", "clip"):
            self.enable_nhwc_conv = True
            self.enable_group_norm = True
            self.enable_skip_group_norm = True
            self.enable_bias_splitgelu = True
            self.enable_packed_qkv = True
            self.enable_packed_kv = True
            self.enable_bias_add = True

    def use_raw_attention_mask(self, use_raw_mask: bool = True) -> None:
        """Choose between the raw mask and one of indices (see `NO_EFFECT`)."""
        self.attention_mask_format = (
            AttentionMaskFormat.AttentionMask if use_raw_mask else AttentionMaskFormat.MaskIndexEnd
        )

    def disable_attention_mask(self) -> None:
        """Say that there is no mask (see `NO_EFFECT`)."""
        self.attention_mask_format = AttentionMaskFormat.NoMask

    def set_attention_op_type(self, attn_op_type: AttentionOpType) -> None:
        """Choose the attention operator (see `NO_EFFECT`)."""
        self.attention_op_type = attn_op_type

    def disabled_passes(self) -> frozenset[str]:
        """Names of the passes that these options turn off."""
        return frozenset(name for option, names in PASSES.items() if not getattr(self, option, True) for name in names)
