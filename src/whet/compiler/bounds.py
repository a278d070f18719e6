"""How large an expression may become whose names a run finds out: what memory is planned for."""

from __future__ import annotations

from collections.abc import Sequence

from whet.graph.dims import Atom, Expr, Known, floor_div, maximum, minimum
from whet.ops.common import never_negative


class Bounds(dict[str, Known | None]):
    """For each name that a run finds out the most that it may be, None where there is no most. No name is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.products: dict[tuple[str, ...], Known] = {}
        """The most that products of names may be, where that is less than the product of their bounds."""


Range = tuple[Known | None, Known | None]
"""Least and most; None where there is none."""


def upper(value: Known, bounds: Bounds) -> Known | None:
    """The most that `value` may be, in names that `bounds` does not list; None where there is no most."""
    return value if isinstance(value, int) else _range(value, bounds)[1]


def depends(value: Known, names: Bounds) -> bool:
    """Whether a name of `names` is in the expression."""
    return isinstance(value, Expr) and not value.names().isdisjoint(names)


def _range(value: Known, bounds: Bounds) -> Range:
    if not depends(value, bounds):
        return value, value
    assert isinstance(value, Expr)
    least: Known | None = 0
    most: Known | None = 0
    for monomial, coefficient in value.terms.items():
        atoms, joined = _join(monomial, bounds)
        low, high = _product([*joined, *(_atom(atom, bounds) for atom in atoms)])
        if coefficient < 0:
            low, high = high, low
        least = None if least is None or low is None else least + low * coefficient
        most = None if most is None or high is None else most + high * coefficient
    return least, most


def _join(monomial: Sequence[Atom], bounds: Bounds) -> tuple[list[Atom], list[Range]]:
    """A monomial without the products of names that have a bound together, and the ranges of those."""
    atoms, joined = list(monomial), list[Range]()
    for names, most in bounds.products.items():
        group = [Atom("name", (name,)) for name in names]
        if all(atom in atoms for atom in group):
            for atom in group:
                atoms.remove(atom)
            joined.append((0, upper(most, bounds)))
    return atoms, joined


def _product(factors: list[Range]) -> Range:
    if len(factors) == 1:
        return factors[0]
    low: Known | None = 1
    high: Known | None = 1
    for least, most in factors:
        if least is None or not never_negative(least):
            return None, None
        low = None if low is None else low * least
        high = None if high is None or most is None else high * most
    return low, high


def _atom(atom: Atom, bounds: Bounds) -> Range:
    if atom.op == "name":
        name = str(atom.args[0])
        if name not in bounds:
            return (value := Expr({(atom,): 1})), value
        bound = bounds[name]
        return 0, None if bound is None else upper(bound, bounds)
    (a, b) = (_range(x, bounds) for x in atom.args if isinstance(x, (int, Expr)))
    if atom.op == "floordiv":
        if isinstance(b[0], int) and b[0] == b[1] and b[0] > 0:
            divisor = b[0]
            return tuple(None if x is None else floor_div(x, divisor) for x in a)  # type: ignore[return-value]
        positive = a[0] is not None and b[0] is not None and never_negative(a[0]) and never_negative(b[0])
        return (0, a[1]) if positive else (None, None)
    # Of a minimum one operand's most is enough, of a maximum one operand's least.
    pick = minimum if atom.op == "min" else maximum
    least = None if a[0] is None or b[0] is None else pick(a[0], b[0])
    most = None if a[1] is None or b[1] is None else pick(a[1], b[1])
    if atom.op == "min" and most is None:
        most = b[1] if a[1] is None else a[1]
    if atom.op == "max" and least is None:
        least = b[0] if a[0] is None else a[0]
    return least, most
