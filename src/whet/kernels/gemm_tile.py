"""The tile of a matrix product: rows and vectors of its micro-kernel, and how the product is cut into tiles of work."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

from whet.codegen.target import Target
from whet.dtypes import FLOAT32, DType
from whet.kernels.tile import CACHE_LINE_BITS, UNROLL

MOST_ROW_TILES = 8
"""Row tiles in a block: enough that a panel's way from L3 is hidden."""
MOST_VECTORS = 6
_MOST_ROWS = 12
"""Row addresses that fit the registers beside what else a micro-kernel needs (x86-64 has 15)."""
_MANY_ROWS = 10**4
"""Rows of a product of which nothing is known."""
_LEAST_MULTIPLE = 16
"""A product whose rows are a multiple of so many or more is cut for one of them: a batch of one is the usual one."""
_MOST_WHOLE_TILES = 40
"""Row tiles of a block that is all rows of an image."""
_TILE_CYCLES = 60_000
"""Of a tile at most, about: some tens of microseconds, so that handing it out costs nothing."""
_LEAST_TILE_CYCLES = 4_000
"""Of a tile of a small product, which is handed out in a tenth of the time."""
_TILES = 16
"""Enough for a few threads to finish at about the same time."""
_LINE_CYCLES = 2.6
"""Cycles to get 64 bytes of a panel from L2, measured on Zen 5."""
_FAR_LINE_CYCLES = 3.9
"""The same where two panels and a block of A are more than L2 holds."""
_LOAD_CYCLES = 0.06
"""What a load costs where it is not what limits a tile: some meet a cache that is busy."""
_A_BYTES, _B_BYTES, _AHEAD_BYTES = 6.0, 6.0, 20.0
"""Bytes in a cycle of what another core has written, of weights from memory, and of weights that are fetched ahead."""
_SUM_CYCLES, _SUMS_CYCLES = 1.0, 20
"""To write a vector of sums, and to begin and end a tile of them."""
_HAND_OUT_CYCLES = 200
"""To begin a tile of work."""
_WAIT_SHARE = 0.25
"""Of a tile, for which threads wait at the end."""
_MOST_RESTS = 2
"""Sizes of what is left over that have code of their own."""
_LIKELY_ROW_TILES = 12
"""Of a product of unknown rows."""
_AHEAD_ROWS = 1024
"""Up to so many rows fetching weights takes a noticeable part of a product's time."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The extents of a product, or of each of `batch` products that are done together by `threads` threads.

    `m` None: all that is known of it is that it is a multiple of `multiple`.
    """

    n: int
    k: int
    m: int | None = None
    multiple: int = 1
    dtype: DType = FLOAT32
    batch: int = 1
    threads: int = 1
    most_rows: int = _MANY_ROWS
    """Of a block, or a micro-kernel's if those are more."""

    @property
    def rows(self) -> int:
        """Rows to plan for."""
        if self.m:
            return self.m
        return self.multiple if self.multiple >= _LEAST_MULTIPLE else _MANY_ROWS

    @property
    def element(self) -> int:
        return self.dtype.bits // 8


@dataclass(frozen=True, slots=True)
class GemmTile:
    """`mr` rows x `nv` vectors in registers; a tile of work is `m_block` rows x `panels` panels of B.

    `ahead`: cache lines of the next panel that are fetched in each round of the depth loop.
    """

    mr: int
    nv: int
    m_block: int
    panels: int
    ahead: int = 0


@functools.lru_cache(maxsize=1024)
def choose_tile(target: Target, problem: Problem) -> GemmTile:
    """The cheapest of the candidates, the first of equal ones."""
    return min(candidates(target, problem), key=lambda tile: tile_cost(target, problem, tile))


def candidates(target: Target, problem: Problem) -> list[GemmTile]:
    """All tiles that are worth a thought; each fits the registers."""
    return [
        _with_ahead(target, problem, _with_panels(target, problem, mr, nv, m_block))
        for mr, nv in register_tiles(target, problem.dtype, problem.rows)
        for m_block in _row_blocks(target, problem, mr)
    ]


