"""Attention kernels against softmax(scale Q K' + mask) V in float64.

Tolerance: 2e-5 relative plus 4e-6: scores of magnitude up to 10 carry float32 rounding errors into the exponent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_tools import Run, run_kernel, run_kernels
from whet.codegen.target import AVX2, AVX512, Target
from whet.dtypes import BOOL, FLOAT32, INT32, INT64
from whet.kernels.attention import Attention

Array = np.ndarray[Any, Any]


@dataclass
class Case:
    """Extents, a spec, and what its fields ask for."""

    spec: Attention
    batch: int
    heads: int
    key_heads: int
    queries: int
    keys: int
    scale: float = 0.25
    offset: int = 0
    left: int = 0
    right: int = 0
    mask: Array | None = None
    lengths: Array | None = None
    sink: Array | None = None
    q: Array = field(init=False)
    k: Array = field(init=False)
    v: Array = field(init=False)
    y: Array = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.queries * 1000 + self.keys)
        head, value_head = self.spec.head, self.spec.value_head
        # Heads as views of [batch, rows, heads * head].
        self.q = rng.standard_normal((self.batch, self.queries, self.heads, head), np.float32).transpose(0, 2, 1, 3)
        self.k = rng.standard_normal((self.batch, self.keys, self.key_heads, head), np.float32).transpose(0, 2, 1, 3)
        self.v = rng.standard_normal((self.batch, self.keys, self.key_heads, value_head), np.float32)
        self.v = self.v.transpose(0, 2, 1, 3)
        self.y = np.full((self.batch, self.queries, self.heads, value_head), np.nan, np.float32).transpose(0, 2, 1, 3)

    def words(self) -> dict[str, Any]:
        """The kernel's arguments."""
        words: dict[str, Any] = {
            "q": self.q, "k": self.k, "v": self.v, "y": self.y,
            "query_heads": self.heads, "key_heads": self.key_heads, "queries": self.queries, "keys": self.keys,
        }  # fmt: skip
        for name in "qkvy":
            for axis, part in enumerate(("batch", "head", "row")):
                words[f"{name}_{part}"] = words[name].strides[axis] // 4
        spec = self.spec
        if spec.scale is None:
            words["scale"] = int(np.float32(self.scale).view(np.int32))
        if spec.bounded and not spec.offset_from_lengths:
            words["offset"] = self.offset
        if spec.left_window:
            words["left"] = self.left
        if spec.right_window and not spec.causal:
            words["right"] = self.right
        if self.mask is not None:
            view = np.broadcast_to(self.mask, (self.batch, self.heads, self.queries, self.keys))
            words["mask"] = self.mask
            for axis, part in enumerate(("batch", "head", "row", "key")):
                words[f"mask_{part}"] = view.strides[axis] // self.mask.itemsize
        if self.lengths is not None:
            words["lengths"] = self.lengths
        if self.sink is not None:
            words["sink"] = self.sink
        return words

    def expected(self) -> Array:
        """The definition, in float64."""
        group = self.heads // self.key_heads
        q = self.q.astype(np.float64)
        k, v = (np.repeat(x.astype(np.float64), group, axis=1) for x in (self.k, self.v))
        scores = q @ k.swapaxes(-1, -2) * (self.scale if self.spec.scale is None else self.spec.scale)
        if self.spec.softcap:
            scores = np.tanh(scores / self.spec.softcap) * self.spec.softcap
        if self.mask is not None:
            scores = np.where(self.mask, scores, -np.inf) if self.mask.dtype == bool else scores + self.mask
        row, key = np.arange(self.queries)[:, None], np.arange(self.keys)
        lengths = np.full(self.batch, self.keys) if self.lengths is None else np.clip(self.lengths, 0, self.keys)
        for b in range(self.batch):
            offset = lengths[b] - self.queries if self.spec.offset_from_lengths else self.offset
            seen = np.broadcast_to(key < lengths[b], (self.queries, self.keys))
            if self.spec.causal:
                seen = seen & (key <= row + offset)
            elif self.spec.right_window:
                seen = seen & (key <= row + offset + min(self.right, 1000))
            if self.spec.left_window:
                seen = seen & (key >= row + offset - min(self.left, 1000))
            scores[b] = np.where(seen, scores[b], -np.inf)
        top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        sink = np.zeros((self.heads, 1, 1)) if self.sink is None else self.sink.reshape(-1, 1, 1).astype(np.float64)
        if self.sink is not None:
            top = np.maximum(top, sink)
        top = np.where(np.isneginf(top), 0, top)
        powers = np.exp(scores - top)
        total = powers.sum(axis=-1, keepdims=True) + (0 if self.sink is None else np.exp(sink - top))
        return powers / np.where(total == 0, 1, total) @ v

    def run(self, target: Target, calls: int = 1) -> Run:
        """The kernel's run, in `calls` calls."""
        return Run(self.spec, self.words(), self.spec.tiles(target, self.batch, self.heads, self.queries), calls)


