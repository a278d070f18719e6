"""Symbolic dimensions: integer polynomials over named extents, with floor division, minimum and maximum.

A dimension is an `int`, an `Expr`, or None where nothing is known. Equal polynomials compare equal, so `2*h + h` and
`3*h` are one dimension. A named extent is taken to be non-negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from math import gcd
from typing import Union

Monomial = tuple["Atom", ...]


class Atom:
    """A factor of a monomial: a name, or an operation that is not polynomial."""

    __slots__ = ("_hash", "_text", "args", "op", "size")

    def __init__(self, op: str, args: tuple[object, ...]) -> None:
        self.op = op
        self.args = args
        self.size: int = 1 + sum(a.size for a in args if isinstance(a, Expr))
        self._hash = hash((op, args))
        self._text: str | None = None

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Atom) and self._hash == other._hash and self.op == other.op and self.args == other.args

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        # Kept: products are sorted by it.
        if self._text is None:
            named = self.op == "name"
            self._text = str(self.args[0]) if named else f"{self.op}({', '.join(str(a) for a in self.args)})"
        return self._text

    def __repr__(self) -> str:
        return str(self)


class Expr:
    """A polynomial with integer coefficients that is no plain integer. Immutable; built from `symbol` and operators."""

    __slots__ = ("_hash", "size", "terms")

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self.terms = dict(terms)
        self.size: int = sum(1 + sum([a.size for a in m]) for m in self.terms)
        """How long the expression is written out, shared parts counted each time."""
        self._hash = hash(frozenset(self.terms.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expr) and self._hash == other._hash and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: Known) -> Known:
        return _combine(self, other, 1)

    __radd__ = __add__

    def __sub__(self, other: Known) -> Known:
        return _combine(self, other, -1)

    def __rsub__(self, other: Known) -> Known:
        return _combine(other, self, -1)

    def __mul__(self, other: Known) -> Known:
        terms: dict[Monomial, int] = {}
        for m1, c1 in self.terms.items():
            for m2, c2 in _terms(other).items():
                key = tuple(sorted(m1 + m2, key=str)) if m1 and m2 else m1 or m2
                terms[key] = terms.get(key, 0) + c1 * c2
        return _make(terms)

    __rmul__ = __mul__

    def __floordiv__(self, other: Known) -> Known:
        return floor_div(self, other)

    def __rfloordiv__(self, other: Known) -> Known:
        return floor_div(other, self)

    def __neg__(self) -> Known:
        return _combine(0, self, -1)

    def __str__(self) -> str:
        parts = []
        for monomial, coefficient in sorted(self.terms.items(), key=lambda t: (-len(t[0]), str(t[0]))):
            factors = [str(a) for a in monomial]
            if not factors or coefficient not in (1, -1):
                factors.insert(0, str(abs(coefficient)))
            parts.append(("-" if coefficient < 0 else "+", "*".join(factors)))
        text = " ".join(f"{sign} {body}" for sign, body in parts)
        return text[2:] if text.startswith("+ ") else text

    def __repr__(self) -> str:
        return f"Expr({self})"

    @property
    def name(self) -> str | None:
        """The extent's name when this is one bare name, else None."""
        if len(self.terms) == 1:
            (monomial, coefficient) = next(iter(self.terms.items()))
            if coefficient == 1 and len(monomial) == 1 and monomial[0].op == "name":
                return str(monomial[0].args[0])
        return None

    def evaluate(self, extents: Mapping[str, int]) -> int:
        """The value under `extents` (name → size). Raises KeyError for a name that is not given."""
        return _as_int(self.substitute(extents), self)

    def substitute(self, extents: Mapping[str, Known]) -> Known:
        """This expression with named extents replaced where given."""
        total: Known = 0
        for monomial, coefficient in self.terms.items():
            product: Known = coefficient
            for atom in monomial:
                product = product * _substitute_atom(atom, extents)
            total = total + product
        return total

    def names(self) -> set[str]:
        """The names of all extents in this expression."""
        found: set[str] = set()
        for monomial in self.terms:
            for atom in monomial:
                if atom.op == "name":
                    found.add(str(atom.args[0]))
                else:
                    for argument in atom.args:
                        if isinstance(argument, Expr):
                            found |= argument.names()
        return found


