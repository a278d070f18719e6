"""The protocol's data types: their names in requests and in model configurations, and Whet's types."""

from __future__ import annotations

from dataclasses import dataclass

from whet import dtypes
from whet.dtypes import DType
from whet.errors import InvalidArgument, did_you_mean


@dataclass(frozen=True, slots=True)
class Datatype:
    """`name` in requests and metadata, `config_name` in config.pbtxt; `dtype` is Whet's element type.

    BYTES has no fixed size: an element is its length in four little-endian bytes, then its content.
    """

    name: str
    config_name: str
    dtype: DType

    @property
    def element_bytes(self) -> int:
        """Bytes of an element in the binary form; 0 for BYTES."""
        return self.dtype.bits // 8


ALL: tuple[Datatype, ...] = (
    Datatype("BOOL", "TYPE_BOOL", dtypes.BOOL),
    Datatype("UINT8", "TYPE_UINT8", dtypes.UINT8),
    Datatype("UINT16", "TYPE_UINT16", dtypes.UINT16),
    Datatype("UINT32", "TYPE_UINT32", dtypes.UINT32),
    Datatype("UINT64", "TYPE_UINT64", dtypes.UINT64),
    Datatype("INT8", "TYPE_INT8", dtypes.INT8),
    Datatype("INT16", "TYPE_INT16", dtypes.INT16),
    Datatype("INT32", "TYPE_INT32", dtypes.INT32),
    Datatype("INT64", "TYPE_INT64", dtypes.INT64),
    Datatype("FP16", "TYPE_FP16", dtypes.FLOAT16),
    Datatype("FP32", "TYPE_FP32", dtypes.FLOAT32),
    Datatype("FP64", "TYPE_FP64", dtypes.FLOAT64),
    Datatype("BF16", "TYPE_BF16", dtypes.BFLOAT16),
    Datatype("BYTES", "TYPE_STRING", dtypes.STRING),
)

BY_NAME: dict[str, Datatype] = {t.name: t for t in ALL}
BY_CONFIG_NAME: dict[str, Datatype] = {t.config_name: t for t in ALL}
BY_DTYPE: dict[DType, Datatype] = {t.dtype: t for t in ALL}
BYTES = BY_NAME["BYTES"]


def datatype(name: object, tensor: str) -> Datatype:
    """The data type of this name. Raises InvalidArgument naming the tensor for one that the protocol does not have."""
    found = BY_NAME.get(name) if isinstance(name, str) else None
    if found is None:
        raise InvalidArgument(
            "unknown datatype",
            value=tensor,
            found=name,
            expected=", ".join(BY_NAME),
            hint=did_you_mean(name, BY_NAME) if isinstance(name, str) else None,
        )
    return found
