"""What a run is fed: the right answer for every layout of an array, a typed error for everything else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import whet
from tests.session_models import ADD, Array, model, session
from whet.errors import InvalidArgument

BASE = np.arange(24, dtype=np.float32).reshape(4, 6)


def misaligned() -> Array:
    raw = np.zeros(BASE.nbytes + 1, np.uint8)
    view = raw[1:].view(np.uint8)[: BASE.nbytes].view(np.float32)
    view[:] = BASE.ravel()
    assert not view.flags.aligned
    return view.reshape(4, 6)


def read_only() -> Array:
    array = BASE.copy()
    array.flags.writeable = False
    return array


LAYOUTS: dict[str, Callable[[], Array]] = {
    "contiguous": BASE.copy,
    "fortran": lambda: np.asfortranarray(BASE),
    "transposed": lambda: BASE.T,
    "every second column": lambda: BASE[:, ::2],
    "reversed rows": lambda: BASE[::-1],
    "reversed both": lambda: BASE[::-1, ::-1],
    "zero stride": lambda: np.broadcast_to(BASE[:1], (5, 6)),
    "zero stride of one": lambda: np.broadcast_to(np.float32(2.5), (3, 3)),
    "read-only": read_only,
    "misaligned": misaligned,
    "big-endian": lambda: BASE.astype(">f4"),
    "big-endian reversed": lambda: BASE.astype(">f4")[::-1, ::-2],
    "empty": lambda: np.zeros((0, 6), np.float32),
    "empty columns": lambda: np.zeros((4, 0), np.float32)[::-1],
    "subclass": lambda: np.asmatrix(BASE),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_every_layout_gives_the_right_answer_and_is_left_alone(layout: str) -> None:
    x = LAYOUTS[layout]()
    expected = 2 * np.array(x, dtype=np.float64) + 1
    before, strides = np.array(x), x.strides
    run = session("g (float[A, B] x) => (float[A, B] y) <float one = {1}> { d = Add(x, x) y = Add(d, one) }")
    (y,) = run.run(None, {"x": x})
    assert y.shape == x.shape
    assert y.dtype == np.float32
    assert y.dtype.isnative
    np.testing.assert_array_equal(np.asarray(y), np.asarray(expected))
    np.testing.assert_array_equal(x, before)
    assert x.strides == strides
    assert not np.shares_memory(y, x)


@pytest.mark.parametrize(
    "x",
    [np.float32(3), np.array(3, np.float32), 3, 3.0, np.array(3, ">f4")],
    ids=["scalar", "0-d", "int", "float", "be"],
)
def test_a_scalar_input(x: Any) -> None:
    (y,) = session("g (float x) => (float y) { y = Add(x, x) }").run(None, {"x": x})
    assert y.shape == ()
    assert y == 6


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "i4", "i8", "u4", "u8", "f8", "f2", "?"])
def test_every_byte_order_of_every_type(dtype: str) -> None:
    native = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    name = whet.OrtValue.ortvalue_from_numpy(native).data_type()[len("tensor(") : -1]
    run = session(f"g ({name}[N, 3] x) => ({name}[N, 3] y) {{ y = Identity(x) }}")
    (y,) = run.run(None, {"x": native.astype(np.dtype(dtype).newbyteorder(">"))})
    np.testing.assert_array_equal(y, native)
    assert y.dtype == native.dtype


def test_batch_zero() -> None:
    empty = np.zeros((0, 3), np.float32)
    (z,) = session(ADD).run(None, {"x": empty, "y": empty})
    assert z.shape == (0, 3)


@pytest.mark.parametrize(
    "text",
    [np.array(["ab", "ü"]), np.array([b"ab", "ü".encode()]), np.array(["ab", "ü"], object), ["ab", "ü"]],
    ids=["unicode", "bytes", "objects", "list"],
)
def test_text(text: Any) -> None:
    (y,) = session("g (string[N] x) => (string[N] y) { y = Identity(x) }").run(None, {"x": text})
    assert y.tolist() == ["ab", "ü"]


def test_text_with_gaps() -> None:
    words = np.array(["a", "b", "c", "d"], object)
    (y,) = session("g (string[N] x) => (string[N] y) { y = Identity(x) }").run(None, {"x": words[::-2]})
    assert y.tolist() == ["d", "b"]


def test_lists_take_the_type_of_the_input() -> None:
    (z,) = session(ADD).run(None, {"x": [[1, 2, 3]], "y": ((0.5, True, 1),)})
    np.testing.assert_array_equal(z, np.array([[1.5, 3, 4]], np.float32))
    assert z.dtype == np.float32


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([[1, 2, 3], [4, 5]], "list"),
        ([["a", "b", "c"]], "tensor(string)"),
        ([[1j, 2, 3]], "list"),
        ([[None, 1, 2]], "NoneType"),
        ({"a": 1}, "map"),
        (None, "optional"),
        (np.zeros((1, 3), object), "int"),
        (np.zeros((1, 3), "M8[s]"), "datetime64"),
        (np.zeros((1, 3), [("a", "f4")]), "'a'"),
        (np.zeros((1, 3), np.longdouble), str(np.dtype(np.longdouble))),
        (np.zeros((1, 3), np.float64), "tensor(double)"),
        (np.zeros((1, 3), ">f8"), "tensor(double)"),
        (np.zeros((1, 3), np.int32), "tensor(int32)"),
        (np.zeros((1, 3), bool), "tensor(bool)"),
        (np.zeros((1, 3), complex), "tensor(complex128)"),
        (np.zeros((1, 3), "U1"), "tensor(string)"),
        (np.float64(1), "tensor(double)"),
        (object(), "object"),
    ],
    ids=lambda v: None if isinstance(v, str) else type(v).__name__,
)
def test_a_value_of_the_wrong_kind(given: Any, found: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        session(ADD).run(None, {"x": np.zeros((1, 3), np.float32), "y": given})
    assert caught.value.value == "y"
    assert caught.value.file == "<bytes>"
    assert found in str(caught.value.found)
    assert caught.value.expected


@pytest.mark.parametrize(
    ("numbers", "dtype"), [([300], "uint8"), ([-1], "uint64"), ([2**63], "int64"), ([1.5], "int32")]
)
def test_numbers_that_the_input_cannot_hold(numbers: list[float], dtype: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        session(f"g ({dtype}[N] x) => ({dtype}[N] y) {{ y = Identity(x) }}").run(None, {"x": numbers})
    assert caught.value.value == "x"
    assert dtype in str(caught.value.expected)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((3,), "rank 1"), ((1, 1, 3), "rank 3"), ((), "rank 0"), ((2, 4), "dimension 1"), ((0, 0), "dimension 1")],
)
def test_a_wrong_shape(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as caught:
        session(ADD).run(None, {"x": np.zeros(shape, np.float32), "y": np.zeros((1, 3), np.float32)})
    assert caught.value.value == "x"
    assert caught.value.found == list(shape)
    assert caught.value.expected == "[N,3]"


def test_a_free_dimension_with_two_sizes() -> None:
    with pytest.raises(InvalidArgument, match="'N' has two sizes") as caught:
        session(ADD).run(None, {"x": np.zeros((2, 3), np.float32), "y": np.zeros((1, 3), np.float32)})
    assert caught.value.value == "y"
    assert caught.value.found == "1 in 'y', 2 in 'x'"
    assert caught.value.file == "<bytes>"


def test_a_free_dimension_with_two_sizes_in_one_input() -> None:
    with pytest.raises(InvalidArgument, match="'N' has two sizes"):
        session("g (float[N, N] x) => (float[N, N] y) { y = Relu(x) }").run(None, {"x": np.zeros((2, 3), np.float32)})


@pytest.mark.parametrize("name", ["None", "?"])
def test_placeholder_names_of_free_dimensions_need_not_agree(name: str) -> None:
    serialized = model("g (float[UNKNOWN1, UNKNOWN2] x) => (float[A, B] y) { y = Relu(x) }")
    proto = onnx.load_from_string(serialized)
    for dim in proto.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = name
    run = whet.InferenceSession(proto.SerializeToString())
    assert run.get_inputs()[0].shape == [None, None]
    assert run.run(None, {"x": np.ones((2, 3), np.float32)})[0].shape == (2, 3)


def test_a_missing_input_names_it_and_its_type(tmp_path: Path) -> None:
    path = tmp_path / "add.onnx"
    path.write_bytes(model(ADD))
    with pytest.raises(
        ValueError, match=r"Required inputs \(\['y'\]\) are missing from input feed \(\['x'\]\)"
    ) as caught:
        whet.InferenceSession(path).run(None, {"x": np.zeros((1, 3), np.float32)})
    assert isinstance(caught.value, InvalidArgument)
    assert caught.value.file == os.fspath(path)
    assert caught.value.expected == "y: float32[N,3]"


def test_an_unknown_input_names_the_near_one() -> None:
    graph = "g (float[N] input_ids, float[N] attention_mask) => (float[N] y) { y = Add(input_ids, attention_mask) }"
    one = np.zeros(1, np.float32)
    with pytest.raises(InvalidArgument, match="Did you mean 'attention_mask'") as caught:
        session(graph).run(None, {"input_ids": one, "attention_msk": one})
    assert caught.value.value == "attention_msk"
    with pytest.raises(InvalidArgument, match="The inputs are: input_ids, attention_mask"):
        session(graph).run(None, {"input_ids": one, "attention_mask": one, "q": one})


@pytest.mark.parametrize("feed", [[1], None, "x", np.zeros(3)], ids=["list", "None", "str", "array"])
def test_a_feed_that_is_no_mapping(feed: Any) -> None:
    with pytest.raises(InvalidArgument, match="a feed is a dict"):
        session(ADD).run(None, feed)


def test_unknown_outputs() -> None:
    one = np.ones((1, 3), np.float32)
    run = session("g (float[N, 3] x) => (float[N, 3] scores, float[N, 3] boxes) { scores = Neg(x) boxes = Exp(x) }")
    with pytest.raises(InvalidArgument, match="Did you mean 'scores'") as caught:
        run.run(["boxes", "score"], {"x": one})
    assert caught.value.value == "score"
    with pytest.raises(InvalidArgument, match="list of names"):
        run.run("scores", {"x": one})
    boxes, scores = run.run(["boxes", "scores"], {"x": one})
    np.testing.assert_allclose(boxes, np.exp(np.ones((1, 3))), rtol=1e-6)
    np.testing.assert_array_equal(scores, -one)
    assert len(run.run([], {"x": one})) == 2


def test_dlpack_producers_are_read() -> None:
    class Producer:
        """A tensor of another library."""

        def __init__(self, array: Array) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.array.__dlpack_device__()

    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    (z,) = session(ADD).run(None, {"x": Producer(x), "y": Producer(x[::-1])})
    np.testing.assert_array_equal(z, x + x[::-1])


def test_dlpack_that_fails_is_a_typed_error() -> None:
    class Broken:
        """A tensor that cannot be given away, as torch's that need a gradient."""

        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("needs a gradient")

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    with pytest.raises(InvalidArgument, match="needs a gradient") as caught:
        session(ADD).run(None, {"x": np.zeros((1, 3), np.float32), "y": Broken()})
    assert caught.value.value == "y"
    assert caught.value.file == "<bytes>"


