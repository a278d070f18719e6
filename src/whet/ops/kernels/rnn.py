"""RNN, GRU and LSTM with every attribute: directions, lengths, clipping, activations, peepholes, layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.base import Kernel
from whet.ops.contrib.common import (
    Array,
    Attributes,
    Inputs,
    Outputs,
    expect_rank,
    expect_shape,
    integer,
    optional,
    required,
    text,
)
from whet.ops.kernels.activation import sigmoid, softplus, softsign
from whet.ops.kernels.common import back, working

Function = Callable[[Array], Array]

# Each activation: its function of x, alpha and beta, and the default alpha and beta (None: it takes none).
_ACTIVATIONS: dict[str, tuple[Callable[[Array, float, float], Array], float | None, float | None]] = {
    "affine": (lambda x, a, b: x * x.dtype.type(a) + x.dtype.type(b), 1.0, 0.0),
    "elu": (lambda x, a, b: np.where(x < 0, np.expm1(np.minimum(x, 0)) * x.dtype.type(a), x), 1.0, None),
    "hardsigmoid": (lambda x, a, b: np.clip(x * x.dtype.type(a) + x.dtype.type(b), 0, 1), 0.2, 0.5),
    "leakyrelu": (lambda x, a, b: np.where(x < 0, x * x.dtype.type(a), x), 0.01, None),
    "relu": (lambda x, a, b: np.maximum(x, 0), None, None),
    "scaledtanh": (lambda x, a, b: np.tanh(x * x.dtype.type(b)) * x.dtype.type(a), 1.0, 1.0),
    "sigmoid": (lambda x, a, b: sigmoid(x), None, None),
    "softplus": (lambda x, a, b: softplus(x), None, None),
    "softsign": (lambda x, a, b: softsign(x), None, None),
    "tanh": (lambda x, a, b: np.tanh(x), None, None),
    "thresholdedrelu": (lambda x, a, b: np.where(x > x.dtype.type(a), x, x.dtype.type(0)), 1.0, None),
}


@dataclass(frozen=True, slots=True)
class _Direction:
    """The operands of one direction: what is added to each step's gates, recurrent weights and bias, functions."""

    gates: Array
    """(T, B, G * H): X times the input weights, with the input bias."""
    recurrent: Array
    """(H, G * H)."""
    recurrent_bias: Array
    """(G * H,)."""
    hidden: Array
    cell: Array | None
    peephole: Array | None
    functions: tuple[Function, ...]


def _functions(attributes: Attributes, defaults: tuple[str, ...], directions: int) -> list[tuple[Function, ...]]:
    names = attributes.get("activations") or defaults * directions
    if len(names) != len(defaults) * directions:
        raise InvalidArgument(
            "attribute activations has the wrong length", found=len(names), expected=len(defaults) * directions
        )
    alphas, betas = list(attributes.get("activation_alpha", ())), list(attributes.get("activation_beta", ()))
    clip = float(attributes.get("clip", 0.0))
    result: list[Function] = []
    for name in names:
        known = _ACTIVATIONS.get(str(name).lower())
        if known is None:
            raise InvalidArgument("attribute activations has an unknown name", found=name, expected=list(_ACTIVATIONS))
        function, alpha, beta = known
        if alpha is not None and alphas:
            alpha = float(alphas.pop(0))
        if beta is not None and betas:
            beta = float(betas.pop(0))
        # The output activation of an LSTM sees the cell state as it is; only what enters the gates is clipped.
        limit = 0.0 if len(defaults) == 3 and len(result) % 3 == 2 else clip
        result.append(_bound(function, alpha or 0.0, beta or 0.0, limit))
    size = len(defaults)
    return [tuple(result[i * size : (i + 1) * size]) for i in range(directions)]


def _bound(function: Callable[[Array, float, float], Array], alpha: float, beta: float, clip: float) -> Function:
    if clip > 0:
        return lambda x: function(np.clip(x, -clip, clip), alpha, beta)
    return lambda x: function(x, alpha, beta)


Cell = Callable[[Array, Array, Array | None, _Direction, Attributes], tuple[Array, Array | None]]
"""One step: gates from the input, hidden state, cell state and operands to the new states."""


