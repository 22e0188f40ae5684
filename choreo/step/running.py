"""Running a step: what is done for one trigger, from the record to the acknowledged answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import msgspec

from choreo.broker.port import Message
from choreo.clock import Clock
from choreo.errors import RecordTooLarge, Unencodable
from choreo.messages.codec import encode
from choreo.messages.records import Failure, StepCompleted, StepFailed
from choreo.step import answer
from choreo.step.answered import Answer, Instance
from choreo.step.attempts import Attempts, Ended
from choreo.step.attempts import Run as Runnable
from choreo.step.call import Begun
from choreo.step.cancelling import Cancellation, Lost, StepCancelled
from choreo.step.context import Context
from choreo.step.counts import StepCounts
from choreo.step.failure import crash
from choreo.step.job import StepJob
from choreo.step.lanes import Lane, Sent, Work
from choreo.step.place import Place
from choreo.step.publish import Publisher
from choreo.step.quick import Quick, Run
from choreo.step.recorded import subject_of
from choreo.step.recorder import Recorder
from choreo.step.reply import Replies, log_failure, wait_for_thread
from choreo.step.service import Hosted
from choreo.step.tracers import Tracers
from choreo.step.transactional import TransactionalStep
from choreo.step.trigger import Trigger, round_of, step_job
from choreo.step.verdict import InvalidInput, Reject

StepAnswer = StepCompleted | StepFailed


class _Done(NamedTuple):
    """What came of a trigger: the answer, the job as it is answered, and how the run ended, if there was one."""

    outcome: StepAnswer
    job: StepJob
    ended: Ended | None


class Runner:
    """Runs the steps of one service."""

    definite: tuple[type[BaseException], ...] = (Reject, InvalidInput)

    def __init__(
        self,
        attempts: Attempts,
        publisher: Publisher,
        replies: Replies,
        tracers: Tracers,
        counts: Mapping[tuple[str, str], StepCounts],
        *,
        clock: Clock,
        draw_run: Callable[[], str],
        guard: Callable[[Work, Run[StepJob]], Work],
        inbox: Recorder | None,
    ) -> None:
        """Equip a runner.

        Args:
            tracers: are told of every attempt.
            counts: by saga and step.
            draw_run: gives the run ids of answers.
            guard: see ``Quick``.
            inbox: where outcomes are recorded, if they are.
        """
        self._attempts = attempts
        self._replies = replies
        self._tracers = tracers
        self._counts = counts
        self._clock = clock
        self._draw_run = draw_run
        self._inbox = inbox
        self._quick: Quick[StepJob, StepAnswer] = Quick(publisher, Context, self, clock=clock, guard=guard)
        self._may_be_quick = inbox is None and not tracers.are_there

    def begin(
        self,
        record: Trigger,
        hosted: Hosted,
        message: Message,
        lane: Lane,
        place: Place,
        content_type: str,
        traceparent: bytes | None,
    ) -> Sent | Work | None:
        """Run the step that the record triggers, once, and answer, as far as that needs no wait; what is left."""
        step = hosted.step
        counts = self._counts[record.saga, step.name]
        if isinstance(record, StepCompleted) and record.is_late(message.timestamp_ms):
            counts.events["skipped_late"].inc()  # a failure to every reader, so nothing follows from it (design, 6)
            return None
        instance = Instance(message.key, record.start, step.name, round_of(record))
        known = place.answered.get(instance)
        now = self._clock.monotonic()
        job = step_job(record, hosted, self._draw_run(), message, place, now, content_type, traceparent)
        if known is not None:
            counts.events["skipped_duplicate"].inc()
            return self._doubt(job, instance, place) if known is Answer.NO_EFFECT else None
        counts.delay.observe(max(0.0, (self._clock.now_ms() - message.timestamp_ms) / 1_000))
        run = Run(job, hosted, counts, instance, message, place, lane, now)
        if self._may_be_quick and hosted.handler.is_async and step.name not in hosted.saga.cancellable:
            return self._quick.begin(run, hosted.handler, counts.attempts)
        return self.go_on(run)

    async def _doubt(self, job: StepJob, instance: Instance, place: Place) -> None:
        """Say again what was answered, but that there may be an effect (rule 6)."""
        await self._publish(job, answer.failed(job, _MAYBE_RUN_BY_OTHERS, "unknown"), place)
        place.answered.settle(instance)

    # The long way, and what the short one has of it

    def answer(self, job: StepJob, ended: Ended) -> StepAnswer:
        return answer.answer_of_step(job, ended)

    async def go_on(self, run: Run[StepJob], begun: Begun | None = None) -> None:
        if run.job.step.name in run.hosted.saga.cancellable:
            with run.place.cancellations.watch(
                Lost(run.message.key, run.job.start, run.instance.round)
            ) as cancellation:
                done = await self._run(run, begun, cancellation)
        else:
            done = await self._run(run, begun, None)
        await self._conclude(run, done)

    def conclude(self, run: Run[StepJob], answer: StepAnswer, ended: Ended) -> Work:
        return self._conclude(run, _Done(answer, run.job, ended))

    async def _conclude(self, run: Run[StepJob], done: _Done) -> None:
        """Answer, and do what there is to do then."""
        job, ended = done.job, done.ended
        outcome = await self._publish(job, done.outcome, run.place)
        run.place.answered.settle(run.instance)
        if ended is None:
            run.counts.events["republished"].inc()
            return
        self.concluded(msgspec.structs.replace(run, job=job), outcome, ended)
        if ended.lingering is not None:
            await wait_for_thread(ended.lingering, job)

    def concluded(self, run: Run[StepJob], answer: StepAnswer, ended: Ended) -> None:
        """Count it, and say what has failed."""
        job = run.job
        result: Literal["completed", "failed"] = "completed" if isinstance(answer, StepCompleted) else "failed"
        run.counts.ended(result, ended.duration_ms / 1_000, job.traceparent)
        if isinstance(answer, StepFailed):
            log_failure(job, answer.failure, answer.effect)
        run.counts.events[result].inc()

    async def _run(self, run: Run[StepJob], begun: Begun | None, cancellation: Cancellation | None) -> _Done:
        """Run the handler; where there is an inbox, unless its outcome is recorded, and record it."""
        if self._inbox is not None:
            return await self._run_and_record(self._inbox, run, cancellation)
        job, ended = await self._attempt(run.hosted.handler, run, cancellation, begun)
        return _Done(answer.answer_of_step(job, ended), job, ended)

    async def _run_and_record(self, inbox: Recorder, run: Run[StepJob], cancellation: Cancellation | None) -> _Done:
        job, handler = run.job, run.hosted.handler
        if not handler.resources or (cancellation is not None and cancellation.is_asked):
            return await self._run_outside(inbox, run, cancellation)
        # The transaction looks by itself. Only tracers would be told of an attempt that does nothing.
        if self._tracers.are_there and not job.is_fresh and (standing := await inbox.find(job, run.lane)) is not None:
            return _Done(standing, job, None)
        transaction = TransactionalStep(inbox, handler, job)
        traced, ended = await self._attempt(transaction, run, cancellation)
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

    async def _run_outside(self, inbox: Recorder, run: Run[StepJob], cancellation: Cancellation | None) -> _Done:
        """The same for a handler that does not ask for the database: that it has begun is recorded beforehand."""
        job = run.job
        claim = await inbox.claim(job, run.lane)
        if claim.outcome is not None:
            return _Done(claim.outcome, job, None)
        traced, ended = await self._attempt(run.hosted.handler, run, cancellation)
        outcome = answer.answer_of_step(msgspec.structs.replace(job, is_fresh=claim.is_first), ended)
        try:
            encode(outcome, content_type=job.content_type)
        except Unencodable as error:
            outcome = answer.failed(job, crash(error, code="context_too_large"), "unknown", ended)
        standing = await inbox.conclude(subject_of(job), outcome, job.content_type, is_inside=False)
        return _Done(standing, traced, ended)

    async def _attempt(
        self, handler: Runnable, run: Run[StepJob], cancellation: Cancellation | None, begun: Begun | None = None
    ) -> tuple[StepJob, Ended]:
        """All attempts of a run; and the job with the trace context that goes on with its answer."""
        job, counts, step = run.job, run.counts, run.hosted.step
        watch = self._tracers.watch(job, run.message)
        counts.running += 1
        try:
            ended = await self._attempts.run(
                handler,
                Context,
                job,
                run.lane,
                retries=step.retries,
                timeout_s=step.timeout_ms / 1_000,
                counters=counts.attempts,
                definite=self.definite,
                watch=watch,
                inbox=self._inbox if isinstance(handler, TransactionalStep) else None,
                cancellation=cancellation,
                begun=begun,
                began=None if begun is None else run.began,
            )
        finally:
            counts.running -= 1
        if ended.attempts > 1:
            counts.retries.inc(ended.attempts - 1)
        return (job if watch is None else watch.job), ended

    async def _publish(self, job: StepJob, outcome: StepAnswer, place: Place) -> StepAnswer:
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


_MAYBE_RUN_BY_OTHERS = Failure(
    kind="cancelled",
    code="redelivered",
    message="an earlier run failed without an effect, but another replica may have run since",
)
