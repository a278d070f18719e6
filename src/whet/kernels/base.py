"""What every kernel has in common: its calling convention, its argument words, its status, and how one is built.

A kernel is a function `int64 symbol(int64 *words, int64 begin, int64 end, void *scratch)`. It does the tiles begin to
end-1 of its grid; tiles are independent of each other, so that any thread may do any of them. `words` are its
arguments: addresses in bytes, extents and strides in elements, in the order in which the generator asked for them.
`scratch` is memory of the calling thread, at least `KernelCode.scratch_bytes` of it, aligned to 64 bytes, with any
content. The result is 0, or a status made by `Frame.fail`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from whet.codegen.lang import Function, LanguageError, Module, Operand, Pointer, Source, Value
from whet.codegen.target import Target
from whet.dtypes import INT64, UINT8, DType

INDEX_OUT_OF_BOUNDS = 1
"""Status code: an index tensor holds a number outside its axis; the element is its position in that tensor."""
BAD_VALUE = 2
"""Status code: an operand holds a value that the operator does not allow; the element is its position."""
EXTENT_MISMATCH = 3
"""Status code: two extents do not fit each other; the element is the extent that is wrong."""
STATUS_CODE_BITS = 8


class KernelSpec(Protocol):
    """The compile-time description of a kernel: a frozen, hashable dataclass."""

    def emit(self, frame: Frame) -> None:
        """Write the kernel's body into `frame`."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class KernelCode:
    """A kernel's description: `words` names its arguments in order, `fields` are what its object depends on.

    `source` is the text that the object is made from, generated when somebody asks for it.
    """

    spec: KernelSpec
    target: Target
    symbol: str
    fields: tuple[tuple[str, str], ...]
    words: tuple[str, ...]
    scratch_bytes: int

    @property
    def source(self) -> Source:
        return _generate(self.spec, self.target)[0]


class Frame:
    """A kernel under construction: its arguments by name, its range of tiles, its scratch memory."""

    def __init__(self, function: Function) -> None:
        self.k = function
        self.target = function.target
        self._words = function.pointer("words", INT64, align=8)
        self.begin = function.argument("begin")
        self.end = function.argument("end")
        self._scratch = function.pointer("scratch", UINT8, align=64)
        self._names: list[str] = []
        self._scratch_bytes = 0

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self._names)

    @property
    def scratch_bytes(self) -> int:
        return self._scratch_bytes

    def _next(self, name: str) -> int:
        if name in self._names:
            raise LanguageError("a kernel asks for one argument twice", found=name)
        self._names.append(name)
        return len(self._names) - 1

    def address(self, name: str, dtype: DType) -> Pointer:
        """The next argument word: an address of elements of `dtype`. Ask at the top of the kernel, outside loops."""
        return self._words.load_pointer(dtype, self._next(name))

    def number(self, name: str, fixed: int | None = None) -> Operand:
        """A number: `fixed` itself where it is known while the code is made, else the next argument word (int64)."""
        if fixed is not None:
            return fixed
        return self._words.load(self._next(name))

    def scratch(self, dtype: DType, count: int) -> Pointer:
        """`count` elements of the thread's scratch memory, aligned to 64 bytes."""
        offset = self._scratch_bytes
        self._scratch_bytes += -(-dtype.storage_bytes(count) // 64) * 64
        return (self._scratch + offset).as_type(dtype)

    @contextmanager
    def tiles(self) -> Iterator[Value]:
        """A loop over this call's tiles."""
        with self.k.loop(self.end, start=self.begin) as tile:
            yield tile

    def fail_if(self, condition: Value, code: int, element: Operand) -> None:
        """Return with a status where `condition` (one bool) is true: a code, and the position of what is wrong."""
        k = self.k
        with k.when(condition):
            k.return_((k.index(element) << STATUS_CODE_BITS) | code)


def build(spec: KernelSpec, target: Target) -> KernelCode:
    """The code of `spec` for `target`; made once per process."""
    return _build(spec, target)


@functools.lru_cache(maxsize=4096)
def _build(spec: KernelSpec, target: Target) -> KernelCode:
    source, symbol, frame = _generate(spec, target)
    return KernelCode(spec, target, symbol, source.key_fields(), frame.words, frame.scratch_bytes)


@functools.lru_cache(maxsize=64)
def _generate(spec: KernelSpec, target: Target) -> tuple[Source, str, Frame]:
    placeholder = "kernel"
    module = Module(target)
    with module.function(placeholder, returns=INT64) as function:
        frame = Frame(function)
        spec.emit(frame)
        if function.reachable:
            function.return_(0)
    text = module.text()
    # Kernels are linked together, so that each name is one content's.
    digest = hashlib.sha256(text.encode()).hexdigest()[:24]
    symbol = f"{type(spec).__name__.lower()}_{digest}"
    return Source(target, text.replace(f"@{placeholder}(", f"@{symbol}(")), symbol, frame
