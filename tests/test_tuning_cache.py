"""The timing cache on disk: many writers, torn and foreign files, merging."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from whet.errors import Fail, InvalidArgument, NoSuchFile
from whet.tuning import cache
from whet.tuning.cache import TimingCache
from whet.tuning.timing import Timing

HERE = (("cpu", "here"), ("generator", "1"))
OTHER = (("cpu", "other"), ("generator", "1"))


def timing(work: str, count: int = 3, threads: int = 2, **more: int) -> Timing:
    samples = {"a": tuple(range(1000, 1000 + count)), **{name: (ns,) for name, ns in more.items()}}
    return Timing("conv", work, threads, "", samples)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "timings"


def known(folder: Path, fields: cache.Fields = HERE, threads: int = 2) -> dict[str, Timing]:
    return {t.work: t for t in TimingCache(fields, folder).timings(threads).values()}


def test_what_is_added_is_found_by_this_machine_and_number_of_threads_only(folder: Path) -> None:
    store = TimingCache(HERE, folder)
    assert store.timings(2) == {}
    assert store.problem is None
    assert store.add([timing("x"), timing("y", threads=1)])
    assert known(folder) == {"x": timing("x")}
    assert known(folder, threads=1) == {"y": timing("y", threads=1)}
    assert known(folder, OTHER) == {}
    assert known(folder, (("cpu", "here"), ("generator", "2"))) == {}
    assert oct(os.stat(folder).st_mode & 0o777) == "0o700"


def test_the_last_of_the_same_work_counts_and_the_file_stays_small(folder: Path) -> None:
    store = TimingCache(HERE, folder)
    for count in range(1, 32):
        for _ in range(20):
            store.add([timing("x", count), timing("y")])
    assert known(folder) == {"x": timing("x", 31), "y": timing("y")}
    assert len(store.path.read_bytes().splitlines()) < 100


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_a_torn_line_is_left_out_and_what_follows_counts(folder: Path, cut: int) -> None:
    store = TimingCache(HERE, folder)
    store.add([timing("x")])
    store.add([timing("y")])
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:-cut])
    assert set(known(folder)) == ({"x"} if cut > 1 else {"x", "y"})
    store.add([timing("z")])
    assert set(known(folder)) == ({"x", "z"} if cut > 1 else {"x", "y", "z"})
    (report,) = cache.survey(folder)
    assert (report.problem is None) == (cut == 1)


def test_no_flipped_byte_gives_another_timing(folder: Path) -> None:
    store = TimingCache(HERE, folder)
    store.add([timing("x"), timing("y")])
    whole = store.path.read_bytes()
    for position in range(0, len(whole), 3):
        store.path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        for work, found in known(folder).items():
            assert found == timing(work)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n\n",
        b"not timings at all",
        b"\xff" * 1000,
        b"0000000000000000 {}\n",
        cache._line({"format": "whet-timings-9", "fields": []}),
        cache._line({"format": cache.FORMAT, "fields": [["cpu", 3]]}),
        cache._header(OTHER) + cache._written(timing("x")),
        cache._written(timing("x")),
        b"[" * 100_000,
    ],
)
def test_a_foreign_file_gives_nothing_and_is_replaced(folder: Path, content: bytes) -> None:
    folder.mkdir(mode=0o700)
    store = TimingCache(HERE, folder)
    store.path.write_bytes(content)
    assert known(folder) == {}
    assert store.add([timing("y")])
    assert known(folder) == {"y": timing("y")}


@pytest.mark.parametrize(
    "wrong",
    [
        {"threads": True}, {"threads": 0}, {"threads": -1}, {"threads": "2"}, {"family": 3}, {"work": None},
        {"samples": []}, {"samples": {"a": []}}, {"samples": {"a": [0]}}, {"samples": {"a": [-5]}},
        {"samples": {"a": [1.5]}}, {"samples": {"a": ["1"]}}, {"samples": {"a": [10**30]}},
        {"samples": {"a": [1] * 1000}}, {"samples": {"a": None}}, {"given_up": [1]}, {"given_up": "a"},
        {"extents": 1},
    ],
)  # fmt: skip
def test_a_line_that_is_whole_but_makes_no_sense_is_left_out(folder: Path, wrong: dict[str, object]) -> None:
    sound = {"family": "conv", "work": "x", "threads": 2, "extents": "", "samples": {"a": [1]}, "given_up": []}
    folder.mkdir(mode=0o700)
    store = TimingCache(HERE, folder)
    store.path.write_bytes(cache._header(HERE) + cache._line({**sound, **wrong}))
    assert known(folder) == {}
    store.timings(2)
    assert store.problem is not None
    assert "damaged" in store.problem


def test_files_that_others_may_write_are_not_used(folder: Path, tmp_path: Path) -> None:
    store = TimingCache(HERE, folder)
    store.add([timing("x")])
    store.path.chmod(0o666)
    assert known(folder) == {}
    assert not store.add([timing("y")])
    assert "can be written by others" in (store.problem or "")
    store.path.chmod(0o600)
    folder.chmod(0o777)
    assert known(folder) == {}
    folder.chmod(0o700)
    real = tmp_path / "real"
    store.path.rename(real)
    store.path.symlink_to(real)
    assert not store.add([timing("y")])
    store.path.unlink()
    os.mkfifo(store.path)
    assert known(folder) == {}
    assert not store.add([timing("y")])
    (report,) = cache.survey(folder)
    assert report.problem is not None


def test_a_folder_that_cannot_be_made_is_a_problem_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = TimingCache(HERE, tmp_path / "file" / "timings")
    assert store.timings(2) == {}
    assert not store.add([timing("x")])
    assert store.problem is not None


_WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.test_tuning_cache import HERE, timing
from whet.tuning.cache import TimingCache
store = TimingCache(HERE, Path(sys.argv[1]))
for i in range(150):
    assert store.add([timing(f"{sys.argv[2]}-{i % 10}", 1 + i % 30), timing("shared", 1 + i % 30)]), store.problem
"""


