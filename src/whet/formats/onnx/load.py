"""Loading a model: bytes, limits, external data, local functions, opset; out comes the canonical graph."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx
from google.protobuf.message import DecodeError
from onnx import parser

from whet.config import DEFAULT_LIMITS, Limits
from whet.errors import InvalidGraph, InvalidProtobuf, NoModel, ResourceExhausted, WhetError
from whet.formats.onnx.build import GraphBuilder, canonical_domain
from whet.formats.onnx.external import ExternalData
from whet.formats.onnx.schemas import NEWEST_OPSET
from whet.formats.onnx.source import Source, open_source
from whet.formats.onnx.strings import loose_text, require_text
from whet.formats.onnx.tensors import TensorReader
from whet.formats.onnx.upgrade import upgrade
from whet.formats.onnx.wire import Payloads, lift
from whet.graph import Model, TensorData

NEWEST_IR: int = onnx.IR_VERSION


@dataclass(frozen=True, slots=True)
class Supply:
    """What the caller gives in place of parts of the file."""

    as_inputs: frozenset[str] = frozenset()
    """Overridable initializers that become true inputs."""
    initializers: Mapping[str, TensorData] = field(default_factory=dict)
    """Contents of initializers by name; what the file holds or points at for them is not read."""
    folder: str | None = None
    """Where external data lies, in place of the model's own folder."""
    files: Mapping[str, memoryview] = field(default_factory=dict)
    """External files by location, held in memory."""


def load_model(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview,
    limits: Limits = DEFAULT_LIMITS,
    *,
    as_inputs: frozenset[str] = frozenset(),
    initializers: Mapping[str, TensorData] | None = None,
    folder: str | os.PathLike[str] | None = None,
    files: Mapping[str, bytes | bytearray | memoryview] | None = None,
) -> Model:
    """The model in a file or in bytes, with every ONNX operator in its newest form and local functions expanded.

    Weights stay in the mapped file (or in the caller's bytes, which are borrowed) until somebody reads them. External
    data is found beside the file only (or in `folder`, or in `files` by location). Initializers that are also graph
    inputs are constants in `graph.overridable`; those named in `as_inputs` become true inputs. `initializers` gives
    some other contents of the same type; what the file points at for those need not exist.

    Raises InvalidArgument (an entry of `initializers` that does not fit), NoSuchFile, NoModel, InvalidProtobuf,
    InvalidGraph, NotImplemented or ResourceExhausted.
    """
    opened = open_source(source)
    supply = Supply(
        as_inputs,
        initializers or {},
        os.fspath(folder) if folder is not None else None,
        {name: memoryview(data).cast("B").toreadonly() for name, data in (files or {}).items()},
    )
    try:
        return _load(opened, limits, supply)
    except WhetError as error:
        if error.file is None:
            error.file = opened.path
        raise


def from_text(text: str, limits: Limits = DEFAULT_LIMITS, *, as_inputs: frozenset[str] = frozenset()) -> Model:
    """The model that `text` (onnx's textual syntax, https://onnx.ai/onnx/repo-docs/Syntax.html) describes."""
    try:
        proto = parser.parse_model(text)
    except parser.ParseError as error:
        raise InvalidProtobuf(f"the text is no model: {error}") from error
    return load_model(proto.SerializeToString(), limits, as_inputs=as_inputs)


def _load(source: Source, limits: Limits, supply: Supply) -> Model:
    rest, payloads = lift(source.data, source.path)
    if len(rest) > limits.model_bytes:
        raise ResourceExhausted(
            "the model without its weights is too large",
            found=f"{len(rest)} bytes",
            expected=f"at most {limits.model_bytes} (Limits.model_bytes)",
        )
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(rest)
    except DecodeError as error:
        raise InvalidProtobuf(
            "the bytes are not an ONNX model", found=str(error), hint="The file may be truncated; fetch it again."
        ) from error
    return build_model(proto, payloads, source, limits, supply)


def build_model(proto: onnx.ModelProto, payloads: Payloads, source: Source, limits: Limits, supply: Supply) -> Model:
    """The canonical model of a parsed proto whose long tensors are in `payloads`."""
    imports = _check_header(proto)
    folder = supply.folder if supply.folder is not None else source.folder
    reader = TensorReader(payloads, ExternalData(folder, source.path, supply.files), limits)
    builder = GraphBuilder(reader, imports, proto.functions, limits, supply.as_inputs, supply.initializers)
    graph = builder.main(proto.graph)
    model = Model(
        graph=graph,
        opset_imports=imports,
        ir_version=proto.ir_version,
        producer_name=loose_text(proto.producer_name),
        producer_version=loose_text(proto.producer_version),
        domain=loose_text(proto.domain),
        model_version=proto.model_version,
        doc_string=loose_text(proto.doc_string),
        metadata={loose_text(entry.key): loose_text(entry.value) for entry in proto.metadata_props},
        denotations=builder.denotations,
        path=source.path,
        names=builder.names,
    )
    upgrade(model, builder.versions)
    return model


def _check_header(proto: onnx.ModelProto) -> dict[str, int]:
    """The model's opset imports. Raises InvalidGraph for versions that do not exist, NoModel without a graph."""
    if not proto.HasField("graph"):
        raise NoModel("the model holds no graph", hint="This may be some other protobuf file.")
    if not 1 <= proto.ir_version <= NEWEST_IR:
        raise InvalidGraph(
            "unknown IR version", found=proto.ir_version, expected=f"1 to {NEWEST_IR}", hint=_newer(proto.ir_version)
        )
    imports = opset_imports(proto.opset_import)
    if not imports:
        if proto.ir_version >= 3:
            raise InvalidGraph("the model imports no opset", expected="an opset_import, required since IR version 3")
        imports = {"": 1}
    return imports


def opset_imports(entries: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Domain to version. Raises InvalidGraph for a version that onnx does not have, or two of one domain."""
    imports: dict[str, int] = {}
    for entry in entries:
        require_text(entry.domain, where="an opset import")
        domain, version = canonical_domain(entry.domain), int(entry.version)
        if imports.setdefault(domain, version) != version:
            raise InvalidGraph(
                "two opsets of one domain", value=domain or "ai.onnx", found=f"{imports[domain]} and {version}"
            )
        newest = NEWEST_OPSET if not domain else onnx.defs.onnx_ml_opset_version() if domain == "ai.onnx.ml" else None
        if version < 1 or (newest is not None and version > newest):
            raise InvalidGraph(
                f"unknown opset of domain {domain or 'ai.onnx'}",
                found=version,
                expected=f"1 to {newest}" if newest else "at least 1",
                hint=_newer(version),
            )
    return imports


def _newer(version: int) -> str | None:
    return "A later release of Whet may know it; or export the model at an older version." if version > 0 else None
