"""Attention, grouped attention and rotary kernels against ONNX Runtime's CPU kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.contrib_reference import (
    FLOAT,
    INT8,
    UINT8,
    Array,
    Case,
    Draw,
    check,
    check_float16,
    check_float64,
    run_onnxruntime,
    run_whet,
    scalar,
)

B, S, D, N = 2, 5, 12, 3  # batch, sequence, hidden, heads of the attention cases
F3 = (FLOAT, FLOAT, FLOAT)

# The masks that Attention takes, by name. A mask of ends and starts keeps at least two positions from the first on:
# a row whose visible positions are all masked has scores near -10000, which float32 resolves to 0.001 only.
MASKS: dict[str, Any] = {
    "none": lambda m, past: None,
    "raw": lambda m, past: m.ints(0, 2, B, past + S),
    "raw-3d": lambda m, past: m.ints(0, 2, B, S, past + S),
    "ends": lambda m, past: m.ints(1, past + S + 1, B),
    "ends-and-starts": lambda m, past: np.concatenate([m.ints(2, past + S + 1, B), m.ints(0, 1, B)]).astype(np.int32),
}

ATTENTION = [
    *(
        Case(
            "Attention",
            lambda m, mask=mask, past=past, biased=biased: [
                m.f(B, S, D),
                m.f(D, 3 * D),
                m.f(3 * D),
                MASKS[mask](m, past),
                m.f(2, B, N, past, D // N) if past else None,
                m.f(1, N, S, past + S) if biased else None,
            ],
            {"num_heads": N, "unidirectional": causal, "mask_filter_value": -50.0},
            (FLOAT, FLOAT),
            f"{mask}-past{past}-bias{int(biased)}",
            1e-4,
        )
        for mask in MASKS
        for past, biased in ((0, False), (0, True), (4, False))
        for causal in (0, 1)
    ),
    Case(
        "Attention",
        lambda m: [m.f(B, S, D), m.f(D, 33), m.f(33)],
        {"num_heads": N, "qkv_hidden_sizes": [12, 12, 9], "scale": 0.3},
    ),
    Case(
        "MultiHeadAttention",
        lambda m: [m.f(B, S, D), m.f(B, 7, D), m.f(B, 7, 9), m.f(33)],
        {"num_heads": N},
        note="cross",
    ),
    Case(
        "MultiHeadAttention",
        lambda m: [m.f(B, S, D), m.f(B, 7, D), m.f(B, 7, 9), None, m.ints(0, 2, B, 7), m.f(B, 1, S, 7)],
        {"num_heads": N, "mask_filter_value": -3.0},
        note="mask-bias",
    ),
    Case(
        "MultiHeadAttention",
        lambda m: [m.f(B, S, D), m.f(B, 7, D), m.f(B, 7, 9), None, m.ints(0, 2, B, S, 7)],
        {"num_heads": N, "mask_filter_value": -3.0},
        note="mask-3d",
    ),
    Case(
        "MultiHeadAttention",
        lambda m: [m.f(B, S, D), m.f(B, 7, D), m.f(B, 7, 9), None, m.ints(1, 8, B)],
        {"num_heads": N},
        note="lengths",
    ),
    *(
        Case(
            "MultiHeadAttention",
            lambda m: [
                *(m.f(B, S, D) for _ in range(3)),
                m.f(36),
                m.ints(0, 2, B, S + 4),
                m.f(1, 1, S, S + 4),
                m.f(B, N, 4, 4),
                m.f(B, N, 4, 4),
            ],
            {"num_heads": N, "unidirectional": causal, "mask_filter_value": -9.0},
            (*F3, FLOAT),
            "past-scores",
        )
        for causal in (0, 1)
    ),
    Case(
        "MultiHeadAttention",
        lambda m: [*(m.f(B, S, D) for _ in range(3)), m.f(36)],
        {"num_heads": N, "unidirectional": 1},
        F3,
        "present",
    ),
    Case(
        "MultiHeadAttention",
        lambda m: [m.f(B, S, D), m.f(B, N, 7, 4), m.f(B, N, 7, 4)],
        {"num_heads": N},
        note="split-kv",
    ),
    Case(
        "DecoderMaskedMultiHeadAttention",
        lambda m: [
            m.f(B, 1, D),
            m.f(B, 1, D),
            m.f(B, 1, D),
            None,
            None,
            m.f(B, N, 10, 4),
            m.f(B, N, 10, 4),
            np.array([4], np.int32),
        ],
        {"num_heads": N, "past_present_share_buffer": 1},
        F3,
    ),
    Case(
        "DecoderMaskedMultiHeadAttention",
        lambda m: [
            m.f(B, 1, D),
            m.f(B, 1, D),
            m.f(B, 1, D),
            m.ints(0, 2, B, 5),
            m.f(1, 1, 1, 5),
            m.f(B, N, 10, 4),
            m.f(B, N, 10, 4),
            np.array([4], np.int32),
            None,
            None,
            m.f(36),
        ],
        {"num_heads": N, "past_present_share_buffer": 1, "mask_filter_value": -9.0},
        F3,
        "mask-bias",
    ),
    Case(
        "DecoderMaskedMultiHeadAttention",
        lambda m: [m.f(B, 1, D), m.f(B, N, 6, 4), m.f(B, N, 6, 4)],
        {"num_heads": N},
        note="cross",
    ),
    Case(
        "DecoderMaskedMultiHeadAttention",
        lambda m: [
            m.f(B, 1, D),
            m.f(B, 1, D),
            m.f(B, 1, D),
            None,
            None,
            m.f(B, N, 10, 4),
            m.f(B, N, 10, 4),
            np.array([4], np.int32),
            np.array([2], np.int32),
            m.ints(0, 2, 1, 2, 10),
        ],
        {"num_heads": N, "past_present_share_buffer": 1},
        F3,
        "beams",
    ),
]


def grouped(
    note: str,
    *,
    past: int = 0,
    sequence: int = S,
    batch: int = B,
    capacity: int | None = None,
    size: int = 8,
    heads: int = 4,
    kv_heads: int = 2,
    packed: bool = False,
    rotary: int = 0,
    positions: bool = False,
    bias: bool = False,
    sink: bool = False,
    seqlens: list[int] | None = None,
    outputs: int = 3,
    **attributes: Any,
) -> Case:
    """A GroupQueryAttention case; the cache holds `past` rows in room for `capacity`."""
    total, room = past + sequence, past if capacity is None else capacity

    def make(m: Draw) -> list[Array | None]:
        q, k, v = (m.f(batch, sequence, n * size) for n in (heads, kv_heads, kv_heads))
        inputs: list[Array | None] = [np.concatenate([q, k, v], axis=2), None, None] if packed else [q, k, v]
        inputs += [m.f(batch, kv_heads, room, size) if room else None for _ in range(2)]
        inputs += [np.array(seqlens or [total - 1] * batch, np.int32), scalar(total, np.int32)]
        inputs += [m.f(32, rotary) if rotary else None for _ in range(2)]
        inputs += [m.ints(0, 32, batch, sequence, dtype=np.int64) if positions else None]
        inputs += [m.f(1, heads, sequence, total) if bias else None, m.f(heads) if sink else None]
        return inputs

    own = {"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": int(rotary > 0), **attributes}
    return Case("GroupQueryAttention", make, own, (FLOAT,) * outputs, note)


GROUPED = [
    grouped("prompt"),
    grouped("prompt-packed", packed=True),
    grouped("one-kv-head", heads=5, kv_heads=1),
    grouped("decode", past=6, sequence=1),
    grouped("decode-capacity", past=6, sequence=1, capacity=12),
    grouped("decode-ragged", past=6, sequence=1, capacity=12, seqlens=[3, 6]),
    grouped("decode-rotary", past=6, sequence=1, size=16, rotary=8),
    grouped("decode-rotary-partial", past=6, sequence=1, size=32, rotary=8),
    grouped("decode-positions", past=6, sequence=1, size=16, rotary=8, positions=True),
    grouped("prompt-interleaved", size=32, rotary=8, rotary_interleaved=1),
    grouped("chunk", past=6, sequence=3, batch=1, size=16, rotary=8),
    *(grouped("window", local_window_size=w) for w in (1, 2, 3, 9)),
    grouped("window-decode", past=6, sequence=1, local_window_size=3),
    grouped("softcap", softcap=2.0),
    grouped("softcap-bias", bias=True, softcap=2.0),
    grouped("sink", sink=True),
    grouped("sink-window", sink=True, local_window_size=2),
    grouped("smooth", smooth_softmax=1),
    grouped("all-see-all", causal=0),
    grouped("scores", qk_output=1, outputs=4),
    grouped("probabilities", qk_output=2, outputs=4),
    grouped("scores-softcap-bias", qk_output=1, softcap=1.5, bias=True, outputs=4),
    grouped("scores-decode", past=6, sequence=1, qk_output=1, outputs=4),
]


def grouped_cache(past: int, sequence: int, batch: int, bits: int, mode: str) -> Case:
    """GroupQueryAttention on a quantized cache."""
    heads, kv_heads, size = 4, 2, 8
    dtype, width = (np.int8, size) if bits == 8 else (np.uint8, size // 2)

    def make(m: Draw) -> list[Array | None]:
        q, k, v = (m.f(batch, sequence, n * size) for n in (heads, kv_heads, kv_heads))
        caches = [m.bytes(dtype, batch, kv_heads, past, width) for _ in range(2)]
        shape = (1,) if mode == "PER_TENSOR" else (1, kv_heads, 1, size)
        scales = [m.positive(*shape, scale=0.04 if bits == 8 else 0.5) for _ in range(2)]
        total = past + sequence
        lengths = [np.full(batch, total - 1, np.int32), scalar(total, np.int32)]
        return [q, k, v, *caches, *lengths, None, None, None, None, None, *scales]

    attributes = {
        "num_heads": heads,
        "kv_num_heads": kv_heads,
        "k_quant_type": mode,
        "v_quant_type": mode,
        "kv_cache_bit_width": bits,
    }
    kind = INT8 if bits == 8 else UINT8
    return Case("GroupQueryAttention", make, attributes, (FLOAT, kind, kind), f"past{past}")


QUANTIZED_CACHE = [
    *(
        grouped_cache(past, sequence, batch, bits, mode)
        for past, sequence, batch in ((6, 1, 2), (0, 5, 1))
        for bits in (8, 4)
        for mode in ("PER_TENSOR", "PER_CHANNEL")
    ),
]

ROTARY = [
    *(
        case
        for interleaved in (0, 1)
        for case in (
            Case(
                "RotaryEmbedding",
                lambda m: [m.f(2, 5, 24), m.ints(0, 20, 2, 5, dtype=np.int64), m.f(20, 4), m.f(20, 4)],
                {"interleaved": interleaved},
            ),
            Case(
                "RotaryEmbedding",
                lambda m: [m.f(2, 3, 5, 8), m.ints(0, 20, 2, 5, dtype=np.int64), m.f(20, 4), m.f(20, 4)],
                {"interleaved": interleaved},
                note="4d",
            ),
            Case(
                "RotaryEmbedding",
                lambda m: [m.f(2, 3, 5, 12), np.array([3]), m.f(20, 4), m.f(20, 4)],
                {"interleaved": interleaved, "rotary_embedding_dim": 8, "num_heads": 3},
                note="4d-partial",
            ),
            Case(
                "RotaryEmbedding",
                lambda m: [m.f(2, 5, 36), np.array([3]), m.f(20, 4), m.f(20, 4)],
                {"interleaved": interleaved, "rotary_embedding_dim": 8, "num_heads": 3},
                note="partial",
            ),
            *(
                Case(
                    "MRotaryEmbedding",
                    lambda m: [m.f(2, 3, 5, 16), m.ints(0, 20, 3, 2, 5, dtype=np.int64), m.f(20, 8), m.f(20, 8)],
                    {"interleaved": interleaved, "mrope_section": [3, 3, 2], "mrope_layout": layout},
                )
                for layout in (0, 1)
            ),
        )
    ),
]

COMPUTING = [*ATTENTION, *GROUPED, *ROTARY]
CASES = [*COMPUTING, *QUANTIZED_CACHE]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_as_onnxruntime(case: Case, seed: int) -> None:
    check(case, seed)


@pytest.mark.parametrize("case", COMPUTING, ids=str)
def test_float64_inputs_are_computed_in_float64(case: Case) -> None:
    check_float64(case)


@pytest.mark.parametrize("case", [ATTENTION[0], GROUPED[0], ROTARY[0]], ids=str)
def test_float16_inputs_give_float16_outputs(case: Case) -> None:
    check_float16(case)


def test_packed_qkv_and_kv_equal_separate_ones() -> None:
    m = Draw(7)
    packed = m.f(B, S, N, 3, 4)
    q, k, v = (packed[:, :, :, i].reshape(B, S, D).copy() for i in range(3))
    expected = run_whet("MultiHeadAttention", [q, k, v], {"num_heads": N})[0]
    np.testing.assert_array_equal(run_whet("MultiHeadAttention", [packed], {"num_heads": N})[0], expected)
    both = np.stack([k.reshape(B, S, N, 4), v.reshape(B, S, N, 4)], axis=3)
    np.testing.assert_array_equal(run_whet("MultiHeadAttention", [q, both], {"num_heads": N})[0], expected)


def test_attention_without_bias_equals_a_zero_bias() -> None:
    m = Draw(8)
    x, w = m.f(B, S, D), m.f(D, 3 * D)
    none, zero = (run_whet("Attention", [x, w, b], {"num_heads": N})[0] for b in (None, np.zeros(3 * D, np.float32)))
    np.testing.assert_array_equal(none, zero)


def test_a_shared_buffer_keeps_its_room() -> None:
    """Attention with past_present_share_buffer gives the same output, and the present inside the past's buffer."""
    m = Draw(9)
    x, w, b, buffer = m.f(B, S, D), m.f(D, 3 * D), m.f(3 * D), m.f(2, B, N, 12, 4)
    plain = run_whet("Attention", [x, w, b, None, buffer[:, :, :, :4].copy()], {"num_heads": N}, 2)
    shared = run_whet(
        "Attention",
        [x, w, b, None, buffer, None, np.array([4], np.int32)],
        {"num_heads": N, "past_present_share_buffer": 1},
        2,
    )
    np.testing.assert_array_equal(shared[0], plain[0])
    np.testing.assert_array_equal(shared[1][:, :, :, :9], plain[1])
    np.testing.assert_array_equal(shared[1][:, :, :, 9:], buffer[:, :, :, 9:])


