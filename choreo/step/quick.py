"""Steps that are done in one go: from the bytes of a trigger to those of its answer in plain calls, without a wait.

That is what most records of a busy service come to, so it is what a service's throughput is made of; here it reads in
one sitting. Whatever is not that simple (a record that is no fresh trigger, a handler that raises or waits, an answer
that cannot be written, or is not acknowledged) goes on in ``perform``, from where it has got to. It is the same work
with the same outcome; only the way is shorter. Nobody else may have a part in it: no inbox, no tracer, no cancelling.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from choreo.broker.port import Appended, Message
from choreo.clock import Clock
from choreo.errors import BrokerError, Undecodable, Unencodable
from choreo.messages.codec import decode_whole
from choreo.messages.records import StepCompleted, StepFailed
from choreo.step.answer import answer_of_step
from choreo.step.answered import Instance
from choreo.step.attempts import Ended
from choreo.step.call import Begun, begin_async, limit_of
from choreo.step.context import Context
from choreo.step.counts import StepCounts
from choreo.step.job import StepJob
from choreo.step.lanes import Lane, Sent, Work
from choreo.step.place import Place
from choreo.step.publish import Publisher
from choreo.step.route import Delivery
from choreo.step.service import Hosted
from choreo.step.trigger import TRIGGERS, is_trigger, round_of, step_job


class Run(NamedTuple):
    """A run of a step.

    Attributes:
        began: on the monotonic clock, in seconds.
    """

    job: StepJob
    hosted: Hosted
    counts: StepCounts
    instance: Instance
    message: Message
    place: Place
    lane: Lane
    began: float


GoOn = Callable[[Run, Begun], Work]
"""Goes on with a handler that has raised or waits. It has a slot of its lane."""

Conclude = Callable[[Run, StepCompleted | StepFailed, Ended], Work]
"""Sends the answer, whatever it takes, and does what there is to do then."""


class QuickSteps:
    """Those steps of a service that may be done in one go."""

    def __init__(
        self,
        steps: dict[tuple[str, int, str], tuple[Hosted, StepCounts]],
        publisher: Publisher,
        *,
        clock: Clock,
        draw_run: Callable[[], str],
        go_on: GoOn,
        conclude: Conclude,
    ) -> None:
        """Equip them.

        Args:
            steps: by saga, version and name; their handlers are async.
            draw_run: gives the run ids of answers.
            go_on, conclude: the longer ways.
        """
        self._steps = steps
        self._publisher = publisher
        self._clock = clock
        self._draw_run = draw_run
        self._go_on = go_on
        self._conclude = conclude

    def begin(  # noqa: C901  # a list of conditions, each with a return
        self, delivery: Delivery, lane: Lane, place: Place
    ) -> Sent | Work | None:
        """Do what the record asks of the step, as far as that needs no wait. In a task.

        Returns what is left to do; ``None`` if nothing was done, and all is left.
        """
        message, step = delivery
        try:
            record, content_type, traceparent = decode_whole(message.key, message.value, message.headers)
        except Undecodable:
            return None
        found = self._steps.get((record.saga, record.version, step))
        if found is None or not isinstance(record, TRIGGERS) or record.saga != place.saga:
            return None
        hosted, counts = found
        if not is_trigger(record, hosted.saga, step):
            return None
        if isinstance(record, StepCompleted) and record.is_late(message.timestamp_ms):
            return None
        instance = Instance(message.key, record.start, step, round_of(record))
        if place.answered.get(instance) is not None:
            return None
        now = self._clock.monotonic()
        job = step_job(record, hosted, self._draw_run(), message, place, now, content_type, traceparent)
        if now >= job.due_at or not lane.slots.try_take():
            return None
        counts.delay.observe(max(0.0, (self._clock.now_ms() - message.timestamp_ms) / 1_000))
        limit_s, code = limit_of(hosted.step.timeout_ms / 1_000, job.due_at - now)
        value, begun = begin_async(hosted.handler, Context(job, 1, now + limit_s, self._clock), limit_s, code)
        run = Run(job, hosted, counts, instance, message, place, lane, now)
        if begun is not None:
            return self._go_on(run, begun)
        lane.slots.give_back()
        counts.attempts["ok"].inc()
        ended = Ended(value, None, 1, round((self._clock.monotonic() - now) * 1_000), in_doubt=False, lingering=None)
        outcome = answer_of_step(job, ended)
        if not isinstance(outcome, StepCompleted):
            return self._conclude(run, outcome, ended)
        try:
            sent = self._publisher.begin(message.topic, outcome, content_type=content_type, traceparent=traceparent)
        except (Unencodable, BrokerError):
            return self._conclude(run, outcome, ended)
        if not isinstance(sent, asyncio.Future):
            return self._see_through(run, outcome, ended, sent)
        return _Answered(self, run, outcome, ended, sent)

    async def _see_through(self, run: Run, outcome: StepCompleted, ended: Ended, sent: Awaitable[Appended]) -> None:
        try:
            appended = await sent
        except BrokerError:
            await self.failed(run, outcome, ended)
        else:
            self.acknowledged(run, ended, appended)

    def acknowledged(self, run: Run, ended: Ended, appended: Appended) -> None:
        """The answer of a step that has completed is in the log."""
        self._publisher.count(appended.topic)
        run.place.time.see(appended.timestamp_ms, self._clock.monotonic())
        run.place.answered.settle(run.instance)
        run.counts.ended("completed", ended.duration_ms / 1_000, run.job.traceparent)
        run.counts.events["completed"].inc()

    def failed(self, run: Run, outcome: StepCompleted, ended: Ended) -> Work:
        """The answer is not in the log, or nobody knows."""
        self._publisher.count_error(run.message.topic)
        return self._conclude(run, outcome, ended)


class _Answered(Sent):
    __slots__ = ("_ended", "_outcome", "_run", "_steps", "acknowledgement")

    def __init__(
        self,
        steps: QuickSteps,
        run: Run,
        outcome: StepCompleted,
        ended: Ended,
        acknowledgement: asyncio.Future[Appended],
    ) -> None:
        self._steps = steps
        self._run = run
        self._outcome = outcome
        self._ended = ended
        self.acknowledgement = acknowledgement

    def acknowledged(self) -> Work | None:
        acknowledgement = self.acknowledgement
        if acknowledgement.cancelled() or acknowledgement.exception() is not None:
            return self._steps.failed(self._run, self._outcome, self._ended)
        self._steps.acknowledged(self._run, self._ended, acknowledgement.result())
        return None
