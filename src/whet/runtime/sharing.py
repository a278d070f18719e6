"""Native code that shares a step's tiles between threads: leases, claims, and the workers' loop.

Each thread of a run has a range of the open step's tiles, in a word of its own: the epoch, the next tile, and the end.
The owner takes tiles from the front; a thread whose own range is empty takes them from the back of another's. Who swaps
the word owns what it took. The epoch makes a swap fail once the step that it was meant for has ended, so a thread that
slept between reading and swapping does no harm; and nobody waits for a worker that has not come yet. Where no one is
late, the same thread gets the same part of every step, and finds in its caches what it wrote there.
"""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import Function, Module, Operand, Pointer, Value, minimum, select
from whet.dtypes import INT32, INT64, UINT8
from whet.runtime.layout import (
    CPU_WORDS,
    IDLE,
    LEASED,
    RANGE_BITS,
    RESERVED,
    RUNNING,
    STOP,
    Context,
    Station,
    Team,
    Worker,
)
from whet.runtime.program import CANCELLED, DONE, KERNEL_FAILED, LATE
from whet.runtime.system import SystemCalls, current_cpu, pause, set_affinity, set_float_defaults

_FIRST_CALL_TILES = 4
_CALL_NS = 250_000
"""Calls of a kernel grow to four times this, so that a stop takes effect soon."""
_LEADER_SPIN_NS = 50_000
_SPINS_PER_LOOK = 32
"""Pauses between two looks at the clock."""
_CLAIMS_PER_RANGE = 4
"""Claims in which the owner takes its range where nobody helps."""
_FIELD = (1 << RANGE_BITS) - 1


@dataclass(frozen=True, slots=True)
class Sharing:
    """Functions of the module.

    `poll(station)`: DONE, CANCELLED or LATE. `span(station, kernel, words, begin, end, scratch)`: does tiles on this
    thread and gives an outcome. `lease(context)`: tries to hold as many workers as the run may have; their number.
    `share(context, kernel, words, tiles, workers)`: does a step with the leased workers and gives an outcome.
    `release(context)`: lets the workers go.
    """

    poll: Function
    span: Function
    lease: Function
    share: Function
    release: Function


def define_sharing(module: Module, calls: SystemCalls) -> Sharing:
    """Write the functions of this file into `module`, the exported `worker` and `stop` too."""
    poll = _define_poll(module, calls)
    span = _define_span(module, calls, poll)
    work = _define_work(module, calls, poll, span)
    keep_away = _define_keep_away(module)
    lease = _define_lease(module, calls, keep_away)
    share = _define_share(module, calls, work)
    release = _define_release(module, calls)
    help_run = _define_help(module, calls, work)
    _define_worker(module, calls, help_run, _define_settle(module, keep_away))
    _define_stop(module, calls)
    return Sharing(poll, span, lease, share, release)


def _block(k: Function, name: str) -> Pointer:
    return k.pointer(name, INT64, align=64)


def _epoch(station: Pointer) -> Pointer:
    """The half of the epoch that threads sleep on (memory is little-endian on every target)."""
    return (station + Station.EPOCH).as_type(INT32)


def _range(station: Pointer, index: Operand) -> Pointer:
    """A thread's range."""
    return station + Station.FIRST_RANGE + index * Station.RANGE_WORDS


def _next(word: Value) -> Value:
    return (word >> RANGE_BITS) & _FIELD


def _end(word: Value) -> Value:
    return word & _FIELD


class _Patience:
    """Counts pauses and looks at the clock now and then. Make one outside the loop that waits."""

    def __init__(self, k: Function, calls: SystemCalls, system: Pointer, limit_ns: Operand) -> None:
        self._k, self._calls, self._system, self._limit = k, calls, system, limit_ns
        self._spins = k.variable(k.index(0))
        self._since = k.variable(k.index(0))

    def reset(self) -> None:
        self._spins.value = self._k.index(0)
        self._since.value = self._k.index(0)

    def run_out(self) -> Value:
        """Pause once; whether the thread has now waited for as long as it may."""
        k = self._k
        limit = k.index(self._limit)
        pause(k)
        self._spins.value = self._spins.value + 1
        over = k.variable(limit == 0)
        with k.when((limit != 0) & ((self._spins.value % _SPINS_PER_LOOK) == 0)):
            now = k.call(self._calls.now, self._system)
            self._since.value = select(self._since.value == 0, now, self._since.value)
            over.value = (now - self._since.value) >= limit
        return over.value


