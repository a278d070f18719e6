"""What this machine can do at most, measured once and kept on disk: arithmetic, and reading from L2 and from memory."""

from __future__ import annotations

import ctypes
import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import numpy as np
import platformdirs

from whet.codegen.cache import ObjectCache
from whet.codegen.compiler import compile_sources
from whet.codegen.jit import Library
from whet.codegen.target import Target, host_target
from whet.config import KIB, MIB
from whet.dtypes import FLOAT32
from whet.kernels.base import KernelSpec, build
from whet.kernels.peak import FmaRate, ReadRate, fma_tile_flops, read_round_bytes
from whet.runtime import program as p
from whet.runtime.context import RunContext
from whet.runtime.cores import core_budget
from whet.runtime.loaded import LoadedProgram
from whet.runtime.memory import Area
from whet.runtime.program import Program

_VERSION = "2"
_TRIES = 5
_PASSES = 4
"""Times that everything is measured at first: what disturbs a measurement often lasts longer than its tries."""
_FMA_ROUNDS = 40_000
_TILES_PER_THREAD = 4
_RATES = tuple(f"{rate}_{threads}" for rate in ("gflops", "l2_gbytes", "memory_gbytes") for threads in ("one", "all"))
_L2_BYTES_READ = 32 * MIB
"""What a tile reads from its L2 cache in all."""


@dataclass(frozen=True, slots=True)
class Peak:
    """Rates of one thread and of all `threads`: float32 arithmetic in GFLOP/s, reading in GB/s."""

    threads: int
    l2_bytes: int
    """Of one core."""
    gflops_one: float
    gflops_all: float
    l2_gbytes_one: float
    l2_gbytes_all: float
    memory_gbytes_one: float
    memory_gbytes_all: float

    def least_ns(self, flops: int, nbytes: int, parallel: bool) -> tuple[float, float]:
        """The least time that arithmetic takes, and that moving bytes takes, on one thread or on all."""
        if parallel:
            gflops, near, far, caches = self.gflops_all, self.l2_gbytes_all, self.memory_gbytes_all, self.threads
        else:
            gflops, near, far, caches = self.gflops_one, self.l2_gbytes_one, self.memory_gbytes_one, 1
        return flops / gflops, nbytes / (near if nbytes <= caches * self.l2_bytes else far)


@lru_cache(maxsize=1)
def machine_peak() -> Peak:
    """The peak of this machine with the threads of this process.

    What is on disk is the best so far: a short look each time corrects a peak that was measured on a busy machine.
    """
    target, threads = host_target(), core_budget()
    cache = ObjectCache(platformdirs.user_cache_path("whet") / "peak", max_bytes=MIB)
    fields = (*target.tuning_fields(), ("threads", str(threads)), ("version", _VERSION))
    found = cache.get(fields)
    if found is None:
        peak = measure_peak(target, threads, _PASSES)
    else:
        known, now = Peak(**json.loads(found)), measure_peak(target, threads, 1)
        peak = replace(now, **{name: max(getattr(known, name), getattr(now, name)) for name in _RATES})
        if peak == known:
            return peak
    cache.put(fields, json.dumps(asdict(peak)).encode())
    return peak


def measure_peak(target: Target, threads: int, passes: int) -> Peak:
    """Measure now, everything `passes` times. The fastest try counts, because others may use the machine."""
    bench = _Bench(target, threads)
    lanes = target.lanes(FLOAT32)
    round_bytes = read_round_bytes(lanes)
    near = max(target.l2_bytes // 2, 64 * KIB) // round_bytes * round_bytes
    far = min(max(4 * target.l3_bytes, 128 * MIB), 1024 * MIB)
    rates: dict[str, float] = {}

    def note(name: str, amount: int, spec: KernelSpec, numbers: dict[str, int], tiles: int, count: int) -> None:
        rate = amount / bench.fastest_ns(spec, numbers, tiles, count, far)
        rates[name] = max(rates.get(name, 0.0), rate)

    for _ in range(passes):
        for name, count in (("one", 1), ("all", threads)):
            tiles = count * _TILES_PER_THREAD
            note(f"gflops_{name}", tiles * fma_tile_flops(lanes, _FMA_ROUNDS), FmaRate(), {"rounds": _FMA_ROUNDS},
                 tiles, count)  # fmt: skip
            repeats = max(1, _L2_BYTES_READ // near)
            words = {"stride": 0, "rounds": near // round_bytes, "repeats": repeats}
            note(f"l2_gbytes_{name}", tiles * repeats * near, ReadRate(), words, tiles, count)
            part = far // tiles // round_bytes * round_bytes
            words = {"stride": part, "rounds": part // round_bytes, "repeats": 1}
            note(f"memory_gbytes_{name}", tiles * part, ReadRate(), words, tiles, count)
    for kind in ("gflops", "l2_gbytes", "memory_gbytes"):
        rates[f"{kind}_all"] = max(rates[f"{kind}_all"], rates[f"{kind}_one"])
    return Peak(threads=threads, l2_bytes=target.l2_bytes, **rates)


class _Bench:
    """Runs one kernel over a grid, as the rows of any program are run."""

    def __init__(self, target: Target, threads: int) -> None:
        self._target = target
        self._out = Area(64 * 64 * _TILES_PER_THREAD * threads)
        self._source = Area(0)

    def fastest_ns(self, spec: KernelSpec, numbers: dict[str, int], tiles: int, threads: int, read: int) -> float:
        """The shortest duration of a few; `read` is how many bytes at the address `x` the kernel reads."""
        if self._source.nbytes < read:
            self._source = Area(read)
            # Pages that nobody has written are all one page of zeros: reading them would be reading the cache.
            ctypes.memset(self._source.address, 0, read)
        code = build(spec, self._target)
        (data,) = compile_sources([code.source], ObjectCache())
        library = Library(data, self._target)
        known = {**numbers, "x": self._source.address, "out": self._out.address}
        words = [*(known[name] for name in code.words), tiles]
        rows = np.zeros((2, p.ROW_NUMBERS), np.int64)
        rows[0, 0] = p.EVALUATE
        rows[1, :5] = p.KERNEL, 0, 0, len(words) - 1, int(threads > 1)
        nothing = np.zeros((0, 4), np.int64)
        program = Program(
            rows=rows, words=np.array(words, np.int64), slots=np.zeros(1, np.int64), symbols=(), code=nothing,
            moves=np.zeros((0, 2), np.int64), addresses=nothing, io_addresses=nothing,
            checks=np.zeros((0, 3), np.int64), kernels=(code.symbol,), nodes=("",), inputs=0, outputs=0, weights=0,
            arena_bytes=0, scratch_bytes=max(code.scratch_bytes, 64),
        )  # fmt: skip
        loaded = LoadedProgram(program, [library.address(code.symbol)], [], library)
        context = RunContext(loaded, threads)
        context.prepare(())
        stamps = np.zeros((2, 3), np.int64)
        durations = []
        for _ in range(_TRIES):
            context.run((), (), timestamps=stamps)
            durations.append(int(stamps[1, 1]))
        return float(max(min(durations), 1))
