"""Many modules to objects: from the cache where possible, else by worker processes side by side."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from whet.codegen.cache import ObjectCache
from whet.codegen.module import Source, compile_source
from whet.codegen.process import Child, ProcessDied
from whet.errors import Fail

_WORKER_FUNCTION = "whet.codegen.module:compile_source"
_WARM_UP = "whet.codegen.module:warm_up"
_PER_WORKER = 64
"""Modules that make one more worker worth its start, which takes about as long as compiling this many kernels."""


def compile_sources(sources: Sequence[Source], cache: ObjectCache | None = None, workers: int = 1) -> list[bytes]:
    """Object bytes for each source, in order; equal sources are compiled once.

    `workers` is the most processes to compile in at once, because LLVM holds one lock per process; 1 compiles in this
    process. Raises Fail for code that LLVM refuses, or that ends a worker.
    """
    objects: dict[Source, bytes] = {}
    missing: list[Source] = []
    for source in dict.fromkeys(sources):
        found = cache.get(source.key_fields()) if cache is not None else None
        if found is None:
            missing.append(source)
        else:
            objects[source] = found
    processes = min(workers, len(missing) // _PER_WORKER) if sys.executable else 1
    compiled = _in_workers(missing, processes) if processes > 1 else [compile_source(s) for s in missing]
    for source, data in zip(missing, compiled, strict=True):
        objects[source] = data
        if cache is not None:
            cache.put(source.key_fields(), data)
    return [objects[source] for source in sources]


def compile_isolated(source: Source, timeout_s: float | None = None) -> bytes:
    """The object of a source, compiled in a child process. Raises Fail also where LLVM aborts or takes too long."""
    with Child() as child:
        return _compile_in(child, source, timeout_s)


def _compile_in(child: Child, source: Source, timeout_s: float | None = None) -> bytes:
    try:
        data: bytes = child.call(_WORKER_FUNCTION, source, timeout_s=timeout_s)
    except ProcessDied as death:
        raise Fail("compiling generated code ended its process", found=f"{death.reason}: {death.stderr}") from death
    return data


def _in_workers(sources: list[Source], processes: int) -> list[bytes]:
    """Compile in this process and in `processes` - 1 children; each takes the next source when it is free."""
    objects: dict[int, bytes] = {}
    left = deque(range(len(sources)))

    def drain(work: Callable[[Source], bytes]) -> None:
        try:
            while left:
                try:
                    index = left.popleft()
                except IndexError:
                    return  # another worker took the last one
                objects[index] = work(sources[index])
        except BaseException:
            left.clear()
            raise

    def drain_in_child() -> None:
        with Child() as child:
            child.call(_WARM_UP)
            drain(lambda source: _compile_in(child, source))

    with ThreadPoolExecutor(processes - 1) as pool:
        others = [pool.submit(drain_in_child) for _ in range(processes - 1)]
        drain(compile_source)
        for other in others:
            other.result()
    return [objects[index] for index in range(len(sources))]