def _define_poll(module: Module, calls: SystemCalls) -> Function:
    with module.function("poll", returns=INT64, internal=True) as k:
        station = _block(k, "station")
        with k.when((station + Station.CANCEL).atomic_load("monotonic") != 0):
            k.return_(CANCELLED)
        deadline = station.load(Station.DEADLINE)
        with k.when(deadline != 0):
            now = k.call(calls.now, station.load_pointer(INT64, Station.SYSTEM))
            with k.when(now >= deadline):
                k.return_(LATE)
        k.return_(DONE)
    return k


def _define_span(module: Module, calls: SystemCalls, poll: Function) -> Function:
    with module.function("span", returns=INT64, internal=True) as k:
        station = _block(k, "station")
        kernel = k.pointer("kernel", UINT8)
        words = k.pointer("words", INT64, align=8)
        begin, end = k.argument("begin"), k.argument("end")
        scratch = k.pointer("scratch", UINT8, align=64)
        system = station.load_pointer(INT64, Station.SYSTEM)
        size = k.variable(k.index(_FIRST_CALL_TILES))
        position = k.variable(begin)
        clock = k.variable(k.index(0))
        with k.when(end - begin > _FIRST_CALL_TILES):
            clock.value = k.call(calls.now, system)
        with k.repeat():
            left = end - position.value
            stop = position.value + minimum(left, size.value)
            status = k.call_address(kernel, INT64, words, position.value, stop, scratch)
            with k.when(status != 0):
                (station + Station.STATUS).compare_exchange(k.index(0), status, "acq_rel")
                k.return_(KERNEL_FAILED)
            k.leave_if(stop >= end)
            position.value = stop
            outcome = k.call(poll, station)
            with k.when(outcome != DONE):
                k.return_(outcome)
            now = k.call(calls.now, system)
            size.value = select(now - clock.value < _CALL_NS, size.value * 4, size.value)
            clock.value = now
        k.return_(DONE)
    return k


def _define_work(module: Module, calls: SystemCalls, poll: Function, span: Function) -> Function:
    """work(station, generation, index): take tiles of the open step until none is left; how many units it did.

    All are counted as finished in one go: a step whose tiles are not all counted does not end, so that what this thread
    looks at stays that step's.
    """
    with module.function("work", returns=INT64, internal=True) as k:
        station = _block(k, "station")
        generation, index = k.argument("generation"), k.argument("index")
        away = k.variable(k.index(0))  # how far the range that is looked at is from the thread's own
        finished = k.variable(k.index(0))
        with k.repeat():
            parts = station.load(Station.PARTS)
            k.leave_if(away.value >= parts)
            own = away.value == 0
            word = _range(station, select(own, index, (index + away.value) % parts))
            seen = word.atomic_load("acquire")
            # Read behind the range: if the run is still the same, the range is one of its steps'.
            k.leave_if((station + Station.GENERATION).atomic_load("acquire") != generation)
            first, left = _next(seen), _end(seen) - _next(seen)
            with k.when(left <= 0):
                away.value = away.value + 1
            with k.otherwise():
                # These may change while they are read; then the swap fails, for the epoch has changed before them.
                kernel = station.load_pointer(UINT8, Station.KERNEL)
                words = station.load_pointer(INT64, Station.WORDS)
                tiles, unit = station.load(Station.TILES), station.load(Station.UNIT)
                scratch = station.load_pointer(UINT8, Station.SCRATCH) + index * station.load(Station.SCRATCH_BYTES)
                amount = minimum(station.load(Station.CLAIM), select(own, left, (left + 1) / 2))
                begin = select(own, first, _end(seen) - amount)
                _, mine = word.compare_exchange(
                    seen, select(own, seen + (amount << RANGE_BITS), seen - amount), "acq_rel"
                )
                with k.when(mine):
                    outcome = k.variable(k.call(poll, station))
                    with k.when(outcome.value == DONE):
                        end = minimum((begin + amount) * unit, tiles)
                        outcome.value = k.call(span, station, kernel, words, begin * unit, end, scratch)
                    finished.value = finished.value + amount
                    with k.when(outcome.value != DONE):
                        (station + Station.OUTCOME).compare_exchange(k.index(DONE), outcome.value, "acq_rel")
                        finished.value = finished.value + _take_rest(k, station, parts)
                    away.value = k.index(0)
        with k.when(finished.value != 0):
            (station + Station.FINISHED).atomic_add(finished.value, "seq_cst")
            with k.when((station + Station.LEADER_SLEEPS).atomic_load("seq_cst") != 0):
                system = station.load_pointer(INT64, Station.SYSTEM)
                k.call_void(calls.wake, system, (station + Station.FINISHED).as_type(INT32))
        k.return_(finished.value)
    return k


