"""What is done alike for every answer: it is appended, its failure logged, and a thread that goes on waited for."""

from __future__ import annotations

import asyncio
import logging

from choreo.broker.topics import saga_topic
from choreo.clock import Clock
from choreo.messages.records import (
    CompensationFailed,
    Failure,
    KnownEffect,
    StepCompensated,
    StepCompleted,
    StepFailed,
)
from choreo.observe.log import private
from choreo.step.call import Lingering
from choreo.step.job import CompensationJob, StepJob
from choreo.step.place import Place
from choreo.step.publish import Publisher

logger = logging.getLogger(__name__)

Reply = StepCompleted | StepFailed | StepCompensated | CompensationFailed


class Replies:
    """Appends the answers of one service."""

    def __init__(self, publisher: Publisher, clock: Clock) -> None:
        self._publisher = publisher
        self._clock = clock

    async def send(self, record: Reply, job: StepJob | CompensationJob, place: Place) -> None:
        """Append an answer and wait for the acknowledgement. Raises as ``Publisher.publish`` does."""
        appended = await self._publisher.publish(
            saga_topic(record.saga), record, content_type=job.content_type, traceparent=job.traceparent
        )
        place.time.see(appended.timestamp_ms, self._clock.monotonic())


def log_failure(job: StepJob | CompensationJob, failure: Failure, effect: KnownEffect) -> None:
    """A line for operators; the rest stands in the record."""
    what = "compensation of step" if isinstance(job, CompensationJob) else "step"
    logger.warning(
        "%s %r %s (effect %s): %s",
        what,
        job.step.name,
        failure.code or failure.kind,
        effect,
        private(failure.message),
        extra={"round": job.round},
    )


async def wait_for_thread(lingering: Lingering, job: StepJob | CompensationJob) -> None:
    """Keep the lane until the thread of a handler is gone (rule 3)."""
    if lingering.done():
        return
    logger.warning("a handler of step %r goes on in its thread past its time; its lane waits for it", job.step.name)
    await asyncio.wait((lingering,))
