"""Removal of nodes that give back their input."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from whet.graph import Node, Patch, Value
from whet.ops.common import axes_in, elements, provably_equal, shape_of, static_ints
from whet.passes.base import NodePass, PassContext
from whet.passes.basic.common import bypass, constant_true, uniform

_NoOp = Callable[[Node], Value | None]
"""The input that a node's first output equals, or None."""


def _first(node: Node) -> Value | None:
    return node.input(0)


def _single(node: Node) -> Value | None:
    """Concat, Max, Min, Sum, Mean of one input."""
    return node.input(0) if len(node.inputs) == 1 else None


def _cast(node: Node) -> Value | None:
    return node.input(0) if _same_dtype(node) else None


def _same_dtype(node: Node) -> bool:
    source = node.input(0)
    if source is None or source.type is None or node.output.type is None:
        return False
    kind, made = source.type, node.output.type
    dtype = getattr(kind, "dtype", None)
    return dtype is not None and dtype is getattr(made, "dtype", None)


def _same_shape(node: Node) -> Value | None:
    """Operators that keep the order of elements and are told a shape that the input has already."""
    source = node.input(0)
    return source if source is not None and provably_equal(shape_of(source), node.output.shape) else None


def _reshape(node: Node) -> Value | None:
    """Also where the input's extents are unknown but each is copied."""
    source = node.input(0)
    if source is None:
        return None
    dims, target = shape_of(source), elements(node.input(1))
    if provably_equal(dims, node.output.shape):
        return source
    if dims is None or target is None or len(dims) != len(target):
        return None
    copies = node.int_attr("allowzero", 0) == 0
    other = [
        i for i, t in enumerate(target) if not ((t == 0 and copies) or (t is not None and t == dims[i] and t != 0))
    ]
    # One open extent among copied ones can only be the input's own.
    return source if not other or (len(other) == 1 and target[other[0]] == -1) else None


def _flatten(node: Node) -> Value | None:
    source = node.input(0)
    rank = len(shape_of(source) or ())
    return source if rank == 2 and node.int_attr("axis", 1) in (1, -1) else None


def _rank_kept(node: Node) -> Value | None:
    """Squeeze and Unsqueeze of no axis."""
    source = node.input(0)
    return source if node.input(1) is not None and static_ints(node.input(1)) == () else None


def _transpose(node: Node) -> Value | None:
    dims = shape_of(node.input(0))
    perm = node.ints_attr("perm")
    if perm:
        return node.input(0) if perm == tuple(range(len(perm))) else None
    return node.input(0) if dims is not None and len(dims) < 2 else None


def _split(node: Node) -> Value | None:
    return node.input(0) if len(node.outputs) == 1 else None


def _expand(node: Node) -> Value | None:
    source = node.input(0)
    target, dims = elements(node.input(1)), shape_of(source)
    if target is not None and dims is not None and len(target) <= len(dims) and all(t == 1 for t in target):
        return source
    return _same_shape(node)


def _slice(node: Node) -> Value | None:
    """Every axis from its start to its end in steps of 1."""
    source = node.input(0)
    starts, ends = elements(node.input(1)), elements(node.input(2))
    steps = static_ints(node.input(4)) if node.input(4) is not None else None
    dims = shape_of(source)
    if starts is None or ends is None or (node.input(4) is not None and (steps is None or any(s != 1 for s in steps))):
        return None
    if any(s != 0 for s in starts):
        return None
    if all(isinstance(e, int) and e >= 2**31 - 1 for e in ends):
        return source
    axes = static_ints(node.input(3)) if node.input(3) is not None else tuple(range(len(ends)))
    if dims is None or axes is None:
        return None
    extents = [dims[a] for a in axes_in(axes, len(dims))]
    whole = all(
        e == d or (isinstance(e, int) and isinstance(d, int) and e >= d) for e, d in zip(ends, extents, strict=True)
    )
    return source if whole and None not in extents else None


def _zeros(node: Node) -> Value | None:
    """Pad by nothing."""
    pads = elements(node.input(1))
    return node.input(0) if pads is not None and all(p == 0 for p in pads) else None


def _ones(node: Node) -> Value | None:
    """Tile once along each axis."""
    repeats = elements(node.input(1))
    return node.input(0) if repeats is not None and all(r == 1 for r in repeats) else None


def _resize(node: Node) -> Value | None:
    """By 1 along each axis, in a coordinate mode that then maps each element to itself."""
    if node.str_attr("coordinate_transformation_mode", "half_pixel") not in (
        "half_pixel",
        "asymmetric",
        "align_corners",
        "pytorch_half_pixel",
    ):
        return None
    if node.input(2) is not None:
        return node.input(0) if uniform(node.input(2)) == 1.0 else None
    return _same_shape(node)


def _dropout(node: Node) -> Value | None:
    training = constant_true(node.input(2)) if node.input(2) is not None else False
    return node.input(0) if training is False and all(v.use_count == 0 for v in node.outputs[1:]) else None


def _clip(node: Node) -> Value | None:
    return node.input(0) if node.input(1) is None and node.input(2) is None else None


def _neutral(number: int, commutes: bool) -> _NoOp:
    """An operand that is all `number` leaves the other one as it is, provided that it does not widen its shape.

    `x + 0.0` is x for every x but -0.0, which it turns into 0.0; like other runtimes, Whet lets the sign of zero be.
    """

    def check(node: Node) -> Value | None:
        if len(node.inputs) != 2:
            return None
        a, b = node.inputs
        if uniform(b) == number and _keeps_shape(node, a, b):
            return a
        if commutes and uniform(a) == number and _keeps_shape(node, b, a):
            return b
        return None

    return check


def _keeps_shape(node: Node, kept: Value | None, other: Value | None) -> bool:
    dims, constant = shape_of(kept), shape_of(other)
    if dims is None or constant is None:
        return False
    if len(constant) <= len(dims) and all(d == 1 for d in constant):
        return True
    return provably_equal(dims, node.output.shape)


def _where(node: Node) -> Value | None:
    """A condition that is all true or all false; or both choices are one value."""
    if node.input(1) is node.input(2):
        chosen = node.input(1)
    else:
        truth = uniform(node.input(0))
        if truth is None and node.inputs[0] is not None and node.inputs[0].symbolic:
            known = set(node.inputs[0].symbolic)
            truth = known.pop() if len(known) == 1 else None
            truth = truth if isinstance(truth, int) else None
        if truth is None:
            return None
        chosen = node.input(1) if truth else node.input(2)
    return chosen if chosen is not None and provably_equal(shape_of(chosen), node.output.shape) else None


NO_OPS: Mapping[str, _NoOp] = {
    "Identity": _first,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _rank_kept,
    "Unsqueeze": _rank_kept,
    "Transpose": _transpose,
    "Concat": _single,
    "Max": _single,
    "Min": _single,
    "Sum": _single,
    "Mean": _single,
    "Split": _split,
    "Expand": _expand,
    "Slice": _slice,
    "Pad": _zeros,
    "Tile": _ones,
    "Resize": _resize,
    "Clip": _clip,
    "Where": _where,
    "Add": _neutral(0, True),
    "Sub": _neutral(0, False),
    "Mul": _neutral(1, True),
    "Div": _neutral(1, False),
    "Pow": _neutral(1, False),
}
"""When a node of each operator gives back an input."""


class NoOpRemoval(NodePass):
    """Lets the readers of a node that changes nothing read its input."""

    name = "no-op-removal"
    roots = frozenset(NO_OPS)

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        source = NO_OPS[node.op](node)
        return bypass(node, source) if source is not None else None
