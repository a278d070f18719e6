"""What `optimize_model` returns: the optimized model, its counts, and saving it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from whet.errors import NotImplemented
from whet.formats.onnx import save_model, to_proto
from whet.graph import Model, Node

FUSED_OPERATORS: tuple[str, ...] = (
    "EmbedLayerNormalization", "Attention", "MultiHeadAttention", "GroupQueryAttention", "RotaryEmbedding", "Gelu",
    "FastGelu", "QuickGelu", "BiasGelu", "GemmFastGelu", "LayerNormalization", "SkipLayerNormalization",
    "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "GroupNorm",
)  # fmt: skip
"""The fused operators that are counted, by ONNX Runtime's names."""


class OnnxModel:
    """An optimized model in the operators that ONNX Runtime reads."""

    def __init__(self, model: Model, fused: Mapping[str, int]) -> None:
        self._model = model
        self._fused = dict(fused)
        self._proto: Any = None

    @property
    def model(self) -> Any:
        """The model as an onnx.ModelProto, weights inside, made on first use. Saving does not need it."""
        if self._proto is None:
            self._proto = to_proto(self._model)
        return self._proto

    def graph(self) -> Any:
        """The main graph as an onnx.GraphProto."""
        return self.model.graph

    def nodes(self) -> list[Any]:
        """The main graph's nodes as onnx.NodeProto."""
        return list(self.model.graph.node)

    def get_nodes_by_op_type(self, op_type: str) -> list[Any]:
        """The main graph's nodes of one operator, of any domain."""
        return [node for node in self.nodes() if node.op_type == op_type]

    def get_graph_inputs_excluding_initializers(self) -> list[Any]:
        """The inputs that a run must be given, as onnx.ValueInfoProto."""
        constants = {tensor.name for tensor in self.model.graph.initializer}
        return [value for value in self.model.graph.input if value.name not in constants]

    def get_opset_version(self) -> int:
        """The version of ONNX's own operators in the saved model."""
        return next(int(o.version) for o in self.model.opset_import if o.domain in ("", "ai.onnx"))

    def get_operator_statistics(self, include_domain: bool = False) -> dict[str, int]:
        """How often each operator stands in the model; with its domain in front when asked."""
        counts = Counter(
            f"{node.domain}:{node.op_type}" if include_domain and node.domain else node.op_type
            for node in self._model.graph.all_nodes()
        )
        return dict(counts)

    def get_fused_operator_statistics(self) -> dict[str, int]:
        """How often each fused operator stands in the model; ONNX Runtime's names, zeros included."""
        return dict(self._fused)

    def is_fully_optimized(self, fused_op_count: Mapping[str, int] | None = None) -> bool:
        """Whether an encoder with embeddings is fused whole: as many Gelus as attentions, two norms for each."""
        count = Counter(self._fused if fused_op_count is None else dict(fused_op_count))
        attention = count["Attention"] + count["MultiHeadAttention"] + count["GroupQueryAttention"]
        gelu = count["Gelu"] + count["BiasGelu"] + count["FastGelu"]
        norms = count["LayerNormalization"] + count["SkipLayerNormalization"]
        simple = count["SimplifiedLayerNormalization"] + count["SkipSimplifiedLayerNormalization"]
        return (
            count["EmbedLayerNormalization"] > 0
            and attention > 0
            and attention == gelu
            and max(norms, simple) >= 2 * attention
        )

    def topological_sort(self, is_deterministic: bool = False, dump_model_on_failure: bool = False) -> None:
        """Nothing: the nodes are always in topological order."""

    def save_model_to_file(
        self,
        output_path: str | os.PathLike[str],
        use_external_data_format: bool = False,
        all_tensors_to_one_file: bool = True,
        size_threshold: int = 1024,
        convert_attribute: bool = False,
    ) -> None:
        """Write the model; `use_external_data_format` puts tensors of `size_threshold` bytes and more beside it.

        A model past 2 GB gets external data in any case. Raises NotImplemented for one file a tensor and for
        attributes outside the model, and what `whet.formats.onnx.save_model` raises.
        """
        if convert_attribute or (use_external_data_format and not all_tensors_to_one_file):
            raise NotImplemented(
                "the optimized model is saved with all external tensors in one file",
                found=f"all_tensors_to_one_file={all_tensors_to_one_file}, convert_attribute={convert_attribute}",
                expected="all_tensors_to_one_file=True, convert_attribute=False",
            )
        if use_external_data_format:
            save_model(self._model, output_path, external_data=True, data_min_bytes=size_threshold)
        else:
            save_model(self._model, output_path)

    def convert_float_to_float16(self, use_symbolic_shape_infer: bool = True, **kwargs: Any) -> None:
        """Not there yet. Raises NotImplemented."""
        raise NotImplemented(
            "conversion to float16 is not there yet",
            found=", ".join(kwargs) or None,
            hint="Reduced precision will come with its own accuracy checks; until then save the float32 model.",
        )


def count_fused(nodes: Mapping[str, int]) -> dict[str, int]:
    """Counts of all `FUSED_OPERATORS`, in their order, from counts by those names."""
    return {name: nodes.get(name, 0) for name in FUSED_OPERATORS}


def fused_name(node: Node) -> str:
    """ONNX Runtime's name for a fused operator that may be a standard one here."""
    if node.op_type == "Gelu" and node.str_attr("approximate", "none") == "tanh":
        return "FastGelu"
    return _STANDARD_NAMES.get(node.op_type, node.op_type)


_STANDARD_NAMES = {"RMSNormalization": "SimplifiedLayerNormalization", "GroupNormalization": "GroupNorm"}