def check(target: Target, cases: list[Case]) -> None:
    """Run the cases and compare."""
    statuses = run_kernels(target, [case.run(target, 1 + number % 3) for number, case in enumerate(cases)])
    assert statuses == [0] * len(cases)
    for case in cases:
        np.testing.assert_allclose(case.y, case.expected(), rtol=2e-5, atol=4e-6, err_msg=str(case.spec))


def masks(rng: np.random.Generator, case: tuple[int, int, int, int], boolean: bool) -> list[Array]:
    """Masks of each kind of broadcast."""
    b, h, s, t = case
    shapes = [(b, h, s, t), (1, 1, s, t), (b, 1, 1, t), (1, h, s, 1), (1, 1, 1, 1)]
    if boolean:
        return [rng.random(shape) < 0.6 for shape in shapes]
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("target", TARGETS)
def test_every_remainder_of_queries_and_keys(target: Target) -> None:
    spec = Attention(8, 8)
    cases = [
        Case(spec, 1, 2, 1, queries, keys)
        for queries in (*range(1, 18), 31, 33, 63, 64, 65, 130)
        for keys in (1, 5, 12, 13, 70)
    ]
    cases += [Case(spec, 1, 1, 1, queries, keys) for queries in (1, 20) for keys in range(1, 71)]
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_head_sizes(target: Target) -> None:
    sizes = [(1, 1), (2, 3), (3, 13), (7, 16), (15, 17), (17, 15), (31, 33), (40, 40), (64, 12), (80, 80), (25, 160)]
    check(
        target,
        [
            Case(Attention(head, value_head, scale=0.2), 1, 2, 2, queries, 37)
            for head, value_head in sizes
            for queries in (2, 21, 40)
        ],
    )


@pytest.mark.parametrize("target", TARGETS)
def test_long_rows_take_several_blocks(target: Target) -> None:
    spec = Attention(16, 16)
    check(target, [Case(spec, 1, 1, 1, queries, keys) for queries in (1, 40) for keys in (192, 193, 257, 500, 600)])


@pytest.mark.parametrize("target", TARGETS)
def test_grouped_heads_and_batches(target: Target) -> None:
    spec = Attention(9, 11)
    check(target, [Case(spec, 3, 6, groups, queries, 20) for groups in (1, 2, 3, 6) for queries in (1, 35)])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("boolean", [False, True])
