"""Opening a model's bytes: a memory map of a regular file, or bytes that the caller gave."""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass

import numpy as np

from whet.errors import InvalidArgument, NoModel, NoSuchFile


@dataclass(frozen=True, slots=True)
class Source:
    """The bytes of a model and where they come from (`path` and `folder` are None for bytes)."""

    data: memoryview
    path: str | None
    folder: str | None


class MappedFile(mmap.mmap):
    """A mapped file that knows which one it is."""

    identity: tuple[int, ...]
    """Device, inode, size and time of the last change: what tells it from every other file and version of it."""
    address: int

    def of(self, status: os.stat_result) -> MappedFile:
        """Note which file this is."""
        self.identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        self.address = int(np.frombuffer(self, np.uint8).ctypes.data)
        return self


def open_source(source: str | os.PathLike[str] | bytes | bytearray | memoryview) -> Source:
    """Map the file at `source`, or borrow the bytes.

    The map is private and read-only. A file that another program changes or truncates while the model is in use
    changes the weights, or ends the process: replace model files by renaming, never in place.

    Raises NoSuchFile (missing, unreadable, no regular file), NoModel (empty) and InvalidArgument (wrong type).
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = memoryview(source).cast("B")
        if not len(data):
            raise NoModel("the model's bytes are empty", expected="an ONNX model")
        return Source(data.toreadonly(), None, None)
    if not isinstance(source, (str, os.PathLike)):
        raise InvalidArgument("a model is given as a path or as bytes", found=type(source).__name__)
    path = os.fspath(source)
    if "\0" in path:
        raise NoSuchFile("a path cannot hold a NUL character", file=path)
    data = map_file(path)
    if not len(data):
        raise NoModel("the model file is empty", file=path, expected="an ONNX model")
    return Source(data, path, os.path.dirname(os.path.abspath(path)))


def map_file(path: str) -> memoryview:
    """The whole regular file at `path` as read-only memory. Raises NoSuchFile."""
    try:
        # Opening a FIFO would wait for a writer, so the kind is looked at first and O_NONBLOCK closes the race.
        _require_regular(os.stat(path), path)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise _cannot_open(path, error) from error
    try:
        return map_descriptor(descriptor, path)
    finally:
        os.close(descriptor)


def map_descriptor(descriptor: int, path: str) -> memoryview:
    """The regular file behind an open descriptor as read-only memory. Raises NoSuchFile."""
    status = os.fstat(descriptor)
    _require_regular(status, path)
    if status.st_size == 0:
        return memoryview(b"")
    try:
        return memoryview(MappedFile(descriptor, 0, access=mmap.ACCESS_READ).of(status))
    except (OSError, ValueError) as error:
        raise _cannot_open(path, error) from error


def release_pages(owner: object) -> None:
    """Let the system take back the memory that holds a mapped file's bytes; who reads them again finds them again."""
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)


def _require_regular(status: os.stat_result, path: str) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    kinds = (
        (stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISCHR, "a character device"),
        (stat.S_ISBLK, "a block device"), (stat.S_ISSOCK, "a socket"),
    )  # fmt: skip
    found = next((name for test, name in kinds if test(status.st_mode)), "no regular file")
    raise NoSuchFile("this is not a file that can be read as a model", file=path, found=found, expected="a file")


def _cannot_open(path: str, error: Exception) -> NoSuchFile:
    if isinstance(error, FileNotFoundError):
        return NoSuchFile("no such file", file=path)
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return NoSuchFile(f"cannot read the file: {reason}", file=path)
