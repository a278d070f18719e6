"""What the command prints: tables for people, JSON for programs, errors without a traceback."""

from __future__ import annotations

import json
import math
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from whet.errors import Fail, NoSuchFile, WhetError

PIPE_COLUMNS = 110


class Output:
    """Where a verb's result goes. With `as_json`, standard output carries one JSON document and nothing else."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        # A file or pipe has no width of its own; tables are made for more than the 80 columns that are assumed then.
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS
        self._console = Console(highlight=False, width=width)
        self._errors = Console(stderr=True, highlight=False)

    def text(self, line: str = "") -> None:
        """Print a line for people (rich markup allowed; escape what comes from a model)."""
        if not self.as_json:
            self._console.print(line, soft_wrap=True)

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        right: Sequence[int] = (),
        whole: Sequence[int] | None = None,
    ) -> None:
        """Print a table for people. `right` names the columns, by index, whose cells stand right; `whole` those whose
        cells stay on one line (unless given: the first one and those on the right)."""
        if self.as_json:
            return
        if title:
            # Not the table's own title, which would be folded to the width of a narrow table.
            self._console.print(f"[bold]{escape(title)}[/]", soft_wrap=True)
        table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        unbroken = {0, *right} if whole is None and right else set(whole or ())
        for index, column in enumerate(columns):
            table.add_column(
                column,
                justify="right" if index in right else "left",
                overflow="fold",
                no_wrap=index in unbroken,
                min_width=min(len(column), 12),
            )
        for row in rows:
            table.add_row(*(escape(str(cell)) for cell in row))
        self._console.print(table)

    def result(self, document: dict[str, Any]) -> None:
        """Print the verb's result as JSON, when that was asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps(jsonable(document), indent=2) + "\n")

    def warn(self, message: str) -> None:
        """Print a warning to standard error."""
        self._errors.print(f"[yellow]warning:[/] {escape(message)}", soft_wrap=True)

    def error(self, error: BaseException) -> None:
        """Print an error to standard error, and as JSON on standard output when that was asked for."""
        kind = type(error).__name__
        if self.as_json:
            document: dict[str, Any] = {"error": {"type": kind, "message": str(error)}}
            if isinstance(error, WhetError):
                for name in ("file", "node", "value", "found", "expected", "hint"):
                    content = getattr(error, name)
                    document["error"][name] = None if content is None else str(content)
            sys.stdout.write(json.dumps(document, indent=2) + "\n")
        else:
            self._errors.print(f"[bold red]{kind}:[/] {escape(str(error))}", soft_wrap=True)

    @contextmanager
    def progress(self, description: str, total: int | None = None) -> Iterator[Step]:
        """A progress bar on standard error while the block runs (none when it is no terminal)."""
        shown = self._errors.is_terminal and not self.as_json
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._errors, transient=True, disable=not shown) as bar:
            task = bar.add_task(escape(description), total=total)
            yield Step(bar, task)


@dataclass(slots=True)
class Step:
    """Moves a progress bar."""

    _bar: Progress
    _task: Any

    def describe(self, text: str) -> None:
        """Show what is under way now."""
        self._bar.update(self._task, description=escape(text))

    def set(self, done: int, text: str) -> None:
        """So many units are done, and this is under way."""
        self._bar.update(self._task, completed=done, description=escape(text))

    def advance(self, text: str | None = None) -> None:
        """One unit is done."""
        self._bar.advance(self._task)
        if text is not None:
            self.describe(text)


def jsonable(value: Any) -> Any:
    """The value with NaN and infinities as text, tuples as lists, other objects as their text."""
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if hasattr(value, "item"):
        return jsonable(value.item())
    return str(value)


def format_bytes(count: int | None) -> str:
    """A size for people: `1.5 MB`; `?` when it is not known."""
    if count is None:
        return "?"
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well; on any error nothing is left.

    Raises NoSuchFile where no file can be made, Fail when writing it fails.
    """
    temporary = path.parent / f".whet-{uuid.uuid4().hex}{path.suffix}"
    try:
        # Plain permissions, so that the result is like any file the user makes.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError as error:
        raise NoSuchFile(f"cannot write a file here: {error.strerror}", file=str(path)) from error
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise Fail(f"cannot write the file: {error.strerror}", file=str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_target(path: Path) -> None:
    """Raise NoSuchFile where `path` cannot become a file: said before long work, not after it."""
    if path.is_dir():
        raise NoSuchFile("cannot write a file here: it is a folder", file=str(path))
    if not path.parent.is_dir():
        raise NoSuchFile("cannot write a file here: its folder does not exist", file=str(path))
    if not os.access(path.parent, os.W_OK):
        raise NoSuchFile("cannot write a file here: its folder is not writable", file=str(path))
