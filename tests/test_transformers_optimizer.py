"""`optimize_model`: counts by ONNX Runtime's names, options that turn fusions off, saved models, errors."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import onnx
import pytest

from tests.pass_checks import answers
from whet.errors import InvalidArgument, NotImplemented
from whet.transformers.fusion_options import NO_EFFECT, PASSES, FusionOptions
from whet.transformers.optimizer import get_fusion_statistics, optimize_by_fusion, optimize_model

FOLDER = pathlib.Path(__file__).parent / "fixtures" / "attention"
BERT = FOLDER / "bert_old.onnx"


def bert_feed() -> dict[str, Any]:
    mask = np.ones((2, 6), np.int64)
    mask[1, 4:] = 0
    return {"i0": np.random.default_rng(0).integers(1, 30, (2, 6)), "i1": mask}


def assert_same_answers(proto: onnx.ModelProto, tolerance: float = 2e-6) -> None:
    feed = bert_feed()
    before, after = answers(onnx.load(BERT), feed)[0], answers(proto, feed)[0]
    np.testing.assert_allclose(after, before, rtol=0, atol=tolerance * float(np.ptp(before)))


def test_bert_is_fully_optimized() -> None:
    optimized = optimize_model(str(BERT), model_type="bert", num_heads=0, hidden_size=0)
    statistics = optimized.get_fused_operator_statistics()
    assert {k: v for k, v in statistics.items() if v} == {
        "EmbedLayerNormalization": 1,
        "Attention": 1,
        "BiasGelu": 1,
        "SkipLayerNormalization": 2,
    }
    assert statistics["Gelu"] == 0
    assert optimized.is_fully_optimized()
    assert_same_answers(optimized.model)


@pytest.mark.parametrize(
    ("option", "gone", "instead", "whole"),
    [
        ("enable_attention", "Attention", "Softmax", False),
        ("enable_embed_layer_norm", "EmbedLayerNormalization", "Gather", False),
        ("enable_skip_layer_norm", "SkipLayerNormalization", "LayerNormalization", True),
        ("enable_bias_gelu", "BiasGelu", "Gelu", True),
        ("enable_gelu", "BiasGelu", "Erf", False),
    ],
)
def test_an_option_turns_its_fusion_off(option: str, gone: str, instead: str, whole: bool) -> None:
    options = FusionOptions("bert")
    setattr(options, option, False)
    optimized = optimize_model(str(BERT), "bert", optimization_options=options)
    assert optimized.get_fused_operator_statistics()[gone] == 0
    assert optimized.get_operator_statistics()[instead] > 0
    assert optimized.is_fully_optimized() == whole
    assert_same_answers(optimized.model)


def test_rotary_and_layer_norm_options() -> None:
    path = FOLDER / "llama_old.onnx"
    statistics = optimize_model(str(path)).get_fused_operator_statistics()
    assert (statistics["RotaryEmbedding"], statistics["Attention"]) == (2, 1)
    simplified = statistics["SimplifiedLayerNormalization"] + statistics["SkipSimplifiedLayerNormalization"]
    assert simplified == 3
    options = FusionOptions("bert")
    options.enable_rotary_embeddings = options.enable_layer_norm = False
    statistics = optimize_model(str(path), optimization_options=options).get_fused_operator_statistics()
    assert statistics["RotaryEmbedding"] == 0
    assert statistics["SimplifiedLayerNormalization"] + statistics["SkipSimplifiedLayerNormalization"] == 0


def test_bias_before_the_residual_is_an_option_of_its_own() -> None:
    def longest(options: FusionOptions) -> int:
        nodes = optimize_model(str(BERT), optimization_options=options).get_nodes_by_op_type("SkipLayerNormalization")
        return max(len(node.input) for node in nodes)

    options = FusionOptions("bert")
    assert longest(options) == 5
    options.enable_bias_skip_layer_norm = False
    assert longest(options) == 4


def test_gelu_approximation_changes_the_answers_a_little() -> None:
    options = FusionOptions("bert")
    options.enable_gelu_approximation = True
    optimized = optimize_model(str(BERT), optimization_options=options)
    statistics = optimized.get_fused_operator_statistics()
    assert statistics["FastGelu"] + statistics["BiasGelu"] == 1
    assert statistics["FastGelu"] == 1
    with pytest.raises(AssertionError):
        assert_same_answers(optimized.model, 1e-9)
    assert_same_answers(optimized.model, 1e-3)


def test_every_option_is_known() -> None:
    """Each attribute turns a pass off, has no effect on purpose, or is read by the optimizer."""
    read = {"enable_bias_skip_layer_norm", "enable_gelu_approximation"}
    for model_type in ("bert", "unet"):
        assert set(vars(FusionOptions(model_type))) <= set(PASSES) | NO_EFFECT | read


def test_options_have_onnxruntime_s_names_and_defaults() -> None:
    theirs = pytest.importorskip("onnxruntime.transformers.fusion_options")
    for model_type in ("bert", "gpt2", "vit", "unet", "clip", "qwen3", "t5"):
        assert vars(FusionOptions(model_type)) == vars(theirs.FusionOptions(model_type))


@pytest.mark.parametrize("external", [False, True])
def test_saved_model(tmp_path: pathlib.Path, external: bool) -> None:
    path = tmp_path / "optimized.onnx"
    optimized = optimize_model(str(BERT))
    optimized.save_model_to_file(str(path), use_external_data_format=external)
    assert len(list(tmp_path.iterdir())) == (2 if external else 1)
    assert get_fusion_statistics(str(path)) == optimized.get_fused_operator_statistics()
    assert_same_answers(onnx.load(path))


def test_a_proto_and_bytes_are_models_too() -> None:
    proto = onnx.load(BERT)
    for source in (proto, proto.SerializeToString()):
        assert optimize_by_fusion(source).get_fused_operator_statistics()["Attention"] == 1
    assert len(proto.graph.node) == len(onnx.load(BERT).graph.node)


def test_only_onnxruntime_makes_no_fusion() -> None:
    for level in (0, 1):
        optimized = optimize_model(str(BERT), opt_level=level, only_onnxruntime=True)
        assert not any(v for k, v in optimized.get_fused_operator_statistics().items() if k != "LayerNormalization")
        assert_same_answers(optimized.model)
    assert optimize_model(str(BERT), opt_level=99, only_onnxruntime=True).is_fully_optimized()


def test_given_heads_are_compared() -> None:
    optimize_model(str(BERT), num_heads=4, hidden_size=16)
    with pytest.warns(UserWarning, match="num_heads=8 is not what the model has \\(4\\)"):
        optimized = optimize_model(str(BERT), num_heads=8, hidden_size=16)
    attention = optimized.get_nodes_by_op_type("Attention")[0]
    assert {a.name: a.i for a in attention.attribute}["q_num_heads"] == 4


def test_views_of_the_proto() -> None:
    optimized = optimize_model(str(BERT))
    assert optimized.get_opset_version() >= 23
    assert [v.name for v in optimized.get_graph_inputs_excluding_initializers()] == ["i0", "i1"]
    assert len(optimized.nodes()) == sum(optimized.get_operator_statistics().values())
    assert optimized.get_operator_statistics(include_domain=True)["com.microsoft:EmbedLayerNormalization"] == 1


def test_errors_name_what_is_wrong(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InvalidArgument, match="Did you mean 'bert'"):
        optimize_model(str(BERT), model_type="berd")
    with pytest.raises(InvalidArgument, match="opt_level"):
        optimize_model(str(BERT), opt_level=3)
    optimized = optimize_model(str(BERT))
    with pytest.raises(NotImplemented, match="float16"):
        optimized.convert_float_to_float16(keep_io_types=True)
    with pytest.raises(NotImplemented, match="one file"):
        optimized.save_model_to_file(tmp_path / "m.onnx", use_external_data_format=True, all_tensors_to_one_file=False)
