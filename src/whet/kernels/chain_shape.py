"""How the work of a chain of convolutions is cut up, and what it then takes: cycles counted on one core."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from whet.codegen.target import Target
from whet.dtypes import FLOAT32, DType
from whet.kernels.chain import MOST_TAPS, Shape, ring_of
from whet.kernels.conv import Window
from whet.kernels.pairs import in_pairs
from whet.kernels.scalar_ops import COSTS
from whet.kernels.tile import Epilogue, even_size

_MOST_ROWS = 14
"""Pixels of a tile of sums: more need more code and no fewer loads."""
_SPARE_REGISTERS = 3
"""For pixels that are loaded ahead: with fewer, sums are spilled."""
_TILE_CYCLES = 14.0
"""To begin and end a tile of sums."""
_STORE_CYCLES = 1.2
"""For a vector of results, its epilogue left out."""
_LATENCY = 4.0
"""Cycles from a multiplication to the next one of the same sum, of which two are started in a cycle."""
_DEPTHWISE_CYCLES = 0.55
"""For a tap of a vector of results."""
_COPY_CYCLES = 1.6
"""To bring a vector into the ring."""
_CACHE_SHARE = 0.8
"""Of L2, what may be filled with what stands between the convolutions."""
_SHORT_STEPS, _SHORT_STEP_CYCLES, _LONG_STEP_CYCLES = 8, 0.1, 0.5
_UNEVEN = 0.06
"""Of the whole time, what threads wait for each other with one tile each."""


@dataclass(frozen=True, slots=True)
class ChainWork:
    """A chain on one image: its extents, channels in the middle and on both sides (None: no convolution there)."""

    window: Window
    channels: int
    image: tuple[int, int]
    out: tuple[int, int]
    inputs: int | None
    outputs: int | None
    expand_cycles: float = 0.0
    """Cycles of the expansion's epilogue for a vector; those of the others are the same however it is cut."""
    dtype: DType = FLOAT32


def epilogue_cycles(epilogue: Epilogue | None) -> float:
    """Cycles of an epilogue for a vector, about: a short one is done beside the multiplications of the next tile."""
    steps = 0 if epilogue is None else sum(COSTS.get(step.op, 1) for step in epilogue.tape.steps)
    return steps * (_SHORT_STEP_CYCLES if steps <= _SHORT_STEPS else _LONG_STEP_CYCLES)


def chain_refusal(target: Target, work: ChainWork) -> str | None:
    """Why there is no kernel for a chain, or None."""
    if work.channels % target.lanes(work.dtype):
        return "its channels in the middle are no whole vectors"
    if work.window.taps > MOST_TAPS:
        return f"more than {MOST_TAPS} taps"
    if any(pad < 0 for pad in work.window.pads) or min(*work.out, *work.image) < 1:
        return "pads that cut the image, or none of it left"
    if ring_of(work.window, work.image, work.out, 1).inside < 1:
        return "pads that are wider than the output"
    return None


@functools.lru_cache(maxsize=1024)
def choose_chain_shape(target: Target, work: ChainWork, threads: int) -> tuple[Shape, float] | None:
    """The cut with the shortest time for `threads` threads, and their cycles for an image; None where the cache is
    too small for every cut."""
    best: tuple[Shape, float] | None = None
    for shape in _shapes(target, work, threads):
        cycles = _cycles(target, work, shape, threads)
        if cycles is not None and (best is None or cycles < best[1]):
            best = shape, cycles
    return best


