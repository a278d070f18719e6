"""The one table of Whet's own kernels, keyed like `Node.op`."""

from __future__ import annotations

from whet.ops.base import Kernel
from whet.ops.kernels.activation import ACTIVATIONS
from whet.ops.kernels.arithmetic import ARITHMETIC
from whet.ops.kernels.attention import ATTENTION
from whet.ops.kernels.conv import CONVOLUTIONS
from whet.ops.kernels.indexing import INDEXING
from whet.ops.kernels.maps import MAPS
from whet.ops.kernels.matmul import MATMULS
from whet.ops.kernels.movement import MOVEMENT
from whet.ops.kernels.norm import NORMS
from whet.ops.kernels.pool import POOLS
from whet.ops.kernels.quantize import QUANTIZATION
from whet.ops.kernels.reduce import REDUCE
from whet.ops.kernels.resize import RESIZE
from whet.ops.kernels.rnn import RECURRENT
from whet.ops.kernels.sequence import SEQUENCES

KERNELS: dict[str, Kernel] = {
    **ACTIVATIONS,
    **ARITHMETIC,
    **CONVOLUTIONS,
    **MATMULS,
    **NORMS,
    **POOLS,
    **QUANTIZATION,
    **REDUCE,
    **ATTENTION,
    **INDEXING,
    **MOVEMENT,
    **MAPS,
    **RECURRENT,
    **RESIZE,
    **SEQUENCES,
}
