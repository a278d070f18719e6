"""Modules: functions and constants in one text, and from the text to an object file's bytes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import llvmlite
import llvmlite.binding as llvm

from whet.codegen.elf import undefined_symbols
from whet.codegen.function import Function, Parameter
from whet.codegen.irtypes import LanguageError
from whet.codegen.target import Target
from whet.dtypes import DType
from whet.errors import Fail, shorten

CODEGEN_LEVEL = 2
"""LLVM's effort in instruction selection and scheduling; level 0 spills, level 3 gains nothing on final-form IR."""


@dataclass(frozen=True, slots=True)
class Source:
    """A module's text with the target that it is written for: what one object file is made from."""

    target: Target
    text: str

    def key_fields(self) -> tuple[tuple[str, str], ...]:
        """Everything that the object depends on, as (name, text): the one place where an object's cache key is made."""
        return (
            ("llvmlite", llvmlite.__version__),
            ("llvm", ".".join(map(str, llvm.llvm_version_info))),
            *self.target.code_fields(),
            ("level", str(CODEGEN_LEVEL)),
            ("ir", hashlib.sha256(self.text.encode()).hexdigest()),
        )


class Module:
    """Functions that are compiled together and may call each other."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.functions: dict[str, Function] = {}
        self._declarations: dict[str, str] = {}

    @contextmanager
    def function(self, name: str, returns: DType | None = None, internal: bool = False) -> Iterator[Function]:
        """Write a function in the `with` block. `internal` ones can only be called from this module."""
        if name in self.functions or not name.replace("_", "a").isalnum():
            raise LanguageError("the name is taken, or not a name", found=name)
        function = Function(name, self.target, self._declarations, returns, internal)
        self.functions[name] = function
        yield function
        function.finish()

    def text(self) -> str:
        """The module in LLVM's textual form."""
        bits = self.target.vector_bits
        attributes = f'nounwind "prefer-vector-width"="{bits}" "min-legal-vector-width"="{bits}"'
        return "\n".join(
            [
                f'target datalayout = "{data_layout(self.target)}"',
                f'target triple = "{self.target.triple}"',
                *(f.text() for f in self.functions.values()),
                *(self._declarations[name] for name in sorted(self._declarations)),
                f"attributes #0 = {{ {attributes} }}",
                "",
            ]
        )

    def source(self) -> Source:
        """The finished module as a value."""
        return Source(self.target, self.text())

    def signatures(self) -> dict[str, Signature]:
        """How to call the functions that can be called from outside."""
        return {f.name: Signature(tuple(f.parameters), f.returns) for f in self.functions.values() if not f.internal}


@dataclass(frozen=True, slots=True)
class Signature:
    """A function's arguments and result."""

    parameters: tuple[Parameter, ...]
    returns: DType | None


@functools.cache
def _initialize() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


def warm_up() -> None:
    """Load what compiling needs, so that a worker is ready when it takes its first module."""
    _initialize()


def target_machine(target: Target) -> llvm.TargetMachine:
    """LLVM's description of the target: small code model, position independent."""
    _initialize()
    found = llvm.Target.from_triple(target.triple)
    return found.create_target_machine(
        cpu=target.cpu,
        features=",".join(target.features),
        opt=CODEGEN_LEVEL,
        reloc="pic",
        codemodel="small",
    )


@functools.cache
def data_layout(target: Target) -> str:
    """Sizes and alignments of types on the target, in LLVM's notation."""
    return str(target_machine(target).target_data)


def parse(source: Source) -> llvm.ModuleRef:
    """Read and verify a module's text. Raises Fail with LLVM's message where it breaks a rule of LLVM's."""
    _initialize()
    try:
        module = llvm.parse_assembly(source.text)
        module.verify()
    except RuntimeError as error:
        raise Fail(
            "generated code is not valid",
            found=shorten(str(error), 1000),
            hint="This is a defect of the generator that wrote it: a value used outside its block, for instance.",
        ) from error
    return module


def compile_source(source: Source) -> bytes:
    """The object file of a module, made in this process under LLVM's process-wide lock.

    Raises Fail for invalid code and for code that needs a library: an object stands alone. An intrinsic that the
    target cannot do may abort the process; `workers` and `sandbox` run this where that does no harm.
    """
    try:
        data: bytes = target_machine(source.target).emit_object(parse(source))
    except RuntimeError as error:
        raise Fail("LLVM could not compile generated code", found=shorten(str(error), 1000)) from error
    missing = undefined_symbols(data)
    if missing:
        raise Fail(
            "generated code calls functions that it does not hold",
            found=", ".join(missing),
            expected="an object that stands alone",
            hint="LLVM fell back to a library for an operation that the target has no instruction for.",
        )
    return data


def assembly(source: Source) -> str:
    """The module in the target's assembly language, for reading."""
    text: str = target_machine(source.target).emit_assembly(parse(source))
    return text