def test_masks(target: Target, boolean: bool) -> None:
    rng = np.random.default_rng(3)
    spec = Attention(8, 8, mask=BOOL if boolean else FLOAT32)
    cases = []
    for queries, keys in ((1, 40), (3, 7), (50, 35), (70, 210)):
        cases += [Case(spec, 2, 2, 1, queries, keys, mask=mask) for mask in masks(rng, (2, 2, queries, keys), boolean)]
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_causal_with_a_past_and_windows(target: Target) -> None:
    cases = []
    extents = [(1, 30, 29), (9, 30, 21), (40, 40, 0), (70, 300, 230), (70, 300, -20), (5, 8, 50)]
    extents += [(2, 30, 26), (3, 30, 20), (4, 30, 26), (20, 22, 20)]
    for queries, keys, offset in extents:
        cases += [
            Case(Attention(8, 8, causal=True), 1, 2, 1, queries, keys, offset=offset),
            Case(Attention(8, 8, causal=True, left_window=True), 1, 2, 1, queries, keys, offset=offset, left=6),
            Case(
                Attention(8, 8, left_window=True, right_window=True), 1, 1, 1, queries, keys,
                offset=offset, left=40, right=3,
            ),
            Case(Attention(8, 8, right_window=True), 1, 1, 1, queries, keys, offset=offset, right=2**63 - 1),
        ]  # fmt: skip
    cases += [Case(Attention(8, 8, left_window=True), 1, 1, 1, q, 8, offset=-3, left=2**63 - 1) for q in (1, 9)]
    # The last query of a panel alone does not see the first key.
    windowed = Attention(8, 8, left_window=True)
    cases += [Case(windowed, 1, 1, 1, queries, queries, left=queries - 2) for queries in (8, 16, 32)]
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_lengths(target: Target) -> None:
    cases = []
    for queries in (1, 20):
        for kind, array in ((INT32, np.int32), (INT64, np.int64)):
            lengths = np.array([0, 1, 25, 60, 99, -4], array)
            cases += [
                Case(Attention(8, 8, lengths=kind), 6, 2, 2, queries, 60, lengths=lengths),
                Case(
                    Attention(8, 8, lengths=kind, causal=True, offset_from_lengths=True), 6, 2, 2, queries, 60,
                    lengths=lengths,
                ),
            ]  # fmt: skip
    # What lies past an entry's length is not looked at.
    for case in cases:
        for b, length in enumerate(np.clip(case.lengths, 0, 60)):
            case.k[b, :, length:] = np.nan
            case.v[b, :, length:] = np.nan
    statuses = run_kernels(target, [case.run(target) for case in cases])
    assert statuses == [0] * len(cases)
    for case in cases:
        case.k[np.isnan(case.k)], case.v[np.isnan(case.v)] = 0, 0
        np.testing.assert_allclose(case.y, case.expected(), rtol=2e-5, atol=4e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_softcap_and_sink(target: Target) -> None:
    sink = np.array([0.5, -1.0, 3.0, -np.inf], np.float32)
    cases = []
    for queries in (1, 40):
        cases += [
            Case(Attention(8, 8, softcap=0.7), 1, 4, 2, queries, 30),
            Case(Attention(8, 8, sink=True), 2, 4, 2, queries, 30, sink=sink),
            Case(Attention(8, 8, softcap=2.0, sink=True, causal=True), 1, 4, 2, queries, 50, offset=5, sink=sink),
        ]
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_rows_without_a_key_are_zero(target: Target) -> None:
    cases = []
    for queries in (1, 33):
        spec = Attention(8, 8, mask=FLOAT32)
        mask = np.zeros((1, 1, queries, 20), np.float32)
        mask[0, 0, ::2] = -np.inf
        cases += [
            Case(spec, 1, 1, 1, queries, 20, mask=mask),
            Case(Attention(8, 8, mask=BOOL), 1, 1, 1, queries, 20, mask=np.isfinite(mask)),
            Case(Attention(8, 8, causal=True), 1, 1, 1, queries, 20, offset=-queries // 2),
            Case(Attention(8, 8), 1, 1, 1, queries, 0),
        ]
    check(target, cases)
    assert (cases[0].y[0, 0, 0] == 0).all()


@pytest.mark.parametrize("target", TARGETS)
def test_the_least_float_as_mask_is_not_minus_infinity(target: Target) -> None:
    mask = np.full((1, 1, 1, 10), np.finfo(np.float32).min, np.float32)
    cases = [Case(Attention(8, 8, mask=FLOAT32), 1, 1, 1, queries, 10, mask=mask) for queries in (1, 30)]
    assert run_kernels(target, [case.run(target) for case in cases]) == [0, 0]
    for case in cases:
        # Every score is the same number after the mask: the mean of the values.
        np.testing.assert_allclose(case.y[0, 0], np.tile(case.v[0, 0].mean(0), (case.queries, 1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_not_a_number_stays_in_its_row(target: Target) -> None:
    cases = [Case(Attention(8, 8), 1, 1, 1, queries, 30) for queries in (1, 40)]
    for case in cases:
        case.q[0, 0, 0, 3] = np.nan
    run_kernels(target, [case.run(target) for case in cases])
    for case in cases:
        assert np.isnan(case.y[0, 0, 0]).all()
        np.testing.assert_allclose(case.y[0, 0, 1:], case.expected()[0, 0, 1:], rtol=2e-5, atol=4e-6)


@pytest.mark.parametrize("target", [AVX512, AVX2], ids=["avx512", "avx2"])
def test_the_cut_of_the_grid_changes_nothing(target: Target) -> None:
    spec = Attention(20, 20, causal=True)
    results = []
    for calls in (1, 2, 7):
        case = Case(spec, 2, 3, 1, 150, 300, offset=150)
        assert run_kernel(target, spec, case.words(), spec.tiles(target, 2, 3, 150), calls) == 0
        results.append(case.y.tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("target", [AVX512, AVX2], ids=["avx512", "avx2"])
def test_nothing_is_written_beside_the_rows(target: Target) -> None:
    case = Case(Attention(5, 5), 1, 2, 2, 37, 9)
    room = np.full((1, 37, 2, 9), 7.0, np.float32)
    case.y = room[..., 2:7].transpose(0, 2, 1, 3)
    assert run_kernels(target, [case.run(target)]) == [0]
    np.testing.assert_allclose(case.y, case.expected(), rtol=2e-5, atol=4e-6)
    assert (room[..., :2] == 7).all()
    assert (room[..., 7:] == 7).all()


@pytest.mark.parametrize("target", TARGETS)
def test_tiles_of_other_sizes(target: Target) -> None:
    cases = []
    for size in (1, 32, 128, 256):
        cases += [Case(Attention(20, 12, tile_queries=size), 1, 2, 1, queries, 200) for queries in (3, 40, 130, 260)]
        cases.append(Case(Attention(8, 8, causal=True, tile_queries=size), 1, 1, 1, 150, 300, offset=150))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_weights_are_exact_powers(target: Target) -> None:
    # Scores that are exact: what is left is the error of exponentials, of their sums and of one product.
    cases = []
    for queries in (1, 40):
        case = Case(Attention(1, 2, scale=1.0, mask=FLOAT32), 1, 1, 1, queries, 2)
        steps = np.linspace(-30.0, 0.0, 2 * queries, dtype=np.float32)
        case.mask = np.stack([steps[::2], np.zeros(queries, np.float32)], axis=-1).reshape(1, 1, queries, 2)
        case.q[...] = 0.0
        case.v[0, 0] = [[1.0, 0.0], [0.0, 1.0]]
        cases.append(case)
    assert run_kernels(target, [case.run(target) for case in cases]) == [0, 0]
    for case in cases:
        # log2(e) times a score of 30 is rounded to 2**-19.
        np.testing.assert_allclose(case.y, case.expected(), rtol=2e-6, atol=0)
