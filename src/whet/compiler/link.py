"""Kernels in executable memory: compiled once, cached on disk, shared by all programs of the process."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

import whet.kernels
from whet.codegen.cache import ObjectCache
from whet.codegen.compiler import compile_sources
from whet.codegen.jit import Library
from whet.codegen.target import Target
from whet.kernels.base import KernelCode, KernelSpec, build

DESCRIPTIONS = 4096
"""Kernels whose description is kept in this process."""


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
        self._described: OrderedDict[tuple[KernelSpec, Target], KernelCode] = OrderedDict()

    def describe(self, spec: KernelSpec, target: Target) -> KernelCode:
        """What is known of a kernel, from the cache on disk where it has been generated before."""
        if self.cache is None:
            return build(spec, target)
        with self._lock:
            found = self._described.get((spec, target))
        if found is not None:
            return found
        fields = (("kernel", repr(spec)), ("generator", generator_digest()), *target.tuning_fields())
        found = _read(self.cache.get(fields), spec, target)
        if found is None:
            found = build(spec, target)
            self.cache.put(fields, _written(found))
        with self._lock:
            self._described[spec, target] = found
            while len(self._described) > DESCRIPTIONS:
                self._described.popitem(last=False)
        return found

    def link(self, codes: Sequence[KernelCode], target: Target) -> tuple[list[Linked], LinkReport]:
        """The kernels in order. Raises Fail where LLVM refuses one."""
        with self._lock:
            found = {code.symbol: self._linked.get((target, code.symbol)) for code in codes}
            missing = [code for code in codes if found[code.symbol] is None]
            before = self.cache.report.misses if self.cache is not None else 0
            if missing:
                library = Library(self._objects(missing), target)
                for code in missing:
                    linked = Linked(library.address(code.symbol), library)
                    self._linked[target, code.symbol] = linked
                    found[code.symbol] = linked
            compiled = self.cache.report.misses - before if self.cache is not None else len(missing)
        result = [found[code.symbol] for code in codes]
        report = LinkReport(len(codes), len(codes) - len(missing), compiled)
        return [linked for linked in result if linked is not None], report

    def _objects(self, codes: Sequence[KernelCode]) -> list[bytes]:
        """The kernels' objects, from the cache where they are there."""
        found = [self.cache.get(code.fields) if self.cache is not None else None for code in codes]
        missing = [code for code, data in zip(codes, found, strict=True) if data is None]
        made = iter(compile_sources([code.source for code in missing], self.cache, self.workers))
        return [next(made) if data is None else data for data in found]


@functools.cache
def generator_digest() -> str:
    """A digest of everything that decides what code a kernel's description becomes: the generators' own text."""
    digest = hashlib.sha256(f"{llvmlite.__version__} {llvm.llvm_version_info}".encode())
    root = Path(whet.kernels.__file__).parent.parent
    packages = (path for package in ("kernels", "codegen") for path in sorted((root / package).rglob("*.py")))
    for path in (*packages, root / "dtypes.py", root / "config.py"):
        digest.update(f"{path.relative_to(root)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _written(code: KernelCode) -> bytes:
    content = {"symbol": code.symbol, "fields": code.fields, "words": code.words, "scratch": code.scratch_bytes}
    return json.dumps(content).encode()


def _read(data: bytes | None, spec: KernelSpec, target: Target) -> KernelCode | None:
    if data is None:
        return None
    content = json.loads(data)
    fields = tuple((str(name), str(text)) for name, text in content["fields"])
    return KernelCode(spec, target, content["symbol"], fields, tuple(content["words"]), int(content["scratch"]))
