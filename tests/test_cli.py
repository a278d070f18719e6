"""The `whet` command, verb by verb, as a user calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from typer.testing import CliRunner

from whet.cli.app import app
from whet.demo import model_path
from whet.errors import EPFail, InvalidArgument, NoSuchFile, VerificationFailed, WhetError
from whet.graph import Value
from whet.session import saved_model

CNN = str(model_path("digits-cnn"))
TRANSFORMER = str(model_path("digits-transformer"))


def call(*arguments: str) -> str:
    """Standard output of one verb; errors are raised as the verb raised them."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def call_json(*arguments: str) -> Any:
    return json.loads(call(*arguments, "--json"))


@pytest.fixture
def affine(tmp_path: Path) -> Path:
    """y = 2x + 1 over float32 [n,3], with a metadata entry."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["m"], "double"), helper.make_node("Add", ["m", "one"], ["y"], "shift")],
        "affine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.float32(2), "two"), numpy_helper.from_array(np.float32(1), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="test")
    model.ir_version = 8
    helper.set_model_props(model, {"note": "[bold]markup[/]"})
    path = tmp_path / "affine.onnx"
    onnx.save(model, path)
    return path


# info


def test_info_reports_the_graph_and_the_placement(affine: Path) -> None:
    document = call_json("info", str(affine))
    assert document["inputs"] == [{"name": "x", "type": "tensor(float)", "shape": ["n", 3]}]
    assert document["outputs"] == [{"name": "y", "type": "tensor(float)", "shape": ["n", 3]}]
    assert document["operators"] == {"Mul": 1, "Add": 1}
    assert document["opsets"] == {"ai.onnx": 17}
    assert document["weights"] == 2
    assert document["weight_bytes"] == 8
    assert document["placement"]["by_provider"] == {"CPUExecutionProvider": 2}
    assert document["memory"]["code"] > 0
    assert document["placement"]["nodes"][0]["refusals"] == []
    text = call("info", str(affine))
    assert "tensor(float)" in text
    assert "runs them" in text
    assert "memory: weights" in text


def test_info_lists_options_with_and_without_effect() -> None:
    document = call_json("info", "--options")
    assert document["session_options"]["enable_profiling"] is True
    assert document["session_options"]["enable_mem_pattern"] is False
    assert "session.disable_cpu_ep_fallback" in document["session_keys"]
    assert "session.disable_prepacking" in document["session_keys_without_effect"]
    assert document["run_options"]["terminate"] is True
    assert document["run_options"]["only_execute_path_to_fetches"] is False
    text = call("info", "--options")
    assert "enable_mem_pattern" in text
    assert "only_execute_path_to_fetches" in text


def test_info_shows_a_model_that_nobody_runs(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Rotate", ["x"], ["y"], "turn", domain="my.ops")],
        "custom",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my.ops", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), tmp_path / "m.onnx")
    document = call_json("info", str(tmp_path / "m.onnx"))
    assert document["operators"] == {"my.ops.Rotate": 1}
    assert document["placement"] is None
    assert "my.ops.Rotate(turn)" in document["problem"]


def test_a_missing_model_is_a_typed_error() -> None:
    with pytest.raises(NoSuchFile, match=r"nowhere\.onnx"):
        call("info", "nowhere.onnx")


# run


def test_run_reads_every_kind_of_input_file(affine: Path, tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    (tmp_path / "x.pb").write_bytes(numpy_helper.from_array(x, "x").SerializeToString())
    for given in ("x.npy", "x.npz", "x.pb"):
        call("run", str(affine), "-i", f"x={tmp_path / given}", "-o", str(tmp_path / "out.npz"))
        with np.load(tmp_path / "out.npz") as out:
            np.testing.assert_array_equal(out["y"], 2 * x + 1)
        (tmp_path / "out.npz").unlink()


def test_run_saves_a_folder_of_arrays_and_a_trace(affine: Path, tmp_path: Path) -> None:
    document = call_json(
        "run", str(affine), "--dim", "n=4", "-o", str(tmp_path / "outs"), "--profile", str(tmp_path / "trace.json")
    )
    assert np.load(tmp_path / "outs" / "y.npy").shape == (4, 3)
    assert document["random_inputs"] == ["x"]
    events = json.loads((tmp_path / "trace.json").read_text())
    assert {e["args"]["op_name"] for e in events if e["cat"] == "Node"} == {"Mul+Add"}


def test_random_inputs_repeat_with_the_seed(affine: Path) -> None:
    first, again, other = (call_json("run", str(affine), "--seed", s)["outputs"]["y"]["first"] for s in "556")
    assert first == again != other


def test_run_turns_a_picture_into_the_tensor_that_the_model_takes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    call("run", CNN, "-i", str(tmp_path / "digit.png"), "-o", str(tmp_path / "out.npz"))
    expected = onnxruntime.InferenceSession(CNN).run(None, {"image": (pixels / 255).astype(np.float32)[None, None]})[0]
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_allclose(out["logits"], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["-i", "z=x.npy"], NoSuchFile, "x.npy"),
        (["-i", "bad.txt"], InvalidArgument, r"\.npy, \.npz"),
        (["-i", "z=bad.npy"], InvalidArgument, "Did you mean|The inputs are: x"),
        (["-i", "x=bad.npy"], InvalidArgument, "no numpy arrays"),
        (["-i", "x=pickled.npy"], InvalidArgument, "no numpy arrays"),
        (["-i", "x=bad.pb"], WhetError, "bad.pb"),
        (["-i", "x=picture.png"], InvalidArgument, "rank 4"),
        (["--dim", "n=-1"], InvalidArgument, "name=size"),
        (["--level", "most"], InvalidArgument, "disabled, basic, extended, all"),
        (["-p", "CPUExecutionProvidr"], InvalidArgument, "CPUExecutionProvider"),
        (["-p", "CUDAExecutionProvider"], EPFail, "onnxruntime-gpu"),
        (["-o", "out.txt"], InvalidArgument, "npz"),
    ],
)
def test_run_names_what_is_wrong(
    affine: Path, tmp_path: Path, arguments: list[str], error: type[Exception], message: str
) -> None:
    (tmp_path / "bad.txt").write_text("no")
    (tmp_path / "bad.npy").write_bytes(b"no array")
    (tmp_path / "bad.pb").write_bytes(b"\xff\xff\xff")
    np.save(tmp_path / "pickled.npy", np.array([object()]), allow_pickle=True)
    Image.new("L", (4, 4)).save(tmp_path / "picture.png")
    files = {f.name for f in tmp_path.iterdir()}
    located = [a.replace("=", f"={tmp_path}/", 1) if "=" in a and a.split("=")[1] in files else a for a in arguments]
    located = [str(tmp_path / a) if a in files or a == "out.txt" else a for a in located]
    with pytest.raises(error, match=message):
        call("run", str(affine), *located)


# optimize


def test_optimize_verifies_saves_and_times(tmp_path: Path) -> None:
    target = tmp_path / "cnn.onnx"
    document = call_json("optimize", CNN, "-o", str(target), "--rounds", "1", "--batch", "5")
    assert document["passes"]["batch-norm-folding"] == 3
    assert document["nodes_after"] < document["nodes_before"]
    assert all(v["error"] <= 1e-4 for v in document["verification"])
    engines = {e["engine"]: e for e in document["timing"]["engines"]}
    assert {"whet", "onnxruntime", "openvino", "onnxruntime@saved"} <= set(engines)
    assert all(e["latency"]["median_ms"] > 0 for e in engines.values()), engines
    x = np.random.default_rng(1).random((5, 1, 8, 8), dtype=np.float32)
    expected = onnxruntime.InferenceSession(CNN).run(None, {"image": x})[0]
    np.testing.assert_allclose(onnxruntime.InferenceSession(target).run(None, {"image": x})[0], expected, atol=1e-4)


def test_optimize_fuses_the_transformer(tmp_path: Path) -> None:
    text = call("optimize", TRANSFORMER, "-o", str(tmp_path / "t.onnx"), "--rounds", "0")
    assert "attention" in text
    assert "gelu" in text
    assert (tmp_path / "t.onnx").is_file()


def test_optimize_never_replaces_its_input(affine: Path) -> None:
    before = affine.read_bytes()
    with pytest.raises(InvalidArgument, match="replace the original"):
        call("optimize", str(affine), "-o", str(affine))
    assert affine.read_bytes() == before


def test_an_interrupted_optimize_leaves_no_half_written_file(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((2048, 8192)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2048])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8192])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    folder = tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, "-m", "whet.cli", "optimize", str(tmp_path / "m.onnx"), "-o", str(folder / "o.onnx")]
    for delay in (0.0, 0.005, 0.02, 2.0):
        process = subprocess.Popen([*command, "--rounds", "200"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not any(folder.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert b"Traceback" not in errors
        assert process.returncode == 130
        left = {f.name for f in folder.iterdir()}
        assert left <= {"o.onnx"}
        if left:
            onnxruntime.InferenceSession(folder / "o.onnx")
            os.unlink(folder / "o.onnx")


def test_optimize_verifies_the_saved_form_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Any, *, fuse: bool) -> Any:
        exported = right(model, fuse=fuse)
        for node in exported.graph:
            if node.op_type in ("Conv", "FusedConv"):
                node.set_input(1, Value.constant(f"{node.name}_weights", node.inputs[1].data.numpy() * 1.5))
                break
        return exported

    right = saved_model.export
    monkeypatch.setattr(saved_model, "export", broken)
    with pytest.raises(VerificationFailed, match="saved form"):
        call("optimize", CNN, "-o", str(tmp_path / "cnn.onnx"), "--rounds", "0")
    assert not (tmp_path / "cnn.onnx").exists()


# compare


def test_compare_finds_equal_models_equal(tmp_path: Path, affine: Path) -> None:
    assert call_json("compare", str(affine))["same"] is True
    assert call_json("compare", TRANSFORMER, "--batch", "3", "--against", "onnxruntime")["same"] is True


def test_compare_tells_models_apart(affine: Path, tmp_path: Path) -> None:
    other = onnx.load(affine)
    other.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.float32(1.5), "one"))
    onnx.save(other, tmp_path / "other.onnx")
    result = CliRunner().invoke(app, ["compare", str(affine), str(tmp_path / "other.onnx"), "--json"])
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["same"] is False
    assert document["outputs"][0]["max_abs"] == pytest.approx(0.5)


def test_compare_matches_outputs_by_name(affine: Path, tmp_path: Path) -> None:
    two = onnx.load(affine)
    two.graph.output.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, ["n", 3]))
    onnx.save(two, tmp_path / "ym.onnx")
    y, m = two.graph.output
    swapped = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in (m, y)]
    del two.graph.output[:]
    two.graph.output.extend(swapped)
    onnx.save(two, tmp_path / "my.onnx")
    assert call_json("compare", str(tmp_path / "ym.onnx"), str(tmp_path / "my.onnx"))["same"] is True


@pytest.mark.parametrize("arguments", [["--bisect", "--against", "onnxruntime"], ["--bisect", CNN]])
def test_compare_refuses_what_it_cannot_bisect(affine: Path, arguments: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="bisect"):
        call("compare", str(affine), *arguments)


# bench, demo, the command itself


def test_bench_reports_percentiles_in_order(affine: Path) -> None:
    latency = call_json("bench", str(affine), "--runs", "20", "--batch", "4")["latency"]
    assert latency["runs"] == 20
    order = [latency[k] for k in ("min_ms", "lower_quartile_ms", "median_ms", "p95_ms", "p99_ms", "max_ms")]
    assert order == sorted(order)
    assert latency["throughput_per_s"] == pytest.approx(4 * 1e3 / latency["mean_ms"])


def test_bench_times_engines_side_by_side(affine: Path) -> None:
    document = call_json("bench", str(affine), "-e", "whet", "-e", "onnxruntime", "--rounds", "1", "--threads", "1")
    assert [e["engine"] for e in document["engines"]] == ["whet", "onnxruntime"]
    assert all(e["latency"]["runs"] >= 1 and not e["error"] for e in document["engines"])
    with pytest.raises(InvalidArgument, match="onnxruntime"):
        call("bench", str(affine), "-e", "onnxruntim")
    with pytest.raises(InvalidArgument, match="--rounds"):
        call("bench", str(affine), "-e", "whet", "--runs", "5")


def test_bench_reports_an_engine_that_cannot_run_the_model(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Gelu", ["x"], ["y"])],
        "gelu",
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [2])],
        [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [2])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 28)]), tmp_path / "m.onnx")
    document = call_json("bench", str(tmp_path / "m.onnx"), "-e", "whet", "-e", "onnxruntime", "--rounds", "1")
    ours, theirs = document["engines"]
    assert ours["latency"]
    assert theirs["latency"] is None
    assert theirs["error"]


def test_demo_reaches_the_stated_accuracies(tmp_path: Path) -> None:
    document = call_json("demo", "--rounds", "0", "-o", str(tmp_path))
    assert document["accuracy"]["digits-cnn"] >= 0.98
    assert document["accuracy"]["digits-transformer"] >= 0.96
    assert {f.name for f in tmp_path.iterdir()} == {"digits-cnn.whet.onnx", "digits-transformer.whet.onnx"}


def test_errors_reach_the_shell_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "whet.cli", "run", str(tmp_path / "none.onnx")]
    plain = subprocess.run(command, capture_output=True, text=True, check=False)
    assert plain.returncode == 1
    assert "NoSuchFile" in plain.stderr
    assert "Traceback" not in plain.stderr
    as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert json.loads(as_json.stdout)["error"]["type"] == "NoSuchFile"


def test_engines_refuse_what_they_would_ignore(affine: Path) -> None:
    with pytest.raises(InvalidArgument, match="takes no --provider"):
        call("bench", str(affine), "-e", "onnxruntime", "-p", "openvino")
    with pytest.raises(InvalidArgument, match="no --level"):
        call("bench", str(affine), "-e", "onnxruntime", "--level", "basic")


def test_optimize_shows_what_auto_measured(affine: Path) -> None:
    document = call_json("optimize", str(affine), "-p", "auto", "--rounds", "0", "--no-save")
    rows = {row["name"]: row["verdict"] for row in document["auto"]["rows"]}
    assert "onnxruntime" in rows
    assert sorted(rows.values()).count("chosen") == 1
    assert "Providers measured" in call("optimize", str(affine), "-p", "auto", "--rounds", "0", "--no-save")


def test_a_warning_names_no_line_of_the_package(affine: Path) -> None:
    command = [sys.executable, "-m", "whet.cli", "run", str(affine), "-p", "CUDAExecutionProvider"]
    finished = subprocess.run([*command, "-p", "CPUExecutionProvider"], capture_output=True, text=True, check=True)
    assert finished.stderr.startswith("warning: CUDAExecutionProvider is not installed")
    assert ".py" not in finished.stderr
