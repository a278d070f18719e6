"""Large JSON bodies, read in small steps: while a step is made, nothing else in the process can run.

Almost all of a large body is lists of numbers. They are cut out before the rest is parsed, and become arrays piece by
piece; that also takes a small part of the memory that a list of Python's numbers takes.
"""

from __future__ import annotations

import os
import re
import time
from math import prod
from typing import Any

import numpy as np
import orjson

from whet.errors import InvalidArgument
from whet.server.datatypes import Datatype
from whet.server.errors import PayloadTooLarge
from whet.server.http.json_elements import array_of
from whet.server.request import Array

LARGE = 1 << 20
"""Bytes of JSON from which this is worth its while."""

PIECE = 64 << 10
"""Bytes of numbers that become elements in one step, in well under a millisecond."""

ELEMENTS = 8 << 10
"""Elements that become text in one step."""

STEP = 256 << 10
"""Bytes that are looked through in one step."""

PAUSE_S = 20e-6
"""Sleeping between the steps lets whoever waits go first; without it, they would wait for Python's switch interval."""

MAX_VALUES = 1 << 19
"""Commas outside of long lists of numbers, and of strings: these values are parsed in one step."""

MAX_DEPTH = 100

MAX_LISTS = 1 << 12
"""Lists of numbers that are cut out."""

