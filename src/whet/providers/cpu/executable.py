"""A compiled subgraph on the CPU: specializations by structural value, plans by class of extents, contexts by run."""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whet.codegen.target import host_target
from whet.compiler.lowering import LowerEnv, dtype_of
from whet.compiler.specialize import Specializer
from whet.compiler.weights import Array
from whet.dtypes import DType
from whet.errors import Fail, InvalidArgument, NotImplemented, ResourceExhausted, RuntimeException, Terminated
from whet.graph import Value
from whet.kernels.base import BAD_VALUE, EXTENT_MISMATCH, INDEX_OUT_OF_BOUNDS, STATUS_CODE_BITS
from whet.providers.base import CompileEnv, MemoryUse, RunState, ShapeRange, Subgraph
from whet.providers.cpu.batches import Batches
from whet.providers.cpu.plan import Plan
from whet.providers.cpu.profile import step_events
from whet.providers.cpu.specialization import Specialization, compile_specialization
from whet.providers.cpu.tuning import measured_choices, tune_program, usual_extents
from whet.runtime import program as p
from whet.runtime.addresses import data_address
from whet.runtime.context import RunContext
from whet.runtime.cores import core_budget
from whet.runtime.memory import result_array
from whet.runtime.team import team
from whet.runtime.values import RuntimeValue, Tensor
from whet.tuning.tuner import Outcome

SPECIALIZATIONS = 16
"""Sets of structural values (and, where branches depend on extents, of shapes) that keep their program."""

_alive: weakref.WeakSet[CpuExecutable] = weakref.WeakSet()
"""For the account of what is shared."""
_alive_lock = threading.Lock()


class Context:
    """A run context with what Python remembers of its last run."""

    __slots__ = ("__weakref__", "native", "outputs", "plan", "shapes", "specialization", "symbols")

    def __init__(self, native: RunContext, plan: Plan) -> None:
        self.native = native
        self.plan = plan
        self.specialization: Specialization | None = None
        self.symbols: tuple[int, ...] | None = None
        """The extents of its last run, of `specialization`."""
        self.shapes: list[tuple[int, ...]] = []
        """Of the inputs. Not all follow from the symbols: what another provider gives may belie its declared type."""
        self.outputs: list[tuple[tuple[int, ...], np.dtype[Any]]] = []
        """Shape and numpy type of each output."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The programs of an executable, by what they were made for."""

    structural: tuple[int, ...]
    """Inputs whose elements a program holds."""
    by_shape: bool
    """Whether each set of input shapes has a program of its own."""
    specializations: dict[Any, Specialization]
    """By ((shape, bytes) of each structural input, shapes of all inputs or None); the only one by ()."""


