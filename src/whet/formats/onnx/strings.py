"""Text in a model. Protobuf hands over bytes where a string field does not hold UTF-8."""

from __future__ import annotations

from whet.errors import InvalidProtobuf


def require_text(*names: str | bytes, where: str) -> None:
    """Raise InvalidProtobuf when one of `names`, found in `where`, is not UTF-8 text."""
    for name in names:
        if isinstance(name, bytes):
            raise InvalidProtobuf(
                "a name that is not UTF-8 text", node=where, found=name[:80], hint="The file may be damaged."
            )


def loose_text(text: str | bytes) -> str:
    """Documentation and metadata, which nothing depends on, with what is not UTF-8 replaced."""
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text