SEQUENCE = "g (seq(float[N]) x, int64 at) => (float[M] y) { y = SequenceAt(x, at) }"


def test_sequences_are_lists() -> None:
    items = [np.arange(n, dtype=">f4") for n in range(3)]
    (y,) = session(SEQUENCE).run(None, {"x": items, "at": 2})
    np.testing.assert_array_equal(y, [0, 1])
    with pytest.raises(InvalidArgument, match="Pass a list") as caught:
        session(SEQUENCE).run(None, {"x": items[2], "at": 0})
    assert (caught.value.value, caught.value.found, caught.value.expected) == (
        "x",
        "tensor(float)",
        "seq(tensor(float))",
    )
    with pytest.raises(InvalidArgument, match="wrong element type"):
        session(SEQUENCE).run(None, {"x": [np.zeros(1)], "at": 0})


ML_HEAD = '<ir_version: 10, opset_import: ["": 20, "ai.onnx.ml": 3]>'
MAP = """g (map(int64, float) x) => (float[1, 3] y) {
    y = ai.onnx.ml.CastMap<map_form: string = "SPARSE", max_map: int = 3>(x)
}"""


def test_maps_are_dicts() -> None:
    run = session(MAP, head=ML_HEAD)
    (y,) = run.run(None, {"x": {0: 1.5, 2: 2}})
    np.testing.assert_array_equal(y, [[1.5, 0, 2]])
    with pytest.raises(InvalidArgument, match="Pass a dict"):
        run.run(None, {"x": np.zeros(3, np.float32)})
    with pytest.raises(InvalidArgument, match="wrong type of key") as caught:
        run.run(None, {"x": {"0": 1.5}})
    assert (caught.value.value, caught.value.found, caught.value.file) == ("x", "'0'", "<bytes>")
    with pytest.raises(InvalidArgument, match="wrong type of value"):
        run.run(None, {"x": {0: "1.5"}})


def test_optional_inputs_may_be_left_out_or_none() -> None:
    graph = "g (optional(float[N]) x) => (bool y) { y = OptionalHasElement(x) }"
    for feed, expected in (({}, False), ({"x": None}, False), ({"x": np.ones(2, np.float32)}, True)):
        assert session(graph).run(None, feed)[0] == expected
    with pytest.raises(InvalidArgument, match="wrong element type"):
        session(graph).run(None, {"x": np.ones(2)})
