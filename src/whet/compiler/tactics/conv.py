"""The tactics of convolutions, with what each costs: work counted in cycles of one core, and bytes of weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from whet.compiler.lowering import LowerEnv
from whet.compiler.tactics.choice import Tactic
from whet.compiler.views import hint
from whet.dtypes import DType
from whet.graph.dims import Known
from whet.kernels.conv import Window
from whet.kernels.winograd_tile import WEIGHT_CYCLES, choose_winograd_tile

CYCLES_PER_NS = 4.2
"""The core's clock; costs are compared with each other, so that only its ratio to the memory's rate matters."""
FMA_PER_CYCLE = 2
"""Vectors."""
WEIGHT_BYTES_PER_NS = 25.0
"""Weights come from memory: a network's are more than its caches hold."""
SUM_CYCLES, SUM_AGAIN_CYCLES = 1.0, 1.5
"""To write a vector of sums of a Winograd convolution to scratch memory, or to add to one that is there."""
SUMS_CYCLES = 20
"""To begin and end the depth loop of a tile of sums there."""
TILE_CYCLES = {2: 60, 4: 125}
INPUT_CYCLES = {2: 40, 4: 110}
OUTPUT_CYCLES = {2: 36, 4: 110}
"""By m: to find a tile's pixels, to take a vector of its channels to the points, and a vector of its outputs back."""
GATHER_CYCLES, GATHER_CHANNEL_CYCLES = 1.0, 0.17
"""To copy a piece of a patch, and for each channel in it."""
TAP_CYCLES = 2.2
"""To begin and end the depth loop of a tap, for a pixel."""
FETCH_SHARE = 0.1
"""Of the shorter of computing and fetching weights, what does not overlap with the other."""
DEPTHWISE_CYCLES = 0.8
"""For a tap of a vector: loads keep it from the peak."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """A convolution: `channels` to `outputs` numbers in each of `groups` groups; `image` and `out` are spatial."""

    window: Window
    groups: int
    channels: int
    outputs: int
    images: Known
    image: tuple[Known, ...]
    out: tuple[Known, ...]
    element: DType
    constant: bool
    """Whether the weights are."""

    @property
    def batch(self) -> int:
        """Images; one where that is not known."""
        return self.images if isinstance(self.images, int) else 1

    @property
    def pixels(self) -> int:
        """Output pixels of all images, about."""
        return self.batch * prod(hint(extent) for extent in self.out)


def winograd_tiles(g: Geometry, m: int) -> int | None:
    """How many tiles a Winograd convolution has; None where an image's extents are not known."""
    if not all(isinstance(n, int) for n in g.out):
        return None
    return g.batch * prod(-(-hint(extent) // m) for extent in g.out)


def _pointwise_refusal(g: Geometry, env: LowerEnv) -> str | None:
    if g.window.taps != 1 or any(s != 1 for s in g.window.strides) or any(g.window.pads):
        return "not 1x1 with stride 1 and no padding"
    return "groups" if g.groups > 1 else None


def _depthwise_refusal(g: Geometry, env: LowerEnv) -> str | None:
    if g.groups == 1 or g.channels != 1 or g.outputs != 1:
        return "its groups have more than one channel"
    if g.window.rank > 2:
        return "three spatial axes"
    return None if g.constant else "its weights are not constant"


def _no_refusal(g: Geometry, env: LowerEnv) -> str | None:
    return None


def _winograd_refusal(g: Geometry, env: LowerEnv) -> str | None:
    window = g.window
    if window.kernel != (3, 3):
        return "not 3x3"
    if any(n != 1 for n in (*window.strides, *window.dilations)):
        return "strides or dilations"
    if g.groups > 1:
        return "groups"
    if not g.constant:
        return "its weights are not constant"
    return None if g.element.is_float else f"{g.element}: intermediate results are no integers"


def _vectors(g: Geometry, env: LowerEnv) -> int:
    """Vectors of a group's outputs."""
    return -(-g.outputs // env.target.lanes(g.element))


def _ns(cycles: float, weights: float, g: Geometry) -> float:
    """Time for work beside which weights are fetched."""
    compute, fetch = cycles / CYCLES_PER_NS, weights * (g.element.bits // 8) / WEIGHT_BYTES_PER_NS
    return max(compute, fetch) + FETCH_SHARE * min(compute, fetch)


def _products_ns(g: Geometry, env: LowerEnv, more: float) -> float:
    """Time for a plain product, and `more` cycles."""
    depth = g.window.taps * g.channels
    cycles = g.pixels * g.groups * depth * _vectors(g, env) / FMA_PER_CYCLE
    return _ns(cycles + more, g.groups * g.outputs * depth, g)


def _pointwise_ns(g: Geometry, env: LowerEnv) -> float:
    return _products_ns(g, env, 0)


def _depthwise_ns(g: Geometry, env: LowerEnv) -> float:
    vectors = -(-g.groups // env.target.lanes(g.element))
    return _ns(g.pixels * vectors * g.window.taps * DEPTHWISE_CYCLES, g.groups * g.window.taps, g)


def _im2col_ns(g: Geometry, env: LowerEnv) -> float:
    piece = GATHER_CYCLES + g.channels * GATHER_CHANNEL_CYCLES
    return _products_ns(g, env, g.pixels * g.groups * g.window.taps * piece)


def _direct_ns(g: Geometry, env: LowerEnv) -> float:
    return _products_ns(g, env, g.pixels * g.groups * g.window.taps * TAP_CYCLES)


def _winograd_ns(g: Geometry, env: LowerEnv, m: int) -> float:
    lanes = env.target.lanes(g.element)
    count = winograd_tiles(g, m)
    mr, nv, block, _, depth = choose_winograd_tile(env.target, g.channels, g.outputs, count, m, g.element)
    tiles = count if count is not None else ceil(g.pixels / m**2)
    blocks, points = -(-tiles // block), (m + 2) ** 2
    inputs, outputs = -(-g.channels // lanes), -(-g.outputs // (nv * lanes)) * nv
    rows = tiles // block * (-(-block // mr) * mr) + -(-(tiles % block) // mr) * mr
    parts = 1 if depth is None else -(-g.channels // depth)
    channels = g.channels if depth is None else parts * depth
    each = (SUM_CYCLES if depth is None else SUM_AGAIN_CYCLES) + SUMS_CYCLES / (mr * nv)
    cycles = points * (rows * channels * outputs / FMA_PER_CYCLE + parts * rows * outputs * each)
    cycles += tiles * (TILE_CYCLES[m] + inputs * INPUT_CYCLES[m] + outputs * OUTPUT_CYCLES[m])
    weights = g.channels * g.outputs
    if depth is None:
        return _ns(cycles, weights * points, g)
    return _ns(cycles + blocks * g.channels * outputs * WEIGHT_CYCLES[m], weights * g.window.taps, g)


def _winograd4_ns(g: Geometry, env: LowerEnv) -> float:
    return _winograd_ns(g, env, 4)


def _winograd2_ns(g: Geometry, env: LowerEnv) -> float:
    return _winograd_ns(g, env, 2)


CONV_TACTICS: tuple[Tactic[Geometry], ...] = (
    Tactic("pointwise", _pointwise_refusal, _pointwise_ns),
    Tactic("depthwise", _depthwise_refusal, _depthwise_ns),
    Tactic("direct", _no_refusal, _direct_ns),
    Tactic("im2col", _no_refusal, _im2col_ns),
    Tactic("winograd4", _winograd_refusal, _winograd4_ns),
    Tactic("winograd2", _winograd_refusal, _winograd2_ns),
)
