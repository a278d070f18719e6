"""Bodies that are compressed: `Content-Encoding` of requests and `Accept-Encoding` of answers."""

from __future__ import annotations

import asyncio
import zlib

from whet.errors import InvalidArgument
from whet.server.errors import PayloadTooLarge
from whet.server.http.failures import UnsupportedMediaType

GZIP_BITS = zlib.MAX_WBITS + 16
IDENTITY = ("", "identity")

# `deflate` is the zlib format (RFC 9110, 8.4.1.2).
WINDOW_BITS: dict[str, int] = {"gzip": GZIP_BITS, "x-gzip": GZIP_BITS, "deflate": zlib.MAX_WBITS}

LEVEL = 1
"""Tensors hardly compress; higher levels cost much and gain little."""

SMALLEST = 256
"""Answers below this many bytes are sent as they are."""

IN_THREAD = 32 << 10
"""Bytes from which the work leaves the event loop; zlib lets go of the interpreter meanwhile."""


async def decompressed(body: bytes | memoryview, encoding: str, most: int) -> bytes | memoryview:
    """The body of a request, at most `most` bytes long.

    Raises UnsupportedMediaType for an unknown encoding, InvalidArgument for a damaged body, PayloadTooLarge.
    """
    name = encoding.strip().lower()
    if name in IDENTITY:
        return body
    bits = WINDOW_BITS.get(name)
    if bits is None:
        raise UnsupportedMediaType(
            "the body's Content-Encoding is not known", found=encoding, expected="gzip, deflate or identity, and one"
        )
    # A small body may hold a large one: every decompression may be long.
    return await asyncio.to_thread(_decompress, body, bits, most, name)


def _decompress(body: bytes | memoryview, bits: int, most: int, name: str) -> bytes:
    parts: list[bytes] = []
    size = 0
    rest: bytes | memoryview = body
    try:
        while rest:
            stream = zlib.decompressobj(bits)
            parts.append(stream.decompress(rest, most + 1 - size))
            size += len(parts[-1])
            if size > most:
                raise PayloadTooLarge("the decompressed body is too large", found=name, expected=f"{most} bytes")
            if not stream.eof:
                raise InvalidArgument("the compressed body ends too early", found=name)
            rest = stream.unused_data
            if rest and bits != GZIP_BITS:
                raise InvalidArgument("bytes are left over behind the compressed body", found=f"{len(rest)} bytes")
    except zlib.error as error:
        raise InvalidArgument("the body cannot be decompressed", value=name, found=str(error)) from error
    if not parts:
        raise InvalidArgument("the compressed body is empty", found=name)
    return b"".join(parts)


def wanted_encoding(accept: str) -> str | None:
    """How the answer is to be compressed, None for not at all.

    Only a client that names one encoding and nothing else gets it: HTTP libraries name every one that they know
    without being asked, and compressing a tensor takes longer than sending it on most networks.
    """
    name, _, quality = accept.strip().lower().partition(";")
    name = name.strip()
    if name not in ("gzip", "deflate") or quality.strip().replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
        return None
    return name


async def compressed(content: bytes, encoding: str) -> bytes | None:
    """The content compressed, or None where that is not worth it."""
    if len(content) < SMALLEST:
        return None
    if len(content) < IN_THREAD:
        return _compress(content, encoding)
    return await asyncio.to_thread(_compress, content, encoding)


def _compress(content: bytes, encoding: str) -> bytes:
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, WINDOW_BITS[encoding])
    return stream.compress(content) + stream.flush()
