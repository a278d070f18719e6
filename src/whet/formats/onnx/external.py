"""Tensors kept in files beside the model: mapped, and confined to the model's folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from whet.errors import InvalidGraph, NoSuchFile
from whet.formats.onnx.source import map_descriptor


class ExternalData:
    """The external files of one model, each mapped once.

    A location must name a regular file under the model's folder, in plain relative form. Symbolic links (in any part
    below the folder) and files with several hard links are refused, as onnx does: either could lead out of the folder.
    """

    def __init__(
        self, folder: str | None, model_path: str | None, files: Mapping[str, memoryview] | None = None
    ) -> None:
        """`files` are contents by location that the caller holds in memory; they need no folder."""
        self._folder = folder
        self._model_path = model_path
        self._files: dict[str, memoryview] = dict(files or {})

    def read(self, entries: Mapping[str, str], nbytes: int, tensor: str) -> memoryview:
        """The `nbytes` bytes that `entries` (location, offset, length) point at. Raises InvalidGraph, NoSuchFile."""
        location = entries.get("location", "")
        offset = self._number(entries, "offset", tensor) or 0
        length = self._number(entries, "length", tensor)
        if length is not None and length != nbytes:
            raise self._refuse(
                "external data of the wrong length", tensor, f"length {length} in {location!r}", f"{nbytes} bytes"
            )
        data = self._open(location, tensor)
        if offset + nbytes > len(data):
            raise self._refuse(
                "external data past the end of its file",
                tensor,
                f"bytes {offset} to {offset + nbytes} of {location!r}",
                f"at most {len(data)}, the size of the file",
            )
        if length is None and "offset" not in entries and len(data) != nbytes:
            raise self._refuse(
                "an external file of the wrong size", tensor, f"{len(data)} bytes in {location!r}", f"{nbytes} bytes"
            )
        return data[offset : offset + nbytes]

    def _number(self, entries: Mapping[str, str], key: str, tensor: str) -> int | None:
        text = entries.get(key)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= 19):
            raise self._refuse(f"external data with a bad {key}", tensor, repr(text[:80]), "a decimal number >= 0")
        return int(text)

    def _open(self, location: str, tensor: str) -> memoryview:
        data = self._files.get(location)
        if data is None:
            data = self._files[location] = self._map(self._parts(location, tensor), location, tensor)
        return data

    def _parts(self, location: str, tensor: str) -> list[str]:
        if not location:
            raise self._refuse("external data without a location", tensor, None, "a file in the model's folder")
        if "\0" in location:
            raise self._refuse("a NUL character in an external location", tensor, repr(location), "a plain file name")
        normal = location.replace("\\", "/")
        if normal.startswith("/") or (len(normal) > 1 and normal[1] == ":"):
            raise self._refuse("an absolute external location", tensor, repr(location), "a path in the model's folder")
        parts = [p for p in normal.split("/") if p not in ("", ".")]
        if ".." in parts or not parts:
            raise self._refuse(
                "an external location that leaves the model's folder", tensor, repr(location), "a path without '..'"
            )
        if self._folder is None:
            raise self._refuse(
                "external data in a model given as bytes",
                tensor,
                repr(location),
                "a model given by its path, so that its folder is known",
            )
        return parts

    def _map(self, parts: list[str], location: str, tensor: str) -> memoryview:
        assert self._folder is not None
        path = os.path.join(self._folder, *parts)
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        current = self._folder
        for part in parts:
            current = os.path.join(current, part)
            try:
                status = os.lstat(current)
            except (OSError, ValueError) as error:
                raise NoSuchFile(
                    "a model's external data file is missing or unreadable",
                    file=path,
                    value=tensor,
                    found=error.strerror if isinstance(error, OSError) else str(error),
                    hint="Keep the model and its data files in one folder.",
                ) from error
            if stat.S_ISLNK(status.st_mode):
                raise self._refuse(
                    "external data behind a symbolic link",
                    tensor,
                    repr(location),
                    "the file itself",
                    hint="Copy the model and its data into a folder of their own.",
                )
        try:
            descriptor = os.open(path, flags)
        except OSError as error:
            raise NoSuchFile(
                f"cannot read a model's external data file: {error.strerror}", file=path, value=tensor
            ) from error
        try:
            opened = os.fstat(descriptor)
            if stat.S_ISREG(opened.st_mode) and opened.st_nlink > 1:
                raise self._refuse(
                    "external data in a file with several hard links",
                    tensor,
                    f"{opened.st_nlink} links to {location!r}",
                    "a file with one name",
                    hint="Copy the file: a hard link can lead to a file outside the model's folder.",
                )
            if os.path.realpath(path) != os.path.join(os.path.realpath(self._folder), *parts):
                raise self._refuse("external data behind a symbolic link", tensor, repr(location), "the file itself")
            return map_descriptor(descriptor, path)
        finally:
            os.close(descriptor)

    def _refuse(
        self, problem: str, tensor: str, found: str | None, expected: str, hint: str | None = None
    ) -> InvalidGraph:
        return InvalidGraph(problem, file=self._model_path, value=tensor, found=found, expected=expected, hint=hint)
