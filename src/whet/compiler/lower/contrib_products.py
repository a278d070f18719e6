"""Matrix products and convolutions of com.microsoft: transposed, scaled, with an activation behind them."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compiler.fuse import Group
from whet.compiler.lower import conv, matmul
from whet.compiler.lower.activations import activate, activation_refusal
from whet.compiler.lower.copy import relayout
from whet.compiler.lower.demand import broadcast, demand, need
from whet.compiler.lower.epilogue import Extra, finish, takes_group
from whet.compiler.lower.matmul import ELEMENTS, emit_product
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.tape import TapeBuilder, computed
from whet.graph import Node

GEMM_FAST_GELU = "com.microsoft.GemmFastGelu"


def _parameters(node: Node) -> list[float]:
    """Alpha and beta of a product's activation, as far as they are given."""
    second = "activation_gamma" if node.str_attr("activation", "") == "Selu" else "activation_beta"
    found: list[float] = []
    for name in ("activation_alpha", second):
        if name not in node.attributes:
            break
        found.append(node.float_attr(name, 0.0))
    return found


# Products


def matmul_refusal(node: Node) -> str | None:
    """Why a product with transposes cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    a, b = need(node, 0), need(node, 1)
    if dtype_of(node.output) not in ELEMENTS or computed(dtype_of(b)) is not computed(dtype_of(a)):
        return f"no matrix product of {dtype_of(node.output)}"
    if any(len(v.shape or ()) < 2 for v in (a, b)):
        return "an operand is no matrix"
    if node.int_attr("transBatchA", 0) or node.int_attr("transBatchB", 0):
        return "its batch is transposed"
    bias = node.input(2)
    if bias is not None and len(bias.shape or ()) != 1:
        return "its bias is no vector"
    return activation_refusal(node.str_attr("activation", ""))


def takes_matmul_group(node: Node, group: Group) -> bool:
    """Whether the product can do the group's work before it stores its sums."""
    return matmul_refusal(node) is None and takes_group(node, group, -1)


def lower_matmul(ctx: Lowering, node: Node, group: Group | None) -> None:
    """FusedMatMul, TransposeMatMul, FusedMatMulActivation, GemmFastGelu."""
    a, b, bias = need(node, 0), need(node, 1), node.input(2)
    element = computed(dtype_of(node.output))
    left = ctx.view(a)
    if node.int_attr("transA", 0):
        left = left.transpose((*range(left.rank - 2), left.rank - 1, left.rank - 2))
    alpha = node.float_attr("alpha", 1.0)
    name, parameters = node.str_attr("activation", ""), _parameters(node)
    extras: list[Extra] = []
    if bias is not None:
        view = ctx.view(bias)
        demand(ctx, "equal", view.shape[0], shape_of(node.output)[-1], "the bias does not fit the product")
        extras.append((view, "column"))

    def begin(tape: TapeBuilder, total: int, operands: Sequence[int]) -> int:
        if alpha != 1.0:
            total = tape.add("mul", element, total, tape.constant(alpha, element))
        for operand in operands:
            total = tape.add("add", element, total, tape.cast(operand, element))
        if node.op == GEMM_FAST_GELU:
            return tape.add("gelu_tanh", element, total)
        return activate(tape, element, total, name, parameters)

    done = finish(ctx, node, group, element, -1, extras, begin)
    emit_product(ctx, left, b, node.int_attr("transB", 0) != 0, element, ctx.new(done.result), done)


def gemm_refusal(node: Node) -> str | None:
    """Why a Gemm with an activation cannot be lowered, or None."""
    reason = matmul.refusal(node)
    if reason is None and dtype_of(node.output) not in ELEMENTS:
        reason = f"no activation of {dtype_of(node.output)}"
    return reason or activation_refusal(node.str_attr("activation", ""))


def takes_gemm_group(node: Node, group: Group) -> bool:
    """Whether the product can do the group's work before it stores its sums."""
    return gemm_refusal(node) is None and takes_group(node, group, -1)


def lower_gemm(ctx: Lowering, node: Node, group: Group | None) -> None:
    name, parameters = node.str_attr("activation", ""), _parameters(node)
    element = computed(dtype_of(node.output))
    matmul.lower_gemm(ctx, node, group, lambda tape, total: activate(tape, element, total, name, parameters))


# Convolutions


def conv_refusal(node: Node) -> str | None:
    """Why a convolution with an addend and an activation cannot be lowered, or None."""
    reason = conv.refusal(node)
    if reason is not None:
        return reason
    z = node.input(3)
    if z is not None and len(z.shape or ()) > len(node.output.shape or ()):
        return "its addend has more dimensions than the result"
    return activation_refusal(node.str_attr("activation", ""))


def nhwc_refusal(node: Node) -> str | None:
    """Why a convolution with channels last cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    if dtype_of(node.output) not in ELEMENTS:
        return f"no convolution of {dtype_of(node.output)}"
    shape = need(node, 0).shape or ()
    first = (*shape[:1], *shape[-1:], *shape[1:-1])
    reason = conv.window_refusal(node, first, need(node, 1).shape or ())
    return reason or activation_refusal(node.str_attr("activation", ""))


def takes_conv_group(node: Node, group: Group) -> bool:
    """Whether the convolution can do the group's work before it stores its sums."""
    return conv_refusal(node) is None and takes_group(node, group, 1 - len(node.output.shape or ()))


def lower_conv(ctx: Lowering, node: Node, group: Group | None) -> None:
    """FusedConv, NhwcConv, NhwcFusedConv."""
    nhwc = node.op != "com.microsoft.FusedConv"
    bias, z = node.input(2), node.input(3)
    x, shape = ctx.view(need(node, 0)), shape_of(node.output)
    extras: list[Extra] = [] if bias is None else [(conv.vector(ctx, ctx.view(bias)), "column")]
    if z is not None:
        view = broadcast(ctx, ctx.view(z), shape)
        extras.append((view if shape_of(z) == shape else relayout(ctx, view), "full"))
    name, element = node.str_attr("activation", ""), computed(dtype_of(node.output))
    parameters = _floats(node, "activation_params")
    if nhwc:
        x = x.transpose((0, x.rank - 1, *range(1, x.rank - 1)))
    conv.lower_window(
        ctx, node, group, x, need(node, 1), extras,
        lambda tape, total: activate(tape, element, total, name, parameters), nhwc=nhwc,
    )  # fmt: skip


def _floats(node: Node, name: str) -> tuple[float, ...]:
    value = node.attributes.get(name)
    return tuple(float(v) for v in value if isinstance(v, (int, float))) if isinstance(value, tuple) else ()


FUSED_MATMUL = Rule(lower_matmul, matmul_refusal)
FUSED_GEMM = Rule(lower_gemm, gemm_refusal)
FUSED_CONV = Rule(lower_conv, conv_refusal)
NHWC_CONV = Rule(lower_conv, nhwc_refusal)
