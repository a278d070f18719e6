"""Targets, objects, the cache on disk, worker processes and the sandbox."""

from __future__ import annotations

import os
import resource
import signal
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest

from whet.codegen import lang
from whet.codegen.cache import ObjectCache, key_digest
from whet.codegen.compiler import compile_isolated, compile_sources
from whet.codegen.elf import defined_symbols, undefined_symbols
from whet.codegen.jit import Library, build, load
from whet.codegen.module import Source, compile_source
from whet.codegen.process import Child, ProcessDied
from whet.codegen.sandbox import run_cases
from whet.codegen.target import AVX2, AVX512, AVX512_BF16, NEON, PRESETS, host_target
from whet.dtypes import BOOL, FLOAT32, INT8, INT32, INT64
from whet.errors import Fail, InvalidArgument, NotImplemented


def _module(factor: int) -> lang.Module:
    module = lang.Module(host_target())
    with module.function("scale", returns=INT64) as k:
        k.return_(k.argument("x") * factor)
    return module


@pytest.fixture
def cache(tmp_path: Path) -> ObjectCache:
    return ObjectCache(tmp_path / "objects")


def _entries(cache: ObjectCache) -> list[Path]:
    return sorted(path for path in cache.folder.iterdir() if path.name != ".looked")


# Targets


def test_presets_state_their_registers() -> None:
    assert {name: (t.vector_bits, t.vector_registers) for name, t in PRESETS.items()} == {
        "avx2": (256, 16), "avx512": (512, 32), "avx512-vnni": (512, 32), "avx512-bf16": (512, 32), "neon": (128, 32),
    }  # fmt: skip
    assert (AVX512.lanes(FLOAT32), AVX512.lanes(INT8), NEON.lanes(BOOL)) == (16, 64, 16)
    assert AVX512_BF16.has("avx512vnni")
    assert not AVX512.has("avx512vnni")
    assert AVX2.runs_on(AVX512)
    assert not AVX512.runs_on(AVX2)
    assert not NEON.runs_on(AVX512)


def test_the_host_is_what_the_system_says() -> None:
    host = host_target()
    assert host.runs_on(host)
    assert host.cpu == llvm.get_host_cpu_name()
    assert host.l1_bytes >= 8 * 1024
    assert host is host_target()


def test_targets_that_differ_have_different_keys() -> None:
    texts = [t.code_fields() for t in (AVX2, AVX512, AVX512_BF16, NEON, host_target())]
    assert len(set(texts)) == len(texts)


def test_code_for_another_machine_is_refused() -> None:
    module = lang.Module(NEON)
    with module.function("f"):
        pass
    data = compile_source(module.source())
    assert defined_symbols(data)[-1] == "f"
    if host_target().architecture != "aarch64":
        with pytest.raises(NotImplemented, match="cannot run"):
            Library(data, NEON)


# Objects


def test_an_object_that_needs_more_is_not_linked() -> None:
    text = "declare void @absent()\ndefine void @f() {\n  call void @absent()\n  ret void\n}\n"
    source = Source(host_target(), f'target triple = "{host_target().triple}"\n{text}')
    with pytest.raises(Fail, match="absent"):
        compile_source(source)


