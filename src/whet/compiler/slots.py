"""Slots: numbers known only at run, and the code that computes them natively from the extents of a run."""

from __future__ import annotations

from collections.abc import Sequence

from whet.errors import Fail
from whet.graph.dims import Atom, Expr, Known
from whet.runtime import program as p

_ATOMS = {"floordiv": p.FLOOR_DIVIDE, "min": p.MINIMUM, "max": p.MAXIMUM}


class SlotTable:
    """Gives every number that a program needs a slot; equal expressions share one.

    The first slots are the `symbols`, in order: the caller of a run sets them.
    """

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = tuple(symbols)
        self.initial: list[int] = [0] * len(self.symbols)
        self.code: list[tuple[int, int, int, int]] = []
        self._names: dict[str, int] = {name: i for i, name in enumerate(self.symbols)}
        self._constants: dict[int, int] = {}
        self._known: dict[object, int] = {}

    def declare(self, name: str) -> int:
        """A slot that a row of the program fills, under a name that expressions may use from there on."""
        self._names[name] = self._new(0)
        return self._names[name]

    def slot(self, value: Known) -> int:
        """The slot of a number or an expression. Raises Fail for a name that nobody sets."""
        if isinstance(value, int):
            found = self._constants.get(value)
            if found is None:
                found = self._constants[value] = self._new(value)
            return found
        found = self._known.get(value)
        if found is None:
            found = self._known[value] = self._expression(value)
        return found

    def hold(self) -> int:
        """A slot that no number has."""
        return self._new(0)

    def _new(self, start: int) -> int:
        self.initial.append(start)
        return len(self.initial) - 1

    def _operation(self, operation: int, a: int, b: int) -> int:
        key = (operation, a, b)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._new(0)
            self.code.append((operation, found, a, b))
        return found

    def _expression(self, value: Expr) -> int:
        total: int | None = None
        for monomial, coefficient in value.terms.items():
            term: int | None = None
            for atom in monomial:
                factor = self._atom(atom)
                term = factor if term is None else self._operation(p.MULTIPLY, term, factor)
            if term is None:
                term = self.slot(coefficient)
            elif coefficient != 1:
                term = self._operation(p.MULTIPLY, term, self.slot(coefficient))
            total = term if total is None else self._operation(p.ADD, total, term)
        assert total is not None
        return total

    def _atom(self, atom: Atom) -> int:
        if atom.op == "name":
            name = str(atom.args[0])
            if name not in self._names:
                raise Fail("an extent of the program has no source", value=name)
            return self._names[name]
        operands = [self.slot(a) for a in atom.args if isinstance(a, (int, Expr))]
        return self._operation(_ATOMS[atom.op], operands[0], operands[1])
