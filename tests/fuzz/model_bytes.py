"""Mutations of serialized models: bits, bytes, lengths, varints, truncations and splices."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .seeds import seed_model


@dataclass(frozen=True)
class Field:
    """Where one protobuf field lies: its tag, its value (a varint or a length), and the bytes under the length."""

    tag: int
    value: int
    content: int
    end: int
    wire_type: int


def mutate(seed: int) -> bytes:
    """The mutated bytes of `seed`; one to four mutations of a small valid model."""
    choices = random.Random(seed)
    content = bytearray(seed_model(choices.randrange(400)).SerializeToString())
    for _ in range(choices.choice([1, 1, 1, 2, 3, 4])):
        content = choices.choice(_AWARE if choices.random() < 0.75 else _BLIND)(content, choices)
    return bytes(content)


def _replaced(content: bytearray, field: Field, new: bytes, choices: random.Random) -> bytearray:
    """`field`'s value and content replaced by `new`; two times in three the lengths around it are made right again."""
    return _cut_in(content, field.value, field.end, new, choices)


def _cut_in(content: bytearray, start: int, end: int, new: bytes, choices: random.Random) -> bytearray:
    around = []
    if choices.random() < 0.67:
        around = [f for f in _fields(bytes(content)) if f.wire_type == 2 and f.content <= start and end <= f.end]
        around = [f for f in around if f.content < f.end and f.tag < start]
    for field in sorted(around, key=lambda f: f.content, reverse=True):
        inner = bytes(content[field.content : start]) + new + bytes(content[end : field.end])
        start, end, new = field.value, field.end, _varint(len(inner)) + inner
    content[start:end] = new
    return content


def _flip_bit(content: bytearray, choices: random.Random) -> bytearray:
    if content:
        content[choices.randrange(len(content))] ^= 1 << choices.randrange(8)
    return content


def _set_byte(content: bytearray, choices: random.Random) -> bytearray:
    if content:
        content[choices.randrange(len(content))] = choices.choice([0, 1, 0x7F, 0x80, 0xFF, choices.randrange(256)])
    return content


def _truncate(content: bytearray, choices: random.Random) -> bytearray:
    return content[: choices.randrange(len(content) + 1)]


def _delete_run(content: bytearray, choices: random.Random) -> bytearray:
    start = choices.randrange(len(content) + 1)
    del content[start : start + choices.choice([1, 2, 8, 64])]
    return content


def _insert_run(content: bytearray, choices: random.Random) -> bytearray:
    start = choices.randrange(len(content) + 1)
    content[start:start] = choices.randbytes(choices.choice([1, 2, 8, 64]))
    return content


def _splice(content: bytearray, choices: random.Random) -> bytearray:
    other = seed_model(choices.randrange(400)).SerializeToString()
    start, length = choices.randrange(len(other)), choices.choice([4, 32, 256])
    place = choices.randrange(len(content) + 1)
    content[place : place + choices.choice([0, length])] = other[start : start + length]
    return content


def _duplicate_run(content: bytearray, choices: random.Random) -> bytearray:
    start = choices.randrange(len(content) + 1)
    run = content[start : start + choices.choice([4, 32, 256])]
    content[start:start] = run * choices.choice([1, 2, 10])
    return content


def _change_varint(content: bytearray, choices: random.Random) -> bytearray:
    """Replaces an integer field by an extreme one, keeping the lengths around it wrong or right by luck."""
    fields = [field for field in _fields(bytes(content)) if field.wire_type == 0]
    if not fields:
        return content
    field = choices.choice(fields)
    number = choices.choice([0, 1, 2, 7, 77, 99, 127, 128, 255, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**64 - 1])
    return _replaced(content, field, _varint(number), choices)


def _change_varint_in_place(content: bytearray, choices: random.Random) -> bytearray:
    """Replaces a small integer field by another one of the same size, so that the message still parses."""
    fields = [field for field in _fields(bytes(content)) if field.wire_type == 0 and field.end - field.value == 1]
    if fields:
        content[choices.choice(fields).value] = choices.choice(
            [0, 1, 2, 3, 5, 8, 16, 77, 99, 127, choices.randrange(128)]
        )
    return content


