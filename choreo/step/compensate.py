"""Undoing a step: what is done for one ``Compensate``, from the record to the acknowledged answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from random import Random
from typing import Literal, NamedTuple

import msgspec

from choreo.broker.port import Message
from choreo.clock import Clock
from choreo.errors import RecordTooLarge, Unencodable
from choreo.messages.codec import encode
from choreo.messages.records import Compensate, CompensationFailed, StepCompensated
from choreo.observe.metrics import exemplar_of
from choreo.step import answer
from choreo.step.answered import Instance
from choreo.step.attempts import Attempts, Ended
from choreo.step.call import Lingering, UnfitInput
from choreo.step.compensation_error import CompensationError, ErrorHandlers, Resolved, RetryLater
from choreo.step.context import CompensationContext
from choreo.step.counts import StepCounts
from choreo.step.failure import crash, plain_failure
from choreo.step.job import CompensationJob
from choreo.step.lanes import Lane
from choreo.step.place import Place
from choreo.step.recorded import UndoAnswer
from choreo.step.recorder import Recorder
from choreo.step.reply import Replies, log_failure, wait_for_thread
from choreo.step.service import Hosted
from choreo.step.tracers import Tracers
from choreo.step.transactional import TransactionalUndo
from choreo.step.trigger import compensation_job
from choreo.step.verdict import InvalidInput, Retry

logger = logging.getLogger(__name__)


Kept = Literal["nowhere", "with it", "before"]
"""An answer is recorded with what the handler does, or was there before one was called; or it is still to be."""


class _Undone(NamedTuple):
    """What came of a command.

    Attributes:
        job: as it is answered.
        lingering: threads that go on.
        kept: whether the inbox has the answer already.
        is_empty: the inbox knows that there was nothing to undo.
    """

    reply: StepCompensated | CompensationFailed
    job: CompensationJob
    ended: Ended | None
    lingering: tuple[Lingering, ...]
    kept: Kept = "nowhere"
    is_empty: bool = False


class Compensator:
    """Undoes the steps of one service."""

    def __init__(
        self,
        attempts: Attempts,
        replies: Replies,
        tracers: Tracers,
        error_handlers: ErrorHandlers,
        counts: Mapping[tuple[str, str], StepCounts],
        *,
        clock: Clock,
        random: Random,
        draw_run: Callable[[], str],
        inbox: Recorder | None,
    ) -> None:
        """Equip a compensator.

        Args:
            error_handlers: are asked when all attempts have failed.
            counts: by saga and step.
            draw_run: gives the run ids of answers.
            inbox: where answers are recorded, if they are.
        """
        self._attempts = attempts
        self._replies = replies
        self._tracers = tracers
        self._error_handlers = error_handlers
        self._counts = counts
        self._clock = clock
        self._random = random
        self._draw_run = draw_run
        self._inbox = inbox

    async def perform(self, record: Compensate, hosted: Hosted, message: Message, lane: Lane, place: Place) -> None:
        """Undo what the command says, once, and answer."""
        counts = self._counts[record.saga, hosted.step.name]
        instance = Instance(message.key, record.start, hosted.step.name, record.round, record.generation)
        if place.answered.get(instance) is not None:
            counts.compensations["skipped_duplicate"].inc()
            return
        job = compensation_job(record, hosted, self._draw_run(), message, place, self._clock.monotonic())
        counts.delay.observe(max(0.0, (self._clock.now_ms() - message.timestamp_ms) / 1_000))
        if record.settle:  # all that came before it in its lane is answered: that is all it asks
            if self._inbox is not None:
                await self._inbox.bar(job, lane)  # and what comes behind it, once more, is not run
            await self._replies.send(answer.settled(job), job, place)
            place.answered.settle(instance)
            return
        if self._inbox is None:
            undone = await self._undo(job, hosted, message, lane, counts)
        else:
            undone = await self._undo_and_record(self._inbox, job, hosted, message, lane, counts)
        reply, job, ended = undone.reply, undone.job, undone.ended
        try:
            await self._replies.send(reply, job, place)
        except (Unencodable, RecordTooLarge) as error:
            reply = answer.compensation_failed(job, crash(error, code="unencodable_effect"), ended)
            await self._replies.send(reply, job, place)
        place.answered.settle(instance)
        if undone.kept == "before" and reply.run != job.run:  # otherwise it is ours: there is nothing to undo
            counts.compensations["republished"].inc()
        elif isinstance(reply, StepCompensated):
            counts.compensations["undone" if reply.undone else "nothing_to_undo"].inc()
        else:
            counts.compensations["failed"].inc()
            log_failure(job, reply.failure, "unknown")
        if ended is not None:
            counts.compensation_duration.observe(ended.duration_ms / 1_000, exemplar_of(message.header("traceparent")))
        for thread in undone.lingering:
            await wait_for_thread(thread, job)

    async def _undo_and_record(
        self, inbox: Recorder, job: CompensationJob, hosted: Hosted, message: Message, lane: Lane, counts: StepCounts
    ) -> _Undone:
        """The same with an inbox: what is answered there, or what is answered now and recorded there."""
        is_empty = False
        if hosted.compensation is None or not hosted.compensation.resources:
            plan = await inbox.plan_undo(job, lane, is_inside=bool(hosted.handler.resources))
            job, is_empty = plan.job, plan.is_empty
            if plan.answer is not None:
                return _Undone(plan.answer, job, None, (), kept="before")
        undone = await self._undo(job, hosted, message, lane, counts)
        if undone.kept == "nowhere":
            reply = _within_limits(undone.reply, job, undone.ended)
            reply = await inbox.conclude_undo(job, reply, is_empty=is_empty or undone.is_empty)
            undone = undone._replace(reply=reply)
        return undone

    async def _undo(
        self, job: CompensationJob, hosted: Hosted, message: Message, lane: Lane, counts: StepCounts
    ) -> _Undone:
        if hosted.compensation is None:
            about = f"step {hosted.step.name!r} has no compensation here"
            failure = plain_failure("rejected", "no_compensation", about)
            return _Undone(answer.compensation_failed(job, failure), job, None, ())
        began, attempts, asked = self._clock.monotonic(), 0, 0
        threads: tuple[Lingering, ...] = ()  # of handlers of errors
        while True:
            answered_as, ended, transaction = await self._run(job, hosted, message, lane, counts)
            attempts += ended.attempts
            duration_ms = round((self._clock.monotonic() - began) * 1_000) if asked else ended.duration_ms
            ended = ended._replace(attempts=attempts, duration_ms=duration_ms)
            lingering = threads if ended.lingering is None else (*threads, ended.lingering)
            if transaction is not None and transaction.recorded is not None:
                kept: Kept = "before" if transaction.was_recorded else "with it"
                return _Undone(transaction.recorded, answered_as, ended, lingering, kept=kept)
            reply = self._answer(answered_as, ended)
            is_empty = transaction is not None and transaction.is_empty
            if transaction is not None and transaction.refused is not None:
                reply = transaction.refused
            if isinstance(reply, StepCompensated) or not self._error_handlers.has(job.saga.name):
                return _Undone(reply, answered_as, ended, lingering, is_empty=is_empty)
            asked += 1
            event = self._error(job, ended, reply, asked)
            advice, thread = await self._error_handlers.ask(event, lane, hosted.step.timeout_ms / 1_000)
            if thread is not None:
                threads, lingering = (*threads, thread), (*lingering, thread)
            if isinstance(advice, Resolved):
                reply = answer.answer_of_compensation(answered_as, ended._replace(value=None, error=None), backoff_ms=0)
                return _Undone(reply, answered_as, ended, lingering, is_empty=is_empty)
            if not isinstance(advice, RetryLater) or not await self._wait(advice.delay_s, job, ended.lingering, lane):
                return _Undone(reply, answered_as, ended, lingering, is_empty=is_empty)
            job = msgspec.structs.replace(job, run=self._draw_run())

    async def _run(
        self, job: CompensationJob, hosted: Hosted, message: Message, lane: Lane, counts: StepCounts
    ) -> tuple[CompensationJob, Ended, TransactionalUndo | None]:
        """A set of attempts; and the job with the trace context that goes on with its answer."""
        assert hosted.compensation is not None, "looked at before"
        transaction: TransactionalUndo | None = None
        if self._inbox is not None and hosted.compensation.resources:
            is_inside = bool(hosted.handler.resources)
            transaction = TransactionalUndo(self._inbox, hosted.compensation, job, self._answer, is_inside=is_inside)
        watch = self._tracers.watch(job, message)
        counts.running += 1
        try:
            ended = await self._attempts.run(
                transaction or hosted.compensation,
                CompensationContext,
                job,
                lane,
                retries=hosted.step.compensation_retries,
                timeout_s=hosted.step.timeout_ms / 1_000,
                counters=counts.compensation_attempts,
                definite=(UnfitInput, InvalidInput),
                watch=watch,
                inbox=None if transaction is None else self._inbox,
            )
        finally:
            counts.running -= 1
        return (job if watch is None else watch.job), ended, transaction

    def _answer(self, job: CompensationJob, ended: Ended) -> UndoAnswer:
        backoff_ms = ended.value.backoff_ms(job.round, self._random) if isinstance(ended.value, Retry) else 0
        return answer.answer_of_compensation(job, ended, backoff_ms=backoff_ms)

    def _error(self, job: CompensationJob, ended: Ended, reply: CompensationFailed, asked: int) -> CompensationError:
        return CompensationError(
            saga=job.saga.name,
            version=job.saga.version,
            saga_id=job.saga_id,
            step=job.step.name,
            round=job.round,
            generation=job.generation,
            error=ended.error,
            failure=reply.failure,
            attempts=ended.attempts,
            asked=asked,
            remaining=job.remaining,
            context=CompensationContext(job, ended.attempts, job.due_at, self._clock),
        )

    async def _wait(self, delay_s: float, job: CompensationJob, lingering: Lingering | None, lane: Lane) -> bool:
        """Wait for the next set of attempts; whether there can be one before the answer is due."""
        left_s = job.due_at - self._clock.monotonic()
        if delay_s >= left_s:
            logger.warning(
                "the compensation of %r cannot be tried again in %g s: its answer is due", job.step.name, delay_s
            )
            return False
        await lane.rest(self._clock.sleep(delay_s))
        if lingering is not None:
            await asyncio.wait((lingering,), timeout=max(0.0, job.due_at - self._clock.monotonic()))
        return lingering is None or lingering.done()


def _within_limits(reply: UndoAnswer, job: CompensationJob, ended: Ended | None) -> UndoAnswer:
    """An answer that can be written (rule 20)."""
    try:
        encode(reply, content_type=job.content_type)
    except Unencodable as error:
        return answer.compensation_failed(job, crash(error, code="unencodable_effect"), ended)
    return reply