def _take_rest(k: Function, station: Pointer, parts: Value) -> Value:
    """Take all tiles that are left, in order not to do them; how many units they are."""
    rest = k.variable(k.index(0))
    with k.loop(parts) as i:
        word = _range(station, i)
        with k.repeat():
            seen = word.atomic_load("acquire")
            left = _end(seen) - _next(seen)
            k.leave_if(left <= 0)
            _, mine = word.compare_exchange(seen, seen + (left << RANGE_BITS), "acq_rel")
            with k.when(mine):
                rest.value = rest.value + left
                k.leave()
    return rest.value


def _define_lease(module: Module, calls: SystemCalls, keep_away: Function) -> Function:
    with module.function("lease", returns=INT64, internal=True) as k:
        context = _block(k, "context")
        wanted = context.load(Context.THREADS) - 1
        leased = k.variable(context.load(Context.LEASED))
        with k.when(leased.value >= wanted):
            k.return_(leased.value)
        station = context.load_pointer(INT64, Context.STATION)
        system = station.load_pointer(INT64, Station.SYSTEM)
        team = context.load_pointer(INT64, Context.TEAM)
        station.store(current_cpu(k, station), Station.LEADER_CPU)
        with k.loop((team + Team.COUNT).atomic_load("acquire")) as i:
            worker = team + Team.FIRST + i * Worker.SIZE
            state = worker + Worker.STATE
            k.leave_if(leased.value >= wanted)
            with k.when(state.atomic_load("monotonic") == IDLE):
                _, mine = state.compare_exchange(k.index(IDLE), RESERVED, "seq_cst")
                with k.when(mine):
                    leased.value = leased.value + 1
                    worker.store((station + Station.GENERATION).load(), Worker.GENERATION)
                    worker.store(leased.value, Worker.INDEX)
                    worker.store_pointer(station, Worker.STATION)
                    with k.when((worker + Worker.SLEEPING).atomic_load("seq_cst") != 0):
                        k.call_void(keep_away, worker, station)
                    state.atomic_store(context.load(Context.TOKEN), "seq_cst")
                    with k.when((worker + Worker.SLEEPING).atomic_load("seq_cst") != 0):
                        k.call_void(calls.wake, system, state.as_type(INT32))
        context.store(leased.value, Context.LEASED)
        k.return_(leased.value)
    return k


