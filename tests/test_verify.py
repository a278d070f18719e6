"""Comparison against a value's own range, and bisection to the patch or node that changed an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from whet.errors import WhetError
from whet.formats.onnx import from_text, to_proto
from whet.graph import Graph, Node, Patch, Value
from whet.ops.custom import CustomOp
from whet.passes import pipeline
from whet.passes.base import PassContext
from whet.providers.reference import ReferenceExecutionProvider
from whet.session.prepare import LoadSettings
from whet.verify.compare import compare
from whet.verify.levels import bisect_nodes, bisect_patches, compare_level

CHAIN = """<ir_version: 8, opset_import: ["": 17, "test": 1]>
agraph (float[n, 4] x) => (float[n, 4] y) {
    one = Constant<value = float {1.0}>()
    a = Add(x, one)
    b = Relu(a)
    c = Identity(b)
    d = Mul(c, c)
    e = Identity(d)
    y = Sub(e, one)
}"""


def chain() -> bytes:
    model = from_text(CHAIN)
    return to_proto(model).SerializeToString()  # type: ignore[no-any-return]


def feed() -> dict[str, Any]:
    return {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        (np.array([0.0, 1.0, 2.5]), np.array([0.0, 1.0, 2.0]), 0.25),
        (np.array([3.0]), np.array([2.0]), 0.5),
        (np.array([1.0, np.nan]), np.array([1.0, np.nan]), 0.0),
        (np.array([1.0, np.inf]), np.array([1.0, np.inf]), 0.0),
        (np.array([1.0, np.inf]), np.array([1.0, -np.inf]), np.inf),
        (np.array([1.0, 0.0]), np.array([1.0, np.nan]), np.inf),
        (np.array([1.0, 2.0]), np.array([[1.0, 2.0]]), np.inf),
        (np.array([1, 2]), np.array([1.0, 2.0]), np.inf),
        (np.zeros((0, 3)), np.zeros((0, 3)), 0.0),
        (np.array(["a", "b"]), np.array(["a", "c"]), np.inf),
        ([np.array([1.0])], [np.array([1.0]), np.array([2.0])], np.inf),
        ([np.array([0.0, 4.0])], [np.array([0.0, 2.0])], 1.0),
        ({1: 0.5}, {1: 0.5}, 0.0),
        ({1: 0.5}, {2: 0.5}, np.inf),
        (None, None, 0.0),
        (None, np.array([1.0]), np.inf),
        (np.array([1 + 1j, 0j]), np.array([1 + 2j, 0j]), 0.5),
    ],
)
def test_error_is_the_largest_difference_over_the_range(actual: Any, expected: Any, error: float) -> None:
    assert compare("v", actual, expected).error == pytest.approx(error)


def test_levels_keep_the_answers() -> None:
    assert all(d.error == 0.0 for d in compare_level(chain(), feed(), "all"))
    assert bisect_patches(chain(), feed(), "all") is None


class _Wrong:
    """A pass that replaces ReLU by a leaky one: wrong wherever an input is negative."""

    name = "wrong-relu"

    def patches(self, graph: Graph, context: PassContext) -> Iterator[Patch]:
        for node in graph:
            if node.op == "Relu":
                leaky = Node("LeakyRelu", node.inputs, [Value("", node.output.type)], {"alpha": 0.5})
                yield Patch(node, [leaky], {node.output: leaky.output}, [node])


def test_a_wrong_pass_is_found_among_right_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = {**pipeline.LEVELS, "all": (*pipeline.LEVELS["basic"], _Wrong(), *pipeline.BASIC)}
    monkeypatch.setattr(pipeline, "LEVELS", levels)
    suspect = bisect_patches(chain(), feed(), "all")
    assert suspect is not None
    assert suspect.rewrite == "wrong-relu"
    assert any("LeakyRelu" in label for label in suspect.nodes)
    assert suspect.difference.error > 1e-3


CUSTOM = CHAIN.replace("d = Mul(c, c)", "d = test.Square(c)")


def _square(inputs: Sequence[Any], attributes: Any, output_count: int) -> list[Any]:
    (x,) = inputs
    return [x * x]


def test_a_wrong_node_is_found() -> None:
    def wrong(inputs: Sequence[Any], attributes: Any, output_count: int) -> list[Any]:
        return [_square(inputs, attributes, output_count)[0] * 1.01]

    right_op, wrong_op = (
        CustomOp("test", "Square", evaluate=k, infer=lambda n: [n.inputs[0].type]) for k in (_square, wrong)
    )
    model = to_proto(from_text(CUSTOM)).SerializeToString()
    settings = LoadSettings(custom_ops=(right_op,))
    ours = [ReferenceExecutionProvider({}, (wrong_op,))]
    suspect = bisect_nodes(model, feed(), ours, settings=settings)
    assert suspect is not None
    assert "Square" in suspect.node
    assert suspect.difference.error == pytest.approx(0.01, rel=0.3)
    assert bisect_nodes(model, feed(), [ReferenceExecutionProvider({}, (right_op,))], settings=settings) is None


def test_a_model_without_outputs_cannot_be_compared() -> None:
    with pytest.raises(WhetError, match="output"):
        bisect_patches(
            to_proto(from_text(CHAIN.replace("=> (float[n, 4] y)", "=> ()"))).SerializeToString(), feed(), "all"
        )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_roundings_of_the_values_own_type_are_no_difference(dtype: Any) -> None:
    """A nearly constant value, off by a few units in the last place; then by a hundred."""
    expected = np.array([1.0, 1.0 + 1e-16, 1.0 + 2.3e-16])
    epsilon = float(np.finfo(dtype).eps)
    close, far = np.array([1 + 2 * epsilon, 1, 1], dtype), np.array([1 + 100 * epsilon, 1, 1], dtype)
    near = compare("v", close, expected, same_type=False)
    assert near.within(1e-4)
    assert near.max_abs > 0
    assert not compare("v", close, expected, same_type=False).within(0.0)
    assert not compare("v", far, expected, same_type=False).within(1e-4)


def test_a_difference_of_types_or_nan_is_never_a_rounding() -> None:
    assert not compare("v", np.array([np.nan]), np.array([1.0])).within(1e-4)
    assert not compare("v", np.array([1], np.int64), np.array([2], np.int64)).within(1e-4)
