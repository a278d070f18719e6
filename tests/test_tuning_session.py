"""Tuning from end to end: sessions, engines and the command, on small models that really run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import whet
from whet.compiler.tactics import conv as conv_tactics
from whet.errors import InvalidArgument
from whet.providers.cpu import tuning as cpu_tuning
from whet.tuning import cache
from whet.tuning.timing import Timing

CPU = ["CPUExecutionProvider"]


def two_convolutions(batch: int | str = 1, ids: bool = False) -> bytes:
    """x -> 3x3 Conv -> Relu -> the same again; with `ids`, rows of a table are looked up and added."""
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((24, 24, 3, 3)) * 0.1).astype(np.float32)
    nodes = []
    last = "x"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 24, 20, 20])]
    constants = [numpy_helper.from_array(weights, "w")]
    for i in range(2):
        nodes.append(helper.make_node("Conv", [last, "w"], [f"c{i}"], f"conv{i}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        last = f"r{i}"
    if ids:
        inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, [20]))
        constants.append(numpy_helper.from_array(rng.standard_normal((3, 20)).astype(np.float32), "table"))
        nodes.append(helper.make_node("Gather", ["table", "ids"], ["rows"]))
        nodes.append(helper.make_node("Add", [last, "rows"], ["y"]))
        last = "y"
    outputs = [helper.make_tensor_value_info(last, TensorProto.FLOAT, [batch, 24, 20, 20])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def session(model: Any, folder: Path, tune: str | None = None, threads: int = 1, **keys: str) -> whet.InferenceSession:
    options = whet.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("tune.cache", str(folder))
    if tune is not None:
        options.add_session_config_entry("tune", tune)
    for key, value in keys.items():
        options.add_session_config_entry(key.replace("_", "."), value)
    return whet.InferenceSession(model, options, providers=CPU)


def tactics(made: whet.InferenceSession) -> list[str]:
    """The tactics of the steps of convolutions."""
    (executable,) = made._main.compiled.executor.executables
    (program,) = executable.programs()  # type: ignore[attr-defined]
    return [s.tactic for s in program.blueprint.steps if "Conv" in s.ops and s.tactic != "copy"]


def timings(folder: Path) -> list[Timing]:
    return [t for r in cache.survey(folder) if r.contents for m in r.contents.machines.values() for t in m.values()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "timings"


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cost model that knows nothing: every tactic is timed."""
    equal = tuple(
        conv_tactics.Tactic(t.name, t.refusal, lambda g, env: 100.0) for t in conv_tactics.CONV_TACTICS
    )  # fmt: skip
    monkeypatch.setattr("whet.compiler.lower.conv.CONV_TACTICS", equal)
    return


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_session_times_what_it_can_do_and_later_ones_take_its_choices(folder: Path, threads: int) -> None:
    tuned = session(two_convolutions(), folder, "full", threads)
    (outcome,) = tuned.tuning
    assert outcome.complete
    assert outcome.timed == outcome.questions > 0
    found = timings(folder)
    assert len(found) == outcome.timed
    assert all(len(t.samples) >= 3 for t in found)
    assert all(t.threads == threads for t in found)
    later = session(two_convolutions(), folder, threads=threads)
    assert later.tuning == []
    assert tactics(later) == tactics(tuned)
    again = session(two_convolutions(), folder, "full", threads)
    assert again.tuning[0].timed == 0
    x = np.random.default_rng(1).standard_normal((1, 24, 20, 20)).astype(np.float32)
    plain = whet.InferenceSession(two_convolutions(), providers=["ReferenceExecutionProvider"]).run(None, {"x": x})[0]
    np.testing.assert_allclose(tuned.run(None, {"x": x})[0], plain, atol=1e-4)


def _forge(folder: Path, wanted: str) -> None:
    """Let the cache say that one tactic is the fastest by far for all that it knows."""
    for report in cache.survey(folder):
        assert report.contents is not None
        for fields, known in report.contents.machines.items():
            forged = [
                Timing(
                    t.family, t.work, t.threads, t.extents,
                    {name: (1_000_000 if name == wanted else 9_000_000,) * 5 for name in t.samples},
                )
                for t in known.values()
            ]  # fmt: skip
            assert cache.TimingCache(fields, folder).add(forged)