def _define_share(module: Module, calls: SystemCalls, work: Function) -> Function:
    with module.function("share", returns=INT64, internal=True) as k:
        context = _block(k, "context")
        kernel = k.pointer("kernel", UINT8)
        words = k.pointer("words", INT64, align=8)
        tiles, workers = k.argument("tiles"), k.argument("workers")
        station = context.load_pointer(INT64, Context.STATION)
        system = station.load_pointer(INT64, Station.SYSTEM)
        parts = workers + 1
        unit = (tiles + _FIELD - 1) / _FIELD
        units = (tiles + unit - 1) / unit
        station.store_pointer(kernel, Station.KERNEL)
        station.store_pointer(words, Station.WORDS)
        station.store(tiles, Station.TILES)
        station.store(unit, Station.UNIT)
        station.store((units + parts * _CLAIMS_PER_RANGE - 1) / (parts * _CLAIMS_PER_RANGE), Station.CLAIM)
        station.store(parts, Station.PARTS)
        (station + Station.FINISHED).atomic_store(0, "monotonic")
        word = station + Station.EPOCH
        epoch = word.load() + 1
        stamp = epoch << (2 * RANGE_BITS)
        with k.loop(parts) as i:
            first, end = units * i / parts, units * (i + 1) / parts
            _range(station, i).atomic_store(stamp | (first << RANGE_BITS) | end, "release")
        word.atomic_store(epoch, "seq_cst")
        with k.when((station + Station.SLEEPERS).atomic_load("seq_cst") != 0):
            k.call_void(calls.wake, system, _epoch(station))
        k.call(work, station, station.load(Station.GENERATION), 0)
        _await_finished(k, calls, system, station, units)
        k.return_((station + Station.OUTCOME).atomic_load("acquire"))
    return k


def _await_finished(k: Function, calls: SystemCalls, system: Pointer, station: Pointer, units: Value) -> None:
    finished, sleeps = station + Station.FINISHED, station + Station.LEADER_SLEEPS
    patience = _Patience(k, calls, system, _LEADER_SPIN_NS)
    with k.repeat():
        k.leave_if(finished.atomic_load("acquire") >= units)
        with k.when(patience.run_out()):
            sleeps.atomic_store(1, "seq_cst")
            count = finished.atomic_load("seq_cst")
            with k.when(count < units):
                k.call_void(calls.wait, system, finished.as_type(INT32), count)
            sleeps.atomic_store(0, "monotonic")


def _define_release(module: Module, calls: SystemCalls) -> Function:
    with module.function("release", internal=True) as k:
        context = _block(k, "context")
        with k.when(context.load(Context.LEASED) == 0):
            k.return_()
        context.store(0, Context.LEASED)
        station = context.load_pointer(INT64, Context.STATION)
        generation, word = station + Station.GENERATION, station + Station.EPOCH
        generation.atomic_store(generation.load() + 1, "seq_cst")
        word.atomic_store(word.load() + 1, "seq_cst")
        with k.when((station + Station.SLEEPERS).atomic_load("seq_cst") != 0):
            k.call_void(calls.wake, station.load_pointer(INT64, Station.SYSTEM), _epoch(station))
        # Workers that have not started need not come.
        team, token = context.load_pointer(INT64, Context.TEAM), context.load(Context.TOKEN)
        with k.loop((team + Team.COUNT).atomic_load("acquire")) as i:
            state = team + Team.FIRST + i * Worker.SIZE + Worker.STATE
            with k.when(state.atomic_load("monotonic") == token):
                state.compare_exchange(token, IDLE, "acq_rel")
    return k


def _define_help(module: Module, calls: SystemCalls, work: Function) -> Function:
    """help_run(station, generation, index, spin_ns): a worker's part of one run."""
    with module.function("help_run", internal=True) as k:
        station = _block(k, "station")
        generation, index, spin_ns = k.argument("generation"), k.argument("index"), k.argument("spin_ns")
        system = station.load_pointer(INT64, Station.SYSTEM)
        patience = _Patience(k, calls, system, spin_ns)
        word, current = station + Station.EPOCH, station + Station.GENERATION
        sleepers = station + Station.SLEEPERS
        last = k.variable(word.load() - 1)
        with k.repeat():
            seen = word.atomic_load("acquire")
            with k.when(seen != last.value):
                # A step has been opened, whose ranges were written before, or the run is over.
                k.leave_if(current.atomic_load("acquire") != generation)
                last.value = seen
                with k.when(k.call(work, station, generation, index) != 0):
                    patience.reset()
            with k.otherwise(), k.when(patience.run_out()):
                sleepers.atomic_add(1, "seq_cst")
                with k.when(word.atomic_load("seq_cst") == seen):
                    k.call_void(calls.wait, system, _epoch(station), seen)
                sleepers.atomic_add(-1, "seq_cst")
                patience.reset()
    return k


