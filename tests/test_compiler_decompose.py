"""Operators that are compiled as the simpler ones that they are made of: numpy's answers in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

import whet
from whet.compiler.lower.einsum import Equation, parse
from whet.errors import InvalidArgument

Array = np.ndarray[Any, np.dtype[Any]]
CPU = "CPUExecutionProvider"
SIZES = {"a": 3, "b": 2, "c": 5, "d": 7, "e": 1, "i": 4, "j": 6, "k": 17, "n": 9}


def run(
    op: str,
    operands: Sequence[Array],
    *,
    outputs: int = 1,
    dims: Sequence[Sequence[Any]] | None = None,
    **attributes: Any,
) -> list[Array]:
    """The outputs of one node, which the compiler must take; `dims` are declared extents in place of the operands'."""
    names = [f"x{i}" for i in range(len(operands))]
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), dims[i] if dims else x.shape)
        for i, (name, x) in enumerate(zip(names, operands, strict=True))
    ]
    made = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, made, **attributes)
    results = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in made]
    for result in results:
        result.ClearField("type")
    graph = helper.make_graph([node], "one", declared, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    session = whet.InferenceSession(model.SerializeToString(), providers=[CPU])
    assert set(session.placement.by_provider) == {CPU}, session.placement.refusal_counts()
    return list(session.run(None, dict(zip(names, operands, strict=True))))


EQUATIONS = (
    "ij,jk->ik",
    "ij,kj->ik",
    "ij,jk",
    "ji,jk->ki",
    "bij,bjk->bik",
    "bij,bjk->bki",
    "bijk,bikn->bijn",
    "abij,abjk->abik",
    "bhij->bij",
    "bsnh,btnh->bnst",
    "bnst,btnh->bsnh",
    "abcij,abcjk->abcik",
    "cabij,abcjk->abcki",
    "i,i->",
    "i,i->i",
    "i,j->ij",
    "i,j->ji",
    "ij->",
    "ij->ji",
    "ij->j",
    "ii->i",
    "ii",
    "aii->ai",
    "iaibi->ab",
    "...ij,...jk->...ik",
    "...ij,jk->...ik",
    "...i->...",
    "a...,...a",
    "a,ij->aij",
    "ij,i->ij",
    "ai,ab,bi->ab",
    "ij,jk,kn->in",
    "ij,jk,kn,na->ai",
    "abc,cd,bd->ad",
    "ijk,jil->kl",
    "ea,eb->ab",
    "i, i j -> j",
)


def operands_of(equation: str, dtype: Any = np.float32) -> list[Array]:
    rng = np.random.default_rng(7)
    made = []
    for term in equation.replace(" ", "").split("->")[0].split(","):
        shape: list[int] = []
        for letter in term.replace("...", "."):
            shape.extend((3, 2) if letter == "." else (SIZES.get(letter, 3),))
        made.append(rng.uniform(-2, 2, shape).astype(dtype))
    return made


@pytest.mark.parametrize("extents", ["fixed", "by letter", "apart"])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(equation: str, extents: str) -> None:
    operands = operands_of(equation)
    terms = equation.replace(" ", "").split("->")[0].split(",")
    dims = None
    if extents == "by letter":
        dims = [_named(term) for term in terms]
    elif extents == "apart":
        dims = [[f"n{i}_{axis}" for axis in range(x.ndim)] for i, x in enumerate(operands)]
    (found,) = run("Einsum", operands, dims=dims, equation=equation)
    expected = np.einsum(equation.replace(" ", ""), *(x.astype(np.float64) for x in operands))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_an_ellipsis_is_repeated() -> None:
    operands = [np.ones((4, 3, 5, 7), np.float32), np.ones((1, 3, 7, 9), np.float32)]
    (found,) = run("Einsum", operands, equation="...ij,...jk->...ik")
    np.testing.assert_array_equal(found, np.full((4, 3, 5, 9), 7))


def test_extents_of_a_letter_differ() -> None:
    operands = [np.ones((4, 3), np.float32), np.ones((2, 9), np.float32)]
    with pytest.raises(InvalidArgument, match=r"differ|fit"):
        run("Einsum", operands, dims=[["a", "b"], ["c", "d"]], equation="ij,jk->ik")


def _named(term: str) -> list[str]:
    names: list[str] = []
    for letter in term.replace("...", "."):
        names.extend(("dots1", "dots0") if letter == "." else (letter,))
    return names


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16, np.int32, np.int64])
@pytest.mark.parametrize("equation", ["bij,bjk->bki", "ij,i->ij", "ij->j", "aii->ai"])
def test_einsum_types(equation: str, dtype: Any) -> None:
    operands = operands_of(equation, dtype)
    (found,) = run("Einsum", operands, equation=equation)
    expected = np.einsum(equation, *(x.astype(np.float64) for x in operands))
    assert found.dtype == dtype
    step = {np.float64: 1e-13, np.float16: 2e-3, ml_dtypes.bfloat16: 2e-2}.get(dtype, 0)
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=step, atol=step * 10)


