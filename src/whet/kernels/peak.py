"""What the machine can do at most: kernels that do nothing but arithmetic, or nothing but read memory."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import fma
from whet.dtypes import FLOAT32, UINT8
from whet.kernels.base import Frame

ACCUMULATORS = 14
"""Chains of fma at once: more than any core's latency times its pipes, and few enough for 16 registers."""
READS = 16
"""Vectors that one round of `ReadRate` reads."""


@dataclass(frozen=True, slots=True)
class FmaRate:
    """`rounds` times ACCUMULATORS fused multiply-adds of whole float32 vectors in registers.

    Words: `out` address of one vector for each tile, `rounds`. Grid: any.
    """

    def emit(self, frame: Frame) -> None:
        k, lanes = frame.k, frame.target.lanes(FLOAT32)
        out, rounds = frame.address("out", FLOAT32), frame.number("rounds")
        with frame.tiles() as tile:
            # From memory, so that nothing is known of the numbers.
            factor = out.load(tile * lanes, lanes)
            totals = k.variables({i: factor + float(i) for i in range(ACCUMULATORS)})
            with k.loop(rounds):
                for i in range(ACCUMULATORS):
                    totals[i] = fma(totals[i], factor, factor)
            total = totals[0]
            for i in range(1, ACCUMULATORS):
                total = total + totals[i]
            out.store(total * 0.0, tile * lanes)


@dataclass(frozen=True, slots=True)
class ReadRate:
    """Reads `rounds` times READS vectors from the place of each tile, `repeats` times over.

    Words: `x`, `out` addresses (`out`: one vector for each tile), `stride` bytes between the places of two tiles,
    `rounds`, `repeats`. Grid: any.
    """

    def emit(self, frame: Frame) -> None:
        k, lanes = frame.k, frame.target.lanes(FLOAT32)
        x, out = frame.address("x", UINT8), frame.address("out", FLOAT32)
        stride, rounds, repeats = (k.index(frame.number(name)) for name in ("stride", "rounds", "repeats"))
        with frame.tiles() as tile:
            place = (x + tile * stride).as_type(FLOAT32)
            totals = k.variables({i: k.constant(FLOAT32, 0.0, lanes) for i in range(READS // 2)})
            with k.loop(repeats), k.loop(rounds) as index:
                at = index * (READS * lanes)
                for i in range(READS):
                    slot = i % (READS // 2)
                    totals[slot] = totals[slot] + place.load(at + i * lanes, lanes)
            total = totals[0]
            for i in range(1, READS // 2):
                total = total + totals[i]
            out.store(total, tile * lanes)


def fma_tile_flops(lanes: int, rounds: int) -> int:
    """Arithmetic operations of a tile of `FmaRate`."""
    return 2 * ACCUMULATORS * lanes * rounds


def read_round_bytes(lanes: int) -> int:
    """Bytes that a round of `ReadRate` reads."""
    return READS * lanes * 4