def test_writers_at_the_same_time_lose_nothing(folder: Path) -> None:
    root = str(Path(__file__).parent.parent)
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(folder), str(n), root], cwd=root) for n in range(4)]
    assert [w.wait(60) for w in writers] == [0] * 4
    found = known(folder)
    assert set(found) == {f"{n}-{i}" for n in range(4) for i in range(10)} | {"shared"}
    assert all(report.problem is None for report in cache.survey(folder))
    assert all(found[f"{n}-{i}"] == timing(f"{n}-{i}", 1 + (140 + i) % 30) for n in range(4) for i in range(10))


def test_merging_keeps_what_is_known_better(folder: Path, tmp_path: Path) -> None:
    mine = TimingCache(HERE, folder)
    mine.add([timing("x", 20), timing("y", 3)])
    there = tmp_path / "there"
    TimingCache(HERE, there).add([timing("x", 5), timing("y", 9), timing("z", 3)])
    TimingCache(OTHER, there).add([timing("x", 5)])
    exported = tmp_path / "export"
    exported.write_bytes(cache.export(there))
    assert cache.merge(folder, cache.read_export(exported)) == (3, 1)
    assert known(folder) == {"x": timing("x", 20), "y": timing("y", 9), "z": timing("z", 3)}
    assert known(folder, OTHER) == {"x": timing("x", 5)}
    assert cache.merge(folder, cache.read_export(exported)) == (0, 4)
    assert cache.clear(folder) == 2
    assert known(folder) == {}


def test_files_that_cannot_be_merged_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    TimingCache(HERE, folder).add([timing("x"), timing("y")])
    data = cache.export(folder)
    bad = tmp_path / "bad"
    with pytest.raises(NoSuchFile, match="bad"):
        cache.read_export(bad)
    for content in (b"", b"hello", b"\x00" * 50, cache._header(HERE)[:-9]):
        bad.write_bytes(content)
        with pytest.raises(InvalidArgument, match="not a file of timings"):
            cache.read_export(bad)
    bad.write_bytes(data[:-20])
    with pytest.raises(InvalidArgument, match="damaged"):
        cache.read_export(bad)
    with pytest.raises((InvalidArgument, Fail)):
        cache.read_export(tmp_path)


def test_the_folder_keeps_a_bounded_number_of_files(folder: Path) -> None:
    for number in range(cache.MOST_FILES + 5):
        store = TimingCache((("cpu", str(number)),), folder)
        store.add([timing("x")])
        os.utime(store.path, (number, number))
    TimingCache(HERE, folder).add([timing("x")])
    assert len(list(folder.iterdir())) == cache.MOST_FILES
    assert known(folder)
    assert known(folder, (("cpu", str(cache.MOST_FILES + 4)),))
