"""The addresses: one literal table, which the application follows and the OpenAPI document is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from whet.server.http.failures import MethodNotAllowed, NoSuchAddress


@dataclass(frozen=True, slots=True)
class Call:
    """What a method does at an address: a name of `calls.py` (`no_...` only refuses), or `infer`.

    `is_admin`: it changes the server. `summary`, and `body` and `answer` (names of the document's schemas, "" for
    none), are for the OpenAPI document.
    """

    name: str
    summary: str
    answer: str = ""
    body: str = ""
    is_admin: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """An address, `{name}` for one part of any content, and its calls by method."""

    path: str
    calls: Mapping[str, Call]

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.path.split("/")[1:])

    @property
    def is_served(self) -> bool:
        """False where every call is refused: what the server does not have, and repositories that are named."""
        return "{repository}" not in self.path and all(c.name[:3] != "no_" for c in self.calls.values())

    @property
    def allow(self) -> str:
        methods = [*self.calls, "OPTIONS"]
        if "GET" in self.calls:
            methods.insert(1, "HEAD")
        return ", ".join(methods)


LIVE = {"GET": Call("live", "Whether the process lives")}
READY = {"GET": Call("ready", "Whether the server takes requests")}
SERVER = {"GET": Call("server_metadata", "Name, version and extensions of the server", "ServerMetadata")}
METADATA = {"GET": Call("model_metadata", "Inputs and outputs of a model", "ModelMetadata")}
MODEL_READY = {"GET": Call("model_ready", "Whether a model answers")}
CONFIG = {"GET": Call("model_config", "The complete configuration of a model", "ModelConfig")}
STATISTICS = {"GET": Call("statistics", "What models did so far", "Statistics")}
INFER = {"POST": Call("infer", "Run a model", "InferResponse", "InferRequest")}
NO_GENERATE = {"POST": Call("no_generate", "Not supported: text generation", body="Anything")}
INDEX = {"POST": Call("index", "The model versions of the repository", "RepositoryIndex", "IndexRequest")}
LOAD = {"POST": Call("load", "Load a model, or load it anew", body="LoadRequest", is_admin=True)}
UNLOAD = {"POST": Call("unload", "Stop serving a model", body="UnloadRequest", is_admin=True)}
TRACES = {
    "GET": Call("traces", "The trace settings", "TraceSettings"),
    "POST": Call("change_traces", "Change the trace settings", "TraceSettings", "TraceChanges", is_admin=True),
}
LOGS = {
    "GET": Call("logs", "The log settings", "LogSettings"),
    "POST": Call("change_logs", "Change the log settings", "LogSettings", "LogChanges", is_admin=True),
}
NO_SHARED_MEMORY = {"GET": Call("no_shared_memory", "Not supported: shared memory")}
NO_SHARED_MEMORY_CHANGES = {"POST": Call("no_shared_memory", "Not supported: shared memory", body="Anything")}
OPENAPI = {"GET": Call("openapi", "This document", "Anything")}

# The first that fits is taken: `/v2/models/stats` is no model.
ROUTES: tuple[Route, ...] = (
    Route("/v2", SERVER),
    Route("/v2/health/live", LIVE),
    Route("/v2/health/ready", READY),
    Route("/v2/models/stats", STATISTICS),
    Route("/v2/models/{model}", METADATA),
    Route("/v2/models/{model}/ready", MODEL_READY),
    Route("/v2/models/{model}/config", CONFIG),
    Route("/v2/models/{model}/stats", STATISTICS),
    Route("/v2/models/{model}/infer", INFER),
    Route("/v2/models/{model}/generate", NO_GENERATE),
    Route("/v2/models/{model}/generate_stream", NO_GENERATE),
    Route("/v2/models/{model}/versions/{version}", METADATA),
    Route("/v2/models/{model}/versions/{version}/ready", MODEL_READY),
    Route("/v2/models/{model}/versions/{version}/config", CONFIG),
    Route("/v2/models/{model}/versions/{version}/stats", STATISTICS),
    Route("/v2/models/{model}/versions/{version}/infer", INFER),
    Route("/v2/models/{model}/versions/{version}/generate", NO_GENERATE),
    Route("/v2/models/{model}/versions/{version}/generate_stream", NO_GENERATE),
    Route("/v2/repository/index", INDEX),
    Route("/v2/repository/{repository}/index", INDEX),
    Route("/v2/repository/models/{model}/load", LOAD),
    Route("/v2/repository/models/{model}/unload", UNLOAD),
    Route("/v2/repository/{repository}/models/{model}/load", LOAD),
    Route("/v2/repository/{repository}/models/{model}/unload", UNLOAD),
    Route("/v2/trace/setting", TRACES),
    Route("/v2/models/{model}/trace/setting", TRACES),
    Route("/v2/logging", LOGS),
    Route("/v2/systemsharedmemory/status", NO_SHARED_MEMORY),
    Route("/v2/systemsharedmemory/unregister", NO_SHARED_MEMORY_CHANGES),
    Route("/v2/systemsharedmemory/region/{region}/status", NO_SHARED_MEMORY),
    Route("/v2/systemsharedmemory/region/{region}/register", NO_SHARED_MEMORY_CHANGES),
    Route("/v2/systemsharedmemory/region/{region}/unregister", NO_SHARED_MEMORY_CHANGES),
    Route("/v2/cudasharedmemory/status", NO_SHARED_MEMORY),
    Route("/v2/cudasharedmemory/unregister", NO_SHARED_MEMORY_CHANGES),
    Route("/v2/cudasharedmemory/region/{region}/status", NO_SHARED_MEMORY),
    Route("/v2/cudasharedmemory/region/{region}/register", NO_SHARED_MEMORY_CHANGES),
    Route("/v2/cudasharedmemory/region/{region}/unregister", NO_SHARED_MEMORY_CHANGES),
    Route("/openapi.json", OPENAPI),
)

_BY_LENGTH: dict[int, list[tuple[tuple[str, ...], Route]]] = {}
for _route in ROUTES:
    _BY_LENGTH.setdefault(len(_route.parts), []).append((_route.parts, _route))


def find_route(path: str) -> tuple[Route, dict[str, str]]:
    """The route of an address, which is decoded, and the names in it. Raises NoSuchAddress."""
    parts = path.split("/")[1:]
    if len(parts) > 1 and not parts[-1]:
        parts.pop()
    for pattern, route in _BY_LENGTH.get(len(parts), ()):
        names: dict[str, str] = {}
        for expected, part in zip(pattern, parts, strict=True):
            if expected[:1] == "{":
                if not part:
                    break
                names[expected[1:-1]] = part
            elif expected != part:
                break
        else:
            return route, names
    raise NoSuchAddress("there is nothing at this address", found=path, hint="GET /openapi.json lists what there is.")


def find_call(route: Route, method: str, path: str) -> Call:
    """What a method does. HEAD does what GET does. Raises MethodNotAllowed."""
    call = route.calls.get("GET" if method == "HEAD" else method)
    if call is None:
        raise MethodNotAllowed(method, path, route.allow)
    return call
