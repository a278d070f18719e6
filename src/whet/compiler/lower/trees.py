"""Tree ensembles of ai.onnx.ml: attributes become the memory that the kernel walks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np

from whet.compiler.fuse import Group
from whet.compiler.lower.along import written
from whet.compiler.lower.copy import copy, relayout
from whet.compiler.lower.demand import need
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of
from whet.compiler.step import Word, address
from whet.compiler.views import View
from whet.dtypes import FLOAT32, FLOAT64, INT32, INT64, DType
from whet.errors import InvalidArgument
from whet.graph import Node, TensorData
from whet.kernels.trees import SIDE_BY_SIDE, Aggregate, Forest, Mode, Transform, TreeEnsemble, build_forest

Array = np.ndarray[Any, np.dtype[Any]]

ENSEMBLE = "ai.onnx.ml.TreeEnsemble"
REGRESSOR = "ai.onnx.ml.TreeEnsembleRegressor"
CLASSIFIER = "ai.onnx.ml.TreeEnsembleClassifier"

_MODES = ("LEAF", "BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
_NUMBERED: tuple[Mode, ...] = ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ", "MEMBER")
_AGGREGATES: tuple[Aggregate, ...] = ("AVERAGE", "SUM", "MIN", "MAX")
_TRANSFORMS: tuple[Transform, ...] = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
_INPUTS = frozenset({FLOAT32, FLOAT64, INT32, INT64})


@dataclass(frozen=True, slots=True)
class Ensemble:
    """A node's forest, and what is done to its votes."""

    forest: Forest
    digest: str
    aggregate: Aggregate
    transform: Transform
    base: Array
    classes: Literal["none", "scores", "one_sided"] = "none"
    labels: tuple[int, ...] = ()
    positive: bool = False
    one_target: int = 0

    @property
    def columns(self) -> int:
        """How wide the result is."""
        if self.classes == "one_sided":
            return 1 if self.transform == "PROBIT" else 2
        return self.forest.targets


def _array(node: Node, name: str, dtype: Any) -> Array | None:
    value = node.attributes.get(f"{name}_as_tensor", node.attributes.get(name))
    if value is None:
        return None
    return np.asarray(value.numpy() if isinstance(value, TensorData) else value, dtype)


def _needed(node: Node, name: str, dtype: Any) -> Array:
    value = _array(node, name, dtype)
    if value is None:
        raise InvalidArgument(f"attribute {name} is missing", node=node.label)
    return value


def read(node: Node) -> Ensemble:
    """The node's ensemble. Raises InvalidArgument where its attributes do not fit each other."""
    return _read(node.op, _frozen(node))


_Frozen = tuple[tuple[str, Any], ...]


def _frozen(node: Node) -> _Frozen:
    """The attributes as something that can be looked up."""
    return tuple(
        (name, (value.digest(), value) if isinstance(value, TensorData) else value)
        for name, value in sorted(node.attributes.items())
    )


@lru_cache(maxsize=16)
def _read(op: str, frozen: _Frozen) -> Ensemble:
    attributes = {
        name: value[1] if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], TensorData) else value
        for name, value in frozen
    }
    node = Node(op.rsplit(".", 1)[-1], (), (), attributes, domain="ai.onnx.ml")
    digest = hashlib.sha256(repr([(n, v[0] if n.endswith("as_tensor") else v) for n, v in frozen]).encode()).hexdigest()
    if op == ENSEMBLE:
        return _ensemble(node, digest)
    kind = "class" if op == CLASSIFIER else "target"
    base = _array(node, "base_values", np.float64)
    base = np.zeros(0) if base is None else base
    transform = cast(Transform, node.str_attr("post_transform", "NONE"))
    if op == REGRESSOR:
        forest = _numbered(node, kind, node.int_attr("n_targets", 1))
        return Ensemble(
            forest, digest, cast(Aggregate, node.str_attr("aggregate_function", "SUM")), transform, base
        )  # fmt: skip
    labels = node.ints_attr("classlabels_int64s")
    ids = sorted(set(node.ints_attr("class_ids")))
    forest = _numbered(node, kind, max(len(labels), 1 + max(ids, default=0)))
    one_sided = len(ids) == 1 and len(labels) <= 2
    positive = bool((_needed(node, "class_weights", np.float64) >= 0).all())
    if one_sided and len(labels) == 1:
        labels = (0, labels[0])
    return Ensemble(
        forest, digest, "SUM", transform, base, "one_sided" if one_sided else "scores", labels, positive,
        ids[0] if ids else 0,
    )  # fmt: skip


