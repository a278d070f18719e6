"""Decision trees: each sample walks every tree, a few trees side by side, and its leaves' votes are taken together.

Everything is computed in float64: it holds every threshold, feature and vote exactly (int64 features are rounded).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from whet.codegen.lang import (
    Function,
    Pointer,
    Value,
    absolute,
    convert,
    copysign,
    is_nan,
    maximum,
    select,
    sqrt,
)
from whet.codegen.vecmath import exp, log
from whet.dtypes import BOOL, FLOAT64, INT32, INT64, DType
from whet.errors import InvalidArgument
from whet.kernels.base import BAD_VALUE, Frame

Array = np.ndarray[Any, Any]
Aggregate = Literal["SUM", "AVERAGE", "MIN", "MAX"]
Transform = Literal["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT"]
Mode = Literal["LEAF", "LEQ", "LT", "GTE", "GT", "EQ", "NEQ", "MEMBER"]

SIDE_BY_SIDE = 8
"""Trees that a sample walks at once, so that one's memory latency hides behind the others."""

_LESS, _EQUAL, _GREATER, _UNORDERED, _MISSING, _LEAF, _MEMBER = (1 << i for i in range(7))
"""Bits of a node: the outcomes of comparing a feature with the threshold that lead to its true branch (_UNORDERED: the
threshold is NaN; _MISSING: the feature is), and what kind of node it is."""
_OUTCOMES: dict[str, int] = {
    "LEAF": _LEAF,
    "LEQ": _LESS | _EQUAL,
    "LT": _LESS,
    "GTE": _GREATER | _EQUAL,
    "GT": _GREATER,
    "EQ": _EQUAL,
    "NEQ": _LESS | _GREATER | _UNORDERED,
    "MEMBER": _MEMBER,
}

_NODE = np.dtype(
    [
        ("threshold", "<f8"),
        ("feature", "<i4"),
        ("bits", "<i4"),
        ("children", "<i4", 2),
        ("first", "<i4"),
        ("end", "<i4"),
    ]
)
"""A node: `children` are those where the test fails and where it holds, a leaf's are itself; `first` to `end` - 1 are a
leaf's votes, or a member node's set."""
_NODE_DOUBLES = _NODE.itemsize // 8
_FEATURE, _BITS, _FALSE, _TRUE, _FIRST, _END = range(2, 8)
_VOTE = np.dtype([("weight", "<f8"), ("target", "<i8")])


@dataclass(frozen=True, slots=True)
class Forest:
    """Trees as memory that the kernel reads, and what its code depends on. All arrays are read-only constants."""

    nodes: Array
    votes: Array
    roots: Array
    """int32, padded with empty trees."""
    members: Array
    """float64: the sets of member nodes, one behind the other."""
    trees: int
    """Trees before padding."""
    targets: int
    features: int
    """Columns that samples must have."""
    uniform: Mode | None
    """The mode of all branches, where that is one that a single comparison decides, and no feature may be missing."""
    has_members: bool


