"""How a call lies in memory in one of its variants, and what must be true of that memory afterwards."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from whet.kernels.base import STATUS_CODE_BITS

from .call import Call, Operand
from .draw import Draw

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Variant:
    """`at_end`: operands end where their pages end, else they start where their pages start. `poison` fills all else.
    `pieces` are the ranges of tiles of each entry, in order."""

    at_end: bool
    poison: int
    pieces: tuple[tuple[int, int], ...]


class Mismatch(Exception):
    """Memory or status after a call is not as it should be."""


def variants(draw: Draw, call: Call) -> tuple[Variant, Variant]:
    """Both placements and poisons, with the grid cut in different ways: the same bits must come out."""
    # 0xFF.. is NaN in every float type, and -1; 0x41.. is a moderate number.
    ends = draw.chance(0.5)
    return (
        Variant(ends, 0xFF, _pieces(draw, call.tiles)),
        Variant(not ends, 0x41, _pieces(draw, call.tiles)),
    )


def _pieces(draw: Draw, tiles: int) -> tuple[tuple[int, int], ...]:
    cuts = draw.integer(0, min(max(tiles - 1, 0), draw.one((0, 1, 2, 4, 8))))
    edges = sorted({0, tiles, *(draw.integer(0, tiles) for _ in range(cuts))})
    pieces = list(pairwise(edges)) or [(0, tiles)]
    draw.random.shuffle(pieces)
    return tuple(pieces)


def start_of(operand: Operand, at_end: bool, room: int) -> int:
    """Where the operand's lowest element lies in `room` bytes."""
    return (room - operand.bytes) // operand.align * operand.align if at_end else 0


@functools.lru_cache(maxsize=64)
def _pattern(poison: int, size: int) -> bytes:
    return bytes([poison]) * size


def fill(operand: Operand, memory: Array, start: int, poison: int, places: Array) -> None:
    """Poison everywhere, and the operand's values, if it has any, in their places."""
    memory[:] = poison
    if operand.values is not None and operand.bytes:
        elements = memory[start : start + operand.bytes].view(operand.bits)
        elements[places] = (
            operand.values.view(operand.bits)
            if operand.values.ndim
            else operand.values.reshape(1).view(operand.bits).reshape(())
        )


def taken(name: str, operand: Operand, memory: Array, start: int, poison: int, places: Array) -> Array:
    """The window's elements after a call, as unsigned numbers. Raises Mismatch where something beside it changed."""
    elements = memory[start : start + operand.bytes].view(operand.bits)
    found = elements[places] if operand.bytes else np.zeros(operand.window.extents, operand.bits)
    if operand.bytes:
        elements[places] = int.from_bytes(bytes([poison]) * operand.dtype.itemsize, "little")
    if memory.tobytes() != _pattern(poison, memory.size):
        where = np.flatnonzero(memory != poison) - start
        raise Mismatch(
            f"{name}: {where.size} bytes beside the elements changed, at {where[:8].tolist()} (of {operand.bytes})"
        )
    return found


def check_statuses(call: Call, statuses: list[int]) -> None:
    """Raises Mismatch where a status is not one that the call should have."""
    bad = [s for s in statuses if s]
    codes = [s & ((1 << STATUS_CODE_BITS) - 1) for s in bad]
    if call.fails:
        if not bad or any(c not in call.fails for c in codes):
            raise Mismatch(f"statuses {statuses} instead of code {call.fails}")
    elif bad:
        raise Mismatch(f"status code {codes[0]} for element {bad[0] >> STATUS_CODE_BITS}")


def check_values(name: str, operand: Operand, found: Array) -> None:
    """Raises Mismatch where elements differ from what is expected."""
    expected = operand.expected
    if expected is None or not found.size:
        return
    got = found.view(operand.dtype) if found.ndim else found.reshape(1).view(operand.dtype).reshape(())
    if operand.dtype.kind in "iub":
        # Bools are bytes of 0 or 1.
        wrong = found != expected if operand.dtype.kind == "b" else got != expected
    else:
        with np.errstate(all="ignore"):
            limited = expected.astype(operand.dtype).astype(np.float64)  # past the type's range it is infinity
            numbers = got.astype(np.float64)
            wide = expected.astype(np.float64)
            near = np.abs(numbers - wide) <= operand.rtol * np.abs(wide) + operand.atol
            same = (numbers == limited) | (np.isnan(numbers) & np.isnan(limited))
            wrong = ~(near | same)
    if np.any(wrong):
        first = np.argwhere(wrong)[0].tolist()
        at = tuple(first)
        raise Mismatch(
            f"{name}{first} is {got[at]}, expected {expected[at]} ({int(np.sum(wrong))} of {wrong.size} wrong)"
        )


def check_same(name: str, operand: Operand, first: Array, second: Array) -> None:
    """Raises Mismatch where two variants of a call left different bits."""
    if first.tobytes() != second.tobytes():
        where = np.argwhere(first != second)
        at = tuple(where[0].tolist())
        kinds = [x[at].reshape(1).view(operand.dtype)[0] for x in (first, second)]
        raise Mismatch(
            f"{name}{list(at)} is {kinds[0]} or {kinds[1]}: bits depend on placement, poison or pieces "
            f"({len(where)} of {first.size} differ)"
        )
