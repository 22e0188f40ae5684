"""Outcome hooks: functions that run in any service when a saga has its outcome, whatever that is.

A hook is a reader of the outcome's record in the saga's topic. It has a lane of its own for each saga, beside those of
the steps, and the record's offset is finished only when the hook has ended: so it runs at least once, through crashes
and rebalances. An inbox remembers that it has run; then only one that was killed before runs again. It runs for every
version of the saga, and in a group that is new for all outcomes still in the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from typing import Any

from choreo.broker.port import Message
from choreo.errors import Undecodable
from choreo.messages.codec import content_type_of, decode
from choreo.messages.records import SagaCompensated, SagaCompleted
from choreo.observe.events import OutcomeEvent
from choreo.observe.metrics import Metrics
from choreo.step.answered import Instance
from choreo.step.call import Lingering, call
from choreo.step.hook import Hook
from choreo.step.lanes import Lane
from choreo.step.place import Place
from choreo.step.recorder import Recorder
from choreo.step.route import Delivery
from choreo.step.tracers import Tracers

logger = logging.getLogger(__name__)

LANE = "outcome/"
"""Begins the names of hooks' lanes; the slash keeps them apart from those of steps."""

TRACERS_LANE = LANE
"""The lane in which tracers are told. No hook is called that, for no name is empty."""

_BY_HAND = ("skipped", "resolved")


class OutcomeHooks:
    """The hooks of one service, and its tracers as far as they want to be told of outcomes."""

    def __init__(
        self,
        hooks: Mapping[str, Mapping[str, Hook]],
        tracers: Tracers,
        traced: Iterable[str],
        executor: Executor,
        metrics: Metrics,
        inbox: Recorder | None = None,
    ) -> None:
        """Equip them.

        Args:
            hooks: by saga and name.
            traced: sagas whose outcomes tracers are told.
            executor: where sync hooks run.
            inbox: remembers which have run.
        """
        self._inbox = inbox
        self._hooks = {saga: {LANE + hook.name: hook for hook in named.values()} for saga, named in hooks.items()}
        self._tracers = tracers
        self._executor = executor
        self._errors = metrics.observer_errors.labels("hook")
        found = {saga: tuple(lanes) for saga, lanes in self._hooks.items()}
        if tracers.want_outcomes:
            found = {saga: (*found.get(saga, ()), TRACERS_LANE) for saga in {*found, *traced}}
        self.lanes_by_saga: Mapping[str, tuple[str, ...]] = found
        self.lanes = frozenset(lane for lanes in found.values() for lane in lanes)

    async def perform(self, delivery: Delivery, lane: Lane, place: Place) -> None:
        """Run what the lane is of, if the record is an outcome that it has not run for."""
        message, name = delivery
        try:
            record = _read(message, place)
        except Undecodable as error:
            # Steps answer what they cannot read. From a hook nobody waits for an answer.
            self._errors.inc()
            logger.error("an outcome cannot be read, so no hook runs for it: %s", error)  # noqa: TRY400  # no bug
            return
        instance = Instance(message.key, record.id, name, 0)
        if place.answered.get(instance) is not None:
            return
        kept = f"{self._tracers.service}/{name}/{record.saga}/{record.id}" if name != TRACERS_LANE else ""
        if kept and self._inbox is not None and await self._inbox.is_told(kept, lane):
            place.answered.settle(instance)
            return
        event = _event(record, message, self._tracers)
        if not lane.slots.try_take():
            await lane.rest(lane.slots.take())
        try:
            lingering = await self._tell(name, event)
        finally:
            lane.slots.give_back()
        if lingering is not None:
            await asyncio.wait((lingering,))
        if kept and self._inbox is not None:
            await self._inbox.tell(kept)
        place.answered.settle(instance)

    async def _tell(self, name: str, event: OutcomeEvent) -> Lingering | None:
        if name == TRACERS_LANE:
            await self._tracers.on_outcome(event)
            return None
        hook = self._hooks[event.saga][name]
        _, error, lingering = await call(hook, event, self._executor, hook.timeout_s)
        if error is not None:
            self._errors.inc()
            logger.error("outcome hook %r failed, which is ignored", hook.name, exc_info=error)
        if lingering is not None:
            logger.warning("outcome hook %r goes on in its thread past its time; its lane waits for it", hook.name)
        return lingering


def _read(message: Message, place: Place) -> SagaCompleted | SagaCompensated:
    record = decode(message.key, message.value, message.headers)
    if not isinstance(record, SagaCompleted | SagaCompensated) or record.saga != place.saga:
        raise Undecodable(f"a {type(record).__name__} of saga {record.saga!r} in its place")
    return record


def _event(record: SagaCompleted | SagaCompensated, message: Message, tracers: Tracers) -> OutcomeEvent:
    traceparent = message.header("traceparent")
    about: dict[str, Any]
    if isinstance(record, SagaCompensated):
        about = {
            "outcome": "compensated",
            "cancelled": record.cause == "cancelled",
            "resolved": any(undone.how in _BY_HAND for undone in record.compensations),
            "step": record.step,
            "failure": record.failure,
            "reason": record.reason,
            "compensations": record.compensations,
        }
    else:
        about = {"outcome": "completed", "raw_effects": record.effects, "skipped": record.skipped}
    return OutcomeEvent(
        service=tracers.service,
        group=tracers.group,
        saga=record.saga,
        version=record.version,
        saga_id=record.saga_id,
        content_type=content_type_of(message.headers),
        traceparent=None if traceparent is None else traceparent.decode("ascii", "replace"),
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        **about,
    )
