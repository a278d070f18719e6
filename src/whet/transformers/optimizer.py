"""`onnxruntime.transformers.optimizer`'s functions over Whet's passes."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from typing import Any, Protocol, runtime_checkable

from whet.errors import InvalidArgument, did_you_mean
from whet.formats.onnx import load_model
from whet.graph import Model, Node, Patch, Value
from whet.graph.dims import Dim
from whet.passes.base import NodePass, PassContext, PassDriver, Pipeline, Repeat
from whet.passes.export import FUSE_ORT, lower_for_onnxruntime
from whet.passes.export.lower import MICROSOFT
from whet.passes.export.norm import FuseSkipNorm
from whet.passes.pipeline import optimize
from whet.transformers.fusion_options import FusionOptions
from whet.transformers.onnx_model import OnnxModel, count_fused, fused_name

MODEL_TYPES: tuple[str, ...] = (
    "bart", "bert", "bert_tf", "bert_keras", "clip", "conformer", "gpt2", "gpt2_tf", "gpt_neox", "phi", "qwen3",
    "sam2", "swin", "t5", "tnlr", "unet", "vae", "vit", "mmdit",
)  # fmt: skip
"""ONNX Runtime's model types. Whet's fusions know structures, not models: the type only sets options' defaults."""

OPT_LEVELS = (None, 0, 1, 2, 99)


@runtime_checkable
class _Serializable(Protocol):
    """An onnx.ModelProto."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802


class ApproximateGelu(NodePass):
    """Gelu's exact form becomes its tanh form: an approximation, only on request."""

    name = "gelu-approximation"
    roots = frozenset({"Gelu"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        if node.str_attr("approximate", "none") != "none":
            return None
        new = Node("Gelu", node.inputs, [Value("", node.output.type)], {"approximate": "tanh"})
        return Patch(node, [new], {node.output: new.output}, [node])


def optimize_model(
    input: str | os.PathLike[str] | bytes | Any,  # noqa: A002 - ONNX Runtime's name
    model_type: str = "bert",
    num_heads: int = 0,
    hidden_size: int = 0,
    optimization_options: FusionOptions | None = None,
    opt_level: int | None = None,
    use_gpu: bool = False,
    only_onnxruntime: bool = False,
    verbose: bool = False,
    *,
    provider: str | None = None,
) -> OnnxModel:
    """Fuse the parts of a model (a path, bytes or an onnx.ModelProto) into the operators that ONNX Runtime runs.

    The answers stay the same up to rounding, unless an option asks for an approximation. Heads and sizes are read from
    the graph; given ones that differ are reported by a warning. `only_onnxruntime` leaves the fusions out: exact
    rewrites at `opt_level` 1, none at 0, and all fusions at 2 and 99. `use_gpu` and `provider` change nothing, as the
    operators are the same. Raises InvalidArgument for an unknown type or level, and what loading raises.
    """
    if model_type not in MODEL_TYPES:
        raise InvalidArgument(
            "unknown model_type",
            found=model_type,
            expected=", ".join(MODEL_TYPES),
            hint=did_you_mean(model_type, MODEL_TYPES),
        )
    if opt_level not in OPT_LEVELS:
        raise InvalidArgument("unknown opt_level", found=opt_level, expected="None, 0, 1, 2 or 99")
    model = load_model(input.SerializeToString() if isinstance(input, _Serializable) else input)
    if only_onnxruntime and opt_level in (None, 0, 1):
        optimize(model, "basic" if opt_level else "disabled")
        return _finish(model, ())
    return _fuse(model, num_heads, hidden_size, optimization_options or FusionOptions(model_type))


def optimize_by_fusion(
    model: str | os.PathLike[str] | bytes | Any,
    model_type: str = "bert",
    num_heads: int = 0,
    hidden_size: int = 0,
    optimization_options: FusionOptions | None = None,
) -> OnnxModel:
    """The same as `optimize_model` at its defaults."""
    return optimize_model(model, model_type, num_heads, hidden_size, optimization_options)


def get_fusion_statistics(optimized_model_path: str | os.PathLike[str]) -> dict[str, int]:
    """How often each fused operator stands in a saved model (see `OnnxModel.get_fused_operator_statistics`)."""
    model = load_model(optimized_model_path)
    return count_fused(Counter(fused_name(node) for node in model.graph.all_nodes()))


def _fuse(model: Model, num_heads: int, hidden_size: int, options: FusionOptions) -> OnnxModel:
    disabled = options.disabled_passes()
    # The passes of saving are no part of a level: they are left out here, and the pipeline does not know their names.
    saving = [entry for entry in FUSE_ORT if not isinstance(entry, Repeat)]
    optimize(model, "extended", disabled=disabled - {p.name for p in saving})
    if options.enable_gelu_approximation:
        PassDriver(model).run((ApproximateGelu(),))
    _compare_heads(model, num_heads, hidden_size)
    kept = [p for p in saving if p.name not in disabled]
    if not options.enable_bias_skip_layer_norm:
        kept = [FuseSkipNorm(absorb_bias=False) if isinstance(p, FuseSkipNorm) else p for p in kept]
    return _finish(model, kept)


def _finish(model: Model, fusions: Pipeline) -> OnnxModel:
    """Lower the model for saving and count what is in it."""
    # Group norms are counted by what they are: ONNX Runtime's CPU runs them in parts.
    groups = sum(node.op_type in ("GroupNormalization", "GroupNorm") for node in model.graph.all_nodes())
    if fusions:
        # The passes have read these as constants: a run could no longer replace them.
        model.graph.overridable.clear()
    lower_for_onnxruntime(model, fuse=False)
    PassDriver(model).run(fusions)
    if any(node.domain == MICROSOFT for node in model.graph.all_nodes()):
        model.opset_imports.setdefault(MICROSOFT, 1)
    counts = Counter(fused_name(node) for node in model.graph.all_nodes())
    counts["GroupNorm"] = groups
    return OnnxModel(model, count_fused(counts))


def _compare_heads(model: Model, num_heads: int, hidden_size: int) -> None:
    """Warn when the caller's heads or hidden size are not the graph's."""
    found = {_heads_and_size(node) for node in model.graph.all_nodes() if node.op == "Attention"}
    for given, name, index in ((num_heads, "num_heads", 0), (hidden_size, "hidden_size", 1)):
        known = sorted({extent for extent in (pair[index] for pair in found) if isinstance(extent, int)})
        if given and known and given not in known:
            warnings.warn(
                f"{name}={given} is not what the model has ({', '.join(map(str, known))}); the model's own is used",
                stacklevel=4,
            )


def _heads_and_size(node: Node) -> tuple[Dim, Dim]:
    """Query heads and hidden size of an attention."""
    query = node.inputs[0]
    shape = query.shape if query is not None else None
    if shape is None:
        return None, None
    if len(shape) == 3:
        return node.int_attr("q_num_heads", 1), shape[2]
    heads, size = shape[1], shape[3]
    return heads, heads * size if heads is not None and size is not None else None