@pytest.mark.usefixtures("wide")
def test_the_cache_decides_unless_a_session_asks_for_the_cost_model(folder: Path) -> None:
    session(two_convolutions(), folder, "full")
    for wanted, step in (("im2col", "conv-im2col"), ("winograd2", "winograd2"), ("winograd4", "winograd4")):
        _forge(folder, wanted)
        made = session(two_convolutions(), folder)
        assert tactics(made) == [step, step], wanted
        # What another number of threads needs is another question.
        assert tactics(session(two_convolutions(), folder, threads=2)) == tactics(session(two_convolutions(), folder,
                       threads=2, tune_cache="none"))  # fmt: skip
    _forge(folder, "im2col")
    plain = tactics(session(two_convolutions(), folder, tune_cache="none"))
    assert plain != ["conv-im2col"] * 2
    options = whet.SessionOptions()
    options.use_deterministic_compute = True
    options.intra_op_num_threads = 1
    options.add_session_config_entry("tune.cache", str(folder))
    assert tactics(whet.InferenceSession(two_convolutions(), options, providers=CPU)) == plain


@pytest.mark.usefixtures("wide")
def test_an_engine_keeps_the_choices(folder: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    session(two_convolutions(), folder, "full")
    _forge(folder, "im2col")
    session(two_convolutions(), folder).save_engine(tmp_path / "engine")
    cache.clear(folder)
    assert tactics(session(tmp_path / "engine", folder)) == ["conv-im2col"] * 2
    with pytest.raises(InvalidArgument, match="an engine keeps"):
        session(tmp_path / "engine", folder, "quick")


@pytest.mark.usefixtures("wide")
def test_free_extents_are_tuned_for_what_the_session_says(folder: Path) -> None:
    model = two_convolutions("batch")
    session(model, folder, "full")
    assert {t.extents for t in timings(folder)} == {"batch=1"}
    session(model, folder, "full", shapes_max="x:3x24x20x20")
    assert {t.extents for t in timings(folder)} == {"batch=1", "batch=3"}
    (executable,) = session(model, folder)._main.compiled.executor.executables
    assert executable is not None


@pytest.mark.usefixtures("wide")
def test_indices_are_made_up_that_any_table_holds(folder: Path) -> None:
    (outcome,) = session(two_convolutions(ids=True), folder, "full").tuning
    assert outcome.complete
    assert timings(folder)


@pytest.mark.usefixtures("wide")
def test_quick_stays_in_its_budget_and_goes_on_later(folder: Path) -> None:
    first = session(two_convolutions(), folder, "quick", tune_budget="0")
    assert not first.tuning[0].complete
    assert timings(folder) == []
    second = session(two_convolutions(), folder, "quick", tune_budget="30")
    assert second.tuning[0].complete
    assert timings(folder)


@pytest.mark.usefixtures("wide")
def test_an_interrupt_keeps_what_is_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = cpu_tuning._Variant.time, []

    def interrupted(self: Any, runs: int, watched: frozenset[str]) -> Any:
        calls.append(runs)
        if len(calls) > 9:
            raise KeyboardInterrupt
        return plain(self, runs, watched)

    monkeypatch.setattr(cpu_tuning._Variant, "time", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session(two_convolutions(), folder, "full")
    kept = sum(sum(map(len, t.samples.values())) for t in timings(folder))
    assert kept >= 9
    monkeypatch.setattr(cpu_tuning._Variant, "time", plain)
    assert session(two_convolutions(), folder, "full").tuning[0].complete
    assert sum(sum(map(len, t.samples.values())) for t in timings(folder)) > kept


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="timing cache"):
        made = session(two_convolutions(), tmp_path / "file" / "timings", "quick")
    assert made.run(None, {"x": np.zeros((1, 24, 20, 20), np.float32)})


@pytest.mark.usefixtures("wide")
def test_a_damaged_cache_changes_nothing(folder: Path) -> None:
    session(two_convolutions(), folder, "full")
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-7] + b"\x00" * 99)
    assert session(two_convolutions(), folder).run(None, {"x": np.zeros((1, 24, 20, 20), np.float32)})


