"""Where the links of a repository lead: in it, or out of it.

What a link says and where the kernel goes are two things: `/proc/PID/root` says `/` and is the root of another
container (KServe gives a server its `oci://` images so). Whoever starts the server may name such a place. In it, a link
counts as its text, and only where the kernel comes to the same file.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from whet.errors import InvalidArgument, NoSuchFile

MAX_LINKS = 40
"""Links that are followed for one path, as many as by Linux."""


def real(path: Path) -> Path:
    """The path without links where its text can say that, and else as it is, absolute: the kernel follows it.

    Raises NoSuchFile for one that is not there.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise NoSuchFile("there is no such model repository", file=str(path)) from error
    try:
        text = path.resolve(strict=True)
        if os.path.samestat(os.stat(text), status):
            return text
    except (OSError, RuntimeError):
        pass  # the text leads nowhere, and the kernel somewhere
    return path.absolute()


def inside(root: Path, path: Path) -> Path:
    """The place of a path in the folder `root`, below it and without links.

    Raises InvalidArgument where a link of it leads out of the folder or to itself, FileNotFoundError where it leads to
    nothing.
    """
    top = os.stat(root)
    below: list[str] = []
    outside: Path | None = None  # where the walk is, unless it is in the folder
    left = list(reversed(path.relative_to(root).parts))
    links = 0
    while left:
        part = left.pop()
        if outside is None and part == ".." and below:
            below.pop()
            continue
        place = root.joinpath(*below, part) if outside is None else outside / part
        status = os.lstat(place)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > MAX_LINKS:
                raise InvalidArgument("a link leads to itself", file=str(path))
            target = Path(os.readlink(place))
            left.extend(reversed(target.parts[1:] if target.anchor else target.parts))
            if not target.anchor:
                continue
            place = Path(target.anchor)
            status = os.stat(place)
        elif outside is None and part != "..":
            below.append(part)
            continue
        if os.path.samestat(status, top):
            below, outside = [], None
        else:
            outside = place
    found = root.joinpath(*below) if outside is None else outside
    if outside is not None or not _is_same(path, found):
        raise InvalidArgument(
            "a link leads out of the model repository", file=str(path), found=os.path.realpath(found),
            hint="Copy or mount what it stands for into the repository.",
        )  # fmt: skip
    return found


def _is_same(path: Path, other: Path) -> bool:
    """Whether the kernel finds one file at both. It is held open meanwhile: overlays number an unused one anew."""
    if not hasattr(os, "O_PATH"):
        return os.path.samefile(path, other)
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(other))
    finally:
        os.close(descriptor)