def test_a_ragged_prompt_gives_each_row_its_own_answer() -> None:
    """Rows inside an entry's length equal ONNX Runtime's; those past it are padding, and defined by neither."""
    case = grouped("ragged", seqlens=[2, 4])
    inputs = case.make(Draw(10))
    expected = run_onnxruntime("GroupQueryAttention", inputs, case.attributes, case.outputs)
    actual = run_whet("GroupQueryAttention", inputs, case.attributes, 3)
    for entry, length in enumerate((3, 5)):
        np.testing.assert_allclose(actual[0][entry, :length], expected[0][entry, :length], rtol=2e-5, atol=2e-5)
    assert np.isfinite(actual[0]).all()


def test_q_and_k_norm_happen_before_the_scores() -> None:
    m = Draw(11)
    q, k, v = m.f(1, S, 32), m.f(1, S, 16), m.f(1, S, 16)
    weights = m.f(8), m.f(8)
    lengths = [np.array([S - 1], np.int32), scalar(S, np.int32)]
    attributes = {"num_heads": 4, "kv_num_heads": 2}
    normed = [
        (h / np.sqrt((h * h).mean(-1, keepdims=True) + 1e-6) * w).reshape(x.shape).astype(np.float32)
        for x, w in ((q, weights[0]), (k, weights[1]))
        for h in [x.reshape(1, S, -1, 8)]
    ]
    plain = run_whet("GroupQueryAttention", [*normed, v, None, None, *lengths], attributes)[0]
    fused = run_whet("GroupQueryAttention", [q, k, v, None, None, *lengths, *[None] * 7, *weights], attributes)[0]
    np.testing.assert_allclose(fused, plain, rtol=1e-5, atol=1e-5)
