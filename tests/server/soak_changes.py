"""What changes under the soak's clients: files that are replaced, break, come and go; models loaded and unloaded.

The server follows the disk, or it is told of each change: its control mode says which (`Soak.by_request`).
"""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.server.repository_models import BROKEN, scale_bytes
from tests.server.soak_book import CALL_S, Soak

FOLLOW_S = 240.0
"""How long the server may take to follow a change on disk: it polls, settles, and loads in a child process."""


def ask(soak: Soak, path: str, body: Any = None, admin: bool = False) -> tuple[int, Any]:
    """Status and document of a call."""
    port = soak.admin_port if admin else soak.http_port
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method="GET" if body is None else "POST")
    if body is not None:
        request.data = json.dumps(body).encode()
    if admin:
        request.add_header("authorization", f"Bearer {soak.token}")
    try:
        with urllib.request.urlopen(request, timeout=FOLLOW_S + CALL_S) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def tell(soak: Soak, who: str, call: str, model: str, expected: int = 200) -> None:
    """Load or unload a model, where the server wants to be asked."""
    if soak.by_request:
        status, document = ask(soak, f"/v2/repository/models/{model}/{call}", {}, admin=True)
        if status != expected:
            soak.book.problem(who, f"{call} of {model}: {status} {document}")


def replace(file: Path, content: bytes) -> None:
    """As a tool does that never shows half of a file."""
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(content)
    part.rename(file)


def until(soak: Soak, done: Callable[[], bool], what: str) -> bool:
    """Wait for `done`; whether it came true. The run's end ends the waiting."""
    end = time.monotonic() + FOLLOW_S
    while not soak.stopped.is_set():
        if done():
            return True
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not happen within {FOLLOW_S:.0f} s")
        soak.pause(0.1)
    return False


def served_factor(soak: Soak, model: str) -> float | None:
    """The factor with which a model answers now; None where it does not."""
    x = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 1, 1, 1]}
    status, document = ask(soak, f"/v2/models/{model}/infer", {"inputs": [x]})
    if status == 200:
        soak.book.note("changes", "looked", maybe=model)
        return float(np.float32(document["outputs"][0]["data"][0]))
    return None


def reason_of(soak: Soak, model: str) -> str | None:
    """The reason of a model in the index; None where it is not in it."""
    _, index = ask(soak, "/v2/repository/index", {})
    return next((entry["reason"] for entry in index if entry["name"] == model), None)


def swapper(folder: Path) -> Callable[[Soak, str], None]:
    """Replaces the file of `swap`, now and then by a broken one."""

    def run(soak: Soak, who: str) -> None:
        random = soak.random(who)
        file, current = folder / "swap.onnx", 1.0
        for turn in soak.turns(0.5):
            with soak.attempt(who, f"turn {turn}"):
                if turn % 4 == 3:
                    replace(file, scale_bytes(2.0)[: random.randrange(20, 60)])
                    tell(soak, who, "load", "swap", 400)
                    if not until(soak, lambda: "load failed" in (reason_of(soak, "swap") or ""), "a failed reload"):
                        return
                    soak.book.note(who, "broken, and the old one kept")
                    continue
                new = float(np.float32(random.uniform(-4, 4)))
                soak.factors.begin(new)
                replace(file, scale_bytes(new))
                tell(soak, who, "load", "swap")
                if not until(soak, lambda new=new: served_factor(soak, "swap") == new, "the new model's answer"):
                    return
                soak.factors.end(current)
                current = new
                soak.book.note(who, "loaded anew")

    return run


def switcher(soak: Soak, who: str) -> None:
    """Loads and unloads `onoff`, where the server lets itself be asked."""
    state = "on"
    for turn in soak.turns(0.3):
        call, following = ("unload", "off") if turn % 2 == 0 else ("load", "on")
        with soak.attempt(who, call):
            soak.onoff.begin("changing")
            soak.onoff.end(state)
            tell(soak, who, call, "onoff")
            state = following
            soak.onoff.begin(state)
            soak.onoff.end("changing")
            soak.book.note(who, call)
        if state == "on":
            soak.pause(1.0)


def comers(folder: Path) -> Callable[[Soak, str], None]:
    """Models that come, answer and go again, and broken ones beside them."""

    def run(soak: Soak, who: str) -> None:
        random = soak.random(who)
        for turn in soak.turns(0.5):
            name, bad = f"new-{turn % 50}", f"bad-{turn % 50}"
            good = scale_bytes(turn + 1.0)
            with soak.attempt(who, name):
                match turn % 5:
                    case 0:
                        (folder / f"{bad}.onnx").write_bytes(BROKEN)
                    case 1:
                        (folder / f"{bad}.onnx").write_bytes(b"")
                    case 2:
                        (folder / f"{bad}.onnx").write_bytes(good[: random.randrange(1, len(good) - 1)])
                    case 3:
                        (folder / bad / "1").mkdir(parents=True)
                        (folder / bad / "1/model.onnx").write_bytes(good)
                        (folder / bad / "config.pbtxt").write_text("max_batch_size: { nonsense")
                    case _:
                        (folder / f"{bad}.onnx").write_bytes(random.randbytes(2000))
                replace(folder / f"{name}.onnx", good)
                tell(soak, who, "load", name)
                tell(soak, who, "load", bad, 400)
                if not until(soak, lambda: served_factor(soak, name) == turn + 1.0, f"{name} answering"):  # noqa: B023
                    return
                if not until(soak, lambda: bool(reason_of(soak, bad)), f"{bad} being refused"):  # noqa: B023
                    return
                if served_factor(soak, bad) is not None:
                    soak.book.problem(who, f"{bad} answers")
                (folder / f"{name}.onnx").unlink()
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    (folder / f"{bad}.onnx").unlink()
                if (folder / bad).is_dir():
                    for path in (folder / bad / "1/model.onnx", folder / bad / "config.pbtxt"):
                        path.unlink()
                    (folder / bad / "1").rmdir()
                    (folder / bad).rmdir()
                tell(soak, who, "unload", name)
                left = "unloaded" if soak.by_request else None
                if not until(soak, lambda: reason_of(soak, name) == left, f"{name} leaving"):  # noqa: B023
                    return
                soak.book.note(who, "came and went")

    return run
