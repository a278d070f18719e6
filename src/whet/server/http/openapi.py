"""The OpenAPI 3.1 document of the HTTP interface, made of the route table and literal schemas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from whet.server.datatypes import BY_NAME
from whet.server.http.routes import Call, Route
from whet.server.settings import LARGEST, LEVELS
from whet.version import __version__

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_PARAMETERS: Schema = {"type": "object", "additionalProperties": {"type": ["boolean", "integer", "number", "string"]}}
_SHAPE: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 32}
_DATATYPE: Schema = {"type": "string", "enum": list(BY_NAME)}
_DATA: Schema = {
    "description": "The elements in row-major order, flat or in nested lists. Numbers that JSON does not have are null "
    "in answers; the binary form keeps them.",
    "type": "array",
}
_DURATION: Schema = {"type": "object", "properties": {"count": _COUNT, "ns": _COUNT}, "required": ["count", "ns"]}
_DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


def _object(properties: Schema, required: Iterable[str] = (), closed: bool = False) -> Schema:
    found: Schema = {"type": "object", "properties": properties}
    if names := list(required):
        found["required"] = names
    if closed:
        found["additionalProperties"] = False
    return found


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_LEVEL: Schema = {"enum": list(LEVELS)}
_DEFAULT: Schema = {"type": "null"}


def _setting(least: int) -> Schema:
    """A number, which Triton's clients send as a string, alone or in a list."""
    digits = "[1-9][0-9]{0,17}"
    pattern = {1: f"^{digits}$", 0: f"^(0|{digits})$", -1: f"^(-1|0|{digits})$"}[least]
    number = [{"type": "integer", "minimum": least, "maximum": LARGEST}, {"type": "string", "pattern": pattern}]
    return {"oneOf": [*number, {"type": "array", "items": {"oneOf": number}, "minItems": 1, "maxItems": 1}, _DEFAULT]}


_TENSOR_METADATA = _object(
    {"name": _TEXT, "datatype": _DATATYPE, "shape": _list({"type": "integer", "minimum": -1})},
    ("name", "datatype", "shape"),
)

