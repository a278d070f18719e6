"""What a server can do, in no protocol's words. HTTP and gRPC call this and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from whet.errors import did_you_mean
from whet.server.errors import ModelNotFound, ModelUnavailable, ShuttingDown
from whet.server.model import ServedModel
from whet.server.request import InferRequest, InferResponse
from whet.version import __version__

SERVER_NAME = "whet"
EXTENSIONS: tuple[str, ...] = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)


class DataPlane:
    """The models that are served, by name and version. Lives on the event loop."""

    def __init__(self) -> None:
        self._models: dict[str, dict[str, ServedModel]] = {}
        self._newest: dict[str, ServedModel] = {}
        self.live = True
        self.draining = False
        self.loading = False

    @property
    def ready(self) -> bool:
        """Whether everything that should be served at start is, and the server takes requests."""
        return not self.draining and not self.loading

    @property
    def models(self) -> Mapping[str, Mapping[str, ServedModel]]:
        """The models that answer, by name and version."""
        return self._models

    def publish(self, model: ServedModel) -> ServedModel | None:
        """Let `model` answer from now on; returns the one that it replaces, which the caller closes."""
        versions = self._models.setdefault(model.config.name, {})
        old = versions.get(model.version)
        versions[model.version] = model
        self._choose_newest(model.config.name)
        return old

    def withdraw(self, name: str, version: str) -> ServedModel | None:
        """Take a model version out; returns it, for the caller to close."""
        versions = self._models.get(name, {})
        old = versions.pop(version, None)
        if not versions:
            self._models.pop(name, None)
        self._choose_newest(name)
        return old

    def _choose_newest(self, name: str) -> None:
        versions = self._models.get(name)
        if versions:
            self._newest[name] = versions[max(versions, key=int)]
        else:
            self._newest.pop(name, None)

    def model(self, name: str, version: str = "") -> ServedModel:
        """The model of this name and version, "" for the newest. Raises ModelNotFound."""
        found = self._newest.get(name) if not version else self._models.get(name, {}).get(version)
        if found is None:
            raise self._not_found(name, version)
        return found

    def _not_found(self, name: str, version: str) -> ModelNotFound | ModelUnavailable:
        if name in self._models:
            known = ", ".join(sorted(self._models[name], key=int))
            return ModelNotFound(f"model {name!r} has no such version", found=version, expected=known)
        return ModelNotFound("unknown model", found=name, hint=did_you_mean(name, self._models))

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request."""
        if self.draining:
            raise ShuttingDown("the server is shutting down", hint="Ask another one.")
        return await self.model(request.model, request.version).infer(request)

    def server_metadata(self) -> dict[str, object]:
        return {"name": SERVER_NAME, "version": __version__, "extensions": list(EXTENSIONS)}
