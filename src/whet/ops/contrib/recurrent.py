"""DynamicQuantizeLSTM: an LSTM whose weights are 8-bit and whose activations are quantized step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.contrib.activation import activate
from whet.ops.contrib.common import (
    Array,
    Attributes,
    Inputs,
    Outputs,
    expect_one_of_shapes,
    expect_rank,
    expect_shape,
    integer,
    optional,
    required,
    text,
    trim,
)
from whet.ops.contrib.quantized_matmul import integer_matmul, quantize_dynamically

_DEFAULT_ACTIVATIONS = ("Sigmoid", "Tanh", "Tanh")


@dataclass(frozen=True)
class _Weights:
    """One direction's 8-bit matrix (rows, 4 * hidden), its scale and zero point per tensor or per column."""

    matrix: Array
    scale: Array
    zero_point: Array

    def apply(self, x: Array) -> Array:
        """x, quantized to uint8 as a whole, times the matrix, scaled back."""
        rounded, x_scale, x_zero = quantize_dynamically(x)
        sums = integer_matmul(rounded, x_zero, self.matrix, self.zero_point)
        return np.asarray(sums.astype(x.dtype) * (x_scale * self.scale))


def dynamic_quantize_lstm(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Y (seq, directions, batch, hidden), Y_h and Y_c (directions, batch, hidden); gates are ordered i, o, f, c."""
    x = required(inputs, 0, "X")
    expect_rank(x, 3, "X")
    sequence, batch, size = x.shape
    direction = text(attributes, "direction", "forward", ("forward", "reverse", "bidirectional"))
    directions = 2 if direction == "bidirectional" else 1
    r = required(inputs, 2, "R")
    expect_rank(r, 3, "R")
    hidden = integer(attributes, "hidden_size", r.shape[1], least=1)
    w = required(inputs, 1, "W")
    expect_shape(w, (directions, size, 4 * hidden), "W")
    expect_shape(r, (directions, hidden, 4 * hidden), "R")

    def shaped(index: int, shape: tuple[int, ...], name: str) -> Array:
        array = optional(inputs, index)
        if array is None:
            return np.zeros(shape, dtype=x.dtype)
        expect_shape(array, shape, name)
        return array

    bias = shaped(3, (directions, 8 * hidden), "B")
    start_h, start_c = (shaped(i, (directions, batch, hidden), n) for i, n in ((5, "initial_h"), (6, "initial_c")))
    peepholes = shaped(7, (directions, 3 * hidden), "P")
    lengths = _sequence_lengths(optional(inputs, 4), sequence, batch)
    names = tuple(attributes.get("activations", ())) or _DEFAULT_ACTIVATIONS * directions
    if len(names) != 3 * directions:
        raise InvalidArgument("attribute activations has the wrong length", found=names, expected=3 * directions)
    gates = _activations(names, attributes)

    outputs, finals_h, finals_c = [], [], []
    for d in range(directions):
        backwards = direction == "reverse" or d == 1
        y, h, c = _run(
            _reversed(x, lengths) if backwards else x,
            _direction(w, inputs, 8, d, directions, hidden, "W"),
            _direction(r, inputs, 10, d, directions, hidden, "R"),
            bias[d, : 4 * hidden] + bias[d, 4 * hidden :],
            peepholes[d],
            (start_h[d], start_c[d]),
            lengths,
            gates[3 * d : 3 * d + 3],
            attributes,
        )
        outputs.append(_reversed(y, lengths) if backwards else y)
        finals_h.append(h)
        finals_c.append(c)
    return trim([np.stack(outputs, axis=1), np.stack(finals_h), np.stack(finals_c)], output_count)


def _direction(matrix: Array, inputs: Inputs, index: int, d: int, directions: int, hidden: int, name: str) -> _Weights:
    scale, zero = required(inputs, index, f"{name}_scale"), required(inputs, index + 1, f"{name}_zero_point")
    shapes = [(directions,), (directions, 4 * hidden)]
    expect_one_of_shapes(scale, shapes, f"{name}_scale")
    expect_one_of_shapes(zero, shapes, f"{name}_zero_point")
    return _Weights(matrix[d], scale[d], zero[d].astype(np.int32))


def _sequence_lengths(given: Array | None, sequence: int, batch: int) -> Array:
    if given is None:
        return np.full(batch, sequence)
    expect_shape(given, (batch,), "sequence_lens")
    if (given < 0).any() or (given > sequence).any():
        raise InvalidArgument(
            "sequence_lens is out of range", value="sequence_lens", found=given.tolist(), expected=f"[0, {sequence}]"
        )
    return given


def _reversed(x: Array, lengths: Array) -> Array:
    result = x.copy()
    for entry, length in enumerate(lengths):
        result[:length, entry] = x[:length, entry][::-1]
    return result


def _activations(names: tuple[str, ...], attributes: Attributes) -> list[Callable[[Array], Array]]:
    """One function per gate; alpha and beta go to the activations that take them, in order."""
    alphas = list(attributes.get("activation_alpha", ()))
    betas = list(attributes.get("activation_beta", ()))
    takes_alpha = {"leakyrelu", "thresholdedrelu", "elu", "affine", "scaledtanh", "hardsigmoid"}
    takes_beta = {"affine", "scaledtanh", "hardsigmoid"}
    functions: list[Callable[[Array], Array]] = []
    for name in names:
        parameters: list[float] = []
        if name.lower() in takes_alpha and alphas:
            parameters.append(alphas.pop(0))
            if name.lower() in takes_beta and betas:
                parameters.append(betas.pop(0))
        functions.append(partial(_activate, name, tuple(parameters)))
    return functions


def _activate(name: str, parameters: tuple[float, ...], x: Array) -> Array:
    return activate(name, x, parameters)


def _run(
    x: Array,
    weights: _Weights,
    recurrence: _Weights,
    bias: Array,
    peepholes: Array,
    start: tuple[Array, Array],
    lengths: Array,
    functions: list[Callable[[Array], Array]],
    attributes: Attributes,
) -> tuple[Array, Array, Array]:
    """One direction, first step to last: outputs (zero past each length), final hidden and cell state."""
    sequence, batch, size = x.shape
    hidden = bias.shape[0] // 4
    clip = float(attributes.get("clip", 0.0)) or np.inf
    coupled = bool(integer(attributes, "input_forget", 0, least=0, most=1))
    to_gate, to_cell, to_hidden = functions
    p_input, p_output, p_forget = np.split(peepholes, 3)
    projected = weights.apply(x.reshape(sequence * batch, size)).reshape(sequence, batch, 4 * hidden) + bias
    h, c = start
    outputs = np.zeros((sequence, batch, hidden), dtype=x.dtype)

    def clipped(values: Array) -> Array:
        return np.asarray(np.clip(values, -clip, clip))

    for step in range(int(lengths.max(initial=0))):
        gates = projected[step] + recurrence.apply(h)
        i_raw, o_raw, f_raw, c_raw = np.split(gates, 4, axis=1)
        opened = to_gate(clipped(i_raw + p_input * c))
        kept = 1 - opened if coupled else to_gate(clipped(f_raw + p_forget * c))
        cell = kept * c + opened * to_cell(clipped(c_raw))
        shown = to_gate(clipped(o_raw + p_output * cell)) * to_hidden(cell)
        alive = (step < lengths)[:, None]
        h, c = np.where(alive, shown, h), np.where(alive, cell, c)
        outputs[step] = np.where(alive, shown, 0)
    return outputs, h, c
