"""Answers to records that were not understood: said from their headers, so that no saga waits for its deadline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from choreo.broker.port import Message
from choreo.clock import Clock
from choreo.errors import Unencodable
from choreo.messages.headers import CONTENT_TYPES, JSON, MISPLACED, read_route
from choreo.messages.records import AnyRecord, Compensate, CompensationFailed, Execute, Failure, KnownEffect, StepFailed
from choreo.observe.metrics import Metrics
from choreo.step.answered import Answer, Instance
from choreo.step.dead_letter import DeadLetters
from choreo.step.failure import crash, plain_failure
from choreo.step.lanes import Lane
from choreo.step.place import Place
from choreo.step.publish import Publisher
from choreo.step.recorded import StepOutcome, Subject
from choreo.step.recorder import Recorder
from choreo.step.route import UNHELD, Delivery
from choreo.step.unheld import Unheld

logger = logging.getLogger(__name__)


class Refusals:
    """Refuses records for one service."""

    def __init__(
        self,
        versions: Collection[tuple[str, int]],
        publisher: Publisher,
        dead_letters: DeadLetters,
        *,
        clock: Clock,
        metrics: Metrics,
        unheld: Unheld,
        park_limit_s: float,
        draw_run: Callable[[], str],
        inbox: Recorder | None = None,
    ) -> None:
        """Equip it.

        Args:
            versions: the contracts that are held, by name and version.
            unheld: judges records of others.
            park_limit_s: how long, from its append, a record of an unknown version is kept unfinished.
            draw_run: gives the run ids of answers.
            inbox: where outcomes are recorded, if they are.
        """
        self._inbox = inbox
        self._versions = versions
        self._publisher = publisher
        self._dead_letters = dead_letters
        self._clock = clock
        self._metrics = metrics
        self._unheld = unheld
        self._park_limit_s = park_limit_s
        self._draw_run = draw_run

    async def undecodable(self, delivery: Delivery, place: Place, about: str) -> None:
        """Nobody can read the record (rule 18): nothing was ever run for it. The saga-log keeps it as a dead letter."""
        logger.warning("a trigger cannot be read and fails its step: %s", about)
        if delivery.message.headers[0][0] == MISPLACED:
            return  # its saga is elsewhere, and may have the same trigger there
        if delivery.step == UNHELD:
            route = read_route(delivery.message.headers)
            if route.kind not in (Execute, Compensate) or not self._unheld.is_ours(place.saga, route.step):
                return  # which step it is for, only its value would say
            delivery = Delivery(delivery.message, route.step)
        await self._answer(delivery, place, plain_failure("rejected", "undecodable", about), "none")

    async def internal_error(self, delivery: Delivery, place: Place, error: Exception) -> None:
        """A fault of choreo's own came between; nobody knows what the handler has done."""
        if delivery.step == UNHELD:
            return  # no handler was near it
        await self._answer(delivery, place, crash(error, code="internal_error"), "unknown")

    async def unknown_version(self, record: AnyRecord, message: Message, lane: Lane, place: Place) -> None:
        """Park a record of a contract version that is not held, if it may be for us; hand it on after the limit.

        Parked means unfinished: after an upgrade it is delivered again and understood. The limit counts from the
        record's append, by the broker's clock, so restarts do not prolong it.
        """
        own, perhaps = await self._unheld.concern(record)
        if not own and not perhaps:
            return
        about = f"version {record.version} of saga {record.saga!r} is not held here"
        waited_s = (place.time.now_ms(self._clock.monotonic()) - message.timestamp_ms) / 1_000
        left_s = max(0.0, self._park_limit_s - waited_s)
        logger.warning("%s; the record is parked for %.0f s. Deploy the service with that version", about, left_s)
        parked = self._metrics.records_parked.labels(record.saga)
        parked.inc()
        try:
            await lane.rest(self._clock.sleep(left_s))
        finally:
            parked.dec()
        if not own:  # and if it was for a step of ours that is new, its deadline will say so
            logger.warning("%s; a record that may be for it was given up", about)
            return
        effect: KnownEffect = "none" if message.offset >= place.end_at_assignment else "unknown"
        await self._dead_letters.bury(message, place.saga, "unknown_version", "UnknownVersion", about)
        failure = plain_failure("rejected", "unknown_version", about)
        for step in own:
            await self._answer(Delivery(message, step), place, failure, effect, version=record.version)

    async def _answer(
        self, delivery: Delivery, place: Place, failure: Failure, effect: KnownEffect, *, version: int | None = None
    ) -> None:
        """Say it once for each instance."""
        message, step = delivery
        route = read_route(message.headers)
        generation = route.generation if route.kind is Compensate else 0
        instance = Instance(message.key, route.start, step, route.round or 1, generation)
        if place.answered.get(instance) is not None:
            return
        if version is None:
            # A header of a release before this one does not say it. Readers find the saga by its id, so any will do.
            version = route.version or max(held for saga, held in self._versions if saga == place.saga)
        saga_id = (message.key or b"").decode("utf-8", "replace")
        run = self._draw_run()
        reply: StepOutcome | CompensationFailed
        if generation:
            reply = CompensationFailed(
                saga=place.saga,
                version=version,
                saga_id=saga_id,
                start=route.start,
                step=step,
                round=instance.round,
                generation=generation,
                run=run,
                failure=failure,
                attempts=0,
            )
        else:
            reply = StepFailed(
                saga=place.saga,
                version=version,
                saga_id=saga_id,
                start=route.start,
                step=step,
                round=instance.round,
                run=run,
                failure=failure,
                effect=effect,
                attempts=0,
            )
        content_type = route.content_type if route.content_type in CONTENT_TYPES else JSON
        try:
            if self._inbox is not None and isinstance(reply, StepFailed):
                subject = Subject(place.saga, version, saga_id, route.start, step, instance.round)
                # Whatever it was, it is the outcome from now on; or another run's, if that was recorded.
                reply = await self._inbox.conclude(subject, reply, content_type, is_inside=False)
            await self._publisher.publish(
                message.topic, reply, content_type=content_type, traceparent=route.traceparent
            )
        except Unencodable as error:
            # No saga can be told from headers this broken; the dead letter is all that is left.
            logger.warning("no answer can be made from the headers of a record in %s: %s", message.tp, error)
            return
        place.answered.settle(instance, Answer.SETTLED if generation or effect == "unknown" else Answer.NO_EFFECT)
        if generation:
            self._metrics.compensations.labels(place.saga, step, "failed").inc()
        else:
            self._metrics.step_events.labels(place.saga, step, "failed").inc()
