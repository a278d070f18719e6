"""The timing cache: a folder of files, one for each machine and version, that many processes may write at once.

A file is lines of text, each with the digest of its own content: `DIGEST JSON`. A line with "fields" says which machine
and version the lines behind it are of; a line with "work" is a `Timing`. Lines are only ever appended (in one write,
under a lock where the file system has one) and the last of a piece of work counts, until a file is mostly of lines
that do not count: then it is written anew beside itself and renamed. So a reader sees whole lines, or a line whose
digest does not hold, which it leaves out and counts.

Timings are no code: the worst that a wrong one can do is a slower tactic. Still a file is read and written only where
it belongs to this user and nobody else can write it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whet.codegen.publish import replacing
from whet.codegen.trust import Untrusted, check_private
from whet.config import MIB
from whet.errors import Fail, InvalidArgument, NoSuchFile
from whet.tuning.machine import Fields
from whet.tuning.settings import default_folder
from whet.tuning.timing import MOST_SAMPLES, Timing

try:
    import fcntl
except ImportError:  # Windows, where nothing says who owns a file: no file is read or written there.
    fcntl = None  # type: ignore[assignment]

FORMAT = "whet-timings-1"
SUFFIX = ".whettimes"
MOST_BYTES = 64 * MIB
"""A larger file is not looked at."""
MOST_FILES = 32
"""Machines and versions that keep their timings; the ones written longest ago go."""
LONGEST_NS = 10**13
_DIGEST = 16
_IDLE_LINES = 32
"""Lines that do not count which a file may always hold."""
_LOCK_TRIES = 100
_LOCK_PAUSE_S = 0.01


@dataclass(slots=True)
class Contents:
    """What a file holds."""

    machines: dict[Fields, dict[str, Timing]] = field(default_factory=dict)
    """Timings by their key, by machine and version."""
    lines: int = 0
    damaged: int = 0
    """Lines that are not what was written."""


def timing_key(timing: Timing) -> str:
    """A name for the work, its extents and its number of threads."""
    return f"{timing.question}/{timing.threads}/{timing.extents}"


class TimingCache:
    """The timings of this machine and version in a folder. Never the reason why a session fails: `problem` says why
    the folder could not be read or written last."""

    def __init__(self, fields: Fields, folder: Path | None = None) -> None:
        self.folder = default_folder() if folder is None else Path(folder)
        self.fields = fields
        self.path = self.folder / file_name(fields)
        self.problem: str | None = None

    def timings(self, threads: int) -> dict[tuple[str, str], Timing]:
        """What is known for runs with so many threads, by question and extents."""
        try:
            status = os.stat(self.path)
            contents = _read_again(self.path, (status.st_ino, status.st_size, status.st_mtime_ns))
        except FileNotFoundError:
            return {}
        except (OSError, Untrusted) as error:
            self.problem = f"{self.path}: {error}"
            return {}
        if contents.damaged:
            self.problem = f"{self.path}: {contents.damaged} lines are damaged"
        known = contents.machines.get(self.fields, {})
        return {(t.question, t.extents): t for t in known.values() if t.threads == threads}

    def add(self, timings: Iterable[Timing]) -> bool:
        """Keep timings, each in place of an earlier one of the same work; False where that is not possible."""
        return _add(self, self.folder, self.fields, list(timings))


def file_name(fields: Fields) -> str:
    """The name of the file of a machine and version."""
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:24] + SUFFIX


# For people


@dataclass(frozen=True, slots=True)
class FileReport:
    """What is to be said of a file of the folder."""

    path: Path
    contents: Contents | None
    problem: str | None


def survey(folder: Path) -> list[FileReport]:
    """Every file of the folder, looked at. Raises Fail where the folder cannot be listed."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Fail(f"cannot list the timing cache: {error.strerror}", file=str(folder)) from error
    reports = []
    for name in names:
        path = folder / name
        if not name.endswith(SUFFIX):
            reports.append(FileReport(path, None, "not a file of the timing cache"))
            continue
        try:
            contents = _read_file(path)
        except (OSError, Untrusted) as error:
            reports.append(FileReport(path, None, str(error)))
            continue
        wrong = f"{contents.damaged} of {contents.lines} lines are damaged" if contents.damaged else None
        if wrong is None and any(file_name(fields) != name for fields in contents.machines):
            wrong = "the file holds timings of another machine or version than its name says"
        reports.append(FileReport(path, contents, wrong))
    return reports


