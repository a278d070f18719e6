"""Tiles of sums whose last vector is at most half full: two rows share it, so that nothing is computed for nobody."""

from __future__ import annotations

from typing import Any

import numpy as np

from whet.codegen.lang import Function, Pointer, Value, Variables, broadcast, shuffle
from whet.codegen.target import Target
from whet.dtypes import DType
from whet.kernels.gemm import pack_b
from whet.kernels.tile import UNROLL, Rows, Tile, multiply_add, times

Array = np.ndarray[Any, Any]


def in_pairs(target: Target, dtype: DType, columns: int, vectors: int) -> bool:
    """Whether a matrix of so many columns is one panel of `vectors` vectors that is worth computing in pairs of rows.

    Where a vector is blended from two numbers beside the multiplications.
    """
    lanes = target.lanes(dtype)
    return target.has("avx512f") and 0 < columns % lanes <= lanes // 2 and -(-columns // lanes) == vectors


def pack_pairs(matrix: Array, width: int, lanes: int) -> Array:
    """B [k, n] as `pack_b` packs it in one panel, its last vector's first half in both halves."""
    packed = pack_b(matrix, width)
    packed[..., width - lanes // 2 :] = packed[..., width - lanes : width - lanes // 2]
    return packed


class PairSums:
    """A tile of sums; of the last column of vectors, one for each two rows."""

    def __init__(self, k: Function, tile: Tile) -> None:
        self.k = k
        self._tile = tile
        whole = [(i, j) for i in range(tile.rows) for j in range(tile.vectors - 1)]
        shared = [(i, tile.vectors - 1) for i in range(0, tile.rows, 2)]
        zero = k.constant(tile.dtype, 0, tile.lanes)
        self._sums: Variables[tuple[int, int], Value] = k.variables(dict.fromkeys([*whole, *shared], zero))

    @property
    def tile(self) -> Tile:
        return self._tile

    def add_products(self, a: Rows, b: Pointer, depth: int) -> None:
        """Add the product of rows `a` and the panel at `b` (`pack_pairs`), over `depth`."""
        main = depth - depth % UNROLL
        if main:
            with self.k.loop(main, step=UNROLL) as p:
                starts = a.at(p)
                for step in range(UNROLL):
                    self._step([start.load(step) for start in starts], b + times(p + step, self.tile.width))
        starts = a.at(main)
        for step in range(depth % UNROLL):
            self._step([start.load(step) for start in starts], b + (main + step) * self.tile.width)

    def _step(self, column: list[Value], row: Pointer) -> None:
        tile, sums = self.tile, self._sums
        last, half = tile.vectors - 1, tile.lanes // 2
        vectors = [row.load(j * tile.lanes, tile.lanes) for j in range(tile.vectors)]
        blend = [*range(half), *range(tile.lanes + half, 2 * tile.lanes)]
        for i in range(0, tile.rows, 2):
            pair = [broadcast(number, tile.lanes) for number in column[i : i + 2]]
            for number, factor in enumerate(pair):
                for j in range(last):
                    sums[i + number, j] = multiply_add(vectors[j], factor, sums[i + number, j])
            both = shuffle(pair[0], pair[1], blend) if len(pair) == 2 else pair[0]
            sums[i, last] = multiply_add(vectors[last], both, sums[i, last])

    def totals(self) -> list[list[Value]]:
        """The sums by row and vector; the second half of each last one means nothing."""
        tile, last = self.tile, self.tile.vectors - 1
        rows = []
        for i in range(tile.rows):
            shared = self._sums[i - i % 2, last]
            if i % 2:
                half = tile.lanes // 2
                shared = shuffle(shared, None, [*range(half, tile.lanes), *range(half)])
            rows.append([*(self._sums[i, j] for j in range(last)), shared])
        return rows
