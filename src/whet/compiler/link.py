"""Kernels in executable memory: compiled once, cached on disk, shared by all programs of the process."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from whet.codegen.cache import ObjectCache
from whet.codegen.compiler import compile_sources
from whet.codegen.jit import Library
from whet.codegen.target import Target
from whet.kernels.base import KernelCode


class Linked:
    """One kernel's address, with the library that keeps it in memory."""

    __slots__ = ("__weakref__", "address", "library")

    def __init__(self, address: int, library: Library) -> None:
        self.address = address
        self.library = library


@dataclass(frozen=True, slots=True)
class LinkReport:
    """How many kernels a program needed, and where they came from."""

    kernels: int
    already_loaded: int
    compiled: int


class Linker:
    """Brings kernels into memory. Thread-safe; kernels that no program uses any more are dropped."""

    def __init__(self, cache: ObjectCache | None, workers: int = 1) -> None:
        self.cache = cache
        self.workers = workers
        self._lock = threading.Lock()
        self._linked: weakref.WeakValueDictionary[tuple[Target, str], Linked] = weakref.WeakValueDictionary()

    def link(self, codes: Sequence[KernelCode], target: Target) -> tuple[list[Linked], LinkReport]:
        """The kernels in order. Raises Fail where LLVM refuses one."""
        with self._lock:
            found = {code.symbol: self._linked.get((target, code.symbol)) for code in codes}
            missing = [code for code in codes if found[code.symbol] is None]
            before = self.cache.report.misses if self.cache is not None else 0
            if missing:
                objects = compile_sources([c.source for c in missing], self.cache, self.workers)
                library = Library(objects, target)
                for code in missing:
                    linked = Linked(library.address(code.symbol), library)
                    self._linked[target, code.symbol] = linked
                    found[code.symbol] = linked
            compiled = self.cache.report.misses - before if self.cache is not None else len(missing)
        result = [found[code.symbol] for code in codes]
        report = LinkReport(len(codes), len(codes) - len(missing), compiled)
        return [linked for linked in result if linked is not None], report
