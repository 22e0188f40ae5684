"""The short way: a handler that ends without a wait, and its answer in the producer's batch, in plain calls.

That is what most records of a busy service come to, whether they ask for a step or for its undoing, so it is what a
service's throughput is made of; here it reads in one sitting. Whatever is not that simple (a handler that waits, or
may be called again; an answer that asks for more, cannot be written, or is not acknowledged) goes on the long way, from
where the short one has got to. It is the same work with the same outcome. Nobody else may have a part in it: no inbox,
no tracer, no cancelling.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, Protocol, TypeVar

import msgspec

from choreo.broker.port import Appended, Message
from choreo.clock import Clock
from choreo.errors import BrokerError, Unencodable
from choreo.observe.metrics import AttemptResult
from choreo.observe.tally import Tally
from choreo.step.answered import Instance
from choreo.step.attempts import Ended
from choreo.step.call import Begun, begin_async, limit_of
from choreo.step.context import BaseContext
from choreo.step.counts import StepCounts
from choreo.step.handler import Handler
from choreo.step.job import CompensationJob, StepJob
from choreo.step.lanes import Lane, Sent, Work
from choreo.step.place import Place
from choreo.step.publish import Publisher
from choreo.step.reply import Reply
from choreo.step.service import Hosted

J = TypeVar("J", bound=StepJob | CompensationJob)
R = TypeVar("R", bound=Reply)


class Run(msgspec.Struct, Generic[J], frozen=True):
    """A run: of a step, or of its compensation.

    Attributes:
        began: on the monotonic clock, in seconds.
    """

    job: J
    hosted: Hosted
    counts: StepCounts
    instance: Instance
    message: Message
    place: Place
    lane: Lane
    began: float


class LongWay(Protocol[J, R]):
    """What steps and compensations do each in its own manner, and what has to be waited for.

    Attributes:
        definite: exceptions after which the handler is not called again.
    """

    definite: tuple[type[BaseException], ...]

    def answer(self, job: J, ended: Ended) -> R | None:
        """What is answered; ``None`` if that takes more than a record."""
        ...

    def go_on(self, run: Run[J], begun: Begun | None = None) -> Work:
        """Run the handler, whatever it takes. One that has begun has a slot of its lane."""
        ...

    def conclude(self, run: Run[J], answer: R, ended: Ended) -> Work:
        """Send the answer, whatever it takes, and do what there is to do then."""
        ...

    def concluded(self, run: Run[J], answer: R, ended: Ended) -> None:
        """The answer is in the log."""
        ...


class Quick(Generic[J, R]):
    """The short way of one service's steps, or of its compensations."""

    def __init__(
        self,
        publisher: Publisher,
        context: Callable[[J, int, float, Clock], BaseContext[J]],
        otherwise: LongWay[J, R],
        *,
        clock: Clock,
        guard: Callable[[Work, Run[J]], Work],
    ) -> None:
        """Open it.

        Args:
            context: makes the context of an attempt: the class of it.
            otherwise: the long way.
            guard: around work that nobody else guards against faults of ours.
        """
        self._publisher = publisher
        self._context = context
        self._otherwise = otherwise
        self._clock = clock
        self._guard = guard

    def begin(self, run: Run[J], handler: Handler, attempts: Mapping[AttemptResult, Tally]) -> Sent | Work:
        """Run an async handler and answer, as far as that needs no wait; what is left. In a task."""
        otherwise, job, now = self._otherwise, run.job, run.began
        if now >= job.due_at or not run.lane.slots.try_take():
            return otherwise.go_on(run)
        limit_s, code = limit_of(run.hosted.step.timeout_ms / 1_000, job.due_at - now)
        value, begun = begin_async(handler, self._context(job, 1, now + limit_s, self._clock), limit_s, code)
        if begun is not None and not isinstance(begun.error, otherwise.definite):
            return otherwise.go_on(run, begun)
        error = None if begun is None else begun.error
        duration_ms = round((self._clock.monotonic() - now) * 1_000)
        ended = Ended(value, error, 1, duration_ms, in_doubt=False, lingering=None)
        answer = otherwise.answer(job, ended)
        if answer is None:
            return otherwise.go_on(run, begun or Begun.ended(value))
        run.lane.slots.give_back()
        attempts["ok" if error is None else "rejected"].inc()
        try:
            sent = self._publisher.begin(
                run.message.topic, answer, content_type=job.content_type, traceparent=job.traceparent
            )
        except (Unencodable, BrokerError):
            return otherwise.conclude(run, answer, ended)
        if not isinstance(sent, asyncio.Future):
            return self._see_through(run, answer, ended, sent)
        return _Answered(self, run, answer, ended, sent)

    async def _see_through(self, run: Run[J], answer: R, ended: Ended, sent: Awaitable[Appended]) -> None:
        try:
            appended = await sent
        except BrokerError:
            await self.failed(run, answer, ended)
        else:
            self.acknowledged(run, answer, ended, appended)

    def acknowledged(self, run: Run[J], answer: R, ended: Ended, appended: Appended) -> None:
        """The answer is in the log."""
        self._publisher.count(appended.topic)
        run.place.time.see(appended.timestamp_ms, self._clock.monotonic())
        run.place.answered.settle(run.instance)
        self._otherwise.concluded(run, answer, ended)

    def failed(self, run: Run[J], answer: R, ended: Ended) -> Work:
        """The answer is not in the log, or nobody knows."""
        self._publisher.count_error(run.message.topic)
        return self._guard(self._otherwise.conclude(run, answer, ended), run)


class _Answered(Sent, Generic[J, R]):
    __slots__ = ("_answer", "_ended", "_run", "_way", "acknowledgement")

    def __init__(
        self, way: Quick[J, R], run: Run[J], answer: R, ended: Ended, acknowledgement: asyncio.Future[Appended]
    ) -> None:
        self._way = way
        self._run = run
        self._answer = answer
        self._ended = ended
        self.acknowledgement = acknowledgement

    def acknowledged(self) -> Work | None:
        acknowledgement = self.acknowledgement
        if acknowledgement.cancelled() or acknowledgement.exception() is not None:
            return self._way.failed(self._run, self._answer, self._ended)
        self._way.acknowledged(self._run, self._answer, self._ended, acknowledgement.result())
        return None
