"""Square blocks of 32-bit elements transposed in registers."""

from __future__ import annotations

from collections.abc import Sequence

from whet.codegen.lang import LanguageError, Pointer, Value, shuffle
from whet.codegen.values import constant_vector
from whet.dtypes import BOOL


def transpose(rows: Sequence[Value]) -> list[Value]:
    """The columns of a square block, given as vectors of 4, 8 or 16 elements.

    First 4x4 blocks inside 128-bit quarters, where x86 shuffles are cheapest, then the blocks among each other.
    """
    lanes = rows[0].lanes
    if len(rows) != lanes or lanes not in (4, 8, 16):
        raise LanguageError("no square block", found=f"{len(rows)} x {lanes}", expected="4, 8 or 16")
    # quarters[c][g]: in its 128-bit part number b, column 4 b + c of rows 4 g to 4 g + 3.
    quarters: list[list[Value]] = [[] for _ in range(4)]
    for g in range(0, lanes, 4):
        a, b, c, d = rows[g : g + 4]
        low, high = (0, 0, 1, 1), (2, 2, 3, 3)
        ab_low, ab_high = _zip(a, b, low), _zip(a, b, high)
        cd_low, cd_high = _zip(c, d, low), _zip(c, d, high)
        quarters[0].append(_pairs(ab_low, cd_low, 0))
        quarters[1].append(_pairs(ab_low, cd_low, 2))
        quarters[2].append(_pairs(ab_high, cd_high, 0))
        quarters[3].append(_pairs(ab_high, cd_high, 2))
    columns = [_transpose_parts(q) for q in quarters]
    return [columns[i % 4][i // 4] for i in range(lanes)]


def _zip(a: Value, b: Value, order: Sequence[int]) -> Value:
    """Elements `order` of every 128-bit part, in turn from a and b."""
    n = a.lanes
    return shuffle(a, b, [base + i + (n if odd % 2 else 0) for base in range(0, n, 4) for odd, i in enumerate(order)])


def _pairs(a: Value, b: Value, first: int) -> Value:
    """Elements first and first + 1 of every 128-bit part of a, then of b."""
    n = a.lanes
    return shuffle(
        a, b, [base + first + i + (n if i2 else 0) for base in range(0, n, 4) for i2 in (0, 1) for i in (0, 1)]
    )


def _parts(a: Value, b: Value, chosen: Sequence[int]) -> Value:
    """128-bit parts of a (0 to n-1) and b (n to 2n-1)."""
    return shuffle(a, b, [4 * part + i for part in chosen for i in range(4)])


def _transpose_parts(q: list[Value]) -> list[Value]:
    """Square blocks of 128-bit parts transposed."""
    if len(q) == 1:
        return q
    if len(q) == 2:
        return [_parts(q[0], q[1], (0, 2)), _parts(q[0], q[1], (1, 3))]
    front = _parts(q[0], q[1], (0, 1, 4, 5)), _parts(q[2], q[3], (0, 1, 4, 5))
    back = _parts(q[0], q[1], (2, 3, 6, 7)), _parts(q[2], q[3], (2, 3, 6, 7))
    return [_parts(*half, chosen) for half in (front, back) for chosen in ((0, 2, 4, 6), (1, 3, 5, 7))]


def load_square(rows: Sequence[Pointer], count: int) -> list[Value]:
    """The first `count` elements at each of `rows` pointers, in vectors of as many lanes as there are rows; zeros
    after them, whose memory is not touched."""
    lanes = len(rows)
    if count == lanes:
        return [row.load(0, lanes) for row in rows]
    mask = constant_vector(rows[0].emitter, BOOL, [i < count for i in range(lanes)])
    return [row.load_masked(mask) for row in rows]
