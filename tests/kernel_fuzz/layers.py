"""Attention, recurrent layers and forests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.codegen.target import Target
from whet.dtypes import BOOL, FLOAT32, FLOAT64, INT32, INT64
from whet.kernels.attention import Attention
from whet.kernels.base import BAD_VALUE
from whet.kernels.rnn import ACTIVATIONS, GATES, Activation, Recurrence, pack_recurrent
from whet.kernels.trees import SIDE_BY_SIDE, Forest, TreeEnsemble, build_forest

from .call import Array, Call, Operand
from .draw import Draw
from .operands import given, made


def attention_spec(draw: Draw, target: Target) -> Attention:
    causal = draw.chance(0.3)
    left, right = draw.chance(0.3), not causal and draw.chance(0.2)
    lengths = draw.one((None, None, INT32, INT64))
    return Attention(
        draw.one((1, 3, 8, 16, 20, 32)), draw.one((1, 4, 7, 16, 24)), draw.one((None, 0.25)), causal, left, right,
        draw.one((None, None, FLOAT32, BOOL)), lengths, lengths is not None and draw.chance(0.4),
        draw.one((0.0, 0.0, 5.0)), draw.chance(0.2), draw.one((64, 64, 16, 128)),
    )  # fmt: skip


def attention_call(draw: Draw, spec: Attention, target: Target) -> Call:
    key_heads, group = draw.one((1, 1, 2)), draw.one((1, 1, 2, 3))
    batch, heads = draw.one((0, 1, 1, 1, 2)), key_heads * group
    queries = draw.one((0, 1, 1, 2, 4, 5, 15, 16, 17, 33, 64, 65, 70))
    keys = draw.one((0, 1, 2, 5, 12, 13, 31, 64, 70, 191, 193, 200))
    if batch * heads * queries * keys > 40000:
        keys = keys % 70
    words: dict[str, Operand | int] = {"query_heads": heads, "key_heads": key_heads, "queries": queries, "keys": keys}
    inputs = {}
    for name, shape in {
        "q": (batch, heads, queries, spec.head), "k": (batch, key_heads, keys, spec.head),
        "v": (batch, key_heads, keys, spec.value_head),
    }.items():  # fmt: skip
        inputs[name] = draw.values(FLOAT32, shape)
        words[name] = given(FLOAT32, inputs[name], draw.strides(shape, 3))
    scale = 0.25 if spec.scale is None else spec.scale
    if spec.scale is None:
        words["scale"] = int(np.float32(scale).view(np.int32))
    k, v = (np.repeat(inputs[name].astype(np.float64), group, axis=1) for name in "kv")
    scores = np.matmul(inputs["q"].astype(np.float64), k.swapaxes(-1, -2)) * scale
    if spec.softcap:
        scores = np.tanh(scores / spec.softcap) * spec.softcap
    scores = _masked(draw, spec, scores, words)
    scores = np.where(_seen(draw, spec, scores.shape, words), scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    sink = None
    if spec.sink:
        numbers = draw.values(FLOAT32, (heads,))
        words["sink"] = given(FLOAT32, numbers)
        sink = numbers.astype(np.float64).reshape(1, -1, 1, 1)
        top = np.maximum(top, sink)
    top = np.where(np.isneginf(top), 0.0, top)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True) + (0.0 if sink is None else np.exp(sink - top))
    y = np.matmul(weights / np.where(total == 0, 1.0, total), v)
    # The softmax of a capped or long score carries rounding errors into its exponent.
    words["y"] = made(FLOAT32, y.shape, draw.strides(y.shape, 3), y, 5e-5, 2e-5)
    for name in "qkvy":
        operand = words[name]
        assert isinstance(operand, Operand)
        words |= operand.strides(f"{name}_batch", f"{name}_head", f"{name}_row", "")
    return Call(words, spec.tiles(target, batch, heads, queries))


def _masked(draw: Draw, spec: Attention, scores: Array, words: dict[str, Operand | int]) -> Array:
    if spec.mask is None:
        return scores
    strides = draw.strides(scores.shape, shared=True)
    mask = draw.values(spec.mask, [1 if s == 0 else e for e, s in zip(scores.shape, strides, strict=True)])
    if spec.mask is FLOAT32:
        mask = np.where(draw.rng.random(mask.shape) < 0.1, np.float32(-np.inf), mask)
    mask = np.broadcast_to(mask, scores.shape)
    operand = given(spec.mask, mask, strides)
    words |= {"mask": operand, **operand.strides("mask_batch", "mask_head", "mask_row", "mask_key")}
    return np.where(mask, scores, -np.inf) if spec.mask is BOOL else scores + mask


def _seen(draw: Draw, spec: Attention, shape: tuple[int, ...], words: dict[str, Operand | int]) -> Array:
    batch, _, queries, keys = shape
    lengths = np.full(batch, keys)
    if spec.lengths is not None:
        lengths = draw.rng.integers(-2, keys + 3, batch)
        words["lengths"] = given(spec.lengths, lengths)
        lengths = np.clip(lengths, 0, keys)
    offset = np.zeros(batch, np.int64)
    if spec.offset_from_lengths:
        offset = lengths - queries
    elif spec.bounded:
        # Positions beyond all keys are fair, too.
        offset[:] = words["offset"] = draw.one((0, 0, keys - queries, draw.integer(-5, keys + 5)))
    row, key = np.arange(queries)[:, None] + offset[:, None, None], np.arange(keys)
    seen = np.broadcast_to(key < lengths[:, None, None], (batch, queries, keys))
    if spec.causal:
        seen = seen & (key <= row)
    elif spec.right_window:
        words["right"] = draw.one((0, 1, 7, 1000, 2**62))
        seen = seen & (key <= row + min(int(words["right"]), 10**6))  # type: ignore[arg-type]
    if spec.left_window:
        words["left"] = draw.one((0, 1, 7, 1000, 2**62))
        seen = seen & (key >= row - min(int(words["left"]), 10**6))  # type: ignore[arg-type]
    return np.asarray(seen)[:, None]


_SIGMOID, _TANH, _RELU = Activation("sigmoid"), Activation("tanh"), Activation("relu")
_FUNCTIONS: dict[str, Any] = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "tanh": np.tanh, "relu": lambda x: np.maximum(x, 0),
}  # fmt: skip


def rnn_spec(draw: Draw, target: Target) -> Recurrence:
    cell = draw.one(("rnn", "gru", "lstm"))
    count = {"rnn": 1, "gru": 2, "lstm": 3}[cell]
    if draw.chance(0.7):
        chosen = tuple(draw.one((_SIGMOID, _TANH, _RELU)) for _ in range(count))
    else:
        chosen = tuple(Activation(draw.one(list(ACTIVATIONS)), 0.3, 0.6) for _ in range(count))
    lstm = cell == "lstm"
    linear = cell == "gru" and draw.chance(0.5)
    return Recurrence(
        cell, draw.one((FLOAT32, FLOAT32, FLOAT64)), draw.one((1, 2, 5, 8, 9, 16, 17, 33)), chosen, draw.integer(1, 4),
        draw.one((0.0, 0.0, 0.7)), draw.chance(0.4), linear, lstm and draw.chance(0.3), linear or draw.chance(0.3),
        lstm and draw.chance(0.3), draw.chance(0.4), draw.chance(0.5), lstm and draw.chance(0.5), draw.chance(0.8),
        draw.chance(0.7), lstm and draw.chance(0.7),
    )  # fmt: skip


def rnn_call(draw: Draw, spec: Recurrence, target: Target) -> Call:
    steps, batch, hidden, dtype = draw.extent(4), draw.extent(6), spec.hidden, spec.dtype
    width = GATES[spec.cell] * hidden
    gates = draw.values(dtype, (steps, batch, width))
    weights = (draw.values(dtype, (width, hidden)) / max(hidden, 1) ** 0.5).astype(dtype.numpy)
    words: dict[str, Operand | int] = {"steps": steps, "batch": batch}
    gate_operand = given(dtype, gates, draw.strides(gates.shape, 2))
    words |= {"gates": gate_operand, **gate_operand.strides("gates_step", "gates_batch", "")}
    words["recurrent"] = given(dtype, pack_recurrent(spec, target, weights), align=64)
    parts: dict[str, Array] = {}
    for name, size in (("recurrent_bias", width), ("peephole", 3 * hidden)):
        if getattr(spec, name):
            parts[name] = draw.values(dtype, (size,))
            words[name] = given(dtype, parts[name])
    lengths, fails = np.full(batch, steps), ()
    if spec.lengths:
        lengths = draw.rng.integers(0, steps + 1, batch)
        if batch and draw.chance(0.1):
            lengths[draw.integer(0, batch - 1)] = draw.one((-1, steps + 1, 2**31 - 1))
            fails = (BAD_VALUE,)  # type: ignore[assignment]
        words["lengths"] = given(INT32, lengths)
    states = {s: np.zeros((batch, hidden)) for s in "hc"}
    for s in "hc":
        if getattr(spec, f"initial_{s}"):
            state = draw.values(dtype, (batch, hidden))
            operand = given(dtype, state, draw.strides(state.shape, 1))
            words |= {f"initial_{s}": operand, **operand.strides(f"initial_{s}_batch", "")}
            states[s] = state.astype(np.float64)
    expected = None if fails else _states(spec, gates, weights, parts, lengths, states)
    limit = 1e-4 if dtype is FLOAT32 else 1e-11
    if expected is not None:
        # Gates without a bound make states grow, and rounding errors with them.
        limit *= (1 + float(np.abs(expected).max(initial=0))) ** 2
    if spec.y:
        y = made(dtype, (steps, batch, hidden), draw.strides((steps, batch, hidden), 2), expected, limit, limit)
        words |= {"y": y, **y.strides("y_step", "y_batch", "")}
    for s in "hc":
        if getattr(spec, f"last_{s}"):
            wanted = states[s] if expected is not None else None
            last = made(dtype, (batch, hidden), draw.strides((batch, hidden), 1), wanted, limit, limit)
            words |= {f"last_{s}": last, **last.strides(f"last_{s}_batch", "")}
    return Call(words, -(-batch // spec.rows), fails)


def _states(
    spec: Recurrence, gates: Array, weights: Array, parts: dict[str, Array], lengths: Array, states: dict[str, Array]
) -> Array | None:
    """All states (the last ones in place in `states`); None for activations that are left to other tests."""
    if any(a.name not in _FUNCTIONS for a in spec.activations):
        return None
    steps, batch, width = gates.shape
    hidden, r = spec.hidden, weights.astype(np.float64)
    count = width // hidden
    bias = parts.get("recurrent_bias", np.zeros(width)).astype(np.float64)
    pi, po, pf = np.split(parts.get("peephole", np.zeros(3 * hidden)).astype(np.float64), 3)
    y = np.zeros((steps, batch, hidden))

    def f(number: int, x: Array) -> Array:
        clipped = np.clip(x, -spec.clip, spec.clip) if spec.clip else x
        return np.asarray(_FUNCTIONS[spec.activations[number].name](clipped))

    for b in range(batch):
        h, c = states["h"][b], states["c"][b]
        for place in range(int(lengths[b]))[:: -1 if spec.reverse else 1]:
            x = np.split(gates[place, b].astype(np.float64), count)
            p = np.split(r @ h + bias, count)
            if spec.cell == "rnn":
                h = f(0, x[0] + p[0])
            elif spec.cell == "gru":
                update, reset = f(0, x[0] + p[0]), f(0, x[1] + p[1])
                inner = r[2 * hidden :] @ (reset * h) + bias[2 * hidden :]
                h = (1 - update) * f(1, x[2] + (reset * p[2] if spec.linear_before_reset else inner)) + update * h
            else:
                i = f(0, x[0] + p[0] + pi * c)
                keep = 1 - i if spec.input_forget else f(0, x[2] + p[2] + pf * c)
                c = keep * c + i * f(1, x[3] + p[3])
                output = f(0, x[1] + p[1] + po * c)
                h = output * np.asarray(_FUNCTIONS[spec.activations[2].name](c))
            y[place, b] = h
        states["h"][b], states["c"][b] = h, c
    return y


@dataclass(frozen=True)
class Grown:
    """A forest and the kernel for it."""

    kernel: TreeEnsemble
    forest: Forest
    trees: tuple[tuple[int, ...], ...]


_MODES = ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ")


def forest_spec(draw: Draw, target: Target) -> Grown:
    features, targets = draw.integer(1, 5), draw.integer(1, 4)
    modes: list[Any] = []
    columns: list[int] = []
    thresholds: list[float] = []
    children: list[tuple[int, int]] = []
    votes: list[tuple[int, int, float]] = []
    uniform = draw.one((*_MODES, None, None, "MEMBER"))
    sets = [[float(draw.integer(-4, 4)) for _ in range(draw.integer(0, 3))] for _ in range(3)]

    def grow(depth: int) -> int:
        number = len(modes)
        leaf = depth == 0 or draw.chance(0.25)
        mode = "LEAF" if leaf else uniform or draw.one((*_MODES, "MEMBER"))
        modes.append(mode)
        columns.append(draw.integer(0, features - 1))
        thresholds.append(float(draw.integer(0, 2)) if mode == "MEMBER" else draw.integer(-8, 8) / 2)
        children.append((0, 0))
        if leaf:
            for t in range(targets):
                if draw.chance(0.6):
                    votes.append((number, t, draw.random.uniform(0 if draw.chance(0.5) else -1, 1)))
        else:
            children[number] = (grow(depth - 1), grow(depth - 1))
        return number

    roots = [grow(draw.integer(0, 4)) for _ in range(draw.integer(0, 7))]
    if not modes:
        roots = [grow(0)]
    missing = [draw.chance(0.3) and uniform is None for _ in modes]
    forest = build_forest(
        modes=modes, features=np.array(columns), thresholds=np.array(thresholds),
        on_true=np.array([c[0] for c in children]), on_false=np.array([c[1] for c in children]),
        missing_goes_true=np.array(missing), roots=np.array(roots), targets=targets,
        vote_nodes=np.array([v[0] for v in votes], np.int64), vote_targets=np.array([v[1] for v in votes], np.int64),
        vote_weights=np.array([v[2] for v in votes]), members=sets,
    )  # fmt: skip
    classes = draw.one(("none", "none", "scores", "one_sided"))
    transform = draw.one(("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT"))
    if classes == "one_sided" and transform.startswith("SOFTMAX"):
        transform = "NONE"
    kernel = TreeEnsemble.of(
        forest, draw.one((FLOAT32, FLOAT64, INT32, INT64)), draw.one((FLOAT32, FLOAT32, FLOAT64)),
        aggregate=draw.one(("SUM", "AVERAGE", "MIN", "MAX")), base=draw.one((0, 1, targets)), transform=transform,
        classes=classes, positive=draw.chance(0.5), one_target=draw.integer(0, targets - 1),
    )  # fmt: skip
    return Grown(kernel, forest, ())


def forest_call(draw: Draw, plan: Grown, target: Target) -> Call:
    spec, forest = plan.kernel, plan.forest
    samples = draw.extent(20)
    columns = spec.features + draw.one((0, 0, 0, 2))
    fails: tuple[int, ...] = ()
    if spec.features and draw.chance(0.05):
        columns, fails = spec.features - 1, (BAD_VALUE,)
    x = np.floor(draw.values(FLOAT64, (samples, columns)) * 4) / 2
    if spec.input.is_float and draw.chance(0.3):
        x = np.where(draw.rng.random(x.shape) < 0.1, np.nan, x)
    x_operand = given(spec.input, x.astype(spec.input.numpy), draw.strides(x.shape, 1))
    width = spec.targets if spec.classes != "one_sided" else 1 if spec.transform == "PROBIT" else 2
    y = made(spec.output, (samples, width), draw.strides((samples, width), 1))
    words: dict[str, Operand | int] = {
        "x": x_operand,
        "y": y,
        "groups": len(forest.roots) // SIDE_BY_SIDE,
        "columns": columns,
    }
    words |= {**x_operand.strides("x_row", ""), **y.strides("y_row", "")}
    words |= {"nodes": _bytes(forest.nodes), "votes": _bytes(forest.votes), "roots": given(INT32, forest.roots)}
    if spec.base:
        words["base"] = given(FLOAT64, draw.values(FLOAT64, (spec.base,)))
    if spec.has_members:
        words["members"] = given(FLOAT64, forest.members)
    if spec.classes != "none":
        count = 2 if spec.classes == "one_sided" else spec.targets
        words |= {"labels": given(INT64, draw.values(INT64, (count,))), "label": made(INT64, (samples,))}
    # The number of columns is looked at whatever the grid.
    return Call(words, samples, fails)


def _bytes(table: Array) -> Operand:
    return given(FLOAT64, np.frombuffer(table.tobytes(), np.float64))
