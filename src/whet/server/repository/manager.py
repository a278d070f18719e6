"""Loading, swapping and withdrawing models while others answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whet.errors import Fail, InvalidArgument, WhetError, did_you_mean
from whet.runtime.cores import core_budget
from whet.server.data_plane import DataPlane
from whet.server.errors import LoadNotAllowed, ModelNotFound, ShuttingDown
from whet.server.malloc import give_back
from whet.server.model import ServedModel
from whet.server.model_config import ModelConfig
from whet.server.options import ServerOptions
from whet.server.repository.config_file import parse_config_json, read_config, to_model_config
from whet.server.repository.layout import UNNUMBERED, ModelSource, Names, scan
from whet.server.repository.loader import Loader
from whet.server.repository.release import without_frames
from whet.server.repository.states import States, VersionState
from whet.server.repository.warmup import Shapes
from whet.server.scheduling.ensemble_plan import members_of

LOGGER = logging.getLogger("whet.server.repository")

SETTLE_S = 1.0
"""Files that did not change for so long are not being written any more."""
SEEN_SHAPES = 8
"""Shapes of a model that are remembered to warm up the next load of it."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded for a model, to tell whether it has to be again."""

    stamp: object
    override: str | None


class Repository:
    """The models of a repository and their states. Lives on the event loop; loads run in threads and child processes.

    What is served is decided by the control mode: all that lies there at the start, what lies there now, or, in the
    mode `explicit` alone, what `load` and `unload` ask for.

    Calls for one model wait for each other in the order in which they came; those for different models do not. A call
    whose caller goes away is finished all the same. A load that fails leaves what was served before in its place; a
    model that nothing is served of yet is served with those of its versions that can be loaded.

    An ensemble's load brings its models along. When one of them is loaded anew, the ensemble is checked again; when
    one is unloaded, or changed so that it does not fit, the ensemble is taken out until it fits again.
    """

    def __init__(self, plane: DataPlane, options: ServerOptions) -> None:
        self._plane = plane
        self._options = options
        self._loader = Loader(plane, options, core_budget())
        self._states = States()
        self._names = Names(options.repository, options.model_name)
        self._loaded: dict[str, Loaded] = {}
        # Stamps of files that are not to be tried again by themselves: their load failed.
        self._settled: dict[str, object] = {}
        self._wanted: set[str] = set()
        self._due: set[str] = set()
        self._along: set[str] = set()
        self._ensembles: dict[str, Mapping[str, str]] = {}
        self._seen: dict[str, tuple[Shapes, ...]] = {}
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._following: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def states(self) -> Mapping[str, Mapping[int, VersionState]]:
        """Every version that was ever asked for, with its state."""
        return self._states.all

    @property
    def on_change(self) -> Callable[[], None] | None:
        """Called when a state has changed."""
        return self._states.on_change

    @on_change.setter
    def on_change(self, hook: Callable[[], None] | None) -> None:
        self._states.on_change = hook

    @property
    def unserved(self) -> list[str]:
        """Models that the start had to serve and that are not served: their load failed, or is not over."""
        return sorted(name for name in self._due if name not in self._plane.models)

    @property
    def blocks_readiness(self) -> bool:
        """Whether a server whose readiness is strict is not ready: it lacks a model that the start had to serve.

        What comes later does not count: a load that fails, or that takes its time, must not take the others' traffic
        away.
        """
        return self._options.strict_readiness and bool(self.unserved)

    def why_not(self, name: str, version: str = "") -> tuple[str, str] | None:
        """State and reason of a model version that does not answer; None for one that was never asked for."""
        found = self._states.why_not(name, version)
        return (found.state, found.reason) if found is not None else None

    def index(self, ready: bool = False) -> list[dict[str, str]]:
        """Every model version with its state and reason, and what was never loaded; only those that answer where
        `ready`."""
        return self._states.index(ready, () if ready else self._names())

    def scan(self) -> dict[str, ModelSource]:
        """The models that lie in the repository now."""
        return scan(self._options.repository, model_name=self._options.model_name)

    async def _find(self, name: str) -> ModelSource | None:
        """The model of this name as it lies in the repository now."""
        return (await asyncio.to_thread(scan, self._options.repository, name, self._options.model_name)).get(name)

    async def start(self) -> list[WhetError]:
        """Load what is to be served from the start, and follow changes from then on where the control mode is `poll`.

        Returns the errors of the models that cannot be served. Raises NoSuchFile for a repository that is not there,
        InvalidArgument for one of several models where a name is given for one.
        """
        sources = await asyncio.to_thread(self.scan)
        names = list(sources)
        if self._options.control_mode == "explicit":
            names = names if "*" in self._options.load_models else list(dict.fromkeys(self._options.load_models))
        self._due.update(names)
        errors = await self._load_all(names, sources)
        if self._options.control_mode == "poll":
            self._following = asyncio.create_task(self._follow())
        return errors

    async def load(self, name: str, config_json: str | None = None) -> None:
        """Load the model anew, then let it take the place of what was served, which goes on where this fails.

        `config_json` stands for the model's config.pbtxt. Raises LoadNotAllowed, ModelNotFound, ShuttingDown (also
        where the load is under way when the server stops), and what loading raises.
        """
        self._check_mode("load", name)
        await self._finished(self._load_with_members(name, config_json))

    async def unload(self, name: str, dependents: bool = False) -> None:
        """Stop serving the model: answer what was accepted, then let it go.

        `dependents`: so too those of an ensemble's models that its load brought along and no other ensemble holds.
        Raises LoadNotAllowed, ModelNotFound, ShuttingDown.
        """
        self._check_mode("unload", name)
        await self._finished(self._unload_with_dependents(name, dependents))

    async def poll(self) -> None:
        """Follow what changed on disk since the last look. What is being written waits for the next look."""
        sources = await asyncio.to_thread(self.scan)
        gone = [n for n in self._loaded if n not in sources]
        changed = [n for n, source in sources.items() if self._has_changed(source)]
        if not gone and not changed:
            return
        await asyncio.sleep(min(SETTLE_S, self._options.poll_s / 2))
        again = await asyncio.to_thread(self.scan)
        for name in gone:
            if name not in again:
                with contextlib.suppress(ModelNotFound):
                    await self._finished(self._unload_with_dependents(name, False))
                self._forget(name)
        for name in [n for n in self._settled if n not in again and n not in self._loaded]:
            self._forget(name)
        await self._load_all([n for n in changed if again.get(n) == sources[n]], again)

    def _check_mode(self, call: str, name: str) -> None:
        mode = self._options.control_mode
        if mode != "explicit":
            # The words by which programs tell Triton's error from others.
            raise LoadNotAllowed(
                "explicit model load / unload is not allowed in this control mode", value=f"{call} of {name}",
                found=mode, expected="explicit",
                hint="Start the server with --control-mode explicit, and with --load-model '*' to load all at start.",
            )  # fmt: skip

    async def stop_loading(self) -> None:
        """Load, unload and follow no more. Calls that wait for such a thing are told that the server shuts down.

        What is served goes on.
        """
        self._closed = True
        self._loader.stop()
        tasks = [*self._tasks, *([self._following] if self._following else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Stop loading, answer what was accepted, and let every model go."""
        await self.stop_loading()
        models = [m for versions in self._plane.models.values() for m in versions.values()]
        ended = await asyncio.gather(*(m.close() for m in models), *self._closing, return_exceptions=True)
        await self._loader.close()
        for problem in ended:
            if isinstance(problem, Exception):
                LOGGER.error("a model could not be let go", exc_info=problem)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._options.poll_s)
            try:
                await self.poll()
            except WhetError as error:
                LOGGER.error("the repository cannot be looked at: %s", error)
            except Exception:
                LOGGER.exception("the repository cannot be looked at")

    def _has_changed(self, source: ModelSource) -> bool:
        loaded = self._loaded.get(source.name)
        if self._settled.get(source.name) == source.stamp:
            return False
        return loaded is None or loaded.stamp != source.stamp

    async def _load_all(self, names: Sequence[str], sources: Mapping[str, ModelSource]) -> list[WhetError]:
        """Load models side by side, ensembles after the others; returns the errors, which the log has too."""
        self._wanted.update(n for n in names if n in sources)
        ensembles = [n for n in names if n in sources and await self._members(sources[n])]
        errors: list[WhetError] = []

        async def attempt(name: str) -> None:
            try:
                await self._finished(self._load_with_members(name, None, retry=False))
            except WhetError as error:
                LOGGER.error("model %s cannot be served: %s", name, error)
                errors.append(without_frames(error))

        await asyncio.gather(*(attempt(n) for n in names if n not in ensembles))
        for name in ensembles:
            # One that another ensemble holds may be there already.
            source = sources[name]
            if name not in self._plane.models or self._has_changed(source):
                await attempt(name)
        return errors

    async def _finished(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work to its end even where whoever waits for it goes away. Raises ShuttingDown when that stops."""
        if self._closed:
            work.close()
            raise _shutting_down()
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Nobody may be left to hear of an error.
        task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if not self._closed or (caller is not None and caller.cancelling()):
                raise  # it is the caller who goes away
            raise _shutting_down() from None

    @contextlib.asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """One call for a model at a time. Nothing is kept of names that nobody waits for."""
        lock, users = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[name]
            if users == 1:
                del self._locks[name]
            else:
                self._locks[name] = lock, users - 1

    async def _load_with_members(self, name: str, config_json: str | None, retry: bool = True) -> None:
        found = await self._find(name)
        if found is None:
            raise ModelNotFound("the repository has no such model", found=name, hint=did_you_mean(name, self._names()))
        self._wanted.add(name)
        self._along.discard(name)
        if members := await self._members(found, config_json):
            await self._load_members(members, await asyncio.to_thread(self.scan), (name,), retry)
        async with self._turn(name):
            # While this call waited, the files may have changed again.
            await self._load(await self._find(name) or found, config_json)
        await self._check_ensembles(name)

    async def _load_members(
        self, members: Iterable[str], sources: Mapping[str, ModelSource], above: tuple[str, ...], retry: bool
    ) -> None:
        """Load the models of an ensemble that do not serve yet. No turn of the ensemble's is held meanwhile: two that
        hold each other would wait forever."""
        for member in members:
            source = sources.get(member)
            if member in self._plane.models or member in above or source is None:
                continue
            if not retry and self._settled.get(member) == source.stamp:
                continue
            await self._load_members(await self._members(source), sources, (*above, member), retry)
            async with self._turn(member):
                if member not in self._plane.models:
                    self._along.add(member)
                    self._wanted.add(member)
                    # The ensemble's own load names what is missing; the member's state says why.
                    with contextlib.suppress(WhetError):
                        await self._load(source, None)

    async def _members(self, source: ModelSource, config_json: str | None = None) -> Mapping[str, str]:
        """The models that an ensemble holds; none for any other model, and where the configuration is broken."""
        try:
            config = await asyncio.to_thread(self._config, source, config_json)
        except WhetError:
            return {}  # what loads the model says so
        return members_of(config) if config is not None else {}

    async def _check_ensembles(self, name: str, above: tuple[str, ...] = ()) -> None:
        """Load the ensembles anew that hold a model which was loaded; those that do not fit it are taken out."""
        if name in above:
            return
        for ensemble in self._holders(name):
            async with self._turn(ensemble):
                loaded = self._loaded.get(ensemble)
                source = await self._find(ensemble)
                if source is None or ensemble not in self._wanted:
                    continue
                try:
                    await self._load(source, loaded.override if loaded else None)
                except WhetError as error:
                    LOGGER.error("ensemble %s does not fit model %s any more: %s", ensemble, name, error)
                    await self._withdraw(ensemble, str(error))
            await self._check_ensembles(ensemble, (*above, name))

    def _holders(self, name: str) -> list[str]:
        """The ensembles that should serve and hold a model."""
        return [e for e, members in self._ensembles.items() if name in members and e in self._wanted]

    async def _unload_with_dependents(self, name: str, dependents: bool) -> None:
        if name not in self._states.all:
            if await self._find(name) is not None:
                return
            raise ModelNotFound("unknown model", found=name, hint=did_you_mean(name, self._states.all))
        members = self._ensembles.get(name, {})
        async with self._turn(name):
            self._loaded.pop(name, None)
            self._wanted.discard(name)
            self._due.discard(name)
            self._ensembles.pop(name, None)
            await self._withdraw(name, "unloaded")
        await self._withdraw_holders(name)
        for member in members if dependents else ():
            if member in self._along and not self._holders(member) and member in self._states.all:
                self._along.discard(member)
                await self._unload_with_dependents(member, True)

    async def _withdraw_holders(self, name: str, above: tuple[str, ...] = ()) -> None:
        for ensemble in self._holders(name):
            if ensemble in above:
                continue
            async with self._turn(ensemble):
                await self._withdraw(ensemble, f"model {name!r} of this ensemble was unloaded")
            await self._withdraw_holders(ensemble, (*above, name))

    async def _withdraw(self, name: str, reason: str) -> None:
        """Take all versions of a model out; returns when what they took is answered."""
        self._remember(name)
        retired = []
        for version in list(self._plane.models.get(name, {})):
            self._states.set(name, int(version), VersionState("UNLOADING"))
            retired.append(self._retire_later(self._plane.withdraw(name, version)))
        # A stop that ends this ends no answers: it waits for them elsewhere.
        await asyncio.gather(*(asyncio.shield(task) for task in retired))
        for number in list(self._states.all.get(name, {})):
            self._states.set(name, number, VersionState("UNAVAILABLE", reason))

    def _forget(self, name: str) -> None:
        """The model is gone from the disk: keep nothing of it."""
        for kept in (self._loaded, self._settled, self._ensembles, self._seen):
            kept.pop(name, None)
        self._wanted.discard(name)
        self._due.discard(name)
        self._along.discard(name)
        self._states.keep(name, ())

    def _remember(self, name: str) -> tuple[Shapes, ...]:
        """The shapes that the model was asked for, of this load or an earlier one; the newest first."""
        seen: dict[Shapes, None] = {}
        for model in self._plane.models.get(name, {}).values():
            seen.update(dict.fromkeys(model.seen_shapes))
        seen.update(dict.fromkeys(self._seen.get(name, ())))
        kept = tuple(seen)[:SEEN_SHAPES]
        if kept:
            self._seen[name] = kept
        return kept

    async def _load(self, source: ModelSource, config_json: str | None) -> None:
        name = source.name
        serving = self._plane.models.get(name, {})
        try:
            config = await asyncio.to_thread(self._config, source, config_json)
            wanted = wanted_versions(source, config)
        except WhetError as error:
            self._settled[name] = source.stamp
            for number in source.versions or (UNNUMBERED,):
                self._note_failure(name, number, error)
            raise
        if config is not None and config.is_ensemble:
            self._ensembles[name] = members_of(config)
        else:
            self._ensembles.pop(name, None)
        seen = self._remember(name)
        made: list[ServedModel] = []
        failed: dict[int, WhetError] = {}
        for number in wanted:
            if str(number) not in serving:
                self._states.set(name, number, VersionState("LOADING"))
            try:
                made.append(await self._make(source, number, config, seen))
            except WhetError as error:
                failed[number] = error
                if serving:
                    break
            except asyncio.CancelledError:
                self._note_failure(name, number, _shutting_down())
                raise
        if failed and (serving or not made):
            self._settled[name] = source.stamp
            for model in made:
                await self._retire(model)
            cause = next(iter(failed))
            for number in wanted:
                self._note_failure(name, number, failed.get(number) or Fail(f"version {cause} cannot be loaded"))
            raise failed[cause]
        self._settled.pop(name, None)
        self._loaded[name] = Loaded(source.stamp, config_json)
        for model in made:
            old = self._plane.publish(model)
            self._states.set(name, int(model.version), VersionState("READY", load_s=model.load_s))
            self._retire_later(old)
        for version in [v for v in self._plane.models.get(name, {}) if int(v) not in wanted]:
            self._retire_later(self._plane.withdraw(name, version))
            self._states.set(name, int(version), VersionState("UNAVAILABLE", "not in the version policy"))
        self._states.keep(name, {*source.versions, *wanted})
        for number, problem in failed.items():
            self._note_failure(name, number, problem)
        if failed:
            raise next(iter(failed.values()))

    async def _make(
        self, source: ModelSource, version: int, config: ModelConfig | None, seen: Iterable[Shapes]
    ) -> ServedModel:
        problem: WhetError
        try:
            return await self._loader.make(source, version, config, seen)
        except WhetError as error:
            problem = without_frames(error)
        except Exception as error:
            LOGGER.exception("model %s, version %d: loading failed", source.name, version)
            problem = Fail("the model cannot be loaded", file=source.name, found=f"{type(error).__name__}: {error}")
        finally:
            await asyncio.to_thread(give_back)
        raise problem

    def _note_failure(self, name: str, version: int, error: WhetError) -> None:
        """A version that still serves what was loaded before stays ready."""
        if str(version) in self._plane.models.get(name, {}):
            reason = f"the last load failed, the one before serves: {error}"
            self._states.set(name, version, VersionState("READY", reason))
        else:
            self._states.set(name, version, VersionState("UNAVAILABLE", str(error)))

    def _config(self, source: ModelSource, config_json: str | None) -> ModelConfig | None:
        if source.problem is not None:
            raise source.problem
        if config_json is not None:
            where = f"{source.name} (configuration of the request)"
            return to_model_config(parse_config_json(config_json, where), source.name, source.folder, where)
        if source.config is None:
            return None
        message, where = read_config(source.config), str(source.config)
        if source.is_renamed:
            message.name = source.name
        return to_model_config(message, source.name, source.folder, where)

    async def _retire(self, model: ServedModel | None) -> None:
        if model is not None:
            await model.close()
            del model
            await asyncio.to_thread(give_back)

    def _retire_later(self, model: ServedModel | None) -> asyncio.Task[None]:
        task = asyncio.create_task(self._retire(model))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("the server is shutting down", hint="Ask another one.")


def wanted_versions(source: ModelSource, config: ModelConfig | None) -> tuple[int, ...]:
    """The versions that the policy serves, rising. Raises InvalidArgument where one that it names is not there."""
    there = sorted(source.versions)
    if not there:
        if config is not None and config.is_ensemble:
            return (UNNUMBERED,)  # an ensemble has no files: its version's folder may be left out
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
    return tuple(sorted(set(policy.specific)))
