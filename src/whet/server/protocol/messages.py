"""The messages of the published interface files.

They live in a descriptor pool of their own: clients that a program loads beside the server (`tritonclient` is one)
register messages of the same names in protobuf's process-wide pool, which takes each name once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError

from whet.errors import InvalidArgument

DESCRIPTORS = Path(__file__).parent / "proto" / "inference.binpb"

POOL = descriptor_pool.DescriptorPool()

WITH_PRESENCE: tuple[tuple[str, str], ...] = (("ModelDynamicBatching", "max_queue_delay_microseconds"),)
"""Fields whose 0 is another thing than their absence. They are read as if the interface file said `optional`, which is
the same in bytes and in both texts."""


def _messages() -> dict[str, Any]:
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    for file in files.file:
        for kind in file.message_type:
            for field in kind.field:
                if (kind.name, field.name) in WITH_PRESENCE:
                    # How the compiler writes `optional` down: a oneof of one field.
                    field.proto3_optional, field.oneof_index = True, len(kind.oneof_decl)
                    kind.oneof_decl.add(name=f"_{field.name}")
        POOL.Add(file)
    found = message_factory.GetMessageClassesForFiles([f.name for f in files.file], POOL)
    return dict(found)


_BY_NAME = _messages()


def message(name: str) -> Any:
    """The class of a message, by its full name: `inference.ModelInferRequest`, `grpc.health.v1.HealthCheckRequest`."""
    return _BY_NAME[name]


def parse(kind: Any, content: bytes) -> Any:
    """The message of class `kind` in these bytes. Raises InvalidArgument where they hold none."""
    try:
        return kind.FromString(content)
    except DecodeError as error:
        raise InvalidArgument(
            "the request is no such message", found=f"{len(content)} bytes", expected=kind.DESCRIPTOR.full_name
        ) from error


def from_document(kind: Any, document: Mapping[str, Any]) -> Any:
    """The message of class `kind` with a document's fields, by their names in the interface file."""
    return json_format.ParseDict(document, kind())


def service_methods(name: str) -> dict[str, tuple[Any, Any, bool, bool]]:
    """A service's methods: request class, answer class, whether requests stream, whether answers do."""
    service = POOL.FindServiceByName(name)
    return {
        m.name: (
            message_factory.GetMessageClass(m.input_type),
            message_factory.GetMessageClass(m.output_type),
            m.client_streaming,
            m.server_streaming,
        )
        for m in service.methods
    }


ModelConfigMessage = message("inference.ModelConfig")