def _run(
    inputs: Inputs, attributes: Attributes, output_count: int, gates: int, defaults: tuple[str, ...], cell: Cell
) -> Outputs:
    """Run a cell over the sequence: X (T, B, I), W (D, G H, I), R (D, G H, H), B (D, 2 G H)."""
    given = required(inputs, 0, "X")
    x, w, r = working(given), working(required(inputs, 1, "W")), working(required(inputs, 2, "R"))
    for operand, name in ((x, "X"), (w, "W"), (r, "R")):
        expect_rank(operand, 3, name)
    layout = integer(attributes, "layout", 0, least=0, most=1)
    if layout:
        x = x.swapaxes(0, 1)
    direction = text(attributes, "direction", "forward", ("forward", "reverse", "bidirectional"))
    directions = 2 if direction == "bidirectional" else 1
    hidden = integer(attributes, "hidden_size", r.shape[2], least=1)
    steps, batch, size = x.shape
    expect_shape(w, (directions, gates * hidden, size), "W")
    expect_shape(r, (directions, gates * hidden, hidden), "R")
    bias = optional(inputs, 3)
    if bias is None:
        bias = np.zeros((directions, 2 * gates * hidden), x.dtype)
    expect_shape(bias, (directions, 2 * gates * hidden), "B")
    states = [_state(inputs, index, name, layout, (directions, batch, hidden), x) for index, name in _STATES]
    peephole = optional(inputs, 7)
    if peephole is not None:
        expect_shape(peephole, (directions, 3 * hidden), "P")
    lengths = optional(inputs, 4)
    if lengths is not None:
        expect_shape(lengths, (batch,), "sequence_lens")
        if lengths.size and not (int(lengths.min()) >= 0 and int(lengths.max()) <= steps):
            raise InvalidArgument(
                "a length is out of range", value="sequence_lens", found=lengths.tolist(), expected=f"[0, {steps}]"
            )
    functions = _functions(attributes, defaults, directions)
    outputs, hiddens, cells = [], [], []
    for number in range(directions):
        backward = direction == "reverse" or number == 1
        order = _order(steps, batch, lengths) if backward else None
        sequence = x if order is None else np.take_along_axis(x, order[:, :, None], axis=0)
        split = gates * hidden
        operands = _Direction(
            np.matmul(sequence, w[number].T) + bias[number, :split],
            r[number].T,
            bias[number, split:],
            states[0][number],
            states[1][number] if gates == 4 else None,
            None if peephole is None else peephole[number],
            functions[number],
        )
        y, h, c = _sequence(operands, lengths, cell, attributes)
        outputs.append(y if order is None else np.take_along_axis(y, order[:, :, None], axis=0))
        hiddens.append(h)
        cells.append(c)
    stacked = np.stack(outputs, axis=1)
    results = [stacked, np.stack(hiddens), *([np.stack([c for c in cells if c is not None])] if gates == 4 else [])]
    if layout:
        results = [stacked.transpose(2, 0, 1, 3), *(state.swapaxes(0, 1) for state in results[1:])]
    return [back(result, given.dtype) for result in results][: max(output_count, 1)]


_STATES = ((5, "initial_h"), (6, "initial_c"))


def _state(inputs: Inputs, index: int, name: str, layout: int, shape: tuple[int, int, int], x: Array) -> Array:
    state = optional(inputs, index)
    if state is None:
        return np.zeros(shape, x.dtype)
    if layout:
        state = state.swapaxes(0, 1)
    expect_shape(state, shape, name)
    return working(state)


def _order(steps: int, batch: int, lengths: Array | None) -> Array:
    """For each step and sequence the step that takes its place when only the valid part is reversed."""
    step = np.broadcast_to(np.arange(steps)[:, None], (steps, batch))
    if lengths is None:
        return step[::-1]
    return np.where(step < lengths, lengths.astype(np.int64) - 1 - step, step)


def _sequence(
    d: _Direction, lengths: Array | None, cell: Cell, attributes: Attributes
) -> tuple[Array, Array, Array | None]:
    hidden, state = d.hidden, d.cell
    y = np.zeros((d.gates.shape[0], *hidden.shape), hidden.dtype)
    for step, gates in enumerate(d.gates):
        new_hidden, new_state = cell(gates, hidden, state, d, attributes)
        if lengths is None:
            hidden, state = new_hidden, new_state
            y[step] = hidden
            continue
        going = (step < lengths)[:, None]
        hidden = np.where(going, new_hidden, hidden)
        if state is not None and new_state is not None:
            state = np.where(going, new_state, state)
        y[step] = np.where(going, new_hidden, 0)
    return y, hidden, state


def _rnn_cell(
    gates: Array, hidden: Array, state: Array | None, d: _Direction, attributes: Attributes
) -> tuple[Array, Array | None]:
    return d.functions[0](gates + np.matmul(hidden, d.recurrent) + d.recurrent_bias), None


def _gru_cell(
    gates: Array, hidden: Array, state: Array | None, d: _Direction, attributes: Attributes
) -> tuple[Array, Array | None]:
    size = hidden.shape[1]
    f, g = d.functions
    linear = bool(attributes.get("linear_before_reset", 0))
    width = 3 * size if linear else 2 * size
    product = np.matmul(hidden, d.recurrent[:, :width]) + d.recurrent_bias[:width]
    update, reset = np.split(f(gates[:, : 2 * size] + product[:, : 2 * size]), 2, axis=1)
    if linear:
        candidate = reset * product[:, 2 * size :]
    else:
        candidate = np.matmul(reset * hidden, d.recurrent[:, 2 * size :]) + d.recurrent_bias[2 * size :]
    candidate = g(gates[:, 2 * size :] + candidate)
    return (1 - update) * candidate + update * hidden, None


def _lstm_cell(
    gates: Array, hidden: Array, state: Array | None, d: _Direction, attributes: Attributes
) -> tuple[Array, Array | None]:
    assert state is not None
    f, g, h = d.functions
    i, o, forget, c = np.split(gates + np.matmul(hidden, d.recurrent) + d.recurrent_bias, 4, axis=1)
    if d.peephole is not None:
        p_i, p_o, p_f = np.split(d.peephole.astype(gates.dtype, copy=False), 3)
        i, forget = i + p_i * state, forget + p_f * state
    entering = f(i)
    keeping = 1 - entering if attributes.get("input_forget", 0) else f(forget)
    new = keeping * state + entering * g(c)
    if d.peephole is not None:
        o = o + p_o * new
    return f(o) * h(new), new


def rnn(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """RNN(22)."""
    return _run(inputs, attributes, output_count, 1, ("Tanh",), _rnn_cell)


def gru(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """GRU(22): gates update, reset, candidate."""
    return _run(inputs, attributes, output_count, 3, ("Sigmoid", "Tanh"), _gru_cell)


def lstm(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """LSTM(22): gates input, output, forget, candidate."""
    return _run(inputs, attributes, output_count, 4, ("Sigmoid", "Tanh", "Tanh"), _lstm_cell)


RECURRENT: dict[str, Kernel] = {"GRU": gru, "LSTM": lstm, "RNN": rnn}