def _numbered(node: Node, kind: str, targets: int) -> Forest:
    """The forest of TreeEnsembleClassifier and -Regressor: nodes named by (tree, node), votes by (tree, node, id)."""
    tree, name = _needed(node, "nodes_treeids", np.int64), _needed(node, "nodes_nodeids", np.int64)
    texts = node.attributes.get("nodes_modes", ())
    assert isinstance(texts, tuple)
    if set(texts) - set(_MODES) or len(texts) != len(tree) or len(name) != len(tree):
        raise InvalidArgument("attribute nodes_modes does not fit", found=len(texts), expected=len(tree))
    keys = {pair: position for position, pair in enumerate(zip(tree.tolist(), name.tolist(), strict=True))}

    def locate(trees: Array, names: Array, what: str) -> Array:
        try:
            return np.array([keys[p] for p in zip(trees.tolist(), names.tolist(), strict=True)], np.int64)
        except (KeyError, ValueError) as error:
            raise InvalidArgument(f"attribute {what} names a node that is not there", found=error) from error

    inner = np.array([t != "LEAF" for t in texts], np.bool_)
    children = []
    for what in ("nodes_truenodeids", "nodes_falsenodeids"):
        children.append(np.arange(len(tree)))
        children[-1][inner] = locate(tree[inner], _needed(node, what, np.int64)[inner], what)
    missing = _array(node, "nodes_missing_value_tracks_true", np.bool_)
    _, roots = np.unique(tree, return_index=True)
    return build_forest(
        modes=[cast(Mode, str(t).removeprefix("BRANCH_")) for t in texts],
        features=_needed(node, "nodes_featureids", np.int64),
        thresholds=_needed(node, "nodes_values", np.float64),
        on_true=children[0],
        on_false=children[1],
        missing_goes_true=np.zeros(len(tree), np.bool_) if missing is None else missing,
        roots=roots,
        targets=targets,
        vote_nodes=locate(
            _needed(node, f"{kind}_treeids", np.int64), _needed(node, f"{kind}_nodeids", np.int64), f"{kind}_nodeids"
        ),
        vote_targets=_needed(node, f"{kind}_ids", np.int64),
        vote_weights=_needed(node, f"{kind}_weights", np.float64),
    )


def _ensemble(node: Node, digest: str) -> Ensemble:
    """The forest of TreeEnsemble: branches and leaves in lists of their own."""
    splits, weights = _needed(node, "nodes_splits", np.float64), _needed(node, "leaf_weights", np.float64)
    count, leaves = len(splits), len(weights)
    numbers = _needed(node, "nodes_modes", np.int64)
    if len(numbers) != count or (count and not (numbers.min() >= 0 and numbers.max() < len(_NUMBERED))):
        raise InvalidArgument("attribute nodes_modes does not fit", found=len(numbers), expected=count)
    modes: list[Mode] = [_NUMBERED[n] for n in numbers.tolist()]
    own = np.arange(count + leaves)
    children = []
    for side in ("true", "false"):
        to = _needed(node, f"nodes_{side}nodeids", np.int64)
        child = to + count * (_needed(node, f"nodes_{side}leafs", np.int64) != 0)
        children.append(np.concatenate((child, own[count:])))
    missing = _array(node, "nodes_missing_value_tracks_true", np.bool_)
    members, thresholds = _sets(node, modes, splits)
    forest = build_forest(
        modes=[*modes, *cast(list[Mode], ["LEAF"] * leaves)],
        features=np.concatenate((_needed(node, "nodes_featureids", np.int64), np.zeros(leaves, np.int64))),
        thresholds=np.concatenate((thresholds, np.zeros(leaves))),
        on_true=children[0],
        on_false=children[1],
        missing_goes_true=np.concatenate(
            (np.zeros(count, np.bool_) if missing is None else missing, np.zeros(leaves, np.bool_))
        ),
        roots=_needed(node, "tree_roots", np.int64),
        targets=node.int_attr("n_targets", 1),
        vote_nodes=own[count:],
        vote_targets=_needed(node, "leaf_targetids", np.int64),
        vote_weights=weights,
        members=members,
    )
    aggregate = _AGGREGATES[node.int_attr("aggregate_function", 1)]
    return Ensemble(forest, digest, aggregate, _TRANSFORMS[node.int_attr("post_transform", 0)], np.zeros(0))


