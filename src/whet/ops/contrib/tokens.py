"""Tokenizer: strings into tokens, by separators, by an expression, or by character."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.contrib.common import (
    Attributes,
    Inputs,
    Outputs,
    expect_allocatable,
    expect_rank,
    integer,
    required,
    text,
)

START, END = "\x02", "\x03"
"""What `mark` puts before the first token and after the last."""

_POSIX: dict[str, str] = {
    "[:alnum:]": "0-9A-Za-z", "[:alpha:]": "A-Za-z", "[:ascii:]": r"\x00-\x7F", "[:blank:]": r"\t ",
    "[:cntrl:]": r"\x00-\x1F\x7F", "[:digit:]": "0-9", "[:graph:]": "!-~", "[:lower:]": "a-z", "[:print:]": " -~",
    "[:punct:]": r"!-/:-@\[-`{-~", "[:space:]": r"\t\n\v\f\r ", "[:upper:]": "A-Z", "[:word:]": "0-9A-Za-z_",
    "[:xdigit:]": "0-9A-Fa-f",
}  # fmt: skip
# Runs of one class of characters, within words or not: here the first match that Python finds is the longest as well.
_RUN = re.compile(
    r"(?:\\b)?(\[(?:\\.|[^\]\\])+\]|\\[wWdDsS]|[^\\|?*+(){}\[\]^$.])\1*(?:[+*?]|\{\d+(?:,\d*)?\})?(?:\\b)?", re.DOTALL
)


def tokenizer(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Tokens of each string of X, [C] or [N, C], along a new last axis, padded with `pad_value`.

    Expressions match as RE2's do: the leftmost, then longest match, classes of ASCII characters.
    """
    x = required(inputs, 0, "X")
    expect_rank(x, (1, 2), "X")
    least = integer(attributes, "mincharnum", least=1)
    pad = text(attributes, "pad_value", None)
    mark = integer(attributes, "mark") != 0
    if x.size == 0:
        return [x.copy()] if x.ndim == 1 else [np.empty((len(x), 0), np.object_)]
    separators: Sequence[str] = attributes.get("separators") or ()
    expression = text(attributes, "tokenexp", "")
    if not separators and not expression:
        raise InvalidArgument("one of the attributes separators and tokenexp must be set")
    if (len(separators) == 1 and separators[0] == "") or (not separators and expression == "."):
        if least > 1:
            raise InvalidArgument("attribute mincharnum is too large for characters", found=least, expected=1)
        rows = [list(string) for string in x.ravel()]
    elif separators:
        patterns = [_separator(s) for s in separators]
        rows = [[t for t in _split(string, patterns) if len(t) >= least] for string in x.ravel()]
    else:
        pattern, greedy = _compiled(expression)
        rows = [[t for b, e in _matches(pattern, greedy, s) if len(t := s[b:e]) >= least] for s in x.ravel()]
    width = max(map(len, rows))
    if width and mark:
        rows = [[START, *row, END] for row in rows]
        width += 2
    shape = (*x.shape, width)
    expect_allocatable(shape, np.dtype(np.object_), "the tokens")
    result = np.full((x.size, width), pad, np.object_)
    for target, row in zip(result, rows, strict=True):
        target[: len(row)] = row
    return [result.reshape(shape)]


def _separator(expression: str) -> tuple[re.Pattern[str], bool]:
    pattern, greedy = _compiled(expression)
    if pattern.fullmatch("") is not None:
        raise InvalidArgument("a separator matches the empty string", value="separators", found=expression)
    return pattern, greedy


@lru_cache(maxsize=256)
def _compiled(expression: str) -> tuple[re.Pattern[str], bool]:
    """The expression for Python, and whether its first match is its longest."""
    translated = expression
    for name, characters in _POSIX.items():
        translated = translated.replace(name, characters)
    try:
        if "[:" in translated:
            raise re.error("an unknown class of characters")
        return re.compile(translated, re.ASCII), _is_greedy(translated)
    except re.error as error:
        raise InvalidArgument("a regular expression cannot be read", found=expression, hint=str(error)) from error


def _is_greedy(expression: str) -> bool:
    return _RUN.fullmatch(expression) is not None or not set(expression) & set("\\|?*+(){}[]^$.")


def _matches(pattern: re.Pattern[str], greedy: bool, string: str) -> Iterator[tuple[int, int]]:
    """The leftmost longest matches that are not empty, one after the other."""
    position = 0
    while position < len(string):
        found = pattern.search(string, position)
        if found is None:
            return
        begin, end = found.span()
        if not greedy:
            longer = (stop for stop in range(len(string), end, -1) if pattern.fullmatch(string, begin, stop))
            end = next(longer, end)
        if end > begin:
            yield begin, end
        position = max(end, begin + 1)


def _split(string: str, separators: Sequence[tuple[re.Pattern[str], bool]]) -> list[str]:
    """What is left of the string when each separator in turn is cut out of all pieces."""
    pieces = [string]
    for pattern, greedy in separators:
        cut: list[str] = []
        for piece in pieces:
            last = 0
            for begin, end in _matches(pattern, greedy, piece):
                cut.append(piece[last:begin])
                last = end
            cut.append(piece[last:])
        pieces = [piece for piece in cut if piece]
    return pieces
