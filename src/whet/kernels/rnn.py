"""Recurrent layers: the steps of one direction of an RNN, GRU or LSTM, after a GEMM has done the inputs' share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from whet.codegen.lang import (
    LanguageError,
    Operand,
    Pointer,
    Value,
    absolute,
    broadcast,
    clamp,
    convert,
    fma,
    maximum,
    minimum,
    select,
)
from whet.codegen.target import Target
from whet.codegen.vecmath import sigmoid, softplus, tanh
from whet.codegen.vecmath.hyperbolic import expm1
from whet.dtypes import BOOL, INT32, INT64, DType
from whet.kernels.base import BAD_VALUE, Frame

Array = np.ndarray[Any, Any]
Cell = Literal["rnn", "gru", "lstm"]

GATES: dict[Cell, int] = {"rnn": 1, "gru": 3, "lstm": 4}
"""Blocks of `hidden` columns: GRU update, reset, candidate; LSTM input, output, forget, cell."""

ACTIVATIONS: dict[str, Callable[[Value, float, float], Value]] = {
    "affine": lambda x, a, b: x * a + b,
    "elu": lambda x, a, b: select(x < 0.0, expm1(x) * a, x),
    "hardsigmoid": lambda x, a, b: clamp(x * a + b, 0.0, 1.0),
    "leakyrelu": lambda x, a, b: select(x < 0.0, x * a, x),
    "relu": lambda x, a, b: maximum(x, 0.0),
    "scaledtanh": lambda x, a, b: tanh(x * b) * a,
    "sigmoid": lambda x, a, b: sigmoid(x),
    "softplus": lambda x, a, b: softplus(x),
    "softsign": lambda x, a, b: x / (absolute(x) + 1.0),
    "tanh": lambda x, a, b: tanh(x),
    "thresholdedrelu": lambda x, a, b: select(x > a, x, 0.0),
}
"""Functions of x, alpha and beta under ONNX's names in lower case."""


