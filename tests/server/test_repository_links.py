"""Links of a repository that only the kernel can follow: those of /proc into another process's files."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.server.repository_models import ask, rows, running, scale_bytes, states, write_model
from whet.errors import InvalidArgument, NoSuchFile
from whet.server.errors import ModelUnavailable
from whet.server.repository.layout import model_file, scan
from whet.server.repository.links import inside, real

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="links of /proc")

CONTAINER = """
import ctypes, os, shutil, sys
image, mount = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"none", os.fsencode(mount), b"tmpfs", 0, None):
    sys.exit(f"no mount: {os.strerror(ctypes.get_errno())}")
shutil.copytree(image, mount, symlinks=True, dirs_exist_ok=True)
os.chroot(mount)
os.chdir("/models")
print("there", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Callable[[Path, Path], int]]:
    """Gives the process of a container whose root has what is in the first folder, and which is mounted, for itself
    alone, at the second: what its links in /proc say leads there, where everyone else sees another folder."""
    started: list[subprocess.Popen[str]] = []

    def start(image: Path, mount: Path) -> int:
        if shutil.which("unshare") is None:
            pytest.skip("unshare is not installed")
        command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", CONTAINER]
        process = subprocess.Popen(
            [*command, str(image), str(mount)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        if process.stdout.readline() != "there\n":
            pytest.skip("no namespaces or mounts here")
        return process.pid

    yield start
    for process in started:
        process.communicate("")


@pytest.fixture
def oci(tmp_path: Path, container: Callable[[Path, Path], int]) -> Path:
    """/mnt/models as KServe makes it of an image that holds /models."""
    models = tmp_path / "image/models"
    models.mkdir(parents=True)
    (models / "bare.onnx").write_bytes(scale_bytes(2))
    write_model(models / "numbered", scale_bytes(3))
    write_model(models / "..2024/mounted", scale_bytes(4))
    (models / "..data").symlink_to("..2024")
    (models / "mounted").symlink_to("..data/mounted")
    (models / "round").symlink_to("../models/../models/numbered")
    write_model(tmp_path / "image/outside", scale_bytes(5))
    write_model(tmp_path / "outside", scale_bytes(6))
    (models / "beside").symlink_to("../outside")
    (models / "ours").symlink_to(tmp_path / "outside")  # what an absolute link means is said by the server's root
    (models / "theirs").symlink_to("/models/numbered")
    (models / "file.onnx").symlink_to("../outside/1/model.onnx")
    (tmp_path / "mount").mkdir()
    (tmp_path / "mnt").mkdir()
    pid = container(tmp_path / "image", tmp_path / "mount")
    (tmp_path / "mnt/models").symlink_to(f"/proc/{pid}/root/models")
    return tmp_path / "mnt/models"


def test_an_image_of_kserve_is_a_repository(oci: Path) -> None:
    assert not oci.resolve().exists(), "its text leads somewhere, so this shows nothing"
    found = scan(oci)
    assert {n for n, s in found.items() if s.problem is None} == {"bare", "numbered", "mounted", "round"}
    for name, factor in {"bare": 2, "numbered": 3, "mounted": 4, "round": 3}.items():
        file = model_file(found[name], 1, "model.onnx")
        assert file.read_bytes() == scale_bytes(factor)
        assert oci in file.parents, "it does not lie where the kernel finds it"
        place = oci
        for part in file.relative_to(oci).parts:
            place = place / part
            assert not place.is_symlink()
    assert scan(oci, "mounted") == {"mounted": found["mounted"]}


def test_no_link_leads_out_of_an_image(oci: Path) -> None:
    found = scan(oci)
    assert set(found) - {"bare", "numbered", "mounted", "round"} == {"beside", "ours", "file"}, "theirs is nothing here"
    for name in ("beside", "ours", "file"):
        assert "leads out of the model repository" in str(found[name].problem)


def test_models_of_an_image_answer(oci: Path) -> None:
    async def scenario() -> None:
        async with running(oci) as (plane, repository):
            assert len(await repository.start()) == 3
            assert {n for n, s in states(repository).items() if s == "READY"} == {
                "bare:1", "numbered:1", "mounted:1", "round:1",
            }  # fmt: skip
            x = rows()
            assert np.array_equal(await ask(plane, "mounted", x), x * np.float32(4))
            with pytest.raises(ModelUnavailable, match="leads out"):
                await ask(plane, "beside", x)

    asyncio.run(scenario())


def test_an_image_of_one_model_is_named_after_the_mount(tmp_path: Path, container: Callable[[Path, Path], int]) -> None:
    write_model(tmp_path / "image/models", scale_bytes(2))
    (tmp_path / "mount").mkdir()
    pid = container(tmp_path / "image", tmp_path / "mount")
    (tmp_path / "models").symlink_to(f"/proc/{pid}/root/models")
    found = scan(tmp_path / "models")
    assert list(found) == ["models"]
    assert model_file(found["models"], 1, "model.onnx").read_bytes() == scale_bytes(2)


def test_what_a_link_says_is_not_where_it_leads(tmp_path: Path, container: Callable[[Path, Path], int]) -> None:
    """The other process's folder is called as ours and holds other files: the text of its link leads into ours."""
    repository = tmp_path / "repository"
    write_model(repository / "m", b"ours")
    write_model(tmp_path / "image/models/m", b"theirs")
    pid = container(tmp_path / "image", repository)
    theirs = Path(f"/proc/{pid}/root/models/m")
    (repository / "models").mkdir()
    write_model(repository / "models/m", b"ours")
    assert Path(os.readlink(f"/proc/{pid}/root")) == repository
    assert (theirs / "1/model.onnx").read_bytes() == b"theirs"
    (repository / "link").symlink_to(theirs)
    (repository / "file.onnx").symlink_to(theirs / "1/model.onnx")
    for name in ("link", "file.onnx"):
        with pytest.raises(InvalidArgument, match="leads out of the model repository"):
            inside(repository, repository / name)
    found = scan(repository)
    assert all("leads out of the model repository" in str(found[name].problem) for name in ("link", "file"))


def test_links_of_proc_into_the_repository_and_out_of_it(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_model(repository / "m", b"1")
    write_model(tmp_path / "outside/m", b"2")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=tmp_path / "outside") as process:
        (repository / "cwd").symlink_to(f"/proc/{process.pid}/cwd/m")
        (repository / "root").symlink_to(f"/proc/self/root{tmp_path}/outside/m")
        (repository / "self").symlink_to(f"/proc/self/root{repository}/m")
        (repository / "up").symlink_to(f"/proc/{process.pid}/cwd/../repository/m")
        found = scan(repository)
        process.communicate(b"")
    assert {n: s.problem is None for n, s in found.items()} == {
        "m": True, "cwd": False, "root": False, "self": True, "up": True,
    }  # fmt: skip
    assert model_file(found["self"], 1, "model.onnx") == repository / "m/1/model.onnx"


def test_a_file_without_a_name_is_a_repository_of_one(tmp_path: Path) -> None:
    """As with an image: what its link says is nowhere."""
    descriptor = os.memfd_create("m")
    try:
        os.write(descriptor, b"1")
        (tmp_path / "m.onnx").symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
        found = scan(tmp_path / "m.onnx")
        assert list(found) == ["m"]
        assert model_file(found["m"], 1, "model.onnx").read_bytes() == b"1"
        assert scan(tmp_path) == {}, "in a folder, a link counts as its text"
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("m", "m"),
        ("./m//1/../1/", "m/1"),
        ("{root}/m", "m"),
        ("../repository/m", "m"),
        ("../beside/m", "m"),  # beside -> repository
        ("../into/1", "m/1"),  # into -> repository/m
        ("{root}/../repository/links/m", "m"),
        ("again/again/m", "m"),
        ("..", None),
        ("../outside", None),
        ("{root}/../outside", None),
        ("m/../../outside", None),
        ("../into/../../outside", None),
        ("/", None),
    ],
)
def test_where_a_link_leads(tmp_path: Path, text: str, place: str | None) -> None:
    root = tmp_path / "repository"
    write_model(root / "m", b"1")
    (root / "again").symlink_to(".")
    (root / "links").symlink_to("../repository")
    (tmp_path / "outside").mkdir()
    (tmp_path / "beside").symlink_to("repository")
    (tmp_path / "into").symlink_to(root / "m")
    (root / "link").symlink_to(text.format(root=root))
    if place is None:
        with pytest.raises(InvalidArgument, match="leads out of the model repository"):
            inside(root, root / "link")
    else:
        assert inside(root, root / "link") == root / place
        assert inside(root, root / "again/link") == root / place


def test_links_to_nothing_and_to_themselves(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "nothing").symlink_to("nowhere/x")
    with pytest.raises(InvalidArgument, match="leads to itself"):
        inside(tmp_path, tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        inside(tmp_path, tmp_path / "nothing")
    for name in ("a", "nothing", "none"):
        with pytest.raises(NoSuchFile, match="no such model repository"):
            real(tmp_path / name)


def test_a_link_that_is_turned_after_the_look_is_refused(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_model(repository / "..v1/m", b"1")
    write_model(tmp_path / "outside/m", b"secret")
    (repository / "m").symlink_to("..v1/m")
    found = scan(repository)["m"]
    (repository / "new").symlink_to("../outside/m")
    (repository / "new").rename(repository / "m")
    with pytest.raises(InvalidArgument, match="leads out of the model repository"):
        model_file(found, 1, "model.onnx")
