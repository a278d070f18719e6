"""What lies in a model repository. Three forms, which may be mixed in one folder:

    model.onnx                          a bare model, named after its file
    name/model.onnx                     a folder with one unnumbered version, and maybe config.pbtxt
    name/1/model.onnx, name/2/...       Triton's: numbered versions, and maybe config.pbtxt

A repository that is itself a file is one bare model; one that is itself the folder of a model is that model.

Symbolic links are followed inside the repository (Kubernetes mounts volumes as links to `..data`), and refused where
they lead out of it: whoever may write one link must not thereby make the server read any file of its machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from whet.errors import InvalidArgument, NoSuchFile, WhetError

CONFIG_FILE = "config.pbtxt"
SUFFIX = ".onnx"
UNNUMBERED = 1
MAX_VERSION = (1 << 63) - 1
MAX_DEPTH = 3
"""Folders below a model's own that are looked at for changes."""
MAX_FILES = 100_000
_SETTLED_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model in a repository. `versions`: number to the folder, or the file of a bare model. `config`: its file.

    `stamp` changes when any of its files does. An ensemble has no files of its own: its `versions` are empty folders,
    or none. `problem`: why the model cannot be served, whatever its files hold.
    """

    name: str
    folder: Path
    versions: Mapping[int, Path]
    config: Path | None
    stamp: tuple[tuple[str, int, int, int], ...]
    problem: WhetError | None = None


def scan(repository: Path, only: str | None = None) -> dict[str, ModelSource]:
    """The models of a repository by name. Raises NoSuchFile for a folder that is not there.

    What is wrong with one model is its `problem` and does not keep the others from being found. `only`: look at this
    model alone, which takes no longer where there are many.
    """
    root = _root(repository)
    if root.is_file():
        bare = _bare(repository)
        found = {bare.name: bare}
    elif _is_model_folder(root):
        source = _folder(root, root)
        found = {source.name: source} if source is not None else {}
    else:
        found = _scan_folder(repository, root, _names(root) if only is None else _entries_of(root, only))
    return found if only is None else {n: s for n, s in found.items() if n == only}


def _scan_folder(repository: Path, root: Path, names: list[str]) -> dict[str, ModelSource]:
    """The models of these entries of a folder of models."""
    found: dict[str, ModelSource] = {}
    for name in names:
        path = root / name
        try:
            source = _entry(root, path)
        except FileNotFoundError:
            continue  # taken away between the listing and now
        except WhetError as problem:
            source = _refused(path, problem)
        except OSError as error:
            source = _refused(
                path, NoSuchFile("the model's files cannot be read", file=str(path), found=error.strerror)
            )
        if source is None:
            continue
        if source.name in found:
            places = f"{found[source.name].folder.name}, {path.name}"
            twice = InvalidArgument("two models of one name", file=str(repository), value=source.name, found=places)
            source = _refused(path, twice, source.name)
        found[source.name] = source
    return found


def _entries_of(root: Path, name: str) -> list[str]:
    """The entries that may be a model of this name. A name that comes from a request leads nowhere else."""
    if not name or name.startswith(".") or "/" in name or "\\" in name or "\0" in name or not _is_text(name):
        return []
    return sorted({n for n in (name, f"{name}{SUFFIX}", f"model{SUFFIX}") if os.path.lexists(root / n)})


def model_names(repository: Path) -> list[str]:
    """The names of what may be models, without a look into them: cheap. Empty for a folder that cannot be read."""
    try:
        root = _root(repository)
        if root.is_file() or _is_model_folder(root):
            return list(scan(repository))
        return sorted(
            {
                Path(n).stem if n.endswith(SUFFIX) else n
                for n in _names(root)
                if n.endswith(SUFFIX) or os.path.isdir(root / n)
            }
        )
    except (WhetError, OSError):
        return []


class Names:
    """`model_names` of one repository, which looks again only where the folder has changed: one question to the file
    system, for who asks often and must not wait."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._known: list[str] = []
        self._stamp: tuple[int, int, int] | None = None

    def __call__(self) -> list[str]:
        try:
            status = os.stat(self._repository)
        except OSError:
            self._stamp = None
            return []
        stamp = (status.st_dev, status.st_ino, status.st_mtime_ns)
        if stamp != self._stamp:
            self._known = model_names(self._repository)
            # A folder that changed just now may change again without another time stamp. And whether folders of
            # versions alone are one model is seen in them, not here.
            settled = time.time_ns() - status.st_mtime_ns > _SETTLED_NS
            self._stamp = stamp if settled and not all(map(_version, self._known)) else None
        return self._known


def _root(repository: Path) -> Path:
    try:
        return repository.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise NoSuchFile("there is no such model repository", file=str(repository)) from error


