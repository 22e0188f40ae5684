"""From what is owed to records that are in the log.

Everything here may be said twice: ids are derived, so every reader takes the second for what it is.

Nearly all that is owed is one decision of a saga, which is one record of its own log. These go out at once, all of a
batch, and no task is made for any of them. What is said in two logs, in turn, in other words or again has a task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

from choreo.broker.port import Appended, Headers, Producer
from choreo.broker.topics import saga_topic
from choreo.clock import Clock
from choreo.core import Decision, SagaState, record_of, said_elsewhere
from choreo.errors import BrokerUnavailable, RecordTooLarge, Unencodable
from choreo.messages.codec import encode
from choreo.messages.headers import make_headers
from choreo.messages.records import AnyRecord, Compensate
from choreo.observe.metrics import Metrics
from choreo.observe.tally import Tally
from choreo.saga_log.shard import Unsent
from choreo.saga_log.side_by_side import AT_ONCE, Work, side_by_side
from choreo.saga_log.smaller import smaller

logger = logging.getLogger(__name__)

SOURCE = "/choreo/saga-log"
RETRY_PAUSE_S = 0.2

Wanted = Callable[[], bool]
"""Whether to go on trying while the broker is away."""


class _Begun(NamedTuple):
    """A decision whose record is on its way."""

    record: AnyRecord
    acked: asyncio.Future[Appended]
    unsent: Unsent
    wanted: Wanted


class Outbound:
    """Appends the saga-log's records, through outages of the broker."""

    def __init__(self, producer: Producer, clock: Clock, metrics: Metrics) -> None:
        self._producer = producer
        self._clock = clock
        self._metrics = metrics
        self._said: dict[str, Tally] = {}  # what was appended, by topic
        self._commands: dict[str, Tally] = {}  # of these, commands to compensate, by saga

    async def all(self, owed: Sequence[tuple[Unsent, Wanted]]) -> None:
        """Append what is owed to many sagas, side by side. What is left unsaid stays owed: the next owner says it."""
        for first in range(0, len(owed), AT_ONCE):
            begun: list[_Begun] = []
            works: list[Work] = []
            try:
                for unsent, wanted in owed[first : first + AT_ONCE]:
                    if (one := self._begin(unsent, wanted)) is not None:
                        begun.append(one)
                    else:
                        works.append(partial(self.decisions, unsent, wanted))
                await side_by_side([*works, partial(self._finish, begun)] if begun else works)
            except BaseException:
                for one in begun:
                    if not one.acked.cancel() and not one.acked.cancelled():
                        one.acked.exception()  # asyncio complains about errors that nobody has looked at
                raise

    def _begin(self, unsent: Unsent, wanted: Wanted) -> _Begun | None:
        """Send what is said in one record; ``None`` if it is not, or cannot be sent as it is."""
        contract, state, decisions = unsent
        if len(decisions) > 1:
            return None
        try:
            if said_elsewhere(contract, state, decisions[0]) is not None:
                return None
            record = record_of(contract, state, decisions[0])
            acked = asyncio.ensure_future(self._send(state, record))
        except (Unencodable, RecordTooLarge, BrokerUnavailable):
            return None
        return _Begun(record, acked, unsent, wanted)

    async def _finish(self, begun: Sequence[_Begun]) -> bool:
        """Wait until these are in the log, and say those again that are not."""
        again: list[Work] = []
        for record, acked, unsent, wanted in begun:
            try:
                await acked
            except BrokerUnavailable:
                self._metrics.messages_produced.labels(saga_topic(record.saga), "error").inc()
                if wanted():
                    again.append(partial(self.decisions, unsent, wanted))
            except RecordTooLarge:
                again.append(partial(self.decisions, unsent, wanted))
            else:
                self._count_said(saga_topic(record.saga))
                self._count_command(record)
        await side_by_side(again)
        return True

    async def decisions(self, unsent: Unsent, wanted: Wanted) -> bool:
        """Append what is owed to one saga, each after the one before is in the log.

        Returns:
            False if something was left unsaid. It stays owed, so the next owner says it.
        """
        for decision in unsent.decisions:
            if await self._decision(unsent, decision, wanted) is None:
                return False
        return True

    async def timer(self, state: SagaState, record: AnyRecord, wanted: Wanted) -> Appended | None:
        """Append a timer's record; ``None`` if the broker is away and we are no longer wanted."""
        return await self._record(state, record, wanted)

    async def bytes(self, topic: str, *, key: str, value: bytes, headers: Headers, wanted: Wanted) -> Appended | None:
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
                self._count_said(topic)
                return appended

    async def _decision(self, unsent: Unsent, decision: Decision, wanted: Wanted) -> Appended | None:
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
            if appended is not None:
                self._count_command(record)
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

    async def _record(self, state: SagaState, record: AnyRecord, wanted: Wanted) -> Appended | None:
        value, headers = _written(state, record)
        return await self.bytes(
            saga_topic(record.saga), key=record.saga_id, value=value, headers=headers, wanted=wanted
        )

    def _send(self, state: SagaState, record: AnyRecord) -> Awaitable[Appended]:
        value, headers = _written(state, record)
        return self._producer.send(saga_topic(record.saga), key=record.saga_id, value=value, headers=headers)

    def _count_said(self, topic: str) -> None:
        if (said := self._said.get(topic)) is None:
            said = self._said[topic] = self._metrics.tallies.of(self._metrics.messages_produced.labels(topic, "ok"))
        said.inc()

    def _count_command(self, record: AnyRecord) -> None:
        if isinstance(record, Compensate) and not record.settle:
            if (commands := self._commands.get(record.saga)) is None:
                child = self._metrics.compensate_commands.labels(record.saga)
                commands = self._commands[record.saga] = self._metrics.tallies.of(child)
            commands.inc()


def _written(state: SagaState, record: AnyRecord) -> tuple[bytes, Headers]:
    value = encode(record, content_type=state.content_type)
    return value, make_headers(record, source=SOURCE, content_type=state.content_type, traceparent=state.traceparent)