def _with_keys(keys: dict[str, str]) -> None:
    options = whet.SessionOptions()
    for key, value in keys.items():
        options.add_session_config_entry(key, value)
    whet.InferenceSession(two_convolutions(), options, providers=CPU)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"tune": "often"}, "tune"),
        ({"tune.budget": "-1"}, "number"),
        ({"tune.budget": "soon"}, "number"),
        ({"tune": "quick", "tune.cache": "none"}, "without a timing cache"),
        ({"tune.cache": ""}, "no folder"),
    ],
)
def test_keys_that_make_no_sense_are_refused(keys: dict[str, str], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        _with_keys(keys)


def test_deterministic_sessions_are_not_tuned(folder: Path) -> None:
    options = whet.SessionOptions()
    options.use_deterministic_compute = True
    options.add_session_config_entry("tune", "quick")
    with pytest.raises(InvalidArgument, match="use_deterministic_compute"):
        whet.InferenceSession(two_convolutions(), options, providers=CPU)


# The command


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(two_convolutions())
    onnx.checker.check_model(str(path))
    return path


def whet_tune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """(exit status, the JSON document)."""
    from whet.cli.app import run_app

    monkeypatch.setattr("sys.argv", ["whet", "tune", *map(str, arguments), "--json"])
    status = run_app()
    text = capsys.readouterr().out
    return status, json.loads(text) if text else None


@pytest.mark.usefixtures("wide")
def test_the_command_tunes_lists_verifies_exports_merges_and_clears(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path, folder: Path, tmp_path: Path
) -> None:
    def do(*arguments: object, cache: Path = folder) -> Any:
        return whet_tune(monkeypatch, capsys, *arguments, "--cache", cache)

    assert do("--verify") == (0, {"folder": str(folder), "sound": True, "files": []})
    status, document = do(model, "--mode", "full", "--threads", 1, "--budget", "2m")
    assert status == 0
    (row,) = document["models"]
    assert row["complete"]
    assert row["timed"] == row["work"] > 0
    assert do(model, "--threads", 1)[1]["models"][0]["timed"] == 0
    listed = do("--list")[1]["timings"]
    assert len(listed) == row["timed"]
    assert {"direct", "im2col"} <= set(listed[0]["lower_quartile_ns"])
    assert do("--export", tmp_path / "out")[1]["timings"] == row["timed"]
    there = tmp_path / "there"
    assert do("--merge", tmp_path / "out", cache=there)[1]["files"][0]["taken"] == row["timed"]
    assert do("--list", cache=there)[1]["timings"] == listed
    for path in there.iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    status, document = do("--verify", cache=there)
    assert (status, document["sound"]) == (1, False)
    assert do("--clear")[1]["removed"] == 1
    assert do("--list")[1]["timings"] == []


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["MODEL", "--mode", "off"], "InvalidArgument"),
        (["MODEL", "--budget", "soon"], "InvalidArgument"),
        (["MODEL", "--budget", "0"], "InvalidArgument"),
        (["MODEL", "MODEL", "--shapes", "x:1x24x20x20"], "InvalidArgument"),
        (["MODEL", "--shapes", "y:1"], "InvalidArgument"),
        (["no-such-model.onnx"], "NoSuchFile"),
        (["--merge", "no-such-file"], "NoSuchFile"),
        (["--merge", "MODEL"], "InvalidArgument"),
        (["--export", "/no/such/folder/file"], "NoSuchFile"),
    ],
)
def test_the_command_refuses_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path, folder: Path,
    arguments: list[str], kind: str,
) -> None:  # fmt: skip
    given = [str(model) if a == "MODEL" else a for a in arguments]
    status, document = whet_tune(monkeypatch, capsys, *given, "--cache", folder)
    assert status == 1
    assert document["error"]["type"] == kind
