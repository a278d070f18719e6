"""What lies in a model repository. Three forms, which may be mixed in one folder:

    digits.onnx                         a bare model, named after its file; model.onnx after the folder that it is in
    name/model.onnx                     a folder with one unnumbered version, and maybe config.pbtxt
    name/1/model.onnx, name/2/...       Triton's: numbered versions, and maybe config.pbtxt

A repository that is itself a file is one bare model; one that is itself the folder of a model is that model.

A repository of one model may be told another name for it.

Symbolic links are followed inside the repository (Kubernetes mounts volumes as links to `..data`), and refused where
they lead out of it (`links`): whoever may write one link must not thereby make the server read any file of its machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from whet.errors import InvalidArgument, NoSuchFile, WhetError
from whet.server.repository.links import inside, real

CONFIG_FILE = "config.pbtxt"
SUFFIX = ".onnx"
NAMELESS = "model"
"""What a file is called that is named after its folder."""
NO_MODELS = ("lost+found",)
"""Folders that file systems make, and that only root may read."""
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
    or none. `problem`: why the model cannot be served, whatever its files hold. `root`: the repository that its links
    must stay in; None for a file that is the repository. `is_renamed`: whoever started the server gave it its name.
    """

    name: str
    folder: Path
    versions: Mapping[int, Path]
    config: Path | None
    stamp: tuple[tuple[str, int, int, int], ...]
    problem: WhetError | None = None
    root: Path | None = None
    is_renamed: bool = False


def scan(repository: Path, only: str | None = None, model_name: str | None = None) -> dict[str, ModelSource]:
    """The models of a repository by name. Raises NoSuchFile for a folder that is not there.

    What is wrong with one model is its `problem` and does not keep the others from being found. `only`: look at this
    model alone, which takes no longer where there are many. `model_name`: what the repository's only model is called;
    raises InvalidArgument where there are several.
    """
    if model_name is not None:
        return {n: s for n, s in _renamed(repository, model_name).items() if only in (None, n)}
    root = real(repository)
    if root.is_file():
        bare = _bare(repository)
        found = {bare.name: bare}
    elif _is_model_folder(root):
        source = _folder(root, root)
        found = {source.name: source} if source is not None else {}
    else:
        found = _scan_folder(repository, root, _names(root) if only is None else _entries_of(root, only))
    return found if only is None else {n: s for n, s in found.items() if n == only}


def _renamed(repository: Path, name: str) -> dict[str, ModelSource]:
    found = scan(repository)
    if len(found) > 1:
        raise InvalidArgument(
            "a name is given for one model, and the repository holds several", file=str(repository),
            value=f"--model-name {name}", found=", ".join(sorted(found)),
            hint="Leave --model-name out, or serve one model's own file or folder.",
        )  # fmt: skip
    renamed = [replace(source, name=name, is_renamed=True) for source in found.values()]
    return {source.name: source for source in renamed}


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


def is_name(name: str) -> bool:
    """Whether a model can be called so."""
    return bool(name) and name[0] != "." and not {"/", "\\", "\0"} & set(name) and _is_text(name)


def _entries_of(root: Path, name: str) -> list[str]:
    """The entries that may be a model of this name. A name that comes from a request leads nowhere else."""
    if not is_name(name):
        return []
    return sorted({n for n in (name, f"{name}{SUFFIX}", f"{NAMELESS}{SUFFIX}") if os.path.lexists(root / n)})


def model_names(repository: Path, model_name: str | None = None) -> list[str]:
    """The names of what may be models, without a look into them: cheap. Empty for a folder that cannot be read.

    `model_name`: what the repository's only model is called.
    """
    try:
        root = real(repository)
        if root.is_file() or _is_model_folder(root):
            names = list(scan(repository))
        else:
            names = sorted({_name(root / n) for n in _names(root) if n.endswith(SUFFIX) or os.path.isdir(root / n)})
    except (WhetError, OSError):
        return []
    return names if model_name is None else [model_name][: len(names)]


class Names:
    """`model_names` of one repository, which looks again only where the folder has changed: one question to the file
    system, for who asks often and must not wait."""

    def __init__(self, repository: Path, model_name: str | None = None) -> None:
        self._repository = repository
        self._model_name = model_name
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
            self._known = model_names(self._repository, self._model_name)
            # A folder that changed just now may change again without another time stamp. And whether folders of
            # versions alone are one model is seen in them, not here.
            settled = time.time_ns() - status.st_mtime_ns > _SETTLED_NS
            self._stamp = stamp if settled and not all(map(_version, self._known)) else None
        return self._known


def _names(root: Path) -> list[str]:
    """The entries that are looked at, rising. Names that no request can say are left out."""
    try:
        names = os.listdir(root)
    except OSError as error:
        raise NoSuchFile("the model repository cannot be read", file=str(root), found=error.strerror) from error
    return sorted(n for n in names if not n.startswith(".") and n not in NO_MODELS and _is_text(n))


def _name(path: Path) -> str:
    """What the model of a file or folder is called."""
    if path.suffix != SUFFIX or path.is_dir():
        return path.name
    return _called(path.stem, path.parent)


def _called(stem: str, folder: Path) -> str:
    return (folder.name or stem) if stem == NAMELESS else stem


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
        inside(root, path)
    if path.is_dir():
        return _folder(root, path)
    return _bare(path, root) if path.suffix == SUFFIX and path.is_file() else None


def _refused(path: Path, problem: WhetError, name: str | None = None) -> ModelSource:
    return ModelSource(name or _name(path), path, {}, None, ((str(problem), 0, 0, 0),), problem)


def _bare(path: Path, root: Path | None = None) -> ModelSource:
    """The model of a file: one in the folder `root`, or the one that is the repository, whatever it is called."""
    name = _called(path.stem, root or real(path.parent))
    return ModelSource(name, path.parent, {UNNUMBERED: path}, None, (_stamp(path, path.name),), root=root)


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
    return ModelSource(path.name, path, versions, config, tuple(sorted(stamps)), root=root)


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
                    inside(root, place)
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
    """The model's file of one version, without links in its path. Raises NoSuchFile, and InvalidArgument for a link
    that leads out of the repository by now."""
    place = source.versions[version]
    if place.is_file():
        return _unlinked(source, place)
    file = place / file_name
    if not file.is_file():
        others = sorted(p.name for p in place.glob(f"*{SUFFIX}"))
        raise NoSuchFile(
            "the version has no model file", file=str(file), found=", ".join(others) or "no .onnx file",
            hint="Name it in config.pbtxt: default_model_filename." if others else None,
        )  # fmt: skip
    return _unlinked(source, file)


def _unlinked(source: ModelSource, file: Path) -> Path:
    return real(file) if source.root is None else inside(source.root, file)
