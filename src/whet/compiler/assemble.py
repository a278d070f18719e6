"""From steps to a program: slots, argument words, rows, and an arena laid out for a class of extents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from whet.codegen.target import Target
from whet.compiler.bounds import depends, upper
from whet.compiler.lowering import Lowering, shape_of
from whet.compiler.memory import Lifetimes, lifetimes, plan
from whet.compiler.slots import SlotTable
from whet.compiler.step import Address, Assign, Jump, Label, Load, StepReport, report
from whet.compiler.views import Buffer, product
from whet.compiler.weights import Weight
from whet.dtypes import BOOL, INT32, INT64
from whet.errors import Fail, NotImplemented, ResourceExhausted
from whet.graph.dims import Expr, Known, symbol
from whet.kernels.base import KernelCode, KernelSpec, build
from whet.ops.common import never_negative
from whet.runtime import program as p
from whet.runtime.program import Program

LARGEST = (1 << 62) - 1


@dataclass(slots=True)
class Blueprint:
    """A program whose arena is not laid out yet: good for every run of its specialization."""

    program: Program
    codes: tuple[KernelCode, ...]
    weights: tuple[Weight, ...]
    steps: tuple[StepReport, ...]
    input_dims: tuple[tuple[int, ...], ...]
    """The slots of each input's extents."""
    output_dims: tuple[tuple[int, ...], ...]
    """The slots of each output's extents."""
    lifetimes: Lifetimes
    size_slots: Mapping[Buffer, int]
    """The slot of each arena buffer's size in elements."""
    arena_rows: tuple[tuple[int, Buffer, int], ...]
    """(row of `addresses`, buffer, offset inside it) for everything that lies in the arena."""
    check_rows: tuple[Buffer, ...]
    """The buffer of each of the first rows of `checks`; those behind look for extents below 0."""
    rows: int
    """How many rows the lowering made: what lives are counted in."""
    output_bounds: tuple[int | None, ...]
    """The slot of the most elements that an output may have, for those whose extents are known after a run only."""
    names: Mapping[str, int]
    """The slot of every name in the extents of `steps`."""
    arena_limit: int

    @property
    def open_outputs(self) -> tuple[int, ...]:
        """The outputs whose extents are known after a run only."""
        return tuple(i for i, bound in enumerate(self.output_bounds) if bound is not None)

    @property
    def is_static(self) -> bool:
        """Whether nothing of this program is decided at run."""
        return not self.program.symbols

    def wraps(self, symbols: Sequence[tuple[int, int]]) -> bool:
        """Whether row 0 may leave the 64 bits of a slot for symbols between these (least, most)."""
        program = self.program
        ranges = [*symbols, *((n, n) for n in program.slots[len(symbols) :].tolist())]
        begin, end = (int(n) for n in program.rows[0, 1:3])
        for operation, target, a, b in program.code[begin:end].tolist():
            least, most = ranges[target] = _range_of(operation, ranges[a], ranges[b])
            if operation in (p.ADD, p.SUBTRACT, p.MULTIPLY) and not -(1 << 63) <= least <= most < 1 << 63:
                return True
        return False

    def lay_out(self, slots: Sequence[int]) -> Program:
        """The program with its arena planned for the sizes that stand in `slots`, a run's slots after evaluation.

        It fits every run whose buffers are no larger. Raises ResourceExhausted where the arena would pass its limit.
        """
        sizes = {b: int(slots[s]) * b.dtype.bits // 8 for b, s in self.size_slots.items()}
        for buffer, root in self.lifetimes.root.items():
            sizes[root] = max(sizes[root], sizes[buffer])
        for buffer, size in sizes.items():
            if size > self.arena_limit:
                raise ResourceExhausted(
                    "a tensor would be larger than the limit", value=buffer.label, found=f"{size} bytes",
                    expected=f"at most {self.arena_limit} bytes",
                    hint="Raise Limits.tensor_bytes if this is meant.",
                )  # fmt: skip
        offsets, total = plan(self.lifetimes.lives, sizes, self.rows)
        addresses = self.program.addresses.copy()
        for row, buffer, offset in self.arena_rows:
            addresses[row, 2] = offsets[self.lifetimes.root[buffer]] + offset
        checks = self.program.checks.copy()
        for row, buffer in enumerate(self.check_rows):
            checks[row, 2] = sizes[self.lifetimes.root[buffer]] * 8 // buffer.dtype.bits
        return replace(self.program, addresses=addresses, checks=checks, arena_bytes=total)


class _Assembler:
    def __init__(self, lowering: Lowering, symbols: Sequence[str]) -> None:
        self.lowering = lowering
        self.slots = SlotTable(symbols)
        self.words: list[int] = []
        self.moves: list[tuple[int, int]] = []
        self.addresses: list[tuple[int, int, int, int]] = []
        self.io: list[tuple[int, int, int, int]] = []
        self.arena_rows: list[tuple[int, Buffer, int]] = []
        self.input_base = 1
        self.output_base = 1 + len(lowering.inputs)
        self.weight_base = self.output_base + len(lowering.outputs)

    def number(self, value: Known) -> int:
        """The next word: a number."""
        word = len(self.words)
        if isinstance(value, Expr):
            self.words.append(0)
            self.moves.append((word, self.slots.slot(value)))
        else:
            self.words.append(int(value))
        return word

    def address(self, value: Address) -> int:
        """The next word: an address."""
        word = len(self.words)
        self.words.append(0)
        fixed, slot = (0, self.slots.slot(value.offset)) if isinstance(value.offset, Expr) else (value.offset, -1)
        buffer = value.buffer
        if buffer.place == "arena":
            self.arena_rows.append((len(self.addresses), buffer, fixed))
            self.addresses.append((word, p.ARENA, fixed, slot))
        elif buffer.place == "weight":
            self.addresses.append((word, self.weight_base + buffer.index, fixed, slot))
        else:
            base = self.input_base if buffer.place == "input" else self.output_base
            self.io.append((word, base + buffer.index, fixed, slot))
        return word


_LOADS = {INT64: p.LOAD_INT64, INT32: p.LOAD_INT32, BOOL: p.LOAD_BOOL}


Describe = Callable[[KernelSpec, Target], KernelCode]
"""What is known of a kernel once it has been generated."""


def assemble(lowering: Lowering, symbols: Sequence[str], target: Target, describe: Describe = build) -> Blueprint:
    """The blueprint of a lowered graph; `symbols` are the extents that a run gives, in order."""
    a = _Assembler(lowering, symbols)
    for name in lowering.bounds:
        a.slots.declare(name)
    codes: dict[str, KernelCode] = {}
    index: dict[str, int] = {}
    rows: list[list[int]] = []
    nodes: dict[str, int] = {}
    scratch = 0
    places: dict[Label, int] = {}
    for row in lowering.rows:
        if isinstance(row, Label):
            places[row] = 1 + len(rows)
        elif isinstance(row, Jump):
            kind = p.JUMP if row.unless is None else p.JUMP_IF_ZERO
            rows.append([kind, 0, 0 if row.unless is None else a.slots.slot(row.unless)])
        elif isinstance(row, Load):
            node = nodes.setdefault(row.node.label if row.node is not None else "", len(nodes))
            rows.append([p.LOAD_SLOT, a.slots.slot(symbol(row.name)), a.address(row.source), _LOADS[row.dtype], node])
        elif isinstance(row, Assign):
            for value in row.values.values():
                a.slots.slot(value)
            rows.append([p.EVALUATE])
        else:
            code = describe(row.spec, target)
            codes[code.symbol] = code
            kernel = index.setdefault(code.symbol, len(index))
            scratch = max(scratch, code.scratch_bytes)
            first = len(a.words)
            for name in code.words:
                if name not in row.words:
                    raise Fail("a step lacks an argument of its kernel", value=name, found=", ".join(row.words),
                               node=row.node.label if row.node else None)  # fmt: skip
                word = row.words[name]
                if isinstance(word, Address):
                    a.address(word)
                else:
                    a.number(word)
            tiles = a.number(row.tiles)
            node = nodes.setdefault(row.node.label if row.node is not None else "", len(nodes))
            rows.append([p.KERNEL, kernel, first, tiles, int(row.parallel), node])
    numbers_of = {row: number for number, row in enumerate(lowering.rows) if isinstance(row, Label)}
    lives = lifetimes(lowering.rows, [(numbers_of[begin], numbers_of[end] + 1) for begin, end in lowering.loops])
    sizes = {b: _bound(b.elements, lowering, b.label) for b in lives.root}
    size_slots = {b: a.slots.slot(size) for b, size in sizes.items()}
    input_dims = tuple(tuple(a.slots.slot(d) for d in shape_of(v)) for v in lowering.graph.inputs)
    output_dims = tuple(tuple(a.slots.slot(d) for d in shape_of(v)) for v in lowering.graph.outputs)
    output_bounds = tuple(
        a.slots.slot(_bound(product(shape_of(v)), lowering, v.name))
        if any(depends(d, lowering.bounds) for d in shape_of(v)) else None
        for v in lowering.graph.outputs
    )  # fmt: skip
    checked = [b for b in lives.root if isinstance(sizes[b], Expr)]
    checks = [(size_slots[b], 0, LARGEST) for b in checked]
    # Two extents below 0 make a size above 0.
    checks += [(a.slots.slot(extent), 0, LARGEST) for extent in _doubtful(lowering, symbols)]
    evaluate = [p.EVALUATE, 0, len(a.slots.code), 0, len(a.moves), 0, len(a.addresses), 0, len(checks)]
    again = _Again(a)
    emitted = iter(rows)
    for row in lowering.rows:
        if isinstance(row, Label):
            continue
        numbers = next(emitted)
        if isinstance(row, Jump):
            numbers[1] = places[row.target]
        elif isinstance(row, Assign):
            numbers.extend(again.ranges(row))
    program = Program(
        rows=_table([evaluate, *rows], p.ROW_NUMBERS),
        words=_numbers(a.words),
        slots=_numbers(a.slots.initial),
        symbols=tuple(symbols),
        code=_table(a.slots.code, 4),
        moves=_table(a.moves, 2),
        addresses=_table(a.addresses, 4),
        io_addresses=_table(a.io, 4),
        checks=_table(checks, 3),
        kernels=tuple(index),
        nodes=tuple(nodes),
        inputs=len(lowering.inputs),
        outputs=len(lowering.outputs),
        weights=len(lowering.weights),
        arena_bytes=0,
        scratch_bytes=scratch,
    )
    return Blueprint(
        program=program,
        codes=tuple(codes[name] for name in index),
        weights=tuple(lowering.weights),
        steps=tuple(report(step) for step in lowering.steps),
        input_dims=input_dims,
        output_dims=output_dims,
        lifetimes=lives,
        size_slots=size_slots,
        arena_rows=tuple(a.arena_rows),
        check_rows=tuple(checked),
        rows=len(lowering.rows),
        output_bounds=output_bounds,
        names={name: a.slots.slot(symbol(name)) for name in (*symbols, *lowering.bounds)},
        arena_limit=lowering.env.limits.tensor_bytes,
    )


def _bound(size: Known, lowering: Lowering, label: str) -> Known:
    """The most elements that something has. Raises NotImplemented where nothing tells."""
    most = upper(size, lowering.bounds)
    if most is None:
        raise NotImplemented("nothing tells how large a tensor may become", value=label, found=str(size))
    return most


def _range_of(operation: int, a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """What an operation of the slot code gives for operands in these ranges."""
    if operation == p.ADD:
        return a[0] + b[0], a[1] + b[1]
    if operation == p.SUBTRACT:
        return a[0] - b[1], a[1] - b[0]
    if operation == p.MINIMUM:
        return min(a[0], b[0]), min(a[1], b[1])
    if operation == p.MAXIMUM:
        return max(a[0], b[0]), max(a[1], b[1])
    if operation == p.MULTIPLY:
        corners = [x * y for x in a for y in b]
    elif operation == p.FLOOR_DIVIDE:
        corners = [x // y for x in a for y in b] if b[0] > 0 else [*a, *(-x for x in a), 0]
    else:
        corners = [*a]
    return min(corners), max(corners)


def _doubtful(lowering: Lowering, symbols: Sequence[str]) -> list[Expr]:
    """The extents of the main graph's values that some run may leave below 0."""
    given = set(symbols)
    shapes = (value.shape or () for node in lowering.graph for value in node.outputs)
    found = dict.fromkeys(d for shape in shapes for d in shape if isinstance(d, Expr))
    return [d for d in found if d.names() <= given and not never_negative(d)]


class _Again:
    """Appends to an assembler's tables what rows compute again: all that depends on the names that they change."""

    def __init__(self, a: _Assembler) -> None:
        self.a = a
        self.code, self.moves, self.addresses = list(a.slots.code), list(a.moves), list(a.addresses)
        self.arena = {row: (buffer, offset) for row, buffer, offset in a.arena_rows}
        self.names: dict[int, frozenset[int]] = {
            slot: frozenset((slot,)) for slot in (a.slots.slot(symbol(name)) for name in a.lowering.bounds)
        }
        """The slots of names that a slot depends on."""
        for _, target, first, second in self.code:
            found = self.names.get(first, frozenset()) | self.names.get(second, frozenset())
            if found:
                self.names[target] = found

    def ranges(self, row: Assign) -> list[int]:
        a, slots = self.a, self.a.slots
        loaded = frozenset(slots.slot(symbol(name)) for name in row.loaded)
        given = {slots.slot(symbol(name)): slots.slot(value) for name, value in row.values.items()}
        begins = len(slots.code), len(a.moves), len(a.addresses)
        slots.code.extend(c for c in self.code if self._depends(c[1], loaded))
        # Through slots of their own: a value may be an expression of another name that changes here too.
        held = {target: slots.hold() if len(given) > 1 else source for target, source in given.items()}
        if len(given) > 1:
            slots.code.extend((p.COPY, held[target], source, 0) for target, source in given.items())
        slots.code.extend((p.COPY, target, source, 0) for target, source in held.items())
        changed = loaded | frozenset(given)
        if given:
            slots.code.extend(c for c in self.code if self._depends(c[1], frozenset(given)))
        a.moves.extend(m for m in self.moves if self._depends(m[1], changed))
        for number, entry in enumerate(self.addresses):
            if self._depends(entry[3], changed):
                if number in self.arena:
                    a.arena_rows.append((len(a.addresses), *self.arena[number]))
                a.addresses.append(entry)
        a.addresses.extend(entry for entry in a.io if self._depends(entry[3], changed))
        ends = len(slots.code), len(a.moves), len(a.addresses)
        return [n for pair in zip(begins, ends, strict=True) for n in pair]

    def _depends(self, slot: int, names: frozenset[int]) -> bool:
        return not names.isdisjoint(self.names.get(slot, frozenset()))


def _numbers(numbers: Sequence[int]) -> p.Table:
    try:
        return np.array(numbers, np.int64)
    except OverflowError as error:
        found = next(n for n in numbers if not -(1 << 63) <= n < 1 << 63)
        raise ResourceExhausted("the extents are too large to compute with", found=found) from error


def _table(rows: Sequence[Sequence[int]], width: int) -> p.Table:
    table = np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table
