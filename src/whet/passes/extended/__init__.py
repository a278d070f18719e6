"""Level `extended`: the semantic fusions, which raise parts of a graph to the standard operator that they compute."""

from __future__ import annotations

from whet.passes.base import Pass
from whet.passes.extended.activations import (
    FuseGelu,
    FuseGeluTanh,
    FuseHardSigmoid,
    FuseHardSwish,
    FuseLeakyRelu,
    FuseMish,
    FusePRelu,
    FuseRelu,
    FuseSigmoid,
    FuseSoftplus,
    FuseSwish,
)
from whet.passes.extended.attention import FuseAttention
from whet.passes.extended.embedding import FuseEmbedLayerNorm
from whet.passes.extended.group_norm import FuseBatchNorm, FuseGroupNorm, FuseInstanceNorm
from whet.passes.extended.layer_norm import (
    AbsorbAffine,
    AbsorbNormCasts,
    FuseFoldedLayerNorm,
    FuseLayerNorm,
    FuseRMSNorm,
)
from whet.passes.extended.lookup import FoldIntoTable, OneHotProduct
from whet.passes.extended.matmul_scale import FoldMatMulScale
from whet.passes.extended.qdq import AnnotateQuantization
from whet.passes.extended.rotary import FuseRotary
from whet.passes.extended.softmax import FuseLogOfSoftmax, FuseLogSoftmax, FuseSoftmax
from whet.passes.extended.variance import CentreVariance

EXTENDED_PASSES: tuple[Pass, ...] = (
    # First: no fusion may swallow a value that the model quantizes.
    AnnotateQuantization(),
    # Sigmoid and Softplus before what is made of them; Gelu before Swish, which its sigmoid form resembles.
    FuseSigmoid(),
    FuseSoftplus(),
    FuseGelu(),
    FuseGeluTanh(),
    FuseSwish(),
    FuseMish(),
    # A HardSwish may be written with either form of HardSigmoid, and both with clips that contain a Relu's maximum.
    FuseHardSigmoid(),
    FuseHardSwish(),
    FuseRelu(),
    FuseLeakyRelu(),
    FusePRelu(),
    # Largest formula first: each of the later ones is a part of an earlier one.
    FuseGroupNorm(),
    FuseInstanceNorm(),
    FuseFoldedLayerNorm(),
    FuseLayerNorm(),
    FuseRMSNorm(),
    # Casts lie between a normalization and its scale, so they go first.
    AbsorbNormCasts(),
    AbsorbAffine(),
    FuseBatchNorm(),
    # What no normalization has taken.
    CentreVariance(),
    FuseSoftmax(),
    FuseLogSoftmax(),
    FuseLogOfSoftmax(),
    # Before attention: rotated heads can then stay beside each other.
    FuseRotary(),
    FuseAttention(),
    # Lookups before the sums of lookups; activations are fused by now and move into tables as one.
    OneHotProduct(),
    FoldIntoTable(),
    FuseEmbedLayerNorm(),
    # After attention, whose scale it would otherwise hide in the weights of a projection.
    FoldMatMulScale(),
)
"""The fusions in the order in which they run."""
