"""Operators of ai.onnx.ml compiled, against the reference provider."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.compiler_cases import CPU, FLOAT, INT64, check, feeds, node_model, refusals
from tests.test_kernels_trees import FEATURES, forest, rows
from whet.errors import InvalidArgument

Array = np.ndarray[Any, Any]
ML = "ai.onnx.ml"


def model_of(
    op: str, given: list[Array], outputs: list[int], attributes: dict[str, Any], free: bool = True,
    constants: tuple[int, ...] = (),
) -> bytes:  # fmt: skip
    """A model whose rows are free and whose columns are fixed."""
    names = [f"i{i}" for i in range(len(given))]
    node = helper.make_node(op, names, [f"o{i}" for i in range(len(outputs))], domain=ML, **attributes)
    infos, held = [], []
    for i, (name, array) in enumerate(zip(names, given, strict=True)):
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        if i in constants:
            held.append(numpy_helper.from_array(array, name))
        else:
            shape = ["rows", *array.shape[1:]] if free and i == 0 and array.ndim > 1 else list(array.shape)
            infos.append(helper.make_tensor_value_info(name, kind, shape))
    results = [helper.make_tensor_value_info(f"o{i}", kind, None) for i, kind in enumerate(outputs)]
    graph = helper.make_graph([node], "one", infos, results, held)
    version = 5 if op == "TreeEnsemble" else 3
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(ML, version)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def agree(op: str, given: list[Array], outputs: list[int], tolerance: float = 1e-5, **attributes: Any) -> None:
    for free in (False, True):
        model = model_of(op, given, outputs, attributes, free)
        check(model, feeds(model, given), tolerance)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("function", ["SUM", "AVERAGE", "MIN", "MAX"])
def test_tree_regressor(seed: int, function: str) -> None:
    rng = np.random.default_rng([seed, 21])
    targets = 1 + seed % 3
    attributes = forest(rng, "target", list(range(targets)), positive=False, mixed=seed % 2 == 1)
    if seed % 2:
        attributes["base_values"] = rng.standard_normal(targets).astype(np.float32).tolist()
    attributes |= {"n_targets": targets, "aggregate_function": function}
    agree("TreeEnsembleRegressor", [rows(rng, missing=seed >= 2)], [FLOAT], **attributes)


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"])
@pytest.mark.parametrize("case", ["three", "binary_one_id", "binary_two_ids"])
@pytest.mark.parametrize("positive", [True, False])
def test_tree_classifier(transform: str, case: str, positive: bool) -> None:
    rng = np.random.default_rng([5, 22])
    ids = {"three": [0, 1, 2], "binary_one_id": [0], "binary_two_ids": [0, 1]}[case]
    attributes = forest(rng, "class", ids, positive, mixed=False)
    labels = [7, 3, 5][: max(len(ids), 2)]
    agree(
        "TreeEnsembleClassifier", [rows(rng, missing=False)], [INT64, FLOAT], post_transform=transform,
        classlabels_int64s=labels, **attributes,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32])
def test_tree_inputs(dtype: Any) -> None:
    rng = np.random.default_rng(23)
    attributes = forest(rng, "class", [0, 1, 2], positive=True, mixed=False)
    x = (rows(rng, missing=False) * 3).astype(dtype)
    agree("TreeEnsembleClassifier", [x], [INT64, FLOAT], classlabels_int64s=[4, 5, 6], **attributes)


def test_tree_ensemble_with_sets() -> None:
    tensor = numpy_helper.from_array
    attributes = {
        "aggregate_function": 1, "leaf_targetids": [0, 1, 2, 3],
        "leaf_weights": tensor(np.array([1.0, 10.0, 1000.0, 100.0], np.float32)),
        "membership_values": tensor(np.array([1.2, 3.7, 8.0, 9.0, np.nan, 12.0, 7.0, np.nan], np.float32)),
        "n_targets": 4, "nodes_falseleafs": [1, 0, 1], "nodes_falsenodeids": [2, 2, 3], "nodes_featureids": [0, 0, 0],
        "nodes_modes": tensor(np.array([0, 6, 6], np.uint8)),
        "nodes_splits": tensor(np.array([11.0, 232344.0, np.nan], np.float32)),
        "nodes_trueleafs": [0, 1, 1], "nodes_truenodeids": [1, 0, 1], "post_transform": 0, "tree_roots": [0],
    }  # fmt: skip
    x = np.array([[1.2], [3.4], [-0.12], [np.nan], [12.0], [7.0]], np.float32)
    agree("TreeEnsemble", [x], [FLOAT], **attributes)


def test_trees_refuse_text_and_look_at_columns() -> None:
    rng = np.random.default_rng(24)
    attributes = forest(rng, "class", [0, 1, 2], positive=True, mixed=False)
    x = rows(rng, missing=False)
    texts = {"classlabels_strings": ["a", "b", "c"], **attributes}
    model = model_of("TreeEnsembleClassifier", [x], [TensorProto.STRING, FLOAT], texts)
    assert any("text" in str(reason) for reason in refusals(model))
    numbers = {"classlabels_int64s": [1, 2, 3], **attributes}
    few = x[:, :1]
    model = node_model("TreeEnsembleClassifier", [few], (INT64, FLOAT), numbers, domain=ML, symbolic=True)
    if max(attributes["nodes_featureids"]) > 0:
        with pytest.raises(InvalidArgument):
            check(model, feeds(model, [few]))
    assert FEATURES > 1
    assert CPU


def numbers(*shape: int) -> Array:
    return np.random.default_rng([7, *shape]).standard_normal(shape).astype(np.float32)


def test_features() -> None:
    x = numbers(9, 5)
    agree("Scaler", [x], [FLOAT], offset=[0.1, 0.2, 0.3, 0.4, 0.5], scale=[2.0, 3.0, 4.0, 5.0, 6.0])
    agree("Scaler", [x], [FLOAT], offset=[0.5], scale=[2.0])
    for norm in ("MAX", "L1", "L2"):
        agree("Normalizer", [np.concatenate([x, np.zeros((1, 5), np.float32)])], [FLOAT], norm=norm)
    agree("Binarizer", [x], [FLOAT], threshold=0.25)
    missing = x.copy()
    missing[2, 3] = missing[4, 1] = np.nan
    agree("Imputer", [missing], [FLOAT], imputed_value_floats=[1.0, 2.0, 3.0, 4.0, 5.0], replaced_value_float=np.nan)
    agree("Imputer", [missing], [FLOAT], imputed_value_floats=[7.0], replaced_value_float=float(x[0, 0]))
    whole = np.random.default_rng(1).integers(0, 3, (9, 5))
    agree("Imputer", [whole], [INT64], imputed_value_int64s=[9, 8, 7, 6, 5], replaced_value_int64=1)


@pytest.mark.parametrize("indices", [np.array([[0, 2, 4]]), np.array([1, 1]), np.array([[3]])])
@pytest.mark.parametrize("shape", [(9, 5), (2, 3, 5)])
def test_array_feature_extractor(shape: tuple[int, ...], indices: Array) -> None:
    for constants in ((), (1,)):
        model = model_of("ArrayFeatureExtractor", [numbers(*shape), indices], [FLOAT], {}, constants=constants)
        check(model, feeds(model, [numbers(*shape), indices]), 0)


def test_linear_regressor() -> None:
    agree(
        "LinearRegressor", [numbers(9, 5)], [FLOAT], coefficients=numbers(15).tolist(),
        intercepts=[0.5, 1.0, -2.0], targets=3,
    )  # fmt: skip


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_linear_classifier(classes: int, transform: str) -> None:
    rows_of = 1 if classes == 2 else classes
    agree(
        "LinearClassifier", [numbers(9, 5)], [INT64, FLOAT], coefficients=numbers(5 * rows_of).tolist(),
        intercepts=numbers(rows_of).tolist(), classlabels_ints=[7, 3, 5][:classes], post_transform=transform,
    )  # fmt: skip
