"""The interface of `onnxruntime.transformers` for optimizing transformer models."""

from whet.transformers.fusion_options import AttentionMaskFormat, AttentionOpType, FusionOptions
from whet.transformers.onnx_model import OnnxModel
from whet.transformers.optimizer import get_fusion_statistics, optimize_by_fusion, optimize_model

__all__ = [
    "AttentionMaskFormat",
    "AttentionOpType",
    "FusionOptions",
    "OnnxModel",
    "get_fusion_statistics",
    "optimize_by_fusion",
    "optimize_model",
]
