"""Which tile, blocks and parts suit a Winograd convolution."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.target import Target
from whet.dtypes import FLOAT32, DType
from whet.kernels.winograd_points import TAPS


def choose_winograd_tile(
    target: Target, channels: int, outputs: int, count: int | None, m: int, dtype: DType = FLOAT32, threads: int = 1
) -> tuple[int, int, int, int, int | None]:
    """(mr, nv, block, panels, depth) for a convolution of `channels` to `outputs`, of `count` tiles (None: many)."""
    lanes, element = target.lanes(dtype), dtype.bits // 8
    points, number = (m + TAPS - 1) ** 2, count or _MANY
    depth = None
    if points * channels * outputs * element > _POINT_WEIGHT_BYTES:
        room = target.l2_bytes * 3 // 20 // (points * 2 * lanes * element)
        depth = _even_depth(channels, lanes, max(lanes, min(room, _TAP_DEPTH)))
    row_bytes = points * channels * element
    most = target.l2_bytes // 4 // row_bytes if depth is None else min(_TAP_BLOCK, _TAP_SCRATCH_BYTES // row_bytes)
    most = max(most, _LEAST_BLOCK)
    inputs = number * -(-channels // lanes) * _INPUT_CYCLES

    def cost(shape: _Shape) -> float:
        mr, nv = shape.mr, shape.nv
        step = max(mr * nv / 2, (mr + nv) / 2, nv * target.vector_bits / 512 * _PANEL_CYCLES) + nv / 8
        sums = step + ((1 if depth is None else 1.5) * mr * nv + _TILE_CYCLES) / (depth or channels)
        blocks = -(-number // shape.block)
        rows = number // shape.block * _rounded(shape.block, mr) + _rounded(number % shape.block, mr)
        panels = -(-outputs // (nv * lanes))
        parts = -(-panels // shape.panels)
        # Each part takes the input to the points again, each block the taps. Threads wait for the last one.
        work = points * channels * rows / mr * parts * shape.panels * sums + parts * inputs
        if depth is not None:
            work += blocks * channels * parts * shape.panels * nv * WEIGHT_CYCLES[m]
        return work * -(-blocks * parts // threads) * threads / (blocks * parts)

    most_rows, most_vectors = (_MOST_ROWS, 3) if depth is None else (_MOST_TAP_ROWS, 2)
    shapes = []
    for mr, nv in _shapes(target, dtype):
        if mr > most_rows or nv > most_vectors:
            continue
        panels = -(-outputs // (nv * lanes))
        least = -(-number // max(most // mr * mr, mr))
        for blocks in sorted({least, _rounded(least, threads)}):
            block = min(number, _rounded(-(-number // blocks), mr))
            limit = max(1, _PART_PRODUCTS // (points * block * channels * nv * lanes))
            for parts in range(1, min(panels, 2 * threads) + 1):
                each = -(-panels // parts)
                if count is None:
                    each = min(each, _UNKNOWN_PANELS)
                shapes.append(_Shape(mr, nv, block, min(each, limit)))
    best = min(shapes, key=cost)
    return best.mr, best.nv, best.block, best.panels, depth


@dataclass(frozen=True, slots=True)
class _Shape:
    mr: int
    nv: int
    block: int
    panels: int


_MANY = 3136
"""Tiles where their number is not known."""
_POINT_WEIGHT_BYTES = 1 << 20
"""Weights at the points that are larger cost more to fetch, and memory, than to make again from taps."""
_TAP_DEPTH = 32
"""Channels of a part, about: short parts let the fetching of taps and the work on them overlap."""
_TAP_BLOCK = 32
_TAP_SCRATCH_BYTES = 6 << 20
"""Tiles in a block that makes its weights, and most memory for their input at the points."""
_LEAST_BLOCK = 8
_PART_PRODUCTS = 250_000_000
"""Multiplications of a tile of the grid at most, about 2 ms: between such tiles a run can be stopped."""
WEIGHT_CYCLES = {2: 45, 4: 85}
"""By m: to take a vector of taps to the points."""
_UNKNOWN_PANELS = 4
"""Panels of a part where there may be only one block of tiles."""
_INPUT_CYCLES = 250
"""To take a vector of a tile's channels to the points, where it is written to L2."""
_MOST_ROWS, _MOST_TAP_ROWS = 10, 8
"""Rows of sums at most: more find no room in L1, where the sums of earlier parts of the depth lie too."""
_PANEL_CYCLES = 2.6
"""Cycles to get 64 bytes of a panel from L2, measured on Zen 5."""
_TILE_CYCLES = 20


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _even_depth(channels: int, lanes: int, about: int) -> int:
    """Channels of a part, vectors of them, near `about` and such that the last part is full or nearly so."""

    def cost(depth: int) -> tuple[int, int]:
        parts = -(-channels // depth)
        return parts * depth + parts * lanes // 4, -depth

    return min(range(lanes, about * 3 // 2 + 1, lanes), key=cost)


def _shapes(target: Target, dtype: DType) -> list[tuple[int, int]]:
    """Tiles of sums (rows, vectors) that fit the registers."""
    by_lanes = target.architecture == "aarch64" and dtype.bits == 32
    found = []
    for nv in range(1, 5):
        room = target.vector_registers - nv
        most = room // (nv + 1) if by_lanes else (room - 1) // nv
        found += [(mr, nv) for mr in range(min(most, _MOST_ROWS), 0, -1)]
    return found
