"""The file of an engine: a header with the fields that it depends on, and sections, each with its digest.

    MAGIC, length of the header (uint64), SHA-256 of the header, header (JSON), sections at multiples of 4096

An engine is code: it is opened only as a private file in a private folder (`codegen.trust`), and nothing of it is used
before its digest has been found to hold.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from whet.codegen.publish import replacing
from whet.codegen.trust import Untrusted, open_private_file, open_private_folder
from whet.errors import Fail, NoSuchFile

MAGIC = b"whet-engine-1\n"
_HEAD = struct.Struct("<Q32s")
_PAGE = 4096
MOST_HEADER_BYTES = 1 << 20

Fields = tuple[tuple[str, str], ...]
Part = bytes | memoryview


def is_engine(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins as an engine does; False for one that cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError):
        return False
    try:
        return os.read(handle, len(MAGIC)) == MAGIC
    except OSError:
        return False
    finally:
        os.close(handle)


def write(path: Path, fields: Fields, sections: Mapping[str, Sequence[Part]]) -> None:
    """Write an engine whose sections are the parts in order; readers see the whole file or none.

    Raises Fail where the folder is not private: nobody could load the engine from there.
    """
    path = Path(os.path.abspath(path))
    try:
        folder = open_private_folder(path.parent)
    except (OSError, Untrusted) as error:
        raise Fail(
            "an engine cannot be kept in this folder", file=str(path), found=str(error),
            expected="a folder that you own and nobody else can write",
        ) from error  # fmt: skip
    try:
        with replacing(folder, path.name) as file:
            _write(file, fields, sections)
    except OSError as error:
        raise Fail(f"cannot write the engine: {error.strerror}", file=str(path)) from error
    finally:
        os.close(folder)


def _write(file: BinaryIO, fields: Fields, sections: Mapping[str, Sequence[Part]]) -> None:
    table: dict[str, dict[str, Any]] = {}
    at = 0
    for name, parts in sections.items():
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        size = sum(memoryview(part).nbytes for part in parts)
        table[name] = {"at": at, "bytes": size, "sha256": digest.hexdigest()}
        at = _round(at + size)
    header = json.dumps({"fields": fields, "sections": table}).encode()
    file.write(MAGIC + _HEAD.pack(len(header), hashlib.sha256(header).digest()) + header)
    first = _round(file.tell())
    for name, parts in sections.items():
        file.seek(first + table[name]["at"])
        for part in parts:
            file.write(part)
    # Whole pages, so that code which reads a whole register at a section's end stays inside the file.
    file.truncate(_round(file.tell()) + _PAGE)


def read(path: Path, expected: Fields) -> tuple[dict[str, str], dict[str, memoryview]]:
    """(fields, sections) of an engine; the sections are views of the mapped file.

    Raises NoSuchFile, and Fail for an engine that is not private, not whole, or whose fields differ from `expected`,
    naming the first one.
    """
    path = Path(os.path.abspath(path))
    try:
        handle = open_private_file(path)
    except FileNotFoundError as error:
        raise NoSuchFile("no such file", file=str(path)) from error
    except (OSError, Untrusted) as error:
        raise Fail(
            "the engine is not to be trusted", file=str(path), found=str(error),
            expected="a regular file and a folder that you own and nobody else can write",
        ) from error  # fmt: skip
    try:
        if os.fstat(handle).st_size < len(MAGIC) + _HEAD.size:
            raise _damaged(path, "the file is too short")
        data = memoryview(mmap.mmap(handle, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(handle)
    header, first = _header(path, data)
    fields = {str(name): str(text) for name, text in header["fields"]}
    for name, text in expected:
        if fields.get(name) != text:
            raise Fail(
                "the engine was made for something else", file=str(path), value=name, found=_short(fields.get(name)),
                expected=_short(text), hint="Make it again from the model.",
            )  # fmt: skip
    sections = {}
    for name, entry in header["sections"].items():
        begin = first + int(entry["at"])
        section = data[begin : begin + int(entry["bytes"])]
        if len(section) != entry["bytes"] or hashlib.sha256(section).hexdigest() != entry["sha256"]:
            raise _damaged(path, f"the section {name!r} is not what was written")
        sections[name] = section
    return fields, sections


def _header(path: Path, data: memoryview) -> tuple[dict[str, Any], int]:
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise _damaged(path, "the file does not begin as an engine of this format does")
    size, digest = _HEAD.unpack_from(data, len(MAGIC))
    begin = len(MAGIC) + _HEAD.size
    text = bytes(data[begin : begin + min(size, MOST_HEADER_BYTES)])
    if len(text) != size or hashlib.sha256(text).digest() != digest:
        raise _damaged(path, "the header is not what was written")
    header: dict[str, Any] = json.loads(text)
    return header, _round(begin + size)


def _damaged(path: Path, found: str) -> Fail:
    return Fail("the engine is damaged", file=str(path), found=found, hint="Make it again from the model.")


def _short(text: str | None) -> str:
    return "nothing" if text is None else text if len(text) <= 200 else f"{text[:197]}..."


def _round(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def digest_of(parts: Iterable[Part]) -> str:
    """SHA-256 over all parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
