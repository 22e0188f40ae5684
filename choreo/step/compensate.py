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
from choreo.step import answer
from choreo.step.answered import Instance
from choreo.step.attempts import Attempts, Ended
from choreo.step.call import Begun, Lingering, UnfitInput
from choreo.step.compensation_error import CompensationError, ErrorHandlers, Resolved, RetryLater
from choreo.step.context import CompensationContext
from choreo.step.counts import StepCounts
from choreo.step.failure import crash, plain_failure
from choreo.step.job import CompensationJob
from choreo.step.lanes import Lane, Sent, Work
from choreo.step.place import Place
from choreo.step.publish import Publisher
from choreo.step.quick import Quick, Run
from choreo.step.recorded import UndoAnswer
from choreo.step.recorder import Recorder
from choreo.step.reply import Replies, log_failure, wait_for_thread
from choreo.step.service import Hosted
from choreo.step.tracers import Tracers
from choreo.step.transactional import TransactionalUndo
from choreo.step.trigger import compensation_job
from choreo.step.verdict import InvalidInput, NothingToUndo, Retry

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

    definite: tuple[type[BaseException], ...] = (UnfitInput, InvalidInput)

    def __init__(
        self,
        attempts: Attempts,
        publisher: Publisher,
        replies: Replies,
        tracers: Tracers,
        error_handlers: ErrorHandlers,
        counts: Mapping[tuple[str, str], StepCounts],
        *,
        clock: Clock,
        random: Random,
        draw_run: Callable[[], str],
        guard: Callable[[Work, Run[CompensationJob]], Work],
        inbox: Recorder | None,
    ) -> None:
        """Equip a compensator.

        Args:
            error_handlers: are asked when all attempts have failed.
            counts: by saga and step.
            draw_run: gives the run ids of answers.
            guard: see ``Quick``.
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
        self._quick: Quick[CompensationJob, UndoAnswer] = Quick(
            publisher, CompensationContext, self, clock=clock, guard=guard
        )
        self._may_be_quick = inbox is None and not tracers.are_there

    def begin(
        self,
        record: Compensate,
        hosted: Hosted,
        message: Message,
        lane: Lane,
        place: Place,
        content_type: str,
        traceparent: bytes | None,
    ) -> Sent | Work | None:
        """Undo what the command says, once, and answer, as far as that needs no wait; what is left."""
        counts = self._counts[record.saga, hosted.step.name]
        instance = Instance(message.key, record.start, hosted.step.name, record.round, record.generation)
        if place.answered.get(instance) is not None:
            counts.compensations["skipped_duplicate"].inc()
            return None
        now = self._clock.monotonic()
        job = compensation_job(record, hosted, self._draw_run(), message, place, now, content_type, traceparent)
        counts.delay.observe(max(0.0, (self._clock.now_ms() - message.timestamp_ms) / 1_000))
        run = Run(job, hosted, counts, instance, message, place, lane, now)
        if record.settle:
            return self._settle(run)
        if self._may_be_quick and hosted.compensation is not None and hosted.compensation.is_async:
            return self._quick.begin(run, hosted.compensation, counts.compensation_attempts)
        return self.go_on(run)

    async def _settle(self, run: Run[CompensationJob]) -> None:
        """All that came before the command in its lane is answered: that is all it asks."""
        if self._inbox is not None:
            await self._inbox.bar(run.job, run.lane)  # and what comes behind it, once more, is not run
        await self._replies.send(answer.settled(run.job), run.job, run.place)
        run.place.answered.settle(run.instance)

    # The long way, and what the short one has of it

    def answer(self, job: CompensationJob, ended: Ended) -> UndoAnswer | None:
        if ended.value is not None and not isinstance(ended.value, NothingToUndo):
            return None
        reply = answer.answer_of_compensation(job, ended, backoff_ms=0)
        return reply if isinstance(reply, StepCompensated) else None

    async def go_on(self, run: Run[CompensationJob], begun: Begun | None = None) -> None:
        if self._inbox is None:
            undone = await self._undo(run, begun)
        else:
            undone = await self._undo_and_record(self._inbox, run)
        await self._conclude(run, undone)

    def conclude(self, run: Run[CompensationJob], answer: UndoAnswer, ended: Ended) -> Work:
        return self._conclude(run, _Undone(answer, run.job, ended, ()))

    async def _conclude(self, run: Run[CompensationJob], undone: _Undone) -> None:
        """Answer, and do what there is to do then."""
        reply, job, ended = undone.reply, undone.job, undone.ended
        try:
            await self._replies.send(reply, job, run.place)
        except (Unencodable, RecordTooLarge) as error:
            reply = answer.compensation_failed(job, crash(error, code="unencodable_effect"), ended)
            await self._replies.send(reply, job, run.place)
        run.place.answered.settle(run.instance)
        is_old = undone.kept == "before" and reply.run != job.run  # otherwise it is ours: there is nothing to undo
        self.concluded(run, reply, ended, is_old=is_old)
        for thread in undone.lingering:
            await wait_for_thread(thread, job)

    def concluded(
        self, run: Run[CompensationJob], answer: UndoAnswer, ended: Ended | None, *, is_old: bool = False
    ) -> None:
        """Count it, and say what has failed. ``is_old``: the answer was recorded before."""
        counts = run.counts
        if is_old:
            counts.compensations["republished"].inc()
        elif isinstance(answer, StepCompensated):
            counts.compensations["undone" if answer.undone else "nothing_to_undo"].inc()
        else:
            counts.compensations["failed"].inc()
            log_failure(run.job, answer.failure, "unknown")
        if ended is not None:
            counts.undone(ended.duration_ms / 1_000, run.job.traceparent)

    async def _undo_and_record(self, inbox: Recorder, run: Run[CompensationJob]) -> _Undone:
        """The same with an inbox: what is answered there, or what is answered now and recorded there."""
        hosted, is_empty = run.hosted, False
        if hosted.compensation is None or not hosted.compensation.resources:
            plan = await inbox.plan_undo(run.job, run.lane, is_inside=bool(hosted.handler.resources))
            is_empty = plan.is_empty
            if plan.answer is not None:
                return _Undone(plan.answer, plan.job, None, (), kept="before")
            run = msgspec.structs.replace(run, job=plan.job)
        undone = await self._undo(run)
        if undone.kept == "nowhere":
            reply = _within_limits(undone.reply, run.job, undone.ended)
            reply = await inbox.conclude_undo(run.job, reply, is_empty=is_empty or undone.is_empty)
            undone = undone._replace(reply=reply)
        return undone

    async def _undo(self, run: Run[CompensationJob], begun: Begun | None = None) -> _Undone:
        job, hosted, lane = run.job, run.hosted, run.lane
        if hosted.compensation is None:
            about = f"step {hosted.step.name!r} has no compensation here"
            failure = plain_failure("rejected", "no_compensation", about)
            return _Undone(answer.compensation_failed(job, failure), job, None, ())
        began, attempts, asked = run.began if begun else self._clock.monotonic(), 0, 0
        threads: tuple[Lingering, ...] = ()  # of handlers of errors
        while True:
            answered_as, ended, transaction = await self._run(msgspec.structs.replace(run, job=job), begun)
            begun = None
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
        self, run: Run[CompensationJob], begun: Begun | None
    ) -> tuple[CompensationJob, Ended, TransactionalUndo | None]:
        """A set of attempts; and the job with the trace context that goes on with its answer."""
        job, hosted, counts = run.job, run.hosted, run.counts
        assert hosted.compensation is not None, "looked at before"
        transaction: TransactionalUndo | None = None
        if self._inbox is not None and hosted.compensation.resources:
            is_inside = bool(hosted.handler.resources)
            transaction = TransactionalUndo(self._inbox, hosted.compensation, job, self._answer, is_inside=is_inside)
        watch = self._tracers.watch(job, run.message)
        counts.running += 1
        try:
            ended = await self._attempts.run(
                transaction or hosted.compensation,
                CompensationContext,
                job,
                run.lane,
                retries=hosted.step.compensation_retries,
                timeout_s=hosted.step.timeout_ms / 1_000,
                counters=counts.compensation_attempts,
                definite=self.definite,
                watch=watch,
                inbox=None if transaction is None else self._inbox,
                begun=begun,
                began=None if begun is None else run.began,
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