def read_export(path: Path) -> Contents:
    """The timings in a file that somebody gave. Raises NoSuchFile, and InvalidArgument for one that holds none or
    that is damaged."""
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidArgument("not a file of timings", file=str(path), expected="a regular file")
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise NoSuchFile("no such file", file=str(path)) from error
    except OSError as error:
        raise Fail(f"cannot read the file: {error.strerror}", file=str(path)) from error
    contents = parse(data) if len(data) <= MOST_BYTES else Contents()
    if not contents.machines:
        raise InvalidArgument("not a file of timings", file=str(path), expected="what `whet tune --export` writes")
    if contents.damaged:
        raise InvalidArgument(
            "the file of timings is damaged", file=str(path), found=f"{contents.damaged} of {contents.lines} lines",
            hint="Export it again.",
        )  # fmt: skip
    return contents


def merge(folder: Path, contents: Contents) -> tuple[int, int]:
    """(taken, left): put timings of any machine into the folder; of the same work, the more that is known counts.

    Raises Fail where the folder cannot be written.
    """
    taken = left = 0
    for fields, timings in contents.machines.items():
        cache = TimingCache(fields, folder)
        try:
            known = _read_file(cache.path).machines.get(fields, {})
        except (OSError, Untrusted):
            known = {}
        better = [t for key, t in timings.items() if key not in known or known[key].weight < t.weight]
        left += len(timings) - len(better)
        taken += len(better)
        if better and not cache.add(better):
            raise Fail("cannot write the timing cache", file=str(folder), found=cache.problem)
    return taken, left


def export(folder: Path) -> bytes:
    """All sound timings of the folder, as the content of one file."""
    machines: dict[Fields, dict[str, Timing]] = {}
    for report in survey(folder):
        for fields, timings in (report.contents.machines if report.contents is not None else {}).items():
            machines.setdefault(fields, {}).update(timings)
    return b"".join(_section(fields, timings) for fields, timings in machines.items())


def clear(folder: Path) -> int:
    """Remove the folder's timings; how many files there were. Raises Fail where one cannot be removed."""
    removed = 0
    for report in survey(folder):
        if not report.path.name.endswith((SUFFIX, ".part")):
            continue
        try:
            report.path.unlink(missing_ok=True)
        except OSError as error:
            raise Fail(f"cannot remove the file: {error.strerror}", file=str(report.path)) from error
        removed += report.path.name.endswith(SUFFIX)
    return removed


# Lines


def parse(data: bytes) -> Contents:
    """What the lines of a file say."""
    contents = Contents()
    timings: dict[str, Timing] | None = None
    for line in data.split(b"\n"):
        if not line:
            continue
        contents.lines += 1
        document = _document(line)
        fields = _fields(document) if document is not None else None
        timing = _timing(document) if document is not None and fields is None else None
        if fields is not None:
            timings = contents.machines.setdefault(fields, {})
        elif timing is not None and timings is not None:
            timings.pop(timing_key(timing), None)  # the last one stands at the end
            timings[timing_key(timing)] = timing
        else:
            contents.damaged += 1
            if fields is None and timing is None and document is not None:
                # A line that is whole and says nothing known: what follows may belong to it.
                timings = None
    return contents


def _line(document: Mapping[str, Any]) -> bytes:
    text = json.dumps(document, separators=(",", ":")).encode()
    return hashlib.sha256(text).hexdigest()[:_DIGEST].encode() + b" " + text + b"\n"


def _document(line: bytes) -> dict[str, Any] | None:
    digest, _, text = line.partition(b" ")
    if hashlib.sha256(text).hexdigest()[:_DIGEST].encode() != digest:
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _header(fields: Fields) -> bytes:
    return _line({"format": FORMAT, "fields": fields})


def _written(timing: Timing) -> bytes:
    return _line(
        {
            "family": timing.family,
            "work": timing.work,
            "threads": timing.threads,
            "extents": timing.extents,
            "samples": timing.samples,
            "given_up": timing.given_up,
        }
    )


def _section(fields: Fields, timings: Mapping[str, Timing]) -> bytes:
    return _header(fields) + b"".join(_written(timing) for timing in timings.values())


def _fields(document: dict[str, Any]) -> Fields | None:
    pairs = document.get("fields")
    if document.get("format") != FORMAT or not isinstance(pairs, list):
        return None
    if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(t, str) for t in p) for p in pairs):
        return None
    return tuple((name, text) for name, text in pairs)


