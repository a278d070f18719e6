"""RNN, GRU and LSTM as compiled code, against the reference provider and, where it has the form, onnxruntime."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from tests.control_models import FLOAT, Array, agree, model, node, refusal

RNG = np.random.default_rng(5)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, INPUTS = 3, 7


def floats(*shape: int) -> Array:
    return (RNG.standard_normal(shape) / 3).astype(np.float32)


class Layer:
    """A layer with random operands of a size."""

    def __init__(self, op: str, batch: int, hidden: int, direction: str, layout: int = 0, **attributes: Any) -> None:
        self.op, self.layout = op, layout
        self.attributes = {"hidden_size": hidden, "direction": direction, "layout": layout, **attributes}
        directions, columns = 2 if direction == "bidirectional" else 1, GATES[op] * hidden
        x, state = floats(STEPS, batch, INPUTS), floats(directions, batch, hidden)
        if layout:
            x, state = x.swapaxes(0, 1), state.swapaxes(0, 1)
        self.x = np.ascontiguousarray(x)
        self.state = np.ascontiguousarray(state)
        self.weights = {"w": floats(directions, columns, INPUTS), "r": floats(directions, columns, hidden)}
        self.bias = floats(directions, 2 * columns)
        # Of no steps, onnxruntime leaves zeros as the last state; here and in the reference provider it is the first.
        self.lengths = RNG.integers(0 if layout else 1, STEPS + 1, batch).astype(np.int32)
        self.peephole = floats(directions, 3 * hidden)

    def check(self, *, more: bool, constant: bool, free: bool, with_onnxruntime: bool = True) -> None:
        """Compare the layer with `more` operands than the first three, weights `constant`, extents of x `free`."""
        operands = dict(self.weights)
        feeds = {"x": self.x}
        names = ["x", "w", "r"]
        if more:
            operands["b"] = self.bias
            feeds |= {"lengths": self.lengths, "h": self.state}
            names += ["b", "lengths", "h"]
            if self.op == "LSTM":
                feeds["c"] = 2 * self.state
                operands["p"] = self.peephole
                names += ["c", "p"]
        if not constant:
            feeds |= operands
        results = ["y", "y_h", "y_c"][: 3 if self.op == "LSTM" else 2]
        shapes: dict[str, list[int | str]] = {name: list(array.shape) for name, array in feeds.items()}
        if free:
            shapes["x"] = [f"x{i}" for i in range(3)]
        inputs = [(n, TensorProto.INT32 if n == "lengths" else FLOAT, shapes[n]) for n in feeds]
        proto = model(
            [node(self.op, names, results, **self.attributes)],
            inputs,
            [(name, FLOAT) for name in results],
            operands if constant else {},
        )
        agree(proto, [feeds], with_onnxruntime=with_onnxruntime and not self.layout)


FORMS = list(itertools.product(GATES, ("forward", "reverse", "bidirectional")))


@pytest.mark.parametrize(("op", "direction"), FORMS)
@pytest.mark.parametrize("constant", [False, True])
def test_directions_and_operands(op: str, direction: str, constant: bool) -> None:
    for batch, hidden, more in ((1, 5, False), (5, 16, True), (2, 33, True)):
        Layer(op, batch, hidden, direction).check(more=more, constant=constant, free=more)


@pytest.mark.parametrize(("op", "direction"), FORMS)
def test_batch_first(op: str, direction: str) -> None:
    for more in (False, True):
        Layer(op, 3, 5, direction, layout=1).check(more=more, constant=True, free=more)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("GRU", {"linear_before_reset": 1}),
        ("GRU", {"linear_before_reset": 1, "clip": 0.3}),
        ("LSTM", {"input_forget": 1}),
        ("LSTM", {"clip": 0.3}),
        (
            "LSTM",
            {"activations": ["HardSigmoid", "Relu", "Softsign"], "activation_alpha": [0.3], "activation_beta": [0.4]},
        ),
        ("RNN", {"activations": ["LeakyRelu"], "activation_alpha": [0.3]}),
        ("RNN", {"activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.1]}),
    ],
)
def test_attributes(op: str, attributes: dict[str, Any]) -> None:
    Layer(op, 3, 9, "forward", **attributes).check(more=True, constant=True, free=False, with_onnxruntime=False)


def test_an_unknown_activation_is_refused() -> None:
    layer = Layer("RNN", 1, 4, "forward", activations=["Cosh"])
    proto = model(
        [node("RNN", ["x", "w", "r"], ["y"], **layer.attributes)],
        [("x", FLOAT, layer.x.shape)],
        [("y", FLOAT)],
        layer.weights,
    )
    assert refusal(proto, "RNN") == "no activation Cosh"
