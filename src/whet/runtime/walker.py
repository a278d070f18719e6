"""Native code that walks a program's rows: `prepare` and `run`, written in the kernel language."""

from __future__ import annotations

from whet.codegen.lang import Function, Module, Pointer, Value, convert, maximum, minimum, select
from whet.codegen.target import Target
from whet.dtypes import BOOL, INT32, INT64, UINT8, DType
from whet.runtime import program as table
from whet.runtime.layout import Context, Station
from whet.runtime.sharing import Sharing, define_sharing
from whet.runtime.system import SystemCalls, define_system_calls, restore_float_mode, set_float_defaults

_LOADS: dict[int, DType] = {table.LOAD_INT64: INT64, table.LOAD_INT32: INT32, table.LOAD_BOOL: BOOL}


def executor_module(target: Target) -> Module:
    """The native executor for a target.

    Exported: `prepare(context)` and `run(context)`, which give an outcome (DONE, ...); `worker(block)` and
    `stop(block)`, see `sharing`; the kernel `stream`, see `streams`.
    """
    module = Module(target)
    calls = define_system_calls(module)
    sharing = define_sharing(module, calls)
    place = _define_place(module)
    evaluate = _define_evaluate(module, place)
    step = _define_step(module, sharing)
    plain = _define_walk(module, calls, sharing, evaluate, step, profiled=False)
    profiled = _define_walk(module, calls, sharing, evaluate, step, profiled=True)
    _define_prepare(module, evaluate)
    _define_run(module, sharing, place, plain, profiled)
    _define_stream(module, place, plain, profiled)
    return module


def _context(k: Function) -> Pointer:
    return k.pointer("context", INT64, align=64)


def _define_place(module: Module) -> Function:
    """place(context, addresses, begin, end): write the words that a table of addresses gives."""
    with module.function("place", internal=True) as k:
        context = _context(k)
        addresses = k.pointer("addresses", INT64, align=8)
        begin, end = k.argument("begin"), k.argument("end")
        words, slots, bases = (context.load_pointer(INT64, i) for i in (Context.WORDS, Context.SLOTS, Context.BASES))
        with k.loop(end, start=begin) as i:
            entry = addresses + i * 4
            address = k.variable(bases.load(entry.load(1)) + entry.load(2))
            slot = entry.load(3)
            with k.when(slot >= 0):
                address.value = address.value + slots.load(slot)
            words.store(address.value, entry.load(0))
    return k


def _operation(k: Function, code: Value, a: Value, b: Value) -> Value:
    result = k.variable(a)
    with k.when(code == table.ADD):
        result.value = a + b
    with k.when(code == table.SUBTRACT):
        result.value = a - b
    with k.when(code == table.MULTIPLY):
        result.value = a * b
    with k.when(code == table.FLOOR_DIVIDE):
        rest = a % b
        result.value = select((rest != 0) & ((rest ^ b) < 0), a / b - 1, a / b)
    with k.when(code == table.MINIMUM):
        result.value = minimum(a, b)
    with k.when(code == table.MAXIMUM):
        result.value = maximum(a, b)
    return result.value


def _define_evaluate(module: Module, place: Function) -> Function:
    """evaluate(context, row): an EVALUATE row; DONE or CHECK_FAILED."""
    with module.function("evaluate", returns=INT64, internal=True) as k:
        context = _context(k)
        row = k.pointer("row", INT64, align=8)
        words, slots = (context.load_pointer(INT64, i) for i in (Context.WORDS, Context.SLOTS))
        code, moves, addresses, checks = (
            context.load_pointer(INT64, i)
            for i in (Context.CODE, Context.MOVES, Context.ADDRESSES, Context.CHECKS)
        )  # fmt: skip
        with k.loop(row.load(2), start=row.load(1)) as i:
            entry = code + i * 4
            operation, first = entry.load(0), entry.load(2)
            second = select(operation == table.COPY, first, entry.load(3))
            slots.store(_operation(k, operation, slots.load(first), slots.load(second)), entry.load(1))
        with k.loop(row.load(4), start=row.load(3)) as i:
            entry = moves + i * 2
            words.store(slots.load(entry.load(1)), entry.load(0))
        k.call_void(place, context, addresses, row.load(5), row.load(6))
        with k.loop(row.load(8), start=row.load(7)) as i:
            entry = checks + i * 3
            number = slots.load(entry.load(0))
            with k.when((number < entry.load(1)) | (number > entry.load(2))):
                k.return_(table.CHECK_FAILED)
        k.return_(table.DONE)
    return k


def _define_step(module: Module, sharing: Sharing) -> Function:
    """step(context, row): a KERNEL row; its outcome."""
    with module.function("step", returns=INT64, internal=True) as k:
        context = _context(k)
        row = k.pointer("row", INT64, align=8)
        words = context.load_pointer(INT64, Context.WORDS)
        tiles = words.load(row.load(3))
        with k.when(tiles <= 0):
            k.return_(table.DONE)
        kernel = context.load_pointer(INT64, Context.KERNELS).load_pointer(UINT8, row.load(1))
        arguments = words + row.load(2)
        with k.when((row.load(4) != 0) & (tiles > 1)):
            workers = k.call(sharing.lease, context)
            with k.when(workers > 0):
                k.return_(k.call(sharing.share, context, kernel, arguments, tiles, workers))
        station = context.load_pointer(INT64, Context.STATION)
        scratch = context.load_pointer(UINT8, Context.SCRATCH)
        k.return_(k.call(sharing.span, station, kernel, arguments, 0, tiles, scratch))
    return k


