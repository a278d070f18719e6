"""A Winograd convolution of few tiles: taps are taken to the points in registers, and multiplied there.

Where an image has only a handful of tiles, most of the work is to take the taps to the points, and to carry them
through memory on the way to so few products. Here the sums of a row of points stay in registers; for each channel the
taps' share in that row is computed and multiplied at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import Function, Pointer, minimum
from whet.codegen.target import Target
from whet.dtypes import FLOAT32, DType
from whet.kernels.base import Frame
from whet.kernels.tile import Tile, blocks_of, finish, left_over, multiply_add
from whet.kernels.winograd import Result, Source, Winograd
from whet.kernels.winograd_axis import Axis
from whet.kernels.winograd_planes import Planes
from whet.kernels.winograd_points import TAPS

_REGISTERS = 8
"""Registers for the taps' way to the points; the others hold sums."""
_SHARE_PRODUCTS = 250_000_000
"""Multiplications of a tile of the grid at most, about 4 ms: between such tiles a run can be stopped."""


def choose_few_tile(
    target: Target, channels: int, outputs: int, count: int | None, axis: Axis, dtype: DType = FLOAT32,
    threads: int = 1,
) -> tuple[int, int, int, int, int]:  # fmt: skip
    """(mr, nv, block, panels, depth) for a convolution of `channels` to `outputs`, of `count` tiles (None: many)."""
    lanes = target.lanes(dtype)
    room = max(1, (target.vector_registers - _REGISTERS) // axis.reach)
    blocks = 1 if count is None else max(-(-count // room), 1)
    block = room if count is None else max(-(-count // blocks), 1)
    # The taps of a part of the depth stay in L1 while all rows of points are done.
    most = max(target.l1_bytes // 2 // (TAPS * TAPS * lanes * dtype.bits // 8) // lanes, 1)
    vectors, panels = -(-channels // lanes), -(-outputs // lanes)
    depth = -(-vectors // -(-vectors // most)) * lanes
    shares = min(-(-threads // blocks), panels)
    limit = max(1, _SHARE_PRODUCTS // (axis.reach**2 * block * channels * lanes))
    return block, 1, block, max(1, min(-(-panels // shares), limit)), depth


@dataclass(frozen=True, slots=True)
class WinogradFew(Winograd):
    """`Winograd` with stride 1 from taps (`depth` is given), `nv` 1, and `block` equal to `mr`."""

    def emit(self, frame: Frame) -> None:
        k = frame.k
        assert self.depth is not None
        lanes = frame.target.lanes(self.dtype)
        source = Source(frame, self)
        weights = frame.address("w", self.dtype)
        everywhere = finish(frame, Tile(self.dtype, self.tile, 1, lanes), self.epilogue)
        strides = [frame.number("c_n")]
        for i, kind in enumerate(self.epilogue.operands if self.epilogue else ()):
            strides.append(frame.number(f"e{i}_n") if kind == "full" else 0)
        parts = -(-self.channels // self.depth)
        inputs = Planes(frame, self.dtype, self.points, self.block, self.depth, parts)
        products = Planes(frame, self.dtype, self.points, self.block, lanes)
        result = Result(k, self, lanes, source, everywhere, tuple(strides), products)
        panels = blocks_of(self.outputs, lanes)
        shares = blocks_of(self.outputs, lanes * self.panels)
        ready = k.variable(k.index(-1))
        size = self.depth * TAPS * TAPS * lanes
        with frame.tiles() as number:
            block, share = number / shares, number % shares
            first = block * self.block
            count = left_over(k, source.grid.count, first, self.block)
            with k.when(block != ready.value):
                with k.loop(count, nonempty=True) as row:
                    source.transform(first + row, inputs, row)
                ready.value = block
            first_panel = share * self.panels
            with k.loop(minimum(first_panel + self.panels, panels), start=first_panel, nonempty=True) as panel:
                products.clear(k, lanes)
                with k.loop(parts) as part:
                    taps = weights + (panel * parts + part) * size
                    for i in range(self.reach):
                        self._multiply_row(k, lanes, i, taps, inputs.memory + part * inputs.size, inputs, products)
                with k.loop(count, nonempty=True) as row:
                    result.write(first + row, row, panel)

    def _multiply_row(
        self, k: Function, lanes: int, i: int, taps: Pointer, a: Pointer, inputs: Planes, products: Planes
    ) -> None:
        """Add to the sums at row `i` of the points; meanwhile fetch what comes after these taps."""
        axis, n, depth = self.axis, self.reach, self.depth
        assert depth is not None
        places = {
            (j, row): (i * n + j) * products.plane + row * products.row for j in range(n) for row in range(self.block)
        }
        sums = k.variables({key: products.memory.load(place, lanes) for key, place in places.items()})
        step = TAPS * TAPS * lanes
        line = 512 // self.dtype.bits
        ahead = -(-step // (line * n))
        here, following = a + i * n * inputs.plane, taps + depth * (step + i * ahead * line)
        with k.loop(depth) as channel:
            tap = taps + channel * step
            for number in range(ahead):
                (following + channel * (ahead * line)).prefetch(number * line)
            columns = [
                axis.tap(i, [tap.load((down * TAPS + across) * lanes, lanes) for down in range(TAPS)])
                for across in range(TAPS)
            ]
            scalars = here + channel
            for j, weight in enumerate(axis.taps(columns)):
                for row in range(self.block):
                    scalar = scalars.load(j * inputs.plane + row * inputs.row)
                    sums[j, row] = multiply_add(weight, scalar, sums[j, row])
        for key, place in places.items():
            products.memory.store(sums[key], place)