_KEY = b'"data"'
_LIST = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*(?=\[)')
_BACKSLASHES = re.compile(rb"\\*")
_SPACE = b" \t\r\n"
_NUMBER = b"0123456789+-.eE"
_NUMERIC = _NUMBER + _SPACE + b"[],"
_NOT_NUMERIC = re.compile(rb"[^0-9+\-.eE \t\r\n\[\],]")
_BRACKETS_TO_SPACES = bytes.maketrans(b"[]", b"  ")
_NUMBERS_TO_ZEROS = bytes.maketrans(_NUMBER, b"0" * len(_NUMBER))
# Numbers stand inside of the brackets, next to a comma.
_MISPLACED = (b"]0", b"0[", b"][")
# No body can hold what stands for a list that was cut out: it is another text in each process.
_MARK = os.urandom(12).hex()


class NumberList:
    """A list of numbers, flat or nested, that is still text."""

    def __init__(self, body: bytes, start: int, end: int) -> None:
        self._body, self._start, self._end = body, start, end

    def array(self, kind: Datatype, shape: tuple[int, ...], name: str) -> Array:
        """The tensor. Raises InvalidArgument for anything that is no regular list that fills `shape`."""
        count = prod(shape)
        found, at, end = 0, self._start, self._end
        # A number and its comma take two bytes: a shape cannot ask for more memory than the body takes.
        array: Array = np.empty(min(count, (end - at) // 2), kind.dtype.numpy)
        skeletons: list[bytes] = []
        while at < end and found <= count:
            stop = self._body.find(b",", min(at + PIECE, end), end)
            piece = self._body[at : stop if stop >= 0 else end]
            flat, skeleton = _numbers(piece, name)
            elements = array_of(flat, kind, name, found)
            found += len(flat)
            if found <= count:
                array[found - len(flat) : found] = elements
            skeletons.append(skeleton)
            at += len(piece) + 1
            give_way()
        if found != count:
            raise InvalidArgument(
                "the data does not fill the shape", value=name,
                found=f"{'more than ' if found > count else ''}{found} elements",
                expected=f"{count} for {list(shape)}",
            )  # fmt: skip
        if not _is_regular(b",".join(skeletons)):
            raise InvalidArgument("the data's lists are ragged", value=name)
        return array.reshape(shape)


def _numbers(piece: bytes, name: str) -> tuple[list[Any], bytes]:
    """The numbers of a piece of a list, between two of its commas; and its brackets and commas."""
    if len(piece) > 2 * PIECE:
        raise InvalidArgument("the data is not a list of numbers", value=name, found=f"{len(piece)} bytes in one")
    # Where the piece ends, its numbers do; as one flat list, it is valid if each is a number and between commas.
    try:
        flat: list[Any] = orjson.loads(b"[%b]" % piece.translate(_BRACKETS_TO_SPACES))
    except orjson.JSONDecodeError as error:
        raise InvalidArgument("the data is not valid JSON", value=name, found=str(error)) from error
    signs = piece.translate(_NUMBERS_TO_ZEROS, _SPACE)
    if not flat or any(wrong in signs for wrong in _MISPLACED):
        raise InvalidArgument("the data is not a list of numbers, or of equally long lists of them", value=name)
    return flat, signs.translate(None, b"0")


def _is_regular(skeleton: bytes) -> bool:
    """Whether brackets and commas are those of lists that are equally long at each depth."""
    depth = len(skeleton) - len(skeleton.lstrip(b"["))
    if depth > MAX_DEPTH:
        return False
    inner = b""
    for level in range(depth, 0, -1):
        # Where the first list of this level ends, which starts behind the brackets of those around it.
        closing = b"]" * (depth - level + 1)
        length = skeleton.find(closing) + len(closing) - (level - 1)
        count, rest = divmod(length - 1, len(inner) + 1)
        if count < 1 or rest:
            return False
        inner = b"[%b]" % ((inner + b",") * count)[:-1]
    return inner == skeleton


def give_way() -> None:
    """Let other threads run."""
    time.sleep(PAUSE_S)


def write_list(flat: Array) -> bytes:
    """A long array of one dimension as a JSON list."""
    parts = []
    for at in range(0, len(flat), ELEMENTS):
        parts.append(orjson.dumps(flat[at : at + ELEMENTS], option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])
        give_way()
    return b"[%b]" % b",".join(parts)


def cut_lists(body: bytes) -> tuple[bytes, dict[str, NumberList]]:
    """The body with short strings in place of its long lists of numbers under `data`, and the lists by these strings.

    The rest is for a JSON parser. Raises PayloadTooLarge where it holds too many values.
    """
    lists: dict[str, NumberList] = {}
    parts: list[bytes] = []
    done = at = 0
    for _ in range(MAX_LISTS):
        at = body.find(_KEY, at)
        if at < 0:
            break
        # Behind a backslash it is a part of a string. Elsewhere in valid JSON it is the whole of one.
        match = _LIST.match(body, at) if body[at - 1 : at] != b"\\" else None
        if match is None:
            at += len(_KEY)
            continue
        start = match.end()
        at = _end_of_numbers(body, start)
        if at - start >= PIECE:
            mark = f"{_MARK}:{len(lists)}"
            lists[mark] = NumberList(body, start, at)
            parts += (body[done:start], orjson.dumps(mark))
            done = at
    parts.append(body[done:])
    rest = b"".join(parts)
    # Those in strings are few as a rule: they are told apart only where it matters.
    if rest.count(b",") > MAX_VALUES and _has_more_commas(rest, MAX_VALUES):
        raise PayloadTooLarge(
            "the JSON holds too many values beside its lists of numbers", found=f"more than {MAX_VALUES}",
            expected=f"at most {MAX_VALUES}", hint="Send large tensors in the binary form.",
        )  # fmt: skip
    return rest, lists


def _has_more_commas(body: bytes, most: int) -> bool:
    """Whether there are more commas than `most` outside of strings."""
    commas = at = quotes = 0
    while at < len(body):
        # Not between a backslash and what it escapes.
        last = _BACKSLASHES.match(body, at + STEP - 1)
        assert last is not None
        end = last.end() + 1
        # Pairs first: what follows them is not escaped. Other escapes hide no quotes.
        piece = body[at:end].replace(rb"\\", b"").replace(rb"\"", b"")
        parts = piece.split(b'"')
        commas += b"".join(parts[quotes % 2 :: 2]).count(b",")
        if commas > most:
            return True
        quotes += len(parts) - 1
        at = end
        give_way()
    return False


def _end_of_numbers(body: bytes, start: int) -> int:
    """Where the list that starts here ends, if it holds numbers only; else some place before its end."""
    at = start
    while at < len(body):
        step = body[at : at + STEP]
        if step.translate(None, _NUMERIC):
            other = _NOT_NUMERIC.search(step)
            assert other is not None
            at += other.start()
            break
        at += len(step)
        give_way()
    end = body.rfind(b"]", start, at) + 1
    # In a list of other things, the last bracket may be that of an inner list.
    is_whole = body[end:at].strip(_SPACE) in (b"", b",") and body[at : at + 1] in (b'"', b"}")
    return end if is_whole else start + 1