def _sets(node: Node, modes: list[Mode], splits: Array) -> tuple[list[list[float]], Array]:
    """The sets of the member nodes, and thresholds in which such a node has the number of its set."""
    values = _array(node, "membership_values", np.float64)
    sets: list[list[float]] = []
    current: list[float] = []
    for value in () if values is None else values.tolist():
        if value != value:
            sets.append(current)
            current = []
        else:
            current.append(value)
    which = [i for i, mode in enumerate(modes) if mode == "MEMBER"]
    if len(sets) != len(which):
        raise InvalidArgument("attribute membership_values needs one set for each member node", found=len(sets))
    thresholds = splits.copy()
    thresholds[which] = np.arange(len(which))
    return sets, thresholds


def refusal(node: Node) -> str | None:
    """Why a tree ensemble cannot be lowered, or None."""
    if node.attributes.get("classlabels_strings"):
        return "its labels are text"
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    x, scores = need(node, 0), node.outputs[1 if node.op == CLASSIFIER else 0]
    if dtype_of(x) not in _INPUTS or len(x.shape or ()) != 2:
        return f"no trees over {x.type}"
    if dtype_of(scores) not in (FLOAT32, FLOAT64):
        return f"no votes of type {dtype_of(scores)}"
    if dtype_of(scores) is not _result(node.op, dtype_of(x)):
        return "its result has another type than its operand asks for"
    if node.op == CLASSIFIER and not node.ints_attr("classlabels_int64s"):
        return "it has no labels"
    try:
        ensemble = read(node)
    except (InvalidArgument, IndexError) as error:
        return str(error)
    if ensemble.transform not in _TRANSFORMS or ensemble.aggregate not in _AGGREGATES:
        return "its aggregate function or transform is unknown"
    if len(scores.shape or ()) != 2 or (scores.shape or (0, 0))[1] != ensemble.columns:
        return f"its result is not known to have {ensemble.columns} columns"
    if ensemble.base.size not in (0, 1, ensemble.forest.targets) and ensemble.classes != "one_sided":
        return "its base values do not fit its targets"
    return None


def _result(op: str, x: DType) -> DType:
    if op == CLASSIFIER:
        return FLOAT32
    return FLOAT64 if x is FLOAT64 else FLOAT32


def lower_trees(ctx: Lowering, node: Node, group: Group | None) -> None:
    x = ctx.view(need(node, 0))
    x = x if x.unit(1) else relayout(ctx, x)
    e = read(node)
    scores = node.outputs[1 if node.op == CLASSIFIER else 0]
    with written(ctx, scores, (0, 1), lambda view: view.unit(1)) as y:
        spec = TreeEnsemble.of(
            e.forest, x.element, y.element, aggregate=e.aggregate, base=e.base.size, transform=e.transform,
            classes=e.classes, positive=e.positive, one_target=e.one_target,
        )  # fmt: skip

        def held(name: str, array: Array, dtype: DType) -> View:
            buffer = ctx.weight(("trees", e.digest, name), lambda: np.ascontiguousarray(array), dtype)
            return View(buffer, (array.size,), (1,))

        forest = e.forest
        given = {
            "nodes": held("nodes", forest.nodes.view(np.float64), FLOAT64),
            "votes": held("votes", forest.votes.view(np.float64), FLOAT64),
            "roots": held("roots", forest.roots, INT32),
        }
        if e.base.size:
            given["base"] = held("base", e.base, FLOAT64)
        if forest.has_members:
            given["members"] = held("members", forest.members, FLOAT64)
        writes = [y]
        words: dict[str, Word] = {}
        place = label = None
        if e.classes != "none":
            given["labels"] = held("labels", np.array(e.labels, np.int64), INT64)
            place = ctx.new(node.outputs[0])
            label = place if place.unit(0) else ctx.temporary(INT64, place.shape)
            words["label"] = address(label)
            writes.append(label)
        words |= {
            "x": address(x), "y": address(y), "groups": len(forest.roots) // SIDE_BY_SIDE, "x_row": x.strides[0],
            "y_row": y.strides[0], "columns": x.shape[1], **{name: address(view) for name, view in given.items()},
        }  # fmt: skip
        work = x.shape[0] * (forest.trees * 60)
        ctx.emit(spec, words, x.shape[0], [x, *given.values()], writes, flops=work, tactic="trees")
        if label is not None and place is not None and label is not place:
            copy(ctx, label, place)


TREES = Rule(lower_trees, refusal)
