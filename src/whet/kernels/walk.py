"""Walking over memory in vectors: nested axes, tiles of rows, whole vectors first and a masked rest behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from whet.codegen.lang import Function, Operand, Pointer, Value, convert, minimum, prefix_mask
from whet.dtypes import BFLOAT16, BOOL, FLOAT16, FLOAT32, UINT8, DType
from whet.kernels.base import Frame
from whet.kernels.expression import Tape
from whet.kernels.grid import Walk

STRAIGHT_VECTORS = 16
"""Rows of a known length up to this many vectors are written without a loop."""


def working(dtype: DType) -> DType:
    """The type to calculate in: 16-bit floats in float32, bools as bytes of 0 and 1."""
    if dtype in (FLOAT16, BFLOAT16):
        return FLOAT32
    return UINT8 if dtype is BOOL else dtype


def load(pointer: Pointer, offset: Operand, lanes: int, mask: Value | None = None) -> Value:
    """Elements in a row in their working type; 0 where `mask` is false."""
    value = pointer.load(offset, lanes) if mask is None else pointer.load_masked(mask, offset)
    return convert(value, working(pointer.dtype))


def store(pointer: Pointer, value: Value, offset: Operand, mask: Value | None = None) -> None:
    """Write elements in a row as the memory's type."""
    stored = convert(value, pointer.dtype)
    if mask is None:
        pointer.store(stored, offset)
    else:
        pointer.store_masked(mask, stored, offset)


def apply(k: Function, tape: Tape, value: Value) -> Value:
    """The first output of a tape of one input, to whose type `value` is converted."""
    return tape.emit(k, [convert(value, tape.inputs[0])], value.lanes)[0]


Body = Callable[[int, Operand, Value | None], None]
"""What is done to one vector: body(slot, offset, mask); `mask` is None where every lane is inside."""


def over_vectors(k: Function, count: Operand, lanes: int, slots: int, body: Body) -> None:
    """Do `body` for `count` elements: `slots` vectors a round, then single ones in slot 0, then the masked rest.

    `lanes` and `slots` are powers of two; `count` is not negative.
    """
    if not isinstance(count, Value):
        _over_known(k, int(count), lanes, slots, body)
        return
    main = count & -(lanes * slots)
    with k.loop(main, step=lanes * slots) as i:
        for slot in range(slots):
            body(slot, i + slot * lanes, None)
    whole = count & -lanes
    if slots > 1:
        with k.loop(whole, start=main, step=lanes) as i:
            body(0, i, None)
    if lanes > 1:
        with k.when(whole < count):
            body(0, whole, prefix_mask(count - whole, lanes))


def _over_known(k: Function, count: int, lanes: int, slots: int, body: Body) -> None:
    whole = count - count % lanes
    start = 0
    if whole > STRAIGHT_VECTORS * lanes:
        start = count - count % (lanes * slots)
        with k.loop(start, step=lanes * slots) as i:
            for slot in range(slots):
                body(slot, i + slot * lanes, None)
    for number, offset in enumerate(range(start, whole, lanes)):
        body(number % slots, offset, None)
    if whole < count:
        body(0, whole, known_mask(k, count - whole, lanes))


def known_mask(k: Function, count: int, lanes: int) -> Value | None:
    """A mask whose first `count` lanes are true; None where all are."""
    if count >= lanes:
        return None
    return k.constant_vector(BOOL, [int(lane < count) for lane in range(lanes)])


@dataclass(frozen=True)
class Axes:
    """Nested axes: their extents and, for each operand, their strides in elements; the last axis is the innermost."""

    extents: tuple[Operand, ...]
    strides: dict[str, tuple[Operand, ...]]

    def offset(self, operand: str, coordinates: Sequence[Operand]) -> Operand:
        """How far `operand`'s element at `coordinates` (of the first axes) is from its start."""
        total: Operand = 0
        for coordinate, stride in zip(coordinates, self.strides[operand], strict=False):
            total = plus(total, times(coordinate, stride))
        return total

    @contextmanager
    def nest(self, k: Function, operand: str, count: int) -> Iterator[Operand]:
        """Loops over the first `count` axes around the block: the offset into `operand`."""
        with ExitStack() as stack:
            coordinates = [stack.enter_context(k.loop(extent)) for extent in self.extents[:count]]
            yield self.offset(operand, coordinates)


def axes(
    frame: Frame, name: str, rank: int, operands: Sequence[str], inner: int | None = None, unit: Sequence[str] = ()
) -> Axes:
    """Ask for axes: words `{name}0`, ... are extents, `{operand}_{name}0`, ... strides.

    `inner` fixes the last extent; the operands in `unit` have stride 1 along the last axis. What is known has no word.
    """
    last = rank - 1
    extents = tuple(frame.number(f"{name}{i}", inner if i == last else None) for i in range(rank))
    strides = {
        operand: tuple(
            frame.number(f"{operand}_{name}{i}", 1 if i == last and operand in unit else None) for i in range(rank)
        )
        for operand in operands
    }
    return Axes(extents, strides)


@dataclass(frozen=True)
class Tile:
    """A stretch of the last axis, positions `start` to `stop`-1, and where it lies along the axes before it: their
    coordinates, and the offset into each operand."""

    coordinates: tuple[Value, ...]
    offsets: dict[str, Operand]
    start: Value
    stop: Value


@contextmanager
def tiles(frame: Frame, over: Axes, tile: Operand, repeated: bool = False) -> Iterator[tuple[Tile, Value]]:
    """A loop over this call's tiles of `over`, of at most `tile` positions of its last axis each.

    The grid is product(extents[:-1]) * ceil(extents[-1] / tile), `repeated` any number of times: the second value is
    the number of the repetition.
    """
    k = frame.k
    last = over.extents[-1]
    blocks = k.index(plus(last, plus(tile, -1))) / tile
    outer = over.extents[:-1]
    if not outer and not repeated:
        with frame.tiles() as number:
            start = number * tile
            yield Tile((), dict.fromkeys(over.strides, 0), start, minimum(start + tile, last)), number
        return
    # Short tiles are many: positions are counted up, not divided out for each.
    first = (1,) if repeated else ()
    strides = {operand: [*(0 for _ in first), *each[:-1], 0] for operand, each in over.strides.items()}
    walk = Walk(k, [*first, *outer, blocks], strides, frame.begin)
    with frame.tiles() as number:
        start = walk.index(len(first) + len(outer)) * tile
        coordinates = tuple(walk.index(len(first) + d) for d in range(len(outer)))
        offsets: dict[str, Operand] = {operand: walk.offset(operand) for operand in over.strides}
        yield Tile(coordinates, offsets, start, minimum(start + tile, last)), walk.index(0) if repeated else number
        walk.advance()


def plus(a: Operand, b: Operand) -> Operand:
    """a + b, written down only where it is not known."""
    if not isinstance(a, Value) and a == 0:
        return b
    if not isinstance(b, Value) and b == 0:
        return a
    return a + b


def times(a: Operand, b: Operand) -> Operand:
    """a * b, written down only where it is not known."""
    if not isinstance(a, Value) and a in (0, 1):
        return b if a else 0
    if not isinstance(b, Value) and b in (0, 1):
        return a if b else 0
    return a * b
