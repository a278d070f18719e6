"""The response cache: the outputs of requests whose inputs were seen before."""

from __future__ import annotations

import asyncio
import struct
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from whet.server.datatypes import BYTES
from whet.server.request import Array, InferRequest

ENTRY_BYTES = 512
"""What an entry costs beside its tensors, about."""
OBJECT_BYTES = 40
LARGE_BYTES = 256 << 10
"""Inputs from this size on are digested in a thread: it would hold the event loop for more than 0.1 ms."""

Key = bytes


class ResponseCache:
    """Outputs by what was asked, the least recently used leaving first when there are more than `limit_bytes`.

    All models share one. A model that is loaded anew has another `generation` and finds nothing of the old one's.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.evicted = 0
        self._entries: OrderedDict[Key, tuple[list[Array], int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Sequence[Array] | None:
        """The outputs, which are not to be changed, or None."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: Key, outputs: Sequence[Array]) -> None:
        """Keep copies of the outputs; those that are too large for the cache are not kept."""
        size = ENTRY_BYTES + sum(_size(a) for a in outputs)
        if size > self.limit_bytes:
            return
        # Rows of a batch's outputs are views: they would hold the whole batch.
        kept = [a.copy() for a in outputs]
        for array in kept:
            array.flags.writeable = False
        old = self._entries.pop(key, None)
        if old is not None:
            self.used_bytes -= old[1]
        self._entries[key] = kept, size
        self.used_bytes += size
        while self.used_bytes > self.limit_bytes:
            _, (_, freed) = self._entries.popitem(last=False)
            self.used_bytes -= freed
            self.evicted += 1


async def find_key(generation: bytes, request: InferRequest, names: Sequence[str]) -> Key:
    """`request_key`, away from the event loop where it takes long."""
    if sum(t.array.nbytes for t in request.inputs) < LARGE_BYTES:
        return request_key(generation, request, names)
    return await asyncio.get_running_loop().run_in_executor(None, request_key, generation, request, names)


def request_key(generation: bytes, request: InferRequest, names: Sequence[str]) -> Key:
    """A digest of everything that the outputs follow from: the loaded model, the inputs, and the outputs asked for.

    SHA-256, which processors have instructions for: as fast as copying, and nobody can make two requests of one key.
    """
    digest = sha256(generation)
    for name in names:
        _text(digest, name)
    for tensor in sorted(request.inputs, key=lambda t: t.name):
        _text(digest, tensor.name)
        _text(digest, tensor.datatype.name)
        array = tensor.array
        digest.update(struct.pack(f"<B{array.ndim}q", array.ndim, *array.shape))
        if tensor.datatype is BYTES:
            for element in array.reshape(-1):
                _text(digest, element)
        else:
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.digest()


def _text(digest: Any, text: str | bytes) -> None:
    content = text.encode(errors="surrogatepass") if isinstance(text, str) else bytes(text)
    digest.update(struct.pack("<Q", len(content)))
    digest.update(content)


def _size(array: Array) -> int:
    if array.dtype != object:
        return array.nbytes
    return array.nbytes + sum(OBJECT_BYTES + len(e) for e in array.reshape(-1))
