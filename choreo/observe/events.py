"""What tracers and outcome hooks are told. All of it is frozen: watching changes nothing.

A *tracer* is any object with some of these methods, sync or async:

    class Stopwatch:
        async def before_step(self, event: AttemptEvent) -> float:
            return time.perf_counter()

        async def after_step(self, event: AttemptEnded, state: float) -> None:
            print(event.step, event.result, time.perf_counter() - state)

- ``before_step(event)`` and ``before_compensation(event)`` before each attempt of a handler. What they return is the
  ``state`` that the same tracer is handed after the same attempt; attempts never share it.
- ``after_step(event, state)`` and ``after_compensation(event, state)`` after the attempt, however it ended.
- ``on_outcome(event)`` once for each outcome in the log of a saga that the service works for.
- ``traceparent(state)`` right after a ``before_…``: the W3C trace context to hand on, to the handler's context and
  with the answer; ``None`` to hand on the one that came with the trigger. Never in a thread, so it must be quick.

Async methods run in the handler's own task: context variables that they set are seen by the handler. Sync ones run in
a thread, one at a time for each tracer. Both are waited for, but not for long (``Options.observer_timeout_s``). One
that raises or takes longer is logged, counted in ``choreo_observer_errors_total`` and otherwise ignored; while a thread
hangs, its tracer is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import msgspec

from choreo.messages.codec import decode_user_value
from choreo.messages.records import Failure, Undone

T = TypeVar("T")

TracedResult = Literal["ok", "rejected", "crashed", "timed_out", "inbox_unavailable", "cancelled"]
"""How an attempt ended; ``cancelled`` at a stop, when the partition went to another worker, or because the saga has
turned back: then there is a failure of that kind."""


class AttemptEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt of a handler is about to begin.

    Attributes:
        service: its name.
        group: its consumer group.
        generation: of the command to compensate; 0 for a step.
        attempt: counted from 1 within the run.
        run: drawn for this execution; a redelivery is another run.
        idempotency_key: what the handler is given as such.
        started_ms: this machine's wall clock, Unix epoch; for display only.
        due_ms: when the answer is late, broker's clock.
        traceparent: that of the record which asks for the work.
        topic, partition, offset, message_id: of that record.
    """

    service: str
    group: str
    saga: str
    version: int
    saga_id: str
    step: str
    round: int
    generation: int
    attempt: int
    run: str
    idempotency_key: str
    started_ms: int
    due_ms: int
    traceparent: str | None
    topic: str
    partition: int
    offset: int
    message_id: str


class AttemptEnded(AttemptEvent, frozen=True, kw_only=True):
    """An attempt of a handler has ended.

    Attributes:
        result: in a word; the handler has returned only if it is ``ok``.
        duration_s: monotonic.
        failure: why it did not return, or why what it returned cannot be sent.
        effect: what the step returned, as the bytes that are sent; ``None`` if it did not, and for compensations.
        content_type: of ``effect``.
        is_last: no further attempt of this run is planned: what the result says is now said to the saga.
    """

    result: TracedResult
    duration_s: float
    failure: Failure | None
    effect: bytes | None
    content_type: str
    is_last: bool


class OutcomeEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A saga has its outcome.

    Attributes:
        service: whose hook or tracer is told.
        outcome: the saga's one and final one.
        cancelled: it was compensated because somebody wanted it so, not because a step had failed.
        resolved: a compensation was skipped or resolved by an operator, so something was undone by hand or not at all.
        step, failure: the first failure; ``None`` if the saga completed, or was cancelled before any.
        reason: of a cancel.
        compensations: what was undone, in order, and how.
        skipped: the steps of a completed saga whose condition did not hold.
        raw_effects: what the standing steps returned, by step, in ``content_type``; empty if nothing stands.
        traceparent: of the saga.
        topic, partition, offset: of the outcome's record.
    """

    service: str
    group: str
    saga: str
    version: int
    saga_id: str
    outcome: Literal["completed", "compensated"]
    cancelled: bool = False
    resolved: bool = False
    step: str | None = None
    failure: Failure | None = None
    reason: str = ""
    compensations: tuple[Undone, ...] = ()
    skipped: tuple[str, ...] = ()
    raw_effects: Mapping[str, msgspec.Raw] = MappingProxyType({})
    content_type: str
    traceparent: str | None
    topic: str
    partition: int
    offset: int

    @property
    def effects(self) -> dict[str, Any]:
        """What the standing steps returned, as plain builtins, by step."""
        return {step: self.effect(step, Any) for step in self.raw_effects}

    def effect(self, step: str, kind: type[T] | Any) -> T:
        """What a step returned, as a value of the given type.

        Raises:
            KeyError: that step does not stand.
            Undecodable: the effect does not fit the type.
        """
        value: T = decode_user_value(self.raw_effects[step], kind, content_type=self.content_type)
        return value
