"""Tree kernels against the numpy evaluation of the same nodes (which is held against ONNX Runtime elsewhere).

Tolerances: labels are exact; scores within 1e-6 relative (float32) or 1e-13 (float64), as sums run in float64 on both
sides, in different orders.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_tools import Run, code_and_element, run_kernel, run_kernels
from tests.test_kernels_trees import FEATURES, forest
from whet.codegen.target import AVX2, AVX512, Target
from whet.dtypes import FLOAT32, FLOAT64, INT32, INT64, DType
from whet.errors import InvalidArgument
from whet.kernels.base import BAD_VALUE
from whet.kernels.trees import SIDE_BY_SIDE, Forest, Mode, Transform, TreeEnsemble, build_forest
from whet.ops.kernels.trees import prepare_classifier, prepare_ensemble, prepare_regressor

Array = np.ndarray[Any, Any]
SAMPLES = 40
TRANSFORMS = get_args(Transform)
MODES = get_args(Mode)
KINDS: list[DType] = [FLOAT32, FLOAT64, INT32, INT64]


def numbered(a: dict[str, Any], kind: str, targets: int) -> Forest:
    """The memory of trees that are given as TreeEnsembleRegressor and -Classifier have them."""
    pairs = list(zip(a["nodes_treeids"], a["nodes_nodeids"], strict=True))
    place = {pair: i for i, pair in enumerate(pairs)}
    modes = [m.removeprefix("BRANCH_") for m in a["nodes_modes"]]
    child = {
        side: np.array([place[tree, to] for (tree, _), to in zip(pairs, a[f"nodes_{side}nodeids"], strict=True)])
        for side in ("true", "false")
    }
    voters = zip(a[f"{kind}_treeids"], a[f"{kind}_nodeids"], strict=True)
    return build_forest(
        modes=modes, features=np.array(a["nodes_featureids"]), thresholds=np.array(a["nodes_values"]),
        on_true=child["true"], on_false=child["false"],
        missing_goes_true=np.array(a.get("nodes_missing_value_tracks_true", [0] * len(modes)), bool),
        roots=np.array([i for i, (_, node) in enumerate(pairs) if node == 0]), targets=targets,
        vote_nodes=np.array([place[v] for v in voters]), vote_targets=np.array(a[f"{kind}_ids"]),
        vote_weights=np.array(a[f"{kind}_weights"]),
    )  # fmt: skip


def samples(rng: np.random.Generator, kind: DType) -> Array:
    """Features on the thresholds' grid, with gaps where the type has them."""
    x = rng.integers(-6, 7, (SAMPLES, FEATURES)) / 4
    if not kind.is_float:
        return (4 * x).astype(kind.numpy)
    x[rng.random(x.shape) < 0.15] = np.nan
    return x.astype(kind.numpy)


def words(spec: TreeEnsemble, trees: Forest, x: Array, base: Array | None = None, **more: Any) -> dict[str, Any]:
    """The arguments of a kernel; y is poisoned, and lies in a wider array."""
    columns = spec.targets
    if spec.classes == "one_sided":
        columns = 1 if spec.transform == "PROBIT" else 2
    y = np.full((len(x), columns + 1), np.nan, spec.output.numpy)[:, :columns]
    found: dict[str, Any] = {
        "x": x, "y": y, "nodes": trees.nodes, "votes": trees.votes, "roots": trees.roots,
        "groups": len(trees.roots) // SIDE_BY_SIDE, "x_row": x.shape[1], "y_row": columns + 1, "columns": x.shape[1],
    }  # fmt: skip
    if spec.base:
        found["base"] = base
    if spec.has_members:
        found["members"] = trees.members
    if spec.classes != "none":
        found["label"] = np.full(len(x), -77, np.int64)
    return found | more