def _change_length(content: bytearray, choices: random.Random) -> bytearray:
    fields = [field for field in _fields(bytes(content)) if field.wire_type == 2]
    if not fields:
        return content
    field = choices.choice(fields)
    actual = field.end - field.content
    number = choices.choice([0, 1, max(actual - 1, 0), actual + 1, actual * 2, 2**31 - 1, 2**32, 2**63 - 1, 2**64 - 1])
    content[field.value : field.content] = _varint(number)
    return content


def _change_text(content: bytearray, choices: random.Random) -> bytearray:
    """Overwrites a short length-delimited field (a name, a shape, packed numbers) with bytes of the same count."""
    fields = [f for f in _fields(bytes(content)) if f.wire_type == 2 and 0 < f.end - f.content <= 24]
    if fields:
        field = choices.choice(fields)
        size = field.end - field.content
        fill = choices.choice([choices.randbytes(size), b"\xff" * size, b"\0" * size, b"\xc3(" * size, b"a" * size])
        content[field.content : field.end] = fill[:size]
    return content


def _drop_field(content: bytearray, choices: random.Random) -> bytearray:
    """Removes one whole field."""
    fields = list(_fields(bytes(content)))
    if fields:
        field = choices.choice(fields)
        return _cut_in(content, field.tag, field.end, b"", choices)
    return content


def _repeat_field(content: bytearray, choices: random.Random) -> bytearray:
    """Writes one whole field again, behind itself or once more in another place."""
    fields = list(_fields(bytes(content)))
    if fields:
        field, other = choices.choice(fields), choices.choice(fields)
        place = choices.choice([field, other]).end
        return _cut_in(content, place, place, bytes(content[field.tag : field.end]), choices)
    return content


def _resize_field(content: bytearray, choices: random.Random) -> bytearray:
    """Gives a length-delimited field (a name, raw data, a body) another content with a right length."""
    fields = [f for f in _fields(bytes(content)) if f.wire_type == 2]
    if not fields:
        return content
    field = choices.choice(fields)
    inner = bytes(content[field.content : field.end])
    new = choices.choice([b"", inner[:-1], inner[: len(inner) // 2], inner + b"\0", inner * 2, b"\xff" * len(inner)])
    return _replaced(content, field, _varint(len(new)) + new, choices)


def _change_tag(content: bytearray, choices: random.Random) -> bytearray:
    fields = list(_fields(bytes(content)))
    if fields:
        content[choices.choice(fields).tag] = choices.randrange(256)
    return content


_BLIND: tuple[Callable[[bytearray, random.Random], bytearray], ...] = (
    _flip_bit, _flip_bit, _set_byte, _truncate, _delete_run, _insert_run, _splice, _duplicate_run, _change_length,
    _change_tag,
)  # fmt: skip

# Three mutations in four follow the fields of the message, so that most mutants pass the parser.
_AWARE: tuple[Callable[[bytearray, random.Random], bytearray], ...] = (
    _change_varint, _change_varint_in_place, _change_varint_in_place, _change_text, _drop_field, _repeat_field,
    _resize_field,
)  # fmt: skip


def _varint(number: int) -> bytes:
    result = bytearray()
    while number > 0x7F:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    result.append(number)
    return bytes(result)


def _read_varint(content: bytes, place: int, end: int) -> tuple[int, int] | None:
    number = shift = 0
    while place < end and shift < 70:
        byte = content[place]
        place += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, place
    return None


def _fields(content: bytes, start: int = 0, end: int | None = None, depth: int = 0) -> Iterator[Field]:
    """Every field that parses, those of nested messages too (bytes that happen to parse count as messages)."""
    place, end = start, len(content) if end is None else end
    while place < end:
        tag = place
        read = _read_varint(content, place, end)
        if read is None:
            return
        key, value = read
        wire_type = key & 7
        if wire_type == 0:
            read = _read_varint(content, value, end)
            if read is None:
                return
            place = read[1]
            yield Field(tag, value, value, place, wire_type)
        elif wire_type == 2:
            read = _read_varint(content, value, end)
            if read is None or read[1] + read[0] > end:
                return
            length, inner = read
            place = inner + length
            yield Field(tag, value, inner, place, wire_type)
            if depth < 8 and length > 1:
                yield from _fields(content, inner, place, depth + 1)
        elif wire_type in (1, 5):
            place = value + (8 if wire_type == 1 else 4)
            if place > end:
                return
            yield Field(tag, value, value, place, wire_type)
        else:
            return
