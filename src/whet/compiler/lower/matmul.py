"""MatMul and Gemm."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import cast_copy, copy, relayout
from whet.compiler.lower.demand import broadcast, demand
from whet.compiler.lower.epilogue import Extra, Finish, finish, operand_kind, takes_group
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lower.thin_product import emit_thin, is_thin
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.step import Word, address
from whet.compiler.tape import TapeBuilder, computed
from whet.compiler.views import View, collapse, dense_strides, hint, is_not_one, product
from whet.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, INT32, INT64, UINT32, UINT64, DType
from whet.graph import Node, Value
from whet.graph.dims import Known, ceil_div, multiple_of
from whet.graph.tensor import Array
from whet.kernels.gemm import Gemm, PackB, pack_b
from whet.kernels.gemm_tile import Problem, choose_tile

_ONE: Known = 1
_NONE: Known = 0

ELEMENTS = frozenset({FLOAT32, FLOAT64, FLOAT16, BFLOAT16})
PRODUCTS = ELEMENTS | {INT32, INT64, UINT32, UINT64}
"""Types of matrix products; integers keep the low bits of their sums."""

After = Callable[[TapeBuilder, int], int]
"""More work on a product's own result."""


def refusal(node: Node) -> str | None:
    """Why a product cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    dtype = dtype_of(node.output)
    if dtype not in PRODUCTS:
        return f"no matrix product of {dtype}"
    factors = node.float_attr("alpha", 1.0), node.float_attr("beta", 1.0)
    if dtype.is_integer and (factors[0] != 1.0 or factors[1] not in (0.0, 1.0)):
        return "its factors are not for integers"
    return None


def takes_epilogue(node: Node, group: Group) -> bool:
    """Whether the product can do the group's work before it stores its sums."""
    shape = node.output.shape
    if refusal(node) is not None or shape is None or not shape:
        return False
    if node.op == "MatMul" and any(len(v.shape or ()) < 2 for v in node.inputs if v is not None):
        return False
    return takes_group(node, group, -1)


def lower_matmul(ctx: Lowering, node: Node, group: Group | None) -> None:
    a, b = node.inputs
    assert a is not None
    assert b is not None
    element = computed(dtype_of(node.output))
    left = ctx.view(a)
    a_shape, b_shape = shape_of(a), shape_of(b)
    if len(a_shape) == 1:
        left = left.expand_dims(0)
    b_rows = b_shape[-2] if len(b_shape) > 1 else b_shape[0]
    demand(ctx, "equal", a_shape[-1], b_rows, "the inner extents of a matrix product differ")
    for own in (a_shape[:-2], b_shape[:-2]):
        _demand_batch(ctx, own, shape_of(node.output), len(a_shape) > 1, len(b_shape) > 1)
    done = finish(ctx, node, group, element, -1)
    shape = shape_of(done.result)
    # A vector's missing dimension stands in the product's shape as 1.
    rows_shape: tuple[Known, ...] = shape
    if len(a_shape) == 1:
        behind = len(rows_shape) - (len(b_shape) > 1)
        rows_shape = (*rows_shape[:behind], 1, *rows_shape[behind:])
    if len(b_shape) == 1:
        rows_shape = (*rows_shape, 1)
    out = ctx.new(done.result)
    target = View(out.buffer, rows_shape, _with_ones(out, rows_shape), out.offset)
    emit_product(ctx, left, b, False, element, target, done)


