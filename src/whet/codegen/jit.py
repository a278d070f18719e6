"""From an object file's bytes to an address that can be called."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import llvmlite.binding as llvm

from whet.codegen.elf import defined_symbols, undefined_symbols
from whet.codegen.module import Module, Signature, Source, compile_source, target_machine
from whet.codegen.target import Target, host_target
from whet.dtypes import FLOAT32, FLOAT64, INT32, INT64, UINT32, UINT64, DType
from whet.errors import Fail, NotImplemented

_CTYPES: dict[DType, Any] = {
    FLOAT32: ctypes.c_float,
    FLOAT64: ctypes.c_double,
    INT32: ctypes.c_int32,
    INT64: ctypes.c_int64,
    UINT32: ctypes.c_uint32,
    UINT64: ctypes.c_uint64,
}


class Library:
    """Objects in executable memory. Their code lives as long as this does: keep it while an address is in use."""

    def __init__(self, data: bytes | Sequence[bytes], target: Target) -> None:
        """Link one object, or several whose functions have names of their own, for this process.

        Raises NotImplemented where the host cannot run the target's code, Fail where an object does not stand alone.
        """
        objects = [data] if isinstance(data, bytes) else list(data)
        host = host_target()
        if not target.runs_on(host):
            lacking = [f for f in target.features if f.startswith("+") and f not in host.features]
            raise NotImplemented(
                "this machine cannot run code for the target", found=", ".join(lacking) or host.triple,
                expected=target.triple,
            )  # fmt: skip
        self.nbytes = sum(map(len, objects))
        """Bytes of the objects: about what their code takes in memory."""
        names: set[str] = set()
        for item in objects:
            missing = undefined_symbols(item)
            if missing:
                # LLVM's linker would end the process over it.
                raise Fail("the object needs symbols that it does not hold", found=", ".join(missing))
            names.update(defined_symbols(item))
        self._names = frozenset(names)
        holder = llvm.parse_assembly(f'target triple = "{target.triple}"')
        self._engine = llvm.create_mcjit_compiler(holder, target_machine(target), use_lmm=True)
        for item in objects:
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(item))
        self._engine.finalize_object()

    def address(self, name: str) -> int:
        """Where the function `name` starts."""
        if name not in self._names:
            raise Fail("no such function in the object", found=name, expected=", ".join(sorted(self._names)))
        address: int = self._engine.get_function_address(name)
        return address

    def kernel(self, name: str, signature: Signature) -> Kernel:
        """The function `name` as something that Python can call."""
        return Kernel(self, name, signature)


class Kernel:
    """A function in memory: its address, and a way to call it from Python.

    Pointers are passed as addresses (int). Nothing is checked: the caller answers for sizes. The global interpreter
    lock is released while it runs.
    """

    def __init__(self, library: Library, name: str, signature: Signature) -> None:
        self._library = library
        self.name = name
        self.signature = signature
        self.address = library.address(name)
        returns = None if signature.returns is None else _CTYPES[signature.returns]
        arguments = [ctypes.c_void_p if p.space is not None else _CTYPES[p.dtype] for p in signature.parameters]
        self._call = ctypes.CFUNCTYPE(returns, *arguments)(self.address)

    def __call__(self, *arguments: int | float) -> Any:
        return self._call(*arguments)


def load(data: bytes, target: Target, signatures: Mapping[str, Signature]) -> dict[str, Kernel]:
    """Every function of a compiled module, by name."""
    library = Library(data, target)
    return {name: library.kernel(name, signature) for name, signature in signatures.items()}


def build(module: Module) -> dict[str, Kernel]:
    """Compile a module here and now, without a cache, and load it."""
    source: Source = module.source()
    return load(compile_source(source), module.target, module.signatures())