def _names(root: Path) -> list[str]:
    """The entries that are looked at, rising. Names that no request can say are left out."""
    try:
        names = os.listdir(root)
    except OSError as error:
        raise NoSuchFile("the model repository cannot be read", file=str(root), found=error.strerror) from error
    return sorted(n for n in names if not n.startswith(".") and _is_text(n))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_model_folder(root: Path) -> bool:
    """Whether somebody named a model's own folder and not the one that holds it."""
    if (root / CONFIG_FILE).is_file():
        return True
    names = _names(root)
    return bool(names) and all(_version(n) and (root / n / f"model{SUFFIX}").is_file() for n in names)


def _entry(root: Path, path: Path) -> ModelSource | None:
    if path.is_symlink():
        _refuse_escape(root, path)
    if path.is_dir():
        return _folder(root, path)
    return _bare(path) if path.suffix == SUFFIX and path.is_file() else None


def _refused(path: Path, problem: WhetError, name: str | None = None) -> ModelSource:
    name = name or (path.stem if path.suffix == SUFFIX else path.name)
    return ModelSource(name, path, {}, None, ((str(problem), 0, 0, 0),), problem)


def _refuse_escape(root: Path, link: Path) -> None:
    """Raise InvalidArgument for a link that leads out of the repository, FileNotFoundError for one to nothing."""
    try:
        target = link.resolve(strict=True)
    except RuntimeError as error:
        raise InvalidArgument("a link leads to itself", file=str(link)) from error
    if not target.is_relative_to(root):
        raise InvalidArgument(
            "a link leads out of the model repository", file=str(link), found=str(target),
            hint="Copy or mount what it stands for into the repository.",
        )  # fmt: skip


def _bare(path: Path) -> ModelSource:
    name = path.stem if path.stem != "model" else path.resolve().parent.name
    return ModelSource(name, path.parent, {UNNUMBERED: path}, None, (_stamp(path, path.name),))


def _version(name: str) -> int:
    """The version that a folder's name says; 0 for none."""
    if not (name.isascii() and name.isdigit()) or name.startswith("0"):
        return 0
    return int(name) if len(name) <= 19 and int(name) <= MAX_VERSION else 0


def _folder(root: Path, path: Path) -> ModelSource | None:
    """The model of a folder; None where nothing in it looks like one."""
    versions: dict[int, Path] = {}
    stamps = []
    config = None
    unnumbered = False
    for place, is_folder in _walk(root, path, MAX_DEPTH):
        at_top = place.parent == path
        relative = str(place.relative_to(path))
        if is_folder:
            if at_top and (number := _version(place.name)):
                versions[number] = place
                stamps.append((relative, 0, 0, 0))
            continue
        stamps.append(_stamp(place, relative))
        if at_top and place.name == CONFIG_FILE:
            config = place
        elif at_top and place.suffix == SUFFIX:
            unnumbered = True
    if not versions and unnumbered:
        versions[UNNUMBERED] = path
    if not versions and config is None:
        return None
    return ModelSource(path.name, path, versions, config, tuple(sorted(stamps)))


def _walk(root: Path, folder: Path, depth: int) -> Iterator[tuple[Path, bool]]:
    """What lies in a folder, and whether it is a folder. Links are followed as far as `depth` goes."""
    count = 0
    left = [(folder, depth)]
    while left:
        at, levels = left.pop()
        with os.scandir(at) as listing:
            entries = list(listing)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            count += 1
            if count > MAX_FILES:
                raise InvalidArgument("too many files for a model", file=str(folder), expected=f"at most {MAX_FILES}")
            place = at / entry.name
            if entry.is_symlink():
                try:
                    _refuse_escape(root, place)
                except FileNotFoundError:
                    continue  # a link to nothing is nothing
            if entry.is_dir():
                yield place, True
                if levels:
                    left.append((place, levels - 1))
            elif entry.is_file():
                yield place, False


def _stamp(path: Path, name: str) -> tuple[str, int, int, int]:
    status = path.stat()
    return name, status.st_size, status.st_mtime_ns, status.st_ino


def model_file(source: ModelSource, version: int, file_name: str) -> Path:
    """The model's file of one version, without links in its path. Raises NoSuchFile."""
    place = source.versions[version]
    if place.is_file():
        return place.resolve()
    file = place / file_name
    if not file.is_file():
        others = sorted(p.name for p in place.glob(f"*{SUFFIX}"))
        raise NoSuchFile(
            "the version has no model file", file=str(file), found=", ".join(others) or "no .onnx file",
            hint="Name it in config.pbtxt: default_model_filename." if others else None,
        )  # fmt: skip
    return file.resolve()
