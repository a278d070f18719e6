"""Files that appear whole or not at all, however many processes write them at once."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import BinaryIO

UNFINISHED = ".part"
"""How names of files end whose writer is not done, or died."""


@contextlib.contextmanager
def replacing(folder: int, name: str) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `name` in an open folder at the block's end.

    Where the block fails nothing is left of it. Only this user can read and write it. Raises OSError.
    """
    part = f"{name}.{os.getpid()}.{threading.get_ident()}{UNFINISHED}"
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        with open(handle, "w+b") as file:
            yield file
        os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(part, dir_fd=folder)
        raise
