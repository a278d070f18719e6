"""Every address but inference: a few lines over the data plane each. `routes.py` says which address calls which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whet.errors import InvalidArgument
from whet.server.access import Access
from whet.server.data_plane import DataPlane
from whet.server.errors import ModelUnavailable, ShuttingDown, Unsupported
from whet.server.http.json_request import parse_json
from whet.server.http.openapi import document as openapi_document
from whet.server.http.origin import OriginCheck
from whet.server.http.routes import ROUTES, Call
from whet.server.repository.config_message import config_document


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for one of the calls: the names in its address, its headers and its body, decompressed."""

    names: Mapping[str, str]
    headers: Any
    authority: str | None
    body: bytes

    def document(self) -> dict[str, Any]:
        """The body's object; an empty body is an empty one."""
        return parse_json(self.body) if self.body.strip() else {}


class Calls:
    """The calls by the names that the routes give them. Each returns a document, or None for an empty answer."""

    def __init__(self, plane: DataPlane, access: Access, origin: OriginCheck) -> None:
        self._plane = plane
        self._access = access
        self._origin = origin
        self.by_name: Mapping[str, Any] = {
            "live": self._live,
            "ready": self._ready,
            "server_metadata": self._server_metadata,
            "model_metadata": self._model_metadata,
            "model_ready": self._model_ready,
            "model_config": self._model_config,
            "statistics": self._statistics,
            "index": self._index,
            "load": self._load,
            "unload": self._unload,
            "traces": self._traces,
            "change_traces": self._change_traces,
            "logs": self._logs,
            "change_logs": self._change_logs,
            "openapi": self._openapi,
            "no_shared_memory": self._no_shared_memory,
            "no_generate": self._no_generate,
        }

    def allow(self, call: Call, headers: Any, authority: str | None) -> None:
        """Raise Unauthorized where this request may not make the administrative `call`."""
        self._access.check(call.name, headers.get("authorization"))
        self._origin.check(call.name, headers, authority)

    async def _live(self, asked: Asked) -> None:
        if not self._plane.live:
            raise ModelUnavailable("the server is not live")

    async def _ready(self, asked: Asked) -> None:
        if not self._plane.ready:
            raise ModelUnavailable("the server is not ready")

    async def _server_metadata(self, asked: Asked) -> Any:
        return self._plane.server_metadata()

    async def _model_metadata(self, asked: Asked) -> Any:
        return self._plane.model_metadata(asked.names["model"], asked.names.get("version", ""))

    async def _model_ready(self, asked: Asked) -> None:
        name, version = asked.names["model"], asked.names.get("version", "")
        self._plane.model(name, version)
        if not self._plane.model_ready(name, version):
            raise ShuttingDown("the server is shutting down", value=name)

    async def _model_config(self, asked: Asked) -> Any:
        return config_document(self._plane.model(asked.names["model"], asked.names.get("version", "")).config)

    async def _statistics(self, asked: Asked) -> Any:
        return self._plane.statistics(asked.names.get("model", ""), asked.names.get("version", ""))

    async def _index(self, asked: Asked) -> Any:
        document = _only(asked.document(), ("ready",), "an index")
        ready = document.get("ready", False)
        if type(ready) is not bool:
            raise InvalidArgument("`ready` is true or false", found=ready)
        return self._plane.repository_calls(asked.names.get("repository", "")).index(ready)

    async def _load(self, asked: Asked) -> None:
        parameters = _parameters(asked.document(), "a load")
        for name in parameters:
            if name.startswith("file:"):
                raise Unsupported("a request cannot bring the files of a model", value=name[:200])
        config = _only(parameters, ("config",), "a load").get("config")
        if config is not None and not isinstance(config, str):
            raise InvalidArgument("`config` is the configuration as a JSON text", found=type(config).__name__)
        repository = self._plane.repository_calls(asked.names.get("repository", ""))
        await repository.load(asked.names["model"], config)

    async def _unload(self, asked: Asked) -> None:
        parameters = _only(_parameters(asked.document(), "an unload"), ("unload_dependents",), "an unload")
        dependents = parameters.get("unload_dependents", False)
        if type(dependents) is not bool:
            raise InvalidArgument("`unload_dependents` is true or false", found=dependents)
        repository = self._plane.repository_calls(asked.names.get("repository", ""))
        await repository.unload(asked.names["model"], dependents)

    def _traced_model(self, asked: Asked) -> str:
        name = asked.names.get("model", "")
        if name:
            self._plane.model(name)
        return name

    async def _traces(self, asked: Asked) -> Any:
        return self._plane.settings.traces(self._traced_model(asked)).document()

    async def _change_traces(self, asked: Asked) -> Any:
        name = self._traced_model(asked)
        return self._plane.settings.change_traces(asked.document(), name).document()

    async def _logs(self, asked: Asked) -> Any:
        return self._plane.settings.logs.document()

    async def _change_logs(self, asked: Asked) -> Any:
        return self._plane.settings.change_logs(asked.document()).document()

    async def _openapi(self, asked: Asked) -> Any:
        return openapi_document(ROUTES)

    async def _no_shared_memory(self, asked: Asked) -> None:
        raise Unsupported("this server does not have shared memory", hint="Send tensors in the request.")

    async def _no_generate(self, asked: Asked) -> None:
        raise Unsupported("this server does not generate text", found=asked.names["model"], hint="Call infer.")


def _parameters(document: dict[str, Any], what: str) -> dict[str, Any]:
    found = _only(document, ("parameters",), what).get("parameters", {})
    if not isinstance(found, dict):
        raise InvalidArgument("`parameters` is an object", found=type(found).__name__)
    return found


def _only(document: dict[str, Any], known: tuple[str, ...], what: str) -> dict[str, Any]:
    for name in document:
        if name not in known:
            raise InvalidArgument(f"unknown field of {what}", value=name[:200], expected=", ".join(known))
    return document
