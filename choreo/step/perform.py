"""What is done for one record and one step, from its bytes to the acknowledged answer.

``Performer.begin`` says what a record asks for, and does what of that needs no wait. What it leaves ends when nothing
is left to do, so that the record's offset may be finished; it raises only when it is cancelled, or when the answer can
never be written. All that handlers, users' values and foreign bytes can do wrong ends in an answer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from random import Random
from types import CoroutineType
from typing import Any

from choreo.broker.port import Message
from choreo.clock import Clock
from choreo.errors import Undecodable
from choreo.messages.codec import decode_whole
from choreo.messages.records import AnyRecord, Compensate
from choreo.observe.metrics import Metrics
from choreo.step.attempts import Attempts
from choreo.step.compensate import Compensator
from choreo.step.compensation_error import ErrorHandlers
from choreo.step.counts import StepCounts
from choreo.step.dead_letter import DeadLetters
from choreo.step.lanes import Lane, Sent, Work
from choreo.step.outcome import OutcomeHooks
from choreo.step.place import Place
from choreo.step.publish import Publisher
from choreo.step.quick import Run
from choreo.step.recorder import Recorder
from choreo.step.refusal import Refusals
from choreo.step.reply import Replies
from choreo.step.route import Delivery
from choreo.step.running import Runner
from choreo.step.service import Hosted
from choreo.step.tracers import Tracers
from choreo.step.trigger import TRIGGERS, is_trigger
from choreo.step.unheld import Unheld

logger = logging.getLogger(__name__)

HostedSteps = Mapping[tuple[str, int, str], Hosted]


class Performer:
    """Does the work of one service."""

    def __init__(
        self,
        hosted: HostedSteps,
        attempts: Attempts,
        publisher: Publisher,
        dead_letters: DeadLetters,
        *,
        clock: Clock,
        random: Random,
        metrics: Metrics,
        tracers: Tracers,
        outcome_hooks: OutcomeHooks,
        error_handlers: ErrorHandlers,
        unheld: Unheld,
        park_limit_s: float,
        inbox: Recorder | None = None,
    ) -> None:
        """Equip a performer.

        Args:
            hosted: the steps that the service runs, by saga, version and name.
            tracers: are told of every attempt.
            outcome_hooks: run on outcomes.
            error_handlers: are asked when a compensation has failed.
            unheld: judges records of versions that are not held.
            park_limit_s: how long, from its append, a record of an unknown version is kept unfinished.
            inbox: where outcomes are recorded, if they are.
        """
        self._hosted = hosted
        self._versions = frozenset((saga, version) for saga, version, _ in hosted)
        self._random = random
        self._outcome_hooks = outcome_hooks
        self._hook_lanes = outcome_hooks.lanes
        self._refusals = Refusals(
            self._versions,
            publisher,
            dead_letters,
            clock=clock,
            metrics=metrics,
            unheld=unheld,
            park_limit_s=park_limit_s,
            draw_run=self._draw_run,
            inbox=inbox,
        )
        replies = Replies(publisher, clock)
        counts = {(saga, step): StepCounts(metrics, saga, step) for saga, _, step in hosted}
        self._runner = Runner(
            attempts,
            publisher,
            replies,
            tracers,
            counts,
            clock=clock,
            draw_run=self._draw_run,
            guard=self._guard,
            inbox=inbox,
        )
        self._compensator = Compensator(
            attempts,
            publisher,
            replies,
            tracers,
            error_handlers,
            counts,
            clock=clock,
            random=random,
            draw_run=self._draw_run,
            guard=self._guard,
            inbox=inbox,
        )

    def begin(self, delivery: Delivery, lane: Lane, place: Place) -> Sent | Work | None:
        """Do what the record asks of the step, as far as that needs no wait; what is left. In a task."""
        try:
            begun = self._begin(delivery, lane, place)
        except Exception as error:  # noqa: BLE001  # as all faults of ours
            begun = _failing(error)
        return self._guarded(begun, delivery, place) if isinstance(begun, CoroutineType) else begun

    def _guard(self, work: Work, run: Run[Any]) -> Work:
        return self._guarded(work, Delivery(run.message, run.job.step.name), run.place)

    async def _guarded(self, work: Work, delivery: Delivery, place: Place) -> None:
        try:
            await work
        except Exception as error:  # a fault of ours: it must neither stop the service nor lose the saga
            logger.exception("internal error at step %r in %s", delivery.step, delivery.message.tp)
            await self._refusals.internal_error(delivery, place, error)

    def _begin(self, delivery: Delivery, lane: Lane, place: Place) -> Sent | Work | None:
        message, step = delivery
        if step in self._hook_lanes:
            return self._outcome_hooks.perform(delivery, lane, place)
        try:
            record, content_type, traceparent = _read(message, place)
        except Undecodable as error:
            return self._refusals.undecodable(delivery, place, str(error))
        hosted = self._hosted.get((record.saga, record.version, step))
        if hosted is None:
            if (record.saga, record.version) not in self._versions:
                return self._refusals.unknown_version(record, message, lane, place)
        elif isinstance(record, Compensate):
            if record.step == step:
                return self._compensator.begin(record, hosted, message, lane, place, content_type, traceparent)
        elif isinstance(record, TRIGGERS) and is_trigger(record, hosted.saga, step):
            return self._runner.begin(record, hosted, message, lane, place, content_type, traceparent)
        return None

    def _draw_run(self) -> str:
        return f"{self._random.getrandbits(64):016x}"


async def _failing(error: Exception) -> None:
    raise error


def _read(message: Message, place: Place) -> tuple[AnyRecord, str, bytes | None]:
    """The record; from here on it alone is believed, not its headers. Raises ``Undecodable``."""
    record, content_type, traceparent = decode_whole(message.key, message.value, message.headers)
    if record.saga != place.saga:
        raise Undecodable(f"a record of saga {record.saga!r} in the topic of saga {place.saga!r}")
    return record, content_type, traceparent
