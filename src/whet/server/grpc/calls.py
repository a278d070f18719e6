"""Every call of the published service but the inferences: a message in, a message out, a few lines over the data plane.

The table `CALLS` says which of them change the server; the others are open to everyone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from whet.errors import InvalidArgument
from whet.server.access import Access
from whet.server.data_plane import DataPlane
from whet.server.errors import ModelNotFound, Unsupported
from whet.server.protocol.messages import from_document, message
from whet.server.repository.config_message import config_message

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"

SERVING = 1
NOT_SERVING = 2

Authorization = Callable[[], "str | None"]
"""Gives the call's `authorization` metadata."""

Call = Callable[[Any, Authorization], Awaitable[Any]]


class Calls:
    """The calls by their names. Each raises WhetErrors only."""

    def __init__(self, plane: DataPlane, access: Access) -> None:
        self._plane = plane
        self._access = access
        self.by_name: Mapping[str, Call] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
            "TraceSetting": self._trace_setting,
            "LogSettings": self._log_settings,
            "SystemSharedMemoryStatus": self._shared_memory,
            "SystemSharedMemoryRegister": self._shared_memory,
            "SystemSharedMemoryUnregister": self._shared_memory,
            "CudaSharedMemoryStatus": self._shared_memory,
            "CudaSharedMemoryRegister": self._shared_memory,
            "CudaSharedMemoryUnregister": self._shared_memory,
        }
        self.health: Mapping[str, Call] = {"Check": self._health_check}

    async def _server_live(self, request: Any, _: Authorization) -> Any:
        return message("inference.ServerLiveResponse")(live=self._plane.live)

    async def _server_ready(self, request: Any, _: Authorization) -> Any:
        return message("inference.ServerReadyResponse")(ready=self._plane.ready)

    async def _server_metadata(self, request: Any, _: Authorization) -> Any:
        return message("inference.ServerMetadataResponse")(**self._plane.server_metadata())

    async def _model_ready(self, request: Any, _: Authorization) -> Any:
        ready = self._plane.model_ready(request.name, request.version)
        return message("inference.ModelReadyResponse")(ready=ready)

    async def _model_metadata(self, request: Any, _: Authorization) -> Any:
        document = self._plane.model_metadata(request.name, request.version)
        return from_document(message("inference.ModelMetadataResponse"), document)

    async def _model_config(self, request: Any, _: Authorization) -> Any:
        model = self._plane.model(request.name, request.version)
        return message("inference.ModelConfigResponse")(config=config_message(model.config))

    async def _model_statistics(self, request: Any, _: Authorization) -> Any:
        document = self._plane.statistics(request.name, request.version)
        return from_document(message("inference.ModelStatisticsResponse"), document)

    async def _repository_index(self, request: Any, _: Authorization) -> Any:
        index = self._plane.repository_calls(request.repository_name).index(request.ready)
        return message("inference.RepositoryIndexResponse")(models=index)

    async def _load(self, request: Any, authorization: Authorization) -> Any:
        self._access.check("RepositoryModelLoad", authorization())
        repository = self._plane.repository_calls(request.repository_name)
        config = None
        for name, parameter in request.parameters.items():
            if name.startswith("file:"):
                raise Unsupported("a request cannot bring the files of a model", value=name[:200])
            if name != "config":
                raise InvalidArgument("unknown parameter of a load", value=name[:200], expected="config")
            if parameter.WhichOneof("parameter_choice") != "string_param":
                raise InvalidArgument("the configuration is JSON in string_param", value=name)
            config = parameter.string_param
        await repository.load(request.model_name, config)
        return message("inference.RepositoryModelLoadResponse")()

    async def _unload(self, request: Any, authorization: Authorization) -> Any:
        self._access.check("RepositoryModelUnload", authorization())
        repository = self._plane.repository_calls(request.repository_name)
        dependents = False
        for name, parameter in request.parameters.items():
            if name != "unload_dependents":
                raise InvalidArgument("unknown parameter of an unload", value=name[:200], expected="unload_dependents")
            if parameter.WhichOneof("parameter_choice") != "bool_param":
                raise InvalidArgument("`unload_dependents` is true or false", value=name)
            dependents = parameter.bool_param
        await repository.unload(request.model_name, dependents)
        return message("inference.RepositoryModelUnloadResponse")()

    async def _trace_setting(self, request: Any, authorization: Authorization) -> Any:
        model, settings = request.model_name, self._plane.settings
        if model:
            self._plane.model(model)
        if request.settings:
            self._access.check("TraceSetting", authorization())
            # A setting without values goes back to its default.
            changes = {name: list(value.value) or None for name, value in request.settings.items()}
            found = settings.change_traces(changes, model)
        else:
            found = settings.traces(model)
        answer = message("inference.TraceSettingResponse")()
        for name, shown in found.document().items():
            answer.settings[name].value.extend([shown] if isinstance(shown, str) else shown)
        return answer

    async def _log_settings(self, request: Any, authorization: Authorization) -> Any:
        settings = self._plane.settings
        found = settings.logs
        if request.settings:
            self._access.check("LogSettings", authorization())
            changes = {}
            for name, value in request.settings.items():
                choice = value.WhichOneof("parameter_choice")
                changes[name] = getattr(value, choice) if choice else None
            found = settings.change_logs(changes)
        answer = message("inference.LogSettingsResponse")()
        for name, shown in found.document().items():
            kind = "bool_param" if type(shown) is bool else "uint32_param" if type(shown) is int else "string_param"
            setattr(answer.settings[name], kind, shown)
        return answer

    async def _shared_memory(self, request: Any, _: Authorization) -> Any:
        raise Unsupported(
            "this server does not have shared memory", value=request.DESCRIPTOR.name.removesuffix("Request"),
            hint="Send tensors in the request.",
        )  # fmt: skip

    async def _health_check(self, request: Any, _: Authorization) -> Any:
        if request.service not in ("", SERVICE):
            raise ModelNotFound("unknown service", found=request.service[:200], expected=SERVICE)
        status = SERVING if self._plane.ready else NOT_SERVING
        return message("grpc.health.v1.HealthCheckResponse")(status=status)
