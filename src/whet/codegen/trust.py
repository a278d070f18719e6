"""Which files may be run as code: those that this user owns and nobody else can write, in such a folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class Untrusted(Exception):
    """A folder or file that is not to be trusted, or not whole."""


def check_private(status: os.stat_result, what: str) -> None:
    """Raise Untrusted unless this user owns `what`, and nobody else can write it."""
    if status.st_uid != os.geteuid():
        raise Untrusted(f"{what} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Untrusted(f"{what} can be written by others")


def open_private_folder(folder: Path) -> int:
    """A descriptor of a folder, once it is known to be private. Raises Untrusted, or OSError."""
    if not hasattr(os, "geteuid"):
        raise Untrusted("this system does not say who owns a file")
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        check_private(os.fstat(handle), str(folder))
    except Untrusted:
        os.close(handle)
        raise
    return handle


def open_private_file(path: Path) -> int:
    """A descriptor of a regular file that is private, in a private folder. Raises Untrusted, or OSError."""
    folder = open_private_folder(path.parent)
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for its writer.
        handle = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        status = os.fstat(handle)
        check_private(status, path.name)
        if not stat.S_ISREG(status.st_mode):
            raise Untrusted("not a regular file")
    except Untrusted:
        os.close(handle)
        raise
    return handle
