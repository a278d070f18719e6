"""A child process of the same Python that answers requests through pipes: for work that may end its process.

Not `multiprocessing`: its fork copies held locks, its spawn runs the user's script again.
"""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any, BinaryIO

_LENGTH = struct.Struct("<Q")
_BOOT = "import sys; sys.path[:] = {path!r}; from whet.codegen.process import serve; serve()"
_STDERR_BYTES = 4000


class ProcessDied(Exception):
    """The child ended, or was ended for taking too long, before it answered."""

    def __init__(self, reason: str, stderr: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.stderr = stderr


class Child:
    """One child process. `call` runs a module's function there; one call at a time. Close it, or use `with`."""

    def __init__(self, path: Sequence[str] | None = None) -> None:
        """`path` is the child's sys.path: this process's own unless given."""
        boot = _BOOT.format(path=list(sys.path if path is None else path))
        # A file and not a pipe: nobody needs to empty it while the child works.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            [sys.executable, "-c", boot], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def call(self, function: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        """The result of `function` ("package.module:name"), or its exception raised here.

        Arguments and result are pickled. Raises ProcessDied where the child ends first or takes longer than
        `timeout_s`.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(timeout_s, stop) if timeout_s is not None else None
        if timer is not None:
            timer.start()
        try:
            _write(self._process.stdin, pickle.dumps((function, arguments)))
            answer = _read(self._process.stdout)
        except (BrokenPipeError, EOFError) as error:
            code = self._process.wait()
            reason = f"took longer than {timeout_s} s" if late.is_set() else _ending(code)
            raise ProcessDied(reason, self.stderr()) from error
        finally:
            if timer is not None:
                timer.cancel()
        good, result = pickle.loads(answer)
        if not good:
            raise result
        return result

    def stderr(self) -> str:
        """The end of what the child wrote to standard error."""
        size = self._stderr.seek(0, 2)
        self._stderr.seek(max(0, size - _STDERR_BYTES))
        return self._stderr.read().decode(errors="replace")

    def close(self) -> None:
        """End the child, at once."""
        if self.alive:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None and not stream.closed:
                _close(stream)


def _close(stream: Any) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        return  # what was still in the buffer was for a child that is gone


def _ending(code: int) -> str:
    return f"ended by signal {-code}" if code < 0 else f"ended with exit status {code}"


def _write(stream: BinaryIO | Any, data: bytes) -> None:
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def _read(stream: BinaryIO | Any) -> bytes:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    data: bytes = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def serve() -> None:
    """The child's side: answer until the parent closes the pipe."""
    import importlib
    import os

    requests = sys.stdin.buffer
    # Answers go to a private copy of standard output; what libraries print goes to standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    while True:
        try:
            function, arguments = pickle.loads(_read(requests))
        except EOFError:
            return
        module, name = function.split(":")
        try:
            answer = (True, getattr(importlib.import_module(module), name)(*arguments))
        except Exception as error:  # the parent raises it
            answer = (False, error)
        try:
            data = pickle.dumps(answer)
        except Exception as error:  # an answer that cannot travel is an error of the function
            data = pickle.dumps((False, RuntimeError(f"cannot send {answer[1]!r:.500}: {error}")))
        _write(answers, data)
