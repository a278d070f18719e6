"""Pointers: typed addresses with loads and stores of scalars and vectors, whole, masked, gathered and atomic."""

from __future__ import annotations

from typing import Literal

from whet.codegen.emitter import Emitter
from whet.codegen.irtypes import LanguageError, ir_type, pointer_type, storage_type, suffix
from whet.codegen.values import Operand, Value, broadcast, constant
from whet.dtypes import BOOL, INT32, INT64, UINT8, UINT64, DType

Ordering = Literal["monotonic", "acquire", "release", "acq_rel", "seq_cst"]
"""C11's memory orders; `monotonic` is C's `relaxed`."""


class Pointer:
    """The address of elements of `dtype` in an address space (0: the CPU's memory).

    Offsets count elements. `align` is the alignment in bytes that an access may rely on: the element's own size unless
    stated; a false promise traps or corrupts. Bools are bytes in memory, any other than 0 is true.
    """

    __slots__ = ("dtype", "emitter", "name", "space")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, emitter: Emitter, dtype: DType, name: str, space: int = 0) -> None:
        self.emitter = emitter
        self.dtype = dtype
        self.name = name
        self.space = space

    def __bool__(self) -> bool:
        raise LanguageError("a kernel's pointer is not known while its code is written")

    def __repr__(self) -> str:
        return f"{self.type_text} {self.name} to {self.dtype}"

    @property
    def type_text(self) -> str:
        return pointer_type(self.space)

    def renamed(self, name: str) -> Pointer:
        """A pointer of the same type under another name."""
        return Pointer(self.emitter, self.dtype, name, self.space)

    def as_type(self, dtype: DType) -> Pointer:
        """The same address, seen as elements of `dtype`."""
        return Pointer(self.emitter, dtype, self.name, self.space)

    def __add__(self, offset: Operand) -> Pointer:
        """The address `offset` elements further."""
        if not isinstance(offset, Value) and offset == 0:
            return self
        index = _index(self.emitter, offset)
        text = f"getelementptr {storage_type(self.dtype)}, {self.type_text} {self.name}, {index.type_text} {index.name}"
        return self.renamed(self.emitter.assign(text))

    def load(self, offset: Operand = 0, lanes: int = 1, align: int | None = None) -> Value:
        """One element, or `lanes` in a row, at `offset`."""
        place = self + offset
        text = f"load {storage_type(self.dtype, lanes)}, {self.type_text} {place.name}, align {self._align(align)}"
        return self._from_storage(self.emitter.assign(text), lanes)

    def store(self, value: Operand, offset: Operand = 0, align: int | None = None) -> None:
        """Write an element, or a vector's elements in a row, at `offset`."""
        stored = self._to_storage(value)
        place = self + offset
        text = f"store {stored.type_text} {stored.name}, {self.type_text} {place.name}, align {self._align(align)}"
        self.emitter.line(text)

    def load_masked(self, mask: Value, offset: Operand = 0, fill: Operand = 0) -> Value:
        """The lanes of a row where `mask` is true; `fill` elsewhere, whose memory is not touched."""
        place = self + offset
        lanes = self._mask_lanes(mask)
        type_text = storage_type(self.dtype, lanes)
        otherwise = self._fill(fill, lanes)
        operands = [
            (f"{self.type_text} align {self._align(None)}", place.name),
            (mask.type_text, mask.name),
            (type_text, otherwise.name),
        ]
        name = f"llvm.masked.load.{suffix(type_text)}.{suffix(self.type_text)}"
        return self._from_storage(self.emitter.intrinsic(name, type_text, operands), lanes)

    def store_masked(self, mask: Value, value: Operand, offset: Operand = 0) -> None:
        """Write the lanes where `mask` is true; other memory is not touched."""
        lanes = self._mask_lanes(mask)
        only = _only_lane(mask)
        if only is not None:
            # LLVM 22 writes too many bytes where it narrows elements and one lane of a constant mask is true.
            element = value.lane(only) if isinstance(value, Value) and value.lanes > 1 else value
            self.store(element, offset if only == 0 else _index(self.emitter, offset) + only)
            return
        stored = self._to_storage(value, lanes)
        place = self + offset
        operands = [
            (stored.type_text, stored.name),
            (f"{self.type_text} align {self._align(None)}", place.name),
            (mask.type_text, mask.name),
        ]
        name = f"llvm.masked.store.{suffix(stored.type_text)}.{suffix(self.type_text)}"
        self.emitter.intrinsic(name, "void", operands)

    def gather(self, offsets: Value, mask: Value | None = None, fill: Operand = 0) -> Value:
        """The elements at each lane's offset (int32 or int64); `fill` where `mask` is false."""
        places, type_text = self._places(offsets)
        lanes = offsets.lanes
        chosen = self._mask(mask, lanes)
        vector = storage_type(self.dtype, lanes)
        operands = [
            (f"{type_text} align {self._align(None)}", places),
            (chosen.type_text, chosen.name),
            (vector, self._fill(fill, lanes).name),
        ]
        name = f"llvm.masked.gather.{suffix(vector)}.v{lanes}{suffix(self.type_text)}"
        return self._from_storage(self.emitter.intrinsic(name, vector, operands), lanes)

    def scatter(self, offsets: Value, value: Operand, mask: Value | None = None) -> None:
        """Write each lane to its offset, where `mask` is true; of equal offsets the last lane wins."""
        places, type_text = self._places(offsets)
        lanes = offsets.lanes
        stored = self._to_storage(value, lanes)
        chosen = self._mask(mask, lanes)
        operands = [
            (stored.type_text, stored.name),
            (f"{type_text} align {self._align(None)}", places),
            (chosen.type_text, chosen.name),
        ]
        name = f"llvm.masked.scatter.{suffix(stored.type_text)}.v{lanes}{suffix(self.type_text)}"
        self.emitter.intrinsic(name, "void", operands)

    def load_pointer(self, dtype: DType, offset: Operand = 0, space: int = 0) -> Pointer:
        """The address that is stored at `offset` (this pointer's elements are 64-bit words)."""
        place = self._words() + offset
        text = f"load {pointer_type(space)}, {self.type_text} {place.name}, align 8"
        return Pointer(self.emitter, dtype, self.emitter.assign(text), space)

    def store_pointer(self, pointer: Pointer, offset: Operand = 0) -> None:
        """Write an address at `offset` (this pointer's elements are 64-bit words)."""
        place = self._words() + offset
        self.emitter.line(f"store {pointer.type_text} {pointer.name}, {self.type_text} {place.name}, align 8")

    def prefetch(self, offset: Operand = 0, locality: int = 3, write: bool = False) -> None:
        """Ask for the cache line at `offset`; `locality` from 0 (used once) to 3 (keep in L1)."""
        if locality not in (0, 1, 2, 3):
            raise LanguageError("no such locality", found=locality, expected="0 to 3")
        place = self + offset
        operands = [(self.type_text, place.name), ("i32", str(int(write))), ("i32", str(locality)), ("i32", "1")]
        self.emitter.intrinsic(f"llvm.prefetch.{suffix(self.type_text)}", "void", operands)

    def atomic_load(self, ordering: Literal["monotonic", "acquire", "seq_cst"]) -> Value:
        """Read an integer that other threads write."""
        type_text = self._atomic_type()
        text = f"load atomic {type_text}, {self.type_text} {self.name} {ordering}, align {self._align(None)}"
        return Value(self.emitter, self.dtype, 1, self.emitter.assign(text))

    def atomic_store(self, value: Operand, ordering: Literal["monotonic", "release", "seq_cst"]) -> None:
        """Write an integer that other threads read."""
        self._atomic_type()
        stored = Value(self.emitter, self.dtype, 1, "").like(value)
        target = f"{self.type_text} {self.name} {ordering}, align {self._align(None)}"
        self.emitter.line(f"store atomic {stored.type_text} {stored.name}, {target}")

    def atomic_add(self, value: Operand, ordering: Ordering) -> Value:
        """Add to an integer in memory and return what was there before."""
        type_text = self._atomic_type()
        amount = Value(self.emitter, self.dtype, 1, "").like(value)
        text = f"atomicrmw add {self.type_text} {self.name}, {type_text} {amount.name} {ordering}"
        return Value(self.emitter, self.dtype, 1, self.emitter.assign(text))

    def compare_exchange(self, expected: Value, replacement: Operand, ordering: Ordering) -> tuple[Value, Value]:
        """Store `replacement` if memory holds `expected`: (what was there, whether it was replaced)."""
        type_text = self._atomic_type()
        new = expected.like(replacement)
        failure = {"acq_rel": "acquire", "release": "monotonic"}.get(ordering, ordering)
        text = f"cmpxchg {self.type_text} {self.name}, {type_text} {expected.name}, {type_text} {new.name}"
        both = self.emitter.assign(f"{text} {ordering} {failure}")
        old = self.emitter.assign(f"extractvalue {{ {type_text}, i1 }} {both}, 0")
        done = self.emitter.assign(f"extractvalue {{ {type_text}, i1 }} {both}, 1")
        return Value(self.emitter, self.dtype, 1, old), Value(self.emitter, BOOL, 1, done)

    def _atomic_type(self) -> str:
        if not (self.dtype.is_integer and self.dtype.bits in (32, 64)):
            raise LanguageError("atomics work on integers of 32 and 64 bits", found=self.dtype)
        return ir_type(self.dtype)

    def _words(self) -> Pointer:
        if self.dtype not in (INT64, UINT64):
            raise LanguageError("addresses are kept in 64-bit words", found=self.dtype, expected="int64 or uint64")
        return self

    def _align(self, align: int | None) -> int:
        if align is None:
            return max(1, self.dtype.bits // 8)
        if align < 1 or align & (align - 1):
            raise LanguageError("an alignment is a power of two", found=align)
        return align

    def _mask_lanes(self, mask: Value) -> int:
        if mask.dtype is not BOOL or mask.lanes == 1:
            raise LanguageError("not a mask of several lanes", found=mask)
        return mask.lanes

    def _mask(self, mask: Value | None, lanes: int) -> Value:
        if mask is None:
            return constant(self.emitter, BOOL, 1, lanes)
        if self._mask_lanes(mask) != lanes:
            raise LanguageError("mask and offsets differ in lanes", found=mask, expected=lanes)
        return mask

    def _places(self, offsets: Value) -> tuple[str, str]:
        if offsets.dtype not in (INT32, INT64) or offsets.lanes == 1:
            raise LanguageError("offsets are a vector of int32 or int64", found=offsets)
        element = storage_type(self.dtype)
        text = f"getelementptr {element}, {self.type_text} {self.name}, {offsets.type_text} {offsets.name}"
        return self.emitter.assign(text), f"<{offsets.lanes} x {self.type_text}>"

    def _fill(self, fill: Operand, lanes: int) -> Value:
        if not isinstance(fill, Value) and fill == 0:
            return Value(self.emitter, self.dtype, lanes, "zeroinitializer")
        return self._to_storage(fill, lanes)

    def _from_storage(self, name: str, lanes: int) -> Value:
        if self.dtype is BOOL:
            return Value(self.emitter, UINT8, lanes, name) != 0
        return Value(self.emitter, self.dtype, lanes, name)

    def _to_storage(self, value: Operand, lanes: int | None = None) -> Value:
        if not isinstance(value, Value):
            value = constant(self.emitter, self.dtype, value, lanes or 1)
        elif value.dtype is not self.dtype:
            raise LanguageError("the value's type is not the memory's", found=value, expected=self.dtype)
        if lanes is not None and value.lanes != lanes:
            value = broadcast(value, lanes)
        if self.dtype is not BOOL:
            return value
        text = f"zext {value.type_text} {value.name} to {ir_type(UINT8, value.lanes)}"
        return Value(self.emitter, UINT8, value.lanes, self.emitter.assign(text))


def _only_lane(mask: Value) -> int | None:
    """The one lane of a constant mask that is true, or None where there are more or the mask is no constant."""
    if not mask.name.startswith("<i1"):
        return None
    lanes = [i for i, lane in enumerate(mask.name[1:-1].split(", ")) if lane.endswith("true")]
    return lanes[0] if len(lanes) == 1 else None


def _index(emitter: Emitter, offset: Operand) -> Value:
    if not isinstance(offset, Value):
        return constant(emitter, INT64, offset)
    if offset.dtype not in (INT64, INT32) or offset.lanes != 1:
        raise LanguageError("an offset is an int64 or int32", found=offset)
    return offset