def test_damaged_objects_are_errors() -> None:
    data = compile_source(_module(3).source())
    assert undefined_symbols(data) == []
    for damaged in (b"", data[:100], b"MZ" + data[2:], data[: len(data) // 2]):
        with pytest.raises(Fail, match="ELF"):
            undefined_symbols(damaged)


def test_unknown_functions_are_named() -> None:
    module = _module(3)
    library = Library(compile_source(module.source()), module.target)
    with pytest.raises(Fail, match=r"missing.*scale"):
        library.address("missing")


def test_code_lives_as_long_as_its_kernel() -> None:
    kernels = [build(_module(factor))["scale"] for factor in range(20)]
    assert [kernel(2) for kernel in kernels] == [2 * factor for factor in range(20)]


def test_kernels_run_from_many_threads() -> None:
    kernel = build(_module(5))["scale"]
    results: list[int] = []
    threads = [threading.Thread(target=lambda i=i: results.append(kernel(i))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [5 * i for i in range(8)]


# The cache


def test_a_second_compilation_reads_the_first(cache: ObjectCache) -> None:
    module = _module(7)
    first = compile_sources([module.source(), module.source()], cache)
    assert (cache.report.misses, cache.report.stored, cache.report.hits) == (1, 1, 0)
    again = ObjectCache(cache.folder)
    second = compile_sources([module.source()], again)
    assert again.report.hits == 1
    assert second[0] == first[0] == first[1]
    assert load(second[0], module.target, module.signatures())["scale"](6) == 42
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


def test_every_field_of_the_key_counts_and_a_miss_names_it(cache: ObjectCache) -> None:
    fields = _module(7).source().key_fields()
    assert {name for name, _ in fields} == {"llvmlite", "llvm", "triple", "cpu", "features", "level", "ir"}
    cache.put(fields, b"object")
    for index, (name, text) in enumerate(fields):
        other = (*fields[:index], (name, text + "x"), *fields[index + 1 :])
        assert cache.get(other) is None, name
        assert cache.explain_miss(other) == (() if name == "ir" else (name,))
    assert cache.get(fields) == b"object"


@pytest.mark.parametrize("damage", ["object", "header", "cut", "empty", "magic"])
def test_a_damaged_entry_is_compiled_again(cache: ObjectCache, damage: str) -> None:
    source = _module(9).source()
    (good,) = compile_sources([source], cache)
    (path,) = _entries(cache)
    content = bytearray(path.read_bytes())
    if damage == "object":
        content[-20] ^= 1
    elif damage == "header":
        content[20] ^= 0x80
    elif damage == "magic":
        content[0] ^= 1
    else:
        del content[0 if damage == "empty" else len(content) // 2 :]
    path.write_bytes(content)
    assert compile_sources([source], cache) == [good]
    assert cache.report.rejected == 1
    assert cache.report.problem is not None
    assert cache.get(source.key_fields()) == good, "the damaged entry was replaced"


def test_the_file_of_another_key_is_not_taken(cache: ObjectCache) -> None:
    ours, theirs = _module(2).source().key_fields(), _module(3).source().key_fields()
    cache.put(theirs, b"theirs")
    os.rename(cache.folder / f"{key_digest(theirs)}.whetobj", cache.folder / f"{key_digest(ours)}.whetobj")
    assert cache.get(ours) is None
    assert "another key" in (cache.report.problem or "")


@pytest.mark.parametrize("what", ["folder", "file", "link", "folder link"])
def test_what_others_could_have_written_is_not_loaded(cache: ObjectCache, tmp_path: Path, what: str) -> None:
    fields = _module(4).source().key_fields()
    assert cache.put(fields, b"object")
    (path,) = _entries(cache)
    if what == "folder":
        cache.folder.chmod(0o777)
    elif what == "file":
        path.chmod(0o666)
    elif what == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        cache.folder.rename(tmp_path / "elsewhere")
        cache.folder.symlink_to(tmp_path / "elsewhere")
    assert cache.get(fields) is None
    assert cache.report.rejected == 1
    if what.startswith("folder"):
        assert not cache.put(fields, b"object")


def test_another_users_folder_is_not_trusted(cache: ObjectCache) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    fields = _module(4).source().key_fields()
    cache.put(fields, b"object")
    os.chown(cache.folder, 12345, 12345)
    assert cache.get(fields) is None
    assert "another user" in (cache.report.problem or "")


def test_a_cache_that_cannot_be_written_never_fails_a_compilation(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    cache = ObjectCache(blocker / "objects")
    module = _module(11)
    (data,) = compile_sources([module.source()], cache)
    assert load(data, module.target, module.signatures())["scale"](3) == 33
    assert cache.report.problem is not None
    assert cache.report.stored == 0


def store_on_a_full_disk(folder: str) -> Any:
    """What the next test runs in a child: no file of that process may grow past 100 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    cache = ObjectCache(Path(folder))
    return cache.put((("ir", "x"),), bytes(1000)), cache.report.problem, os.listdir(folder)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    with Child() as child:
        stored, problem, left = child.call("tests.test_codegen_objects:store_on_a_full_disk", str(tmp_path / "o"))
    assert (stored, left) == (False, [])
    assert "File too large" in problem


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path / "objects", max_bytes=5 * 4096)
    keys = [(("ir", str(i)),) for i in range(6)]
    for i, key in enumerate(keys[:4]):
        cache.put(key, bytes(1000))
        path = cache.folder / f"{key_digest(key)}.whetobj"
        os.utime(path, (1e9 + i, 1e9 + i))
    assert cache.get(keys[0]) is not None, "reading notes the use"
    for key in keys[4:]:
        cache.put(key, bytes(1000))
    # The sixth block was one too many: that, and an eighth of the whole, had to go.
    assert [cache.get(key) is not None for key in keys] == [True, False, False, True, True, True]
    assert cache.report.removed == 2
    assert not cache.put((("ir", "big"),), bytes(6 * 4096)), "more than the whole cache"


def test_small_objects_count_with_the_blocks_that_they_take(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path / "objects", max_bytes=64 * 4096)
    for i in range(200):
        cache.put((("ir", str(i)),), bytes(100))
    assert 32 <= len(_entries(cache)) <= 64 + 4, "a sixteenth may be written between two looks"
    assert cache.get((("ir", "199"),)) is not None


def test_a_process_that_writes_little_looks_only_where_nobody_has_lately(tmp_path: Path) -> None:
    def write(count: int, name: str) -> ObjectCache:
        # Each object is small beside a sixteenth of the cache: a look is due for the time since the last one alone.
        cache = ObjectCache(tmp_path / "objects", max_bytes=64 * 4096)
        for i in range(count):
            cache.put((("ir", f"{name}{i}"),), b"x")
        return cache

    write(1, "first")
    for i in range(100):
        path = tmp_path / "objects" / f"{i:064x}.whetobj"
        path.write_bytes(b"an entry")
        os.utime(path, (1e9, 1e9))
    assert write(1, "second").report.removed == 0, "somebody has looked just now"
    os.utime(tmp_path / "objects" / ".looked", (1e9, 1e9))
    third = write(2, "third")
    assert third.report.removed >= 100 - 64
    assert len(_entries(third)) <= 64
    assert third.get((("ir", "first0"),)) is not None, "it went before older ones"
    for i in range(100):
        (tmp_path / "objects" / f"{i:064x}.whetobj").write_bytes(b"an entry")
    assert write(5, "fourth").report.removed > 0, "it has written a sixteenth of the cache"


def fill(folder: str, name: str) -> tuple[int, str | None]:
    """What the next test runs in children: objects enough to overflow the cache several times."""
    cache = ObjectCache(Path(folder), max_bytes=32 * 4096)
    lost = 0
    for i in range(100):
        key = (("ir", f"{name}{i}"),)
        cache.put(key, f"{name}{i}".encode() * 50)
        found = cache.get(key)
        if found is not None and found != f"{name}{i}".encode() * 50:
            lost += 1
    return lost, cache.report.problem


def test_several_processes_bound_one_folder(tmp_path: Path) -> None:
    with Child() as first, Child() as second, ThreadPoolExecutor(2) as pool:
        calls = [
            pool.submit(child.call, "tests.test_codegen_objects:fill", str(tmp_path / "o"), name)
            for child, name in ((first, "a"), (second, "b"))
        ]
        assert [call.result() for call in calls] == [(0, None)] * 2
    assert len(list((tmp_path / "o").glob("*.whetobj"))) <= 32 + 2 * 2


def test_what_a_dead_writer_left_is_removed(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path / "objects", max_bytes=10_000)
    cache.put((("ir", "a"),), b"a")
    for name, age in (("old.part", 1e9), ("new.part", None)):
        (cache.folder / name).write_bytes(b"half")
        if age is not None:
            os.utime(cache.folder / name, (age, age))
    cache.put((("ir", "b"),), bytes(1000))
    assert {path.name for path in _entries(cache) if path.suffix == ".part"} == {"new.part"}


def test_many_threads_share_a_cache(cache: ObjectCache) -> None:
    keys = [(("ir", str(i % 5)),) for i in range(40)]
    wrong = []

    def work(key: Any) -> None:
        cache.put(key, key[0][1].encode() * 1000)
        if cache.get(key) != key[0][1].encode() * 1000:
            wrong.append(key)

    threads = [threading.Thread(target=work, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(_entries(cache)) == 5


# Processes


def test_workers_make_the_same_objects() -> None:
    sources = [_module(factor).source() for factor in range(140)]
    assert compile_sources(sources, workers=2) == [compile_source(s) for s in sources]


def _fatal_source() -> Source:
    """An immediate that no instruction encodes: LLVM aborts its process on it."""
    text = """
declare <16 x float> @llvm.x86.avx512.mask.scalef.ps.512(<16 x float>, <16 x float>, <16 x float>, i16, i32 immarg)
define <16 x float> @f(<16 x float> %a) {
  %b = call <16 x float> @llvm.x86.avx512.mask.scalef.ps.512(<16 x float> %a, <16 x float> %a, <16 x float> %a, i16 -1, i32 77)
  ret <16 x float> %b
}
"""  # noqa: E501
    return Source(AVX512, f'target triple = "{AVX512.triple}"\n{text}')


def test_an_abort_inside_llvm_is_an_error_here() -> None:
    with pytest.raises(Fail, match=r"ended its process.*signal 6"):
        compile_isolated(_fatal_source())
    assert compile_isolated(_module(3).source()) == compile_source(_module(3).source())


def test_errors_of_a_worker_are_the_callers() -> None:
    bad = Source(host_target(), "this is no module")
    with pytest.raises(Fail, match="not valid"):
        compile_sources([*(_module(i).source() for i in range(140)), bad], workers=2)


def fuzz_case(case: str) -> Any:
    """What the sandbox test runs in its child."""
    if case == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if case == "hang":
        threading.Event().wait()
    if case == "refuse":
        raise InvalidArgument("no such case", found=case)
    if case == "print":
        print("noise on standard output")
    if case == "local":
        return lambda: None
    array = np.zeros(4, np.int32)
    module = lang.Module(host_target())
    with module.function("f") as k:
        k.pointer("x", INT32).store(k.constant(INT32, len(case), 4))
    build(module)["f"](array.ctypes.data)
    return array.tolist()


def test_the_sandbox_survives_what_kills_a_case() -> None:
    cases = ["one", "crash", "refuse", "print", "hang", "local", "seven"]
    verdicts = list(run_cases("tests.test_codegen_objects:fuzz_case", cases, timeout_s=5.0))
    assert [v.case for v in verdicts] == cases
    assert [v.passed for v in verdicts] == [True, False, False, True, False, False, True]
    assert verdicts[0].result == [3] * 4
    assert "signal 11" in (verdicts[1].death or "")
    assert isinstance(verdicts[2].error, InvalidArgument)
    assert verdicts[2].error.found == "refuse"
    assert "longer than 5" in (verdicts[4].death or "")
    assert "cannot send" in str(verdicts[5].error)
    assert verdicts[6].result == [5] * 4


def test_a_child_ends_with_its_parents_wish() -> None:
    with Child() as child:
        assert child.call("operator:add", 2, 3) == 5
        with pytest.raises(ProcessDied, match="exit status 3"):
            child.call("os:_exit", 3)
        assert not child.alive
    with Child(path=[*sys.path]) as child:
        with pytest.raises(ZeroDivisionError):
            child.call("operator:truediv", 1, 0)
        assert child.alive
    assert not child.alive