@pytest.mark.parametrize("target", TARGETS)
def test_regressor(target: Target) -> None:
    runs, wanted = [], []
    for seed in range(16):
        rng = np.random.default_rng([seed, 5])
        targets, kind = 1 + seed % 3, KINDS[seed % 4]
        a = forest(rng, "target", list(range(targets)), positive=False, mixed=seed % 2 == 1)
        if seed % 5 == 0:
            del a["nodes_missing_value_tracks_true"]
        base = rng.standard_normal([targets, 1][seed // 4 % 2]) if seed % 3 else None
        function, transform = ("SUM", "AVERAGE", "MIN", "MAX")[seed // 4], TRANSFORMS[seed % 5]
        x = samples(rng, kind)
        attributes = a | {"n_targets": targets, "aggregate_function": function, "post_transform": transform}
        if base is not None:
            attributes["base_values"] = base
        with np.errstate(all="ignore"):
            wanted.append(prepare_regressor(attributes)([x], attributes, 1)[0])
        trees = numbered(a, "target", targets)
        spec = TreeEnsemble.of(
            trees, kind, FLOAT64 if kind is FLOAT64 else FLOAT32, aggregate=function, transform=transform,
            base=0 if base is None else len(base),
        )  # fmt: skip
        runs.append(Run(spec, words(spec, trees, x, base), SAMPLES, 1 + seed % 3))
    assert run_kernels(target, runs) == [0] * len(runs)
    for run, want in zip(runs, wanted, strict=True):
        tolerance = 1e-13 if want.dtype == np.float64 else 1e-6
        np.testing.assert_allclose(run.words["y"], want, rtol=tolerance, atol=tolerance, err_msg=str(run.spec))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("positive", [False, True])
def test_classifier(target: Target, positive: bool) -> None:
    runs, wanted = [], []
    for seed, transform in enumerate(TRANSFORMS * 2):
        for ids, labels in (([0, 1, 2], [7, 3, 5]), ([0], [7, 3]), ([1], [7, 3]), ([0], [9]), ([0, 1], [-1, 4])):
            rng = np.random.default_rng([seed, 6])
            a = forest(rng, "class", ids, positive, mixed=False)
            targets = max(len(labels), 1 + max(ids))
            one_sided = len(ids) == 1 and len(labels) <= 2
            base = rng.standard_normal(1 if one_sided else targets) if seed % 2 else None
            x = samples(rng, FLOAT32)
            attributes = a | {"classlabels_int64s": labels, "post_transform": transform}
            if base is not None:
                attributes["base_values"] = base
            with np.errstate(all="ignore"):
                wanted.append(prepare_classifier(attributes)([x], attributes, 2))
            trees = numbered(a, "class", targets)
            spec = TreeEnsemble.of(
                trees, FLOAT32, FLOAT32, transform=transform, base=0 if base is None else len(base),
                classes="one_sided" if one_sided else "scores", positive=positive, one_target=ids[0],
            )  # fmt: skip
            table = [0, labels[0]] if one_sided and len(labels) == 1 else labels
            more = {"labels": np.array(table, np.int64)}
            runs.append(Run(spec, words(spec, trees, x, base, **more), SAMPLES, 1 + seed % 3))
    assert run_kernels(target, runs) == [0] * len(runs)
    for run, (labels_wanted, scores) in zip(runs, wanted, strict=True):
        np.testing.assert_array_equal(run.words["label"], labels_wanted, err_msg=str(run.spec))
        np.testing.assert_allclose(run.words["y"], scores, rtol=1e-6, atol=1e-6, err_msg=str(run.spec))


def ensemble(rng: np.random.Generator, trees: int, targets: int) -> dict[str, Any]:
    """Random trees as TreeEnsemble has them: branches of every mode, with sets; leaves in a list of their own."""
    branches: list[list[Any]] = []
    leaves: list[tuple[int, float]] = []
    sets: list[list[float]] = []

    def grow(depth: int) -> tuple[int, int]:
        if depth == 0 or rng.random() < 0.2:
            leaves.append((int(rng.integers(targets)), float(rng.standard_normal())))
            return len(leaves) - 1, 1
        number, mode = len(branches), int(rng.integers(7))
        branches.append([])
        split = float(rng.integers(-4, 5)) / 4
        on_true, on_false = grow(depth - 1), grow(depth - 1)
        branches[number] = [int(rng.integers(FEATURES)), split, mode, *on_true, *on_false, int(rng.integers(2))]
        return number, 0

    roots = []
    while len(roots) < trees:
        before = len(branches)
        root, leaf = grow(4)
        if leaf:  # a root is a branch
            continue
        roots.append(root)
        assert root == before
    for branch in branches:
        if branch[2] == 6:
            sets.append([float(v) / 4 for v in rng.integers(-6, 7, int(rng.integers(1, 5)))])
    columns = list(zip(*branches, strict=True))
    names = ("featureids", "splits", "modes", "truenodeids", "trueleafs", "falsenodeids", "falseleafs",
             "missing_value_tracks_true")  # fmt: skip
    a: dict[str, Any] = {f"nodes_{name}": list(column) for name, column in zip(names, columns, strict=True)}
    return a | {
        "tree_roots": roots, "n_targets": targets,
        "leaf_targetids": [t for t, _ in leaves], "leaf_weights": [w for _, w in leaves],
        "membership_values": [v for s in sets for v in (*s, math.nan)], "sets": sets,
    }  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_ensemble_with_sets(target: Target) -> None:
    runs, wanted = [], []
    for seed in range(8):
        rng = np.random.default_rng([seed, 7])
        targets, kind = 1 + seed % 3, (FLOAT32, FLOAT64)[seed % 2]
        a = ensemble(rng, 1 + seed, targets)
        sets = a.pop("sets")
        count, leaves = len(a["nodes_modes"]), len(a["leaf_weights"])
        x = samples(rng, kind)
        wanted.append(prepare_ensemble(a)([x], a, 1)[0])
        modes: list[Mode] = [MODES[m + 1] for m in a["nodes_modes"]] + ["LEAF"] * leaves
        numbers = iter(range(len(sets)))
        splits = [next(numbers) if m == 6 else s for m, s in zip(a["nodes_modes"], a["nodes_splits"], strict=True)]
        child = {
            side: np.concatenate(
                [np.array(a[f"nodes_{side}nodeids"]) + count * np.array(a[f"nodes_{side}leafs"]), np.zeros(leaves, int)]
            )
            for side in ("true", "false")
        }
        nothing = [0] * leaves
        trees = build_forest(
            modes=modes, features=np.array(a["nodes_featureids"] + nothing), thresholds=np.array(splits + nothing),
            on_true=child["true"], on_false=child["false"],
            missing_goes_true=np.array(a["nodes_missing_value_tracks_true"] + nothing, bool),
            roots=np.array(a["tree_roots"]), targets=targets, vote_nodes=count + np.arange(leaves),
            vote_targets=np.array(a["leaf_targetids"]), vote_weights=np.array(a["leaf_weights"]), members=sets,
        )  # fmt: skip
        spec = TreeEnsemble.of(trees, kind, kind)
        runs.append(Run(spec, words(spec, trees, x), SAMPLES, 2))
    assert run_kernels(target, runs) == [0] * len(runs)
    for run, want in zip(runs, wanted, strict=True):
        np.testing.assert_allclose(run.words["y"], want, rtol=1e-6, atol=1e-6)


def stump(**changes: Any) -> dict[str, Any]:
    """One branch, two leaves."""
    zero = np.zeros(3)
    parts: dict[str, Any] = {
        "modes": ["LEQ", "LEAF", "LEAF"], "features": zero, "thresholds": zero, "on_true": np.array([1, 0, 0]),
        "on_false": np.array([2, 0, 0]), "missing_goes_true": zero, "roots": np.array([0]), "targets": 1,
        "vote_nodes": np.array([1, 2]), "vote_targets": np.array([0, 0]), "vote_weights": np.array([1.0, 2.0]),
    }  # fmt: skip
    return parts | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on_true": np.array([0, 0, 0])}, "cycle"),
        ({"on_true": np.array([3, 0, 0])}, "child"),
        ({"on_false": np.array([-1, 0, 0])}, "child"),
        ({"roots": np.array([3])}, "root"),
        ({"vote_nodes": np.array([1, 5])}, "vote"),
        ({"vote_targets": np.array([0, 1])}, "vote"),
        ({"features": np.array([-1, 0, 0])}, "feature"),
        ({"modes": ["MEMBER", "LEAF", "LEAF"]}, "set"),
    ],
)
def test_bad_trees_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        build_forest(**stump(**changes))


def test_too_few_columns_fail() -> None:
    trees = build_forest(**stump(features=np.array([2, 0, 0])))
    spec = TreeEnsemble.of(trees, FLOAT32, FLOAT32)
    status = run_kernel(AVX2, spec, words(spec, trees, np.zeros((3, 2), np.float32)), 3)
    assert code_and_element(status)[0] == BAD_VALUE


@pytest.mark.parametrize("target", [AVX512, AVX2], ids=["avx512", "avx2"])
def test_the_first_of_equal_classes_wins(target: Target) -> None:
    trees = build_forest(**stump(targets=3, vote_targets=np.array([2, 1])))
    spec = TreeEnsemble.of(trees, FLOAT32, FLOAT32, classes="scores")
    x = np.array([[-1], [1]], np.float32)
    found = words(spec, trees, x, labels=np.array([5, 6, 7], np.int64))
    assert run_kernel(target, spec, found, 2) == 0
    assert found["label"].tolist() == [7, 6]
    none = build_forest(**stump(targets=3, vote_weights=np.zeros(2)))
    found = words(spec, none, x, labels=np.array([5, 6, 7], np.int64))
    assert run_kernel(target, spec, found, 2) == 0
    assert found["label"].tolist() == [5, 5]


@pytest.mark.parametrize("target", [AVX512, AVX2], ids=["avx512", "avx2"])
def test_a_threshold_that_is_not_a_number(target: Target) -> None:
    for mode, weight in (("NEQ", 1), ("EQ", 2), ("LEQ", 2), ("GT", 2)):
        for mixed in (False, True):
            trees = build_forest(**stump(modes=[mode, "LEAF", "LEAF"], thresholds=np.array([np.nan, 0, 0]),
                                         missing_goes_true=np.array([mixed, False, False])))  # fmt: skip
            spec = TreeEnsemble.of(trees, FLOAT32, FLOAT32)
            found = words(spec, trees, np.zeros((1, 1), np.float32))
            assert run_kernel(target, spec, found, 1) == 0
            assert found["y"][0, 0] == weight
