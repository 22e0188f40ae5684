"""What is done for one record and one step, from its bytes to the acknowledged answer.

``Performer.perform`` returns when nothing is left to do, so that the record's offset may be finished; it raises only
when it is cancelled, or when the answer can never be written. All that handlers, users' values and foreign bytes can
do wrong ends in an answer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from random import Random

from choreo.broker.port import Message
from choreo.clock import Clock
from choreo.errors import RecordTooLarge, Undecodable, Unencodable
from choreo.messages.codec import decode
from choreo.messages.records import (
    AnyRecord,
    Compensate,
    Failure,
    StepCompleted,
    StepFailed,
)
from choreo.observe.metrics import Metrics
from choreo.step import answer
from choreo.step.answered import Answer, Instance
from choreo.step.attempts import Attempts
from choreo.step.compensate import Compensator
from choreo.step.compensation_error import ErrorHandlers
from choreo.step.context import Context
from choreo.step.counts import StepCounts
from choreo.step.dead_letter import DeadLetters
from choreo.step.failure import crash
from choreo.step.job import StepJob
from choreo.step.lanes import Lane
from choreo.step.outcome import OutcomeHooks
from choreo.step.place import Place
from choreo.step.publish import Publisher
from choreo.step.refusal import Refusals
from choreo.step.reply import Replies, log_failure, wait_for_thread
from choreo.step.route import Delivery
from choreo.step.service import Hosted
from choreo.step.tracers import Tracers
from choreo.step.trigger import TRIGGERS, Trigger, is_trigger, round_of, step_job

logger = logging.getLogger(__name__)

HostedSteps = Mapping[tuple[str, int, str], Hosted]


class Performer:
    """Does the work of one service."""

    def __init__(
        self,
        hosted: HostedSteps,
        attempts: Attempts,
        publisher: Publisher,
        dead_letters: DeadLetters,
        *,
        clock: Clock,
        random: Random,
        metrics: Metrics,
        tracers: Tracers,
        outcome_hooks: OutcomeHooks,
        error_handlers: ErrorHandlers,
        park_limit_s: float,
    ) -> None:
        """Equip a performer.

        Args:
            hosted: the steps that the service runs, by saga, version and name.
            tracers: are told of every attempt.
            outcome_hooks: run on outcomes.
            error_handlers: are asked when a compensation has failed.
            park_limit_s: how long, from its append, a record of an unknown version is kept unfinished.
        """
        self._hosted = hosted
        self._versions = frozenset((saga, version) for saga, version, _ in hosted)
        self._attempts = attempts
        self._replies = Replies(publisher, clock)
        self._clock = clock
        self._random = random
        self._tracers = tracers
        self._outcome_hooks = outcome_hooks
        self._hook_lanes = outcome_hooks.lanes
        self._refusals = Refusals(
            self._versions,
            publisher,
            dead_letters,
            clock=clock,
            metrics=metrics,
            park_limit_s=park_limit_s,
            draw_run=self._draw_run,
        )
        self._counts = {(saga, step): StepCounts(metrics, saga, step) for saga, _, step in hosted}
        self._compensator = Compensator(
            attempts,
            self._replies,
            tracers,
            error_handlers,
            self._counts,
            clock=clock,
            random=random,
            draw_run=self._draw_run,
        )

    async def perform(self, delivery: Delivery, lane: Lane, place: Place) -> None:
        """Do what the record asks of the step."""
        message, step = delivery
        if step in self._hook_lanes:
            await self._outcome_hooks.perform(delivery, lane, place)
            return
        try:
            try:
                record = _read(message, place)
            except Undecodable as error:
                await self._refusals.undecodable(delivery, place, str(error))
                return
            hosted = self._hosted.get((record.saga, record.version, step))
            if hosted is None:
                if (record.saga, record.version) not in self._versions:
                    await self._refusals.unknown_version(record, delivery, lane, place)
            elif isinstance(record, Compensate):
                if record.step == step:
                    await self._compensator.perform(record, hosted, message, lane, place)
            elif isinstance(record, TRIGGERS) and is_trigger(record, hosted.saga, step):
                await self._run_step(record, hosted, message, lane, place)
        except Exception as error:  # a fault of ours: it must neither stop the service nor lose the saga
            logger.exception("internal error at step %r in %s", step, message.tp)
            await self._refusals.internal_error(delivery, place, error)

    async def _run_step(self, record: Trigger, hosted: Hosted, message: Message, lane: Lane, place: Place) -> None:
        step = hosted.step
        counts = self._counts[record.saga, step.name]
        if isinstance(record, StepCompleted) and record.is_late(message.timestamp_ms):
            counts.events["skipped_late"].inc()  # a failure to every reader, so nothing follows from it (design, 6)
            return
        instance = Instance(message.key, record.start, step.name, round_of(record))
        known = place.answered.get(instance)
        job = step_job(record, hosted, self._draw_run(), message, place, self._clock.monotonic())
        if known is not None:
            if known is Answer.NO_EFFECT:
                await self._publish_outcome(job, answer.failed(job, _MAYBE_RUN_BY_OTHERS, "unknown"), place)
                place.answered.settle(instance)
            counts.events["skipped_duplicate"].inc()
            return
        counts.delay.observe(max(0.0, (self._clock.now_ms() - message.timestamp_ms) / 1_000))
        watch = self._tracers.watch(job, message)
        counts.running += 1
        try:
            ended = await self._attempts.run(
                hosted.handler,
                Context,
                job,
                lane,
                retries=step.retries,
                timeout_s=step.timeout_ms / 1_000,
                counters=counts.attempts,
                watch=watch,
            )
        finally:
            counts.running -= 1
        if watch is not None:
            job = watch.job
        if ended.attempts > 1:
            counts.retries.inc(ended.attempts - 1)
        outcome = await self._publish_outcome(job, answer.answer_of_step(job, ended), place)
        place.answered.settle(instance)
        result = "completed" if isinstance(outcome, StepCompleted) else "failed"
        if isinstance(outcome, StepFailed):
            log_failure(job, outcome.failure, outcome.effect)
        counts.durations[result].observe(ended.duration_ms / 1_000)
        counts.events[result].inc()
        if ended.lingering is not None:
            await wait_for_thread(ended.lingering, job)

    async def _publish_outcome(
        self, job: StepJob, outcome: StepCompleted | StepFailed, place: Place
    ) -> StepCompleted | StepFailed:
        try:
            await self._replies.send(outcome, job, place)
        except (Unencodable, RecordTooLarge) as error:
            if isinstance(outcome, StepFailed):
                raise
            # The effect exists, only the saga's context has become too large to carry it on.
            outcome = answer.failed(job, crash(error, code="context_too_large"), "unknown")
            await self._replies.send(outcome, job, place)
        return outcome

    def _draw_run(self) -> str:
        return f"{self._random.getrandbits(64):016x}"


_MAYBE_RUN_BY_OTHERS = Failure(
    kind="cancelled",
    code="redelivered",
    message="an earlier run failed without an effect, but another replica may have run since",
)


def _read(message: Message, place: Place) -> AnyRecord:
    """The record; from here on it alone is believed, not its headers. Raises ``Undecodable``."""
    record = decode(message.key, message.value, message.headers)
    if record.saga != place.saga:
        raise Undecodable(f"a record of saga {record.saga!r} in the topic of saga {place.saga!r}")
    return record
