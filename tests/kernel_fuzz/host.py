"""Calls of a kernel in this process."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from whet.codegen import jit
from whet.codegen.jit import Kernel
from whet.codegen.lang import Module
from whet.codegen.target import host_target
from whet.dtypes import INT64
from whet.kernels.base import KernelCode

from .call import Call, Operand
from .draw import Draw
from .layout import (
    Array,
    Mismatch,
    Variant,
    check_same,
    check_statuses,
    check_values,
    fill,
    start_of,
    taken,
    variants,
)  # fmt: skip
from .memory import Slots

_STACK_WORDS = 4096


def _stack_filler() -> Callable[[int, int], int]:
    """What leaves a pattern where the next function's variables will lie, and gives a word of it."""
    module = Module(host_target())
    with module.function("fill_stack", returns=INT64) as k:
        pattern, index = k.argument("pattern"), k.argument("index")
        room = k.stack_array(INT64, _STACK_WORDS)
        with k.loop(_STACK_WORDS) as i:
            room.store(pattern, i)
        # The compiler must believe that it is read.
        k.return_(room.load(index))
    kernel: Callable[[int, int], int] = jit.build(module)["fill_stack"]
    return kernel


class Host:
    """The memory of this process's calls."""

    def __init__(self) -> None:
        self._fill_stack = _stack_filler()
        self._inputs, self._outputs = Slots(read_only=True), Slots(read_only=False)

    def check(self, draw: Draw, code: KernelCode, kernel: Kernel, call: Call, note: Callable[[int], None]) -> int:
        """Make a call in two variants and check all that it left; how many entries that took. Raises Mismatch.

        `note` is told the number of each variant before it runs.
        """
        if set(code.words) != set(call.words):
            raise AssertionError(f"the kernel wants {code.words}, the call has {sorted(call.words)}")
        entries = 0
        results: list[dict[str, Array]] = []
        names = {id(word): name for name, word in call.words.items() if isinstance(word, Operand)}
        operands = call.operands()
        places = [o.window.places() if o.bytes else np.zeros(0, np.int64) for o in operands]
        for number, variant in enumerate(variants(draw, call)):
            note(number)
            entries += len(variant.pieces)
            results.append(self._run(code, kernel, call, variant, operands, places, names))
        if not call.fails:
            for operand in operands:
                if operand.role != "in":
                    name = names[id(operand)]
                    check_same(name, operand, results[0][name], results[1][name])
                    check_values(name, operand, results[0][name])
        return entries

    def _run(
        self, code: KernelCode, kernel: Kernel, call: Call, variant: Variant, operands: list[Operand],
        places: list[Array], names: dict[int, str],
    ) -> dict[str, Array]:  # fmt: skip
        self._inputs.reset()
        self._outputs.reset()
        addresses: dict[int, int] = {}
        written = []
        for operand, where in zip(operands, places, strict=True):
            slot = (self._inputs if operand.role == "in" else self._outputs).take(operand.bytes)
            start = start_of(operand, variant.at_end, slot.bytes.size)
            fill(operand, slot.bytes, start, variant.poison, where)
            addresses[id(operand)] = slot.address + start + operand.window.origin * operand.dtype.itemsize
            if operand.role != "in":
                written.append((operand, slot, start, where))
        size = 8 * len(code.words)
        block = self._inputs.take(size)
        at = block.bytes.size - size
        values = [addresses[id(w)] if isinstance(w, Operand) else w for w in (call.words[n] for n in code.words)]
        if size:
            block.bytes[at:].view(np.int64)[:] = values
        scratch = self._outputs.take(code.scratch_bytes)
        scratch_at = (scratch.bytes.size - code.scratch_bytes) if variant.at_end else 0
        scratch.bytes[:] = variant.poison
        statuses = []
        pattern = int.from_bytes(bytes([variant.poison]) * 8, "little", signed=True)
        for begin, end in variant.pieces:
            self._fill_stack(pattern, 5)
            statuses.append(int(kernel(block.address + at, begin, end, scratch.address + scratch_at)))
            scratch.bytes[scratch_at : scratch_at + code.scratch_bytes] = variant.poison
        if np.any(scratch.bytes != variant.poison):
            raise Mismatch("memory beside the scratch memory changed")
        check_statuses(call, statuses)
        return {
            names[id(o)]: taken(names[id(o)], o, slot.bytes, start, variant.poison, where)
            for o, slot, start, where in written
        }
