"""What is found in a repository: the three forms, links, and what is no model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.server.repository_models import ENSEMBLE, write_model
from whet.errors import NoSuchFile
from whet.server.repository.layout import Names, model_file, model_names, scan


def test_three_forms_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "bare.onnx").write_bytes(b"1")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "model.onnx").write_bytes(b"2")
    write_model(tmp_path / "numbered", b"3", 3)
    write_model(tmp_path / "numbered", b"12", 12)
    for name in ("0", "01", "-1", "v2", "9223372036854775808", "٣"):
        (tmp_path / "numbered" / name).mkdir()
    (tmp_path / "ensemble").mkdir()
    (tmp_path / "ensemble" / "config.pbtxt").write_text(ENSEMBLE)
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").write_text("no model")
    (tmp_path / ".hidden.onnx").write_bytes(b"")
    found = scan(tmp_path)
    assert {n: sorted(s.versions) for n, s in found.items()} == {
        "bare": [1], "flat": [1], "numbered": [3, 12], "ensemble": [],
    }  # fmt: skip
    assert model_file(found["numbered"], 12, "model.onnx").read_bytes() == b"12"
    assert model_file(found["flat"], 1, "model.onnx").read_bytes() == b"2"
    assert set(model_names(tmp_path)) >= set(found)


def test_a_file_or_a_model_folder_is_a_repository_of_one(tmp_path: Path) -> None:
    write_model(tmp_path / "m", b"1")
    assert list(scan(tmp_path / "m" / "1" / "model.onnx")) == ["1"]
    assert {n: list(s.versions) for n, s in scan(tmp_path / "m").items()} == {"m": [1]}
    with pytest.raises(NoSuchFile):
        scan(tmp_path / "none")


def test_kubernetes_links_are_followed_and_a_swap_is_a_change(tmp_path: Path) -> None:
    for stamp in ("..2024", "..2025"):
        write_model(tmp_path / stamp / "m", stamp.encode())
        os.utime(tmp_path / stamp / "m" / "1" / "model.onnx", (1, 1))
    (tmp_path / "..data").symlink_to("..2024")
    (tmp_path / "m").symlink_to("..data/m")
    first = scan(tmp_path)
    assert list(first) == ["m"]
    assert model_file(first["m"], 1, "model.onnx").read_bytes() == b"..2024"
    (tmp_path / "..new").symlink_to("..2025")
    (tmp_path / "..new").rename(tmp_path / "..data")
    second = scan(tmp_path)
    assert second["m"].stamp != first["m"].stamp
    assert model_file(second["m"], 1, "model.onnx").read_bytes() == b"..2025"


@pytest.mark.parametrize("link", ["m", "m/1", "m/1/model.onnx", "m/labels.txt", "m.onnx"])
def test_a_link_out_of_the_repository_is_refused(tmp_path: Path, link: str) -> None:
    repository, outside = tmp_path / "repository", tmp_path / "outside"
    write_model(outside / "m", b"secret")
    write_model(repository / "good", b"1")
    target = outside / "m" / ("1/model.onnx" if link.endswith((".onnx", ".txt")) else link.removeprefix("m").strip("/"))
    place = repository / link
    place.parent.mkdir(parents=True, exist_ok=True)
    if link == "m/labels.txt":
        write_model(repository / "m", b"1")
    place.symlink_to(target)
    found = scan(repository)
    assert found["good"].problem is None
    assert "leads out of the model repository" in str(found["m"].problem)


def test_a_loop_of_links_a_pipe_and_two_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nothing").symlink_to("nowhere")
    write_model(tmp_path / "inner", b"1")
    (tmp_path / "inner" / "again").symlink_to(".")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "model.onnx")
    write_model(tmp_path / "twice", b"1")
    (tmp_path / "twice.onnx").write_bytes(b"2")
    found = scan(tmp_path)
    assert "nothing" not in found
    assert "pipe" not in found
    assert found["inner"].problem is None
    assert "two models of one name" in str(found["twice"].problem)


def test_names_that_no_request_can_say(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/\xff\xfe")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")) / "model.onnx").write_bytes(b"")
    write_model(tmp_path / "<b>m", b"1")
    assert list(scan(tmp_path)) == ["<b>m"]


def test_one_model_is_found_as_among_all(tmp_path: Path) -> None:
    write_model(tmp_path / "m", b"1")
    (tmp_path / "bare.onnx").write_bytes(b"1")
    (tmp_path / "model.onnx").write_bytes(b"1")
    (tmp_path / ".hidden.onnx").write_bytes(b"1")
    (tmp_path / "twice.onnx").write_bytes(b"1")
    write_model(tmp_path / "twice", b"1")
    (tmp_path / "out").symlink_to(tmp_path.parent)
    write_model(tmp_path.parent / "beside", b"1")
    every = scan(tmp_path)
    assert {"m", "bare", "twice", "out", tmp_path.name} == set(every)
    for name, source in every.items():
        found = scan(tmp_path, name)
        assert list(found) == [name]
        assert (found[name].stamp, str(found[name].problem)) == (source.stamp, str(source.problem))
    names = (
        "",
        ".",
        "..",
        "../beside",
        ".hidden",
        "m/1",
        "m/..",
        "m\0",
        "x" * 10_000,
        "\ud800",
        "none",
        "model",
        "/etc",
    )
    assert [scan(tmp_path, name) for name in names] == [{}] * len(names)
    assert list(scan(tmp_path / "m", "m")) == ["m"]
    assert scan(tmp_path / "m", "other") == {}


def test_names_are_looked_up_again_where_the_folder_has_changed(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_model(folder / "a", b"1")
    names = Names(folder)
    for number in range(5):
        # Within the tick of a file system's clock: its time stamp may stay as it is.
        write_model(folder / f"b{number}", b"1")
        assert names() == model_names(folder) == ["a", *(f"b{n}" for n in range(number + 1))]
    os.utime(folder, (1e9, 1e9))
    assert names() is names(), "it looked although nothing has changed"
    (folder / "a").rename(folder / "c")
    assert names() == model_names(folder)
    assert "a" not in names()
    folder.rename(tmp_path / "away")
    assert names() == []
    (tmp_path / "away").rename(folder)
    assert names() == model_names(folder)


def test_a_look_at_one_model_does_not_grow_with_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        write_model(tmp_path / f"m{number}", b"1")
    looked = 0
    honest = os.scandir

    def count(path: object) -> object:
        nonlocal looked
        looked += 1
        return honest(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", count)
    assert list(scan(tmp_path, "m7")) == ["m7"]
    assert looked <= 3
