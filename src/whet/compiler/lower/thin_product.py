"""Products of a few rows with a matrix that only a run knows: it is read once, where it lies, and not packed."""

from __future__ import annotations

from collections.abc import Sequence

from whet.codegen.target import Target
from whet.compiler.lower.copy import relayout
from whet.compiler.lower.epilogue import Finish
from whet.compiler.lowering import Lowering
from whet.compiler.step import Word, address
from whet.compiler.views import View
from whet.dtypes import DType
from whet.graph.dims import Known, ceil_div
from whet.kernels.gemm import Gemm

MOST_ROWS = 4
"""Packing pays when a packed matrix is used by more rows."""
_VECTORS = 4


def is_thin(shape: Sequence[Known], b: View, element: DType) -> bool:
    """Whether a product of `shape` [m, n] with `b` [k, n] is better made from `b` as it lies."""
    m = shape[0]
    return (
        len(shape) == 2 and b.rank == 2 and isinstance(m, int) and m <= MOST_ROWS and b.unit(1) and b.element is element
    )


def emit_thin(ctx: Lowering, a: View, b: View, element: DType, out: View, done: Finish) -> None:
    """Emit the product of `a` [m, k] and `b` [k, n] into `out` [m, n]."""
    m, n = out.shape
    k = b.shape[0]
    assert isinstance(m, int)
    if not a.unit(1):
        a = relayout(ctx, a)
    lda = a.strides[0] if m != 1 else 0
    spec = Gemm(
        dtype=element,
        n=n if isinstance(n, int) else None,
        k=k if isinstance(k, int) else None,
        m=m,
        lda=lda if isinstance(lda, int) else None,
        mr=max(m, 1),
        nv=_vectors(ctx.target, n, element),
        m_block=max(m, 1),
        panels=1,
        epilogue=done.epilogue,
        b_packed=False,
    )
    words: dict[str, Word] = {
        "a": address(a), "b": address(b), "c": address(out), "m": m, "n": n, "k": k, "lda": lda, "ldb": b.strides[0],
        "ldc": out.strides[0],
    }  # fmt: skip
    views = []
    for i, (view, kind) in enumerate(zip(done.operands, done.kinds, strict=True)):
        if kind == "full":
            view = view.broadcast(out.shape)
            view = view if view.unit(1) else relayout(ctx, view)
            words[f"e{i}_s"] = view.strides[0]
        elif kind == "column" and not view.unit(view.rank - 1):
            view = relayout(ctx, view)
        words[f"e{i}"] = address(view)
        views.append(view)
    tiles = ceil_div(n, spec.width(ctx.target))
    ctx.emit(spec, words, tiles, [a, b, *views], [out], flops=m * n * k * 2, ops=done.ops)


def _vectors(target: Target, n: Known, element: DType) -> int:
    """Vectors of columns in a tile."""
    if not isinstance(n, int):
        return _VECTORS
    return max(1, min(_VECTORS, -(-n // target.lanes(element))))
