"""Sums of rows that index tensors choose from tables: the first step of a model that reads tokens."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import LanguageError, Operand, Pointer, Value, convert
from whet.dtypes import INT64, DType
from whet.kernels.base import INDEX_OUT_OF_BOUNDS, Frame
from whet.kernels.expression import Step, Tape
from whet.kernels.gather import check_index_type
from whet.kernels.grid import Walk
from whet.kernels.rows import Row, RowOperand


@dataclass(frozen=True, slots=True)
class Table:
    """A term of the sum: the type of the rows, and of the indices that choose them (None: row j for column j)."""

    dtype: DType
    index: DType | None


@dataclass(frozen=True, slots=True)
class LookupSum:
    """out[i, j, :] = the sum over all tables of table[index[i, j], :], added in order and in the type of `out`.

    Indices outside 0 to rows-1 end the kernel; negative ones do not count from the end. Words: `out` and, for every
    table in order, `table{t}` and (where it has indices) `index{t}` addresses; `columns` (j), `width` (elements of a
    row); for every table with indices `rows{t}`, `index{t}_i` and `index{t}_j` strides. Rows lie one behind the other.
    Grid: i * j.
    """

    tables: tuple[Table, ...]
    out: DType

    def __post_init__(self) -> None:
        if not self.tables:
            raise LanguageError("a sum of rows needs a table")
        for table in self.tables:
            if table.index is not None:
                check_index_type(table.index)

    def emit(self, frame: Frame) -> None:
        """Write the kernel's body."""
        k = frame.k
        out = frame.address("out", self.out)
        places: list[Pointer] = []
        indices: list[Pointer | None] = []
        for t, table in enumerate(self.tables):
            places.append(frame.address(f"table{t}", table.dtype))
            indices.append(None if table.index is None else frame.address(f"index{t}", table.index))
        columns, width = k.index(frame.number("columns")), k.index(frame.number("width"))
        rows: list[Value] = []
        strides: dict[str, list[Operand]] = {}
        for t, table in enumerate(self.tables):
            rows.append(k.index(frame.number(f"rows{t}") if table.index is not None else 0))
            if table.index is not None:
                strides[f"index{t}"] = [frame.number(f"index{t}_i"), frame.number(f"index{t}_j")]
        walk = Walk(k, [k.index(1), columns], strides, frame.begin)
        tape = _sum(self.tables, self.out)
        with k.loop(frame.end, start=frame.begin) as tile:
            operands: list[RowOperand] = []
            for t, pointer in enumerate(indices):
                row = walk.index(1)
                if pointer is not None:
                    row = convert(pointer.load(walk.offset(f"index{t}")), INT64)
                    frame.fail_if((row < 0) | (row >= rows[t]), INDEX_OUT_OF_BOUNDS, tile)
                operands.append(RowOperand(places[t] + row * width, 1))
            Row(k, tape, operands, [RowOperand(out + tile * width, 1)]).emit(0, width)
            walk.advance()


def _sum(tables: tuple[Table, ...], out: DType) -> Tape:
    steps: list[Step] = []
    count = len(tables)

    def add(step: Step) -> int:
        steps.append(step)
        return count + len(steps) - 1

    terms = [t if table.dtype is out else add(Step("cast", out, (t,))) for t, table in enumerate(tables)]
    total = terms[0]
    for term in terms[1:]:
        total = add(Step("add", out, (total, term)))
    return Tape(tuple(table.dtype for table in tables), tuple(steps), (total,))
