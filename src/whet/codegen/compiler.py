"""Many modules to objects: from the cache where possible, else by worker processes side by side."""

from __future__ import annotations

import queue
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from whet.codegen.cache import ObjectCache
from whet.codegen.module import Source, compile_source
from whet.codegen.process import Child, ProcessDied
from whet.errors import Fail

_WORKER_FUNCTION = "whet.codegen.module:compile_source"
_PER_WORKER = 4
"""Modules that make one more worker worth its start (about as long as compiling this many)."""


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
    children: list[Child] = []
    idle: queue.SimpleQueue[Child] = queue.SimpleQueue()

    def work(source: Source) -> bytes:
        child = idle.get()
        try:
            return _compile_in(child, source)
        finally:
            idle.put(child)

    try:
        for _ in range(processes):
            children.append(Child())
            idle.put(children[-1])
        with ThreadPoolExecutor(processes) as pool:
            return list(pool.map(work, sources))
    finally:
        for child in children:
            child.close()