@dataclass(frozen=True, slots=True)
class Activation:
    """One of `ACTIVATIONS` with its alpha and beta."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    def __call__(self, x: Value, clip: float = 0.0) -> Value:
        """The function of x, which is first limited to [-clip, clip] if `clip` is not 0."""
        return ACTIVATIONS[self.name](clamp(x, -clip, clip) if clip else x, self.alpha, self.beta)


@dataclass(frozen=True, slots=True)
class Recurrence:
    """All steps of one direction: h' = cell(gates[step] + h R', h), for each sequence of a batch.

    `gates` [steps, batch, GATES * hidden] holds what the inputs and biases add to the gates' arguments. Grid:
    ceil(batch / rows); a tile takes `rows` sequences through all steps, so that the weights are read once for them.

    Words: gates, gates_step, gates_batch (strides), recurrent (address of `pack_recurrent`'s array), steps, batch; then
    where the fields ask for them:
    - recurrent_bias: GATES * hidden numbers, added to h R' (`recurrent_bias`; needed for GRU with
      `linear_before_reset`, where the reset gate scales the sum; elsewhere it may be part of `gates`);
    - peephole: 3 * hidden numbers for the input, output and forget gate (`peephole`);
    - lengths: int32 for each sequence, its number of steps, [0, steps], else BAD_VALUE with the sequence as element
      (`lengths`); outputs past it are 0, and `reverse` turns a sequence's own steps around;
    - initial_h, initial_h_batch, initial_c, initial_c_batch: address and stride of the states before the first step, 0
      where there are none (`initial_h`, `initial_c`);
    - y, y_step, y_batch: the states of every step (`y`);
    - last_h, last_h_batch, last_c, last_c_batch: the states after the last step (`last_h`, `last_c`).
    A row of `hidden` numbers is contiguous everywhere. `activations` are ONNX's f (RNN); f, g (GRU); f, g, h (LSTM).
    """

    cell: Cell
    dtype: DType
    hidden: int
    activations: tuple[Activation, ...]
    rows: int = 1
    clip: float = 0.0
    reverse: bool = False
    linear_before_reset: bool = False
    input_forget: bool = False
    recurrent_bias: bool = False
    peephole: bool = False
    lengths: bool = False
    initial_h: bool = False
    initial_c: bool = False
    y: bool = True
    last_h: bool = True
    last_c: bool = False

    @property
    def parts(self) -> tuple[int, ...]:
        """How many gates are multiplied at once: GRU's candidate may need the reset gate's result first."""
        if self.cell == "gru" and not self.linear_before_reset:
            return (2, 1)
        return (GATES[self.cell],)

    def layout(self, target: Target) -> Layout:
        """Where gates lie in products and packed weights."""
        lanes = target.lanes(self.dtype)
        padded = -(-self.hidden // lanes) * lanes
        # With one row there are fewer sums at once, so that more columns are needed to hide the latency.
        most = 8 if self.rows == 1 else 4 if target.vector_registers >= 32 else 2
        vectors = min(most, min(self.parts) * padded // lanes)
        return Layout(lanes, padded, vectors)

    def emit(self, frame: Frame) -> None:
        limit = 4
        if not 1 <= self.rows <= limit:
            raise LanguageError("too many rows for the registers", found=self.rows, expected=f"1 to {limit}")
        k, steps = frame.k, _Steps(self, frame)
        with frame.tiles() as tile:
            steps.start(tile * self.rows)
            with k.loop(steps.steps) as step:
                steps.step(step)
            steps.finish()


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns: each gate is padded to whole vectors (`padded`), each part to whole panels of `vectors`."""

    lanes: int
    padded: int
    vectors: int

    @property
    def panel(self) -> int:
        """Columns of a panel."""
        return self.lanes * self.vectors

    def columns(self, gates: int) -> int:
        """Columns of a part of so many gates."""
        return -(-gates * self.padded // self.panel) * self.panel


def pack_recurrent(spec: Recurrence, target: Target, weights: Array) -> Array:
    """R [GATES * hidden, hidden] for the kernel: part by part, panel by panel, a row of a panel for each element of h;
    flat, to be placed at a multiple of 64 bytes."""
    layout, hidden = spec.layout(target), spec.hidden
    gates = np.asarray(weights, spec.dtype.numpy).reshape(GATES[spec.cell], hidden, hidden)
    pieces, first = [], 0
    for count in spec.parts:
        part = np.zeros((hidden, layout.columns(count)), spec.dtype.numpy)
        for i in range(count):
            part[:, i * layout.padded : i * layout.padded + hidden] = gates[first + i].T
        panels = part.reshape(hidden, -1, layout.panel).transpose(1, 0, 2)
        pieces.append(np.ascontiguousarray(panels).reshape(-1))
        first += count
    return np.concatenate(pieces)


class _Steps:
    """The kernel's arguments and scratch memory, and the step."""

    def __init__(self, spec: Recurrence, frame: Frame) -> None:
        self.spec, self.frame, self.k = spec, frame, frame.k
        self.layout = spec.layout(frame.target)
        kind = spec.dtype
        self.gates = frame.address("gates", kind)
        self.gates_step, self.gates_batch = self._word("gates_step"), self._word("gates_batch")
        self.recurrent = frame.address("recurrent", kind)
        self.steps, self.batch = self._word("steps"), self._word("batch")
        self.bias = frame.address("recurrent_bias", kind) if spec.recurrent_bias else None
        self.peephole = frame.address("peephole", kind) if spec.peephole else None
        self.lengths = frame.address("lengths", INT32) if spec.lengths else None
        self.initial = {s: self._rows(f"initial_{s}") for s in "hc" if getattr(spec, f"initial_{s}")}
        self.y, self.y_step, self.y_batch = None, self.k.index(0), self.k.index(0)
        if spec.y:
            self.y = frame.address("y", kind)
            self.y_step, self.y_batch = self._word("y_step"), self._word("y_batch")
        self.last = {s: self._rows(f"last_{s}") for s in "hc" if getattr(spec, f"last_{s}")}
        padded, rows = self.layout.padded, spec.rows
        self.states = {s: frame.scratch(kind, rows * padded) for s in ("hc" if spec.cell == "lstm" else "h")}
        self.width = max(
            sum(spec.parts[:i]) * padded + self.layout.columns(count) for i, count in enumerate(spec.parts)
        )
        self.products = frame.scratch(kind, rows * self.width)
        self.reset = frame.scratch(kind, rows * padded) if len(spec.parts) > 1 else None
        self.ends = frame.scratch(INT64, rows)

    def _word(self, name: str) -> Value:
        return self.k.index(self.frame.number(name))

    def _rows(self, name: str) -> tuple[Pointer, Value]:
        return self.frame.address(name, self.spec.dtype), self._word(f"{name}_batch")

    def start(self, first: Value) -> None:
        """Load the states and lengths of the sequences from `first` on."""
        k = self.k
        self.first = first
        zero = k.constant(self.spec.dtype, 0.0, self.layout.lanes)
        with k.loop(self.spec.rows) as row:
            sequence = self._sequence(row)
            end = self.steps
            if self.lengths is not None:
                end = convert(self.lengths.load(sequence), INT64)
                self.frame.fail_if((end < 0) | (end > self.steps), BAD_VALUE, sequence)
            self.ends.store(end, row)
            for name, state in self.states.items():
                given = self.initial.get(name)
                for at, keep in self._vectors():
                    value = zero if given is None else self._load(given[0] + sequence * given[1], at, keep)
                    (state + row * self.layout.padded).store(value, at)

    def _sequence(self, row: Value) -> Value:
        """The sequence of a row: rows past the batch's end repeat its last one, and write the same again."""
        return minimum(self.first + row, self.batch - 1)

    def _vectors(self) -> Iterator[tuple[Operand, Value | None]]:
        """The vectors of a row of `hidden` elements, the whole ones in a loop: where each starts, and a mask for one
        that is not whole."""
        lanes, hidden = self.layout.lanes, self.spec.hidden
        whole = hidden // lanes * lanes
        if whole:
            with self.k.loop(whole, step=lanes) as at:
                yield at, None
        if whole < hidden:
            yield whole, self.k.constant_vector(BOOL, [whole + i < hidden for i in range(lanes)])

    def _load(self, row: Pointer, at: Operand, keep: Value | None) -> Value:
        return row.load(at, self.layout.lanes) if keep is None else row.load_masked(keep, at)

    def _store(self, row: Pointer, value: Value, at: Operand, keep: Value | None) -> None:
        if keep is None:
            row.store(value, at)
        else:
            row.store_masked(keep, value, at)

    def step(self, step: Value) -> None:
        """One step of all rows; those whose sequence has ended give zeros and keep their states."""
        k, spec = self.k, self.spec
        self._multiply(0, self.states["h"])
        if self.reset is not None:
            with k.loop(spec.rows) as row, k.when(step < self.ends.load(row)):
                sequence = _Row(self, row, self._gates(step, row))
                for at, keep in self._vectors():
                    sequence.reset_hidden(at, keep)
            self._multiply(1, self.reset)
        zero = k.constant(spec.dtype, 0.0, self.layout.lanes)
        with k.loop(spec.rows) as row:
            end = self.ends.load(row)
            with k.when(step < end):
                y = self._y(end - 1 - step if spec.reverse else step, row)
                sequence = _Row(self, row, self._gates(step, row), y)
                for at, keep in self._vectors():
                    sequence.cell(at, keep)
            with k.otherwise():
                y = self._y(step, row)
                if y is not None:
                    for at, keep in self._vectors():
                        self._store(y, zero, at, keep)

    def _gates(self, step: Value, row: Value) -> Pointer:
        """The inputs' share of a row's gates in a step that its sequence has."""
        place = self.ends.load(row) - 1 - step if self.spec.reverse else step
        return self.gates + (place * self.gates_step + self._sequence(row) * self.gates_batch)

    def _y(self, place: Value, row: Value) -> Pointer | None:
        return None if self.y is None else self.y + (place * self.y_step + self._sequence(row) * self.y_batch)

    def _multiply(self, part: int, state: Pointer) -> None:
        """products = state times the part's weights, a panel of columns at a time."""
        k, spec, layout = self.k, self.spec, self.layout
        padded, lanes = layout.padded, layout.lanes
        bytes_ = lanes * spec.dtype.bits // 8
        before = sum(layout.columns(count) for count in spec.parts[:part])
        weights, first = self.recurrent + before * spec.hidden, sum(spec.parts[:part]) * padded
        rows, vectors = range(spec.rows), range(layout.vectors)
        zero = k.constant(spec.dtype, 0.0, lanes)
        with k.loop(layout.columns(spec.parts[part]), step=layout.panel) as column:
            panel = weights + column * spec.hidden
            sums = k.variables({(r, j): zero for r in rows for j in vectors})
            with k.loop(spec.hidden) as i:
                line = panel + i * layout.panel
                columns = [line.load(j * lanes, lanes, align=bytes_) for j in vectors]
                for r in rows:
                    element = broadcast(state.load(i + r * padded), lanes)
                    for j in vectors:
                        sums[r, j] = fma(element, columns[j], sums[r, j])
            for r in rows:
                for j in vectors:
                    self.products.store(sums[r, j], column + (r * self.width + first + j * lanes))

    def finish(self) -> None:
        """Store the last states."""
        with self.k.loop(self.spec.rows) as row:
            for name, (to, stride) in self.last.items():
                target = to + self._sequence(row) * stride
                state = self.states[name] + row * self.layout.padded
                for at, keep in self._vectors():
                    self._store(target, state.load(at, self.layout.lanes), at, keep)


@dataclass(frozen=True, slots=True)
class _Row:
    """One sequence in one step: `reset_hidden` and `cell` compute a vector of its states, from element `at` on."""

    steps: _Steps
    row: Value
    gates: Pointer
    y: Pointer | None = None

    def _state(self, name: str) -> Pointer:
        return self.steps.states[name] + self.row * self.steps.layout.padded

    def _product(self, gate: int, at: Operand, keep: Value | None) -> Value:
        """h R' with its bias, of a gate."""
        s = self.steps
        product = (s.products + self.row * s.width).load(s.k.index(at) + gate * s.layout.padded, s.layout.lanes)
        return product if s.bias is None else product + self._gate(s.bias, gate, at, keep)

    def _gate(self, row: Pointer, gate: int, at: Operand, keep: Value | None) -> Value:
        return self.steps._load(row + gate * self.steps.spec.hidden, at, keep)

    def _argument(self, gate: int, at: Operand, keep: Value | None) -> Value:
        """What enters a gate's activation."""
        return self._gate(self.gates, gate, at, keep) + self._product(gate, at, keep)

    def reset_hidden(self, at: Operand, keep: Value | None) -> None:
        """GRU: what the candidate's weights are multiplied with, r h."""
        s = self.steps
        reset = s.spec.activations[0](self._argument(1, at, keep), s.spec.clip)
        assert s.reset is not None
        (s.reset + self.row * s.layout.padded).store(reset * self._state("h").load(at, reset.lanes), at)

    def cell(self, at: Operand, keep: Value | None) -> None:
        """The new states."""
        s = self.steps
        hidden = {"rnn": self._rnn, "gru": self._gru, "lstm": self._lstm}[s.spec.cell](at, keep)
        self._state("h").store(hidden, at)
        if self.y is not None:
            s._store(self.y, hidden, at, keep)

    def _rnn(self, at: Operand, keep: Value | None) -> Value:
        (f,) = self.steps.spec.activations
        return f(self._argument(0, at, keep), self.steps.spec.clip)

    def _gru(self, at: Operand, keep: Value | None) -> Value:
        spec = self.steps.spec
        f, g = spec.activations
        update = f(self._argument(0, at, keep), spec.clip)
        if spec.linear_before_reset:
            reset = f(self._argument(1, at, keep), spec.clip)
            argument = self._gate(self.gates, 2, at, keep) + reset * self._product(2, at, keep)
        else:
            argument = self._argument(2, at, keep)
        candidate = g(argument, spec.clip)
        return (1.0 - update) * candidate + update * self._state("h").load(at, update.lanes)

    def _lstm(self, at: Operand, keep: Value | None) -> Value:
        s, spec = self.steps, self.steps.spec
        f, g, h = spec.activations
        i, o, forget, c = (self._argument(gate, at, keep) for gate in range(4))
        state = self._state("c").load(at, i.lanes)
        if s.peephole is not None:
            i = i + self._gate(s.peephole, 0, at, keep) * state
            forget = forget + self._gate(s.peephole, 2, at, keep) * state
        entering = f(i, spec.clip)
        keeping = 1.0 - entering if spec.input_forget else f(forget, spec.clip)
        new = keeping * state + entering * g(c, spec.clip)
        if s.peephole is not None:
            o = o + self._gate(s.peephole, 1, at, keep) * new
        self._state("c").store(new, at)
        # The output's activation sees the cell state as it is.
        return f(o, spec.clip) * h(new)
