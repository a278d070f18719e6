"""Requests that are read by their form are what they are when read as a whole, and wrong ones are as wrong."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from whet.errors import WhetError
from whet.server.check import RequestCheck
from whet.server.datatypes import BY_NAME
from whet.server.http.json_forms import EVERY, FORMS, Forms, form_of
from whet.server.http.json_request import read_request
from whet.server.model_config import ModelConfig, TensorConfig

# Looking for elements that overflow does so itself; the module says that to Python, and pytest listens anyway.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{what} encountered in:RuntimeWarning") for what in ("overflow", "invalid value")
]


def body(data: Any, indent: int | None = None, **changes: Any) -> bytes:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": data, **changes}
    return json.dumps({"inputs": [tensor]}, indent=indent).encode()


def outcome(read: Any, content: Any, header_bytes: int | None = None) -> Any:
    """What reading gives, as plain values; an error's text where it is one."""
    try:
        request, binary, all_binary = read("m", "", content, header_bytes)
    except WhetError as error:
        return str(error)
    inputs = [(t.name, t.datatype.name, t.array.dtype, t.array.shape, t.array.tolist()) for t in request.inputs]
    return inputs, request.id, request.outputs, dict(request.parameters), dict(binary), all_binary, request.version


def same(forms: Forms, content: bytes) -> Any:
    found = outcome(forms.read, content)
    assert found == outcome(read_request, content), content
    return found


