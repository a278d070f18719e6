"""What lies in a model repository. Three forms, which may be mixed in one folder:

    model.onnx                          a bare model, named after its file
    name/model.onnx                     a folder with one unnumbered version, and maybe config.pbtxt
    name/1/model.onnx, name/2/...       Triton's: numbered versions, and maybe config.pbtxt

A repository that is itself a file is one bare model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from whet.errors import InvalidArgument, NoSuchFile

CONFIG_FILE = "config.pbtxt"
SUFFIX = ".onnx"
UNNUMBERED = 1
MAX_VERSION = (1 << 63) - 1
MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model in a repository. `versions`: number to the folder, or the file of a bare model. `config`: its file.

    `stamp` changes when any of its files does. An ensemble has no files of its own: its `versions` are empty folders.
    """

    name: str
    folder: Path
    versions: Mapping[int, Path]
    config: Path | None
    stamp: tuple[tuple[str, int, int], ...]


def scan(repository: Path) -> dict[str, ModelSource]:
    """The models of a repository by name. Raises NoSuchFile for a folder that is not there, InvalidArgument for two
    models of one name."""
    if repository.is_file():
        only = _bare(repository)
        return {only.name: only}
    try:
        entries = sorted(os.scandir(repository), key=lambda e: e.name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoSuchFile("there is no such model repository", file=str(repository)) from error
    found: dict[str, ModelSource] = {}
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        source: ModelSource | None = None
        try:
            if entry.is_dir():
                source = _folder(path)
            elif entry.is_file() and path.suffix == SUFFIX:
                source = _bare(path)
        except FileNotFoundError:
            continue  # taken away between the listing and now
        if source is None:
            continue
        if source.name in found:
            raise InvalidArgument("two models of one name", file=str(repository), found=source.name)
        found[source.name] = source
    return found


def _bare(path: Path) -> ModelSource:
    name = path.stem if path.stem != "model" else path.resolve().parent.name
    return ModelSource(name, path.parent, {UNNUMBERED: path}, None, (_stamp(path, path.name),))


def _folder(path: Path) -> ModelSource | None:
    """The model of a folder; None where nothing in it looks like one."""
    versions: dict[int, Path] = {}
    stamps = []
    config = None
    unnumbered = False
    for root, folders, files in os.walk(path):
        depth = len(Path(root).relative_to(path).parts)
        if depth >= 3:
            folders.clear()
        folders.sort()
        for name in sorted(files):
            if name.startswith("."):
                continue
            file = Path(root) / name
            stamps.append(_stamp(file, str(file.relative_to(path))))
            if depth == 0 and name == CONFIG_FILE:
                config = file
            elif depth == 0 and file.suffix == SUFFIX:
                unnumbered = True
        if depth == 0:
            for name in folders:
                if name.isdigit() and 0 < int(name) <= MAX_VERSION and str(int(name)) == name:
                    versions[int(name)] = path / name
                    stamps.append((name, 0, 0))
    if not versions and unnumbered:
        versions[UNNUMBERED] = path
    if not versions and config is None:
        return None
    return ModelSource(path.name, path, versions, config, tuple(sorted(stamps)))


def _stamp(path: Path, name: str) -> tuple[str, int, int]:
    status = path.stat()
    return name, status.st_size, status.st_mtime_ns


def model_file(source: ModelSource, version: int, file_name: str) -> Path:
    """The model's file of one version. Raises NoSuchFile."""
    place = source.versions[version]
    if place.is_file():
        return place
    file = place / file_name
    if not file.is_file():
        others = sorted(p.name for p in place.glob(f"*{SUFFIX}"))
        raise NoSuchFile(
            "the version has no model file", file=str(file), found=", ".join(others) or "no .onnx file",
            hint="Name it in config.pbtxt: default_model_filename." if others else None,
        )  # fmt: skip
    return file