def lower_gemm(ctx: Lowering, node: Node, group: Group | None, after: After | None = None) -> None:
    a, b, c = node.input(0), node.input(1), node.input(2)
    assert a is not None
    assert b is not None
    element = computed(dtype_of(node.output))
    left = ctx.view(a)
    if node.int_attr("transA", 0):
        left = left.transpose((1, 0))
    b_shape, turned = shape_of(b), bool(node.int_attr("transB", 0))
    demand(ctx, "equal", left.shape[1], b_shape[1 if turned else 0], "the inner extents of a matrix product differ")
    alpha, beta = node.float_attr("alpha", 1.0), node.float_attr("beta", 1.0)
    extras: list[Extra] = []
    shape = shape_of(node.output)
    if c is not None and beta != 0.0:
        kind = operand_kind(shape_of(c), shape, -1)
        view = ctx.view(c)
        if kind is None:
            view, kind = relayout(ctx, broadcast(ctx, view, shape)), "full"
        extras.append((view, kind))

    def begin(tape: TapeBuilder, total: int, operands: Sequence[int]) -> int:
        if alpha != 1.0:
            total = tape.add("mul", element, total, tape.constant(alpha, element))
        for operand in operands:
            term = tape.cast(operand, element)
            if beta != 1.0:
                term = tape.add("mul", element, term, tape.constant(beta, element))
            total = tape.add("add", element, total, term)
        return total if after is None else after(tape, total)

    done = finish(ctx, node, group, element, -1, extras, begin)
    out = ctx.new(done.result)
    emit_product(ctx, left, b, turned, element, out, done)


def _demand_batch(ctx: Lowering, own: Sequence[Known], out: Sequence[Known], row: bool, column: bool) -> None:
    """See to it that an operand's batch extents are 1 or the result's."""
    batch = out[: len(out) - row - column]
    for extent, wanted in zip(reversed(own), reversed(batch), strict=False):
        if extent not in (1, wanted):
            fits = is_not_one(extent) * (wanted - 1) + 1
            demand(ctx, "equal", extent, fits, "the batches of a matrix product differ")


def _with_ones(view: View, shape: Sequence[Known]) -> tuple[Known, ...]:
    """Strides of `view` for a shape that has more dimensions of extent 1."""
    strides: list[Known] = []
    own = [(e, s) for e, s in zip(view.shape, view.strides, strict=True)]
    for extent in shape:
        if own and own[0][0] == extent:
            strides.append(own.pop(0)[1])
        else:
            strides.append(0)
    return tuple(strides)


Panels = Callable[[int, Sequence[Known]], tuple[View, tuple[Known, ...]]]
"""B in panels of so many columns, and its stride along each dimension of a batch's shape."""


def emit_product(ctx: Lowering, a: View, b: Value, transposed: bool, element: DType, out: View, done: Finish) -> None:
    """Emit the product of `a` [..., m, k] and `b` [..., k, n] (`transposed`: [..., n, k]) into `out` [..., m, n]."""
    if b.data is None and a.element is element and len(shape_of(b)) == 2:
        matrix = ctx.view(b).transpose((1, 0)) if transposed else ctx.view(b)
        if is_thin(out.shape, matrix, element):
            emit_thin(ctx, a, matrix, element, out, done)
            return
    shared = all(d == 1 for d in shape_of(b)[:-2]) and (
        b.data is not None or ctx.constant_array(ctx.view(b)) is not None
    )

    def panels(width: int, batch_shape: Sequence[Known]) -> tuple[View, tuple[Known, ...]]:
        return packed(ctx, b, transposed, element, width, batch_shape)

    emit_panels(ctx, a, panels, shared, element, out, done)


def emit_rows(ctx: Lowering, a: View, w: Value, element: DType, out: View, done: Finish) -> None:
    """Emit the product of `a` [..., k] with the matrix of weights `w` [n, k, 1, ...] into `out` [..., n]."""
    n, k = w.shape[:2] if w.shape is not None else (None, None)
    assert isinstance(n, int)
    assert isinstance(k, int)

    def panels(width: int, batch_shape: Sequence[Known]) -> tuple[View, tuple[Known, ...]]:
        if w.data is not None:
            result, _, _ = constant_rows(ctx, w, element, width)
        else:
            view = ctx.view(w)
            matrix = view.reshape((n, k)) or relayout(ctx, view).reshape((n, k))
            assert matrix is not None
            if matrix.element is not element:
                matrix = cast_copy(ctx, matrix, element)
            result, _ = pack_at_run(ctx, matrix.transpose((1, 0)), element, width, ())
        return result, (0,) * len(batch_shape)

    emit_panels(ctx, a, panels, True, element, out, done)


