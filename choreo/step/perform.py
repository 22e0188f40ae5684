"""What is done for one record and one step, from its bytes to the acknowledged answer.

``Performer.perform`` returns when nothing is left to do, so that the record's offset may be finished; it raises only
when it is cancelled, or when the answer can never be written. All that handlers, users' values and foreign bytes can
do wrong ends in an answer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from random import Random
from typing import NamedTuple

import msgspec

from choreo.broker.port import Message
from choreo.clock import Clock
from choreo.errors import RecordTooLarge, Undecodable, Unencodable
from choreo.messages.codec import decode_whole, encode
from choreo.messages.records import (
    AnyRecord,
    Compensate,
    Failure,
    StepCompleted,
    StepFailed,
)
from choreo.observe.metrics import Metrics, StepResult
from choreo.step import answer
from choreo.step.answered import Answer, Instance
from choreo.step.attempts import Attempts, Ended, Run
from choreo.step.call import Begun
from choreo.step.cancelling import Cancellation, Lost, StepCancelled
from choreo.step.compensate import Compensator
from choreo.step.compensation_error import ErrorHandlers
from choreo.step.context import Context
from choreo.step.counts import StepCounts
from choreo.step.dead_letter import DeadLetters
from choreo.step.failure import crash
from choreo.step.job import StepJob
from choreo.step.lanes import Lane, Sent, Work
from choreo.step.outcome import OutcomeHooks
from choreo.step.place import Place
from choreo.step.publish import Publisher
from choreo.step.quick import QuickSteps
from choreo.step.quick import Run as QuickRun
from choreo.step.recorded import subject_of
from choreo.step.recorder import Recorder
from choreo.step.refusal import Refusals
from choreo.step.reply import Replies, log_failure, wait_for_thread
from choreo.step.route import Delivery
from choreo.step.service import Hosted
from choreo.step.tracers import Tracers
from choreo.step.transactional import TransactionalStep
from choreo.step.trigger import TRIGGERS, Trigger, is_trigger, round_of, step_job
from choreo.step.unheld import Unheld

logger = logging.getLogger(__name__)

HostedSteps = Mapping[tuple[str, int, str], Hosted]


class _Done(NamedTuple):
    """What came of a trigger: the answer, the job as it is answered, and how the run ended, if there was one."""

    outcome: StepCompleted | StepFailed
    job: StepJob
    ended: Ended | None


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
        unheld: Unheld,
        park_limit_s: float,
        inbox: Recorder | None = None,
    ) -> None:
        """Equip a performer.

        Args:
            hosted: the steps that the service runs, by saga, version and name.
            tracers: are told of every attempt.
            outcome_hooks: run on outcomes.
            error_handlers: are asked when a compensation has failed.
            unheld: judges records of versions that are not held.
            park_limit_s: how long, from its append, a record of an unknown version is kept unfinished.
            inbox: where outcomes are recorded, if they are.
        """
        self._inbox = inbox
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
            unheld=unheld,
            park_limit_s=park_limit_s,
            draw_run=self._draw_run,
            inbox=inbox,
        )
        self._counts = {(saga, step): StepCounts(metrics, saga, step) for saga, _, step in hosted}
        self._quick: QuickSteps | None = None
        if inbox is None and not tracers.are_there:
            may_be = {
                key: (each, self._counts[key[0], key[2]])
                for key, each in hosted.items()
                if each.handler.is_async and each.step.name not in each.saga.cancellable
            }
            self._quick = QuickSteps(
                may_be,
                publisher,
                clock=clock,
                draw_run=self._draw_run,
                go_on=self._go_on,
                conclude=self._conclude_quick,
            )
        self._compensator = Compensator(
            attempts,
            self._replies,
            tracers,
            error_handlers,
            self._counts,
            clock=clock,
            random=random,
            draw_run=self._draw_run,
            inbox=inbox,
        )

    def begin(self, delivery: Delivery, lane: Lane, place: Place) -> Sent | Work:
        """Do what the record asks of the step, as far as that needs no wait; what is left. In a task."""
        if self._quick is not None:
            try:
                begun = self._quick.begin(delivery, lane, place)
            except Exception as error:  # noqa: BLE001  # as all faults of ours
                return self._guarded(_failing(error), delivery, place)
            if begun is not None:
                return begun
        return self._guarded(self._perform(delivery, lane, place), delivery, place)

    async def _guarded(self, work: Work, delivery: Delivery, place: Place) -> None:
        try:
            await work
        except Exception as error:  # a fault of ours: it must neither stop the service nor lose the saga
            logger.exception("internal error at step %r in %s", delivery.step, delivery.message.tp)
            await self._refusals.internal_error(delivery, place, error)

    async def _perform(self, delivery: Delivery, lane: Lane, place: Place) -> None:
        message, step = delivery
        if step in self._hook_lanes:
            await self._outcome_hooks.perform(delivery, lane, place)
            return
        try:
            record, content_type, traceparent = _read(message, place)
        except Undecodable as error:
            await self._refusals.undecodable(delivery, place, str(error))
            return
        hosted = self._hosted.get((record.saga, record.version, step))
        if hosted is None:
            if (record.saga, record.version) not in self._versions:
                await self._refusals.unknown_version(record, message, lane, place)
        elif isinstance(record, Compensate):
            if record.step == step:
                await self._compensator.perform(record, hosted, message, lane, place)
        elif isinstance(record, TRIGGERS) and is_trigger(record, hosted.saga, step):
            await self._run_step(record, hosted, message, lane, place, content_type, traceparent)

    async def _run_step(
        self,
        record: Trigger,
        hosted: Hosted,
        message: Message,
        lane: Lane,
        place: Place,
        content_type: str,
        traceparent: bytes | None,
    ) -> None:
        step = hosted.step
        counts = self._counts[record.saga, step.name]
        if isinstance(record, StepCompleted) and record.is_late(message.timestamp_ms):
            counts.events["skipped_late"].inc()  # a failure to every reader, so nothing follows from it (design, 6)
            return
        instance = Instance(message.key, record.start, step.name, round_of(record))
        known = place.answered.get(instance)
        now = self._clock.monotonic()
        job = step_job(record, hosted, self._draw_run(), message, place, now, content_type, traceparent)
        if known is not None:
            if known is Answer.NO_EFFECT:
                await self._publish_outcome(job, answer.failed(job, _MAYBE_RUN_BY_OTHERS, "unknown"), place)
                place.answered.settle(instance)
            counts.events["skipped_duplicate"].inc()
            return
        counts.delay.observe(max(0.0, (self._clock.now_ms() - message.timestamp_ms) / 1_000))
        if step.name in hosted.saga.cancellable:
            with place.cancellations.watch(Lost(message.key, record.start, instance.round)) as cancellation:
                done = await self._run(job, hosted, message, lane, cancellation)
        else:
            done = await self._run(job, hosted, message, lane)
        await self._conclude(done, instance, counts, place)

    def _go_on(self, run: QuickRun, begun: Begun) -> Work:
        """Go on with a run whose handler has begun."""

        async def work() -> None:
            job, ended = await self._attempt(
                run.hosted.handler, run.job, run.hosted, run.message, run.lane, None, begun, run.began
            )
            done = _Done(answer.answer_of_step(job, ended), job, ended)
            await self._conclude(done, run.instance, run.counts, run.place)

        return self._guarded(work(), Delivery(run.message, run.job.step.name), run.place)

    def _conclude_quick(self, run: QuickRun, outcome: StepCompleted | StepFailed, ended: Ended) -> Work:
        """Answer for a run that has ended at once, but whose answer could not be sent like that."""
        work = self._conclude(_Done(outcome, run.job, ended), run.instance, run.counts, run.place)
        return self._guarded(work, Delivery(run.message, run.job.step.name), run.place)

    async def _conclude(self, done: _Done, instance: Instance, counts: StepCounts, place: Place) -> None:
        """Answer, and do what there is to do then."""
        job = done.job
        outcome = await self._publish_outcome(job, done.outcome, place)
        place.answered.settle(instance)
        result: StepResult
        if done.ended is None:
            result = "republished"
        else:
            result = "completed" if isinstance(outcome, StepCompleted) else "failed"
            counts.ended(result, done.ended.duration_ms / 1_000, job.traceparent)
            if isinstance(outcome, StepFailed):
                log_failure(job, outcome.failure, outcome.effect)
        counts.events[result].inc()
        if done.ended is not None and done.ended.lingering is not None:
            await wait_for_thread(done.ended.lingering, job)

    async def _run(
        self,
        job: StepJob,
        hosted: Hosted,
        message: Message,
        lane: Lane,
        cancellation: Cancellation | None = None,
    ) -> _Done:
        """Run the handler; where there is an inbox, unless its outcome is recorded, and record it."""
        if self._inbox is not None:
            return await self._run_and_record(self._inbox, job, hosted, message, lane, cancellation)
        job, ended = await self._attempt(hosted.handler, job, hosted, message, lane, cancellation)
        return _Done(answer.answer_of_step(job, ended), job, ended)

    async def _run_and_record(
        self,
        inbox: Recorder,
        job: StepJob,
        hosted: Hosted,
        message: Message,
        lane: Lane,
        cancellation: Cancellation | None,
    ) -> _Done:
        if not hosted.handler.resources or (cancellation is not None and cancellation.is_asked):
            return await self._run_outside(inbox, job, hosted, message, lane, cancellation)
        # The transaction looks by itself. Only tracers would be told of an attempt that does nothing.
        if self._tracers.are_there and not job.is_fresh and (standing := await inbox.find(job, lane)) is not None:
            return _Done(standing, job, None)
        transaction = TransactionalStep(inbox, hosted.handler, job)
        traced, ended = await self._attempt(transaction, job, hosted, message, lane, cancellation)
        if transaction.recorded is not None:
            return _Done(transaction.recorded, traced, None if transaction.was_recorded else ended)
        outcome = transaction.refused
        if outcome is None:
            if transaction.is_vouched:  # what was rolled back has left nothing, in this run and in those before
                job, ended = msgspec.structs.replace(job, is_fresh=True), ended._replace(in_doubt=False)
            outcome = answer.answer_of_step(job, ended)
            if transaction.is_vouched and isinstance(ended.error, StepCancelled):
                outcome = msgspec.structs.replace(outcome, effect="none")
        elif transaction.is_vouched:
            outcome = msgspec.structs.replace(outcome, effect="none")
        standing = await inbox.conclude(subject_of(job), outcome, job.content_type, is_inside=True)
        return _Done(standing, traced, ended)

    async def _run_outside(
        self,
        inbox: Recorder,
        job: StepJob,
        hosted: Hosted,
        message: Message,
        lane: Lane,
        cancellation: Cancellation | None,
    ) -> _Done:
        """The same for a handler that does not ask for the database: that it has begun is recorded beforehand."""
        claim = await inbox.claim(job, lane)
        if claim.outcome is not None:
            return _Done(claim.outcome, job, None)
        traced, ended = await self._attempt(hosted.handler, job, hosted, message, lane, cancellation)
        outcome = answer.answer_of_step(msgspec.structs.replace(job, is_fresh=claim.is_first), ended)
        try:
            encode(outcome, content_type=job.content_type)
        except Unencodable as error:
            outcome = answer.failed(job, crash(error, code="context_too_large"), "unknown", ended)
        standing = await inbox.conclude(subject_of(job), outcome, job.content_type, is_inside=False)
        return _Done(standing, traced, ended)

    async def _attempt(
        self,
        handler: Run,
        job: StepJob,
        hosted: Hosted,
        message: Message,
        lane: Lane,
        cancellation: Cancellation | None,
        begun: Begun | None = None,
        began: float | None = None,
    ) -> tuple[StepJob, Ended]:
        """All attempts of a run; and the job with the trace context that goes on with its answer."""
        counts = self._counts[job.saga.name, job.step.name]
        watch = self._tracers.watch(job, message)
        counts.running += 1
        try:
            ended = await self._attempts.run(
                handler,
                Context,
                job,
                lane,
                retries=hosted.step.retries,
                timeout_s=hosted.step.timeout_ms / 1_000,
                counters=counts.attempts,
                watch=watch,
                inbox=self._inbox if isinstance(handler, TransactionalStep) else None,
                cancellation=cancellation,
                begun=begun,
                began=began,
            )
        finally:
            counts.running -= 1
        if ended.attempts > 1:
            counts.retries.inc(ended.attempts - 1)
        return (job if watch is None else watch.job), ended

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
            if self._inbox is not None:
                await self._inbox.replace(job, outcome)
            await self._replies.send(outcome, job, place)
        return outcome

    def _draw_run(self) -> str:
        return f"{self._random.getrandbits(64):016x}"


async def _failing(error: Exception) -> None:
    raise error


_MAYBE_RUN_BY_OTHERS = Failure(
    kind="cancelled",
    code="redelivered",
    message="an earlier run failed without an effect, but another replica may have run since",
)


def _read(message: Message, place: Place) -> tuple[AnyRecord, str, bytes | None]:
    """The record; from here on it alone is believed, not its headers. Raises ``Undecodable``."""
    record, content_type, traceparent = decode_whole(message.key, message.value, message.headers)
    if record.saga != place.saga:
        raise Undecodable(f"a record of saga {record.saga!r} in the topic of saga {place.saga!r}")
    return record, content_type, traceparent
