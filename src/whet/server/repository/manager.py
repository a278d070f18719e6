"""Loading, swapping and withdrawing models while others answer."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from google.protobuf import json_format

from whet.errors import Fail, InvalidArgument, WhetError, did_you_mean
from whet.server.data_plane import DataPlane
from whet.server.errors import ModelNotFound
from whet.server.model import ServedModel
from whet.server.model_config import ModelConfig
from whet.server.options import ServerOptions
from whet.server.protocol.messages import ModelConfigMessage
from whet.server.repository.complete import complete
from whet.server.repository.config_file import read_config, to_model_config
from whet.server.repository.layout import ModelSource, model_file, scan
from whet.server.repository.probe import probe
from whet.session.inference_session import InferenceSession
from whet.session.options import SessionOptions

LOGGER = logging.getLogger("whet.server.repository")

State = Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]


@dataclass(frozen=True, slots=True)
class VersionState:
    """Where a model version stands, and why. `load_s`: how long its last load took."""

    state: State
    reason: str = ""
    load_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded for a model, to tell whether it has to be again."""

    stamp: object
    override: str | None
    versions: tuple[int, ...]


class Repository:
    """The models of a repository and their states. Lives on the event loop; loads run in threads and child processes.

    Calls for one model wait for each other; those for different models do not.
    """

    def __init__(self, plane: DataPlane, options: ServerOptions) -> None:
        self._plane = plane
        self._options = options
        self._states: dict[str, dict[int, VersionState]] = {}
        self._loaded: dict[str, Loaded] = {}
        self._failed: dict[str, object] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self.on_change: Callable[[], None] | None = None

    @property
    def states(self) -> Mapping[str, Mapping[int, VersionState]]:
        """Every version that was ever asked for, with its state."""
        return self._states

    def scan(self) -> dict[str, ModelSource]:
        """The models that lie in the repository now."""
        return scan(self._options.repository)

    async def start(self) -> list[WhetError]:
        """Load what is to be served from the start; returns the errors of the models that cannot be."""
        sources = self.scan()
        names = list(sources)
        if self._options.control_mode == "explicit":
            names = names if "*" in self._options.load_models else list(self._options.load_models)
        results = await asyncio.gather(*(self.load(name) for name in names), return_exceptions=True)
        errors = []
        for name, result in zip(names, results, strict=True):
            if isinstance(result, WhetError):
                LOGGER.error("model %s cannot be served: %s", name, result)
                errors.append(result)
            elif isinstance(result, BaseException):
                raise result
        return errors

    async def load(self, name: str, config_json: str | None = None) -> None:
        """Load the model anew, then let it take the place of what was served, which goes on where this fails.

        `config_json` stands for the model's config.pbtxt. Raises ModelNotFound, and what loading raises.
        """
        async with self._lock(name):
            await self._load(name, config_json)

    async def unload(self, name: str) -> None:
        """Stop serving the model: answer what was accepted, then let it go. Raises ModelNotFound."""
        async with self._lock(name):
            if name not in self._states:
                raise ModelNotFound("unknown model", found=name, hint=did_you_mean(name, self._states))
            self._loaded.pop(name, None)
            for version in list(self._plane.models.get(name, {})):
                self._set(name, int(version), VersionState("UNLOADING"))
                await self._retire(self._plane.withdraw(name, version))
            for number in self._states[name]:
                self._set(name, number, VersionState("UNAVAILABLE", "unloaded"))

    async def poll(self) -> None:
        """Follow what changed on disk since the last look. A model that is being written waits for the next one."""
        sources = await asyncio.to_thread(self.scan)
        for name in [n for n in self._loaded if n not in sources]:
            await self.unload(name)
        for name, source in sources.items():
            loaded = self._loaded.get(name)
            if loaded is not None and (loaded.stamp == source.stamp or loaded.override is not None):
                continue
            if self._failed.get(name) == source.stamp:
                continue
            if not await self._settled(name, source):
                continue
            try:
                await self.load(name)
            except WhetError as error:
                LOGGER.error("model %s cannot be loaded: %s", name, error)

    async def _settled(self, name: str, source: ModelSource) -> bool:
        """Whether nobody is writing the model just now."""
        await asyncio.sleep(min(1.0, self._options.poll_s / 2))
        return (await asyncio.to_thread(self.scan)).get(name) == source

    async def close(self) -> None:
        """Answer what was accepted, and let every model go."""
        models = [m for versions in self._plane.models.values() for m in versions.values()]
        await asyncio.gather(*(m.close() for m in models), *self._closing)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _set(self, name: str, version: int, state: VersionState) -> None:
        self._states.setdefault(name, {})[version] = state
        if self.on_change is not None:
            self.on_change()

    async def _load(self, name: str, config_json: str | None) -> None:
        source = (await asyncio.to_thread(self.scan)).get(name)
        if source is None:
            raise ModelNotFound(
                "the repository has no such model",
                found=name,
                hint=did_you_mean(name, await asyncio.to_thread(self.scan)),
            )
        try:
            config = self._config(source, config_json)
            wanted = wanted_versions(source, config)
        except WhetError as error:
            self._failed[name] = source.stamp
            for number in source.versions or (1,):
                self._note_failure(name, number, error)
            raise
        made: list[ServedModel] = []
        current = 0
        try:
            for current in wanted:
                if str(current) not in self._plane.models.get(name, {}):
                    self._set(name, current, VersionState("LOADING"))
                made.append(await self._make(source, current, config))
        except WhetError as error:
            self._failed[name] = source.stamp
            for model in made:
                await model.close()
            for number in wanted:
                cause = error if number == current else Fail(f"version {current} cannot be loaded")
                self._note_failure(name, number, cause)
            raise
        self._failed.pop(name, None)
        self._loaded[name] = Loaded(source.stamp, config_json, wanted)
        for model in made:
            old = self._plane.publish(model)
            self._set(name, int(model.version), VersionState("READY", load_s=model.load_s))
            self._retire_later(old)
        for version in [v for v in self._plane.models.get(name, {}) if int(v) not in wanted]:
            self._retire_later(self._plane.withdraw(name, version))
            self._set(name, int(version), VersionState("UNAVAILABLE", "no longer in the version policy"))

    def _note_failure(self, name: str, version: int, error: WhetError) -> None:
        """A version that still serves what was loaded before stays ready."""
        if str(version) in self._plane.models.get(name, {}):
            self._set(name, version, VersionState("READY", f"the last load failed, the one before serves: {error}"))
        else:
            self._set(name, version, VersionState("UNAVAILABLE", str(error)))

    def _config(self, source: ModelSource, config_json: str | None) -> ModelConfig | None:
        if config_json is not None:
            where = f"{source.name} (configuration of the request)"
            try:
                message = json_format.Parse(config_json, ModelConfigMessage())
            except json_format.ParseError as error:
                raise InvalidArgument("the model configuration does not parse", file=where, found=str(error)) from error
            return to_model_config(message, source.name, source.folder, where)
        if source.config is None:
            return None
        return to_model_config(read_config(source.config), source.name, source.folder, str(source.config))

    async def _make(self, source: ModelSource, version: int, config: ModelConfig | None) -> ServedModel:
        started = time.monotonic()
        file = model_file(source, version, config.model_file if config else "model.onnx")
        providers = config.providers if config else ()
        threads = (config.threads if config else 0) or self._options.threads
        await probe(file, providers, threads)
        session = await asyncio.to_thread(_session, file, providers, threads)
        completed = complete(
            config, source.name, session.get_inputs(), session.get_outputs(), self._options.max_batch_rows
        )
        model = ServedModel(completed, str(version), session)
        model.load_s = time.monotonic() - started
        return model

    async def _retire(self, model: ServedModel | None) -> None:
        if model is not None:
            await model.close()
            del model
            # Sessions hold themselves in cycles: without this their memory stays until the collector comes by.
            await asyncio.to_thread(gc.collect)

    def _retire_later(self, model: ServedModel | None) -> None:
        if model is not None:
            task = asyncio.create_task(self._retire(model))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def _session(file: Path, providers: tuple[str, ...], threads: int) -> InferenceSession:
    options = SessionOptions()
    options.intra_op_num_threads = threads
    return InferenceSession(str(file), options, providers=list(providers) or None)


def wanted_versions(source: ModelSource, config: ModelConfig | None) -> tuple[int, ...]:
    """The versions that the policy serves, rising. Raises InvalidArgument where one that it names is not there."""
    there = sorted(source.versions)
    if not there:
        raise InvalidArgument("the model has no version", file=str(source.folder), expected="a folder called 1")
    policy = config.version_policy if config else None
    if policy is None or (not policy.all and not policy.specific):
        return tuple(there[-(policy.latest if policy else 1) :])
    if policy.all:
        return tuple(there)
    missing = sorted(set(policy.specific) - set(there))
    if missing:
        raise InvalidArgument(
            "version_policy names a version that is not there",
            file=str(source.folder),
            found=missing[0],
            expected=there,
        )
    return tuple(sorted(policy.specific))
