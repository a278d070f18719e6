"""Which scheduler a model gets: its configuration says."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from whet.errors import InvalidArgument
from whet.server.errors import Unsupported
from whet.server.model_config import ModelConfig, QueuePolicy
from whet.server.scheduling.batcher import Batcher
from whet.server.scheduling.cache import ResponseCache
from whet.server.scheduling.ensemble import EnsembleScheduler
from whet.server.scheduling.ensemble_plan import Resolve
from whet.server.scheduling.instances import Instances
from whet.server.scheduling.rate_limit import RateLimiter, Ticket
from whet.server.scheduling.scheduler import OnBatch, Scheduler
from whet.server.scheduling.sequence import SequenceScheduler, batching_of
from whet.server.scheduling.sequence_inputs import SequenceInputs
from whet.server.scheduling.session_runner import SessionRunner
from whet.server.scheduling.steady import why_unsteady
from whet.session.inference_session import InferenceSession


@dataclass(slots=True)
class Shared:
    """What the models of a server share. `cache` None: there is no response cache; `limiter` None: no rate limit."""

    limiter: RateLimiter | None = field(default_factory=RateLimiter)
    cache: ResponseCache | None = None


@dataclass(slots=True)
class Scheduling:
    """A model's scheduler with what it works on. `instances` None: other models do the runs."""

    scheduler: Scheduler
    instances: Instances | None = None
    ticket: Ticket | None = None

    def close(self) -> None:
        """Let threads end and resources go. The scheduler has been drained."""
        if self.instances is not None:
            self.instances.close()
        if self.ticket is not None:
            self.ticket.leave()


def make_scheduling(
    config: ModelConfig, session: InferenceSession | None, shared: Shared, resolve: Resolve | None, on_batch: OnBatch
) -> Scheduling:
    """The scheduler of a model, on the running loop. An ensemble has no session, and `resolve` finds its models.

    Raises InvalidArgument and Unsupported for a configuration that does not fit the model or itself.
    """
    if config.response_cache and config.sequence_batching is not None:
        raise Unsupported("a model of sequences has no response cache", file=config.name, value="response_cache")
    if config.is_ensemble or session is None:
        if resolve is None:
            raise InvalidArgument("an ensemble needs to find its models", file=config.name)
        return Scheduling(EnsembleScheduler(config, resolve, on_batch))
    is_steady = why_unsteady(session.optimized_model.graph) is None
    instances = Instances(
        SessionRunner(session), config.instances, asyncio.get_running_loop(), config.name, may_run_here=is_steady
    )
    limit = config.rate_limit
    sequence = config.sequence_batching
    inputs = SequenceInputs(config, session.get_inputs(), session.get_outputs()) if sequence is not None else None
    limiter = shared.limiter
    ticket = limiter.ticket(limit, config.name) if limiter and limit is not None and limit.resources else None
    batching = config.dynamic_batching if sequence is None else batching_of(sequence)
    policy = batching.default_queue_policy if batching else QueuePolicy()
    batcher = Batcher(instances, config.max_batch_rows, batching, policy, config.name, on_batch, ticket)
    if inputs is None:
        return Scheduling(batcher, instances, ticket)
    return Scheduling(SequenceScheduler(batcher, config, inputs), instances, ticket)