def constant_rows(ctx: Lowering, w: Value, element: DType, width: int) -> tuple[View, int, int]:
    """Constant weights [n, k, 1, ...] in panels of `width` columns, with n and k."""
    data = w.data
    assert data is not None
    n, k = data.shape[:2]

    def make() -> Array:
        return pack_b(data.numpy().reshape(n, k).astype(element.numpy, copy=False).T, width)

    buffer = ctx.weight(("rows", data.identity(), element.name, width), make, element)
    return View(buffer, (buffer.elements,), (1,)), n, k


def emit_panels(
    ctx: Lowering, a: View, panels_of: Panels, shared: bool, element: DType, out: View, done: Finish
) -> None:
    """Emit the product of `a` [..., m, k] and packed panels into `out` [..., m, n]; `shared`: one B for the batch."""
    m, n, k = out.shape[-2], out.shape[-1], a.shape[-1]
    if a.element is not element:
        a = cast_copy(ctx, a, element)
    if shared and out.rank == a.rank:
        # One matrix for all: the rows of every batch are rows of one product.
        joined = join_rows(a, out, done)
        if joined is None:
            a = relayout(ctx, a)
            joined = join_rows(a, out, done)
        if joined is not None:
            a, out, done = joined
            m = out.shape[-2]
    if not a.unit(a.rank - 1):
        a = relayout(ctx, a)
    batch_shape = tuple(out.shape[:-2])
    tile = choose_tile(
        ctx.target,
        Problem(
            hint(n), hint(k), m if isinstance(m, int) else None, multiple_of(m), element, hint(product(batch_shape)),
            ctx.env.threads,
        ),
    )  # fmt: skip
    lda = a.strides[-2] if a.shape[-2] != 1 else (k if isinstance(k, int) else 0)
    ldc = out.strides[-2]
    spec = Gemm(
        dtype=element,
        n=n if isinstance(n, int) else None,
        k=k if isinstance(k, int) else None,
        m=m if isinstance(m, int) else None,
        lda=lda if isinstance(lda, int) else None,
        mr=tile.mr,
        nv=tile.nv,
        m_block=tile.m_block,
        panels=tile.panels,
        epilogue=done.epilogue,
        batch=len(batch_shape) > 0,
        ahead=tile.ahead,
        multiple=1 if isinstance(m, int) else multiple_of(m),
    )
    width = spec.width(ctx.target)
    b_view, b_strides = panels_of(width, batch_shape)
    words: dict[str, Word] = {
        "a": address(a), "b": address(b_view), "c": address(out), "m": m, "n": n, "k": k, "lda": lda, "ldc": ldc,
    }  # fmt: skip
    views = [v.broadcast(out.shape) if kind == "full" else v for v, kind in zip(done.operands, done.kinds, strict=True)]
    for i, (view, kind) in enumerate(zip(views, done.kinds, strict=True)):
        if kind == "full":
            if not view.unit(view.rank - 1) or view.rank != out.rank:
                view = relayout(ctx, view)
            words[f"e{i}_s"] = view.strides[-2]
        elif kind == "column" and not view.unit(view.rank - 1):
            view = relayout(ctx, view)
        views[i] = view
        words[f"e{i}"] = address(view)
    batch: Known = 1
    target: View | None = None
    if batch_shape:
        batch = product(batch_shape)
        dims = _batch_loops(batch_shape, b_strides, [a, out], views, done)
        if len(dims) > 2:
            # The kernel knows two strides of a batch: everything is brought into the order of its dimensions.
            a = relayout(ctx, a.broadcast((*batch_shape, *a.shape[-2:])))
            panel = View(b_view.buffer, (*batch_shape, b_view.shape[-1]), (*b_strides, 1), b_view.offset)
            b_view = relayout(ctx, panel)
            b_strides = b_view.strides[:-1]
            views = [relayout(ctx, v) if kind == "full" else v for v, kind in zip(views, done.kinds, strict=True)]
            if len(_batch_loops(batch_shape, b_strides, [out], (), done)) > 2:
                target, out = out, ctx.temporary(out.element, out.shape)
            dims = _batch_loops(batch_shape, b_strides, [a, out], views, done)
            spec = replace(spec, lda=k if isinstance(k, int) else None)
            words |= {"a": address(a), "b": address(b_view), "c": address(out), "lda": k, "ldc": out.strides[-2]}
            for i, (view, kind) in enumerate(zip(views, done.kinds, strict=True)):
                words[f"e{i}"] = address(view)
                if kind == "full":
                    words[f"e{i}_s"] = view.strides[-2]
        dims = [*[(_ONE, [_NONE] * (3 + len(views)))] * (2 - len(dims)), *dims]
        words["batch1"] = dims[1][0]
        for index, name in enumerate(("b", "a", "c", *(f"e{i}" for i in range(len(views))))):
            words[f"{name}_batch0"], words[f"{name}_batch1"] = dims[0][1][index], dims[1][1][index]
    tiles = batch * ceil_div(n, width * tile.panels) * ceil_div(m, tile.m_block)
    flops = batch * m * n * k * 2
    in_place = [(v, out) for v, kind in zip(views, done.kinds, strict=True) if kind == "full" and same_whole(v, out)]
    ctx.emit(spec, words, tiles, [a, b_view, *views], [out], flops=flops, in_place=in_place, ops=done.ops)
    if target is not None:
        copy(ctx, out, target)


