"""Programs bound to this process: their tables checked and in place, their code and weights as addresses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whet.errors import InvalidArgument
from whet.runtime import program as table
from whet.runtime.layout import Context
from whet.runtime.program import Program, Table


class LoadedProgram:
    """A program with the addresses of its kernels and weights; shared by any number of run contexts.

    `keep` is whatever holds code and weights in memory. Raises InvalidArgument for a program whose numbers point
    outside its tables: the native executor does not look.
    """

    def __init__(self, program: Program, kernels: Sequence[int], weights: Sequence[int], keep: object) -> None:
        _same("kernels", len(kernels), len(program.kernels))
        _same("weights", len(weights), program.weights)
        check_program(program)
        self.program = program
        self.keep = keep
        self.kernels = np.array(kernels, np.int64)
        self.weights = np.array(weights, np.int64)
        tables = {
            Context.ROWS: program.rows,
            Context.CODE: program.code,
            Context.MOVES: program.moves,
            Context.ADDRESSES: program.addresses,
            Context.IO_ADDRESSES: program.io_addresses,
            Context.CHECKS: program.checks,
            Context.KERNELS: self.kernels,
        }
        self.tables = [(position, np.ascontiguousarray(array)) for position, array in tables.items()]
        """Where a context block keeps an array's address, with the array."""
        kinds = program.rows[1:, 0]
        self.keeps_slots = not bool(np.isin(kinds, (table.EVALUATE, table.LOAD_SLOT)).any())
        """Whether a run leaves slots and words as row 0 made them."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tables."""
        program = self.program
        return sum(t.nbytes for _, t in self.tables) + program.words.nbytes + program.slots.nbytes + self.weights.nbytes


def check_program(program: Program) -> None:
    """Raise InvalidArgument where a number of the tables points outside of what it names."""
    shapes = {"rows": table.ROW_NUMBERS, "code": 4, "moves": 2, "addresses": 4, "io_addresses": 4, "checks": 3}
    for name in (*shapes, "words", "slots"):
        array: Table = getattr(program, name)
        wanted = 2 if name in shapes else 1
        if array.dtype != np.int64 or array.ndim != wanted or (name in shapes and array.shape[1] != shapes[name]):
            raise InvalidArgument(
                "a program's table has another form", value=name, found=f"{array.dtype} {array.shape}",
                expected=f"int64 with {shapes[name]} columns" if name in shapes else "int64 with one axis",
            )  # fmt: skip
    rows, words, slots = program.rows, len(program.words), len(program.slots)
    if not len(rows) or rows[0, 0] != table.EVALUATE:
        raise InvalidArgument("a program starts with EVALUATE", found=rows[:1].tolist())
    _inside("symbols", np.array([len(program.symbols)]), slots + 1)
    _inside("row kind", rows[:, 0], table.LOAD_SLOT + 1)
    chosen = {kind: rows[rows[:, 0] == kind] for kind in range(table.LOAD_SLOT + 1)}
    kernel, load = chosen[table.KERNEL], chosen[table.LOAD_SLOT]
    _inside("kernel", kernel[:, 1], len(program.kernels))
    _inside("argument word", kernel[:, 2], words + 1)
    _inside("word of tiles", kernel[:, 3], words)
    _inside("target of a jump", chosen[table.JUMP][:, 1], len(rows) + 1)
    _inside("target of a jump", chosen[table.JUMP_IF_ZERO][:, 1], len(rows) + 1)
    _inside("tested slot", chosen[table.JUMP_IF_ZERO][:, 2], slots)
    _inside("loaded slot", load[:, 1], slots)
    _inside("loaded word", load[:, 2], words)
    _inside("kind of number", load[:, 3], table.LOAD_BOOL + 1)
    evaluate = chosen[table.EVALUATE]
    for index, name in enumerate(("code", "moves", "addresses", "checks")):
        begin, end = evaluate[:, 1 + 2 * index], evaluate[:, 2 + 2 * index]
        _inside(f"range of {name}", begin, len(getattr(program, name)) + 1)
        _inside(f"range of {name}", end, len(getattr(program, name)) + 1)
    _inside("operation", program.code[:, 0], table.COPY + 1)
    _inside("operand slot", program.code[:, 1:3], slots)
    _inside("operand slot", program.code[program.code[:, 0] != table.COPY, 3], slots)
    _inside("moved word", program.moves[:, 0], words)
    _inside("moved slot", program.moves[:, 1], slots)
    _inside("checked slot", program.checks[:, 0], slots)
    bases = 1 + program.inputs + program.outputs + program.weights
    for array in (program.addresses, program.io_addresses):
        _inside("address word", array[:, 0], words)
        _inside("base", array[:, 1], bases)
        _inside("address slot", array[:, 3] + 1, slots + 1)


def _same(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise InvalidArgument(f"another number of {what} than the program has", found=found, expected=expected)


def _inside(what: str, numbers: Table, end: int) -> None:
    wrong = numbers[(numbers < 0) | (numbers >= end)]
    if wrong.size:
        raise InvalidArgument(
            f"a program names a {what} that it does not have", found=int(wrong[0]), expected=f"0 to {end - 1}"
        )
