"""What a server can do, in no protocol's words. HTTP and gRPC call this and nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from whet.errors import InvalidArgument, did_you_mean
from whet.server.describe import model_metadata, model_statistics
from whet.server.errors import ModelNotFound, ModelUnavailable, ShuttingDown, Unsupported
from whet.server.model import ServedModel
from whet.server.request import InferRequest, InferResponse
from whet.server.scheduling.solo import Alertness, Solo
from whet.server.settings import LogSettings, Settings, TraceSettings
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


class RepositoryCalls(Protocol):
    """What the data plane asks of the model repository."""

    def index(self, ready: bool = False) -> list[dict[str, str]]:
        """Every model version with `name`, `version`, `state` and `reason`; only those that answer where `ready`."""

    def why_not(self, name: str, version: str = "") -> tuple[str, str] | None:
        """State and reason of a model version that does not answer; None for one that was never asked for."""

    @property
    def unserved(self) -> list[str]:
        """Models that the start had to serve and that are not served."""

    @property
    def blocks_readiness(self) -> bool:
        """Whether readiness is strict, and a model that the start had to serve is not served."""

    async def load(self, name: str, config_json: str | None = None) -> None: ...

    async def unload(self, name: str, dependents: bool = False) -> None: ...


class DataPlane:
    """The models that are served, by name and version. Lives on the event loop.

    `repository` is set when it is there; `settings` are what the trace and logging extensions change. `metrics` makes
    the content type and text of a scrape for an Accept header. `tracing`: requests should carry their caller's trace
    context. `on_answer` and `on_failure` are told of each request.
    """

    def __init__(self) -> None:
        self.repository: RepositoryCalls | None = None
        self.settings = Settings(LogSettings(), TraceSettings())
        self.metrics: Callable[[str], Awaitable[tuple[str, bytes]]] | None = None
        self.tracing = False
        self.on_answer: Callable[[InferRequest, InferResponse], None] | None = None
        self.on_failure: Callable[[InferRequest, Exception], None] | None = None
        self._models: dict[str, dict[str, ServedModel]] = {}
        self._newest: dict[str, ServedModel] = {}
        self.solo = Solo()
        self.alertness = Alertness()
        self.live = True
        self.draining = False
        self.closing = False
        self.loading = False

    @property
    def ready(self) -> bool:
        """Whether everything that should be served at start is, and the server takes requests."""
        lacks = self.repository is not None and self.repository.blocks_readiness
        return not self.draining and not self.closing and not self.loading and not lacks

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
            reason = self.repository.why_not(name, version) if self.repository is not None and version else None
            if reason is None:
                return ModelNotFound(f"model {name!r} has no such version", found=version, expected=known)
        elif self.repository is not None:
            reason = self.repository.why_not(name, version) or self.repository.why_not(name)
        else:
            reason = None
        if reason is not None:
            state, why = reason
            return ModelUnavailable(f"the model does not serve: {state}", value=name, found=why or None)
        return ModelNotFound("unknown model", found=name, hint=did_you_mean(name, self._models))

    def infer_at_once(self, request: InferRequest) -> InferResponse | None:
        """The answer, where the run is made here and now; None: `infer` answers, or says why not."""
        alone = self.solo.asked(request.source)
        model = None if request.version or self.draining else self._newest.get(request.model)
        if model is None or self.on_answer is not None:
            return None
        try:
            response = model.infer_at_once(request, alone)
        except Exception as error:
            if self.on_failure is not None:
                self.on_failure(request, error)
            raise
        if alone and response is not None:
            self.alertness.stay()
        return response

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request."""
        if self.draining:
            raise ShuttingDown("the server is shutting down", hint="Ask another one.")
        solo = self.solo
        if request.source is None:
            solo.asked(None)
        solo.in_flight += 1
        try:
            response = await self.model(request.model, request.version).infer(request)
        except Exception as error:
            if self.on_failure is not None:
                self.on_failure(request, error)
            raise
        finally:
            solo.in_flight -= 1
        if self.on_answer is not None:
            self.on_answer(request, response)
        return response

    def server_metadata(self) -> dict[str, object]:
        return {"name": SERVER_NAME, "version": __version__, "extensions": list(EXTENSIONS)}

    def model_ready(self, name: str, version: str = "") -> bool:
        """Whether the model answers; false for one that is not known."""
        return not self.draining and (name in self._newest if not version else version in self._models.get(name, {}))

    def model_metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """The metadata of a model. Raises ModelNotFound."""
        model = self.model(name, version)
        return model_metadata(model, sorted(self._models[name], key=int))

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """The statistics of a model version, of a model's versions, or of all models. Raises ModelNotFound."""
        if name:
            self.model(name, version)
        elif version:
            raise InvalidArgument("statistics of a version need the model's name", found=version)
        found = [
            model_statistics(n, v, model.stats)
            for n, versions in sorted(self._models.items())
            if not name or n == name
            for v, model in sorted(versions.items(), key=lambda item: int(item[0]))
            if not version or v == version
        ]
        return {"model_stats": found}

    def repository_calls(self, repository_name: str = "") -> RepositoryCalls:
        """The repository, for index, load and unload. Raises Unsupported for one that is chosen by its name."""
        if repository_name:
            raise Unsupported("this server has one repository, which has no name", found=repository_name)
        if self.repository is None:
            raise ModelUnavailable("the server is still starting", hint="Try again.")
        return self.repository