def _shapes(target: Target, work: ChainWork, threads: int) -> Iterator[Shape]:
    lanes = target.lanes(work.dtype)
    vectors = work.channels // lanes
    inside = ring_of(work.window, work.image, work.out, 1).inside
    most = _MOST_ROWS if target.vector_registers >= 32 else 6
    pixels = even_size(work.out[1], most)
    kept, project = 1, (1, 1)
    if work.outputs is not None:
        kept, project = _project_tile(target, work, -(-work.outputs // lanes))
    for nv in (n for n in range(1, 5) if vectors % n == 0):
        expand_rows = even_size(inside, min(most, _tile_rows(target, nv)))
        panels = vectors // nv
        # All panels where they are projected together; else one, a thread's half, or all.
        groups = {panels} if work.outputs is not None else {1, -(-panels // (2 * threads)), panels}
        for group in sorted(groups):
            for bands in sorted({n * threads // 2 for n in (1, 2, 3, 4, 6, 8)} | {1}):
                band = -(-work.out[0] // max(1, min(bands, work.out[0])))
                yield Shape(nv, group, expand_rows, pixels, min(kept, band), band, *project)


def _tile_rows(target: Target, vectors: float) -> int:
    """Most pixels of a tile of sums that fits the registers, beside a row of weights and a few pixels."""
    return max(1, int((target.vector_registers - _SPARE_REGISTERS - vectors) / vectors))


def _project_tile(target: Target, work: ChainWork, vectors: int) -> tuple[int, tuple[int, int]]:
    """(output rows at a time, (pixels, vectors) of a tile of sums) for the projection."""

    def cost(rows: int, mr: int, nv: int) -> float:
        return _project_cycles(target, work, rows * work.out[1], mr, nv) / rows

    candidates = [
        (rows, mr, nv)
        for rows in range(1, max(1, 56 // work.out[1]) + 1)
        for nv in range(1, 5)
        for mr in range(1, min(_MOST_ROWS, _tile_rows(target, _filled(target, work, nv)), rows * work.out[1]) + 1)
    ]
    rows, mr, nv = min(candidates, key=lambda c: cost(*c))
    return rows, (mr, nv)


def _filled(target: Target, work: ChainWork, vectors: int) -> float:
    """Vectors of a tile of the projection that are computed for each pixel."""
    return vectors - 0.5 * in_pairs(target, work.dtype, work.outputs or 0, vectors)


def _project_cycles(target: Target, work: ChainWork, pixels: int, rows: int, vectors: int) -> float:
    """Cycles to project so many pixels in tiles of rows x vectors."""
    panels = -(-(work.outputs or 0) // (vectors * target.lanes(work.dtype)))
    filled = _filled(target, work, vectors)
    whole, rest = divmod(pixels, rows)
    total = whole * _tile_cycles(rows, filled, work.channels)
    return panels * (total + (_tile_cycles(rest, filled, work.channels) if rest else 0.0))


def _tile_cycles(rows: int, vectors: float, depth: int, epilogue: float = 0.0) -> float:
    step = max(rows * vectors / 2, (rows + vectors) / 2, _LATENCY / 2)
    return step * depth + rows * vectors * (_STORE_CYCLES + epilogue) + _TILE_CYCLES


def _cycles(target: Target, work: ChainWork, shape: Shape, threads: int) -> float | None:
    lanes = target.lanes(work.dtype)
    vectors = work.channels // lanes
    panels = vectors // shape.vectors
    ring = ring_of(work.window, work.image, work.out, shape.rows)
    width = shape.vectors * lanes
    held = shape.panels * ring.rows * ring.columns * width
    if work.outputs is not None:
        held += shape.rows * work.out[1] * work.channels + work.outputs * work.channels
    if work.inputs is not None:
        held += width * work.inputs
    if held * work.dtype.bits // 8 > _CACHE_SHARE * target.l2_bytes:
        return None
    reach = (work.window.kernel[0] - 1) * work.window.dilations[0] + 1
    read = min((shape.band - 1) * work.window.strides[0] + reach, work.image[0])
    if work.inputs is None:
        line = ring.inside * shape.vectors * _COPY_CYCLES
    else:
        whole, rest = divmod(ring.inside, shape.expand_rows)
        line = whole * _tile_cycles(shape.expand_rows, shape.vectors, work.inputs, work.expand_cycles)
        line += _tile_cycles(rest, shape.vectors, work.inputs, work.expand_cycles) if rest else 0.0
    tiles = -(-work.out[1] // shape.pixels)
    row = shape.vectors * (work.out[1] * (work.window.taps * _DEPTHWISE_CYCLES + _STORE_CYCLES) + tiles * _TILE_CYCLES)
    tile = shape.panels * (read * line + shape.band * row)
    if work.outputs is not None:
        pixels = shape.band * work.out[1]
        tile += _project_cycles(target, work, pixels, shape.project_rows, shape.project_vectors)
    count = -(-panels // shape.panels) * -(-work.out[0] // shape.band)
    rounds = -(-count // threads)
    return rounds * tile * (1 + _UNEVEN * min(threads - 1, 1) / rounds)
