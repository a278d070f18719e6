"""OrtValue and OrtDevice: what they hold, whose memory it is, and DLPack both ways."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest

import whet
from tests.session_models import ADD, session
from whet import dtypes
from whet.errors import InvalidArgument, NotImplemented, ResourceExhausted

X = np.arange(6, dtype=np.float32).reshape(2, 3)
NATIVE = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]


@pytest.mark.parametrize("kind", NATIVE)
def test_a_value_is_described_as_onnxruntime_does(kind: str) -> None:
    array = np.array([[1, 0, 1]], kind)
    ours, theirs = whet.OrtValue.ortvalue_from_numpy(array), onnxruntime.OrtValue.ortvalue_from_numpy(array)
    for name in ("shape", "data_type", "element_type", "device_name", "has_value", "is_tensor", "is_tensor_sequence"):
        assert getattr(ours, name)() == getattr(theirs, name)(), name
    assert not ours.is_sparse_tensor()
    np.testing.assert_array_equal(ours.numpy(), array)
    assert ours.tensor_size_in_bytes() == theirs.tensor_size_in_bytes() == array.nbytes


@pytest.mark.parametrize("kind", ["U3", "S3", "O"])
def test_values_of_text(kind: str) -> None:
    value = whet.OrtValue.ortvalue_from_numpy(np.array([["a", "b"]], object).astype(kind))
    assert (value.shape(), value.data_type(), value.element_type()) == ([1, 2], "tensor(string)", 8)
    assert value.numpy().tolist() == [["a", "b"]]


@pytest.mark.parametrize("lib", [whet, onnxruntime], ids=["whet", "onnxruntime"])
def test_a_value_borrows_the_array(lib: Any) -> None:
    array = X.copy()
    value = lib.OrtValue.ortvalue_from_numpy(array)
    assert value.data_ptr() == array.ctypes.data
    array[0, 0] = 99
    assert value.numpy()[0, 0] == 99
    assert np.asarray(value)[0, 0] == 99
    assert np.shares_memory(np.asarray(value), array)
    assert not np.shares_memory(np.array(value), array)
    assert np.asarray(value, np.float64).dtype == np.float64


@pytest.mark.parametrize("array", [X.T, X[::-1], X[:, ::2], X.astype(">f4"), np.broadcast_to(X[:1], (4, 3))])
def test_other_layouts_are_copied_into_order(array: Any) -> None:
    value = whet.OrtValue.ortvalue_from_numpy(array)
    np.testing.assert_array_equal(value.numpy(), array)
    assert value.numpy().flags.c_contiguous
    assert value.numpy().dtype.isnative


@pytest.mark.parametrize("code", [t.onnx_code for t in dtypes.ALL if t is not dtypes.STRING])
def test_new_tensors_of_every_type(code: int) -> None:
    value = whet.OrtValue.ortvalue_from_shape_and_type([2, 3], code)
    assert value.element_type() == code
    assert value.shape() == [2, 3]
    assert not any(value.numpy().tobytes())
    assert value.tensor_size_in_bytes() == (6 * dtypes.BY_CODE[code].bits + 7) // 8


def test_new_tensors_are_checked() -> None:
    make = whet.OrtValue.ortvalue_from_shape_and_type
    assert make((), np.int64).numpy().shape == ()
    assert make([2], 8).numpy().tolist() == ["", ""]
    with pytest.raises(InvalidArgument, match="non-negative"):
        make([2, -1], np.float32)
    with pytest.raises(InvalidArgument, match="no such element type"):
        make([2], 99)
    with pytest.raises(InvalidArgument, match="no such element type"):
        make([2], "M8[s]")
    with pytest.raises(ResourceExhausted, match="too large"):
        make([1 << 40, 1 << 40], np.float32)
    with pytest.raises(NotImplemented, match="device"):
        make([2], np.float32, "cuda", 0)
    with pytest.raises(InvalidArgument, match="Did you mean 'cuda'"):
        make([2], np.float32, "cudaa", 0)
    made = session(ADD).create_ortvalue_from_shape_and_type([4], np.int8, "cpu")
    assert (made.shape(), made.data_type()) == ([4], "tensor(int8)")


def test_arrays_without_an_onnx_type() -> None:
    for array in (np.zeros(2, "M8[s]"), np.zeros(2, np.longdouble), np.zeros(2, object), np.zeros(2, [("a", "f4")])):
        with pytest.raises(InvalidArgument) as caught:
            whet.OrtValue.ortvalue_from_numpy(array)
        assert caught.value.value == "numpy_obj"


def test_types_that_numpy_lacks() -> None:
    bits = np.array([0x3F80, 0xC000], np.uint16)
    value = whet.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx.TensorProto.BFLOAT16)
    assert value.data_type() == "tensor(bfloat16)"
    assert value.data_ptr() == bits.ctypes.data
    assert value.numpy().astype(np.float32).tolist() == [1, -2]
    run = session("g (bfloat16[N] x) => (float[N] y) { y = Cast<to = 1>(x) }")
    np.testing.assert_array_equal(run.run(None, {"x": value})[0], [1, -2])
    np.testing.assert_array_equal(run.run(None, {"x": bits.view(ml_dtypes.bfloat16)})[0], [1, -2])
    with pytest.raises(InvalidArgument, match="element sizes differ"):
        whet.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx.TensorProto.FLOAT)
    with pytest.raises(InvalidArgument, match="element sizes differ"):
        whet.OrtValue.ortvalue_from_numpy_with_onnx_type(np.array(["a"], object), onnx.TensorProto.INT64)


def test_values_are_updated_in_place() -> None:
    value = whet.OrtValue.ortvalue_from_numpy(X.copy())
    address = value.data_ptr()
    value.update_inplace(X.T.copy().T * 2)
    np.testing.assert_array_equal(value.numpy(), 2 * X)
    value.update_inplace(whet.OrtValue.ortvalue_from_numpy(X))
    np.testing.assert_array_equal(value.numpy(), X)
    assert value.data_ptr() == address
    for wrong in (X[:1], X.astype(np.float64), X.T):
        with pytest.raises(InvalidArgument, match="does not fit"):
            value.update_inplace(wrong)
    with pytest.raises(InvalidArgument, match="not an array"):
        value.update_inplace([1])  # type: ignore[arg-type]
    frozen = X.copy()
    frozen.flags.writeable = False
    with pytest.raises(InvalidArgument, match="read-only"):
        whet.OrtValue.ortvalue_from_numpy(frozen).update_inplace(X)


def test_tensors_are_copied_in_batches() -> None:
    sources = [whet.OrtValue.ortvalue_from_numpy(X + i) for i in range(2)]
    targets = [whet.OrtValue.ortvalue_from_shape_and_type([2, 3], np.float32) for _ in range(2)]
    whet.copy_tensors(sources, targets)
    np.testing.assert_array_equal(targets[1].numpy(), X + 1)
    with pytest.raises(InvalidArgument, match="differ in number"):
        whet.copy_tensors(sources, targets[:1])


@pytest.mark.parametrize("kind", NATIVE)
def test_dlpack_to_numpy_and_back(kind: str) -> None:
    array = np.array([[1, 0, 1]], kind)
    value = whet.OrtValue.ortvalue_from_numpy(array)
    assert value.__dlpack_device__() == (1, 0)
    view = np.from_dlpack(value)
    np.testing.assert_array_equal(view, array)
    assert np.shares_memory(view, array)
    back = whet.OrtValue.from_dlpack(array)
    assert back.data_ptr() == array.ctypes.data
    assert back.data_type() == value.data_type()
    capsule = whet.OrtValue.from_dlpack(value._ortvalue.to_dlpack())
    assert capsule.data_ptr() == array.ctypes.data


def test_dlpack_between_the_two_runtimes() -> None:
    for source, target in ((whet, onnxruntime), (onnxruntime, whet)):
        for array in (X.copy(), np.array([True, False])):
            if target is onnxruntime and array.dtype == np.bool_:
                continue  # it does not know DLPack's own booleans
            value = source.OrtValue.ortvalue_from_numpy(array)
            passed = target.OrtValue.from_dlpack(value)
            assert passed.data_type() == value.data_type()
            assert passed.data_ptr() == value.data_ptr()
            np.testing.assert_array_equal(passed.numpy(), array)


def test_dlpack_keeps_memory_alive() -> None:
    value = whet.OrtValue.from_dlpack(np.arange(100_000, dtype=np.float64))
    view = np.from_dlpack(whet.OrtValue.ortvalue_from_numpy(np.arange(100_000, dtype=np.float64)))
    junk = [np.full(100_000, -1.0) for _ in range(4)]
    np.testing.assert_array_equal(value.numpy(), np.arange(100_000))
    np.testing.assert_array_equal(view, np.arange(100_000))
    assert len(junk) == 4


def test_read_only_memory_is_never_given_away() -> None:
    frozen = X.copy()
    frozen.flags.writeable = False
    view = np.from_dlpack(whet.OrtValue.ortvalue_from_numpy(frozen))
    np.testing.assert_array_equal(view, X)
    assert not np.shares_memory(view, frozen)


def test_dlpack_is_checked() -> None:
    with pytest.raises(InvalidArgument, match="not a DLPack producer"):
        whet.OrtValue.from_dlpack([1, 2])
    for array in (np.array(["a"], object), np.ones(2, ml_dtypes.bfloat16), np.ones(2, ml_dtypes.int4)):
        with pytest.raises(InvalidArgument, match="DLPack export"):
            whet.OrtValue.ortvalue_from_numpy(array).to_dlpack()


def test_values_of_other_kinds() -> None:
    graph = """g (float[N] x) => (seq(float[N]) s, optional(float[N]) o) {
        s = SequenceConstruct(x, x) o = Optional(x)
    }"""
    x = whet.OrtValue.ortvalue_from_numpy(np.ones(2, np.float32))
    sequence, optional = session(graph).run_with_ort_values(None, {"x": x})
    assert (sequence.is_tensor(), sequence.is_tensor_sequence(), sequence.data_type()) == (
        False, True, "seq(tensor(float))",
    )  # fmt: skip
    assert optional.has_value()
    with pytest.raises(InvalidArgument, match="holds no tensor"):
        sequence.numpy()
    again = session("g (seq(float[N]) s) => (float[N] y) <int64 one = {1}> { y = SequenceAt(s, one) }")
    np.testing.assert_array_equal(again.run(None, {"s": sequence})[0], [1, 1])


def test_values_and_arrays_feed_alike() -> None:
    made = session(ADD)
    value = whet.OrtValue.ortvalue_from_numpy(X)
    np.testing.assert_array_equal(made.run(None, {"x": value, "y": X})[0], 2 * X)
    (result,) = made.run_with_ort_values(["z"], {"x": value, "y": value})
    np.testing.assert_array_equal(result.numpy(), 2 * X)
    assert result.numpy().flags.writeable


@pytest.mark.parametrize("name", ["cpu", "cuda", "gpu", "dml", "npu", "cann", "webgpu"])
def test_devices_have_onnxruntimes_numbers(name: str) -> None:
    ours, theirs = whet.OrtDevice.make(name, 1), onnxruntime.OrtDevice.make(name, 1)
    for method in ("device_type", "device_id", "device_vendor_id", "device_mem_type"):
        assert getattr(ours, method)() == getattr(theirs, method)()
    assert whet.OrtDevice.make("gpu", 0, 0x1002).device_vendor_id() == whet.OrtDeviceVendorId.AMD


def test_sparse_tensors_say_that_they_are_missing() -> None:
    for call in (
        lambda: whet.SparseTensor(),
        lambda: whet.SparseTensor.sparse_coo_from_numpy([1], X, X, None),
        lambda: whet.SparseTensor.sparse_csr_from_numpy([1], X, X, X, None),
        lambda: whet.OrtValue.ort_value_from_sparse_tensor(None),  # type: ignore[arg-type]
        lambda: whet.OrtValue.ortvalue_from_numpy(X).as_sparse_tensor(),
    ):
        with pytest.raises(NotImplemented, match="sparse"):
            call()
