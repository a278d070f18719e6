"""A process that has Whet imported, and forks a child for each model that is to be tried.

A fresh interpreter takes most of a second of a core to import what loading a model needs; a fork of one that has done
so takes some milliseconds, and cores that serve are not held up by each reload. This process itself never touches a
model: whatever a file does happens to its child. It runs no threads of its own, so that a fork finds no lock taken.

It reads lines of JSON from standard input (`{"id", "arguments"}`, or `{"stop": id}`), and writes one for each child
that has ended (`{"id", "status", "out"}`; `status` below 0 is the signal that ended it, 70 says that `out` ends with an
exception and 71 that there was no memory). At the end of its input it ends, and with it its children.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

MOST_OUT = 1 << 20
"""Bytes of a child's output that are kept."""
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Child:
    """A model that is being tried."""

    number: int
    pid: int
    pipe: int
    out: bytearray = field(default_factory=bytearray)


def nurse(work: Callable[[list[str]], int], requests: int, answers: int) -> None:
    """Fork a child that does `work` for each request, until the requests end."""
    children: dict[int, Child] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        rest = b""
        while True:
            for key, _ in selector.select():
                if key.fd != requests:
                    child = key.data
                    data = os.read(child.pipe, 1 << 16)
                    if len(child.out) < MOST_OUT:
                        child.out += data
                    if not data:
                        selector.unregister(child.pipe)
                        os.close(child.pipe)
                        _answer(answers, child)
                        children.pop(child.number, None)
                    continue
                data = os.read(requests, 1 << 16)
                if not data:
                    for child in children.values():
                        _kill(child)
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    request = json.loads(line)
                    if "stop" in request:
                        if request["stop"] in children:
                            _kill(children[request["stop"]])
                        continue
                    made = _fork(work, request["id"], request["arguments"], [requests, answers, *_pipes(children)])
                    children[made.number] = made
                    selector.register(made.pipe, selectors.EVENT_READ, made)


def _pipes(children: dict[int, Child]) -> list[int]:
    return [child.pipe for child in children.values()]


def _kill(child: Child) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)


def _answer(answers: int, child: Child) -> None:
    _, status = os.waitpid(child.pid, 0)
    line = {
        "id": child.number,
        "status": os.waitstatus_to_exitcode(status),
        "out": bytes(child.out).decode(errors="replace"),
    }
    with os.fdopen(os.dup(answers), "wb") as out:
        out.write(json.dumps(line).encode() + b"\n")


def _fork(work: Callable[[list[str]], int], number: int, arguments: list[str], others: list[int]) -> Child:
    mine, its = os.pipe()
    nurse_pid = os.getpid()
    pid = os.fork()
    if pid:
        os.close(its)
        return Child(number, pid, mine)
    status = 70
    try:
        _die_with(nurse_pid)
        empty = os.open(os.devnull, os.O_RDWR)
        for fd in (*others, mine):
            os.close(fd)
        for fd, target in ((empty, 0), (its, 1), (empty, 2)):
            os.dup2(fd, target)
        status = work(arguments)
        sys.stdout.flush()
    except MemoryError:
        status = 71
    except Exception as error:
        # What it was is all that whoever asked will learn of it.
        sys.stdout.flush()
        os.write(its, f"{type(error).__name__}: {error}".encode(errors="backslashreplace"))
    finally:
        # No clean-up of what belongs to the parent.
        os._exit(status)


def _die_with(parent: int) -> None:
    """A child must not outlive who would stop it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(72)
