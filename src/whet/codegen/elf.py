"""The symbols of an ELF object (System V ABI, chapter 4): what it defines and what it would need from elsewhere."""

from __future__ import annotations

import struct

from whet.errors import Fail

_SYMTAB = 2
_UNDEFINED_SECTION = 0


def undefined_symbols(data: bytes) -> list[str]:
    """Names that the object refers to without defining them. Raises Fail if `data` is no 64-bit little-endian ELF."""
    names = []
    for name, section in _symbols(data):
        if section == _UNDEFINED_SECTION and name:
            names.append(name)
    return sorted(names)


def defined_symbols(data: bytes) -> list[str]:
    """Names that the object defines. Raises Fail if `data` is no 64-bit little-endian ELF."""
    return sorted(name for name, section in _symbols(data) if section != _UNDEFINED_SECTION and name)


def _symbols(data: bytes) -> list[tuple[str, int]]:
    try:
        return _read(data)
    except (struct.error, IndexError, ValueError) as error:
        raise Fail("not a whole ELF object", found=f"{len(data)} bytes: {error}") from error


def _read(data: bytes) -> list[tuple[str, int]]:
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("the magic bytes of 64-bit little-endian ELF are missing")
    (table_offset,) = struct.unpack_from("<Q", data, 0x28)
    entry_size, entries = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table_offset + i * entry_size) for i in range(entries)]
    found = []
    for section in sections:
        _, kind, _, _, offset, size, link, _, _, symbol_size = section
        if kind != _SYMTAB:
            continue
        names_offset, names_size = sections[link][4], sections[link][5]
        names = data[names_offset : names_offset + names_size]
        for at in range(offset, offset + size, symbol_size):
            name_at, _, _, index = struct.unpack_from("<IBBH", data, at)
            end = names.index(b"\0", name_at)
            found.append((names[name_at:end].decode(), index))
    return found