def _batch_loops(
    batch_shape: Sequence[Known],
    b_strides: Sequence[Known],
    views: Sequence[View],
    operands: Sequence[View],
    done: Finish,
) -> list[tuple[Known, list[Known]]]:
    """The dimensions of a batch, joined where memory allows, with the strides of B's panels, of each view and of each
    operand of the epilogue."""
    rows: list[Sequence[Known]] = [b_strides]
    rows.extend(view.broadcast((*batch_shape, *view.shape[-2:])).strides[:-2] for view in views)
    for view, kind in zip(operands, done.kinds[: len(operands)], strict=True):
        rows.append(view.strides[:-2] if kind == "full" else (0,) * len(batch_shape))
    return collapse(batch_shape, rows, [i for i, extent in enumerate(batch_shape) if extent != 1])


def same_whole(a: View, b: View) -> bool:
    """Whether both views are all of their buffers, in the same order."""
    return (
        a.strides == b.strides and a.offset == 0 and b.offset == 0
        and a.size == a.buffer.elements and b.size == b.buffer.elements
    )  # fmt: skip


def join_rows(a: View, out: View, done: Finish) -> tuple[View, View, Finish] | None:
    """The product with all dimensions but the last joined to rows, or None where memory does not allow it."""
    rows = product(out.shape[:-1])
    left, right = a.reshape((rows, a.shape[-1])), out.reshape((rows, out.shape[-1]))
    if left is None or right is None:
        return None
    operands: list[View] = []
    for view, kind in zip(done.operands, done.kinds, strict=True):
        if kind == "full":
            joined = view.broadcast(out.shape).reshape((rows, out.shape[-1]))
            if joined is None:
                return None
            view = joined
        operands.append(view)
    return left, right, Finish(done.epilogue, tuple(operands), done.kinds, done.result, done.ops)


def packed(
    ctx: Lowering, b: Value, transposed: bool, element: DType, width: int, batch_shape: Sequence[Known]
) -> tuple[View, tuple[Known, ...]]:
    """B in panels of `width` columns, with its stride along each batch dimension."""
    shape = shape_of(b)
    if b.data is not None:
        return _packed_constant(ctx, b, transposed, element, width, batch_shape)
    view = ctx.view(b)
    if len(shape) == 1:
        view = view.expand_dims(1)
    if transposed:
        view = view.transpose((*range(view.rank - 2), view.rank - 1, view.rank - 2))
    known = ctx.constant_array(view)
    if known is not None and element.numpy.itemsize == view.element.numpy.itemsize:
        return _packed_array(ctx, *known, element, width, batch_shape)
    if view.element is not element:
        view = cast_copy(ctx, view, element)
    return pack_at_run(ctx, view, element, width, batch_shape)


