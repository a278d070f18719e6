"""Messages of known forms: what is read and written without protobuf is what protobuf reads and writes."""

from __future__ import annotations

import random
from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("grpc")

from tests.server.grpc_fuzz import Fuzzer
from whet.errors import WhetError
from whet.server.datatypes import BY_NAME
from whet.server.grpc.convert import read_request, write_response
from whet.server.grpc.forms import MOST_FORMS, RequestForms, ResponseForms, fields, raw_places
from whet.server.protocol.messages import message, parse
from whet.server.request import InferRequest, InferResponse, OutputTensor

Request = message("inference.ModelInferRequest")
Response = message("inference.ModelInferResponse")
TYPES = [t for t in BY_NAME.values() if t.name != "BYTES"]


def same(one: InferRequest, other: InferRequest) -> None:
    """Both say the same, to the bit."""
    for name in InferRequest.__slots__:
        if name != "inputs":
            assert getattr(one, name) == getattr(other, name), name
    assert [(t.name, t.datatype) for t in one.inputs] == [(t.name, t.datatype) for t in other.inputs]
    for a, b in zip(one.inputs, other.inputs, strict=True):
        assert (a.array.dtype, a.array.shape, a.array.tobytes()) == (b.array.dtype, b.array.shape, b.array.tobytes())
        assert a.array.flags.aligned


def random_request(choose: random.Random, shapes: list[tuple[Any, tuple[int, ...]]]) -> Any:
    request = Request(model_name=f"model-{choose.randrange(3)}", model_version=choose.choice(("", "1", "23")))
    for index, (kind, shape) in enumerate(shapes):
        request.inputs.add(name=f"in{index}", datatype=kind.name, shape=shape)
        request.raw_input_contents.append(choose.randbytes(int(np.prod(shape)) * kind.element_bytes))
    if choose.random() < 0.3:
        request.outputs.add(name="y").parameters["classification"].int64_param = choose.randrange(5)
    return request


def random_shapes(choose: random.Random) -> list[tuple[Any, tuple[int, ...]]]:
    return [
        (choose.choice(TYPES), tuple(choose.randrange(1, 6) for _ in range(choose.randrange(4))))
        for _ in range(choose.randrange(1, 4))
    ]


@pytest.mark.parametrize("seed", range(30))
def test_a_known_form_reads_as_protobuf_does(seed: int) -> None:
    choose = random.Random(seed)
    forms = RequestForms()
    request = random_request(choose, random_shapes(choose))
    content = request.SerializeToString()
    assert forms.read(content, 7) is None
    forms.learn(content, read_request(parse(Request, content), 7))
    assert len(forms) == 1
    for _ in range(5):
        for index, raw in enumerate(request.raw_input_contents):
            request.raw_input_contents[index] = choose.randbytes(len(raw))
        other = request.SerializeToString()
        found = forms.read(other, 9)
        assert found is not None
        same(found, read_request(parse(Request, other), 9))


@pytest.mark.parametrize("seed", range(6))
def test_mutated_messages_never_read_otherwise(seed: int) -> None:
    """Whatever the bytes are: a form that is known says what protobuf says, and what protobuf refuses has none."""
    choose, fuzzer, forms = random.Random(seed), Fuzzer(seed), RequestForms()
    known: list[bytes] = []
    hits = 0
    for turn in range(1500):
        if known and turn % 3:
            content = bytearray(choose.choice(known))
            for _ in range(choose.choice((0, 1, 1, 2))):
                at = choose.randrange(len(content))
                match choose.randrange(3):
                    case 0:
                        content[at] ^= 1 << choose.randrange(8)
                    case 1:
                        end = min(len(content), at + choose.randrange(1, 9))
                        content[at:end] = choose.randbytes(end - at)
                    case _:
                        # As long as before, with a part of it elsewhere.
                        part = content[at : at + 6]
                        del content[at : at + 6]
                        to = choose.randrange(len(content) + 1)
                        content[to:to] = part
            given = bytes(content)
        elif turn % 2:
            given = fuzzer.content(Request)
        else:
            given = random_request(choose, random_shapes(choose)).SerializeToString()
        found = forms.read(given, 5)
        try:
            expected = read_request(parse(Request, given), 5)
        except WhetError:
            assert found is None, given
            continue
        if found is not None:
            hits += 1
            same(found, expected)
        else:
            forms.learn(given, expected)
            known = [*known[-30:], given] if given else known
    assert hits > 50
    assert len(forms) <= MOST_FORMS


def raw_first() -> bytes:
    """A request whose raw bytes do not come last: its id ends with what looks like them."""
    head = Request(model_name="m")
    head.inputs.add(name="x", datatype="UINT8", shape=[4])
    raw, tail = Request(raw_input_contents=[b"abcd"]), Request(model_version=":\4abcd")
    return head.SerializeToString() + raw.SerializeToString() + tail.SerializeToString()


