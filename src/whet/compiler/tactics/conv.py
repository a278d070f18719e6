"""The tactics of convolutions, with what each costs: work counted in cycles of one core, and bytes of weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from whet.compiler.lowering import LowerEnv
from whet.compiler.tactics.choice import Tactic
from whet.compiler.tactics.rates import rates
from whet.compiler.views import hint
from whet.dtypes import DType
from whet.graph.dims import Known
from whet.kernels.conv import Window
from whet.kernels.grouped import bundle_of, choose_grouped_tile
from whet.kernels.winograd_axis import Axis
from whet.kernels.winograd_few import choose_few_tile
from whet.kernels.winograd_tile import WEIGHT_CYCLES, choose_line_tile, choose_winograd_tile

FMA_PER_CYCLE = 2
"""Vectors."""
SUM_CYCLES, SUM_AGAIN_CYCLES = 1.0, 1.5
"""To write a vector of sums of a Winograd convolution to scratch memory, or to add to one that is there."""
SUMS_CYCLES = 20
"""To begin and end the depth loop of a tile of sums there."""
TILE_CYCLES = {Axis(2): 60, Axis(4): 125, Axis(2, 2): 90, Axis(4, 2): 280}
INPUT_CYCLES = {Axis(2): 40, Axis(4): 110, Axis(2, 2): 80, Axis(4, 2): 450}
OUTPUT_CYCLES = {Axis(2): 36, Axis(4): 110, Axis(2, 2): 50, Axis(4, 2): 280}
"""To find a tile's pixels, to take a vector of its channels to the points, and a vector of its outputs back."""
FEW_TAP_CYCLES = 12
"""To take a vector of taps to a row of the points in registers."""
LINE_TILE_CYCLES, LINE_INPUT_CYCLES, LINE_OUTPUT_CYCLES = 40, 24, 24
"""The same of a convolution along one axis."""
LINE_WEIGHT_BYTES = 16 << 20
"""Weights at the points that are larger are not kept, however much they would save."""
GATHER_CYCLES, GATHER_CHANNEL_CYCLES = 1.0, 0.17
"""To copy a piece of a patch, and for each channel in it."""
COPY_CYCLES, COPIES_OF_PIXEL = 3.0, 1.4
"""To copy a vector of the input with its padding, and how often."""
TAP_CYCLES = 2.2
"""To begin and end the depth loop of a tap, for a pixel."""
FETCH_SHARE = 0.1
"""Of the shorter of computing and fetching weights, what does not overlap with the other."""
DEPTHWISE_CYCLES = 0.8
"""For a tap of a vector: loads keep it from the peak."""
GROUPED_CHANNELS = 64
"""The most of a group whose vectors of outputs are computed by themselves."""
PERMUTE_CYCLES, STORE_CYCLES, LEAST_SUMS = 0.25, 2.0, 8
"""To permute a vector of a few groups' channels; to begin and to write a vector of sums; as many as hide the latency of
an fma."""


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


def line_axis(g: Geometry) -> int | None:
    """The one axis along which a convolution has more taps than one; None where there is no such axis."""
    axes = [axis for axis, extent in enumerate(g.window.kernel) if extent > 1]
    return axes[0] if len(axes) == 1 else None


def line_tiles(g: Geometry, points: int) -> int | None:
    """How many tiles a convolution along one axis has; None where an image's extents are not known."""
    axis = line_axis(g)
    if axis is None or not all(isinstance(n, int) for n in g.out):
        return None
    extent = hint(g.out[axis])
    m = points - g.window.kernel[axis] + 1
    return g.pixels // extent * -(-extent // m) if extent else 0


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


def _grouped_refusal(g: Geometry, env: LowerEnv) -> str | None:
    if g.groups == 1:
        return "one group"
    if g.window.rank > 2:
        return "three spatial axes"
    if g.channels > GROUPED_CHANNELS:
        return f"more than {GROUPED_CHANNELS} channels in a group: a product of each group is as fast"
    return None if g.constant else "its weights are not constant"


def _padded_refusal(g: Geometry, env: LowerEnv) -> str | None:
    if g.window.rank > 2:
        return "three spatial axes"
    if g.window.dilations[-1] != 1:
        return "the taps of a row are not neighbours"
    return "more than 16 channels: a loop over them is long enough" if g.channels > 16 else None


def _no_refusal(g: Geometry, env: LowerEnv) -> str | None:
    return None


def _winograd_refusal(g: Geometry, env: LowerEnv, stride: int = 1) -> str | None:
    window = g.window
    if window.kernel != (3, 3):
        return "not 3x3"
    if window.strides != (stride, stride) or any(n != 1 for n in window.dilations):
        return "strides or dilations" if stride == 1 else f"strides other than {stride}, or dilations"
    if g.groups > 1:
        return "groups"
    if not g.constant:
        return "its weights are not constant"
    return None if g.element.is_float else f"{g.element}: intermediate results are no integers"


