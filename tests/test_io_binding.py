"""IOBinding: inputs and outputs bound to arrays, addresses and values."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import whet
from tests.session_models import ADD, Array, session
from whet.errors import InvalidArgument, NotImplemented

X = np.arange(6, dtype=np.float32).reshape(2, 3)
Y = np.full((2, 3), 10, np.float32)
TWO = """g (float[N] x, int64[M] k) => (float[N] neg, int64[M] next, seq(float[N]) list) <int64 one = {1}> {
    neg = Neg(x) next = Add(k, one) list = SequenceConstruct(x, neg)
}"""


def bound(made: whet.InferenceSession, **inputs: Array) -> whet.IOBinding:
    binding = made.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    return binding


def test_arrays_in_and_new_memory_out() -> None:
    made = session(ADD)
    binding = bound(made, x=X, y=Y)
    binding.bind_output("z")
    binding.synchronize_inputs()
    made.run_with_iobinding(binding)
    binding.synchronize_outputs()
    (value,) = binding.get_outputs()
    assert (value.shape(), value.data_type(), value.device_name()) == ([2, 3], "tensor(float)", "cpu")
    np.testing.assert_array_equal(value.numpy(), X + Y)
    (copy,) = binding.copy_outputs_to_cpu()
    assert not np.shares_memory(copy, value.numpy())
    made.run_with_iobinding(binding)
    (again,) = binding.get_outputs()
    assert not np.shares_memory(again.numpy(), value.numpy())


def test_a_bound_array_is_read_at_each_run() -> None:
    made, x = session(ADD), X.copy()
    binding = bound(made, x=x, y=Y)
    binding.bind_output("z")
    made.run_with_iobinding(binding)
    x[...] = 100
    made.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], np.full((2, 3), 110))


def test_outputs_are_in_the_order_of_binding() -> None:
    made = session(TWO)
    binding = bound(made, x=X[0], k=np.array([1, 2]))
    for name in ("next", "list", "neg"):
        binding.bind_output(name)
    made.run_with_iobinding(binding)
    following, items, negative = binding.copy_outputs_to_cpu()
    np.testing.assert_array_equal(following, [2, 3])
    np.testing.assert_array_equal(negative, -X[0])
    assert [i.tolist() for i in items] == [X[0].tolist(), (-X[0]).tolist()]
    assert [v.is_tensor() for v in binding.get_outputs_as_ortvaluevector()] == [True, False, True]


@pytest.mark.parametrize("kind", [np.float32, np.dtype("f4"), onnx.TensorProto.FLOAT])
def test_addresses(kind: Any) -> None:
    made, z = session(ADD), np.empty((2, 3), np.float32)
    binding = made.io_binding()
    binding.bind_input("x", "cpu", 0, kind, X.shape, X.ctypes.data)
    binding.bind_input("y", "cpu", 0, kind, [2, 3], Y.ctypes.data)
    binding.bind_output("z", "cpu", 0, kind, z.shape, z.ctypes.data)
    made.run_with_iobinding(binding)
    np.testing.assert_array_equal(z, X + Y)
    assert binding.get_outputs()[0].data_ptr() == z.ctypes.data


def test_values() -> None:
    made = session(ADD)
    x = whet.OrtValue.ortvalue_from_numpy(X.copy())
    z = whet.OrtValue.ortvalue_from_shape_and_type([2, 3], np.float32)
    binding = bound(made, y=Y)
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("z", z)
    made.run_with_iobinding(binding)
    np.testing.assert_array_equal(z.numpy(), X + Y)
    x.update_inplace(np.zeros((2, 3), np.float32))
    made.run_with_iobinding(binding)
    np.testing.assert_array_equal(z.numpy(), Y)
    assert binding.get_outputs()[0].data_ptr() == z.data_ptr()


def test_a_state_may_be_input_and_output() -> None:
    made = session("g (float[N] state) => (float[N] next) { d = Add(state, state) next = Neg(d) }")
    state = whet.OrtValue.ortvalue_from_numpy(np.arange(3, dtype=np.float32))
    binding = made.io_binding()
    binding.bind_ortvalue_input("state", state)
    binding.bind_ortvalue_output("next", state)
    for _ in range(3):
        made.run_with_iobinding(binding)
    np.testing.assert_array_equal(state.numpy(), [0, -8, -16])


def test_bindings_are_cleared() -> None:
    made = session(ADD)
    binding = bound(made, x=X, y=Y)
    binding.bind_output("z")
    binding.clear_binding_inputs()
    with pytest.raises(InvalidArgument, match="missing from input feed"):
        made.run_with_iobinding(binding)
    binding.clear_binding_outputs()
    assert binding.get_outputs() == []
    with pytest.raises(InvalidArgument, match="no output is bound"):
        made.run_with_iobinding(binding)


def test_unknown_names() -> None:
    binding = session("g (float image) => (float score) { score = Neg(image) }").io_binding()
    with pytest.raises(InvalidArgument, match="Did you mean 'image'"):
        binding.bind_cpu_input("imge", X)
    with pytest.raises(InvalidArgument, match="Did you mean 'score'"):
        binding.bind_output("scores")
    with pytest.raises(InvalidArgument, match="no such input"):
        binding.bind_ortvalue_input("q", whet.OrtValue.ortvalue_from_numpy(X))


@pytest.mark.parametrize(
    ("shape", "kind"), [((3, 2), np.float32), ((2, 3), np.int32), ((2, 3, 1), np.float32), ((1, 3), np.float32)]
)
def test_a_buffer_that_the_result_does_not_fit_is_left_alone(shape: tuple[int, ...], kind: Any) -> None:
    made = session(ADD)
    z = np.full(shape, 7, kind)
    binding = bound(made, x=X, y=Y)
    binding.bind_ortvalue_output("z", whet.OrtValue.ortvalue_from_numpy(z))
    with pytest.raises(InvalidArgument, match="does not fit the bound output") as caught:
        made.run_with_iobinding(binding)
    assert caught.value.value == "z"
    np.testing.assert_array_equal(z, np.full(shape, 7, kind))


def test_buffers_are_checked() -> None:
    binding = session(ADD).io_binding()
    for arguments, words in (
        (("cpu", 0, np.float32, [2, 3], 0), "null address"),
        (("cpu", 0, np.float32, [2, -3], X.ctypes.data), "negative extent"),
        (("cpu", 0, np.float32, [2, 3], X.ctypes.data + 1), "misaligned"),
        (("cpu", 0, "M8[s]", [2, 3], X.ctypes.data), "no such element type"),
        (("cpu", 0, 99, [2, 3], X.ctypes.data), "no such element type"),
        (("toaster", 0, np.float32, [2, 3], X.ctypes.data), "unsupported device"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            binding.bind_input("x", *arguments)  # type: ignore[arg-type]
    with pytest.raises(NotImplemented, match="cannot be bound"):
        binding.bind_input("x", "cuda", 0, np.float32, [2, 3], X.ctypes.data)
    with pytest.raises(NotImplemented, match="cannot be bound"):
        binding.bind_output("z", "cuda")
    with pytest.raises(NotImplemented, match="by address"):
        binding.bind_input("x", "cpu", 0, np.str_, [2, 3], X.ctypes.data)
    with pytest.raises(InvalidArgument, match="element_type and shape"):
        binding.bind_output("z", buffer_ptr=X.ctypes.data)
    frozen = X.copy()
    frozen.flags.writeable = False
    with pytest.raises(InvalidArgument, match="read-only"):
        binding.bind_ortvalue_output("z", whet.OrtValue.ortvalue_from_numpy(frozen))


def test_a_binding_belongs_to_its_session() -> None:
    made = session(ADD)
    binding = bound(made, x=X, y=Y)
    binding.bind_output("z")
    with pytest.raises(ValueError, match="the session that made it"):
        session(ADD).run_with_iobinding(binding)
    other = whet.IOBinding(made)
    other.bind_cpu_input("x", X)
    other.bind_cpu_input("y", Y)
    other.bind_output("z")
    made.run_with_iobinding(other)
    np.testing.assert_array_equal(other.copy_outputs_to_cpu()[0], X + Y)


def test_overridable_initializers_are_bound_too() -> None:
    made = session("g (float[N] x, float[1] w) => (float[N] y) <float[1] w = {2}> { y = Mul(x, w) }")
    binding = bound(made, x=X[0], w=np.array([5], np.float32))
    binding.bind_output("y")
    made.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], 5 * X[0])


def test_vectors() -> None:
    made = session(ADD)
    vector = whet.capi.onnxruntime_pybind11_state.OrtValueVector
    feeds, fetches = vector(), vector()
    for array in (X, Y):
        feeds.push_back(whet.OrtValue.ortvalue_from_numpy(array))
    made.run_with_ortvaluevector(None, ["x", "y"], feeds, ["z"], fetches, [whet.OrtDevice.make("cpu", 0)])
    np.testing.assert_array_equal(fetches[0].numpy(), X + Y)
    target = fetches[0].numpy()
    target[...] = 0
    made.run_with_ortvaluevector(whet.RunOptions(), ["y", "x"], feeds, ["z"], fetches, [])
    assert fetches[0].numpy() is target
    np.testing.assert_array_equal(target, X + Y)
    with pytest.raises(InvalidArgument, match="differ in number"):
        made.run_with_ortvaluevector(None, ["x"], feeds, ["z"], vector(), [])
    with pytest.raises(NotImplemented, match="this device"):
        made.run_with_ortvaluevector(None, ["x", "y"], feeds, ["z"], vector(), [whet.OrtDevice.make("cuda", 0)])