def _packed_array(
    ctx: Lowering, key: Hashable, read: Callable[[], Array], element: DType, width: int, batch_shape: Sequence[Known]
) -> tuple[View, tuple[Known, ...]]:
    """A constant [..., k, n] that another operator has made a view of, packed when the program is made."""
    shape = read().shape
    own, (k, n) = shape[:-2], shape[-2:]
    size = -(-n // width) * width * k

    def make() -> Array:
        matrices = read().astype(element.numpy, copy=False).reshape(-1, k, n)
        return np.stack([pack_b(matrix, width) for matrix in matrices])

    buffer = ctx.weight(("panels of a view", key, element.name, width), make, element)
    strides = View(buffer, tuple(own), dense_strides((*own, size))[:-1]).broadcast(tuple(batch_shape)).strides
    return View(buffer, (*own, size), dense_strides((*own, size))), strides if batch_shape else ()


def pack_at_run(
    ctx: Lowering, view: View, element: DType, width: int, batch_shape: Sequence[Known]
) -> tuple[View, tuple[Known, ...]]:
    """Emit the packing of B [..., k, n]; its panels, with their stride along each dimension of `batch_shape`."""
    k, n = view.shape[-2], view.shape[-1]
    size = ceil_div(n, width) * width * k
    own = view.shape[:-2]
    result = ctx.temporary(element, (*own, size), label=f"panels of {view.buffer.label}")
    dims = _batch_dims(own, view)
    if len(dims) > 2:
        view = relayout(ctx, view)
        dims = _batch_dims(own, view)
    dims = [*[(_ONE, [_NONE])] * (2 - len(dims)), *dims]
    unit: Literal["k", "n"] | None = "n" if view.unit(view.rank - 1) else "k" if view.unit(view.rank - 2) else None
    spec = PackB(width // ctx.target.lanes(element), unit, element, batch=len(own) > 0)
    words: dict[str, Word] = {
        "b": address(view), "packed": address(result), "k": k, "n": n,
        "b_k": view.strides[-2], "b_n": view.strides[-1], "batch1": dims[1][0],
        "b_batch0": dims[0][1][0], "b_batch1": dims[1][1][0],
    }  # fmt: skip
    ctx.emit(spec, words, product(own) * ceil_div(n, width), [view], [result], tactic="pack")
    strides = View(result.buffer, own, result.strides[:-1]).broadcast(tuple(batch_shape)).strides
    return result, strides


def _batch_dims(own: Sequence[Known], view: View) -> list[tuple[Known, list[Known]]]:
    return collapse(own, [view.strides[:-2]], [i for i, extent in enumerate(own) if extent != 1])


def _packed_constant(
    ctx: Lowering, b: Value, transposed: bool, element: DType, width: int, batch_shape: Sequence[Known]
) -> tuple[View, tuple[Known, ...]]:
    data = b.data
    assert data is not None
    shape = data.shape if len(data.shape) > 1 else (*data.shape, 1)
    own = shape[:-2]
    k, n = (shape[-1], shape[-2]) if transposed else (shape[-2], shape[-1])
    size = -(-n // width) * width * k

    def make() -> Array:
        array = data.numpy().reshape(shape).astype(element.numpy, copy=False)
        if transposed:
            array = array.swapaxes(-1, -2)
        matrices = array.reshape(-1, k, n)
        if len(matrices) == 1:
            return pack_b(matrices[0], width)
        return np.stack([pack_b(matrix, width) for matrix in matrices])

    buffer = ctx.weight(("panels", data.identity(), transposed, element.name, width), make, element)
    result = View(buffer, (*own, size), dense_strides((*own, size)))
    strides = View(buffer, tuple(own), result.strides[:-1]).broadcast(tuple(batch_shape)).strides if batch_shape else ()
    return result, strides


MATMUL = Rule(lower_matmul, refusal)
GEMM = Rule(lower_gemm, refusal)
