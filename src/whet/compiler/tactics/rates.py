"""What a core does in a nanosecond, for costs: only the ratio of computing to fetching decides between tactics.

The rates are those that `whet.profiling.peak` measures (`whet bench --profile` shows them), written down: a choice that
hung on a measurement of the moment would differ from process to process. What is measured on the machine itself is the
tactics' times, by `whet tune`.
"""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.target import Target


@dataclass(frozen=True, slots=True)
class Rates:
    """`cycles_per_ns`: pairs of fused multiply-adds of whole vectors (the clock, where a core does two in a cycle).
    `memory_bytes_per_ns`: what one core reads from memory."""

    cycles_per_ns: float
    memory_bytes_per_ns: float


BY_CPU: dict[str, Rates] = {
    "znver5": Rates(4.2, 25.0),
    "znver4": Rates(1.84, 28.0),  # a vector of 512 bits takes two cycles of each unit
}
"""By LLVM's name of the CPU; measured."""
BY_VECTOR_BITS: dict[int, Rates] = {
    512: Rates(3.0, 13.0),  # servers: lower clocks, and memory shared by many cores
    256: Rates(3.8, 16.0),
    128: Rates(3.0, 25.0),
}
"""For all others: typical."""


def rates(target: Target) -> Rates:
    """The rates of a core of `target`."""
    return BY_CPU.get(target.cpu) or BY_VECTOR_BITS[target.vector_bits]
