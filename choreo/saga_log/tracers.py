"""What happens to whole sagas, told once: as events from which metrics are counted, and to tracers of the user's.

A *saga tracer* is any object with some of these methods, sync or async, each called with a ``SagaEvent``:
``saga_started``, ``compensating`` (for each step), ``saga_completed``, ``saga_compensated``, ``saga_stuck``.

They are told in a task of their own, in the order of the log, so a slow one delays no saga. One that raises or takes
longer than ``TIMEOUT_S`` is logged, counted in ``choreo_observer_errors_total`` and otherwise ignored; where more than
``WAITING_MAX`` events wait, further ones are passed over, and counted likewise. What is told follows what is counted:
once for each event over all instances and restarts, around a crash perhaps twice, or not to the one that died.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from choreo.contract.saga import Saga
from choreo.core import SagaState
from choreo.core.commands import remaining
from choreo.errors import DefinitionError
from choreo.messages.records import Failure
from choreo.observe.metrics import Metrics
from choreo.saga_log.shard import Seen

logger = logging.getLogger("choreo.saga_log")

TIMEOUT_S = 5.0
WAITING_MAX = 10_000

Kind = Literal["saga_started", "compensating", "saga_completed", "saga_compensated", "saga_stuck"]
METHODS: tuple[Kind, ...] = ("saga_started", "compensating", "saga_completed", "saga_compensated", "saga_stuck")


class SagaEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that happened to a saga.

    Attributes:
        kind: the name of the method that is told.
        at_ms: append time of the record that brought it about.
        steps: of the contract, with ``saga_started``.
        step: the one to be undone, or at which the saga is stuck.
        generation: of that step's compensation.
        duration_s: from the saga's begin to its outcome, by append times.
        failure: what the saga goes back for, was compensated for, or is stuck at.
        remaining: with ``saga_stuck``: the steps still to be undone, past the pivot those still to be done.
        traceparent: the saga's W3C trace context.
    """

    kind: Kind
    saga: str
    version: int
    saga_id: str
    round: int
    at_ms: int
    steps: tuple[str, ...] = ()
    step: str = ""
    generation: int = 0
    duration_s: float = 0.0
    failure: Failure | None = None
    remaining: tuple[str, ...] = ()
    traceparent: str | None = None


def duration_s(state: SagaState) -> float:
    """From the saga's begin to its outcome, by append times; none where it was cancelled before it began."""
    return max(0, state.finished_ms - state.began_ms) / 1_000


def events_of(contract: Saga | None, seen: Seen) -> Iterator[SagaEvent]:
    """What a record brought about for the saga. Without its contract, ``steps`` and ``remaining`` are empty."""
    entry, before, (state, owed, _) = seen
    if not owed and state.finished_ms == before.finished_ms and state.started == before.started:
        return
    failed = state.first_failure()
    about = SagaEvent(
        kind="saga_started",
        saga=state.saga,
        version=state.version,
        saga_id=state.saga_id,
        round=state.round,
        at_ms=entry.at_ms,
        traceparent=None if state.traceparent is None else state.traceparent.decode("ascii", "replace"),
    )
    replace = msgspec.structs.replace
    if state.started and not before.started:
        yield replace(about, steps=() if contract is None else tuple(step.name for step in contract.steps))
    for one in owed:
        if one.kind == "compensate":
            failure = failed[1] if failed else None
            yield replace(about, kind="compensating", step=one.step, generation=one.generation, failure=failure)
        elif one.kind == "stuck":
            instance = state.instance((one.step, one.round))
            yield replace(
                about,
                kind="saga_stuck",
                step=one.step,
                generation=one.generation,
                failure=instance.failure if instance.exhausted else instance.compensation_failure,
                remaining=() if contract is None else remaining(contract, state),
            )
    if state.finished_ms and not before.finished_ms and state.outcome is not None:
        yield replace(
            about,
            kind="saga_completed" if state.outcome.kind == "completed" else "saga_compensated",
            duration_s=duration_s(state),
            failure=state.outcome.failure,
        )


class SagaTracers:
    """Tells tracers, in a task that ``run`` is."""

    def __init__(self, tracers: Sequence[object], metrics: Metrics) -> None:
        """Make ready to tell.

        Raises:
            DefinitionError: one has no method of a saga tracer.
        """
        problems = tuple(
            f"tracer {type(tracer).__qualname__!r} has none of the methods {', '.join(METHODS)}"
            for tracer in tracers
            if not any(callable(getattr(tracer, name, None)) for name in METHODS)
        )
        if problems:
            raise DefinitionError("the saga-log's tracers", problems)
        self._tracers = tuple(tracers)
        self._errors = metrics.observer_errors.labels("tracer")
        self._waiting: asyncio.Queue[SagaEvent] = asyncio.Queue(WAITING_MAX)

    @property
    def wanted(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self._tracers)

    def tell(self, events: Iterable[SagaEvent]) -> None:
        """Have these told, soon."""
        for event in events:
            try:
                self._waiting.put_nowait(event)
            except asyncio.QueueFull:
                self._errors.inc()
                logger.warning("tracers are too slow: %s of saga %s is not told", event.kind, event.saga_id)

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            event = await self._waiting.get()
            for tracer in self._tracers:
                await self._tell(tracer, event)
            self._waiting.task_done()

    async def drain(self) -> None:
        """Wait until all has been told, but not for long."""
        try:
            await asyncio.wait_for(self._waiting.join(), TIMEOUT_S)
        except TimeoutError:
            logger.warning("tracers are too slow: %s events are not told", self._waiting.qsize())

    async def _tell(self, tracer: object, event: SagaEvent) -> None:
        method = getattr(tracer, event.kind, None)
        if not callable(method):
            return
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if inspect.iscoroutinefunction(method):
                    await method(event)
                else:
                    await asyncio.to_thread(method, event)
        except Exception:
            self._errors.inc()
            logger.exception(
                "tracer %s failed at %s, which is ignored",
                type(tracer).__qualname__,
                event.kind,
                extra={"saga": event.saga, "saga_id": event.saga_id},
            )
