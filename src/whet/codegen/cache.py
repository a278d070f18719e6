"""Object files on disk, by everything that they depend on. Never the reason why a compilation fails.

Code from the cache is run, so a file is taken only if it and its folder belong to this user and nobody else can write
them, if it is the file of this very key, and if its digest holds. A system without owners of files (Windows) gets no
cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import platformdirs

from whet.codegen.publish import UNFINISHED, replacing
from whet.codegen.trust import Untrusted, check_private, open_private_folder
from whet.config import GIB, MIB

Fields = tuple[tuple[str, str], ...]

_MAGIC = b"whet-object-1\n"
_SUFFIX = ".whetobj"
_STALE_SECONDS = 3600.0
"""Age of an unfinished file at which its writer is taken for dead, and least age of a use that is noted again."""
_SCAN_BYTES = 64 * MIB
"""Bytes that this process writes between two looks at the folder's whole size."""
_LOOKED = ".looked"
"""A file whose time is that of the last look by any process."""
_LOOK_SECONDS = 600.0
"""Age of that look at which a process looks at its first object: many that write little each grow the folder too, but
a look at a hundred thousand files takes longer than most compilations."""
_BLOCK = 4096
_ROOM = 8
"""A folder that was too large gets smaller by this part, so that the next objects do not ask for the same again."""


@dataclass(frozen=True, slots=True)
class CacheReport:
    """What the cache did so far; `problem` is the last reason why it could not read, trust or write."""

    hits: int = 0
    misses: int = 0
    stored: int = 0
    rejected: int = 0
    removed: int = 0
    problem: str | None = None


def default_folder() -> Path:
    """Where objects go unless the caller says otherwise."""
    return platformdirs.user_cache_path("whet") / "objects"


def key_digest(fields: Fields) -> str:
    """The name of a key's file."""
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


