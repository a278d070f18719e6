"""Attention for few queries, one at a time: vectors lie along keys and values, which are each read once."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import (
    Function,
    Pointer,
    Value,
    Variable,
    broadcast,
    fma,
    greater_or_second,
    maximum,
    minimum,
    prefix_mask,
    reduce,
    reduce_sum,
    select,
)
from whet.dtypes import BOOL, FLOAT32, INT64
from whet.kernels.attention_parts import MINUS_INFINITY, Head, finite_maximum, masked
from whet.kernels.base import Frame

_BLOCK_KEYS = 256
_KEYS_AT_ONCE = 4
_VALUE_VECTORS = 8
"""Most vectors of the output that are held in registers."""


class RowMemory:
    """Scratch memory: the scaled query and the output, padded to vectors, and a block's scores."""

    def __init__(self, frame: Frame, head: int, value_head: int) -> None:
        self.lanes = frame.target.lanes(FLOAT32)
        self.head, self.value_head = head, value_head
        self.query = frame.scratch(FLOAT32, -(-head // self.lanes) * self.lanes)
        self.output = frame.scratch(FLOAT32, -(-value_head // self.lanes) * self.lanes)
        self.scores = frame.scratch(FLOAT32, _BLOCK_KEYS)


@dataclass(frozen=True, slots=True)
class _Chunks:
    """A row of `extent` elements as vectors; the last one may be a part."""

    k: Function
    lanes: int
    extent: int

    @property
    def starts(self) -> list[int]:
        return list(range(0, self.extent, self.lanes))

    def _keep(self, start: int) -> Value | None:
        left = self.extent - start
        return self.k.constant_vector(BOOL, [i < left for i in range(self.lanes)]) if left < self.lanes else None

    def load(self, row: Pointer, start: int) -> Value:
        keep = self._keep(start)
        return row.load(start, self.lanes) if keep is None else row.load_masked(keep, start)

    def store(self, row: Pointer, value: Value, start: int) -> None:
        keep = self._keep(start)
        if keep is None:
            row.store(value, start)
        else:
            row.store_masked(keep, value, start)


def attend_rows(k: Function, head: Head, memory: RowMemory) -> None:
    """Compute a tile's rows."""
    queries, values = _Chunks(k, memory.lanes, memory.head), _Chunks(k, memory.lanes, memory.value_head)
    zero = k.constant(FLOAT32, 0.0, memory.lanes)
    with k.loop(head.rows, nonempty=True) as row:
        for start in queries.starts:
            memory.query.store(queries.load(head.q + row * head.q_row, start) * head.query_factor, start)
        for start in values.starts:
            memory.output.store(zero, start)
        top = k.variable(k.constant(FLOAT32, MINUS_INFINITY) if head.sink is None else head.sink)
        total = k.variable(k.constant(FLOAT32, 0.0 if head.sink is None else 1.0))
        first, end = head.first, head.end
        if head.upper is not None:
            end = minimum(end, head.upper + row + 1)
        if head.lower is not None:
            first = maximum(first, head.lower + row)
        with k.loop(end, start=first, step=_BLOCK_KEYS) as key:
            count = minimum(end - key, _BLOCK_KEYS)
            _scores(k, head, memory, queries, key, count)
            _finish_scores(k, head, memory, row, key, count)
            correction = _weights(k, head, memory, count, top, total)
            _weighted_values(k, head, memory, values, key, count, correction)
        factor = 1.0 / select(total.value == 0.0, 1.0, total.value)
        for start in values.starts:
            values.store(head.y + row * head.y_row, memory.output.load(start, memory.lanes) * factor, start)


def _scores(k: Function, head: Head, memory: RowMemory, chunks: _Chunks, key: Value, count: Value) -> None:
    """scores[i] = the product of key + i with the query."""

    def products(first: Value, number: int) -> None:
        rows = [head.k + (key + first + i) * head.k_row for i in range(number)]
        sums = [k.constant(FLOAT32, 0.0, memory.lanes)] * number
        for start in chunks.starts:
            query = memory.query.load(start, memory.lanes)
            sums = [fma(chunks.load(row, start), query, s) for row, s in zip(rows, sums, strict=True)]
        for i, s in enumerate(sums):
            memory.scores.store(reduce_sum(s), first + i)

    whole = count / _KEYS_AT_ONCE * _KEYS_AT_ONCE
    with k.loop(whole, step=_KEYS_AT_ONCE) as i:
        products(i, _KEYS_AT_ONCE)
    with k.loop(count, start=whole) as i:
        products(i, 1)


def _finish_scores(k: Function, head: Head, memory: RowMemory, row: Value, key: Value, count: Value) -> None:
    """Cap, add the mask, and fill the last vector up with minus infinity."""
    lanes = memory.lanes
    with k.loop(count, step=lanes, nonempty=True) as i:
        keep = prefix_mask(count - i, lanes)
        score = k.variable(head.capped(memory.scores.load(i, lanes)))
        if head.mask is not None:
            mask = head.mask + (row * head.mask_row + (key + i) * head.mask_key)
            with k.when(head.mask_key == 1):
                score.value = masked(score.value, mask.load_masked(keep))
            with k.otherwise():
                places = k.constant_vector(INT64, range(lanes)) * head.mask_key
                score.value = masked(score.value, mask.gather(places, keep))
        memory.scores.store(select(keep, score.value, MINUS_INFINITY), i)


def _weights(
    k: Function, head: Head, memory: RowMemory, count: Value, top: Variable[Value], total: Variable[Value]
) -> Value:
    """Turn scores into exp(score - maximum) in place, go on with maximum and sum; the factor for what was summed."""
    lanes, scores = memory.lanes, memory.scores
    tops = k.variable(broadcast(top.value, lanes))
    with k.loop(count, step=lanes, nonempty=True) as i:
        tops.value = greater_or_second(scores.load(i, lanes), tops.value)
    new = reduce(tops.value, greater_or_second)
    base = finite_maximum(new)
    correction = head.exponential(top.value - base)
    sums = k.variable(k.constant(FLOAT32, 0.0, lanes))
    with k.loop(count, step=lanes, nonempty=True) as i:
        weights = head.exponential(scores.load(i, lanes) - base)
        scores.store(weights, i)
        sums.value = sums.value + weights
    top.value = new
    total.value = total.value * correction + reduce_sum(sums.value)
    return correction


def _weighted_values(
    k: Function, head: Head, memory: RowMemory, chunks: _Chunks, key: Value, count: Value, correction: Value
) -> None:
    """output = output correction + sum over keys of v[key] weights[key], some vectors of the row at a time."""
    for group in range(0, len(chunks.starts), _VALUE_VECTORS):
        starts = chunks.starts[group : group + _VALUE_VECTORS]
        sums = k.variables({s: memory.output.load(s, memory.lanes) * correction for s in starts})
        with k.loop(count, nonempty=True) as i:
            weight = broadcast(memory.scores.load(i), memory.lanes)
            row = head.v + (key + i) * head.v_row
            for s in starts:
                sums[s] = fma(weight, chunks.load(row, s), sums[s])
        for s, value in sums.items():
            memory.output.store(value, s)