def _timing(document: dict[str, Any]) -> Timing | None:
    family, work, threads = document.get("family"), document.get("work"), document.get("threads")
    samples, given_up, extents = document.get("samples"), document.get("given_up"), document.get("extents")
    if not isinstance(family, str) or not isinstance(work, str) or not isinstance(extents, str):
        return None
    if not _is_number(threads, 1 << 16):
        return None
    if not isinstance(samples, dict) or not isinstance(given_up, list) or not all(isinstance(n, str) for n in given_up):
        return None
    for times in samples.values():
        if not isinstance(times, list) or not 0 < len(times) <= MOST_SAMPLES:
            return None
        if not all(_is_number(n, LONGEST_NS) for n in times):
            return None
    made = {str(name): tuple(sorted(times)) for name, times in samples.items()}
    return Timing(family, work, int(document["threads"]), extents, made, tuple(given_up))


def _is_number(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


# Files


@functools.lru_cache(maxsize=4)
def _read_again(path: Path, stamp: tuple[int, int, int]) -> Contents:
    """A file's contents, read once as long as its inode, size and time of change stay as they are."""
    return _read_file(path)


def _read_file(path: Path) -> Contents:
    """Raises Untrusted, or OSError."""
    folder = _open_folder(path.parent)
    try:
        handle = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
    with open(handle, "rb") as file:
        _check_file(os.fstat(handle), path.name)
        return parse(file.read())


def _open_folder(folder: Path) -> int:
    if fcntl is None:
        raise Untrusted("this system does not say who owns a file")
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        check_private(os.fstat(handle), str(folder))
    except Untrusted:
        os.close(handle)
        raise
    return handle


def _check_file(status: os.stat_result, name: str) -> None:
    check_private(status, name)
    if not stat.S_ISREG(status.st_mode):
        raise Untrusted("not a regular file")
    if status.st_size > MOST_BYTES:
        raise Untrusted(f"{status.st_size} bytes are more than the timing cache ever writes")


def _add(cache: TimingCache, where: Path, fields: Fields, timings: list[Timing]) -> bool:
    if not timings:
        return True
    try:
        if fcntl is not None:
            where.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = _open_folder(where)
        try:
            with _locked(folder, cache.path.name) as file:
                _append(folder, cache.path.name, file, fields, timings)
            _bound(folder, cache.path.name)
        finally:
            os.close(folder)
    except (OSError, Untrusted) as error:
        cache.problem = f"{cache.path}: {error}"
        return False
    return True


@contextlib.contextmanager
def _locked(folder: int, name: str) -> Iterator[int]:
    """A descriptor of the file that bears this name, locked against other writers (if they do not keep it for long)."""
    while True:
        handle = os.open(name, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600,
                         dir_fd=folder)  # fmt: skip
        try:
            _check_file(os.fstat(handle), name)
            for _ in range(_LOCK_TRIES):
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    time.sleep(_LOCK_PAUSE_S)
                    continue
                except OSError:
                    pass  # A file system without locks: a line that two writers tear is left out by its digest.
                break
            if _is_same(handle, folder, name):
                yield handle
                return
        finally:
            os.close(handle)


def _is_same(handle: int, folder: int, name: str) -> bool:
    """Whether the file has not been replaced since it was opened."""
    try:
        now = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(handle)
    return (now.st_dev, now.st_ino) == (mine.st_dev, mine.st_ino)


def _append(folder: int, name: str, handle: int, fields: Fields, timings: list[Timing]) -> None:
    size = os.fstat(handle).st_size
    data = os.pread(handle, size, 0)
    contents = parse(data)
    known = contents.machines.get(fields)
    counted = sum(len(t) + 1 for t in contents.machines.values())
    if (size and known is None) or contents.lines - counted > max(_IDLE_LINES, counted):
        merged = {**(known or {}), **{timing_key(t): t for t in timings}}
        with replacing(folder, name) as file:
            file.write(_section(fields, merged))
        return
    text = b"".join(_written(timing) for timing in timings)
    if not size:
        text = _header(fields) + text
    elif not data.endswith(b"\n"):
        text = b"\n" + text  # behind a line that its writer did not finish
    if size + len(text) > MOST_BYTES:
        raise OSError("the file is full")
    while text:
        text = text[os.write(handle, text) :]


def _bound(folder: int, own: str) -> None:
    """Remove the files that were written longest ago, where there are too many."""
    ages = []
    for name in os.listdir(folder):
        if name.endswith(SUFFIX) and name != own:
            with contextlib.suppress(FileNotFoundError):
                ages.append((os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime, name))
    for _, name in sorted(ages)[: max(len(ages) + 1 - MOST_FILES, 0)]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