def tile_cost(target: Target, problem: Problem, tile: GemmTile) -> float:
    """Cycles, about; of the thread that has most to do, times the threads."""
    rows, m_block = problem.rows, tile.m_block
    all_panels = _panels(target, problem, tile.nv)
    whole, rest = divmod(rows, m_block)
    block = _block_cycles(target, problem, tile, m_block)
    column = whole * block + (_block_cycles(target, problem, tile, rest) if rest else 0)
    groups = -(-all_panels // tile.panels)
    tiles = problem.batch * groups * -(-rows // m_block)
    total = column * all_panels * problem.batch + _HAND_OUT_CYCLES * tiles
    if problem.threads == 1:
        return total
    # Row blocks are dealt out first: with one group of panels a thread has some of the rows and all of B, else the
    # other way round.
    a, b = (n * problem.k * problem.element for n in (rows, problem.n))
    shared_b = groups == 1 or problem.batch > 1
    moved = (a if shared_b else a * problem.threads) / _A_BYTES
    moved += (b * problem.threads if shared_b else b) / (_AHEAD_BYTES if tile.ahead else _B_BYTES)
    # Threads that have done their share take single tiles of others; they do not begin at once, so that there is always
    # one that waits for a part of a tile.
    rest_block = column - whole * block
    sizes = [(problem.batch * groups * whole, block * tile.panels), (problem.batch * groups, rest_block * tile.panels)]
    wait = _WAIT_SHARE * block * tile.panels
    return max(problem.threads * _longest(sizes, problem.threads), total + problem.threads * wait) + moved


def _longest(sizes: list[tuple[int, float]], threads: int) -> float:
    """The work of the thread that has most to do, for so many tiles of each size, the large ones first."""
    loads = [0.0] * threads
    for count, cycles in sizes:
        each, left = divmod(count, threads)
        if not cycles:
            continue
        if each > 1:
            loads = [load + (each - 1) * cycles for load in loads]
            left += threads
        elif each:
            left += threads
        for _ in range(left):
            least = loads.index(min(loads))
            loads[least] += cycles
    return max(loads)


def rests(m_block: int, mr: int, m: int | None, multiple: int) -> list[int] | None:
    """Rows that may be left over behind whole tiles of `mr` in a block, where they are few; None: any number."""
    if m is not None:
        blocks = {m_block, m % m_block}
    else:
        blocks = {m_block, *range(0, m_block, gcd(multiple, m_block))}
    found = {rows % mr for rows in blocks} - {0}
    return sorted(found) if m is not None or len(found) <= _MOST_RESTS else None


def register_tiles(target: Target, dtype: DType, rows: int) -> Iterator[tuple[int, int]]:
    """(rows, vectors) that fit the registers."""
    by_lanes = target.architecture == "aarch64" and dtype.bits == 32
    for nv in range(1, MOST_VECTORS + 1):
        room = target.vector_registers - nv
        # Elements of A take one register, or one for each row where they are loaded four steps at a time.
        most = room // (nv + 1) if by_lanes else (room - 1) // nv
        most = min(most, _MOST_ROWS, rows)
        # Half of the registers is too few, whatever rows are left over.
        yield from ((mr, nv) for mr in range(most, most // 2, -1))


def even_block(rows: int, mr: int, most: int) -> int:
    """Rows of a block, at most `most` tiles of `mr`, so that the blocks of `rows` are about equal."""
    blocks = -(-rows // (most * mr))
    return min(rows, -(-rows // (blocks * mr)) * mr)


def ahead_lines(target: Target, nv: int, row_tiles: int) -> int:
    """Cache lines to fetch in a round of the depth loop so that `row_tiles` tiles fetch a whole panel."""
    return -(-UNROLL * nv * target.vector_bits // (CACHE_LINE_BITS * max(row_tiles, 1)))


def _row_blocks(target: Target, problem: Problem, mr: int) -> list[int]:
    rows = problem.rows
    row = max(problem.k, 1) * problem.element
    most = max(1, min(MOST_ROW_TILES, target.l2_bytes // 2 // (mr * row), problem.most_rows // mr))
    found = [even_block(rows, mr, most)]
    if rows != _MANY_ROWS:
        found.append(min(rows, mr * most))
        if -(-rows // mr) <= _MOST_WHOLE_TILES:
            found += [rows, even_block(rows, mr, -(-rows // (2 * mr)))]
    return [block for block in dict.fromkeys(found) if block <= max(problem.most_rows, mr)]


def _with_panels(target: Target, problem: Problem, mr: int, nv: int, m_block: int) -> GemmTile:
    tile = GemmTile(mr, nv, m_block, 1)
    all_panels = _panels(target, problem, nv)
    panel = _block_cycles(target, problem, tile, m_block)
    total = problem.batch * panel * all_panels * -(-problem.rows // m_block)
    if m_block * problem.k * problem.element > target.l2_bytes // 2:
        # Rows of A do not stay until the next panel.
        return tile
    wanted = min(_TILE_CYCLES, max(_LEAST_TILE_CYCLES, total / max(_TILES, 4 * problem.threads)))
    parts = -(-all_panels // max(1, round(wanted / panel)))
    return GemmTile(mr, nv, m_block, max(1, -(-all_panels // max(1, parts))))


def _with_ahead(target: Target, problem: Problem, tile: GemmTile) -> GemmTile:
    rows = tile.m_block if tile.panels > 1 or problem.rows == _MANY_ROWS else problem.rows
    row_tiles = -(-rows // tile.mr)
    if problem.rows == _MANY_ROWS and tile.panels == 1:
        row_tiles = max(row_tiles, _LIKELY_ROW_TILES)
    many = problem.rows > _AHEAD_ROWS and problem.rows != _MANY_ROWS
    small = 4 * problem.k * tile.nv * target.vector_bits // 8 <= target.l1_bytes
    if many or small or row_tiles == 1 or _panels(target, problem, tile.nv) == 1:
        return tile
    return GemmTile(tile.mr, tile.nv, tile.m_block, tile.panels, ahead_lines(target, tile.nv, row_tiles))


def _panels(target: Target, problem: Problem, nv: int) -> int:
    return max(1, -(-problem.n // (nv * target.lanes(problem.dtype))))


def _block_cycles(target: Target, problem: Problem, tile: GemmTile, rows: int) -> float:
    """Of a block of `rows` and one panel."""
    whole, rest = divmod(rows, tile.mr)
    cycles = whole * _cycles(target, problem, tile.mr, tile.nv)
    if not rest:
        return cycles
    known = rests(tile.m_block, tile.mr, problem.m, problem.multiple)
    pieces = [rest] if known is not None else [1 << i for i in range(rest.bit_length()) if rest >> i & 1]
    return cycles + sum(_cycles(target, problem, piece, tile.nv) for piece in pieces)


def _cycles(target: Target, problem: Problem, mr: int, nv: int) -> float:
    """Of a tile, about: 2 fma and 2 loads a cycle, panels from the cache that holds them, sums written once."""
    vector = target.vector_bits // 8
    panel = problem.k * nv * vector
    block = min(problem.rows, MOST_ROW_TILES * mr) * problem.k * problem.element
    if 2 * panel <= target.l1_bytes:
        line = 0.5
    else:
        line = _LINE_CYCLES if 2 * panel + block <= target.l2_bytes else _FAR_LINE_CYCLES
    step = max(mr * nv / 2, (mr + nv) / 2, nv * vector * 8 / CACHE_LINE_BITS * line)
    step += _LOAD_CYCLES * (mr + nv)
    return step * problem.k + _SUM_CYCLES * mr * nv + _SUMS_CYCLES
