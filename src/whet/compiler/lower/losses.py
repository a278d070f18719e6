"""NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss, made of gathers, products and sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whet.compiler.lower.parts import Parts, taken_apart
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lowering import dtype_of
from whet.dtypes import INT32, INT64
from whet.graph import Node, Value


def refusal(node: Node) -> str | None:
    """Why a loss cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    scores, target, weight = _operands(node)
    if dtype_of(scores).kind != "float":
        return f"{scores.name} has element type {dtype_of(scores)}"
    if dtype_of(target) not in (INT32, INT64):
        return f"the classes {target.name} have element type {dtype_of(target)}"
    if len(scores.shape or ()) < 2 or len(target.shape or ()) != len(scores.shape or ()) - 1:
        return "the ranks of the scores and the classes do not fit"
    if weight is not None and (len(weight.shape or ()) != 1 or dtype_of(weight) is not dtype_of(scores)):
        return f"{weight.name} is no vector of the scores' element type"
    if node.str_attr("reduction", "mean") not in ("none", "sum", "mean"):
        return f"an unknown reduction {node.str_attr('reduction', 'mean')!r}"
    return None


def _operands(node: Node) -> tuple[Value, Value, Value | None]:
    scores, target = node.inputs[:2]
    assert scores is not None
    assert target is not None
    return scores, target, node.input(2)


def negative_log_likelihood(node: Node, parts: Parts) -> Sequence[Value]:
    """-weight[target] * input[target], reduced."""
    return [_loss(node, parts, _operands(node)[0])]


def softmax_cross_entropy(node: Node, parts: Parts) -> Sequence[Value]:
    """The negative log likelihood of the logarithm of a softmax over the classes; that logarithm is a result too."""
    logarithm = parts.node("LogSoftmax", _operands(node)[0], attributes={"axis": 1})
    return [_loss(node, parts, logarithm), logarithm][: len(node.outputs)]


def _loss(node: Node, parts: Parts, scores: Value) -> Value:
    data, target, weight = _operands(node)
    dtype = dtype_of(data).numpy
    index, ignored = target, None
    if "ignore_index" in node.attributes:
        of_target = dtype_of(target).numpy
        ignore = parts.constant(np.array(node.int_attr("ignore_index", 0)).astype(of_target))
        ignored = parts.node("Equal", target, ignore)
        # An ignored class may be no class at all: it must not be looked up.
        index = parts.node("Where", ignored, parts.constant(np.zeros((), of_target)), target)
    axis = parts.ints(1)
    picked = parts.node("GatherElements", scores, parts.node("Unsqueeze", index, axis), attributes={"axis": 1})
    loss = parts.node("Neg", parts.node("Squeeze", picked, axis))
    zero, one = parts.constant(np.zeros((), dtype)), parts.constant(np.ones((), dtype))
    weights: Value | None = None
    if weight is not None:
        weights = parts.node("Gather", weight, index, attributes={"axis": 0})
        loss = parts.node("Mul", loss, weights)
    if ignored is not None:
        weights = parts.node("Where", ignored, zero, one if weights is None else weights)
        loss = parts.node("Where", ignored, zero, loss)
    reduction = node.str_attr("reduction", "mean")
    if reduction == "none":
        return loss
    whole = {"keepdims": 0}
    if reduction == "sum":
        return parts.node("ReduceSum", loss, attributes=whole)
    if weights is None:
        return parts.node("ReduceMean", loss, attributes=whole)
    total = parts.node("ReduceSum", loss, attributes=whole)
    return parts.node("Div", total, parts.node("ReduceSum", weights, attributes=whole))


LOSS = taken_apart(refusal)