def build_forest(
    *,
    modes: Sequence[Mode],
    features: Array,
    thresholds: Array,
    on_true: Array,
    on_false: Array,
    missing_goes_true: Array,
    roots: Array,
    targets: int,
    vote_nodes: Array,
    vote_targets: Array,
    vote_weights: Array,
    members: Sequence[Sequence[float]] = (),
) -> Forest:
    """The memory of trees that are given by node: a mode, feature, threshold, and the nodes that follow.

    A leaf's feature, threshold and children do not matter. The threshold of a MEMBER node is the number of its set in
    `members`. Votes name a leaf, a target and a weight; several for the same leaf and target add up. Raises
    InvalidArgument for numbers out of range and for trees with a cycle.
    """
    count = len(modes)
    bits = np.array([_OUTCOMES[m] for m in modes], np.int32)
    leaf, own = bits == _LEAF, np.arange(count, dtype=np.int64)
    children = np.stack([np.where(leaf, own, to) for to in (on_false, on_true)], axis=1).astype(np.int64)
    within(children, count, "a child")
    within(roots, count, "a root")
    within(vote_nodes, count, "the node of a vote")
    within(vote_targets, targets, "the target of a vote")
    columns = np.where(leaf, 0, features).astype(np.int64)
    within(columns, 1 << 31, "a feature")
    _refuse_cycles(children, leaf)
    nodes = np.zeros(count + 1, _NODE)
    nodes["threshold"][:count] = np.where(leaf, 0, thresholds)
    nodes["feature"][:count] = columns
    missing = np.asarray(missing_goes_true, np.bool_) & ~leaf
    nodes["bits"][:count] = bits | np.where(missing, _MISSING, 0)
    nodes["children"][:count] = children
    # The last node is a tree without a vote, which fills the last group of trees up.
    nodes["bits"][count], nodes["children"][count] = _LEAF, count
    votes = np.zeros((count, targets)) if targets else np.zeros((count, 1))
    np.add.at(votes, (vote_nodes, vote_targets), vote_weights)
    pairs = np.unique(np.stack([vote_nodes, vote_targets]).astype(np.int64), axis=1)
    table = np.zeros(pairs.shape[1], _VOTE)
    table["weight"], table["target"] = votes[pairs[0], pairs[1]], pairs[1]
    nodes["first"][:count] = np.searchsorted(pairs[0], own)
    nodes["end"][:count] = np.searchsorted(pairs[0], own, side="right")
    is_member = bits == _MEMBER
    within(np.asarray(thresholds)[is_member], len(members), "a set")
    ends = np.cumsum([0, *(len(m) for m in members)])
    which = nodes["threshold"][:count][is_member].astype(np.int64)
    nodes["first"][:count][is_member], nodes["end"][:count][is_member] = ends[which], ends[which + 1]
    kinds = {m for m in modes if m != "LEAF"}
    single = next(iter(kinds)) if len(kinds) == 1 else None
    # NaN fails every comparison but "not equal".
    uniform = None if missing.any() or single in ("NEQ", "MEMBER") else single if kinds else "LEQ"
    padded = np.full(-(-max(len(roots), 1) // SIDE_BY_SIDE) * SIDE_BY_SIDE, count, np.int32)
    padded[: len(roots)] = roots
    flat = np.array([v for m in members for v in m] or [0.0], np.float64)
    return Forest(
        nodes, table if len(table) else np.zeros(1, _VOTE), padded, flat, len(roots), targets,
        int(columns.max(initial=-1)) + 1, uniform, bool(is_member.any()),
    )  # fmt: skip


def within(numbers: Array, limit: int, what: str) -> None:
    """Raises InvalidArgument unless all numbers are in [0, limit)."""
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < limit):
        bad = numbers.min() if numbers.min() < 0 else numbers.max()
        raise InvalidArgument(f"{what} is out of range", found=bad, expected=f"[0, {limit})")


def _refuse_cycles(children: Array, leaf: Array) -> None:
    """Raises InvalidArgument unless every walk ends in a leaf: nodes whose children are settled settle, to the end."""
    settled = leaf.copy()
    parents: list[list[int]] = [[] for _ in range(len(leaf))]
    for node in np.flatnonzero(~leaf).tolist():
        for child in set(children[node].tolist()):
            parents[child].append(node)
    waiting = [len(set(pair)) for pair in children.tolist()]
    ready = np.flatnonzero(leaf).tolist()
    while ready:
        for parent in parents[ready.pop()]:
            waiting[parent] -= 1
            if not waiting[parent]:
                settled[parent] = True
                ready.append(parent)
    if not settled.all():
        raise InvalidArgument("a tree has a cycle", found=int(np.flatnonzero(~settled)[0]))


@dataclass(frozen=True, slots=True)
class TreeEnsemble:
    """Votes of a forest for each sample, after `aggregate`, base values and `transform`; with labels if `classes`.

    x [samples, columns] of `input`, y [samples, targets] of `output`. Grid: samples. `classes`:
    - "none": y are the transformed votes, and there is no label;
    - "scores": the same, and label[sample] = labels[the first of the largest votes], before the transform;
    - "one_sided": votes for target `one_target` alone decide between two labels: label = labels[1] where the vote
      exceeds 0.5 (`positive`: no weight is negative) or 0, else labels[0]. y is [samples, 2]: for LOGISTIC the
      logistic function of (-vote, vote); for PROBIT [samples, 1], the transformed vote; else (1 - vote, vote), or
      (-vote, vote) where not `positive`.

    Words: x, y, nodes, votes, roots, groups (trees / 4, padded); x_row, y_row (strides), columns; then base (float64;
    `base` of them: as many as targets, or 1 for all), members (float64; `has_members`), labels, label (int64;
    `classes`). A sample with fewer columns than `features` fails with BAD_VALUE. `trees` is what AVERAGE divides by.
    """

    input: DType
    output: DType
    targets: int
    features: int
    trees: int
    uniform: Mode | None
    has_members: bool
    aggregate: Aggregate = "SUM"
    base: int = 0
    transform: Transform = "NONE"
    classes: Literal["none", "scores", "one_sided"] = "none"
    positive: bool = False
    one_target: int = 0

    @staticmethod
    def of(forest: Forest, input_type: DType, output: DType, **options: Any) -> TreeEnsemble:
        """The spec for a forest, with the fields that do not come from it."""
        return TreeEnsemble(
            input_type, output, forest.targets, forest.features, forest.trees, forest.uniform, forest.has_members,
            **options,
        )  # fmt: skip

    def emit(self, frame: Frame) -> None:
        k = frame.k
        x, y = frame.address("x", self.input), frame.address("y", self.output)
        nodes, votes = frame.address("nodes", FLOAT64), frame.address("votes", FLOAT64)
        roots, groups = frame.address("roots", INT32), k.index(frame.number("groups"))
        x_row, y_row = k.index(frame.number("x_row")), k.index(frame.number("y_row"))
        columns = k.index(frame.number("columns"))
        base = frame.address("base", FLOAT64) if self.base else None
        members = frame.address("members", FLOAT64) if self.has_members else None
        labels = label = None
        if self.classes != "none":
            labels, label = frame.address("labels", INT64), frame.address("label", INT64)
        memory = _Totals(
            frame.scratch(FLOAT64, max(self.targets, 1)),
            frame.scratch(BOOL, max(self.targets, 1)) if self.aggregate in ("MIN", "MAX") else None,
        )
        totals = memory.totals
        frame.fail_if(columns < self.features, BAD_VALUE, 0)
        with frame.tiles() as sample:
            row = y + sample * y_row
            memory.clear(k, self)
            with k.loop(groups) as group:
                leaves = self._walk(x + sample * x_row, nodes, roots + group * SIDE_BY_SIDE, members)
                for leaf in leaves:
                    self._vote(leaf, votes, memory)
            self._finish(memory, base)
            if labels is not None and label is not None:
                label.store(labels.load(self._choice(totals)), sample)
            if self.classes == "one_sided":
                self._store_pair(totals.load(self.one_target), row)
            else:
                transform_row(k, totals, self.targets, self.transform)
                with k.loop(self.targets) as t:
                    row.store(convert(totals.load(t), self.output), t)

    def _walk(self, x: Pointer, nodes: Pointer, roots: Pointer, members: Pointer | None) -> list[Pointer]:
        """The leaves that a sample reaches in some trees: one step in each tree, until all stand on leaves."""
        k = function_of(x)
        trees = range(SIDE_BY_SIDE)
        here = k.variables({i: roots.load(i) for i in trees})
        with k.repeat():
            standing = [_node(nodes, here[i]) for i in trees]
            bits = [node.load(_BITS) for node in standing]
            common = bits[0]
            for other in bits[1:]:
                common = common & other
            k.leave_if((common & _LEAF) != 0)
            for i, node in enumerate(standing):
                value = convert(x.load(node.load(_FEATURE)), FLOAT64)
                holds = self._holds(value, node, bits[i], members)
                here[i] = select(holds, node.load(_TRUE), node.load(_FALSE))
        return [_node(nodes, here[i]) for i in trees]

    def _holds(self, value: Value, node: Pointer, bits: Value, members: Pointer | None) -> Value:
        """Whether a branch's test is true of a feature's value."""
        threshold = node.as_type(FLOAT64).load()
        if self.uniform is not None:
            # A leaf that waits for the other trees goes to itself either way.
            return _COMPARISONS[self.uniform](value, threshold)
        outcome = select(value < threshold, bits.like(_LESS), _UNORDERED)
        outcome = select(value == threshold, bits.like(_EQUAL), outcome)
        outcome = select(value > threshold, bits.like(_GREATER), outcome)
        if members is None:
            return (bits & select(is_nan(value), bits.like(_MISSING), outcome)) != 0
        k = function_of(node)
        member = k.variable(bits.like(0))
        with k.when((bits & _MEMBER) != 0):
            start, end = (convert(node.load(at), INT64) for at in (_FIRST, _END))
            with k.loop(end, start=start) as i:
                member.value = select(members.load(i) == value, bits.like(_MEMBER), member.value)
        return (bits & select(is_nan(value), bits.like(_MISSING), outcome | member.value)) != 0

    def _vote(self, leaf: Pointer, votes: Pointer, memory: _Totals) -> None:
        """Add a leaf's votes to the totals, or keep the extremes."""
        k = function_of(leaf)
        start, end = (convert(leaf.load(at), INT64) for at in (_FIRST, _END))
        with k.loop(end, start=start) as i:
            weight = (votes + i * 2).load()
            target = (votes + (i * 2 + 1)).as_type(INT64).load()
            total = memory.totals.load(target)
            if memory.seen is not None:
                memory.seen.store(1, target)
            if self.aggregate == "MIN":
                total = select(is_nan(total) | (total < weight), total, weight)
            elif self.aggregate == "MAX":
                total = select(is_nan(total) | (total > weight), total, weight)
            else:
                total = total + weight
            memory.totals.store(total, target)

    def _finish(self, memory: _Totals, base: Pointer | None) -> None:
        """Means, targets without a vote, and base values."""
        k = function_of(memory.totals)
        with k.loop(self.targets) as t:
            total = memory.totals.load(t)
            if memory.seen is not None:
                total = select(memory.seen.load(t), total, 0.0)
            if self.aggregate == "AVERAGE":
                total = total / float(max(self.trees, 1))
            if base is not None:
                last = self.classes == "one_sided" or self.base == 1
                total = total + base.load(self.base - 1 if last else t)
            memory.totals.store(total, t)

    def _choice(self, totals: Pointer) -> Value:
        """The number of the label that the votes choose."""
        k = function_of(totals)
        if self.classes == "one_sided":
            chosen = totals.load(self.one_target) > (0.5 if self.positive else 0.0)
            return select(chosen, k.index(1), 0)
        best, top = k.variable(k.index(0)), k.variable(totals.load())
        with k.loop(self.targets, start=1) as t:
            total = totals.load(t)
            # The first NaN counts as the largest.
            larger = (total > top.value) | (is_nan(total) & ~is_nan(top.value))
            best.value, top.value = select(larger, t, best.value), select(larger, total, top.value)
        return best.value

    def _store_pair(self, vote: Value, row: Pointer) -> None:
        """The scores of the two classes that one vote decides between."""
        if self.transform == "PROBIT":
            row.store(convert(_probit(vote), self.output))
            return
        other = 1.0 - vote if self.positive else -vote
        if self.transform == "LOGISTIC":
            other, vote = _logistic(-vote), _logistic(vote)
        row.store(convert(other, self.output))
        row.store(convert(vote, self.output), 1)


_COMPARISONS: dict[Mode, Callable[[Value, Value], Value]] = {
    "LEQ": lambda value, threshold: value <= threshold,
    "LT": lambda value, threshold: value < threshold,
    "GTE": lambda value, threshold: value >= threshold,
    "GT": lambda value, threshold: value > threshold,
    "EQ": lambda value, threshold: value == threshold,
}


@dataclass(frozen=True, slots=True)
class _Totals:
    """A sample's votes by target, and which targets had any."""

    totals: Pointer
    seen: Pointer | None

    def clear(self, k: Function, spec: TreeEnsemble) -> None:
        start = {"MIN": math.inf, "MAX": -math.inf}.get(spec.aggregate, 0.0)
        with k.loop(spec.targets) as t:
            self.totals.store(start, t)
            if self.seen is not None:
                self.seen.store(0, t)


def function_of(pointer: Pointer) -> Function:
    """The function that a pointer is used in."""
    assert isinstance(pointer.emitter, Function)
    return pointer.emitter


def _node(nodes: Pointer, number: Value) -> Pointer:
    return (nodes + convert(number, INT64) * _NODE_DOUBLES).as_type(INT32)


def transform_row(k: Function, scores: Pointer, count: int, transform: Transform) -> None:
    """Apply a `post_transform` of ai.onnx.ml to `count` float64 scores in place."""
    if transform in ("LOGISTIC", "PROBIT"):
        function = _logistic if transform == "LOGISTIC" else _probit
        with k.loop(count) as i:
            scores.store(function(scores.load(i)), i)
    if transform not in ("SOFTMAX", "SOFTMAX_ZERO"):
        return
    # Scores of 0 stay 0 for SOFTMAX_ZERO; the others are normalized among themselves.
    least = 1e-7 if transform == "SOFTMAX_ZERO" else -1.0
    top, total = k.variable(k.constant(FLOAT64, -math.inf)), k.variable(k.constant(FLOAT64, 0.0))
    with k.loop(count) as i:
        score = scores.load(i)
        top.value = select(absolute(score) > least, maximum(top.value, score), top.value)
    if transform == "SOFTMAX_ZERO":
        top.value = select(absolute(top.value) < math.inf, top.value, 0.0)
    with k.loop(count) as i:
        score = scores.load(i)
        power = exp(score - top.value)
        if transform == "SOFTMAX_ZERO":
            power = select(absolute(score) > least, power, 0.0)
        total.value = total.value + power
        scores.store(power, i)
    with k.loop(count) as i:
        share = scores.load(i) / total.value
        if transform == "SOFTMAX_ZERO":
            share = select(total.value == 0.0, 0.5, share)
        scores.store(share, i)


def _logistic(x: Value) -> Value:
    return 1.0 / (1.0 + exp(-x))


def _probit(score: Value) -> Value:
    """The normal distribution's quantile by Winitzki's approximation of the inverse error function, by which the
    operator is defined in practice (relative error 2e-3)."""
    x = 2.0 * score - 1.0
    logarithm = log((1.0 - x) * (1.0 + x))
    half = 0.5 * logarithm + 2.0 / (math.pi * 0.147)
    return copysign(sqrt(sqrt(half * half - logarithm / 0.147) - half), x) * math.sqrt(2.0)
