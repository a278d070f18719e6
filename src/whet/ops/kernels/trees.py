"""Tree ensembles (ai.onnx.ml): all rows walk all trees together, one level a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.base import Kernel
from whet.ops.contrib.common import Array, Attributes, Inputs, Outputs, required
from whet.ops.kernels.common import back
from whet.ops.kernels.reduce import softmax_along

_ROWS_BYTES = 32 << 20
"""Rows are taken in groups whose votes fill about this much."""

_MODES = ("LEAF", "BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
_COMPARE: tuple[Callable[[Any, Any], Any], ...] = (
    np.less_equal, np.less, np.greater_equal, np.greater, np.equal, np.not_equal,
)  # fmt: skip
_MEMBER = len(_MODES)


@dataclass(frozen=True, slots=True)
class Forest:
    """Trees as arrays over nodes; a leaf is its own child, and has a row of votes."""

    roots: Array
    modes: Array
    """Index into `_MODES`, or `_MEMBER`."""
    features: Array
    thresholds: Array
    on_true: Array
    on_false: Array
    nan_goes_true: Array
    votes: Array
    """(nodes, targets): what each leaf adds to each target."""
    voted: Array
    """Where a leaf has a vote."""
    members: tuple[frozenset[float], ...]
    """The set of each member node, by its threshold."""

    def leaves(self, x: Array) -> Array:
        """The leaf (a node number) that each row of x reaches in each tree."""
        here = np.broadcast_to(self.roots, (len(x), len(self.roots))).copy()
        rows = np.arange(len(x))[:, None]
        used = [mode for mode in range(1, _MEMBER + 1) if (self.modes == mode).any()]
        for _ in range(len(self.modes) + 1):
            mode = self.modes[here]
            if not mode.any():
                return here
            value = x[rows, self.features[here]]
            threshold = self.thresholds[here]
            holds = np.zeros(here.shape, np.bool_)
            for kind in used:
                met = self._member(value, threshold) if kind == _MEMBER else _COMPARE[kind - 1](value, threshold)
                holds |= (mode == kind) & met
            holds = np.where(np.isnan(value), self.nan_goes_true[here] & (mode != 0), holds)
            here = np.where(holds, self.on_true[here], self.on_false[here])
        raise InvalidArgument("a tree has a cycle")

    def _member(self, value: Array, threshold: Array) -> Array:
        met = np.zeros(value.shape, np.bool_)
        for number, members in enumerate(self.members):
            met |= (threshold == number) & np.isin(value, list(members))
        return met

    def aggregate(self, x: Array, function: str) -> tuple[Array, Array]:
        """Each row's votes taken together by target, and whether a target had any."""
        if x.ndim == 1:
            x = x[None]
        if x.ndim != 2:
            raise InvalidArgument("X must be a matrix", value="X", found=x.shape, expected="(rows, features)")
        if self.features.size and int(self.features.max()) >= x.shape[1]:
            raise InvalidArgument(
                "a tree looks at a feature that X lacks", value="X", found=x.shape,
                expected=f"at least {int(self.features.max()) + 1} columns",
            )  # fmt: skip
        targets = self.votes.shape[1]
        total = np.zeros((len(x), targets), self.votes.dtype)
        seen = np.zeros((len(x), targets), np.bool_)
        step = max(_ROWS_BYTES // max(len(self.roots) * targets * 8, 1), 1)
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            leaves = self.leaves(x[part])
            votes, voted = self.votes[leaves], self.voted[leaves]
            seen[part] = voted.any(axis=1)
            if function in ("SUM", "AVERAGE"):
                total[part] = votes.sum(axis=1)
            elif function in ("MIN", "MAX"):
                fill, reduce = (np.inf, np.min) if function == "MIN" else (-np.inf, np.max)
                extreme = reduce(np.where(voted, votes, fill), axis=1, initial=fill)
                total[part] = np.where(seen[part], extreme, 0)
            else:
                raise InvalidArgument("attribute aggregate_function is unknown", found=function)
        if function == "AVERAGE":
            total /= max(len(self.roots), 1)
        return total, seen


def _array(attributes: Attributes, name: str, dtype: Any) -> Array | None:
    """The attribute `name`, or its `_as_tensor` form."""
    value = attributes.get(f"{name}_as_tensor")
    if value is None:
        value = attributes.get(name)
    return None if value is None else np.asarray(value, dtype)


def _needed(attributes: Attributes, name: str, dtype: Any) -> Array:
    value = _array(attributes, name, dtype)
    if value is None:
        raise InvalidArgument(f"attribute {name} is missing")
    return value


def _numbered(attributes: Attributes, kind: str, targets: int) -> Forest:
    """The forest of TreeEnsembleClassifier and -Regressor: nodes named by (tree, node), votes by (tree, node, id)."""
    tree, name = _needed(attributes, "nodes_treeids", np.int64), _needed(attributes, "nodes_nodeids", np.int64)
    texts = attributes.get("nodes_modes", ())
    unknown = set(texts) - set(_MODES)
    if unknown or len(texts) != len(tree) or len(name) != len(tree):
        raise InvalidArgument("attribute nodes_modes does not fit", found=sorted(unknown) or len(texts))
    modes = np.array([_MODES.index(t) for t in texts], np.int64)
    keys = {pair: position for position, pair in enumerate(zip(tree.tolist(), name.tolist(), strict=True))}

    def locate(trees: Array, names: Array, what: str) -> Array:
        try:
            return np.array([keys[p] for p in zip(trees.tolist(), names.tolist(), strict=True)], np.int64)
        except (KeyError, ValueError) as error:
            raise InvalidArgument(f"attribute {what} names a node that is not there", found=error) from error

    own = np.arange(len(tree))
    inner = modes != 0
    children = []
    for what in ("nodes_truenodeids", "nodes_falsenodeids"):
        children.append(own.copy())
        children[-1][inner] = locate(tree[inner], _needed(attributes, what, np.int64)[inner], what)
    weights = _needed(attributes, f"{kind}_weights", np.float64)
    ids = _needed(attributes, f"{kind}_ids", np.int64)
    where = locate(
        _needed(attributes, f"{kind}_treeids", np.int64), _needed(attributes, f"{kind}_nodeids", np.int64),
        f"{kind}_nodeids",
    )  # fmt: skip
    if ids.size and not (int(ids.min()) >= 0 and int(ids.max()) < targets):
        raise InvalidArgument(f"attribute {kind}_ids is out of range", found=int(ids.max()), expected=f"[0, {targets})")
    _, roots = np.unique(tree, return_index=True)
    missing = _array(attributes, "nodes_missing_value_tracks_true", np.bool_)
    return Forest(
        roots.astype(np.int64),
        modes,
        np.where(inner, _needed(attributes, "nodes_featureids", np.int64), 0),
        _needed(attributes, "nodes_values", np.float64),
        children[0],
        children[1],
        np.zeros(len(tree), np.bool_) if missing is None else missing,
        *_ballots(len(tree), targets, where, ids, weights),
        (),
    )


def _ballots(nodes: int, targets: int, where: Array, ids: Array, weights: Array) -> tuple[Array, Array]:
    if not len(where) == len(ids) == len(weights):
        raise InvalidArgument("the votes differ in number", found=[len(where), len(ids), len(weights)])
    votes, voted = np.zeros((nodes, targets)), np.zeros((nodes, targets), np.bool_)
    np.add.at(votes, (where, ids), weights)
    voted[where, ids] = True
    return votes, voted


def prepare_classifier(attributes: Attributes) -> Kernel:
    """TreeEnsembleClassifier(5): labels, and scores (float32)."""
    names = attributes.get("classlabels_int64s") or attributes.get("classlabels_strings")
    if not names:
        raise InvalidArgument("attribute classlabels_int64s or classlabels_strings is missing")
    labels = np.array(names, np.int64 if isinstance(names[0], int) else np.object_)
    ids = sorted(set(attributes.get("class_ids", ())))
    forest = _numbered(attributes, "class", max(len(labels), 1 + max(ids, default=0)))
    base = _array(attributes, "base_values", np.float64)
    base = np.zeros(0) if base is None else base
    one_sided = len(ids) == 1 and len(labels) <= 2
    positive = bool((_needed(attributes, "class_weights", np.float64) >= 0).all())
    transform = str(attributes.get("post_transform", "NONE"))

    def kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
        x = required(inputs, 0, "X").astype(np.float64)
        scores, _ = forest.aggregate(x, "SUM")
        if not one_sided:
            if base.size:
                scores = scores + base
            picked = scores.argmax(axis=1)
            return [labels[picked], transformed(scores, transform).astype(np.float32)]
        score = scores[:, ids[0]] + (base[-1] if base.size else 0)
        chosen = (score > (0.5 if positive else 0)).astype(np.int64)
        if len(labels) == 1:
            label = np.where(chosen, labels[0], 0) if labels.dtype == np.int64 else labels[np.zeros_like(chosen)]
        else:
            label = labels[chosen]
        if transform == "PROBIT":
            return [label, transformed(score[:, None], transform).astype(np.float32)]
        if transform == "LOGISTIC":
            pair = transformed(np.stack([-score, score], axis=1), transform)
        else:
            pair = np.stack([1 - score if positive else -score, score], axis=1)
        return [label, pair.astype(np.float32)]

    return kernel


def prepare_regressor(attributes: Attributes) -> Kernel:
    """TreeEnsembleRegressor(5)."""
    targets = int(attributes.get("n_targets", 1))
    forest = _numbered(attributes, "target", targets)
    base = _array(attributes, "base_values", np.float64)
    function = str(attributes.get("aggregate_function", "SUM"))
    transform = str(attributes.get("post_transform", "NONE"))

    def kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
        x = required(inputs, 0, "X")
        total, _ = forest.aggregate(x.astype(np.float64), function)
        if base is not None and base.size:
            total = total + base
        dtype = x.dtype if x.dtype == np.float64 else np.dtype(np.float32)
        return [back(transformed(total, transform), dtype)]

    return kernel


def prepare_ensemble(attributes: Attributes) -> Kernel:
    """TreeEnsemble(5): branches and leaves in lists of their own."""
    splits = _needed(attributes, "nodes_splits", np.float64)
    nodes, weights = len(splits), _needed(attributes, "leaf_weights", np.float64)
    targets = int(attributes.get("n_targets", 1))
    # The numbers of the modes: LEQ, LT, GTE, GT, EQ, NEQ, MEMBER; leaves follow the branches.
    modes = np.concatenate((_needed(attributes, "nodes_modes", np.int64) + 1, np.zeros(len(weights), np.int64)))
    if int(modes.max(initial=0)) > _MEMBER:
        raise InvalidArgument("attribute nodes_modes has an unknown number", found=int(modes.max()) - 1)
    own = np.arange(nodes + len(weights))
    children = []
    for side in ("true", "false"):
        to = _needed(attributes, f"nodes_{side}nodeids", np.int64)
        child = to + nodes * (_needed(attributes, f"nodes_{side}leafs", np.int64) != 0)
        if child.size and not (int(child.min()) >= 0 and int(child.max()) < len(own)):
            raise InvalidArgument(f"attribute nodes_{side}nodeids is out of range", found=int(to.max()))
        children.append(np.concatenate((child, own[nodes:])))
    missing = _array(attributes, "nodes_missing_value_tracks_true", np.bool_)
    features = _needed(attributes, "nodes_featureids", np.int64)
    members, thresholds = _sets(attributes, modes[:nodes], splits)
    votes, voted = _ballots(
        nodes + len(weights), targets, own[nodes:], _needed(attributes, "leaf_targetids", np.int64), weights
    )
    forest = Forest(
        _needed(attributes, "tree_roots", np.int64),
        modes,
        np.concatenate((features, np.zeros(len(weights), np.int64))),
        np.concatenate((thresholds, np.zeros(len(weights)))),
        children[0],
        children[1],
        np.concatenate((np.zeros(nodes, np.bool_) if missing is None else missing, np.zeros(len(weights), np.bool_))),
        votes,
        voted,
        members,
    )
    functions = ("AVERAGE", "SUM", "MIN", "MAX")
    function = functions[int(attributes.get("aggregate_function", 1))]
    transform = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")[int(attributes.get("post_transform", 0))]

    def kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
        x = required(inputs, 0, "X")
        total, _ = forest.aggregate(x.astype(np.float64), function)
        return [back(transformed(total, transform), x.dtype)]

    return kernel


def _sets(attributes: Attributes, modes: Array, splits: Array) -> tuple[tuple[frozenset[float], ...], Array]:
    """The sets of the member nodes, and thresholds in which such a node has the number of its set."""
    values = _array(attributes, "membership_values", np.float64)
    sets: list[frozenset[float]] = []
    current: list[float] = []
    for value in () if values is None else values.tolist():
        if math.isnan(value):
            sets.append(frozenset(current))
            current = []
        else:
            current.append(value)
    which = np.flatnonzero(modes == _MEMBER)
    if len(sets) != len(which):
        raise InvalidArgument("attribute membership_values needs one set for each member node", found=len(sets))
    thresholds = splits.copy()
    thresholds[which] = np.arange(len(which))
    return tuple(sets), thresholds


def transformed(scores: Array, transform: str) -> Array:
    """Scores after `post_transform`, row by row."""
    if transform == "NONE":
        return scores
    if transform == "LOGISTIC":
        return 1 / (1 + np.exp(-scores))
    if transform == "SOFTMAX":
        return softmax_along(scores, -1)
    if transform == "SOFTMAX_ZERO":
        # Scores of 0 stay 0; the others are normalized among themselves.
        kept = np.abs(scores) > 1e-7
        top = np.where(kept, scores, -np.inf).max(axis=-1, keepdims=True, initial=-np.inf)
        powers = np.where(kept, np.exp(scores - np.where(np.isfinite(top), top, 0)), 0)
        total = powers.sum(axis=-1, keepdims=True)
        return np.where(total == 0, 0.5, powers / np.where(total == 0, 1, total))
    if transform == "PROBIT":
        return math.sqrt(2) * _inverse_erf(2 * scores - 1)
    raise InvalidArgument("attribute post_transform is unknown", found=transform)


def _inverse_erf(x: Array) -> Array:
    """Winitzki's approximation of erf^-1, by which the operator is defined in practice (relative error 2e-3)."""
    log = np.log((1 - x) * (1 + x))
    half = 2 / (math.pi * 0.147) + 0.5 * log
    result: Array = np.sign(x) * np.sqrt(np.sqrt(half * half - log / 0.147) - half)
    return result


PREPARED: dict[str, Callable[[Attributes], Kernel]] = {
    "ai.onnx.ml.TreeEnsemble": prepare_ensemble,
    "ai.onnx.ml.TreeEnsembleClassifier": prepare_classifier,
    "ai.onnx.ml.TreeEnsembleRegressor": prepare_regressor,
}
"""Operators that turn their attributes into another form once, when the node is bound."""
