"""Scaled dot-product attention in tiles (Dao et al., "FlashAttention", 2022): no scores are written to memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from whet.codegen.lang import Function, Operand, Pointer, Value, convert, maximum, minimum, reinterpret
from whet.codegen.target import Target
from whet.dtypes import FLOAT32, INT32, INT64, DType
from whet.kernels.attention_panels import PanelMemory, attend_panels, panel_shape
from whet.kernels.attention_parts import Head
from whet.kernels.attention_rows import RowMemory, attend_rows
from whet.kernels.base import Frame

_FAR = 1 << 40
"""A window as wide as this has no limit; wider ones are cut, so that sums with positions do not overflow."""


@dataclass(frozen=True, slots=True)
class Attention:
    """y = softmax(scale Q K' + mask) V in float32, for every batch entry and head, `tile_queries` queries in a tile.

    q [batch, query_heads, queries, head], k [batch, key_heads, keys, head], v [batch, key_heads, keys, value_head], y
    [batch, query_heads, queries, value_head]; query_heads is a multiple of key_heads, and query head h reads key head
    h * key_heads / query_heads. Grid: `tiles(target, batch, query_heads, queries)`.

    Words: q, k, v, y (addresses); query_heads, key_heads, queries, keys; q_batch, q_head, q_row, and the same for k, v
    and y (strides; a row's elements lie in a row); then, where the fields ask for them:
    - scale: the bits of a float32 (`scale` is None);
    - lengths: address of one int32 or int64 for each batch entry, the keys that it has, limited to [0, keys]; keys past
      it are not read (`lengths`);
    - offset: the position of query 0 among the keys (`causal` or a window, without `offset_from_lengths`, which puts
      the last query at the last key of its batch entry);
    - left, right: how far a query sees to both sides (`left_window`, `right_window` without `causal`; at least 0);
    - mask: address of float32 addends or of bools (true: seen), and its strides mask_batch, mask_head, mask_row,
      mask_key, 0 along an extent that is broadcast (`mask`);
    - sink: address of one float32 for each query head, the score of a further key whose value is 0 (`sink`).

    Scores become softcap * tanh(score / softcap) before the mask where `softcap` is not 0. A query that sees no key, or
    only keys with a mask of minus infinity, gets zeros. Scores sum in float32.
    """

    head: int
    value_head: int
    scale: float | None = None
    causal: bool = False
    left_window: bool = False
    right_window: bool = False
    mask: DType | None = None
    lengths: DType | None = None
    offset_from_lengths: bool = False
    softcap: float = 0.0
    sink: bool = False
    tile_queries: int = 64

    @property
    def bounded(self) -> bool:
        """Whether the keys that a query sees depend on its position."""
        return self.causal or self.left_window or self.right_window

    def tile_rows(self, target: Target) -> int:
        """Queries in a tile: about `tile_queries`, in whole panels."""
        return panel_shape(target, self.tile_queries).tile_rows

    def tiles(self, target: Target, batch: int, query_heads: int, queries: int) -> int:
        """Tiles in the grid: batch * query_heads * ceil(queries / tile_rows)."""
        return batch * query_heads * -(-queries // self.tile_rows(target))

    def emit(self, frame: Frame) -> None:
        k = frame.k
        words = _Words(frame, self)
        shape = panel_shape(frame.target, self.tile_queries)
        panels = PanelMemory(frame, shape, self.head, self.value_head)
        rows = RowMemory(frame, self.head, self.value_head)
        with frame.tiles() as tile:
            head = words.head(k, tile, self.tile_rows(frame.target))
            with k.when(head.rows <= shape.few_rows):
                attend_rows(k, head, rows)
            with k.otherwise():
                attend_panels(k, head, panels)


class _Words:
    """The kernel's arguments."""

    def __init__(self, frame: Frame, spec: Attention) -> None:
        self.spec = spec
        self.q, self.k, self.v, self.y = (frame.address(name, FLOAT32) for name in ("q", "k", "v", "y"))
        self.query_heads, self.key_heads, self.queries, self.keys = (
            _word(frame, name) for name in ("query_heads", "key_heads", "queries", "keys")
        )
        self.strides = {
            f"{name}_{axis}": _word(frame, f"{name}_{axis}") for name in "qkvy" for axis in ("batch", "head", "row")
        }
        self.scale: Operand
        if spec.scale is None:
            bits = reinterpret(_word(frame, "scale"), INT32)
            self.scale = reinterpret(bits.lane(0), FLOAT32)
        else:
            self.scale = spec.scale
        self.lengths = None if spec.lengths is None else frame.address("lengths", spec.lengths)
        self.offset: Operand = 0
        if spec.bounded and not spec.offset_from_lengths:
            self.offset = _word(frame, "offset")
        self.left = _word(frame, "left") if spec.left_window else None
        self.right: Operand | None = 0 if spec.causal else None
        if spec.right_window and not spec.causal:
            self.right = _word(frame, "right")
        self.mask: Pointer | None = None
        if spec.mask is not None:
            self.mask = frame.address("mask", spec.mask)
            self.strides |= {f"mask_{axis}": _word(frame, f"mask_{axis}") for axis in ("batch", "head", "row", "key")}
        self.sink = frame.address("sink", FLOAT32) if spec.sink else None

    def head(self, k: Function, tile: Value, tile_rows: int) -> Head:
        """What tile number `tile` works on."""
        s, spec = self.strides, self.spec
        row_tiles = (self.queries + (tile_rows - 1)) / tile_rows
        pair, row_tile = tile / row_tiles, tile % row_tiles
        batch, head = pair / self.query_heads, pair % self.query_heads
        key_head = head * self.key_heads / self.query_heads
        row = row_tile * tile_rows
        rows = minimum(self.queries - row, tile_rows)
        first, end = k.index(0), self.keys
        if self.lengths is not None:
            given = convert(self.lengths.load(batch), INT64)
            end = minimum(maximum(given, 0), end)
        position = row + (end - self.queries if spec.offset_from_lengths else self.offset)
        upper = lower = None
        if self.right is not None:
            upper = minimum(position + minimum(k.index(self.right), _FAR), self.keys)
            end = minimum(end, maximum(upper + rows, 0))
        if self.left is not None:
            lower = position - minimum(self.left, _FAR)
            first = maximum(lower, 0)
        mask = None
        if self.mask is not None:
            mask = self.mask + (batch * s["mask_batch"] + head * s["mask_head"] + row * s["mask_row"])
        sink = None if self.sink is None else self.sink.load(head)
        found = Head(
            q=self.q + (batch * s["q_batch"] + head * s["q_head"] + row * s["q_row"]),
            k=self.k + (batch * s["k_batch"] + key_head * s["k_head"]),
            v=self.v + (batch * s["v_batch"] + key_head * s["v_head"]),
            y=self.y + (batch * s["y_batch"] + head * s["y_head"] + row * s["y_row"]),
            q_row=s["q_row"], k_row=s["k_row"], v_row=s["v_row"], y_row=s["y_row"],
            rows=rows, first=first, end=end, upper=upper, lower=lower,
            mask=mask, mask_row=s.get("mask_row", k.index(0)), mask_key=s.get("mask_key", k.index(0)),
            scale=self.scale, softcap=spec.softcap,
            sink=sink,
        )  # fmt: skip
        return found if sink is None else replace(found, sink=sink * found.unit)


def _word(frame: Frame, name: str) -> Value:
    return frame.k.index(frame.number(name))
