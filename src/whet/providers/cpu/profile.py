"""What a run's time stamps say: one event for each step."""

from __future__ import annotations

from collections.abc import Iterator

from whet.compiler.assemble import Blueprint
from whet.graph.dims import Known
from whet.providers.base import ProfileEvent
from whet.runtime import program as p
from whet.runtime.context import RunContext
from whet.runtime.program import Program, Table

PROVIDER = "CPUExecutionProvider"


def step_events(blueprint: Blueprint, program: Program, stamps: Table, context: RunContext) -> Iterator[ProfileEvent]:
    """Events of the rows that were done: operators, tactic, arithmetic and bytes, so that rates can be told."""
    extents = {name: context.slot(slot) for name, slot in blueprint.names.items()}

    def number(value: Known) -> int:
        return value if isinstance(value, int) else value.evaluate(extents)

    kernels = [row for row in range(len(program.rows)) if program.rows[row, 0] == p.KERNEL]
    for row, step in zip(kernels, blueprint.steps, strict=True):
        start, duration, times = (int(n) for n in stamps[row])
        if not times:
            continue
        flops, nbytes = number(step.flops) * times, number(step.nbytes) * times
        arguments = {
            "tactic": step.tactic,
            "parallel": step.parallel,
            "flops": flops,
            "bytes": nbytes,
            "gflops": flops / max(duration, 1),
            "gbytes": nbytes / max(duration, 1),
        }
        yield ProfileEvent(step.name, step.ops, PROVIDER, start, duration, arguments)
