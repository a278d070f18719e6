"""One version of a model is made ready: checked in a child process, loaded, configured, warmed up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from whet.errors import InvalidArgument
from whet.server.data_plane import DataPlane
from whet.server.errors import ModelNotFound, ModelUnavailable
from whet.server.model import ServedModel
from whet.server.model_config import ModelConfig
from whet.server.options import ServerOptions
from whet.server.repository.complete import complete
from whet.server.repository.layout import ModelSource, model_file
from whet.server.repository.probe import Prober, probe
from whet.server.repository.warmup import Shapes, warm_up
from whet.server.scheduling.budget import RunBudget, run_budget
from whet.server.scheduling.cache import ResponseCache
from whet.server.scheduling.choose import Shared
from whet.server.scheduling.ensemble_plan import Member
from whet.server.scheduling.rate_limit import RateLimiter, read_resources
from whet.session.inference_session import InferenceSession
from whet.session.options import RunOptions, SessionOptions

T = TypeVar("T")


class Loader:
    """Makes models for a server. At most as many at one time as there are cores; the others wait."""

    def __init__(self, plane: DataPlane, options: ServerOptions, at_once: int) -> None:
        self._plane = plane
        self._options = options
        is_limited = options.rate_limit == "execution_count"
        self._shared = Shared(
            RateLimiter(read_resources(options.rate_limit_resources)) if is_limited else None,
            ResponseCache(options.cache_bytes) if options.cache_bytes else None,
        )
        self._free = asyncio.Semaphore(at_once)
        # Threads of their own: what a load frees stays with its thread's allocator, so there should be few of them.
        self._threads = ThreadPoolExecutor(at_once, "whet-load")
        self._prober = Prober()
        self._warm_ups = RunOptions()

    @property
    def cache(self) -> ResponseCache | None:
        """The response cache of all models, where the server has one."""
        return self._shared.cache

    def stop(self) -> None:
        """Stop the runs of warm-ups, now and from now on: the process cannot end while a thread makes them."""
        self._warm_ups.terminate = True

    async def close(self) -> None:
        """Make no more models."""
        self.stop()
        await self._prober.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def make(
        self, source: ModelSource, version: int, config: ModelConfig | None, seen: Iterable[Shapes] = ()
    ) -> ServedModel:
        """The model version, warmed up and not yet published. Raises whatever is wrong with it."""
        started = time.monotonic()
        if config is not None and config.is_ensemble:
            model = await self._ensemble(config, version)
        else:
            async with self._free:
                model = await self._model(source, version, config, seen)
        model.load_s = time.monotonic() - started
        return model

    async def _model(
        self, source: ModelSource, version: int, config: ModelConfig | None, seen: Iterable[Shapes]
    ) -> ServedModel:
        file = model_file(source, version, config.model_file if config else "model.onnx")
        providers = config.providers if config else ()
        budget = run_budget(config, self._options.threads)
        await probe(self._prober, file, providers, budget.threads, budget.goal)
        session = await self._in_thread(_session, file, providers, budget)
        completed = complete(
            config, source.name, session.get_inputs(), session.get_outputs(), self._options.max_batch_rows
        )
        await self._in_thread(warm_up, session, completed, source.folder, tuple(seen), self._warm_ups)
        return ServedModel(completed, str(version), session, self._shared)

    async def _ensemble(self, config: ModelConfig, version: int) -> ServedModel:
        if config.warmups:
            raise InvalidArgument(
                "an ensemble has no warm-up of its own", file=config.name, value="model_warmup",
                hint="Give its models one.",
            )  # fmt: skip
        return ServedModel(replace(config), str(version), None, self._shared, self._resolve)

    def _resolve(self, name: str, version: str) -> Member:
        try:
            return self._plane.model(name, version)
        except ModelUnavailable as error:
            raise ModelNotFound(error.problem, value=error.value, found=error.found, hint=error.hint) from error


def _session(file: Path, providers: tuple[str, ...], budget: RunBudget) -> InferenceSession:
    options = SessionOptions()
    options.intra_op_num_threads = budget.threads
    options.add_session_config_entry("goal", budget.goal)
    return InferenceSession(str(file), options, providers=list(providers) or None)
