"""Which tile, blocks and parts suit a Winograd convolution."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.target import Target
from whet.dtypes import FLOAT32, DType
from whet.kernels.winograd_axis import Axis


def choose_winograd_tile(
    target: Target, channels: int, outputs: int, count: int | None, axis: Axis, dtype: DType = FLOAT32,
    threads: int = 1,
) -> tuple[int, int, int, int, int | None]:  # fmt: skip
    """(mr, nv, block, panels, depth) for a convolution of `channels` to `outputs`, of `count` tiles (None: many)."""
    lanes, element = target.lanes(dtype), dtype.bits // 8
    points, weights = axis.reach**2, axis.weights**2
    depth = None
    if weights * channels * outputs * element > _POINT_WEIGHT_BYTES:
        room = target.l2_bytes * 3 // 20 // (weights * 2 * lanes * element)
        depth = _even_depth(channels, lanes, max(lanes, min(room, _TAP_DEPTH)))
    row_bytes = points * channels * element
    most = target.l2_bytes // 2 // row_bytes if depth is None else min(_TAP_BLOCK, _TAP_SCRATCH_BYTES // row_bytes)
    limits = (_MOST_ROWS, 3) if depth is None else (_MOST_TAP_ROWS, 2)
    work = _Work(target, dtype, channels, outputs, points, count, threads, _INPUT_CYCLES, depth, WEIGHT_CYCLES[axis.m])
    best = work.best(max(most, _LEAST_BLOCK), *limits)
    return best.mr, best.nv, best.block, best.panels, depth


def choose_line_tile(
    target: Target, channels: int, outputs: int, count: int | None, points: int, dtype: DType = FLOAT32,
    threads: int = 1,
) -> tuple[int, int, int, int]:  # fmt: skip
    """(mr, nv, block, panels) for a convolution along lines, at `points` points."""
    most = target.l2_bytes // 2 // (points * channels * dtype.bits // 8)
    work = _Work(target, dtype, channels, outputs, points, count, threads, _LINE_INPUT_CYCLES)
    best = work.best(max(most, _LEAST_BLOCK), _MOST_ROWS, 3)
    return best.mr, best.nv, best.block, best.panels


@dataclass(frozen=True, slots=True)
class _Shape:
    mr: int
    nv: int
    block: int
    panels: int


@dataclass(frozen=True, slots=True)
class _Work:
    """Tiles, `count` of them if that is known, of `channels` to `outputs` numbers at `points` points."""

    target: Target
    dtype: DType
    channels: int
    outputs: int
    points: int
    count: int | None
    threads: int
    input_cycles: int
    depth: int | None = None
    weight_cycles: int = 0

    @property
    def number(self) -> int:
        return self.count or _MANY

    def best(self, most: int, most_rows: int, most_vectors: int) -> _Shape:
        """The shape that takes least time, with `most` tiles in a block at most."""
        number, lanes = self.number, self.target.lanes(self.dtype)
        shapes = []
        for mr, nv in _shapes(self.target, self.dtype):
            if mr > most_rows or nv > most_vectors:
                continue
            panels = -(-self.outputs // (nv * lanes))
            least = -(-number // max(most // mr * mr, mr))
            for blocks in sorted({least, _rounded(least, self.threads)}):
                block = min(number, _rounded(-(-number // blocks), mr))
                limit = max(1, _PART_PRODUCTS // (self.points * block * self.channels * nv * lanes))
                # Where there may be only one block of tiles, each thread has a part of its panels to do. Neighbouring
                # parts share their block's input at the points, so that this costs nothing where there are many.
                least_parts = 1 if self.count is not None else self.threads
                most_parts = 2 * self.threads if self.count is not None else self.threads
                for parts in range(min(panels, least_parts), min(panels, most_parts) + 1):
                    shapes.append(_Shape(mr, nv, block, min(-(-panels // parts), limit)))
        return min(shapes, key=self._cycles)

    def _cycles(self, shape: _Shape) -> float:
        mr, nv, number, channels, depth = shape.mr, shape.nv, self.number, self.channels, self.depth
        lanes = self.target.lanes(self.dtype)
        step = max(mr * nv / 2, (mr + nv) / 2, nv * self.target.vector_bits / 512 * _PANEL_CYCLES) + nv / 8
        sums = step + ((1 if depth is None else 1.5) * mr * nv + _TILE_CYCLES) / (depth or channels)
        blocks, least = -(-number // shape.block), number % shape.block
        panels = -(-self.outputs // (nv * lanes))
        parts = -(-panels // shape.panels)

        def tile(tiles: int) -> float:
            """A tile of the grid. Each part takes the input to the points again, each block the taps."""
            work = self.points * channels * _rounded(tiles, mr) / mr * shape.panels * sums
            work += tiles * -(-channels // lanes) * self.input_cycles
            return work if depth is None else work + channels * shape.panels * nv * self.weight_cycles

        if self.threads == 1:
            return parts * ((number // shape.block) * tile(shape.block) + (tile(least) if least else 0))
        # Threads wait for the one with the largest tiles.
        return tile(shape.block) * -(-blocks * parts // self.threads)


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
_INPUT_CYCLES = 250
"""To take a vector of a tile's channels to the points, where it is written to L2."""
_LINE_INPUT_CYCLES = 40
"""The same along a line."""
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
