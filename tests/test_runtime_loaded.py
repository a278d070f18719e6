"""What a program must fulfil before the native executor, which looks at nothing, gets it; and its memory."""

from __future__ import annotations

import ctypes

import pytest

from tests.runtime_programs import Fill, address, one_kernel
from whet.errors import Fail, InvalidArgument
from whet.runtime.loaded import LoadedProgram
from whet.runtime.memory import Area
from whet.runtime.program import ADD, EVALUATE, JUMP, JUMP_IF_ZERO, KERNEL, LOAD_SLOT


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"rows": [[KERNEL, 1, 0, 2, 0, 0]]}, "kernel"),
        ({"rows": [[KERNEL, 0, 0, 3, 0, 0]]}, "word of tiles"),
        ({"rows": [[JUMP, 9]]}, "target of a jump"),
        ({"rows": [[JUMP, -1]]}, "target of a jump"),
        ({"rows": [[JUMP_IF_ZERO, 1, 1]]}, "tested slot"),
        ({"rows": [[LOAD_SLOT, 0, 3, 0]]}, "loaded word"),
        ({"rows": [[LOAD_SLOT, 0, 0, 3]]}, "kind of number"),
        ({"rows": [[5]]}, "row kind"),
        ({"rows": [[EVALUATE, 0, 1, 0, 0, 0, 0, 0, 0]]}, "range of code"),
        ({"code": [[7, 0, 0, 0]]}, "operation"),
        ({"code": [[ADD, 0, 0, 1]]}, "operand slot"),
        ({"moves": [[3, 0]]}, "moved word"),
        ({"io_addresses": [[0, 2, 0, -1]]}, "base"),
        ({"io_addresses": [[0, 1, 0, -2]]}, "address slot"),
        ({"checks": [[1, 0, 0]]}, "checked slot"),
    ],
)
def test_programs_that_point_outside_are_refused(change: dict[str, list[list[int]]], what: str) -> None:
    writer = one_kernel(Fill(), 1)
    writer.load()
    for name, value in change.items():
        setattr(writer, name, value)
    with pytest.raises(InvalidArgument, match=f"names a {what} that"):
        writer.load()


def test_numbers_of_kernels_weights_and_threads_are_checked() -> None:
    writer = one_kernel(Fill(), 1)
    with pytest.raises(InvalidArgument, match="number of kernels"):
        LoadedProgram(writer.program(), [], [], None)
    with pytest.raises(InvalidArgument, match="number of weights"):
        LoadedProgram(writer.program(), [address(Fill())], [8], None)
    with pytest.raises(InvalidArgument, match="number of threads"):
        writer.context(0)


def test_large_areas_are_whole_and_untouched() -> None:
    area = Area(1 << 31)
    last = ctypes.c_int64.from_address(area.address + area.nbytes - 8)
    assert last.value == 0
    last.value = 3
    with pytest.raises(Fail, match="not enough memory"):
        Area(1 << 60)
