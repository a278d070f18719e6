"""Square blocks of elements of 1, 2, 4 or 8 bytes, transposed in registers."""

from __future__ import annotations

from collections.abc import Sequence

from whet.codegen.lang import LanguageError, Value, shuffle

_PART_BYTES = 16
"""x86 shuffles are cheapest inside parts of 128 bits; NEON's registers are one part."""


def transpose_block(rows: Sequence[Value]) -> list[Value]:
    """The columns of a square block: as many vectors as each has elements, a power of two.

    First small squares inside the 128-bit parts, by interleaving ever larger groups of elements; then the parts among
    each other.
    """
    n = rows[0].lanes
    if len(rows) != n or n & (n - 1) or n < 2:
        raise LanguageError("no square block", found=f"{len(rows)} x {n}", expected="a power of two")
    part = min(n, _PART_BYTES * 8 // rows[0].dtype.bits)
    vectors = list(rows)
    group = 1
    while group < part:
        vectors = _interleaved(vectors, group, part)
        group *= 2
    # In lane base + j of vector i + c, with i a multiple of `part`: element base + c of row i + j.
    size = part
    while size < n:
        vectors = _swapped(vectors, size)
        size *= 2
    return vectors


def _interleaved(vectors: list[Value], group: int, part: int) -> list[Value]:
    """Pairs of vectors `group` apart become one with the lower and one with the upper halves of their parts, taken in
    turn by groups."""
    n = vectors[0].lanes
    result: list[Value] = list(vectors)
    half = part // 2
    for block in range(0, n, part):
        # Vectors first, ..., first + group - 1 hold columns; the next `group` the same columns of later rows.
        for first in range(block, block + part, 2 * group):
            for c in range(group):
                a, b = vectors[first + c], vectors[first + group + c]
                for upper in (0, 1):
                    order = []
                    for base in range(0, n, part):
                        start = base + upper * half
                        for at in range(start, start + half, group):
                            order += list(range(at, at + group))
                            order += list(range(n + at, n + at + group))
                    result[first + 2 * c + upper] = shuffle(a, b, order)
    return result


def _swapped(vectors: list[Value], size: int) -> list[Value]:
    """Squares of `size` lanes by `size` vectors change places across the diagonal of squares twice as large."""
    n = vectors[0].lanes
    result: list[Value] = list(vectors)
    for first in range(0, n, 2 * size):
        for i in range(first, first + size):
            a, b = vectors[i], vectors[i + size]
            low = [lane if lane % (2 * size) < size else n + lane - size for lane in range(n)]
            high = [lane + size if lane % (2 * size) < size else n + lane for lane in range(n)]
            result[i], result[i + size] = shuffle(a, b, low), shuffle(a, b, high)
    return result
