"""Tokenizer against ONNX Runtime: both modes, characters, marks, padding, and random texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

import whet
from whet.errors import InvalidArgument, WhetError

TEXTS = ["Hello  World", "I love, a x", "", "é à", "foo-bar_baz 12a3", "a\tb\nc", " . "]


def model(**attributes: Any) -> bytes:
    given = {"mark": 0, "mincharnum": 1, "pad_value": "#", **attributes}
    node = helper.make_node("Tokenizer", ["x"], ["y"], domain="com.microsoft", **given)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.STRING, None)],
        [helper.make_tensor_value_info("y", TensorProto.STRING, None)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    serialized: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return serialized


def both(texts: Any, **attributes: Any) -> tuple[Any, Any]:
    x = np.array(texts, object)
    ours, theirs = (
        lib.InferenceSession(model(**attributes), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for lib in (whet, onnxruntime)
    )
    return ours, theirs


CASES: list[dict[str, Any]] = [
    {"separators": [" "]},
    {"separators": [" ", ","]},
    {"separators": [" ,", " "]},
    {"separators": ["[ ,]+", "o"]},
    {"separators": ["o|ov|ove"]},
    {"separators": ["[[:space:]]"], "mincharnum": 3},
    {"separators": [""]},
    {"separators": [""], "mark": 1},
    {"separators": ["[^a-z]"], "mark": 1},
    {"separators": [" "], "tokenexp": "a"},
    {"tokenexp": "."},
    {"tokenexp": "[a-z]+"},
    {"tokenexp": "[a-z]+", "mincharnum": 2, "pad_value": ""},
    {"tokenexp": r"\w+", "mark": 1},
    {"tokenexp": r"\w\w+"},
    {"tokenexp": r"\b\w{2,3}\b"},
    {"tokenexp": "[[:alpha:]]+"},
    {"tokenexp": "l|lo|love"},
    {"tokenexp": "(a?)(ab)?|f|fo"},
    {"tokenexp": "o*"},
    {"tokenexp": "lo?"},
    {"tokenexp": "l+?"},
    {"tokenexp": "(?i)HELLO"},
    {"tokenexp": "zzz", "mark": 1},
]


@pytest.mark.parametrize("attributes", CASES, ids=str)
def test_tokens_are_those_of_onnxruntime(attributes: dict[str, Any]) -> None:
    for texts in (TEXTS, [TEXTS[:3], TEXTS[3:6]], [], [[]], [""]):
        ours, theirs = both(texts, **attributes)
        assert ours.shape == theirs.shape
        assert ours.tolist() == theirs.tolist()


def test_random_texts_and_expressions() -> None:
    rng = np.random.default_rng(7)
    units = ["a", "b", "[ab]", "[^a]", "a+", "b?", "(ab)", "(a|ab)", "(a|b)*", "c{1,2}"]
    for _ in range(60):
        texts = ["".join(rng.choice(list("abc "), int(rng.integers(0, 12)))) for _ in range(4)]
        expression = "".join(rng.choice(units, int(rng.integers(1, 4))))
        ours, theirs = both(texts, tokenexp=expression, mark=int(rng.integers(0, 2)))
        assert ours.tolist() == theirs.tolist(), (texts, expression)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({}, "separators and tokenexp"),
        ({"separators": [""], "mincharnum": 2}, "too large for characters"),
        ({"separators": [" "], "mincharnum": 0}, "out of range"),
        ({"tokenexp": "("}, "cannot be read"),
        ({"tokenexp": r"\p{Greek}"}, "cannot be read"),
        ({"tokenexp": "[[:nonsense:]]"}, "cannot be read"),
        ({"separators": ["q*"]}, "matches the empty string"),
    ],
)
def test_bad_attributes(attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(WhetError, match=words) as caught:
        whet.InferenceSession(model(**attributes)).run(None, {"x": np.array(["a b"])})
    assert "Tokenizer" in str(caught.value.node)


def test_three_axes_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        whet.InferenceSession(model(separators=[" "])).run(None, {"x": np.array([[["a"]]])})
