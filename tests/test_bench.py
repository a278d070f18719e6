"""Engines side by side: one that dies while it is timed is listed with its error, and no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whet.bench import runner
from whet.bench.runner import run_side_by_side
from whet.demo import model_path

MODEL = str(model_path("digits-cnn"))
FEED = {"image": np.zeros((1, 1, 8, 8), np.float32)}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[Any]]:
    """The worker processes that the runner has started."""
    found: list[subprocess.Popen[Any]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **named: Any) -> subprocess.Popen[Any]:
        process = popen(*arguments, **named)
        found.append(process)
        return process

    monkeypatch.setattr(runner.subprocess, "Popen", start)
    return found


def test_an_engine_that_dies_between_rounds_is_listed_and_the_others_go_on(
    started: list[subprocess.Popen[Any]],
) -> None:
    def kill(step: str) -> None:
        if step == "onnxruntime: round 2 of 3":
            os.kill(started[1].pid, signal.SIGKILL)
            started[1].wait()

    result = run_side_by_side(MODEL, ["whet", "onnxruntime"], FEED, threads=1, rounds=3, progress=kill)
    ours, theirs = result.results
    assert ours.latency is not None
    assert ours.latency.runs >= 3
    assert theirs.latency is None
    assert "the engine failed while it was timed" in theirs.error
    assert all(process.returncode is not None for process in started)


@pytest.mark.parametrize("step", ["onnxruntime: loading", "whet: round 1 of 1"])
def test_an_interrupt_leaves_no_process(started: list[subprocess.Popen[Any]], step: str) -> None:
    def interrupt(text: str) -> None:
        if text == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_side_by_side(MODEL, ["whet", "onnxruntime"], FEED, threads=1, rounds=1, progress=interrupt)
    assert started
    assert all(process.returncode is not None for process in started)


def test_what_an_engine_prints_does_not_reach_the_protocol(tmp_path: Path) -> None:
    """Native code writes past `sys.stdout`; a worker moves the descriptor itself."""
    code = (
        "import os, sys\n"
        "from whet.bench import engines, worker\n"
        "def noisy(model, feed, threads):\n"
        "    os.write(1, b'native noise')\n"
        "    print('python noise')\n"
        "    return lambda: []\n"
        "engines.ENGINES['noisy'] = noisy\n"
        "sys.exit(worker.main(['noisy', 'm', sys.argv[1], sys.argv[2], '1']))\n"
    )
    runner.save_values(tmp_path / "feed.npz", {})
    finished = subprocess.run(
        [runner.sys.executable, "-c", code, str(tmp_path / "feed.npz"), str(tmp_path / "out.npz")],
        input='{"runs": 2}\n',
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line[:8] for line in finished.stdout.splitlines()] == ['{"load_s', '{"timing']
    assert "native noise" in finished.stderr
    assert "python noise" in finished.stderr