def _line_refusal(g: Geometry, env: LowerEnv, points: int) -> str | None:
    window, axis = g.window, line_axis(g)
    if axis is None or window.rank > 2:
        return "not along one axis of at most two"
    if not 3 <= window.kernel[axis] < points:
        return f"not 3 to {points - 1} taps"
    for i in range(window.rank):
        if window.strides[i] != 1 or (i == axis and window.dilations[i] != 1):
            return "strides or dilations"
        if i != axis and (window.pads[i] or window.pads[i + window.rank]):
            return "padding across its axis"
    if g.groups > 1:
        return "groups"
    if not g.constant:
        return "its weights are not constant"
    if not g.element.is_float:
        return f"{g.element}: intermediate results are no integers"
    large = points * g.channels * g.outputs * (g.element.bits // 8) > LINE_WEIGHT_BYTES
    return "its weights would take too much memory" if large else None


def _line8_refusal(g: Geometry, env: LowerEnv) -> str | None:
    return _line_refusal(g, env, 8)


def _line6_refusal(g: Geometry, env: LowerEnv) -> str | None:
    return _line_refusal(g, env, 6)


def _vectors(g: Geometry, env: LowerEnv) -> int:
    """Vectors of a group's outputs."""
    return -(-g.outputs // env.target.lanes(g.element))


def _ns(cycles: float, weights: float, g: Geometry, env: LowerEnv) -> float:
    """Time for work beside which weights are fetched: from memory, as a network's are more than its caches hold."""
    rate = rates(env.target)
    compute, fetch = cycles / rate.cycles_per_ns, weights * (g.element.bits // 8) / rate.memory_bytes_per_ns
    return max(compute, fetch) + FETCH_SHARE * min(compute, fetch)


def _products_ns(g: Geometry, env: LowerEnv, more: float) -> float:
    """Time for a plain product, and `more` cycles."""
    depth = g.window.taps * g.channels
    cycles = g.pixels * g.groups * depth * _vectors(g, env) / FMA_PER_CYCLE
    return _ns(cycles + more, g.groups * g.outputs * depth, g, env)


def _pointwise_ns(g: Geometry, env: LowerEnv) -> float:
    return _products_ns(g, env, 0)


def _depthwise_ns(g: Geometry, env: LowerEnv) -> float:
    vectors = -(-g.groups // env.target.lanes(g.element))
    return _ns(g.pixels * vectors * g.window.taps * DEPTHWISE_CYCLES, g.groups * g.window.taps, g, env)


def _grouped_ns(g: Geometry, env: LowerEnv) -> float:
    lanes, window = env.target.lanes(g.element), g.window
    bundle = bundle_of(lanes, g.channels, g.outputs)
    width = g.out[-1] if isinstance(g.out[-1], int) else None
    height = g.out[0] if window.rank == 2 else 1
    plane = Window((1, *window.kernel), (1, *window.strides), (1, *window.dilations), (0,) * 4)
    tile = choose_grouped_tile(
        env.target, window if window.rank == 2 else plane, g.groups, g.channels, g.outputs,
        height if isinstance(height, int) else None, width, g.element,
    )  # fmt: skip
    vectors = -(-g.groups // bundle.groups) * bundle.vectors
    # Of a row of taps and a channel, for a pixel.
    each = window.kernel[-1] / FMA_PER_CYCLE * max(1.0, LEAST_SUMS / (tile.pixels * tile.lines))
    if bundle.groups > 1:
        reads = (tile.pixels - 1) * min(window.strides[-1], window.kernel[-1]) + window.kernel[-1]
        each += PERMUTE_CYCLES * reads / tile.pixels
    rows = window.taps // window.kernel[-1]
    cycles = g.pixels * vectors * (rows * g.channels * each + STORE_CYCLES)
    return _ns(cycles, vectors * lanes * g.channels * window.taps, g, env)


def _im2col_ns(g: Geometry, env: LowerEnv) -> float:
    piece = GATHER_CYCLES + g.channels * GATHER_CHANNEL_CYCLES
    return _products_ns(g, env, g.pixels * g.groups * g.window.taps * piece)


def _padded_ns(g: Geometry, env: LowerEnv) -> float:
    # A pixel of the input is copied for the block that it is in, and again for what its neighbours read.
    copies = g.pixels * g.groups * prod(g.window.strides) * COPIES_OF_PIXEL
    return _products_ns(g, env, copies * g.channels * COPY_CYCLES / env.target.lanes(g.element))


def _direct_ns(g: Geometry, env: LowerEnv) -> float:
    return _products_ns(g, env, g.pixels * g.groups * g.window.taps * TAP_CYCLES)


def _strided_refusal(g: Geometry, env: LowerEnv) -> str | None:
    return _winograd_refusal(g, env, 2)


def _winograd_ns(g: Geometry, env: LowerEnv, axis: Axis) -> float:
    lanes = env.target.lanes(g.element)
    count = winograd_tiles(g, axis.m)
    mr, nv, block, _, depth = choose_winograd_tile(
        env.target, g.channels, g.outputs, count, axis, g.element, env.threads
    )
    tiles = count if count is not None else ceil(g.pixels / axis.m**2)
    blocks, points = -(-tiles // block), axis.reach**2
    inputs, outputs = -(-g.channels // lanes), -(-g.outputs // (nv * lanes)) * nv
    rows = tiles // block * (-(-block // mr) * mr) + -(-(tiles % block) // mr) * mr
    parts = 1 if depth is None else -(-g.channels // depth)
    channels = g.channels if depth is None else parts * depth
    each = (SUM_CYCLES if depth is None else SUM_AGAIN_CYCLES) + SUMS_CYCLES / (mr * nv)
    cycles = points * (rows * channels * outputs / FMA_PER_CYCLE + parts * rows * outputs * each)
    cycles += tiles * (TILE_CYCLES[axis] + inputs * INPUT_CYCLES[axis] + outputs * OUTPUT_CYCLES[axis])
    weights = g.channels * g.outputs
    if depth is None:
        return _ns(cycles, weights * axis.weights**2, g, env)
    return _ns(cycles + blocks * g.channels * outputs * WEIGHT_CYCLES[axis.m], weights * g.window.taps, g, env)


def _winograd4_ns(g: Geometry, env: LowerEnv) -> float:
    return _winograd_ns(g, env, Axis(4))


def _winograd2_ns(g: Geometry, env: LowerEnv) -> float:
    return _winograd_ns(g, env, Axis(2))


def _few4_ns(g: Geometry, env: LowerEnv) -> float:
    axis, lanes = Axis(4), env.target.lanes(g.element)
    count = winograd_tiles(g, axis.m) or ceil(g.pixels / axis.m**2)
    rows, _, _, _, depth = choose_few_tile(env.target, g.channels, g.outputs, count, axis, g.element)
    inputs, outputs, blocks = -(-g.channels // lanes), -(-g.outputs // lanes), -(-count // rows)
    channels = -(-g.channels // depth) * depth
    each = axis.reach * (FEW_TAP_CYCLES + axis.reach * rows / FMA_PER_CYCLE)
    cycles = blocks * channels * outputs * each
    cycles += count * (TILE_CYCLES[axis] + inputs * INPUT_CYCLES[axis] + outputs * OUTPUT_CYCLES[axis])
    return _ns(cycles, blocks * g.channels * g.outputs * g.window.taps, g, env)


def _strided4_ns(g: Geometry, env: LowerEnv) -> float:
    return _winograd_ns(g, env, Axis(4, 2))


def _strided2_ns(g: Geometry, env: LowerEnv) -> float:
    return _winograd_ns(g, env, Axis(2, 2))


def _line_ns(g: Geometry, env: LowerEnv, points: int) -> float:
    axis = line_axis(g)
    assert axis is not None
    lanes, count = env.target.lanes(g.element), line_tiles(g, points)
    mr, nv, block, _ = choose_line_tile(env.target, g.channels, g.outputs, count, points, g.element)
    tiles = count if count is not None else ceil(g.pixels / (points - g.window.kernel[axis] + 1))
    inputs, outputs = -(-g.channels // lanes), -(-g.outputs // (nv * lanes)) * nv
    rows = tiles // block * (-(-block // mr) * mr) + -(-(tiles % block) // mr) * mr
    each = SUM_CYCLES + SUMS_CYCLES / (mr * nv)
    cycles = points * rows * outputs * (g.channels / FMA_PER_CYCLE + each)
    cycles += tiles * (LINE_TILE_CYCLES + inputs * LINE_INPUT_CYCLES + outputs * LINE_OUTPUT_CYCLES)
    return _ns(cycles, g.channels * g.outputs * points, g, env)


def _line8_ns(g: Geometry, env: LowerEnv) -> float:
    return _line_ns(g, env, 8)


def _line6_ns(g: Geometry, env: LowerEnv) -> float:
    return _line_ns(g, env, 6)


CONV_TACTICS: tuple[Tactic[Geometry], ...] = (
    Tactic("pointwise", _pointwise_refusal, _pointwise_ns),
    Tactic("depthwise", _depthwise_refusal, _depthwise_ns),
    Tactic("direct", _no_refusal, _direct_ns),
    Tactic("im2col", _no_refusal, _im2col_ns),
    Tactic("winograd4", _winograd_refusal, _winograd4_ns),
    Tactic("winograd2", _winograd_refusal, _winograd2_ns),
    Tactic("winograd4-few", _winograd_refusal, _few4_ns),
    Tactic("winograd4-stride2", _strided_refusal, _strided4_ns),
    Tactic("winograd2-stride2", _strided_refusal, _strided2_ns),
    Tactic("winograd-line8", _line8_refusal, _line8_ns),
    Tactic("winograd-line6", _line6_refusal, _line6_ns),
    Tactic("padded", _padded_refusal, _padded_ns),
    Tactic("grouped", _grouped_refusal, _grouped_ns),
)