class CpuExecutable:
    """Runs one subgraph as machine code. Thread-safe: each run owns a context."""

    _by_shape: bool
    """Whether each set of input shapes has a program of its own."""
    _input_dtypes: tuple[DType, ...]
    """Of what other providers may give in another type; none for an engine, which has no other providers."""
    _only: Specialization | None
    """The program of all runs, where there is one."""

    def __init__(self, subgraph: Subgraph, env: CompileEnv) -> None:
        self._start(env)
        self._specializer: Specializer | None = Specializer(subgraph.model, env.limits)
        # The machine's cores and not this session's threads: the order of sums must not depend on a setting.
        self._lower_env = LowerEnv(host_target(), env.limits, env.goal, env.tactics, core_budget())
        self._input_dtypes = tuple(dtype_of(value) for value in self._specializer.inputs)
        self._structural = self._specializer.structural
        if not self._structural and not self._by_shape:
            try:
                self._only = self._specialize((), {}, None)
            except NotImplemented:
                # Something depends on the extents in a way that no expression holds: a program for each shape then.
                if not self._has_free_extents():
                    raise
                self._by_shape = True
        if self._only is not None and self._only.static_plan is not None:
            self._free.append(self._new_context(self._only.static_plan))
        if self._by_shape and not self._structural:
            self._prepare_shapes()

    @classmethod
    def from_stored(cls, stored: Stored, env: CompileEnv) -> CpuExecutable:
        """An executable with the programs of an engine, and no others."""
        made = cls.__new__(cls)
        made._start(env)
        made._specializer = None
        made._structural, made._by_shape = stored.structural, stored.by_shape
        made._specializations.update(stored.specializations)
        if not stored.structural and not stored.by_shape:
            made._only = stored.specializations[()]
        for specialization in stored.specializations.values():
            made._prepare_range(specialization)
        return made

    def stored(self) -> Stored:
        """The programs of this moment, for an engine."""
        with self._lock:
            return Stored(self._structural, self._by_shape, dict(self._specializations))

    def _start(self, env: CompileEnv) -> None:
        """What compiled and loaded executables have in common."""
        self._env = env
        self._threads = env.intra_op_threads or (1 if env.goal == "throughput" else core_budget())
        if env.goal == "throughput":
            # Runs side by side use all cores: a worker that waits for its next run would take one from them.
            team().set_idle_spin(0)
        self._by_shape = False
        self.tuned: list[Outcome] = []
        """What tuning did, for each program that it looked at."""
        self._lock = threading.Lock()
        self._specializations: OrderedDict[Any, Specialization] = OrderedDict()
        self._free: deque[Context] = deque()
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self._only = None
        self._input_dtypes = ()
        with _alive_lock:
            _alive.add(self)

    def _prepare_range(self, specialization: Specialization) -> None:
        """Lay out memory for the shapes that the session wants ready."""
        for wanted in self._env.shapes:
            ranges = [self._range_of(specialization, i, wanted) for i in range(len(specialization.sources))]
            known = [r for r in ranges if r is not None]
            if len(known) < len(ranges):
                continue  # an extent of a value between two parts: it is met when it comes
            plan = specialization.prepare(tuple(r[0] for r in known), tuple(r[2] for r in known))
            context = self._new_context(plan)
            arena = context.native.arena
            # No run has to wait for the system to find the pages.
            ctypes.memset(arena.address, 0, arena.nbytes)
            context.native.prepare(tuple(r[1] for r in known))
            self._free.append(context)

    def _range_of(self, specialization: Specialization, symbol: int, wanted: ShapeRange) -> tuple[int, int, int] | None:
        index, axis = specialization.sources[symbol]
        name = specialization.form.input_names[index]
        if name in wanted.most:
            return wanted.least[name][axis], wanted.usual[name][axis], wanted.most[name][axis]
        return wanted.extents.get(specialization.blueprint.program.symbols[symbol])

    def _prepare_shapes(self) -> None:
        """Compile for the shapes that the session wants ready, where each shape has its own program."""
        inputs = () if self._specializer is None else self._specializer.inputs
        for wanted in self._env.shapes:
            for shapes in (wanted.least, wanted.most, wanted.usual):
                given = [_shape(value, shapes) for value in inputs]
                if None not in given:
                    key = ((), tuple(given))
                    if key not in self._specializations:
                        self._specialize(key, {}, tuple(given))

    def _has_free_extents(self) -> bool:
        inputs = () if self._specializer is None else self._specializer.inputs
        return any(not isinstance(dim, int) for value in inputs for dim in value.shape or ())

    def _specialize(
        self, key: Any, values: dict[int, Any], shapes: Any, arrays: Sequence[Array] | None = None
    ) -> Specialization:
        if self._specializer is None:
            raise NotImplemented(
                "the engine holds no program for these inputs", found=f"shapes {shapes}" if shapes else f"{values}",
                hint="Run such inputs before the engine is saved, or use the model.",
            )  # fmt: skip
        specialized = self._specializer.specialize(values, shapes)
        settings, env = self._env.tuning, self._lower_env
        extents = usual_extents(specialized, self._env.shapes, arrays)
        outcome = tune_program(specialized, env, self._threads, settings, extents, arrays)
        if outcome is not None:
            self.tuned.append(outcome)
        choices = self._env.choices or measured_choices(env.target, env.threads, self._threads, settings, extents)
        made = compile_specialization(specialized, replace(env, choices=choices))
        self._prepare_range(made)
        with self._lock:
            self._specializations[key] = made
            while len(self._specializations) > SPECIALIZATIONS:
                self._specializations.popitem(last=False)
        return made

    def _specialization(self, arrays: Sequence[Any]) -> Specialization:
        if self._only is not None:
            return self._only
        values = {i: arrays[i] for i in self._structural}
        shapes = tuple(a.shape for a in arrays) if self._by_shape else None
        key = (tuple((a.shape, a.tobytes()) for a in values.values()), shapes)
        with self._lock:
            found = self._specializations.get(key)
            if found is not None:
                self._specializations.move_to_end(key)
                return found
        try:
            return self._specialize(key, values, shapes, arrays)
        except NotImplemented:
            if shapes is not None or not self._has_free_extents():
                raise
            self._by_shape = True
        return self._specialization(arrays)

    def run(self, inputs: Sequence[RuntimeValue], state: RunState) -> list[RuntimeValue]:
        """The subgraph's outputs, in memory of their own."""
        arrays = [_plain(value) for value in inputs]
        for index, (value, dtype) in enumerate(zip(inputs, self._input_dtypes, strict=False)):
            if isinstance(value, Tensor) and value.dtype is not dtype:
                arrays[index] = self._converted(index, value.dtype, arrays[index])
        arrays, dtypes = self._run(arrays, state)
        return [Tensor.from_numpy(a, dtype) for a, dtype in zip(arrays, dtypes, strict=True)]

    def _converted(self, index: int, found: DType, array: Array) -> Array:
        """What another provider gave, as the type that the program reads: the reference provider may widen numbers."""
        wanted = self._input_dtypes[index]
        if not (found.is_float and wanted.is_float):
            name = self._specializer.inputs[index].name if self._specializer is not None else None
            raise InvalidArgument("a value has another element type than its declared one", value=name,
                                  found=found, expected=wanted)  # fmt: skip
        return array.astype(wanted.numpy)

    def run_plain(self, arrays: Sequence[Array], state: RunState | None = None) -> list[Array]:
        """The outputs for inputs that are in C order, native and aligned; the shortest way from Python."""
        return self._run(arrays, state)[0]

    def _run(self, arrays: Sequence[Array], state: RunState | None) -> tuple[list[Array], tuple[DType, ...]]:
        specialization = self._only or self._specialization(arrays)
        symbols = tuple([arrays[i].shape[axis] for i, axis in specialization.sources])
        batches = specialization.batches
        if batches is not None:
            single = batches.sample(symbols, specialization.blueprint, specialization.slots)
            if single is not None:
                samples = batches.samples(symbols)
                return self._run_samples(specialization, batches, samples, single, arrays, state), specialization.dtypes
        context = self._take(specialization, symbols)
        if context.symbols != symbols or context.shapes != [a.shape for a in arrays]:
            self._prepare(context, specialization, symbols, arrays)
        # A context that an exception leaves half set up (an interrupt before its run, say) is not used again.
        outputs = [result_array(shape, dtype) for shape, dtype in context.outputs]
        native = context.native
        addresses = [data_address(a) for a in arrays]
        results = [data_address(a) for a in outputs]
        if state is None or (state.cancel is None and state.deadline is None and state.events is None):
            outcome = native.run(addresses, results)
        else:
            outcome = self._watched(context, addresses, results, state)
        if outcome:
            try:
                raise self._failure(context.plan, native, native.failed_status, outcome, state)
            finally:
                self._free.append(context)
        for index in context.plan.open_outputs:
            outputs[index] = _exact(outputs[index], context, context.plan.blueprint.output_dims[index])
        self._free.append(context)
        return outputs, specialization.dtypes

    def _run_samples(
        self, specialization: Specialization, batches: Batches, samples: int, single: tuple[int, ...],
        arrays: Sequence[Array], state: RunState | None,
    ) -> list[Array]:  # fmt: skip
        """A run of a batch, a sample at a time; `single` are the extents of one."""
        firsts = batches.first(arrays, specialization.blueprint, samples, specialization.form.input_names)
        batch = batches.take(single, self._threads)
        if batch is None or batch.shapes != [a.shape for a in firsts]:
            # Not the plan of a range that was asked for, which may be laid out for whole batches.
            batch = batches.new(specialization.plan(single, exact=True), self._threads)
            if batch.prepare(single) != p.DONE:
                raise _unfit(batch.plan, batch.native, single)
            batch.bind(single, firsts, self._outputs(specialization, batch.plan, batch.native, firsts))
        shapes = [((samples, *shape[1:]), dtype) for shape, dtype in batch.outputs]
        self._check_sizes(specialization, shapes)
        outputs = [result_array(shape, dtype) for shape, dtype in shapes]
        addresses, results = [data_address(a) for a in arrays], [data_address(a) for a in outputs]
        program = batch.plan.loaded.program
        stamps = None if state is None or state.events is None else np.zeros((len(program.rows), 3), np.int64)
        deadline = 0 if state is None or state.deadline is None else int(state.deadline * 1e9)
        outcome = batch.run(samples, addresses, results, None if state is None else state.cancel, deadline, stamps)
        if stamps is not None and state is not None and state.events is not None:
            state.events.extend(step_events(batch.plan.blueprint, program, stamps, batch.native))
        try:
            if outcome:
                raise self._failure(batch.plan, batch.failed, batch.failed_status, outcome, state, batch.failed_sample)
        finally:
            batches.give_back(batch)
        return outputs

    def _watched(self, context: Context, inputs: list[int], outputs: list[int], state: RunState) -> int:
        """A run that can be stopped or that is recorded."""
        native, program = context.native, context.plan.loaded.program
        deadline = 0 if state.deadline is None else int(state.deadline * 1e9)
        stamps = None if state.events is None else np.zeros((len(program.rows), 3), np.int64)
        if state.cancel is None:
            outcome = native.run(inputs, outputs, deadline, stamps)
        else:
            with state.cancel.watched(native.cancel_address):
                outcome = native.run(inputs, outputs, deadline, stamps)
        if stamps is not None and state.events is not None:
            state.events.extend(step_events(context.plan.blueprint, program, stamps, native))
        return outcome

    def _take(self, specialization: Specialization, symbols: tuple[int, ...]) -> Context:
        """A free context: as its last run left it where that was one of these extents, else bound to their plan."""
        try:
            context: Context | None = self._free.pop()
        except IndexError:
            context = None
        if context is not None and context.symbols == symbols and context.specialization is specialization:
            return context
        plan = specialization.static_plan or specialization.plan(symbols)
        if context is None:
            context = self._new_context(plan)
        elif context.plan is not plan:
            context.native.rebind(plan.loaded)
            context.plan = plan
        context.symbols, context.specialization = None, specialization
        return context

    def _new_context(self, plan: Plan) -> Context:
        made = Context(RunContext(plan.loaded, self._threads), plan)
        with self._lock:
            self._contexts.add(made)
        return made

    def memory(self) -> MemoryUse:
        """What this executable holds in memory; code and weights that several programs share count once.

        While nothing is compiled, because structural values come with the first run only, the weights are the graph's
        constants as they were read.
        """
        with _alive_lock:
            others = [e for e in _alive if e is not self]
        foreign = {id(w) for other in others for s in other.programs() for w in s.blueprint.weights}
        programs = self.programs()
        if not programs:
            return MemoryUse(weights=self._specializer.constant_bytes if self._specializer is not None else 0)
        weights = {id(w): w.array.nbytes for s in programs for w in s.blueprint.weights}
        libraries = {id(k.library): k.library.nbytes for s in programs for k in s.linked}
        batches = [b for s in programs if s.batches is not None for b in s.batches.all()]
        with self._lock:
            contexts = list(self._contexts)
        return MemoryUse(
            weights=sum(weights.values()),
            shared_weights=sum(n for key, n in weights.items() if key in foreign),
            arena=sum(c.native.arena.nbytes for c in contexts) + sum(b.arena_bytes for b in batches),
            contexts=sum(c.native.nbytes for c in contexts) + sum(b.nbytes for b in batches),
            code=sum(libraries.values()),
            tables=sum(s.table_bytes for s in programs),
            specializations=len(programs),
        )

    def programs(self) -> list[Specialization]:
        """The specializations that are kept."""
        with self._lock:
            return list(self._specializations.values())

    def _prepare(
        self, context: Context, specialization: Specialization, symbols: tuple[int, ...], arrays: Sequence[Array]
    ) -> None:
        """Evaluate a context's slots for these extents, on another plan where its own does not fit them."""
        if context.native.prepare(symbols) != p.DONE:
            # An extent that shrinks where others grow: the class's largest run is not this class's largest memory.
            plan = specialization.plan(symbols, exact=True)
            context.native.rebind(plan.loaded)
            context.plan = plan
            if context.native.prepare(symbols) != p.DONE:
                raise _unfit(context.plan, context.native, symbols)
        outputs = self._outputs(specialization, context.plan, context.native, arrays)
        self._check_sizes(specialization, outputs)
        context.symbols = symbols
        context.shapes = [a.shape for a in arrays]
        context.outputs = outputs

    def _outputs(
        self, specialization: Specialization, plan: Plan, native: RunContext, arrays: Sequence[Array]
    ) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and numpy type of each output of a context that is prepared for `arrays`, whose shapes are checked."""
        extents = native.slots[plan.input_slots].tolist()
        at = 0
        for index, array in enumerate(arrays):
            expected = tuple(extents[at : at + array.ndim])
            at += array.ndim
            if array.shape != expected:
                raise InvalidArgument(
                    "an input's shape does not agree with the other inputs'",
                    value=specialization.form.input_names[index], found=array.shape, expected=expected,
                )  # fmt: skip
        extents, at = native.slots[plan.output_slots].tolist(), 0
        outputs: list[tuple[tuple[int, ...], np.dtype[Any]]] = []
        for index, element in enumerate(specialization.dtypes):
            rank = 1 if index in plan.open_outputs else len(plan.blueprint.output_dims[index])
            outputs.append((tuple(extents[at : at + rank]), element.numpy))
            at += rank
        return outputs

    def _check_sizes(
        self, specialization: Specialization, outputs: Sequence[tuple[tuple[int, ...], np.dtype[Any]]]
    ) -> None:
        limit = self._env.limits.tensor_bytes
        for name, (shape, dtype) in zip(specialization.form.output_names, outputs, strict=True):
            if min(shape, default=0) < 0:
                raise InvalidArgument("the inputs leave a result less than no elements", value=name, found=shape)
            if math.prod(shape) * dtype.itemsize > limit:
                raise ResourceExhausted(
                    "the result would be larger than the limit", value=name,
                    found=f"{math.prod(shape) * dtype.itemsize} bytes", expected=f"at most {limit} bytes",
                    hint="Raise Limits.tensor_bytes if this is meant.",
                )  # fmt: skip

    def _failure(
        self, plan: Plan, native: RunContext, status: int, outcome: int, state: RunState | None,
        sample: int | None = None,
    ) -> Exception:  # fmt: skip
        if outcome in (p.CANCELLED, p.LATE):
            if state is not None:
                state.check()
            return Terminated("the run was stopped")
        if outcome != p.KERNEL_FAILED:
            return Fail("the native executor refused a program", found=outcome)
        program = plan.loaded.program
        node = program.nodes[int(program.rows[native.failed_row, 5])]
        code, element = status & ((1 << STATUS_CODE_BITS) - 1), status >> STATUS_CODE_BITS
        where = f"{element}" if sample is None else f"{element} of sample {sample}"
        if code == INDEX_OUT_OF_BOUNDS:
            return InvalidArgument("an index lies outside its axis", node=node, found=f"the index at position {where}")
        if code == BAD_VALUE:
            return InvalidArgument("an operand holds a value that is not allowed", node=node,
                                   found=f"the element at position {where}")  # fmt: skip
        if code == EXTENT_MISMATCH:
            return InvalidArgument("the extents of the operands do not fit", node=node, found=f"an extent of {element}")
        return RuntimeException("a kernel failed", node=node, found=f"status {code} at {where}")


def _unfit(plan: Plan, native: RunContext, symbols: tuple[int, ...]) -> Exception:
    """Why a program does not take the extents that it was planned for."""
    checks = plan.loaded.program.checks
    if any(native.slot(int(slot)) < 0 for slot in checks[:, 0]):
        return InvalidArgument("the inputs leave a value less than no elements", found=symbols)
    return Fail("a program does not fit the extents that it was planned for", found=symbols)


def _exact(room: Array, context: Context, dims: Sequence[int]) -> Array:
    """What a run has written of an output that was given room for the largest: a copy where most would lie idle."""
    shape = tuple(context.native.slot(slot) for slot in dims)
    size = math.prod(shape)
    found = room[:size].reshape(shape)
    return found.copy() if size * 2 < room.size else found


def _shape(value: Value, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape of an input: the one that is wanted, or its own where it has no free extent."""
    own = value.shape or ()
    fixed = tuple(d for d in own if isinstance(d, int))
    return shapes.get(value.name, fixed if len(fixed) == len(own) else None)


def _plain(value: RuntimeValue) -> Any:
    """The value's array in C order, native and aligned."""
    assert isinstance(value, Tensor)
    array = value.numpy()
    if not (array.flags.c_contiguous and array.flags.aligned):
        array = np.array(array, order="C")
    return array
