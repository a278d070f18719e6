"""The architecture: imports between Whet's packages point strictly down, and rooms stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "whet"

# From the bottom up. Packages of one line may not import each other.
LAYERS: list[set[str]] = [
    {"version"},
    {"errors"},
    {"config", "dtypes"},
    {"graph"},
    {"formats"},
    {"ops"},
    {"passes"},
    {"codegen"},
    {"kernels"},
    {"runtime"},
    {"compiler"},
    {"tuning"},
    {"providers"},
    {"engine", "profiling"},
    {"session"},
    {"capi", "transformers", "quantization", "verify"},
    {"bench", "shim", "demo"},
    {"server", "loadgen"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# Only these may handle protobufs: the format layer, the two files that wrap `onnx`'s kernels and inference, and the
# server's interface files.
PROTOBUF_FILES = {
    "ops/onnx_kernels.py",
    "ops/onnx_infer.py",
    "server/protocol/messages.py",
    "server/repository/config_file.py",
    "server/repository/config_message.py",
}
MAX_LINES = 600

FILES = sorted(SOURCE.rglob("*.py"))


def _imports(tree: ast.AST) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            found.append((node.module or "", node.lineno))
    return found


def _violations(package: str, text: str) -> list[str]:
    wrong = []
    for module, line in _imports(ast.parse(text)):
        if not module.startswith("whet."):
            continue
        target = module.split(".")[1]
        if target != package and RANK[target] >= RANK[package]:
            wrong.append(f"line {line}: {package} imports {module}, which lies no lower")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    package = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if package == "__init__":
        return
    assert package in RANK, f"{package} has no place in the layers"
    assert _violations(package, path.read_text()) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_only_the_format_layer_handles_protobufs(path: Path) -> None:
    name = path.relative_to(SOURCE).as_posix()
    if name.startswith("formats/onnx/") or name in PROTOBUF_FILES:
        return
    imports = [m for m, _ in _imports(ast.parse(path.read_text()))]
    # Schemas (`onnx.defs`) are no protobufs; the operator layer may look them up.
    allowed = {"onnx.defs"} if name.startswith("ops/") else set()
    used = [m for m in imports if m.split(".")[0] in {"onnx", "google"} and m not in allowed]
    assert used == []


def test_an_upward_import_is_found() -> None:
    assert _violations("graph", "import os\nfrom whet.passes.base import Pass\n") == [
        "line 2: graph imports whet.passes.base, which lies no lower"
    ]
    assert _violations("cli", "from whet.graph import Graph\n") == []


def _modules() -> dict[str, set[str]]:
    """Every module of Whet with the modules that it imports anywhere, inside functions too."""
    paths = {}
    for path in FILES:
        parts = path.relative_to(SOURCE).with_suffix("").parts
        paths[".".join(("whet", *parts)).removesuffix(".__init__")] = path
    graph = {}
    for name, path in paths.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    found.add(full if full in paths else node.module)
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
        graph[name] = {target for target in found if target in paths and target != name}
    return graph


def _cycle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, or nothing."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph.get(name, ())):
            if found := visit(target, [*path, name]):
                return found
        done.add(name)
        return []

    for name in sorted(graph):
        if found := visit(name, []):
            return found
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert _cycle(_modules()) == []


def test_a_circle_is_found() -> None:
    assert _cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