def _define_walk(
    module: Module, calls: SystemCalls, sharing: Sharing, evaluate: Function, step: Function, profiled: bool
) -> Function:
    """walk(context): the rows behind row 0; the outcome, with the row where it was not DONE in FAILED_ROW."""
    with module.function("walk_profiled" if profiled else "walk", returns=INT64, internal=True) as k:
        context = _context(k)
        station = context.load_pointer(INT64, Context.STATION)
        system = station.load_pointer(INT64, Station.SYSTEM)
        rows, count = context.load_pointer(INT64, Context.ROWS), context.load(Context.ROW_COUNT)
        slots, words = context.load_pointer(INT64, Context.SLOTS), context.load_pointer(INT64, Context.WORDS)
        number = k.variable(k.index(1))
        with k.repeat():
            current = number.value
            k.leave_if(current >= count)
            row = rows + current * table.ROW_NUMBERS
            kind = row.load(0)
            outcome = k.variable(k.call(sharing.poll, station))
            following = k.variable(current + 1)
            start = k.call(calls.now, system) if profiled else None
            with k.when(outcome.value == table.DONE):
                with k.when(kind == table.KERNEL):
                    outcome.value = k.call(step, context, row)
                with k.when(kind == table.EVALUATE):
                    outcome.value = k.call(evaluate, context, row)
                with k.when(kind == table.JUMP):
                    following.value = row.load(1)
                with k.when(kind == table.JUMP_IF_ZERO):
                    following.value = select(slots.load(row.load(2)) == 0, row.load(1), following.value)
                with k.when(kind == table.LOAD_SLOT):
                    slots.store(_load_number(k, words, row), row.load(1))
            with k.when(outcome.value != table.DONE):
                context.store(current, Context.FAILED_ROW)
                k.return_(outcome.value)
            if start is not None:
                stamps = context.load_pointer(INT64, Context.TIMESTAMPS) + current * 3
                runs = stamps.load(2)
                with k.when(runs == 0):
                    stamps.store(start, 0)
                stamps.store(stamps.load(1) + (k.call(calls.now, system) - start), 1)
                stamps.store(runs + 1, 2)
            number.value = following.value
        k.return_(table.DONE)
    return k


def _load_number(k: Function, words: Pointer, row: Pointer) -> Value:
    kind = row.load(3)
    result = k.variable(k.index(0))
    for code, dtype in _LOADS.items():
        with k.when(kind == code):
            loaded = words.load_pointer(dtype, row.load(2)).load()
            result.value = convert(loaded, INT64)
    return result.value


def _define_prepare(module: Module, evaluate: Function) -> None:
    with module.function("prepare", returns=INT64) as k:
        context = _context(k)
        outcome = k.call(evaluate, context, context.load_pointer(INT64, Context.ROWS))
        context.store(select(outcome == table.DONE, k.index(1), 0), Context.PREPARED)
        k.return_(outcome)


def _define_run(module: Module, sharing: Sharing, place: Function, plain: Function, profiled: Function) -> None:
    with module.function("run", returns=INT64) as k:
        context = _context(k)
        with k.when(context.load(Context.PREPARED) == 0):
            k.return_(table.CHECK_FAILED)
        before = set_float_defaults(k)
        station = context.load_pointer(INT64, Context.STATION)
        (station + Station.OUTCOME).atomic_store(table.DONE, "monotonic")
        (station + Station.STATUS).atomic_store(0, "monotonic")
        io = context.load_pointer(INT64, Context.IO_ADDRESSES)
        k.call_void(place, context, io, 0, context.load(Context.IO_COUNT))
        outcome = _walk(k, context, plain, profiled)
        k.call_void(sharing.release, context)
        context.store((station + Station.STATUS).atomic_load("acquire"), Context.FAILED_STATUS)
        context.store(0, Context.TIMESTAMPS)
        station.store(0, Station.DEADLINE)
        (station + Station.CANCEL).atomic_store(0, "monotonic")
        restore_float_mode(k, before)
        k.return_(outcome)


def _walk(k: Function, context: Pointer, plain: Function, profiled: Function) -> Value:
    outcome = k.variable(k.index(table.DONE))
    with k.when(context.load(Context.TIMESTAMPS) == 0):
        outcome.value = k.call(plain, context)
    with k.otherwise():
        outcome.value = k.call(profiled, context)
    return outcome.value


def _define_stream(module: Module, place: Function, plain: Function, profiled: Function) -> None:
    """A kernel whose tiles are the samples of a batch: each is a walk of a whole program by the tile's thread.

    Words: how many inputs and outputs there are, then the address of each one's first sample and the bytes to the next.
    Scratch: the address of the thread's own context, whose station is that of the run.
    """
    with module.function("stream", returns=INT64) as k:
        words = k.pointer("words", INT64, align=8)
        begin, end = k.argument("begin"), k.argument("end")
        context = k.pointer("scratch", INT64, align=64).load_pointer(INT64)
        bases, io = (context.load_pointer(INT64, i) for i in (Context.BASES, Context.IO_ADDRESSES))
        with k.loop(end, start=begin) as sample:
            with k.loop(words.load(0)) as i:
                first = words + 1 + i * 2
                bases.store(first.load(0) + sample * first.load(1), i + 1)
            k.call_void(place, context, io, 0, context.load(Context.IO_COUNT))
            outcome = _walk(k, context, plain, profiled)
            context.store(outcome, Context.OUTCOME)
            context.store(sample, Context.SAMPLE)
            with k.when(outcome != table.DONE):
                # Below 0: a kernel's own status, which is first where there is one, is above.
                k.return_(0 - outcome)
        k.return_(0)
