"""Variances that exporters compute from two sums, in the form that does not cancel."""

from __future__ import annotations

from collections.abc import Sequence

from whet.graph import Node, Patch, TensorType, Value
from whet.graph.dims import static_shape
from whet.passes.base import NodePass, PassContext, producer
from whet.passes.pattern import Match, Pattern, Var, match

REDUCTIONS = frozenset({"ReduceMean", "ReduceSum"})

RECIPROCAL_TOLERANCE = 1e-6
"""How far the factor of a sum may be from one over the number of its terms, as a part of it."""

PATTERN: Pattern = Var("mean of squares") - Var("mean") ** 2


class CentreVariance(NodePass):
    """mean(x^2) - mean(x)^2 becomes mean((x - mean(x))^2). A mean may be a sum times a constant.

    Where the mean is large beside the deviation, the difference of two nearly equal numbers has lost most of its digits
    (Chan, Golub and LeVeque, 1983). Variances that a normalization is made of are fused before; this is for the others,
    such as flax's LayerNorm over an axis that is not the last one.
    """

    name = "centre-variance"
    roots = frozenset({"Sub"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        found = match(PATTERN, node)
        if not isinstance(found, Match):
            return None
        mean, squares = _reduction(found.value("mean")), _reduction(found.value("mean of squares"))
        if mean is None or squares is None:
            return None
        data = mean.inputs[0]
        if data is None or _squared(squares.inputs[0]) is not data:
            return None
        reason = _difference(mean, squares, data) or _wrong_factor(found, "mean", mean, data)
        reason = reason or _wrong_factor(found, "mean of squares", squares, data)
        if reason is not None:
            context.refuse(self.name, node, reason)
            return None
        nodes = _centred(data, found.value("mean"), mean, found.value("mean of squares"), squares)
        new = nodes[-1].output
        new.type = node.output.type
        # The mean stays, which the new form reads; what else nothing reads any more goes as dead code.
        return Patch(node, nodes, {node.output: new}, [node])


def _reduction(value: Value) -> Node | None:
    """The reduction that makes a mean: itself the value's producer, or a factor of it."""
    node = value.producer
    if node is not None and node.op_type == "Mul":
        node = producer(node.inputs[0], "ReduceSum") or producer(node.inputs[1], "ReduceSum")
    return node if node is not None and node.op_type in REDUCTIONS and not node.domain else None


def _squared(value: Value | None) -> Value | None:
    """What a node squares, when `value` is that node's output."""
    product = producer(value, "Mul")
    if product is not None:
        return product.inputs[0] if product.inputs[0] is product.inputs[1] else None
    power = producer(value, "Pow")
    exponent = power.inputs[1] if power is not None else None
    if power is None or exponent is None or exponent.array is None or exponent.array.size != 1:
        return None
    return power.inputs[0] if float(exponent.array.reshape(())) == 2.0 else None


def _axes(node: Node, rank: int) -> set[int]:
    """The axes that a reduction goes over, counted from 0; none where they are not constant."""
    axes = node.input(1)
    return set() if axes is None or axes.array is None else {int(a) % rank for a in axes.array.ravel()}


def _difference(mean: Node, squares: Node, data: Value) -> str | None:
    """Why the two reductions are not over the same elements of a known float tensor."""
    if not isinstance(data.type, TensorType) or data.type.dtype is None or not data.type.dtype.is_float:
        return f"{data.name} is not known to be a float"
    if data.shape is None:
        return f"the rank of {data.name} is not known"
    rank = len(data.shape)
    if not _axes(mean, rank) or _axes(mean, rank) != _axes(squares, rank):
        return f"{mean.label} and {squares.label} do not reduce the same constant axes"
    if mean.int_attr("keepdims", 1) != squares.int_attr("keepdims", 1):
        return f"one of {mean.label} and {squares.label} drops the dimensions that it reduces"
    return None


def _factor(value: Value, reduction: Node) -> Value | None:
    """What the reduction is multiplied with to make `value`; None where it is `value` itself."""
    node = value.producer
    if node is None or node is reduction:
        return None
    return node.inputs[1] if node.inputs[0] is reduction.output else node.inputs[0]


def _wrong_factor(found: Match, name: str, reduction: Node, data: Value) -> str | None:
    """Why a sum and its factor do not make a mean."""
    factor = _factor(found.value(name), reduction)
    if reduction.op_type == "ReduceMean" and factor is None:
        return None
    assert data.shape is not None
    extents = static_shape(tuple(data.shape[a] for a in sorted(_axes(reduction, len(data.shape)))))
    if extents is None or reduction.op_type != "ReduceSum":
        return f"{reduction.label} does not make a mean of a known number of terms"
    count = 1
    for extent in extents:
        count *= extent
    number = factor.array if factor is not None else None
    if number is None or number.size != 1 or abs(float(number.reshape(())) * count - 1.0) > RECIPROCAL_TOLERANCE:
        return f"{reduction.label} is not multiplied with one over its {count} terms"
    return None


def _centred(data: Value, mean: Value, reduction: Node, squares_mean: Value, squares: Node) -> Sequence[Node]:
    nodes: list[Node] = []
    kind = mean.type
    if not reduction.int_attr("keepdims", 1):
        restored = Node("Unsqueeze", [mean, reduction.inputs[1]], [Value("")])
        nodes.append(restored)
        mean = restored.output
    centred = Node("Sub", [data, mean], [Value("", data.type)])
    square = Node("Mul", [centred.output, centred.output], [Value("", data.type)])
    spread = Node(squares.op_type, [square.output, squares.inputs[1]], [Value("", kind)], squares.attributes)
    nodes += [centred, square, spread]
    factor = _factor(squares_mean, squares)
    if factor is not None:
        nodes.append(Node("Mul", [spread.output, factor], [Value("", kind)]))
    return nodes