def test_equations_are_spelled_out() -> None:
    assert parse("a...,b...->...", (3, 1)) == Equation((("a", "...1", "...0"), ("b",)), ("...1", "...0"))
    assert parse("...ij,...jk", (3, 2)) == Equation((("...0", "i", "j"), ("j", "k")), ("...0", "i", "k"))
    for text, ranks in (("ij,jk->ik", (2,)), ("ij->ij", (3,)), ("ij->ii", (2,)), ("ij->k", (2,)), ("i1->i", (2,))):
        assert isinstance(parse(text, ranks), str), text


def loss(scores: Array, target: Array, weight: Array | None, ignore: int | None, reduction: str) -> Array:
    """The standard's negative log likelihood, one element at a time."""
    losses = np.zeros(target.shape)
    weights = np.zeros(target.shape)
    for place in np.ndindex(*target.shape):
        number = int(target[place])
        if number == ignore:
            continue
        weights[place] = 1.0 if weight is None else weight[number]
        losses[place] = -scores[(place[0], number, *place[1:])] * weights[place]
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / weights.sum()


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("ignore", [None, -100, 2], ids=["all", "outside", "inside"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("op", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
def test_losses(op: str, weighted: bool, ignore: int | None, reduction: str) -> None:
    rng = np.random.default_rng(3)
    for shape, free in (((4, 5), False), ((3, 7, 9), True), ((2, 11, 3, 5), False)):
        scores = rng.standard_normal(shape).astype(np.float32)
        target = rng.integers(0, shape[1], (shape[0], *shape[2:]), dtype=np.int64 if free else np.int32)
        if ignore is not None:
            target.flat[::3] = ignore
        weight = rng.uniform(0.2, 1, shape[1]).astype(np.float32)
        operands = [scores, target, *([weight] if weighted else [])]
        dims = [["n", 7, "d"], ["n", "d"], [7]] if free else None
        attributes = {"reduction": reduction, **({} if ignore is None else {"ignore_index": ignore})}
        softmax = op.startswith("Softmax")
        found = run(op, operands, outputs=2 if softmax else 1, dims=dims, **attributes)
        logs = scores.astype(np.float64)
        if softmax:
            logs = logs - logs.max(1, keepdims=True)
            logs = logs - np.log(np.exp(logs).sum(1, keepdims=True))
            np.testing.assert_allclose(found[1], logs, rtol=1e-5, atol=1e-5)
        expected = loss(logs, target, weight if weighted else None, ignore, reduction)
        assert found[0].shape == expected.shape
        np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-5)


def test_a_class_outside_is_refused() -> None:
    scores = np.zeros((2, 3), np.float32)
    with pytest.raises(InvalidArgument, match="index"):
        run("NegativeLogLikelihoodLoss", [scores, np.array([0, 3])], ignore_index=5)