STRANGE: dict[str, bytes] = {
    "nested": body([[1, 2], [3, 4]]),
    "too few": body([1, 2, 3]),
    "too many": body([1, 2, 3, 4, 5]),
    "none": body([]),
    "text": body(["1", 2, 3, 4]),
    "null": body([None, 2, 3, 4]),
    "boolean": body([True, 2, 3, 4]),
    "object": body([{"data": [1]}, 2, 3, 4]),
    "too large": body([1e39, 2, 3, 4]),
    "no number": body([1, 2, 3, 4]).replace(b"3", b"3x"),
    "NaN": body([1, 2, 3, float("nan")]),
    "another list behind": body([1, 2, 3, 4]).replace(b"3, 4]", b'3, 4],"data":[5,6,7,8]'),
    "another list, then the right one": body([1, 2, 3, 4]).replace(b"[1, 2", b'[9],"data":[1, 2'),
    "brackets closed too early": body([1, 2, 3, 4]).replace(b", 3", b"], [3"),
    "cut off": body([1, 2, 3, 4])[:-1],
    "left over": body([1, 2, 3, 4]) + b"}",
    "two inputs": body([1, 2, 3, 4]).replace(b"}]}", b'},{"name":"y","shape":[1],"datatype":"FP32","data":[1]}]}'),
    "inputs twice": body([1, 2, 3, 4]).replace(b"]}]}", b']}],"inputs":[]}'),
    "id": body([1, 2, 3, 4])[:-1] + b',"id":"a"}',
    "parameters": body([1, 2, 3, 4])[:-1] + b',"parameters":{"priority":1}}',
    "escaped key": body([1, 2, 3, 4]).replace(b'"data"', b'"d\\u0061ta"'),
    "key with a quote": body([1, 2, 3, 4]).replace(b'"data"', b'"x\\"data": [9, 9, 9, 9], "d\\u0061ta"'),
    "name with a list": body([1, 2, 3, 4], name='"data": [1,2,3,4]'),
    "not UTF-8": body([1, 2, 3, 4]).replace(b'"x"', b'"\xff"'),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_strange_is_read_as_a_whole(name: str) -> None:
    """Before a form is known, and when one is that is nearly the same."""
    for first in (body([5, 6, 7, 8]), STRANGE[name]):
        forms = Forms()
        for content in (first, STRANGE[name], body([4, 3, 2, 1]), STRANGE[name]):
            same(forms, content)


def test_numbers_of_any_writing() -> None:
    choose, forms = random.Random(), Forms()
    used = 0
    for step in range(3000):
        kind = choose.choice(("FP32",) * 9 + ("FP64", "INT64", "UINT8", "FP16", "BOOL"))
        count = choose.choice((1, 4, 4, 4, 100))
        data: list[Any] = [choose.choice((
            choose.uniform(-9, 9), choose.randrange(-300, 300), 10.0 ** choose.randrange(-50, 42), 0, -0.0, 1 << 40,
        )) for _ in range(count)]  # fmt: skip
        if choose.random() < 0.7:
            data = [abs(int(v)) % 200 if isinstance(v, int) or kind in ("INT64", "UINT8") else v for v in data]
        content = body(data, choose.choice((None, None, 1)), shape=choose.choice(([count], [1, count])), datatype=kind)
        if choose.random() < 0.3:
            content = content[:-1] + b',"outputs":[{"name":"y","parameters":{"binary_data":true}}]}'
        if choose.random() < 0.3:
            content = content.replace(b", ", choose.choice((b",", b" ,\n", b",\t")))
        before = forms._forms.get(("m", ""))
        if before is not None and content.startswith(before.before) and content.endswith(before.after):
            used += 1
        same(forms, content)
        if step % 40 == 0:
            forms = Forms()
    assert used > 10


def test_the_form_is_used_and_what_it_says_is_kept() -> None:
    forms = Forms()
    for values in ([1, 2, 3, 4], [-0.5, 1e-3, 7, 2e5]):
        request, binary, all_binary = forms.read("m", "3", body(values), None)
        np.testing.assert_array_equal(request.inputs[0].array, np.float32([values]))
        assert (request.version, binary, all_binary) == ("3", {}, False)
    assert request.form is forms._forms["m", "3"]
    # Of another model nothing is known, and neither of binary tensors or of a body that is a view.
    assert forms.read("other", "3", body([1, 2, 3, 4]), None)[0].form is None
    head = body([1, 2, 3, 4])
    assert forms.read("m", "3", head, len(head))[0].form is None
    assert forms.read("m", "3", memoryview(head), None)[0].form is None


def test_forms_are_bounded() -> None:
    forms = Forms()
    for number in range(EVERY * (FORMS + 10)):
        forms.read(f"m{number}", "", body([1, 2, 3, 4]), None)
    assert 0 < len(forms._forms) <= FORMS
    long = body([1, 2, 3, 4], name="x" * 2000)
    assert form_of(long, read_request("m", "", long, None)) is None


def test_requests_without_a_form_do_not_keep_others_from_theirs() -> None:
    forms = Forms()
    used = 0
    for number in range(100):
        forms.read("a", "", body([1, 2, 3, 4])[:-1] + b',"id":"%d"}' % number, None)
        used += forms.read("b", "", body([number, 2, 3, 4]), None)[0].form is not None
    assert used == 99


def test_a_client_that_sends_nested_lists_is_not_read_twice() -> None:
    forms = Forms()
    forms.read("m", "", body([1, 2, 3, 4]), None)
    assert forms._forms
    same(forms, body([[1, 2], [3, 4]]))
    assert not forms._forms


def config(**changes: Any) -> ModelConfig:
    one = TensorConfig("x", BY_NAME["FP32"], (4,), **changes)
    return ModelConfig("m", inputs=(one,), outputs=(TensorConfig("y", BY_NAME["FP32"], (4,)),), max_batch_rows=8)


@pytest.mark.parametrize("changes", [{}, {"reshape": (2, 2)}])
def test_the_check_of_a_form_is_the_check(changes: dict[str, Any]) -> None:
    forms, check = Forms(), RequestCheck(config(**changes))
    for number in range(6):
        values = [number, 2, 3, 4]
        request = forms.read("m", "", body(values), None)[0]
        plain = read_request("m", "", body(values), None)[0]
        feed, *rest = check(request)
        expected, *others = RequestCheck(config(**changes))(plain)
        assert rest == others
        assert feed.keys() == expected.keys()
        np.testing.assert_array_equal(feed["x"], expected["x"])
    wrong = body([1, 2, 3, 4, 5], shape=[1, 5])
    forms = Forms()
    for _ in range(3):
        with pytest.raises(WhetError, match="shape"):
            check(forms.read("m", "", wrong, None)[0])
