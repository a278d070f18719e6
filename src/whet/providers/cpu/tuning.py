"""Tuning in place: variants of a subgraph's program, run on memory like a run's own."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from whet.codegen.target import Target
from whet.compiler.lowering import LowerEnv, dtype_of, shape_of
from whet.compiler.specialize import Specialized
from whet.compiler.tactics.question import Choices, Question
from whet.compiler.views import HINT_EXTENT
from whet.compiler.weights import Array
from whet.dtypes import BOOL, DType
from whet.errors import Fail, WhetError
from whet.graph.dims import Known
from whet.providers.base import ShapeRange
from whet.providers.cpu.plan import Plan
from whet.providers.cpu.specialization import Specialization, compile_specialization
from whet.runtime import program as p
from whet.runtime.addresses import data_address
from whet.runtime.context import RunContext
from whet.runtime.loaded import LoadedProgram
from whet.runtime.memory import Area, result_array
from whet.runtime.program import Program, Table
from whet.tuning.cache import TimingCache
from whet.tuning.machine import machine_fields
from whet.tuning.settings import Tuning
from whet.tuning.timing import Measured
from whet.tuning.tuner import Outcome, tune

LOGGER = logging.getLogger("whet")

WARM_SHARE = 2
"""Weights of more than this many L3 caches leave nothing of one run for the next."""


def measured_choices(
    target: Target, cores: int, threads: int, settings: Tuning, extents: Mapping[str, int]
) -> Choices | None:
    """What the timing cache knows for runs with so many threads; None where there is no cache."""
    if settings.folder is None or not settings.folder.is_dir():
        return None
    cache = TimingCache(machine_fields(target, cores), settings.folder)
    known = cache.timings(threads)
    if cache.problem is not None:
        LOGGER.warning("the timing cache: %s", cache.problem)
    return Measured(known, extents) if known else None


def tune_program(
    specialized: Specialized, env: LowerEnv, threads: int, settings: Tuning, extents: Mapping[str, int],
    arrays: Sequence[Array] | None = None,
) -> Outcome | None:  # fmt: skip
    """Time the tactics of a specialized graph and keep the timings in the cache.

    `extents` are the free extents' numbers; `arrays` the inputs of a run, where there is one: else numbers are made up.
    A program that does not run on those is not tuned: a warning says so, and the result is None.
    """
    if settings.mode == "off" or settings.folder is None:
        return None
    cache = TimingCache(machine_fields(env.target, env.threads), settings.folder)
    if arrays is None:
        arrays = [
            _made_up(dtype_of(value), _numbers(shape_of(value), extents), index)
            for index, value in enumerate(specialized.graph.inputs)
        ]
    bench = _Bench(specialized, replace(env, choices=None), threads, arrays)
    try:
        outcome = tune(bench, cache.timings(threads), threads, extents, settings, cache.add)
    except WhetError as error:
        warnings.warn(f"this part of the model is not tuned: {error}", UserWarning, stacklevel=2)
        return None
    if cache.problem is not None:
        warnings.warn(f"the timing cache: {cache.problem}", UserWarning, stacklevel=2)
    return outcome


def usual_extents(
    specialized: Specialized, shapes: Sequence[ShapeRange], arrays: Sequence[Array] | None
) -> dict[str, int]:
    """The free extents to tune for, by name: a run's own, else what the session says is usual, else 1 for what comes
    first in its input and HINT_EXTENT."""
    found = {}
    for name, (index, axis) in zip(specialized.symbols, specialized.sources, strict=True):
        number = 1 if axis == 0 else HINT_EXTENT
        for wanted in shapes[:1]:
            usual = wanted.usual.get(specialized.graph.inputs[index].name)
            number = usual[axis] if usual is not None else wanted.extents.get(name, (0, number, 0))[1]
        found[name] = number if arrays is None else int(arrays[index].shape[axis])
    return found


class _Answers:
    """Answers questions as it is told, and remembers them."""

    def __init__(self, answers: Mapping[str, str]) -> None:
        self.answers = answers
        self.asked: list[Question] = []

    def pick(self, question: Question) -> str | None:
        self.asked.append(question)
        return self.answers.get(question.key)


class _Bench:
    def __init__(self, specialized: Specialized, env: LowerEnv, threads: int, arrays: Sequence[Array]) -> None:
        self._specialized, self._env, self._threads, self._arrays = specialized, env, threads, arrays
        self._symbols = tuple(int(arrays[index].shape[axis]) for index, axis in specialized.sources)
        self._arena: Area | None = None

    def build(self, answers: Mapping[str, str]) -> _Variant:
        recorder = _Answers(answers)
        made = compile_specialization(self._specialized, replace(self._env, choices=recorder))
        # Where the caches hold but a part of the weights, they are as cold after a run of the same variant.
        warm = sum(w.array.nbytes for w in made.blueprint.weights) < WARM_SHARE * self._env.target.l3_bytes
        variant = _Variant(made, recorder.asked, self._symbols, self._arrays, self._threads, warm, self._arena)
        self._arena = self._arena or variant.arena
        return variant


class _Variant:
    """A program with its kernels in memory, on inputs that all variants share."""

    def __init__(
        self, made: Specialization, asked: Sequence[Question], symbols: tuple[int, ...], arrays: Sequence[Array],
        threads: int, warm: bool, arena: Area | None,
    ) -> None:  # fmt: skip
        self.warms_up = warm
        self.asked: Sequence[Question] = tuple(asked)
        self._made, self._symbols = made, symbols
        plan = made.static_plan or made.plan(symbols)
        context = RunContext(plan.loaded, threads, arena)
        if context.prepare(symbols) != p.DONE:
            plan = made.plan(symbols, exact=True)
            context.rebind(plan.loaded)
            if context.prepare(symbols) != p.DONE:
                raise Fail("a program does not fit the extents that it is to be tuned for", found=symbols)
        self._context, self._plan = context, plan
        self._inputs = [data_address(array) for array in arrays]
        self._keep = (tuple(arrays), _outputs(plan, context, made.dtypes))
        self._results = [data_address(array) for array in self._keep[1]]
        self._rows = len(plan.loaded.program.rows)
        """Rows that are run: those behind the last watched node are left out."""

    @property
    def arena(self) -> Area:
        return self._context.arena

    def time(self, runs: int, watched: frozenset[str]) -> Sequence[Mapping[str, int]]:
        """Nanoseconds of the steps of each watched node, in each of some runs."""
        program = self._plan.loaded.program
        rows = [(index, program.nodes[int(row[5])]) for index, row in enumerate(program.rows) if row[0] == p.KERNEL]
        rows = [(index, label) for index, label in rows if label in watched]
        self._stop_after(max((index for index, _ in rows), default=0) + 1)
        stamps: Table = np.zeros((self._rows, 3), np.int64)
        found: list[dict[str, int]] = []
        for number in range(int(self.warms_up) + runs):
            outcome = self._context.run(self._inputs, self._results, timestamps=stamps)
            if outcome != p.DONE:
                node = program.nodes[int(program.rows[self._context.failed_row, 5])]
                raise Fail("the program fails on the inputs that it is tuned with", node=node, found=outcome)
            times: dict[str, int] = {}
            for index, label in rows:
                times[label] = times.get(label, 0) + int(stamps[index, 1])
            if number >= int(self.warms_up):
                found.append(times)
        return found

    def _stop_after(self, rows: int) -> None:
        """Run the first rows only, where rows follow one after the other."""
        whole = self._plan.loaded
        program: Program = whole.program
        straight = bool(np.isin(program.rows[1:, 0], (p.KERNEL,)).all())
        wanted = rows if straight else len(program.rows)
        if wanted == self._rows:
            return
        self._rows = wanted
        shorter = replace(program, rows=program.rows[:wanted])
        loaded = LoadedProgram(shorter, whole.kernels.tolist(), whole.weights.tolist(), whole)
        self._context.rebind(loaded)
        if self._context.prepare(self._symbols) != p.DONE:
            raise Fail("a program does not fit the extents that it is to be tuned for", found=self._symbols)


def _outputs(plan: Plan, context: RunContext, dtypes: Sequence[DType]) -> list[Array]:
    """Room for what a run gives."""
    sizes, at = context.slots[plan.output_slots].tolist(), 0
    made: list[Array] = []
    for index, (dims, dtype) in enumerate(zip(plan.blueprint.output_dims, dtypes, strict=True)):
        rank = 1 if index in plan.open_outputs else len(dims)
        made.append(result_array((max(math.prod(sizes[at : at + rank]), 1),), dtype.numpy))
        at += rank
    return made


def _numbers(shape: Sequence[Known], extents: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else max(d.evaluate(extents), 0) for d in shape)


def _made_up(dtype: DType, shape: tuple[int, ...], seed: int) -> Array:
    """Numbers that any program takes: floats of a usual size, and zeros where they may be indices."""
    if dtype.is_float:
        drawn: Array = np.random.default_rng(seed).standard_normal(shape, np.float32)
        return drawn.astype(dtype.numpy)
    return np.ones(shape, dtype.numpy) if dtype is BOOL else np.zeros(shape, dtype.numpy)