class ObjectCache:
    """A bounded folder of objects; safe for many threads and processes at once.

    `max_bytes`: what its files may take on the disk; those whose use was noted longest ago go first.
    """

    def __init__(self, folder: Path | None = None, max_bytes: int = GIB // 2) -> None:
        self.folder = default_folder() if folder is None else Path(folder)
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._report = CacheReport()
        self._unseen_bytes = 0
        self._has_looked = False

    @property
    def report(self) -> CacheReport:
        """Counts so far, of this process."""
        return self._report

    def get(self, fields: Fields) -> bytes | None:
        """The object of a key, or None where there is none that can be trusted."""
        name = key_digest(fields) + _SUFFIX
        try:
            folder = self._open_folder(create=False)
            try:
                data = _read_entry(folder, name, fields)
            finally:
                os.close(folder)
        except FileNotFoundError:
            self._note(misses=1)
            return None
        except (OSError, Untrusted) as error:
            self._note(misses=1, rejected=1, problem=f"{name}: {error}")
            return None
        self._note(hits=1)
        return data

    def put(self, fields: Fields, data: bytes) -> bool:
        """Keep an object; False (with the reason in `report`) where that is not possible."""
        name = key_digest(fields) + _SUFFIX
        header = json.dumps({"key": fields, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}).encode()
        content = _MAGIC + header + b"\n" + data
        if len(content) > self.max_bytes:
            self._note(problem=f"{name}: {len(content)} bytes are more than the whole cache may hold")
            return False
        try:
            folder = self._open_folder(create=True)
            try:
                with replacing(folder, name) as file:
                    file.write(content)
                self._bound(folder, _footprint(len(content)))
            finally:
                os.close(folder)
        except (OSError, Untrusted) as error:
            self._note(problem=f"{name}: {error}")
            return False
        self._note(stored=1)
        return True

    def explain_miss(self, fields: Fields) -> tuple[str, ...]:
        """Why a key has no entry: the fields in which the most similar entry of the same code differs, or nothing.

        Reads the header of every entry: for a person's question, not for each compilation.
        """
        wanted = dict(fields)
        nearest: tuple[str, ...] = ()
        try:
            folder = self._open_folder(create=False)
        except (OSError, Untrusted):
            return ()
        try:
            for name in os.listdir(folder):
                if not name.endswith(_SUFFIX):
                    continue
                try:
                    header, _ = _open_entry(folder, name)
                except (OSError, Untrusted):
                    continue  # not an entry; `get` reports it when its key is asked for
                other = dict(header["key"])
                if other.get("ir") == wanted.get("ir"):
                    differing = tuple(n for n in wanted if other.get(n) != wanted[n])
                    if not nearest or len(differing) < len(nearest):
                        nearest = differing
        finally:
            os.close(folder)
        return nearest

    def _open_folder(self, create: bool) -> int:
        if create and hasattr(os, "geteuid"):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return open_private_folder(self.folder)

    def _bound(self, folder: int, written: int) -> None:
        """Remove what was used longest ago once the folder is over its size, and what dead writers left."""
        with self._lock:
            self._unseen_bytes += written
            first, self._has_looked = not self._has_looked, True
            enough = self._unseen_bytes >= min(_SCAN_BYTES, self.max_bytes // 16)
            if not enough and not (first and _look_is_due(folder)):
                return
            self._unseen_bytes = 0
        _note_look(folder)
        now, total, removed = time.time(), 0, 0
        entries = []
        for name in os.listdir(folder):
            try:
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if name.endswith(UNFINISHED) and now - status.st_mtime > _STALE_SECONDS:
                    os.unlink(name, dir_fd=folder)
                elif name.endswith(_SUFFIX):
                    entries.append((status.st_mtime, _footprint(status.st_size), name))
                    total += _footprint(status.st_size)
            except FileNotFoundError:
                continue  # another process was quicker
        wanted = self.max_bytes - (self.max_bytes // _ROOM if total > self.max_bytes else 0)
        for _, size, name in sorted(entries):
            if total <= wanted:
                break
            try:
                os.unlink(name, dir_fd=folder)
            except FileNotFoundError:
                continue  # another process was quicker
            finally:
                total -= size
            removed += 1
        self._note(removed=removed)

    def _note(self, problem: str | None = None, **counts: int) -> None:
        with self._lock:
            report = self._report
            sums = {name: getattr(report, name) + n for name, n in counts.items()}
            self._report = replace(report, problem=problem or report.problem, **sums)


def _open_entry(folder: int, name: str) -> tuple[dict[str, Any], bytes]:
    """An entry's header and object, from a file that only this user can write."""
    with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb") as file:
        status = os.fstat(file.fileno())
        check_private(status, name)
        if not stat.S_ISREG(status.st_mode):
            raise Untrusted("not a regular file")
        content = file.read()
    if not content.startswith(_MAGIC):
        raise Untrusted("not an object of this version")
    head, separator, data = content[len(_MAGIC) :].partition(b"\n")
    try:
        header = json.loads(head)
    except ValueError as error:
        raise Untrusted("the header is damaged") from error
    if not separator or not isinstance(header, dict) or not {"key", "sha256", "bytes"} <= header.keys():
        raise Untrusted("the header is damaged")
    if time.time() - status.st_mtime > _STALE_SECONDS:
        os.utime(name, dir_fd=folder)
    return header, data


def _read_entry(folder: int, name: str, fields: Fields) -> bytes:
    header, data = _open_entry(folder, name)
    if header["key"] != [list(field) for field in fields]:
        raise Untrusted("the file is another key's")
    if header["bytes"] != len(data) or header["sha256"] != hashlib.sha256(data).hexdigest():
        raise Untrusted("the object is damaged")
    return data


def _footprint(size: int) -> int:
    """What a file takes on a disk: whole blocks, which for small objects is several times their size."""
    return -(-size // _BLOCK) * _BLOCK


def _look_is_due(folder: int) -> bool:
    """Whether no process has looked at the whole folder lately."""
    try:
        return time.time() - os.stat(_LOOKED, dir_fd=folder, follow_symlinks=False).st_mtime > _LOOK_SECONDS
    except FileNotFoundError:
        return True


def _note_look(folder: int) -> None:
    handle = os.open(_LOOKED, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        os.utime(handle)
    finally:
        os.close(handle)
