"""The catalog of providers, what it says of missing ones, and the shim that stands in for ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

import whet
from whet.errors import EPFail, InvalidArgument
from whet.providers import catalog


def run_python(code: str) -> str:
    """Run `code` in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        return None
class Without:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split('.')[0] in {missing!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(f) for f in sys.meta_path]
"""


def test_names_are_in_order_of_priority_and_all_known() -> None:
    everything = catalog.get_all_providers()
    assert everything[-4:] == ["CPUExecutionProvider", "onnxruntime", "openvino", "ReferenceExecutionProvider"]
    assert len(set(everything)) == len(everything)
    available = whet.get_available_providers()
    assert available == [n for n in everything if n in available]
    assert {"CPUExecutionProvider", "onnxruntime", "openvino", "ReferenceExecutionProvider"} <= set(available)
    known = set(onnxruntime.get_all_providers())
    assert {n for n in onnxruntime.get_available_providers() if n != "AzureExecutionProvider"} <= set(
        everything
    ) & known


def test_a_misspelt_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidArgument, match="Did you mean 'onnxruntime'"):
        catalog.make("onnxruntim", {}, ())
    with pytest.raises(InvalidArgument, match="Did you mean 'CUDAExecutionProvider'"):
        catalog.check_name("CUDAExecutionProvide")


@pytest.mark.parametrize("name", sorted(catalog.ONNXRUNTIME_PROVIDERS))
def test_every_missing_provider_says_what_to_install(name: str) -> None:
    if catalog.is_available(name):
        pytest.skip("it is installed")
    with pytest.raises(EPFail, match=f"{name}.*pip install {catalog.ONNXRUNTIME_PROVIDERS[name]}"):
        catalog.make(name, {}, ())


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_a_missing_delegate_says_what_to_install(package: str) -> None:
    code = (
        BLOCK.format(missing={package})
        + f"""
import whet
from whet.errors import EPFail
assert {package!r} not in whet.get_available_providers()
from whet.providers import catalog
try:
    catalog.make({package!r}, {{}}, ())
except EPFail as error:
    print(error)
from whet.providers.delegates import onnxruntime, openvino
try:
    {"onnxruntime.OnnxRuntimeDelegate" if package == "onnxruntime" else "openvino.OpenVINODelegate"}()
except EPFail as error:
    print(error)
"""
    )
    first, second = run_python(code).splitlines()
    assert f"pip install 'whet[{package}]'" in first
    assert f"pip install 'whet[{package}]'" in second


def test_a_broken_onnxruntime_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("raise OSError('libgone.so: no such file')")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from whet.errors import EPFail
from whet.providers.delegates.onnxruntime import installed_providers
for _ in range(2):
    try:
        installed_providers()
    except EPFail as error:
        print(error)
"""
    lines = run_python(code).splitlines()
    assert len(lines) == 2
    assert all("cannot be imported" in line and "libgone.so" in line for line in lines)


SHIM = """
{before}
import whet
whet.install_as_onnxruntime()
whet.install_as_onnxruntime()
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, RuntimeException, NoSuchFile
from onnxruntime.capi import _pybind_state, onnxruntime_pybind11_state
import onnxruntime.capi.onnxruntime_inference_collection as collection
from onnxruntime.transformers.optimizer import optimize_model
assert ort.InferenceSession is whet.InferenceSession
assert ort.__version__.split(".")[0] == "1" and whet.__version__ != ort.__version__
assert "SessionOptions" in dir(ort)
assert ort.capi.onnxruntime_pybind11_state.InvalidArgument is whet.errors.InvalidArgument
assert _pybind_state.OrtValue is whet.OrtValue is collection.OrtValue
try:
    ort.InferenceSession("nowhere.onnx")
except NoSuchFile as error:
    print("missing file")
import numpy as np
from whet.formats.onnx import from_text, to_proto
text = '<ir_version: 10, opset_import: ["" : 21]> g (float[n] x) => (float[n] y) {{ y = Neg(x) }}'
content = to_proto(from_text(text)).SerializeToString()
delegated = ort.InferenceSession(content, providers=["onnxruntime"])
print(delegated.placement.by_provider, delegated.run(None, {{"x": np.array([1.0], np.float32)}})[0].tolist())
import onnxruntime
assert onnxruntime is ort
from whet.providers.delegates.genuine import real_onnxruntime
print(real_onnxruntime().__name__, real_onnxruntime() is not whet)
{after}
"""


@pytest.mark.parametrize("first", ["whet", "onnxruntime"])
def test_the_shim_stands_in_and_the_delegate_still_finds_the_real_package(first: str) -> None:
    before, after = "", ""
    if first == "onnxruntime":
        before, after = "import onnxruntime as real", "assert real_onnxruntime() is real\nassert real is not whet"
    lines = run_python(SHIM.format(before=before, after=after)).splitlines()
    assert lines == ["missing file", "{'onnxruntime': 1} [-1.0]", "onnxruntime True"]


def test_the_shim_without_onnxruntime_has_no_delegate() -> None:
    code = (
        BLOCK.format(missing={"onnxruntime"})
        + """
import whet
whet.install_as_onnxruntime()
import onnxruntime
print("onnxruntime" in onnxruntime.get_available_providers())
"""
    )
    assert run_python(code) == "False\n"


def test_the_names_of_the_capi_modules_are_onnxruntimes() -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as theirs

    from whet.capi import onnxruntime_pybind11_state as ours

    classes = {
        n for n in dir(theirs) if isinstance(getattr(theirs, n), type) and issubclass(getattr(theirs, n), Exception)
    }
    assert classes <= set(ours.__all__)
    for name in classes:
        assert issubclass(getattr(ours, name), Exception)
    assert set(ours.__all__) - {"SparseTensor"} <= set(dir(theirs)) | {"get_all_providers"}
