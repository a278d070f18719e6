"""What models are called: one rule for what is served and what the index lists, and `--model-name`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.repository_models import ENSEMBLE, ask, rows, running, scale_bytes, states, write_model
from whet.errors import InvalidArgument
from whet.server.errors import ModelNotFound
from whet.server.options import ServerOptions
from whet.server.repository.layout import Names, model_file, model_names, scan

CONFIG = 'name: "{}" max_batch_size: 8'


def one_file(folder: Path) -> Path:
    (folder / "model.onnx").write_bytes(scale_bytes(2))
    return folder


def its_file(folder: Path) -> Path:
    (folder / "scale.onnx").write_bytes(scale_bytes(2))
    return folder / "scale.onnx"


def its_folder(folder: Path) -> Path:
    write_model(folder, scale_bytes(2), 3)
    return folder


def configured(folder: Path) -> Path:
    write_model(folder, scale_bytes(2), config=CONFIG.format("models"))
    return folder


def configured_with_a_name(folder: Path) -> Path:
    write_model(folder / "scale", scale_bytes(2), config=CONFIG.format("scale"))
    return folder


ONE = {
    "a file in a folder": (one_file, "models"),
    "a file": (its_file, "scale"),
    "versions": (its_folder, "models"),
    "a configured folder": (configured, "models"),
    "a model in its folder": (configured_with_a_name, "scale"),
}


@pytest.mark.parametrize(("make", "own"), ONE.values(), ids=ONE)
def test_a_lone_model_is_called_as_the_option_says(tmp_path: Path, make: Any, own: str) -> None:
    async def scenario(name: str, **options: Any) -> None:
        async with running(repository_path, **options) as (plane, repository):
            assert await repository.start() == []
            version = "3" if make is its_folder else "1"
            assert states(repository) == {f"{name}:{version}": "READY"}, "there is a ghost beside it"
            x = rows()
            assert np.array_equal(await ask(plane, name, x), x * np.float32(2))
            assert plane.model(name).config.name == name
            if name != own:
                with pytest.raises(ModelNotFound):
                    await ask(plane, own, x)
            await repository.unload(name)
            assert repository.unserved == []
            await repository.load(name)
            assert np.array_equal(await ask(plane, name, x), x * np.float32(2))

    (tmp_path / "models").mkdir()
    repository_path = make(tmp_path / "models")
    asyncio.run(scenario(own))
    asyncio.run(scenario("digits", model_name="digits"))
    asyncio.run(scenario("digits", model_name="digits", control_mode="explicit", load_models=("digits",)))


def test_several_models_have_names_of_their_own(tmp_path: Path) -> None:
    write_model(tmp_path / "a", b"1")
    (tmp_path / "b.onnx").write_bytes(b"2")
    with pytest.raises(InvalidArgument) as caught:
        scan(tmp_path, model_name="digits")
    text = str(caught.value)
    assert [w for w in ("holds several", "--model-name digits", "a, b", str(tmp_path), "Leave") if w not in text] == []
    assert list(scan(tmp_path / "a", model_name="digits")) == ["digits"]
    with pytest.raises(InvalidArgument):
        scan(tmp_path, "a", model_name="digits")


def test_a_named_server_of_several_models_does_not_start(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_model(tmp_path / name, scale_bytes(2))
    command = [sys.executable, "-m", "whet.cli", "serve", str(tmp_path), "--model-name", "digits"]
    for port in ("--http-port", "--grpc-port", "--metrics-port"):
        command += [port, "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "the repository holds several" in done.stderr


def test_the_command_takes_the_name(tmp_path: Path) -> None:
    pytest.importorskip("httptools")
    from tests.server.running import RunningServer

    (tmp_path / "models").mkdir()
    (tmp_path / "models/model.onnx").write_bytes(scale_bytes(2))
    with RunningServer(tmp_path / "models", "--model-name", "digits", "--strict-readiness") as server:
        tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
        url = f"http://{server.http}/v2/models/digits/infer"
        request = urllib.request.Request(url, json.dumps({"inputs": [tensor]}).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["outputs"][0]["data"] == [2, 4, 6, 8]


def test_a_second_model_beside_a_named_one_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        write_model(tmp_path / "a", scale_bytes(2))
        async with running(tmp_path, model_name="digits", control_mode="none") as (plane, repository):
            await repository.start()
            write_model(tmp_path / "b", scale_bytes(3))
            with pytest.raises(InvalidArgument, match="holds several"):
                await repository.poll()
            x = rows()
            assert np.array_equal(await ask(plane, "digits", x), x * np.float32(2))
            assert states(repository) == {"digits:1": "READY"}

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["", ".m", "a/b", "a\\b", "a\0b", "\ud800", ".."])
def test_names_that_no_request_can_say_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"--model-name.*a name without slashes"):
        ServerOptions(Path("models"), model_name=name).check()


@pytest.mark.parametrize("name", ["digits", "a.b", "a b", "ä"])
def test_names_that_requests_can_say(name: str) -> None:
    ServerOptions(Path("models"), model_name=name).check()


def test_the_index_lists_models_by_the_names_that_they_are_served_by(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_model(folder / "m", b"1")
    write_model(folder / "folder.onnx", b"1")
    (folder / "model.onnx").write_bytes(b"1")
    (folder / "bare.onnx").write_bytes(b"1")
    (folder / "e").mkdir()
    (folder / "e/config.pbtxt").write_text(ENSEMBLE)
    (folder / "out.onnx").symlink_to(tmp_path / "outside")
    (tmp_path / "outside").write_bytes(b"1")
    (folder / "lost+found").mkdir()
    (folder / "lost+found/model.onnx").write_bytes(b"1")
    names = ["bare", "e", "folder.onnx", "m", "models", "out"]
    assert sorted(scan(folder)) == model_names(folder) == Names(folder)() == names
    (folder / "m/model.onnx").symlink_to("/etc/passwd")
    for name in names:
        assert list(scan(folder, name)) == [name]


def test_a_model_behind_links_of_kubernetes_is_named_after_the_mount(tmp_path: Path) -> None:
    (tmp_path / "..2024").mkdir()
    (tmp_path / "..2024/model.onnx").write_bytes(b"1")
    (tmp_path / "..data").symlink_to("..2024")
    (tmp_path / "model.onnx").symlink_to("..data/model.onnx")
    for place in (tmp_path, tmp_path / "model.onnx"):
        found = scan(place)
        assert list(found) == model_names(place) == [tmp_path.name]
        assert model_file(found[tmp_path.name], 1, "model.onnx") == tmp_path / "..2024/model.onnx"
    refused = tmp_path / "other"
    refused.mkdir()
    (refused / "model.onnx").symlink_to("../..2024/model.onnx")
    assert list(scan(refused)) == model_names(refused) == ["other"]
    assert "leads out" in str(scan(refused)["other"].problem)
