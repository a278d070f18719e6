"""Recurrent kernels against ONNX's equations in float64.

Tolerance: 2e-5 (float32) or 1e-12 (float64), absolute and relative: rounding errors grow over up to 7 steps.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.codegen_tools import TARGETS, aligned
from tests.kernel_tools import Run, code_and_element, run_kernel, run_kernels
from whet.codegen.lang import LanguageError
from whet.codegen.target import AVX2, AVX512, Target
from whet.dtypes import FLOAT32, FLOAT64
from whet.kernels.base import BAD_VALUE, build
from whet.kernels.rnn import GATES, Activation, Cell, Recurrence, pack_recurrent

Array = np.ndarray[Any, Any]
SIGMOID, TANH, RELU = Activation("sigmoid"), Activation("tanh"), Activation("relu")
DEFAULTS: dict[Cell, tuple[Activation, ...]] = {"rnn": (TANH,), "gru": (SIGMOID, TANH), "lstm": (SIGMOID, TANH, TANH)}
FUNCTIONS = {
    "affine": lambda x, a, b: a * x + b,
    "elu": lambda x, a, b: np.where(x < 0, a * np.expm1(np.minimum(x, 0)), x),
    "hardsigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "leakyrelu": lambda x, a, b: np.where(x < 0, a * x, x),
    "relu": lambda x, a, b: np.maximum(x, 0),
    "scaledtanh": lambda x, a, b: a * np.tanh(b * x),
    "sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "softplus": lambda x, a, b: np.log1p(np.exp(x)),
    "softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "tanh": lambda x, a, b: np.tanh(x),
    "thresholdedrelu": lambda x, a, b: np.where(x > a, x, 0),
}


class Case:
    """A spec with operands of a size; states are poisoned before the run, strides are wider than rows."""

    def __init__(self, spec: Recurrence, steps: int, batch: int, lengths: list[int] | None = None) -> None:
        self.spec, self.steps, self.batch = spec, steps, batch
        rng = np.random.default_rng(spec.hidden)
        hidden, width, kind = spec.hidden, GATES[spec.cell] * spec.hidden, spec.dtype.numpy
        self.gates = rng.standard_normal((steps, batch, width)).astype(kind)
        self.weights = (rng.standard_normal((width, hidden)) / np.sqrt(hidden)).astype(kind)
        self.bias, self.peephole = (rng.standard_normal(n).astype(kind) for n in (width, 3 * hidden))
        self.lengths = None if lengths is None else np.array(lengths, np.int32)
        self.initial = {s: rng.standard_normal((batch, hidden)).astype(kind) for s in "hc"}
        self.last = {s: np.full((batch, hidden + 3), np.nan, kind)[:, :hidden] for s in "hc"}
        # As one direction of ONNX's [steps, directions, batch, hidden].
        self.y = np.full((steps, 2, batch, hidden), np.nan, kind)[:, 1]

    def run(self, target: Target, calls: int = 1) -> Run:
        """The kernel's run, in `calls` calls."""
        spec, words = self.spec, dict[str, Any]()
        words |= {"gates": self.gates, "gates_step": self.gates[0].size, "gates_batch": self.gates.shape[2]}
        words |= {"recurrent": aligned(pack_recurrent(spec, target, self.weights))}
        words |= {"steps": self.steps, "batch": self.batch}
        words |= {"recurrent_bias": self.bias} if spec.recurrent_bias else {}
        words |= {"peephole": self.peephole} if spec.peephole else {}
        words |= {"lengths": self.lengths} if spec.lengths else {}
        for s in "hc":
            if getattr(spec, f"initial_{s}"):
                words |= {f"initial_{s}": self.initial[s], f"initial_{s}_batch": spec.hidden}
            if getattr(spec, f"last_{s}"):
                words |= {f"last_{s}": self.last[s], f"last_{s}_batch": spec.hidden + 3}
        if spec.y:
            words |= {"y": self.y, "y_step": 2 * self.batch * spec.hidden, "y_batch": spec.hidden}
        return Run(spec, words, -(-self.batch // spec.rows), calls)

    def expected(self) -> tuple[Array, Array, Array]:
        """All states, and the last h and c."""
        spec, hidden = self.spec, self.spec.hidden
        gates, weights = self.gates.astype(np.float64), self.weights.astype(np.float64)
        bias = self.bias.astype(np.float64) if spec.recurrent_bias else np.zeros(len(weights))
        y = np.zeros((self.steps, self.batch, hidden))
        last = {
            s: self.initial[s].astype(np.float64) if getattr(spec, f"initial_{s}") else np.zeros((self.batch, hidden))
            for s in "hc"
        }

        def f(number: int, x: Array) -> Array:
            a = spec.activations[number]
            return FUNCTIONS[a.name](np.clip(x, -spec.clip, spec.clip) if spec.clip else x, a.alpha, a.beta)

        for b in range(self.batch):
            end = self.steps if self.lengths is None else self.lengths[b]
            h, c = last["h"][b], last["c"][b]
            for place in range(end)[:: -1 if spec.reverse else 1]:
                x, p = np.split(gates[place, b], len(weights) // hidden), weights @ h + bias
                r = np.split(p, len(weights) // hidden)
                if spec.cell == "rnn":
                    h = f(0, x[0] + r[0])
                elif spec.cell == "gru":
                    update, reset = f(0, x[0] + r[0]), f(0, x[1] + r[1])
                    inner = weights[2 * hidden :] @ (reset * h) + bias[2 * hidden :]
                    h = (1 - update) * f(1, x[2] + (reset * r[2] if spec.linear_before_reset else inner)) + update * h
                else:
                    peephole = self.peephole.astype(np.float64) if spec.peephole else np.zeros(3 * hidden)
                    pi, po, pf = np.split(peephole, 3)
                    i = f(0, x[0] + r[0] + pi * c)
                    keep = 1 - i if spec.input_forget else f(0, x[2] + r[2] + pf * c)
                    c = keep * c + i * f(1, x[3] + r[3])
                    a = spec.activations[2]
                    h = f(0, x[1] + r[1] + po * c) * FUNCTIONS[a.name](c, a.alpha, a.beta)
                y[place, b] = h
            last["h"][b], last["c"][b] = h, c
        return y, last["h"], last["c"]

    def check(self) -> None:
        """Compare what the spec asks for; nothing else may have been written."""
        tolerance = 2e-5 if self.spec.dtype is FLOAT32 else 1e-12
        y, h, c = self.expected()
        asked = ((self.spec.y, self.y, y), (self.spec.last_h, self.last["h"], h), (self.spec.last_c, self.last["c"], c))
        for wanted, found, want in asked:
            if wanted:
                np.testing.assert_allclose(found, want, rtol=tolerance, atol=tolerance, err_msg=str(self.spec))
            else:
                assert np.isnan(found).all()
        assert np.isnan(self.y.base[:, 0]).all()


def check(target: Target, cases: list[Case]) -> None:
    """Run the cases and compare."""
    runs = [case.run(target, 1 + number % 3) for number, case in enumerate(cases)]
    assert run_kernels(target, runs) == [0] * len(runs)
    for case in cases:
        case.check()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("cell", list(GATES))
def test_sizes_and_rows(target: Target, cell: Cell) -> None:
    cases = []
    for dtype, (hidden, rows, batch) in itertools.product(
        (FLOAT32, FLOAT64), [(1, 1, 1), (5, 2, 3), (16, 4, 4), (19, 1, 2), (33, 3, 7), (64, 1, 1), (130, 4, 5)]
    ):
        lstm = cell == "lstm"
        spec = Recurrence(cell, dtype, hidden, DEFAULTS[cell], rows, initial_h=True, initial_c=lstm, last_c=lstm)
        cases.append(Case(spec, 4, batch))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("cell", list(GATES))
def test_options(target: Target, cell: Cell) -> None:
    cases = []
    flags = ["reverse", "recurrent_bias", "lengths", "initial_h"]
    flags += {"rnn": [], "gru": ["linear_before_reset"], "lstm": ["peephole", "input_forget", "initial_c"]}[cell]
    for number, chosen in enumerate(itertools.product([False, True], repeat=len(flags))):
        if len(flags) > 5 and number % 3:  # a third of so many combinations
            continue
        options: dict[str, Any] = dict(zip(flags, chosen, strict=True))
        spec = Recurrence(
            cell, FLOAT32, 9, DEFAULTS[cell], 1 + number % 3, clip=0.4 if number % 2 else 0.0, y=number % 5 != 1,
            last_h=number % 5 != 2, last_c=cell == "lstm" and number % 5 != 3, **options,
        )  # fmt: skip
        cases.append(Case(spec, 7, 5, [0, 7, 3, 1, 6] if spec.lengths else None))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_activations(target: Target) -> None:
    cases = []
    for number, name in enumerate(FUNCTIONS):
        odd = Activation(name, 0.3, 0.6)
        cells: list[tuple[Cell, tuple[Activation, ...]]] = [
            ("rnn", (odd,)), ("gru", (SIGMOID, odd)), ("lstm", (SIGMOID, odd, RELU)), ("lstm", (odd, TANH, odd)),
        ]  # fmt: skip
        for cell, activations in cells[: 1 + 3 * (number % 2)]:
            cases.append(Case(Recurrence(cell, (FLOAT32, FLOAT64)[number % 2], 7, activations, clip=2.0), 3, 2))
    check(target, cases)


@pytest.mark.parametrize(("bad", "element"), [([1, 2, 4], 2), ([1, -1, 3], 1)])
def test_lengths_are_checked(bad: list[int], element: int) -> None:
    spec = Recurrence("rnn", FLOAT32, 4, (TANH,), lengths=True)
    run = Case(spec, 3, 3, bad).run(AVX2)
    assert code_and_element(run_kernel(AVX2, spec, run.words, run.tiles)) == (BAD_VALUE, element)


@pytest.mark.parametrize("target", [AVX512, AVX2], ids=["avx512", "avx2"])
def test_the_cut_of_the_grid_changes_nothing(target: Target) -> None:
    results = []
    for calls in (1, 2, 5):
        case = Case(Recurrence("lstm", FLOAT32, 20, DEFAULTS["lstm"], rows=2), 6, 9)
        assert run_kernels(target, [case.run(target, calls)]) == [0]
        results.append(case.y.tobytes())
    assert len(set(results)) == 1


def test_too_many_rows_are_refused() -> None:
    with pytest.raises(LanguageError):
        build(Recurrence("rnn", FLOAT32, 4, (TANH,), rows=5), AVX512)
