"""The files that `whet` reads and writes: odd names, odd contents, places that cannot be written."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from whet.cli.app import app
from whet.errors import InvalidArgument, NoSuchFile, WhetError


def call_json(*arguments: str) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def save(path: Path, nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], weights: Any = ()) -> str:
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(a, n) for n, a in weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return str(path)


def tensor(name: str, kind: int = TensorProto.FLOAT, shape: Any = ("n", 3)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.fixture
def odd(tmp_path: Path) -> str:
    """Outputs called `file`, and two whose names differ only in what a file name cannot hold."""
    names = ("file", "a/b", "a:b", "A_B")
    nodes = [helper.make_node("Mul", ["x", f"w{i}"], [name]) for i, name in enumerate(names)]
    weights = [(f"w{i}", np.float32(i + 1)) for i in range(4)]
    return save(tmp_path / "odd.onnx", nodes, [tensor("x")], [tensor(n) for n in names], weights)


def test_outputs_with_odd_names_are_all_saved(odd: str, tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "x.npy", x)
    call_json("run", odd, "-i", str(tmp_path / "x.npy"), "-o", str(tmp_path / "out.npz"))
    with np.load(tmp_path / "out.npz") as out:
        for factor, name in enumerate(("file", "a/b", "a:b", "A_B"), 1):
            np.testing.assert_array_equal(out[name], factor * x)
    call_json("run", odd, "-i", str(tmp_path / "x.npy"), "-o", str(tmp_path / "outs"))
    saved = [np.load(f) for f in (tmp_path / "outs").iterdir()]
    assert sorted(float(a[0, 1]) for a in saved) == [1.0, 2.0, 3.0, 4.0]


def test_saved_files_have_plain_permissions(odd: str, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    call_json("run", odd, "-o", str(tmp_path / "out.npz"), "--profile", str(tmp_path / "trace.json"))
    modes = {stat.S_IMODE(os.stat(tmp_path / n).st_mode) for n in ("plain", "out.npz", "trace.json")}
    assert len(modes) == 1


def test_text_and_sequences_are_read_back_as_they_were_saved(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    nodes = [helper.make_node("Identity", ["t"], ["t2"]), helper.make_node("Identity", ["s"], ["s2"])]
    outputs = [tensor("t2", TensorProto.STRING, ["n"]), helper.make_tensor_sequence_value_info("s2", 1, None)]
    there = save(tmp_path / "there.onnx", nodes, [tensor("t", TensorProto.STRING, ["n"]), sequence], outputs)
    call_json("run", there, "-o", str(tmp_path / "v.npz"), "-d", "n=3", "--seed", "4")
    nodes = [helper.make_node("Identity", ["t2"], ["t"]), helper.make_node("Identity", ["s2"], ["s"])]
    back = save(tmp_path / "back.onnx", nodes, outputs, [tensor("t", TensorProto.STRING, ["n"]), sequence])
    document = call_json("run", back, "-i", str(tmp_path / "v.npz"))
    assert document["random_inputs"] == []
    again = call_json("run", there, "-d", "n=3", "--seed", "4")
    assert document["outputs"]["t"] == again["outputs"]["t2"]
    assert document["outputs"]["s"] == again["outputs"]["s2"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["-o", "none/out.npz"], NoSuchFile, "folder does not exist"),
        (["-o", "folder.npz"], NoSuchFile, "is a folder"),
        (["--profile", "none/trace.json"], NoSuchFile, "folder does not exist"),
        (["-i", "text.npz"], InvalidArgument, "numpy arrays"),
        (["-i", "array.npz"], InvalidArgument, r"must end in \.npy"),
        (["-i", "archive.npy"], InvalidArgument, r"must end in \.npz"),
        (["-i", "cut.npz"], InvalidArgument, "numpy arrays"),
        (["-i", "pickled.npz"], InvalidArgument, "numpy arrays"),
        (["-d", "m=2"], InvalidArgument, "expected: n"),
        (["-d", "n=²"], InvalidArgument, "name=size"),
    ],
)
def test_what_cannot_be_read_or_written_is_a_typed_error(
    odd: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    error: type[WhetError],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "text.npz").write_text("no archive")
    with open("array.npz", "wb") as file:
        np.save(file, np.ones(3, np.float32))
    with open("archive.npy", "wb") as file:
        np.savez(file, x=np.ones((1, 3), np.float32))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "archive.npy").read_bytes()[:-40])
    np.savez(tmp_path / "pickled.npz", x=np.array([object()]))
    before = set(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        CliRunner().invoke(app, ["run", odd, *arguments], catch_exceptions=False)
    assert set(tmp_path.iterdir()) == before


def test_a_run_that_fails_leaves_no_profile(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "s"], ["y"])
    model = save(tmp_path / "m.onnx", [node], [tensor("x")], [tensor("y", shape=None)], [("s", np.array([7, 7]))])
    before = set(tmp_path.iterdir())
    command = [sys.executable, "-m", "whet.cli", "run", model, "--profile", str(tmp_path / "trace.json")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert "Reshape" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert set(tmp_path.iterdir()) == before


def test_optimize_says_where_it_cannot_save_before_it_works(odd: str, tmp_path: Path) -> None:
    with pytest.raises(NoSuchFile, match="folder does not exist"):
        CliRunner().invoke(app, ["optimize", odd, "-o", str(tmp_path / "none" / "o.onnx")], catch_exceptions=False)


def test_optimize_says_that_random_numbers_cannot_be_verified(tmp_path: Path) -> None:
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["r"]), helper.make_node("Add", ["x", "r"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, [tensor("x")], [tensor("y")])
    result = CliRunner().invoke(app, ["optimize", model, "--rounds", "0"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "not verified" in result.stderr
    assert "RandomNormalLike" in result.stderr
    document = call_json("optimize", model, "--rounds", "0")
    assert document["verified"] is False


def test_optimize_takes_a_model_in_half_precision(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = [(n, rng.standard_normal((64, 64)).astype(np.float16)) for n in ("v", "w")]
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    kind = TensorProto.FLOAT16
    model = save(tmp_path / "m.onnx", nodes, [tensor("x", kind, [8, 64])], [tensor("y", kind, [8, 64])], weights)
    document = call_json("optimize", model, "--rounds", "0")
    assert document["verified"] is True
    assert 0 < document["verification"][0]["error"] < 1e-2