def with_group() -> bytes:
    """A request with a field that nobody knows, a group, in front of its raw bytes."""
    head = Request(model_name="m")
    head.inputs.add(name="x", datatype="UINT8", shape=[4])
    return head.SerializeToString() + b"\x9b\x06\x9c\x06" + Request(raw_input_contents=[b"abcd"]).SerializeToString()


def with_parameter() -> bytes:
    request = parse(Request, plain())
    request.parameters["timeout"].int64_param = 5
    return request.SerializeToString()  # type: ignore[no-any-return]


def with_id() -> bytes:
    request = parse(Request, plain())
    request.id = "7"
    return request.SerializeToString()  # type: ignore[no-any-return]


def with_text() -> bytes:
    request = Request(model_name="m")
    request.inputs.add(name="x", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(b"\1\0\0\0a")
    return request.SerializeToString()  # type: ignore[no-any-return]


def with_long_header() -> bytes:
    request = parse(Request, plain())
    request.model_name = "m" * 2000
    return request.SerializeToString()  # type: ignore[no-any-return]


def plain() -> bytes:
    request = Request(model_name="m")
    request.inputs.add(name="x", datatype="UINT8", shape=[4])
    request.raw_input_contents.append(b"abcd")
    return request.SerializeToString()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "kept"),
    [(plain, 1), (raw_first, 0), (with_group, 0), (with_parameter, 0), (with_id, 0), (with_text, 0),
     (with_long_header, 0)],
)  # fmt: skip
def test_what_is_remembered(make: Any, kept: int) -> None:
    forms, content = RequestForms(), make()
    forms.learn(content, read_request(parse(Request, content), 1))
    assert len(forms) == kept


def test_forms_are_bounded() -> None:
    forms = RequestForms()
    for size in range(1, 3 * MOST_FORMS):
        request = Request(model_name="m")
        request.inputs.add(name="x", datatype="UINT8", shape=[size])
        request.raw_input_contents.append(bytes(size))
        content = request.SerializeToString()
        forms.learn(content, read_request(parse(Request, content), 1))
        assert 1 <= len(forms) <= MOST_FORMS
        assert forms.read(content, 1) is not None


def test_fields_of_a_message() -> None:
    content = plain()
    assert [(number, content[start:end][:4]) for number, start, end in fields(content)][::2] == [
        (1, b"m"),
        (7, b"abcd"),
    ]
    assert raw_places(content) == [(len(content) - 4, len(content))]


@pytest.mark.parametrize("kind", TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3), (40, 1024)])
def test_responses_are_written_as_protobuf_writes_them(kind: Any, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    forms = ResponseForms()
    assert ml_dtypes.bfloat16  # BF16 is a type of numpy's only with it

    def response() -> InferResponse:
        count = int(np.prod(shape))
        array = np.frombuffer(rng.bytes(count * kind.element_bytes), kind.dtype.numpy).reshape(shape)
        return InferResponse("m", "3", "", [OutputTensor("y", kind, array)])

    first = response()
    assert forms.write(first) is None
    forms.learn(write_response(first).SerializeToString(), first)
    for _ in range(3):
        one = response()
        content = forms.write(one)
        assert content == write_response(one).SerializeToString()
        view = InferResponse("m", "3", "", [OutputTensor("y", kind, one.outputs[0].array.T.copy().T)])
        assert forms.write(view) == content


def test_other_responses_are_not_taken_for_known_ones() -> None:
    kind = BY_NAME["FP32"]
    forms = ResponseForms()
    array = np.zeros(3, np.float32)
    known = InferResponse("m", "3", "", [OutputTensor("y", kind, array)])
    forms.learn(write_response(known).SerializeToString(), known)
    assert forms.write(known) is not None
    for other in (
        InferResponse("n", "3", "", [OutputTensor("y", kind, array)]),
        InferResponse("m", "4", "", [OutputTensor("y", kind, array)]),
        InferResponse("m", "3", "id", [OutputTensor("y", kind, array)]),
        InferResponse("m", "3", "", [OutputTensor("z", kind, array)]),
        InferResponse("m", "3", "", [OutputTensor("y", BY_NAME["INT32"], array.view(np.int32))]),
        InferResponse("m", "3", "", [OutputTensor("y", kind, array.reshape(1, 3))]),
        InferResponse("m", "3", "", [OutputTensor("y", kind, array)], {"a": True}),
        InferResponse("m", "3", "", [OutputTensor("y", kind, array), OutputTensor("z", kind, array)]),
    ):
        assert forms.write(other) is None
        forms.learn(write_response(other).SerializeToString(), other)
        again = forms.write(other)
        assert again is None or again == write_response(other).SerializeToString()