def _define_keep_away(module: Module) -> Function:
    """keep_away(block, station): a worker that sleeps will wake on another CPU than the run's own thread is on.

    The system may wake it there, and leave it there, as both sleep and wake too often to be balanced; then they take
    turns on one CPU while another is idle.
    """
    with module.function("keep_away", internal=True) as k:
        block, station = _block(k, "block"), _block(k, "station")
        mask, thread = block.load_pointer(INT64, Worker.MASK), block.load(Worker.THREAD)
        leader = station.load(Station.LEADER_CPU)
        with k.when((block.load(Worker.MASK) == 0) | (thread == 0) | (leader < 0)):
            k.return_()
        others = k.stack_array(INT64, CPU_WORDS)
        some = k.variable(k.index(0))
        with k.loop(CPU_WORDS) as i:
            word = mask.load(i)
            word = select(i == leader >> 6, word & ~(k.index(1) << (leader & 63)), word)
            others.store(word, i)
            some.value = some.value | word
        with k.when(some.value != 0):
            set_affinity(k, station, thread, others)
            block.store(1, Worker.KEPT_AWAY)
    return k


def _define_settle(module: Module, keep_away: Function) -> Function:
    """settle(block, station): a worker that has been leased makes sure that it is not on the leader's CPU, and may run
    anywhere from there on."""
    with module.function("settle", internal=True) as k:
        block, station = _block(k, "block"), _block(k, "station")
        leader = station.load(Station.LEADER_CPU)
        with k.when((block.load(Worker.KEPT_AWAY) == 0) & (leader >= 0) & (current_cpu(k, station) == leader)):
            k.call_void(keep_away, block, station)
        with k.when(block.load(Worker.KEPT_AWAY) != 0):
            block.store(0, Worker.KEPT_AWAY)
            set_affinity(k, station, block.load(Worker.THREAD), block.load_pointer(INT64, Worker.MASK))
    return k


def _define_worker(module: Module, calls: SystemCalls, help_run: Function, settle: Function) -> None:
    """worker(block): a worker's life, from its start until `stop`."""
    with module.function("worker") as k:
        block = _block(k, "block")
        set_float_defaults(k)
        system = block.load_pointer(INT64, Worker.SYSTEM)
        state, sleeping, stop = block + Worker.STATE, block + Worker.SLEEPING, block + Worker.STOP
        with k.repeat():
            patience = _Patience(k, calls, system, (block + Worker.IDLE_SPIN).atomic_load("monotonic"))
            with k.repeat():
                k.leave_if(state.atomic_load("acquire") != IDLE)
                with k.when(stop.atomic_load("seq_cst") != 0):
                    k.return_()
                with k.when(patience.run_out()):
                    sleeping.atomic_store(1, "seq_cst")
                    with k.when(state.atomic_load("seq_cst") == IDLE):
                        k.call_void(calls.wait, system, state.as_type(INT32), k.index(IDLE))
                    sleeping.atomic_store(0, "monotonic")
            token = state.atomic_load("acquire")
            with k.when(token == STOP):
                k.return_()
            with k.when((token == IDLE) | (token == RESERVED)):
                pause(k)
            with k.otherwise():
                _, mine = state.compare_exchange(token, token + (RUNNING - LEASED), "acq_rel")
                with k.when(mine):
                    station = block.load_pointer(INT64, Worker.STATION)
                    generation, index = block.load(Worker.GENERATION), block.load(Worker.INDEX)
                    k.call_void(settle, block, station)
                    spin_ns = (block + Worker.RUN_SPIN).atomic_load("monotonic")
                    k.call_void(help_run, station, generation, index, spin_ns)
                    state.atomic_store(IDLE, "seq_cst")


def _define_stop(module: Module, calls: SystemCalls) -> None:
    """stop(block): ask a worker to return once it is idle."""
    with module.function("stop") as k:
        block = _block(k, "block")
        (block + Worker.STOP).atomic_store(1, "seq_cst")
        state = block + Worker.STATE
        state.compare_exchange(k.index(IDLE), STOP, "seq_cst")
        k.call_void(calls.wake, block.load_pointer(INT64, Worker.SYSTEM), state.as_type(INT32))
