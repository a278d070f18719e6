"""Initializers and external data that are wrong: each gives a typed error that names tensor, found and expected."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.bad_models import F, info, model, refused
from whet.errors import (
    InvalidGraph,
    NoSuchFile,
    ResourceExhausted,
    WhetError,
)
from whet.formats.onnx import load_model

# Initializers


def with_tensor(tensor: onnx.TensorProto) -> onnx.ModelProto:
    tensor.name = tensor.name or "w"
    node = helper.make_node("Identity", [tensor.name], ["y"])
    return model([node], [tensor], inputs=[], outputs=[info("y", [])])


def raw(code: int, dims: list[int], data: bytes) -> onnx.ModelProto:
    return with_tensor(onnx.TensorProto(name="w", data_type=code, dims=dims, raw_data=data))


def test_unknown_data_type() -> None:
    refused(raw(77, [1], b"1234"), "data type 77", "value: w")
    refused(raw(0, [1], b"1234"), "without an element type", "value: w")
    refused(model([helper.make_node("Relu", ["x"], ["y"])], inputs=[info("x", code=77)]), "data type 77", "value: x")


def test_negative_dim() -> None:
    refused(raw(F, [2, -3], bytes(24)), "negative dimension", "[2, -3]", "value: w")


def test_dims_past_63_bits() -> None:
    refused(raw(F, [2**32, 2**32], b""), "63 bits", "value: w")
    refused(raw(F, [2**40, 2**40, 0], b""), "63 bits", "value: w")


def test_too_many_dims() -> None:
    refused(raw(F, [1] * 65, bytes(4)), "too many dimensions", "Limits.rank")


@pytest.mark.parametrize("length", [4, 23])
def test_raw_data_too_short(length: int) -> None:
    refused(raw(F, [2, 3], bytes(length)), "too short", f"found: {length} bytes", "24 bytes", "value: w")


def test_raw_data_too_long() -> None:
    refused(raw(F, [2, 3], bytes(28)), "too long", "found: 28 bytes")
    refused(raw(F, [500], bytes(2004)), "too long", "found: 2004 bytes")
    refused(raw(F, [], b""), "too short")


def test_raw_data_not_a_multiple() -> None:
    refused(raw(F, [2, 3], bytes(26)), "not a multiple of the element size 4")
    refused(raw(F, [500], bytes(1999)), "not a multiple of the element size 4")


def test_raw_and_typed_data() -> None:
    tensor = onnx.TensorProto(name="w", data_type=F, dims=[1], raw_data=bytes(4), float_data=[1.0])
    refused(with_tensor(tensor), "both raw and typed", "float_data", "value: w")


def test_typed_data_of_the_wrong_field_or_count() -> None:
    refused(with_tensor(onnx.TensorProto(data_type=F, dims=[1], int32_data=[1])), "wrong field", "float_data")
    refused(with_tensor(onnx.TensorProto(data_type=F, dims=[2], float_data=[1.0])), "number of elements", "found: 1 in")
    refused(with_tensor(onnx.TensorProto(data_type=F, dims=[2])), "number of elements", "expected: 2 for float32[2]")
    refused(with_tensor(onnx.TensorProto(data_type=TensorProto.STRING, dims=[2], string_data=[b"a"])), "elements")
    refused(with_tensor(onnx.TensorProto(data_type=TensorProto.STRING, dims=[1], raw_data=b"a")), "strings as raw")


@pytest.mark.parametrize(
    ("code", "number"),
    [(TensorProto.UINT8, 256), (TensorProto.INT8, -129), (TensorProto.FLOAT16, 65536), (TensorProto.INT4, 256)],
)
def test_elements_that_do_not_fit(code: int, number: int) -> None:
    refused(with_tensor(onnx.TensorProto(data_type=code, dims=[1], int32_data=[number])), "does not fit", str(number))


def test_odd_int4_count() -> None:
    good = load_model(raw(TensorProto.INT4, [3], b"\x21\x0f").SerializeToString())
    assert good.graph.outputs[0].producer is not None
    constant = good.graph.nodes[0].inputs[0]
    assert constant is not None
    assert constant.array is not None
    np.testing.assert_array_equal(constant.array.astype(np.int32), [1, 2, -1])
    refused(raw(TensorProto.INT4, [3], b"\x21"), "too short", "expected: 2 bytes for int4[3]")
    refused(raw(TensorProto.INT4, [3], b"\x21\x0f\x00"), "too long")


def test_segments() -> None:
    tensor = onnx.TensorProto(name="w", data_type=F, dims=[1], raw_data=bytes(4))
    tensor.segment.begin, tensor.segment.end = 0, 1
    with pytest.raises(WhetError, match="segments"):
        load_model(with_tensor(tensor).SerializeToString())


def test_sparse_tensors() -> None:
    def sparse(dims: list[int], values: Any, indices: Any) -> onnx.ModelProto:
        proto = model([helper.make_node("Relu", ["w"], ["y"])], inputs=[], outputs=[info("y", dims)])
        proto.graph.sparse_initializer.add(
            values=numpy_helper.from_array(np.array(values, np.float32), "w"),
            indices=numpy_helper.from_array(np.array(indices), "w_indices"),
            dims=dims,
        )
        return proto

    refused(sparse([2, 3], [1.0], [6]), "index outside", "value: w")
    refused(sparse([2, 3], [1.0], [-1]), "index outside")
    refused(sparse([2, 3], [1.0], [[0, 3]]), "index outside")
    refused(sparse([2, 3], [1.0, 2.0], [1]), "sparse indices", "int64[2]")
    refused(sparse([2, 3], [1.0], [1.0]), "sparse indices", "float64[1]")
    refused(sparse([10**6, 10**6], [1.0], [5]), "Limits.tensor_bytes", kind=ResourceExhausted)


# External data


def external(folder: Path, entries: dict[str, str], *, dims: tuple[int, ...] = (2, 3)) -> Path:
    tensor = onnx.TensorProto(name="w", data_type=F, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, text in entries.items():
        tensor.external_data.add(key=key, value=text)
    path = folder / "model.onnx"
    path.write_bytes(with_tensor(tensor).SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with a data file inside and a secret outside."""
    inner = tmp_path / "models"
    inner.mkdir()
    (inner / "sub").mkdir()
    weights = np.arange(6, dtype=np.float32).tobytes()
    (inner / "w.bin").write_bytes(weights)
    (inner / "sub" / "w.bin").write_bytes(weights)
    (tmp_path / "secret.bin").write_bytes(weights)
    return inner