SCHEMAS: dict[str, Schema] = {
    "Anything": {},
    "Error": _object({"error": _TEXT}, ("error",)),
    "ServerMetadata": _object(
        {"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)}, ("name", "version", "extensions")
    ),
    "ModelMetadata": _object(
        {
            "name": _TEXT,
            "versions": _list(_TEXT),
            "platform": _TEXT,
            "inputs": _list(_TENSOR_METADATA),
            "outputs": _list(_TENSOR_METADATA),
        },
        ("name", "versions", "platform", "inputs", "outputs"),
    ),
    "ModelConfig": {
        "description": "The ModelConfig message of the protocol as JSON: 64-bit numbers are strings.",
        **_object({"name": _TEXT, "max_batch_size": {"type": "integer"}}, ("name",)),
    },
    "Statistics": _object(
        {
            "model_stats": _list(
                _object(
                    {
                        "name": _TEXT,
                        "version": _TEXT,
                        "last_inference": _COUNT,
                        "inference_count": _COUNT,
                        "execution_count": _COUNT,
                        "inference_stats": _object(dict.fromkeys(_DURATIONS, _DURATION), _DURATIONS),
                        "batch_stats": _list({"type": "object"}),
                    },
                    ("name", "version", "inference_count", "execution_count", "inference_stats"),
                )
            )
        },
        ("model_stats",),
    ),
    "InferRequest": {
        "description": "With `Inference-Header-Content-Length: N`, the first N bytes of the body are this object; the "
        "tensors that have `binary_data_size` follow it, in order (BYTES: each element behind its length in four "
        "little-endian bytes).",
        **_object(
            {
                "id": _TEXT,
                "parameters": _PARAMETERS,
                "inputs": _list(
                    _object(
                        {
                            "name": _TEXT,
                            "datatype": _DATATYPE,
                            "shape": _SHAPE,
                            "parameters": _PARAMETERS,
                            "data": _DATA,
                        },
                        ("name", "datatype", "shape"),
                    )
                ),
                "outputs": _list(_object({"name": _TEXT, "parameters": _PARAMETERS}, ("name",))),
            },
            ("inputs",),
        ),
    },
    "InferResponse": _object(
        {
            "model_name": _TEXT,
            "model_version": _TEXT,
            "id": _TEXT,
            "parameters": _PARAMETERS,
            "outputs": _list(
                _object(
                    {"name": _TEXT, "datatype": _DATATYPE, "shape": _SHAPE, "parameters": _PARAMETERS, "data": _DATA},
                    ("name", "datatype", "shape"),
                )
            ),
        },
        ("model_name", "model_version", "outputs"),
    ),
    "IndexRequest": _object({"ready": {"type": "boolean"}}, closed=True),
    "RepositoryIndex": _list(
        _object({"name": _TEXT, "version": _TEXT, "state": _TEXT, "reason": _TEXT}, ("name",)),
    ),
    "LoadRequest": _object({"parameters": _object({"config": _TEXT}, closed=True)}, closed=True),
    "UnloadRequest": _object(
        {"parameters": _object({"unload_dependents": {"type": "boolean"}}, closed=True)}, closed=True
    ),
    "TraceSettings": _object(
        {
            "trace_level": _list(_TEXT),
            "trace_rate": _TEXT,
            "trace_count": _TEXT,
            "log_frequency": _TEXT,
            "trace_file": _TEXT,
            "trace_mode": _TEXT,
        }
    ),
    "TraceChanges": {
        "description": "Settings by name; null goes back to the default.",
        **_object(
            {
                "trace_level": {"oneOf": [_LEVEL, {"type": "array", "items": _LEVEL, "minItems": 1}, _DEFAULT]},
                "trace_rate": _setting(1),
                "trace_count": _setting(-1),
                "log_frequency": _setting(0),
            },
            closed=True,
        ),
    },
    "LogSettings": _object(
        {
            "log_file": _TEXT,
            "log_info": {"type": "boolean"},
            "log_warning": {"type": "boolean"},
            "log_error": {"type": "boolean"},
            "log_verbose_level": _COUNT,
            "log_format": {"enum": ["default", "ISO8601", "json"]},
        }
    ),
    "LogChanges": {
        "description": "Settings by name.",
        **_object(
            {
                "log_info": {"type": "boolean"},
                "log_warning": {"type": "boolean"},
                "log_error": {"type": "boolean"},
                "log_verbose_level": {"type": "integer", "minimum": 0, "maximum": 99},
                "log_format": {"enum": ["default", "ISO8601", "json"]},
            },
            closed=True,
        ),
    },
}

ERRORS: dict[str, str] = {
    "400": "The request is wrong",
    "403": "An administrative call that is not allowed here",
    "404": "There is no such model, version or address",
    "405": "The address does not take this method",
    "408": "The body came too slowly",
    "413": "The body is too large",
    "415": "The body has a form that the server does not read",
    "431": "The headers are too large",
    "500": "The model or the server failed",
    "501": "The server does not have this",
    "503": "The model or the server is not ready, or its queue is full",
    "504": "The request's time was over",
}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(name: str) -> Schema:
    return {"application/json": {"schema": _reference(name)}}


def _operation(route: Route, method: str, call: Call) -> Schema:
    good: Schema = {"description": "Done"}
    if call.answer:
        good["content"] = _content(call.answer)
    if call.name == "infer":
        good["content"]["application/octet-stream"] = {}
        good["headers"] = {"Inference-Header-Content-Length": {"schema": _TEXT}}
    operation: Schema = {
        "summary": call.summary,
        "operationId": f"{method.lower()}{route.path.replace('/', '_').replace('{', '').replace('}', '')}",
        "tags": ["administration" if call.is_admin else "inference" if call.name == "infer" else "state"],
        "parameters": [
            {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for part in route.parts
            if part[:1] == "{"
        ],
        "responses": {"200": good, **{code: {"$ref": f"#/components/responses/{code}"} for code in ERRORS}},
    }
    if call.body:
        operation["requestBody"] = {"required": call.body == "InferRequest", "content": _content(call.body)}
    if call.is_admin:
        operation["security"] = [{"token": []}, {}]
    return operation


def document(routes: Iterable[Route]) -> Schema:
    """The document. It leaves out the addresses where every answer is a refusal."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Whet",
            "version": __version__,
            "description": "KServe v2 (Open Inference Protocol) with the extensions of Triton Inference Server.",
        },
        "paths": {
            route.path: {method.lower(): _operation(route, method, call) for method, call in route.calls.items()}
            for route in routes
            if route.is_served
        },
        "components": {
            "schemas": SCHEMAS,
            "responses": {
                code: {"description": text, "content": _content("Error")} if code != "431" else {"description": text}
                for code, text in ERRORS.items()
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
