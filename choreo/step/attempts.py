"""Running a handler: attempts within a timeout each, backoff between them, and all of it within what is due.

A handler that is cancelled at its timeout may have done its work or not: whatever ended so is *in doubt*. An async
handler ends when it is cancelled. A sync one runs in a thread, and a thread cannot be ended: it *lingers*. Its lane
must not go on before it is gone (rule 3: finished means that the handler has ended), or a ``Compensate`` could undo
an effect that is only about to happen. So a further attempt waits for the thread; but where none is left, or the
answer is due, the failure is published at once and the lane stays busy, with the offset unfinished, until it is gone.

An attempt that ends with ``InboxUnavailable`` has done nothing that stays, or nobody knows yet; it is made again, with
a backoff of its own, as long as the answer is not due, and does not count as one of those that the contract allows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from random import Random
from typing import Any, NamedTuple, Protocol

from choreo.clock import Clock
from choreo.contract.policy import Retries
from choreo.errors import InboxUnavailable
from choreo.observe.metrics import AttemptResult
from choreo.observe.tally import Tally
from choreo.step.call import AttemptTimeout, Begun, Callee, Lingering, call_async, call_in_thread, limit_of
from choreo.step.cancelling import Cancellation, StepCancelled
from choreo.step.context import BaseContext
from choreo.step.job import Job
from choreo.step.lanes import Lane
from choreo.step.recorder import INBOX_BACKOFF, Recorder
from choreo.step.retried import Retried
from choreo.step.tracers import Watch
from choreo.step.verdict import InvalidInput, Reject

_NO_TIME = AttemptTimeout("deadline", 0)  # never raised, so that one is enough


class Run(Callee[BaseContext[Any]], Protocol):
    """A handler, or what stands in its place for a run."""

    @property
    def retried(self) -> Retried:
        """Which of its exceptions are."""
        ...


class Ended(NamedTuple):
    """How a run has ended.

    Attributes:
        value: what the handler returned in its last attempt; meaningless if there is an error.
        error: what its last attempt raised; ``None`` if it returned.
        attempts: how many there were; 0 if the answer was due before the first.
        duration_ms: of all attempts and backoffs, monotonic.
        in_doubt: an attempt before the last one may have left an effect.
        lingering: a thread that is still at work; wait for it before the lane goes on.
    """

    value: Any
    error: BaseException | None
    attempts: int
    duration_ms: int
    in_doubt: bool
    lingering: Lingering | None


class Attempts:
    """Runs handlers by their policies."""

    def __init__(self, clock: Clock, random: Random, executor: Executor) -> None:
        self._clock = clock
        self._random = random
        self._executor = executor

    async def run(
        self,
        handler: Run,
        context: Callable[[Any, int, float, Clock], BaseContext[Any]],
        job: Job,
        lane: Lane,
        *,
        retries: Retries,
        timeout_s: float,
        counters: Mapping[AttemptResult, Tally],
        definite: tuple[type[BaseException], ...] = (Reject, InvalidInput),
        watch: Watch[Any] | None = None,
        inbox: Recorder | None = None,
        cancellation: Cancellation | None = None,
        begun: Begun | None = None,
        began: float | None = None,
    ) -> Ended:
        """Call the handler until it returns, gives a definite answer, or has no attempt or time left.

        Args:
            handler: what to call.
            context: makes the context of an attempt: the class of it.
            job: what the context is about.
            lane: whose slot the handler takes.
            retries: attempts beyond the first.
            timeout_s: bound of one attempt.
            counters: of attempts, by how they ended.
            definite: exceptions that are never retried.
            watch: is told of each attempt.
            inbox: in whose transactions the attempts are made, if they are.
            cancellation: ends the run before its time.
            begun: the first attempt, if it has begun and has its places.
            began: when it did, on the monotonic clock.
        """
        clock, due_at = self._clock, job.due_at
        if began is None:
            began = clock.monotonic()
        attempt, uncounted, in_doubt = 0, 0, False
        value: Any = None
        error: BaseException | None = _NO_TIME
        lingering: Lingering | None = None
        while True:
            tried = await self._try(
                handler, context, job, attempt + 1, lane, timeout_s, watch, inbox, cancellation, begun
            )
            if tried is None:
                break
            attempt, begun = attempt + 1, None
            value, error, lingering = tried
            error = _as_cancelled(error, cancellation, definite)
            result = _result_of(error, definite)
            counters[result].inc()
            wait_s, told = None, error
            if isinstance(error, InboxUnavailable):
                attempt, uncounted = attempt - 1, uncounted + 1
                wait_s = self._wait_for_inbox_s(inbox, error, uncounted, due_at)
                error = _NO_TIME  # what it comes to if there is no time for another
            elif error is not None and not isinstance(error, (*definite, StepCancelled)) and attempt <= retries.limit:
                wait_s = self._wait_s(handler, error, retries, attempt, due_at)
            if watch is not None:
                await watch.after(value, told, result, is_last=wait_s is None)
            if wait_s is None:
                break
            in_doubt = True
            rest = self._rest(lane, lingering, wait_s, due_at)
            if not await (rest if cancellation is None else cancellation.cut(rest)):
                break
            lingering = None
        error = _as_cancelled(error, cancellation, definite)
        duration_ms = round((clock.monotonic() - began) * 1_000)
        return Ended(value, error, attempt, duration_ms, in_doubt, lingering)

    async def _try(
        self,
        handler: Run,
        context: Callable[[Any, int, float, Clock], BaseContext[Any]],
        job: Job,
        attempt: int,
        lane: Lane,
        timeout_s: float,
        watch: Watch[Any] | None,
        inbox: Recorder | None,
        cancellation: Cancellation | None,
        begun: Begun | None,
    ) -> tuple[Any, BaseException | None, Lingering | None] | None:
        """An attempt, when there is a place for it; ``None`` if it is not to be made any more."""
        if begun is None:
            if cancellation is None:
                await _take_places(lane, inbox)
            elif not await cancellation.cut(_take_places(lane, inbox)):
                return None
        try:
            if begun is not None:
                value, error = await begun.end()
                return value, error, None
            if self._clock.monotonic() >= job.due_at or _is_asked(cancellation):
                return None
            return await self._attempt(handler, context, job, attempt, timeout_s, watch, cancellation)
        finally:
            _give_back_places(lane, inbox)

    async def _rest(self, lane: Lane, lingering: Lingering | None, wait_s: float, due_at: float) -> bool:
        """Wait until the next attempt may begin. False if the answer is due before that."""
        if lingering is not None:
            await asyncio.wait((lingering,), timeout=max(0.0, due_at - self._clock.monotonic()))
            if not lingering.done():
                return False
        await lane.rest(self._clock.sleep(wait_s))
        return True

    async def _attempt(
        self,
        handler: Run,
        context: Callable[[Any, int, float, Clock], BaseContext[Any]],
        job: Job,
        attempt: int,
        timeout_s: float,
        watch: Watch[Any] | None,
        cancellation: Cancellation | None,
    ) -> tuple[Any, BaseException | None, Lingering | None]:
        try:
            if watch is not None:
                job = await watch.before(attempt)
            now = self._clock.monotonic()
            limit_s, code = limit_of(timeout_s, max(0.0, job.due_at - now))
            made = context(job, attempt, now + limit_s, self._clock)
            if cancellation is not None:
                return await self._call_until(cancellation, handler, made, limit_s, code)
            if handler.is_async:
                value, error = await call_async(handler, made, limit_s, code)
                return value, error, None
            return await call_in_thread(handler, made, self._executor, limit_s, code)
        except asyncio.CancelledError:
            if watch is not None:
                await watch.after(None, None, "cancelled", is_last=True)
            raise

    async def _call_until(
        self, cancellation: Cancellation, handler: Run, context: BaseContext[Any], limit_s: float, code: str
    ) -> tuple[Any, BaseException | None, Lingering | None]:
        """A call that also ends when the run is cancelled."""
        cancellation.tell(context)
        if not handler.is_async:
            return await call_in_thread(handler, context, self._executor, limit_s, code, cancellation.asked)
        value, error = await cancellation.cut(call_async(handler, context, limit_s, code)) or (
            None,
            cancellation.reason,
        )
        return value, error, None

    def _wait_for_inbox_s(self, inbox: Recorder | None, error: InboxUnavailable, tries: int, due_at: float) -> float:
        if inbox is not None:
            inbox.count_error(error, tries)
        wait_s = self._random.uniform(0, INBOX_BACKOFF.backoff_ms(tries)) / 1_000
        return min(wait_s, max(0.0, due_at - self._clock.monotonic()))

    def _wait_s(self, handler: Run, error: BaseException, retries: Retries, retry: int, due_at: float) -> float | None:
        """The wait before a retry; ``None`` if there is to be none."""
        if not handler.retried.includes(error):
            return None
        wait_s = retries.backoff_ms(retry) / 1_000
        if retries.jitter:
            wait_s = self._random.uniform(0, wait_s)
        # If it could not begin before the due, the failure is certain now, so it is said now and not when it is due.
        return None if self._clock.monotonic() + wait_s >= due_at else wait_s


def _is_asked(cancellation: Cancellation | None) -> bool:
    return cancellation is not None and cancellation.is_asked


def _as_cancelled(
    error: BaseException | None, cancellation: Cancellation | None, definite: tuple[type[BaseException], ...]
) -> BaseException | None:
    """Whatever a run ends with when it is cancelled, it is that, unless it has ended by itself or by decision."""
    if error is None or cancellation is None or isinstance(error, definite):
        return error
    return cancellation.reason or error


async def _take_places(lane: Lane, inbox: Recorder | None) -> bool:
    """A place for a running handler, and one for its transaction. True when they are taken."""
    if not lane.slots.try_take():
        await lane.rest(lane.slots.take())
    if inbox is not None and not inbox.slots.try_take():
        try:
            await lane.rest(inbox.slots.take())
        except BaseException:
            lane.slots.give_back()
            raise
    return True


def _give_back_places(lane: Lane, inbox: Recorder | None) -> None:
    lane.slots.give_back()
    if inbox is not None:
        inbox.slots.give_back()


def _result_of(error: BaseException | None, definite: tuple[type[BaseException], ...]) -> AttemptResult:
    if error is None:
        return "ok"
    if isinstance(error, AttemptTimeout):
        return "timed_out"
    if isinstance(error, InboxUnavailable):
        return "inbox_unavailable"
    if isinstance(error, StepCancelled):
        return "cancelled"
    return "rejected" if isinstance(error, definite) else "crashed"