MAX_SIZE = 120
"""Longest expression that is followed: one more step could otherwise square its length, and a model has many steps."""

Known = Union[int, Expr]
Dim = Union[int, Expr, None]
Shape = tuple[Dim, ...]


def symbol(name: str) -> Expr:
    """The extent called `name`."""
    return Expr({(Atom("name", (name,)),): 1})


def floor_div(a: Known, b: Known) -> Known:
    """`a // b`, divided out where it is exact for every extent; for a number `b` in one normal form.

    There, each coefficient of what stays below the fraction bar is at least 0 and less than `b`, and a quotient of a
    quotient is one quotient: `(h - 1) // 2 + 1` is `(h + 1) // 2`, and half of that, rounded up, is `(h + 3) // 4`.
    """
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if b == 1:
        return a
    exact = exact_div(a, b)
    if exact is not None:
        return exact
    if isinstance(a, int) or not isinstance(b, int) or b < 1:
        return Expr({(Atom("floordiv", (a, b)),): 1})
    whole = _make({m: c // b for m, c in a.terms.items()})
    rest = _make({m: c % b for m, c in a.terms.items()})
    if isinstance(rest, int):
        return whole + rest // b
    inner = _quotient_plus_number(rest)
    if inner is not None:
        (numerator, divisor), number = inner
        return whole + floor_div(numerator + number * divisor, divisor * b)
    return whole + Expr({(Atom("floordiv", (rest, b)),): 1})


def _quotient_plus_number(value: Expr) -> tuple[tuple[Known, int], int] | None:
    """The parts of `x // n + c` with numbers `n` and `c`, or None when `value` is no such sum."""
    rest = dict(value.terms)
    number = rest.pop((), 0)
    if len(rest) != 1:
        return None
    monomial, coefficient = next(iter(rest.items()))
    if coefficient != 1 or len(monomial) != 1 or monomial[0].op != "floordiv":
        return None
    numerator, divisor = monomial[0].args
    if not isinstance(divisor, int) or not isinstance(numerator, (int, Expr)) or divisor < 1:
        return None
    return (numerator, divisor), number


def ceil_div(a: Known, b: Known) -> Known:
    """`a / b` rounded up."""
    return -floor_div(-a, b) if isinstance(a, int) and isinstance(b, int) else floor_div(a + b - 1, b)


def exact_div(a: Known, b: Known) -> Known | None:
    """`a / b` when `b` is one term that divides every term of `a`, else None."""
    divisor = _terms(b)
    if len(divisor) != 1:
        return 1 if a == b else None
    (divisor_monomial, divisor_coefficient) = next(iter(divisor.items()))
    if divisor_coefficient == 0:
        return None
    terms: dict[Monomial, int] = {}
    for monomial, coefficient in _terms(a).items():
        if coefficient % divisor_coefficient:
            return None
        rest = list(monomial)
        for atom in divisor_monomial:
            if atom not in rest:
                return None
            rest.remove(atom)
        terms[tuple(rest)] = coefficient // divisor_coefficient
    return _make(terms)


def multiple_of(value: Known) -> int:
    """The largest number that `value` is a multiple of for every extent, as far as its terms show; 0 for 0."""
    return gcd(*_terms(value).values())


def minimum(a: Known, b: Known) -> Known:
    """The smaller of both."""
    return _extremum("min", a, b, min)


def maximum(a: Known, b: Known) -> Known:
    """The larger of both."""
    return _extremum("max", a, b, max)


def bounded(dim: Dim) -> Dim:
    """`dim`, or None when it is an expression longer than MAX_SIZE."""
    return None if isinstance(dim, Expr) and dim.size > MAX_SIZE else dim


def product(dims: Iterable[Dim]) -> Dim:
    """The product of all, or None when one is unknown or the product too long to follow (0 when one is zero)."""
    known = list(dims)
    if any(d == 0 for d in known):
        return 0
    total: Dim = 1
    for d in known:
        if d is None or total is None:
            return None
        total = bounded(total * d)
    return total


def static_shape(shape: Shape | None) -> tuple[int, ...] | None:
    """The shape as integers, or None unless every dimension is one."""
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    return tuple(d for d in shape if isinstance(d, int))


def broadcast(*shapes: Shape | None) -> Shape | None:
    """The shape that numpy-style broadcasting gives; None when a rank is unknown; unknown dims stay unknown.

    Raises ValueError when two known extents differ and neither is 1.
    """
    known: list[Shape] = []
    for shape in shapes:
        if shape is None:
            return None
        known.append(shape)
    rank = max((len(s) for s in known), default=0)
    padded = [(1,) * (rank - len(s)) + s for s in known]
    return tuple(reduce(_broadcast_dim, column) for column in zip(*padded, strict=True)) if padded else ()


def _broadcast_dim(a: Dim, b: Dim) -> Dim:
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int) and isinstance(b, int):
        raise ValueError(f"cannot broadcast extents {a} and {b}")
    # A known extent other than 1 must be the result's, whatever the other one turns out to be.
    if isinstance(a, int):
        return a
    if isinstance(b, int):
        return b
    if a is None or b is None:
        return None
    return b if _is_cut(a, b) else a if _is_cut(b, a) else None


def _is_cut(a: Expr, b: Expr) -> bool:
    """Whether `a` is `min(n, b)` for a number n >= 1: it equals `b` wherever the two broadcast."""
    if len(a.terms) != 1:
        return False
    monomial, coefficient = next(iter(a.terms.items()))
    if coefficient != 1 or len(monomial) != 1 or monomial[0].op != "min":
        return False
    other = [x for x in monomial[0].args if x != b]
    return len(other) == 1 and isinstance(other[0], int) and other[0] >= 1


def _extremum(op: str, a: Known, b: Known, choose: Callable[[int, int], int]) -> Known:
    difference = a - b
    if isinstance(difference, int):
        return a if (difference <= 0) == (op == "min") else b
    if isinstance(a, int) and isinstance(b, int):
        return choose(a, b)
    first, second = sorted((a, b), key=str)
    return Expr({(Atom(op, (first, second)),): 1})


def _terms(value: Known) -> Mapping[Monomial, int]:
    return value.terms if isinstance(value, Expr) else {(): value}


def _make(terms: Mapping[Monomial, int]) -> Known:
    kept = {m: c for m, c in terms.items() if c}
    if not kept:
        return 0
    if len(kept) == 1 and () in kept:
        return kept[()]
    return Expr(kept)


def _combine(a: Known, b: Known, sign: int) -> Known:
    terms = dict(_terms(a))
    for monomial, coefficient in _terms(b).items():
        terms[monomial] = terms.get(monomial, 0) + sign * coefficient
    return _make(terms)


def _substitute_atom(atom: Atom, extents: Mapping[str, Known]) -> Known:
    if atom.op == "name":
        name = str(atom.args[0])
        return extents[name] if name in extents else Expr({(atom,): 1})
    a, b = (x.substitute(extents) if isinstance(x, Expr) else x for x in atom.args)
    assert isinstance(a, (int, Expr))
    assert isinstance(b, (int, Expr))
    operation = {"floordiv": floor_div, "min": minimum, "max": maximum}[atom.op]
    return operation(a, b)


def _as_int(value: Known, original: Expr) -> int:
    if isinstance(value, Expr):
        raise KeyError(f"extents {sorted(value.names())} of {original} are not given")
    return value
