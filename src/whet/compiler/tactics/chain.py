"""The tactics of a depthwise convolution and its pointwise neighbours: one kernel for some of them, or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from whet.codegen.target import Target
from whet.compiler.lowering import LowerEnv
from whet.compiler.tactics.choice import Tactic, choose
from whet.compiler.tactics.rates import rates
from whet.kernels.chain_shape import ChainWork, chain_refusal, choose_chain_shape

STEP_NS = 1300.0
"""For threads to begin and end a step together."""
NEAR_NS = 0.003
"""For a byte that one step writes and the next one reads, on one thread: some of it on another core."""
FAR_NS = {"depthwise": 0.018, "pointwise": 0.010}
"""For a byte beyond what the cores' caches hold, by who reads it: a product computes longer meanwhile."""
NEAR_SHARE = 0.4
"""Of L2, what of a step's result is still there when the next one reads it."""
SPREAD_NS = 0.006
"""For a byte of the input where threads split the channels and each reads all of it, from other cores too."""
APART, EXPAND, PROJECT, BOTH = "apart", "expand-depthwise", "depthwise-project", "expand-depthwise-project"
CHAIN_SHARE = {EXPAND: 1.14, PROJECT: 1.12, BOTH: 1.0}
"""Of its own time, what a chain takes: results that are written in short pieces, an input that is copied."""
TILE_SHARE = 1.07
"""The time of a plain product over its multiplications."""
STORE_CYCLES = 1.2
"""To write a vector of results."""
DEPTHWISE_CYCLES, STRIDED_CYCLES = 0.72, 1.0
"""Of a depthwise convolution by itself, for a tap of a vector; with strides it reads more pixels for each."""


@dataclass(frozen=True, slots=True)
class ChainGeometry:
    """A depthwise convolution with the neighbours that it could be joined with, and the threads that share the work."""

    work: ChainWork
    images: int
    threads: int

    def part(self, tactic: str) -> ChainWork:
        """The chain that a tactic makes one kernel of."""
        work = self.work
        if tactic in (APART, PROJECT):
            work = replace(work, inputs=None, expand_cycles=0.0)
        return replace(work, outputs=None) if tactic in (APART, EXPAND) else work


def _refusal(tactic: str) -> Callable[[ChainGeometry, LowerEnv], str | None]:
    def refusal(g: ChainGeometry, env: LowerEnv) -> str | None:
        if tactic in (EXPAND, BOTH) and g.work.inputs is None:
            return "no 1x1 convolution before it"
        if tactic in (PROJECT, BOTH) and g.work.outputs is None:
            return "no 1x1 convolution behind it"
        part = g.part(tactic)
        reason = chain_refusal(env.target, part)
        if reason is None and choose_chain_shape(env.target, part, g.threads) is None:
            reason = "the cache is too small"
        return reason

    return refusal


def _vectors(channels: int, work: ChainWork, target: Target) -> int:
    return -(-channels // target.lanes(work.dtype))


def _traffic_ns(elements: int, reader: str, g: ChainGeometry, env: LowerEnv) -> float:
    """Time for what one step writes and the next one reads, shared by the threads."""
    size = elements * g.work.dtype.bits // 8
    far = max(0.0, size - NEAR_SHARE * env.target.l2_bytes * g.threads)
    return (size * NEAR_NS * (g.threads > 1) + far * FAR_NS[reader]) / g.threads


def _parts_ns(g: ChainGeometry, env: LowerEnv, expand: bool, filters: bool, project: bool) -> float:
    """Time for convolutions as steps of their own, with what they read of each other."""
    work, target = g.work, env.target
    before, behind = work.image[0] * work.image[1], work.out[0] * work.out[1]
    middle, cycles, total = _vectors(work.channels, work, target), 0.0, 0.0
    if expand and work.inputs is not None:
        cycles += before * middle * (work.inputs / 2 * TILE_SHARE + STORE_CYCLES + work.expand_cycles)
        total += STEP_NS
    if filters:
        each = STRIDED_CYCLES if max(work.window.strides) > 1 else DEPTHWISE_CYCLES
        cycles += behind * middle * (work.window.taps * each + STORE_CYCLES)
        total += _traffic_ns(before * work.channels, "depthwise", g, env) + STEP_NS
    if project and work.outputs is not None:
        cycles += behind * _vectors(work.outputs, work, target) * (work.channels / 2 * TILE_SHARE + STORE_CYCLES)
        total += _traffic_ns(behind * work.channels, "pointwise", g, env) + STEP_NS
    return total + cycles / rates(target).cycles_per_ns / g.threads


def _apart_ns(g: ChainGeometry, env: LowerEnv) -> float:
    return g.images * _parts_ns(g, env, True, True, True)


def _chain_ns(tactic: str) -> Callable[[ChainGeometry, LowerEnv], float]:
    def cost(g: ChainGeometry, env: LowerEnv) -> float:
        work, part = g.work, g.part(tactic)
        found = choose_chain_shape(env.target, part, g.threads)
        assert found is not None
        total = found[1] / rates(env.target).cycles_per_ns * CHAIN_SHARE[tactic] + STEP_NS
        before = work.image[0] * work.image[1]
        if tactic == PROJECT:
            total += _parts_ns(g, env, True, False, False)
            total += _traffic_ns(before * work.channels, "depthwise", g, env)
        if tactic == EXPAND:
            total += _parts_ns(g, env, False, False, True)
            if found[0].panels * found[0].vectors < _vectors(work.channels, work, env.target):
                total += before * (work.inputs or 0) * (work.dtype.bits // 8) * SPREAD_NS * (g.threads > 1)
        return g.images * total

    return cost


CHAIN_TACTICS: tuple[Tactic[ChainGeometry], ...] = (
    Tactic(APART, lambda g, env: None, _apart_ns),
    *(Tactic(name, _refusal(name), _chain_ns(name)) for name in (EXPAND, PROJECT, BOTH)),
)


def choose_chain(g: ChainGeometry, env: LowerEnv, where: str | None, detail: object, nodes: tuple[str, ...]) -> str:
    """The name of the tactic to use. The session key `cpu.tactic.chain`: "off" means apart, "on" any but apart."""
    forced = env.tactics.get("chain", "auto")
    tactics = CHAIN_TACTICS
    if forced == "off":
        return APART
    if forced == "on":
        tactics = tuple(t for t in CHAIN_TACTICS[1:] if t.refusal(g, env) is None) or CHAIN_TACTICS[:1]
    others = {family: name for family, name in env.tactics.items() if family != "chain"}
    return choose("chain", tactics, g, replace(env, tactics=others), where, detail=detail, nodes=nodes)
