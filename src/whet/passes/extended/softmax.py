"""Softmax and its logarithm from parts."""

from __future__ import annotations

from collections.abc import Sequence

from whet.graph import Node, Value
from whet.passes.base import PassContext
from whet.passes.extended.activations import is_float
from whet.passes.extended.norm_parts import reduced_axes
from whet.passes.pattern import Match, MatchFailure, Op, Pattern, PatternPass, Var, exp, log

x = Var("x")


def _total(terms: Pattern) -> Pattern:
    return Op("ReduceSum", (terms, Var("total_axes")), name="total")


def _largest(name: str = "largest") -> Pattern:
    return Op("ReduceMax", (x, Var(f"{name}_axes")), name=name)


SHIFTED = x - _largest()
REDUCTIONS = ("total", "largest", "log_total")


class FuseSoftmax(PatternPass):
    """exp(x - max(x)) / sum(exp(x - max(x))), or the same without the maximum."""

    name = "softmax"
    operator = "Softmax"
    pattern = exp(SHIFTED) / _total(exp(SHIFTED)) | exp(x) / _total(exp(x))
    roots = pattern.roots()

    def replace(self, found: Match, context: PassContext) -> Sequence[Node] | MatchFailure:
        data = found.value("x")
        if not is_float(data):
            return MatchFailure(f"{data.name} is not known to be a float")
        axes = reduced_axes(found, data, REDUCTIONS)
        if isinstance(axes, MatchFailure):
            return axes
        if len(axes) != 1:
            return MatchFailure(f"{found.root.label} goes over {len(axes)} axes, Softmax over one")
        return (Node(self.operator, [data], [Value("")], {"axis": axes[0]}),)


class FuseLogSoftmax(FuseSoftmax):
    """x - max(x) - log(sum(exp(x - max(x)))), or x - logsumexp(x)."""

    name = "log-softmax"
    operator = "LogSoftmax"
    pattern = (
        x - _largest() - log(_total(exp(SHIFTED)))
        | x - log(_total(exp(x)))
        | x - Op("ReduceLogSumExp", (x, Var("log_total_axes")), name="log_total")
    )
    roots = pattern.roots()


class FuseLogOfSoftmax(PatternPass):
    """log(softmax(x))."""

    name = "log-of-softmax"
    pattern = log(Op("Softmax", (x,), name="softmax"))
    roots = pattern.roots()

    def replace(self, found: Match, context: PassContext) -> Sequence[Node] | MatchFailure:
        return (
            Node("LogSoftmax", [found.value("x")], [Value("")], {"axis": found.node("softmax").int_attr("axis", -1)}),
        )
