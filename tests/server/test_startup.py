"""Starting: what cannot be had is named and ends the server at once; any user may start it, and a signal ends it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httptools")
pytest.importorskip("grpc")

from tests.server.repository_models import BROKEN
from tests.server.running import RunningServer, free_port
from tests.server.test_thin_path import save_scale_model
from whet.errors import InvalidArgument
from whet.server.options import ServerOptions

NOBODY = 54321
END_S = 180.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("startup") / "models"
    folder.mkdir()
    save_scale_model(folder / "scale.onnx")
    return folder


@pytest.fixture(scope="module")
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def command(repository: Path, *options: str) -> list[str]:
    found = [sys.executable, "-m", "whet.cli", "serve", str(repository)]
    for flag in ("--http-port", "--grpc-port", "--metrics-port"):
        if flag not in options:
            found += [flag, str(free_port())]
    return [*found, *options]


# What is wrong, options (T: a port that is taken, F: a free one), exit status, words of the message.
WRONG: tuple[tuple[str, tuple[str, ...], int, tuple[str, ...]], ...] = (
    ("http port taken", ("--http-port", "T"), 1, ("port cannot be opened", ":T", "Choose another port")),
    ("grpc port taken", ("--grpc-port", "T"), 1, ("gRPC port cannot be opened", ":T", "Choose another port")),
    ("metrics port taken", ("--metrics-port", "T"), 1, ("port cannot be opened", ":T", "Choose another port")),
    ("one port twice", ("--http-port", "F", "--grpc-port", "F"), 1, ("one port", "--http-port, --grpc-port", "F")),
    ("not our address", ("--host", "203.0.113.7"), 1, ("no such address", "203.0.113.7")),
    ("no port number", ("--http-port", "70000"), 2, ("--http-port", "65535")),
    ("unknown option", ("--http-prot", "1"), 2, ("--http-prot", "--http-port")),
    (
        "a model that is named and not there",
        ("--control-mode", "explicit", "--load-model", "scael", "--exit-on-error"), 1, ("no such model", "scael"),
    ),
)  # fmt: skip

# Options that contradict each other, and words of the message.
CONTRARY: tuple[tuple[dict[str, Any], tuple[str, ...]], ...] = (
    ({"http_port": 9, "metrics_port": 9}, ("one port", "--http-port, --metrics-port", "9")),
    ({"grpc_port": 9, "admin_grpc_port": 9, "admin_token": "t"}, ("one port", "--grpc-port, --admin-grpc-port")),
    ({"admin_port": 9}, ("--admin-port", "--admin-token", "WHET_ADMIN_TOKEN")),
    ({"admin_grpc_port": 9}, ("--admin-grpc-port", "--admin-token")),
    ({"admin_port": 9, "admin_token": ""}, ("--admin-port", "--admin-token")),
    ({"load_models": ("scale",)}, ("--load-model", "none", "--control-mode explicit")),
    ({"load_models": ("scale",), "control_mode": "poll"}, ("--load-model", "poll", "--control-mode explicit")),
)  # fmt: skip
AGREED: tuple[dict[str, Any], ...] = (
    {},
    {"http_port": 0, "grpc_port": 0},
    {"http_port": None, "grpc_port": None},
    {"admin_port": 9, "admin_token": "t"},
    {"load_models": ("scale",), "control_mode": "explicit"},
)


@pytest.mark.parametrize(("given", "words"), CONTRARY)
def test_options_that_contradict_each_other(given: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        ServerOptions(Path("models"), **given).check()
    assert [w for w in words if w not in str(caught.value)] == []


@pytest.mark.parametrize("given", AGREED)
def test_options_that_agree(given: dict[str, Any]) -> None:
    ServerOptions(Path("models"), **given).check()


def run_all(commands: Mapping[str, list[str]], **more: object) -> dict[str, tuple[int, str]]:
    """Exit status and output of each, two at a time."""
    found, waiting = {}, list(commands.items())
    running: list[tuple[str, subprocess.Popen[str]]] = []
    while waiting or running:
        while waiting and len(running) < 2:
            name, given = waiting.pop(0)
            process = subprocess.Popen(
                given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more,  # type: ignore[call-overload]
            )  # fmt: skip
            running.append((name, process))
        name, process = running.pop(0)
        try:
            output, _ = process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            output += "(did not end by itself)"
        found[name] = (process.returncode, output)
    return found


def test_what_cannot_be_had_is_named(models: Path, taken: int, tmp_path: Path) -> None:
    free = str(free_port())
    commands = {
        name: command(models, *({"T": str(taken), "F": free}.get(o, o) for o in options))
        for name, options, _, _ in WRONG
    }
    expected = {
        name: (status, [w.replace("T", str(taken)) if w in (":T",) else free if w == "F" else w for w in words])
        for name, _, status, words in WRONG
    }
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/bad.onnx").write_bytes(BROKEN)
    commands["no repository"] = command(tmp_path / "nothing")
    expected["no repository"] = (1, ["no such model repository", str(tmp_path / "nothing")])
    commands["a broken model"] = command(tmp_path / "broken", "--exit-on-error")
    expected["a broken model"] = (1, ["bad.onnx"])
    for name, (status, output) in run_all(commands).items():
        wanted, words = expected[name]
        plain = " ".join(output.replace("│", " ").split())
        assert status == wanted, f"{name}: {status}\n{output}"
        assert [w for w in words if w not in plain] == [], f"{name}:\n{output}"
        assert "Traceback" not in output, f"{name}:\n{output}"


def test_any_user_may_start_it(models: Path, tmp_path: Path) -> None:
    """Without a home, without a cache that can be written, as a user whom the machine does not know."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can become another user, with setpriv")
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    # Where this Python lies in a place that is closed to others, such a user may read, and no more.
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    # As the server does: it starts another process with the same Python.
    nested = "import subprocess, sys, whet; subprocess.run([sys.executable, '-c', 'import whet'], check=True)"
    if subprocess.run([*become, sys.executable, "-c", nested], capture_output=True, check=False).returncode:
        become += reading
        if subprocess.run([*become, sys.executable, "-c", nested], capture_output=True, check=False).returncode:
            pytest.skip("another user may not run this Python")
    sealed = tmp_path / "sealed"
    sealed.mkdir(mode=0o555)
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME")}
    environment["XDG_CACHE_HOME"] = str(sealed)
    if reading[0] not in become:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        status, output = run_all({"closed": [*become, *command(closed)]}, env=environment)["closed"]
        assert (status, str(closed) in output, "Traceback" in output) == (1, True, False), output
    # Not below pytest's own folders, which are closed to other users.
    open_to_all = tempfile.TemporaryDirectory()
    Path(open_to_all.name).chmod(0o755)
    served = Path(shutil.copytree(models, Path(open_to_all.name) / "models"))
    http_port, log = free_port(), tmp_path / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [*become, *command(served, "--http-port", str(http_port))], stdout=out, stderr=out, env=environment
        )
    try:
        end = time.monotonic() + END_S
        while not _ready(http_port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        index = urllib.request.Request(f"http://127.0.0.1:{http_port}/v2/repository/index", b"{}")
        with urllib.request.urlopen(index, timeout=30) as answer:
            assert b'"READY"' in answer.read(), log.read_text()
    finally:
        process.terminate()
        ended = process.wait(END_S)
        open_to_all.cleanup()
    assert ended == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert not list(sealed.iterdir())


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_ipv6(models: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 here")
    server = RunningServer(models, "--host", "::1", ready=False)
    with server:
        end = time.monotonic() + END_S
        while True:
            assert server.process is not None
            assert server.process.poll() is None, server.log
            assert time.monotonic() < end, server.log
            try:
                with urllib.request.urlopen(f"http://[::1]:{server.http_port}/v2/health/ready", timeout=5) as answer:
                    assert answer.status == 200
                    break
            except OSError:
                time.sleep(0.05)
        with socket.create_connection(("::1", server.grpc_port), 10):
            pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_while_models_load_ends_it(number: signal.Signals, tmp_path: Path) -> None:
    """Models whose loading hangs: their files are read in a child process, which must not stay either."""
    folder = tmp_path / "models"
    folder.mkdir()
    for at in range(8):
        save_scale_model(folder / f"m{at}.onnx")
    with RunningServer(folder, ready=False) as server:
        assert server.process is not None
        pid = server.process.pid
        end = time.monotonic() + END_S
        while not _children(pid):
            assert server.process.poll() is None, server.log
            assert time.monotonic() < end, server.log
            time.sleep(0.005)
        children = _children(pid)
        server.process.send_signal(number)
        assert server.process.wait(END_S) == 0, server.log
        assert "ready" not in server.log.replace("already", "")
        assert "Traceback" not in server.log, server.log
        assert not [child for child in children if Path(f"/proc/{child}").exists()]


def _children(pid: int) -> list[str]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found += path.read_text().split()
    return found
