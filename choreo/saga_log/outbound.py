"""From what is owed to records that are in the log.

Everything here may be said twice: ids are derived, so every reader takes the second for what it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import msgspec
from prometheus_client import Counter

from choreo.broker.port import Appended, Headers, Producer
from choreo.broker.topics import saga_topic
from choreo.clock import Clock
from choreo.core import Decision, SagaState, record_of, said_elsewhere
from choreo.core.commands import NULL
from choreo.errors import BrokerUnavailable, RecordTooLarge, Unencodable
from choreo.messages.codec import encode
from choreo.messages.headers import make_headers
from choreo.messages.records import (
    AnyRecord,
    Compensate,
    CompensationFailed,
    Execute,
    Failure,
    SagaCompensated,
    SagaCompleted,
    SagaStuck,
    StepFailed,
)
from choreo.messages.writers import CONTEXT_TOO_LARGE
from choreo.observe.metrics import Metrics
from choreo.saga_log.shard import Unsent

logger = logging.getLogger(__name__)

SOURCE = "/choreo/saga-log"
RETRY_PAUSE_S = 0.2
_TEXT_MAX = 1_000


class Outbound:
    """Appends the saga-log's records, through outages of the broker."""

    def __init__(self, producer: Producer, clock: Clock, metrics: Metrics) -> None:
        self._producer = producer
        self._clock = clock
        self._metrics = metrics
        self._said: dict[str, Counter] = {}  # counters of what was appended, by topic: to find one takes longer

    async def decisions(self, unsent: Unsent, wanted: Callable[[], bool]) -> bool:
        """Append what is owed to one saga, each after the one before is in the log.

        Args:
            wanted: whether to go on trying while the broker is away.

        Returns:
            False if something was left unsaid. It stays owed, so the next owner says it.
        """
        for decision in unsent.decisions:
            if await self._decision(unsent, decision, wanted) is None:
                return False
        return True

    async def timer(self, state: SagaState, record: AnyRecord, wanted: Callable[[], bool]) -> Appended | None:
        """Append a timer's record; ``None`` if the broker is away and we are no longer wanted."""
        return await self._record(state, record, wanted)

    async def bytes(
        self, topic: str, *, key: str, value: bytes, headers: Headers, wanted: Callable[[], bool]
    ) -> Appended | None:
        """Append as ``Producer.send`` does, and again after a pause while the broker is away and we are wanted.

        Raises:
            RecordTooLarge, TopicError: as ``Producer.send``.
        """
        outage = False
        while True:
            try:
                appended = await self._producer.send(topic, key=key, value=value, headers=headers)
            except BrokerUnavailable as error:
                self._metrics.messages_produced.labels(topic, "error").inc()
                if not wanted():
                    return None
                if not outage:
                    logger.warning("cannot append to %s, trying until it works: %s", topic, error)
                outage = True
                await self._clock.sleep(RETRY_PAUSE_S)
            else:
                if (said := self._said.get(topic)) is None:
                    said = self._said[topic] = self._metrics.messages_produced.labels(topic, "ok")
                said.inc()
                return appended

    async def _decision(self, unsent: Unsent, decision: Decision, wanted: Callable[[], bool]) -> Appended | None:
        state = unsent.state
        wanted_record = record_of(unsent.contract, state, decision)
        error: Exception | None = None
        candidates: Sequence[AnyRecord] = (wanted_record,)
        try:
            elsewhere = said_elsewhere(unsent.contract, state, decision)
            if elsewhere is not None and await self._record(state, elsewhere, wanted) is None:
                return None  # what is in our own log says that this is in the other one
        except (Unencodable, RecordTooLarge) as too_large:
            error = too_large
            candidates = smaller(wanted_record, state, str(too_large))
        while candidates:
            record, *rest = candidates
            try:
                appended = await self._record(state, record, wanted)
            except (Unencodable, RecordTooLarge) as too_large:
                candidates = smaller(wanted_record, state, str(too_large)) if error is None else rest
                error = too_large
                continue
            if isinstance(record, Compensate) and not record.settle and appended is not None:
                self._metrics.compensate_commands.labels(state.saga).inc()
            if error is not None:
                self._say_too_large(state, wanted_record, error, f"{type(record).__name__} was appended in its place")
            return appended
        assert error is not None, "the record itself is always tried"
        self._say_too_large(state, wanted_record, error, "nothing can be said in its place, so it stays owed")
        return None

    def _say_too_large(self, state: SagaState, record: AnyRecord, error: Exception, then: str) -> None:
        logger.error(
            "%s cannot be written: %s. %s. Keep large values elsewhere and pass references",
            type(record).__name__,
            error,
            then,
            extra={"saga": state.saga, "saga_id": state.saga_id, "step": getattr(record, "step", None)},
        )

    async def _record(self, state: SagaState, record: AnyRecord, wanted: Callable[[], bool]) -> Appended | None:
        value = encode(record, content_type=state.content_type)
        headers = make_headers(record, source=SOURCE, content_type=state.content_type, traceparent=state.traceparent)
        return await self.bytes(
            saga_topic(record.saga), key=record.saga_id, value=value, headers=headers, wanted=wanted
        )


def smaller(record: AnyRecord, state: SagaState, why: str) -> Sequence[AnyRecord]:
    """What to say in place of a record that cannot be written, in order of preference (rule 20).

    A command that cannot be given fails its step. An outcome is told without what makes it large: it has been decided,
    and readers who need the effects find them in the records of the steps.
    """
    match record:
        case Execute():
            return (
                StepFailed(
                    saga=record.saga,
                    version=record.version,
                    saga_id=record.saga_id,
                    start=record.start,
                    step=record.step,
                    round=record.round,
                    failure=_too_large(why),
                    effect="none",
                    run=CONTEXT_TOO_LARGE,
                ),
            )
        case Compensate():
            return (
                CompensationFailed(
                    saga=record.saga,
                    version=record.version,
                    saga_id=record.saga_id,
                    start=record.start,
                    step=record.step,
                    round=record.round,
                    generation=record.generation,
                    failure=_too_large(why),
                    run=CONTEXT_TOO_LARGE,
                ),
            )
        case SagaCompleted():
            without_effects = msgspec.structs.replace(record, effects={})
            null = msgspec.Raw(NULL[state.content_type])
            return (without_effects, msgspec.structs.replace(without_effects, result=null))
        case SagaCompensated():
            shorter = msgspec.structs.replace(record, failure=_shortened(record.failure))
            return (shorter, msgspec.structs.replace(shorter, compensations=()))
        case SagaStuck():
            return (msgspec.structs.replace(record, failure=_shortened(record.failure) or record.failure),)
        case _:
            return ()


def _too_large(why: str) -> Failure:
    return Failure(kind="rejected", code=CONTEXT_TOO_LARGE, message=why[:_TEXT_MAX])


def _shortened(failure: Failure | None) -> Failure | None:
    if failure is None:
        return None
    return msgspec.structs.replace(failure, message=failure.message[:_TEXT_MAX], traceback=None)
