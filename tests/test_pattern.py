"""The pattern matcher: association and order, repeated variables, constants, readers, and reasons."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from tests.pass_checks import build, load
from whet.graph import Model, Node
from whet.passes.base import PassDriver
from whet.passes.basic.propagate import ShapePropagation
from whet.passes.pattern import (
    Match,
    MatchFailure,
    Op,
    Pattern,
    Scalar,
    Var,
    clip,
    erf,
    exp,
    is_constant,
    match,
    op,
    sigmoid,
    sqrt,
)

F = np.float32
x, y, z = Var("x"), Var("y"), Var("z")
INPUTS = "float[2,3] a, float[2,3] b, float[2,3] c, float s"


def graph(body: str, outputs: str = "float[2,3] r", **constants: object) -> Model:
    model = load(build(INPUTS, outputs, body, **constants))
    PassDriver(model).run((ShapePropagation(),))
    return model


def root(model: Model, name: str = "r") -> Node:
    value = model.graph.find_value(name)
    assert value is not None
    assert value.producer is not None
    return value.producer


def match_root(pattern: Pattern, model: Model) -> Match | MatchFailure:
    """The model is held meanwhile: a node whose graph is gone has no neighbours."""
    return match(pattern, root(model))


def found(pattern: Pattern, body: str, **constants: object) -> Match | MatchFailure:
    return match_root(pattern, graph(body, **constants))


def names(result: Match | MatchFailure) -> dict[str, object]:
    assert isinstance(result, Match), result
    return {k: getattr(v, "name", v) for k, v in result.bound.items()}


@pytest.mark.parametrize("order", list(permutations("abc")))
@pytest.mark.parametrize("nested", ["t=Mul({0},{1})\nr=Mul(t,{2})", "t=Mul({1},{2})\nr=Mul({0},t)"])
def test_products_match_in_any_order_and_association(order: tuple[str, ...], nested: str) -> None:
    result = found(op("Exp", x) * y * z, "e=Exp(b)\n" + nested.format(*order).replace("b", "e"))
    bound = names(result)
    assert bound["x"] == "b"
    assert {bound["y"], bound["z"]} == {"a", "c"}
    assert isinstance(result, Match)
    assert len(result.nodes) == 3


def test_quotients_reciprocals_and_differences_are_kept_apart() -> None:
    assert names(found(x / exp(y), "e=Exp(b)\nr=Div(a,e)")) == {"x": "a", "y": "b"}
    assert names(found(x / exp(y), "e=Exp(b)\ni=Reciprocal(e)\nr=Mul(i,a)")) == {"x": "a", "y": "b"}
    assert isinstance(found(x / exp(y), "e=Exp(b)\nr=Div(e,a)"), MatchFailure)
    assert isinstance(found(x / exp(y), "e=Exp(b)\nr=Mul(e,a)"), MatchFailure)
    assert names(found(x - exp(y), "e=Exp(b)\nr=Sub(a,e)")) == {"x": "a", "y": "b"}
    assert names(found(x - exp(y), "e=Exp(b)\nn=Neg(e)\nr=Add(n,a)")) == {"x": "a", "y": "b"}
    assert isinstance(found(x - exp(y), "e=Exp(b)\nr=Sub(e,a)"), MatchFailure)
    nested = found(x / (y * exp(z)), "e=Exp(c)\np=Mul(e,b)\nr=Div(a,p)")
    assert names(nested) == {"x": "a", "y": "b", "z": "c"}
    assert names(found(x / y / exp(z), "e=Exp(c)\np=Div(a,e)\nr=Div(p,b)")) == {"x": "a", "y": "b", "z": "c"}


def test_constants_may_divide_or_be_subtracted() -> None:
    assert names(found(sigmoid(x * 4), "t=Div(a,k)\nr=Sigmoid(t)", k=F(0.25))) == {"x": "a"}
    assert names(found(sigmoid(x / 4), "t=Mul(k,a)\nr=Sigmoid(t)", k=F(0.25))) == {"x": "a"}
    assert names(found(sigmoid(x + 4), "t=Sub(a,k)\nr=Sigmoid(t)", k=F(-4))) == {"x": "a"}
    assert isinstance(found(sigmoid(x + 4), "t=Sub(k,a)\nr=Sigmoid(t)", k=F(4)), MatchFailure)
    assert names(found(sigmoid(Scalar("k") * x), "t=Div(a,k)\nr=Sigmoid(t)", k=F(0.25))) == {"x": "a", "k": 4.0}


@pytest.mark.parametrize(("number", "fits"), [(1.0, True), (1.000002, True), (1.0001, False), (-1.0, False)])
def test_constants_are_compared_within_their_types_rounding(number: float, fits: bool) -> None:
    assert isinstance(found(sigmoid(x + 1), "t=Add(a,k)\nr=Sigmoid(t)", k=F(number)), Match) is fits


def test_half_precision_constants_are_compared_more_loosely() -> None:
    proto = build("float16[2] a", "float16[2] r", "t=Mul(a,k)\nr=Sigmoid(t)", k=np.float16(1.702))
    assert isinstance(match(sigmoid(1.702 * x), root(load(proto))), Match)


def test_constants_that_raise_the_rank_do_not_match() -> None:
    one = F([[[1]]])
    body = "t=Add(a,k)\nr=Sigmoid(t)"
    assert isinstance(match_root(sigmoid(x + 1), graph(body, "float[1,2,3] r", k=one)), MatchFailure)
    assert isinstance(match_root(sigmoid(x + 1), graph(body, k=one[0])), Match)
    body = "r=Max(s,k)"
    assert isinstance(match_root(op("Max", x, 0), graph(body, "float[1] r", k=F([0]))), MatchFailure)
    assert isinstance(match_root(op("Max", x, 0), graph(body, "float r", k=F(0))), Match)


def test_a_name_stands_for_one_value() -> None:
    assert names(found(x * sigmoid(x), "t=Sigmoid(a)\nr=Mul(t,a)")) == {"x": "a"}
    failure = found(x * sigmoid(x), "t=Sigmoid(a)\nr=Mul(t,b)")
    assert failure == MatchFailure("x is both a and b")
    assert isinstance(found(x * x * x, "t=Mul(a,a)\nr=Mul(t,a)"), Match)
    assert isinstance(found(x * x * x, "t=Mul(a,b)\nr=Mul(t,a)"), MatchFailure)
    assert isinstance(found(sigmoid(x**2), "t=Mul(a,a)\nr=Sigmoid(t)"), Match)
    assert isinstance(found(sigmoid(x**2), "t=Pow(a,k)\nr=Sigmoid(t)", k=F(2)), Match)
    assert isinstance(found(sigmoid(x**2), "t=Pow(a,k)\nr=Sigmoid(t)", k=F(3)), MatchFailure)


def test_the_search_backtracks() -> None:
    # Both factors are sigmoids; only the second choice lets y be an exponential.
    pattern = sigmoid(x) * sigmoid(exp(y))
    assert names(found(pattern, "e=Exp(b)\np=Sigmoid(e)\nq=Sigmoid(a)\nr=Mul(p,q)")) == {"x": "a", "y": "b"}
    assert names(found(pattern, "e=Exp(b)\np=Sigmoid(e)\nq=Sigmoid(a)\nr=Mul(q,p)")) == {"x": "a", "y": "b"}


def test_other_readers_are_named() -> None:
    body = "t=Sigmoid(a)\nr=Mul(a,t)\n"
    read = match_root(x * sigmoid(x), graph(body + "u=Neg(t)", "float[2,3] r, float[2,3] u"))
    assert isinstance(read, MatchFailure)
    assert read.reason.startswith("t in its midst is also read by Neg")
    out = match_root(x * sigmoid(x), graph(body, "float[2,3] r, float[2,3] t"))
    assert out == MatchFailure("t in its midst is an output of the graph")
    allowed = x * Op("Sigmoid", (x,), shared=True)
    result = match_root(allowed, graph(body + "u=Neg(t)", "float[2,3] r, float[2,3] u"))
    assert isinstance(result, Match)
    assert [n.op for n in result.nodes] == ["Mul", "Sigmoid"]
    assert [n.op for n in result.disappearing] == ["Mul"]


def test_a_variable_may_stand_for_a_value_in_the_midst() -> None:
    result = found(y * op("Exp", x + y), "t=Add(a,b)\ne=Exp(t)\nr=Mul(e,b)")
    assert names(result) == {"x": "a", "y": "b"}
    inner = found(y * erf(x), "b2=Erf(a)\nr=Mul(b2,b2)")  # y is what erf makes: it stays
    assert names(inner) == {"x": "a", "y": "b2"}
    assert isinstance(inner, Match)
    assert [n.op for n in inner.disappearing] == ["Mul"]


def test_alternatives_attributes_and_missing_inputs() -> None:
    relu6 = clip(x, 0, 6)
    constants = {"l": F(0), "h": F(6)}
    for body in ("r=Clip(a,l,h)", "t=Max(a,l)\nr=Min(h,t)", "t=Min(a,h)\nr=Max(t,l)", "t=Relu(a)\nr=Min(t,h)"):
        assert names(found(relu6, body, **constants)) == {"x": "a"}
    assert isinstance(found(relu6, "r=Clip(a,l)", **constants), MatchFailure)
    assert isinstance(found(op("Clip", x, 0), "r=Clip(a,l,h)", **constants), MatchFailure)
    assert isinstance(found(op("Clip", x, None, 6), "r=Clip(a,,h)", **constants), Match)
    assert isinstance(found(op("Softmax", x, axis=0), "r=Softmax<axis: int=0>(a)"), Match)
    assert isinstance(found(op("Softmax", x, axis=0), "r=Softmax<axis: int=1>(a)"), MatchFailure)
    assert isinstance(found(op("Softmax", x, axis=None), "r=Softmax<axis: int=1>(a)"), MatchFailure)
    assert isinstance(found(sqrt(x), "r=Pow(a,k)", k=F(0.5)), Match)
    assert names(found(exp(op("Cast", x)), "t=Cast<to: int=1>(a)\nr=Exp(t)")) == {"x": "a"}


def test_predicates_decline_with_a_reason() -> None:
    pattern = Var("w", is_constant) + sigmoid(x)
    assert names(found(pattern, "t=Sigmoid(a)\nr=Add(t,k)", k=F([1, 2, 3]))) == {"w": "k", "x": "a"}
    assert found(pattern, "t=Sigmoid(a)\nr=Add(t,b)") == MatchFailure("w (b) is no constant")


def test_far_misses_are_not_worth_a_record() -> None:
    failure = found(0.5 * x * (1 + erf(x / 2)), "r=Mul(a,b)")
    assert isinstance(failure, MatchFailure)
    assert not failure.near


def test_the_match_lists_readers_before_what_they_read() -> None:
    body = "d=Sub(a,b)\nq=Mul(d,d)\ne=Exp(q)\nr=Mul(d,e)"
    result = found((x - y) * exp((x - y) ** 2), body)
    assert isinstance(result, Match)
    order = [n.output.name for n in result.disappearing]
    assert sorted(order) == ["d", "e", "q", "r"]
    assert order.index("r") < order.index("e") < order.index("q") < order.index("d")


def test_roots_name_the_operators_that_can_start_a_match() -> None:
    assert (x * y).roots() == {"Mul"}
    assert (x * 2).roots() == {"Mul", "Div"}
    assert (x - y).roots() == {"Add", "Sub"}
    assert (exp(x) | x + y).roots() == {"Exp", "Add"}
