"""Export: what only a model saved for, or delegated to, ONNX Runtime needs. Never part of an optimization level."""

from __future__ import annotations

from whet.graph import Model
from whet.passes.base import PassDriver, PassReport, Pipeline
from whet.passes.export.attention import PrepareAttentionMask
from whet.passes.export.conv import FuseConvActivation, FuseGemmActivation
from whet.passes.export.lower import MICROSOFT, LowerGroupNorm, LowerSwish
from whet.passes.export.matmul import FuseMatMul
from whet.passes.export.norm import FuseBiasGelu, FuseSkipNorm

LOWER_ORT: Pipeline = (
    LowerGroupNorm(),
    LowerSwish(),
    PrepareAttentionMask(),
)
"""Operators for which ONNX Runtime's CPU has nothing as good as what they are made of."""

FUSE_ORT: Pipeline = (
    # Before FusedMatMul, which would take the bias-free product that BiasGelu's Add reads.
    FuseBiasGelu(),
    FuseSkipNorm(),
    FuseConvActivation(),
    FuseGemmActivation(),
    FuseMatMul(),
)
"""Fused operators of com.microsoft for which ONNX Runtime's CPU has a kernel."""


def lower_for_onnxruntime(model: Model, *, fuse: bool = True) -> PassReport:
    """Rewrite `model` in place to operators that ONNX Runtime 1.31's CPU provider has kernels for.

    Types must have been inferred. `fuse` also joins operators into its fused ones. Callers that keep their graph pass a
    copy (`whet.graph.copy.copy_model`).
    """
    driver = PassDriver(model)
    driver.run((*LOWER_ORT, *FUSE_ORT) if fuse else LOWER_ORT)
    if any(node.domain == MICROSOFT for node in model.graph.all_nodes()):
        model.opset_imports.setdefault(MICROSOFT, 1)
    return driver.report
