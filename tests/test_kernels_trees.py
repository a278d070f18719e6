"""Tree ensembles and class maps against ONNX Runtime, over random forests."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from whet.errors import InvalidArgument
from whet.formats.onnx import load_model
from whet.providers.base import CompileEnv, RunState, Subgraph
from whet.providers.reference import ReferenceExecutionProvider
from whet.providers.reference.executable import unwrap
from whet.runtime.values import Tensor

MODES = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"]
FEATURES = 4


def forest(rng: np.random.Generator, kind: str, ids: list[int], positive: bool, mixed: bool) -> dict[str, Any]:
    """Random trees of depth up to 4, thresholds on a coarse grid that inputs hit exactly."""
    a: dict[str, list[Any]] = {
        f"nodes_{k}": []
        for k in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids",
                  "missing_value_tracks_true")
    }  # fmt: skip
    a |= {f"{kind}_{k}": [] for k in ("treeids", "nodeids", "ids", "weights")}
    mode = MODES[int(rng.integers(len(MODES)))]

    def grow(tree: int, depth: int) -> int:
        number = sum(t == tree for t in a["nodes_treeids"])
        row = len(a["nodes_treeids"])
        leaf = depth == 0 or (depth < 4 and rng.random() < 0.2)
        for key, value in (
            ("treeids", tree),
            ("nodeids", number),
            ("featureids", 0 if leaf else int(rng.integers(FEATURES))),
            ("values", 0.0 if leaf else float(rng.integers(-4, 5)) / 4),
            ("modes", "LEAF" if leaf else MODES[int(rng.integers(6))] if mixed else mode),
            ("truenodeids", 0),
            ("falsenodeids", 0),
            ("missing_value_tracks_true", int(rng.integers(2))),
        ):
            a[f"nodes_{key}"].append(value)
        if leaf:
            for target in rng.permutation(ids)[: int(rng.integers(1, len(ids) + 1))]:
                a[f"{kind}_treeids"].append(tree)
                a[f"{kind}_nodeids"].append(number)
                a[f"{kind}_ids"].append(int(target))
                weight = float(np.float32(rng.random() if positive else rng.standard_normal()))
                a[f"{kind}_weights"].append(weight)
        else:
            a["nodes_truenodeids"][row] = grow(tree, depth - 1)
            a["nodes_falsenodeids"][row] = grow(tree, depth - 1)
        return number

    for tree in range(5):
        grow(tree, 4)
    return dict(a)


def whet(model: onnx.ModelProto, *inputs: Any) -> list[Any]:
    loaded = load_model(model.SerializeToString())
    run = ReferenceExecutionProvider().compile(Subgraph(loaded.graph, loaded, tuple(loaded.graph)), CompileEnv())
    return [unwrap(v) for v in run.run([Tensor.from_numpy(x) for x in inputs], RunState())]


def one_node(op: str, outputs: list[tuple[str, int]], version: int = 3, **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node(op, ["x"], [name for name, _ in outputs], domain="ai.onnx.ml", **attributes)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, FEATURES])],
        [helper.make_tensor_value_info(name, type_, None) for name, type_ in outputs],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", version)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def rows(rng: np.random.Generator, missing: bool) -> np.ndarray[Any, Any]:
    x = (rng.integers(-6, 7, (64, FEATURES)) / 4).astype(np.float32)
    if missing:
        x[rng.random(x.shape) < 0.15] = np.nan
    return x


def expected(model: onnx.ModelProto, x: np.ndarray[Any, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("function", ["SUM", "AVERAGE", "MIN", "MAX"])
def test_regressor(seed: int, function: str) -> None:
    rng = np.random.default_rng([seed, 1])
    targets = 1 + seed % 3
    attributes = forest(rng, "target", list(range(targets)), positive=False, mixed=seed % 2 == 1)
    if seed % 2:
        attributes["base_values"] = rng.standard_normal(targets).astype(np.float32).tolist()
    model = one_node(
        "TreeEnsembleRegressor",
        [("y", TensorProto.FLOAT)],
        n_targets=targets,
        aggregate_function=function,
        **attributes,
    )
    x = rows(rng, missing=seed >= 3)
    # ONNX Runtime merges chains of equality branches, wrongly where modes are mixed or elements are NaN; there the
    # standard's own implementation decides.
    ordered = not {"BRANCH_EQ", "BRANCH_NEQ"} & set(attributes["nodes_modes"])
    wanted = expected(model, x) if ordered else ReferenceEvaluator(model).run(None, {"x": x})
    found = whet(model, x)[0]
    if not ordered:
        # It gives the largest float for a target without votes, where ONNX Runtime and Whet give the base value.
        found = np.where(np.abs(wanted[0]) > 1e30, wanted[0], found)
    np.testing.assert_allclose(found, wanted[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"])
@pytest.mark.parametrize("case", ["three", "binary_one_id", "binary_two_ids"])
@pytest.mark.parametrize("positive", [True, False])
def test_classifier(seed: int, transform: str, case: str, positive: bool) -> None:
    rng = np.random.default_rng([seed, 2])
    ids = {"three": [0, 1, 2], "binary_one_id": [0], "binary_two_ids": [0, 1]}[case]
    count = max(len(ids), 2)
    attributes = forest(rng, "class", ids, positive, mixed=False)
    if seed % 2 and case != "binary_two_ids":
        attributes["base_values"] = rng.standard_normal(len(ids)).astype(np.float32).tolist()
    labels = {"classlabels_int64s": [7, 3, 5][:count]} if seed < 2 else {"classlabels_strings": ["x", "y", "z"][:count]}
    kind = TensorProto.INT64 if seed < 2 else TensorProto.STRING
    model = one_node(
        "TreeEnsembleClassifier", [("label", kind), ("y", TensorProto.FLOAT)], post_transform=transform, **labels,
        **attributes,
    )  # fmt: skip
    x = rows(rng, missing=False)
    found, wanted = whet(model, x), expected(model, x)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5, atol=1e-5)
    margin = np.sort(wanted[1], axis=1)
    clear = margin[:, -1] - margin[:, -2] > 1e-5
    if case == "binary_two_ids":
        # The standard's top class; ONNX Runtime takes the second class whenever its score is positive.
        names = np.array(next(iter(labels.values())))
        assert (found[0] == names[wanted[1].argmax(axis=1)])[clear].all()
        return
    assert (found[0] == wanted[0])[clear].all()


def test_zip_map_and_its_way_back() -> None:
    nodes = [
        helper.make_node("ZipMap", ["x"], ["m"], domain="ai.onnx.ml", classlabels_strings=["a", "b", "c", "d"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, FEATURES])],
        [onnx.ValueInfoProto(name="m")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 3)], ir_version=10)
    element = model.graph.output[0].type.sequence_type.elem_type.map_type
    element.key_type = TensorProto.STRING
    element.value_type.tensor_type.elem_type = TensorProto.FLOAT
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert whet(model, x)[0] == expected(model, x)[0]
    with pytest.raises(InvalidArgument, match="column"):
        whet(model, x[:, :3])


def test_a_forest_that_looks_past_the_features_is_refused() -> None:
    attributes = forest(np.random.default_rng(0), "target", [0], positive=False, mixed=False)
    attributes["nodes_featureids"] = [9] * len(attributes["nodes_featureids"])
    model = one_node("TreeEnsembleRegressor", [("y", TensorProto.FLOAT)], n_targets=1, **attributes)
    with pytest.raises(InvalidArgument, match="feature"):
        whet(model, np.zeros((1, FEATURES), np.float32))