def refuse_external(path: Path, *parts: str, kind: type[WhetError] = InvalidGraph) -> None:
    with pytest.raises(kind) as caught:
        load_model(path)
    for part in (*parts, "value: w"):
        assert part in str(caught.value), f"{part!r} not in {caught.value}"


@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin", "./w.bin", "sub//w.bin"])
def test_external_data_in_the_folder(folder: Path, location: str) -> None:
    loaded = load_model(external(folder, {"location": location, "offset": "0", "length": "24"}))
    constant = loaded.graph.nodes[0].inputs[0]
    assert constant is not None
    np.testing.assert_array_equal(constant.array, np.arange(6, dtype=np.float32).reshape(2, 3))


@pytest.mark.parametrize("location", ["../secret.bin", "sub/../../secret.bin", "sub/../w.bin", "..\\secret.bin", ".."])
def test_external_data_outside_of_the_folder(folder: Path, location: str) -> None:
    refuse_external(external(folder, {"location": location}), "leaves the model's folder", repr(location))


def test_absolute_external_location(folder: Path, tmp_path: Path) -> None:
    refuse_external(external(folder, {"location": str(tmp_path / "secret.bin")}), "absolute")
    refuse_external(external(folder, {"location": "C:\\secret.bin"}), "absolute")


def test_nul_in_external_location(folder: Path) -> None:
    refuse_external(external(folder, {"location": "w.bin\0.txt"}), "NUL")


def test_missing_external_location(folder: Path) -> None:
    refuse_external(external(folder, {}), "without a location")
    refuse_external(external(folder, {"location": "gone.bin"}), "missing", "gone.bin", kind=NoSuchFile)


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege on Windows")
def test_external_symlinks(folder: Path, tmp_path: Path) -> None:
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    refuse_external(external(folder, {"location": "link.bin"}), "symbolic link")
    (folder / "up").symlink_to(tmp_path)
    refuse_external(external(folder, {"location": "up/secret.bin"}), "symbolic link")
    (folder / "dangling").symlink_to(tmp_path / "nothing")
    refuse_external(external(folder, {"location": "dangling"}), "symbolic link")


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege on Windows")
def test_the_folder_itself_may_be_reached_through_a_link(folder: Path, tmp_path: Path) -> None:
    external(folder, {"location": "w.bin"})
    (tmp_path / "alias").symlink_to(folder)
    assert len(load_model(tmp_path / "alias" / "model.onnx").graph) == 1


def test_external_hardlink(folder: Path, tmp_path: Path) -> None:
    os.link(tmp_path / "secret.bin", folder / "hard.bin")
    refuse_external(external(folder, {"location": "hard.bin"}), "hard links")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_external_special_files(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(NoSuchFile, match="a FIFO"):
        load_model(external(folder, {"location": "pipe"}))
    with pytest.raises(NoSuchFile, match="a directory"):
        load_model(external(folder, {"location": "sub"}))


@pytest.mark.parametrize("text", ["-1", "four", "1.5", "", " 4", "0x4", "9" * 30, "٣"])
@pytest.mark.parametrize("key", ["offset", "length"])
def test_external_numbers(folder: Path, key: str, text: str) -> None:
    refuse_external(external(folder, {"location": "w.bin", key: text}), f"bad {key}")


def test_external_ranges(folder: Path) -> None:
    refuse_external(external(folder, {"location": "w.bin", "offset": "4"}), "past the end", "bytes 4 to 28", "24")
    refuse_external(external(folder, {"location": "w.bin", "length": "20"}), "wrong length", "length 20", "24 bytes")
    petabyte = {"location": "w.bin", "length": str(10**15)}
    refuse_external(external(folder, petabyte), "wrong length", "24 bytes")
    refuse_external(external(folder, petabyte, dims=(250, 10**12)), "past the end", "24, the size of the file")
    (folder / "long.bin").write_bytes(bytes(100))
    refuse_external(external(folder, {"location": "long.bin"}), "wrong size", "100 bytes")


def test_external_and_embedded_data(folder: Path) -> None:
    path = external(folder, {"location": "w.bin"})
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].raw_data = bytes(24)
    path.write_bytes(proto.SerializeToString())
    refuse_external(path, "both external and embedded")


def test_bytes_with_external_data(folder: Path) -> None:
    data = external(folder, {"location": "w.bin"}).read_bytes()
    refused(data, "given as bytes", "value: w", "path")
