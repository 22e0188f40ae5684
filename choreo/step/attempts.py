"""Running a handler: attempts within a timeout each, backoff between them, and all of it within what is due.

A handler that is cancelled at its timeout may have done its work or not: whatever ended so is *in doubt*. An async
handler ends when it is cancelled. A sync one runs in a thread, and a thread cannot be ended: it *lingers*. Its lane
must not go on before it is gone (rule 3: finished means that the handler has ended), or a ``Compensate`` could undo
an effect that is only about to happen. So a further attempt waits for the thread; but where none is left, or the
answer is due, the failure is published at once and the lane stays busy, with the offset unfinished, until it is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from random import Random
from typing import Any, NamedTuple

from prometheus_client import Counter

from choreo.clock import Clock
from choreo.contract.policy import Retries
from choreo.observe.metrics import AttemptResult
from choreo.step.call import AttemptTimeout, Lingering, call_async, call_in_thread
from choreo.step.context import BaseContext
from choreo.step.handler import Handler
from choreo.step.job import Job
from choreo.step.lanes import Lane
from choreo.step.verdict import InvalidInput, Reject


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
        handler: Handler,
        context: Callable[[Any, int, float, Clock], BaseContext[Any]],
        job: Job,
        lane: Lane,
        *,
        retries: Retries,
        timeout_s: float,
        counters: Mapping[AttemptResult, Counter],
        definite: tuple[type[BaseException], ...] = (Reject, InvalidInput),
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
        """
        clock, due_at = self._clock, job.due_at
        began = clock.monotonic()
        attempt, in_doubt = 0, False
        value: Any = None
        error: BaseException | None = AttemptTimeout("deadline", 0)
        lingering: Lingering | None = None
        while True:
            if not lane.slots.try_take():
                await lane.rest(lane.slots.take())
            try:
                now = clock.monotonic()
                if now >= due_at:
                    break
                attempt += 1
                limit_s = min(timeout_s, due_at - now)
                code = "timeout" if timeout_s <= due_at - now else "deadline"
                made = context(job, attempt, now + limit_s, clock)
                if handler.is_async:
                    value, error = await call_async(handler, made, limit_s, code)
                else:
                    value, error, lingering = await call_in_thread(handler, made, self._executor, limit_s, code)
            finally:
                lane.slots.give_back()
            counters[_result_of(error, definite)].inc()
            if error is None or isinstance(error, definite) or attempt > retries.limit:
                break
            if not handler.retried.includes(error):
                break
            wait_s = self._backoff_s(retries, attempt)
            if clock.monotonic() + wait_s >= due_at:
                break  # the failure is certain now, so it is said now and not when it is due
            in_doubt = True
            if lingering is not None:
                await asyncio.wait((lingering,), timeout=max(0.0, due_at - clock.monotonic()))
                if not lingering.done():
                    break
                lingering = None
            await lane.rest(clock.sleep(wait_s))
        duration_ms = round((clock.monotonic() - began) * 1_000)
        return Ended(value, error, attempt, duration_ms, in_doubt, lingering)

    def _backoff_s(self, retries: Retries, retry: int) -> float:
        longest_s = retries.backoff_ms(retry) / 1_000
        return self._random.uniform(0, longest_s) if retries.jitter else longest_s


def _result_of(error: BaseException | None, definite: tuple[type[BaseException], ...]) -> AttemptResult:
    if error is None:
        return "ok"
    if isinstance(error, AttemptTimeout):
        return "timed_out"
    return "rejected" if isinstance(error, definite) else "crashed"
