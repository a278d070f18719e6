"""A blueprint as JSON and one array of int64, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from whet.compiler.assemble import Blueprint
from whet.compiler.memory import Life, Lifetimes
from whet.compiler.step import StepReport
from whet.compiler.views import Buffer
from whet.compiler.weights import Weight
from whet.engine.notation import dtype_named, read_known, write_dim
from whet.runtime.program import Program, Table

TABLES = ("rows", "words", "slots", "code", "moves", "addresses", "io_addresses", "checks")
NUMBERS = ("inputs", "outputs", "weights", "arena_bytes", "scratch_bytes")
NAMES = ("symbols", "kernels", "nodes")


class TableWriter:
    """Collects tables one behind the other."""

    def __init__(self) -> None:
        self.parts: list[Table] = []
        self._size = 0

    def add(self, table: Table) -> dict[str, Any]:
        """Where the table will stand."""
        place = {"at": self._size, "shape": list(table.shape)}
        self.parts.append(np.ascontiguousarray(table))
        self._size += table.size
        return place


def read_table(numbers: Table, place: dict[str, Any]) -> Table:
    """The table at a place, in memory of its own."""
    shape = tuple(place["shape"])
    at = place["at"]
    return numbers[at : at + int(np.prod(shape, dtype=np.int64))].reshape(shape).copy()


def write_blueprint(blueprint: Blueprint, tables: TableWriter) -> dict[str, Any]:
    """Everything of a blueprint but its code and weights."""
    program, lives = blueprint.program, blueprint.lifetimes
    number = {buffer: index for index, buffer in enumerate(lives.root)}
    return {
        "program": {
            **{name: tables.add(getattr(program, name)) for name in TABLES},
            **{name: getattr(program, name) for name in (*NUMBERS, *NAMES)},
        },
        "buffers": [[b.label, b.dtype.name, number[root]] for b, root in lives.root.items()],
        "lives": [[number[life.buffer], life.first, life.last] for life in lives.lives],
        "size_slots": [[number[b], slot] for b, slot in blueprint.size_slots.items()],
        "arena_rows": [[row, number[b], offset] for row, b, offset in blueprint.arena_rows],
        "check_rows": [number[b] for b in blueprint.check_rows],
        "rows": blueprint.rows,
        "input_dims": blueprint.input_dims,
        "output_dims": blueprint.output_dims,
        "output_bounds": blueprint.output_bounds,
        "names": dict(blueprint.names),
        "steps": [
            [s.name, s.ops, s.tactic, s.parallel, write_dim(s.flops), write_dim(s.nbytes)] for s in blueprint.steps
        ],
    }


def read_blueprint(content: dict[str, Any], numbers: Table, weights: Sequence[Weight], arena_limit: int) -> Blueprint:
    """What `write_blueprint` wrote."""
    stored = content["program"]
    fields: dict[str, Any] = {name: read_table(numbers, stored[name]) for name in TABLES}
    fields.update((name, int(stored[name])) for name in NUMBERS)
    fields.update((name, tuple(stored[name])) for name in NAMES)
    program = Program(**fields)
    buffers = [
        Buffer("arena", dtype_named(dtype), 0, i, label) for i, (label, dtype, _) in enumerate(content["buffers"])
    ]
    root = {buffer: buffers[entry[2]] for buffer, entry in zip(buffers, content["buffers"], strict=True)}
    return Blueprint(
        program=program,
        codes=(),
        weights=tuple(weights),
        steps=tuple(
            StepReport(name, ops, tactic, parallel, read_known(flops), read_known(nbytes))
            for name, ops, tactic, parallel, flops, nbytes in content["steps"]
        ),
        input_dims=tuple(map(tuple, content["input_dims"])),
        output_dims=tuple(map(tuple, content["output_dims"])),
        lifetimes=Lifetimes(tuple(Life(buffers[b], first, last) for b, first, last in content["lives"]), root),
        size_slots={buffers[b]: slot for b, slot in content["size_slots"]},
        arena_rows=tuple((row, buffers[b], offset) for row, b, offset in content["arena_rows"]),
        check_rows=tuple(buffers[b] for b in content["check_rows"]),
        rows=content["rows"],
        output_bounds=tuple(content["output_bounds"]),
        names=content["names"],
        arena_limit=arena_limit,
    )
