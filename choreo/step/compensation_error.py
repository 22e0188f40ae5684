"""The last word of a service before its compensation is given up: the handler of compensation errors.

    @payment.on_compensation_error(ORDER)
    async def gateway_down(event: CompensationError) -> RetryLater | Resolved | Stuck: ...

It is called when all attempts of a compensation have failed, and answers ``RetryLater``, ``Resolved`` or ``Stuck``.
Without a handler, or if it fails itself, the saga is stuck: visible, with what remains to be undone, and an operator's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

import msgspec

from choreo.contract.policy import Duration, duration_ms
from choreo.messages.records import Failure
from choreo.observe.metrics import Metrics
from choreo.step.call import Lingering, call
from choreo.step.context import CompensationContext
from choreo.step.hook import Callback
from choreo.step.lanes import Lane

logger = logging.getLogger(__name__)


class RetryLater(msgspec.Struct, frozen=True):
    """Wait, then compensate with a new set of attempts.

    The service waits, so a restart begins again with the attempts. If nothing is left of the compensation's deadline
    by then, the saga is stuck at once.

    Attributes:
        delay: "30s", a ``timedelta`` or seconds.

    Raises:
        ValueError: the delay is no duration above zero.
    """

    delay: Duration

    def __post_init__(self) -> None:
        duration_ms(self.delay)

    @property
    def delay_s(self) -> float:
        return duration_ms(self.delay) / 1_000


class Resolved(msgspec.Struct, frozen=True):
    """The handler has undone the step in another way: the saga goes on back."""


class Stuck(msgspec.Struct, frozen=True):
    """An operator has to look at it. ``None`` says the same."""


CompensationErrorAnswer = RetryLater | Resolved | Stuck | None


@dataclass(frozen=True, slots=True)
class CompensationError:
    """A compensation has failed in all its attempts.

    Attributes:
        generation: of the command; one more each time that it had to be given again.
        error: what the last attempt raised; ``None`` if it returned something that is no answer.
        failure: the same as the record would say it.
        attempts: so far, since the command was delivered.
        asked: how often the handler was asked about this command, this time included.
        remaining: further steps with a compensation that are still to be undone, deepest first, as the saga-log knew
            them when it gave the command. They are undone after this one, and not by this handler.
        context: what the compensation itself is told.
    """

    saga: str
    version: int
    saga_id: str
    step: str
    round: int
    generation: int
    error: BaseException | None
    failure: Failure
    attempts: int
    asked: int
    remaining: tuple[str, ...]
    context: CompensationContext


class ErrorHandlers:
    """The handlers of one service."""

    def __init__(self, handlers: Mapping[str, Callback], executor: Executor, metrics: Metrics) -> None:
        """Equip them.

        Args:
            handlers: by saga.
            executor: where sync ones run.
        """
        self._handlers = handlers
        self._executor = executor
        self._errors = metrics.observer_errors.labels("compensation_error_handler")

    def has(self, saga: str) -> bool:
        return saga in self._handlers

    async def ask(
        self, event: CompensationError, lane: Lane, timeout_s: float
    ) -> tuple[CompensationErrorAnswer, Lingering | None]:
        """What the saga's handler answers, and its thread if that goes on; ``Stuck`` if it fails itself."""
        if not lane.slots.try_take():
            await lane.rest(lane.slots.take())
        try:
            answer, error, lingering = await call(self._handlers[event.saga], event, self._executor, timeout_s)
        finally:
            lane.slots.give_back()
        if error is None and not isinstance(answer, RetryLater | Resolved | Stuck | None):
            error = TypeError(f"it returns RetryLater, Resolved, Stuck or None, not {type(answer).__qualname__}")
        if error is not None:
            self._errors.inc()
            logger.error("the handler of compensation errors failed: the saga is stuck", exc_info=error)
            return Stuck(), lingering
        logger.warning("compensation of step %r failed; its service answers %r", event.step, answer or Stuck())
        return answer, lingering
