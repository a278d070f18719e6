"""Engines: compiled models on disk load without compiling, give the same answers, and are refused when not trusted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper, parser

import whet
import whet.engine.fields
from tests.session_models import HEAD, model
from whet.codegen.target import host_target
from whet.errors import Fail, InvalidArgument, NoSuchFile, NotImplemented

GRAPH = """g (float[n, 32] x, float[n, 32] z) => (float[n, 16] y, float[n] s) {
    h = MatMul(x, w)
    k = Add(h, b)
    y = Relu(k)
    axes = Constant<value_ints = [1]>()
    m = Mul(x, z)
    s = ReduceSum<keepdims = 0>(m, axes)
}"""
STRUCTURAL = """g (float[n] x, int64[2] shape) => (float[p, q] y) {
    d = Mul(x, x)
    y = Reshape(d, shape)
}"""


def _model() -> bytes:
    rng = np.random.default_rng(1)
    w, b = rng.standard_normal((32, 16)).astype(np.float32), rng.standard_normal(16).astype(np.float32)
    proto = parser.parse_model(f"{HEAD} {GRAPH}")
    proto.graph.initializer.extend([numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")])
    serialized: bytes = proto.SerializeToString()
    return serialized


def _feed(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {name: rng.standard_normal((rows, 32)).astype(np.float32) for name in ("x", "z")}


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "model.whet"
    whet.InferenceSession(_model()).save_engine(path)
    return path


def test_an_engine_gives_the_model_s_answers_at_any_shape(engine: Path) -> None:
    made, loaded = whet.InferenceSession(_model()), whet.InferenceSession(str(engine))
    assert loaded.placement.by_provider == {"CPUExecutionProvider": loaded.placement.partitions[0][1]}
    assert [(a.name, a.type, a.shape) for a in loaded.get_inputs()] == [
        (a.name, a.type, a.shape) for a in made.get_inputs()
    ]
    for rows in (1, 7, 64, 3, 500):
        for a, b in zip(made.run(None, _feed(rows)), loaded.run(None, _feed(rows)), strict=True):
            np.testing.assert_array_equal(a, b)
    events = loaded.profile(_feed(8))
    assert [(e.name, e.op, e.args["flops"]) for e in events] == [
        (e.name, e.op, e.args["flops"]) for e in made.profile(_feed(8))
    ]
    with pytest.raises(InvalidArgument):
        loaded.run(None, {"x": _feed(3)["x"], "z": _feed(4)["z"]})


def test_loading_compiles_and_packs_nothing(engine: Path) -> None:
    code = f"""
import numpy as np, whet
from whet.codegen import compiler, module
from whet.compiler import lowering
from whet.runtime.executor import executor
executor()  # the native executor is the process's own, from the object cache
def refuse(*_, **__): raise AssertionError("nothing is to be compiled or packed")
module.compile_source = compiler.compile_source = compiler.compile_sources = refuse
lowering.Lowering.weight = refuse
s = whet.InferenceSession({str(engine)!r})
print(s.run(None, {{n: np.ones((5, 32), np.float32) for n in "xz"}})[1][0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "32.0", done.stderr


def test_structural_values_that_were_run_are_kept_and_others_refused(tmp_path: Path) -> None:
    made = whet.InferenceSession(model(STRUCTURAL))
    path = tmp_path / "structural.whet"
    with pytest.raises(NotImplemented, match="nothing has been compiled"):
        made.save_engine(path)
    x = np.arange(12, dtype=np.float32)
    made.run(None, {"x": x, "shape": np.array([3, 4])})
    made.save_engine(path)
    loaded = whet.InferenceSession(str(path))
    (y,) = loaded.run(None, {"x": x, "shape": np.array([3, 4])})
    np.testing.assert_array_equal(y, (x * x).reshape(3, 4))
    with pytest.raises(NotImplemented, match="engine holds no program"):
        loaded.run(None, {"x": x, "shape": np.array([2, 6])})


def test_damage_anywhere_is_found(engine: Path) -> None:
    whole = engine.read_bytes()
    # Bytes that stand for something: of the header, and the first of every page that is not all zeros.
    pages = [at for at in range(4096, len(whole), 4096) if any(whole[at : at + 4096])]
    places = [20, 60, 200, *(at + next(i for i, b in enumerate(whole[at : at + 4096]) if b) for at in pages)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        engine.write_bytes(damaged)
        with pytest.raises(Fail, match="damaged"):
            whet.InferenceSession(str(engine))
    for size in (14, 40, 300, 5000, len(whole) - 4096 - 4096 - 1):
        engine.write_bytes(whole[:size])
        with pytest.raises(Fail, match="damaged"):
            whet.InferenceSession(str(engine))
    engine.write_bytes(whole)
    whet.InferenceSession(str(engine))


@pytest.mark.parametrize("name", ["version", "cpu", "features", "caches", "kernels", "runtime"])
def test_another_machine_or_version_is_named(engine: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = whet.engine.fields.machine_fields(host_target())
    other = tuple((n, "another" if n == name else text) for n, text in fields)
    monkeypatch.setattr("whet.engine.load.machine_fields", lambda target: other)
    with pytest.raises(Fail, match="made for something else") as refusal:
        whet.InferenceSession(str(engine))
    assert refusal.value.value == name
    assert refusal.value.expected == "another"


def test_an_engine_of_another_model_is_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    first.write_bytes(_model())
    second.write_bytes(model("g (float[n] x) => (float[n] y) { y = Neg(x) }"))
    path = tmp_path / "a.whet"
    whet.InferenceSession(str(first)).save_engine(path)
    for source, fits in ((first, True), (second, False)):
        options = whet.SessionOptions()
        options.add_session_config_entry("engine.model", str(source))
        if fits:
            whet.InferenceSession(str(path), options).run(None, _feed(2))
        else:
            with pytest.raises(Fail) as refusal:
                whet.InferenceSession(str(path), options)
            assert refusal.value.value == "model"


def test_only_private_files_are_loaded(engine: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.whet"
    link.symlink_to(engine)
    with pytest.raises(Fail, match="not to be trusted"):
        whet.InferenceSession(str(link))
    engine.chmod(0o620)
    with pytest.raises(Fail, match="can be written by others"):
        whet.InferenceSession(str(engine))
    engine.chmod(0o600)
    tmp_path.chmod(0o777)
    with pytest.raises(Fail, match="can be written by others"):
        whet.InferenceSession(str(engine))
    with pytest.raises(Fail, match="cannot be kept"):
        whet.InferenceSession(_model()).save_engine(tmp_path / "second.whet")
    assert not (tmp_path / "second.whet").exists()
    tmp_path.chmod(0o700)
    whet.InferenceSession(str(engine))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_not_loaded(engine: Path) -> None:
    os.chown(engine, 12345, -1)
    with pytest.raises(Fail, match="belongs to another user"):
        whet.InferenceSession(str(engine))


def test_an_engine_has_no_graph_to_save(engine: Path, tmp_path: Path) -> None:
    loaded = whet.InferenceSession(str(engine))
    for save in (loaded.save_optimized_model, loaded.save_engine):
        with pytest.raises(NotImplemented, match="no graph"):
            save(tmp_path / "again")
    with pytest.raises(NoSuchFile):
        whet.InferenceSession(str(tmp_path / "missing.whet"))


def test_only_whole_models_become_engines(tmp_path: Path) -> None:
    session = whet.InferenceSession(_model(), providers=["ReferenceExecutionProvider"])
    with pytest.raises(NotImplemented, match="one part on the CPU"):
        session.save_engine(tmp_path / "no.whet")
