"""Sending answers: tried again, under the same ids, until the log has them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Coroutine
from random import Random
from typing import Any

from choreo.broker.port import Appended, Headers, Producer
from choreo.clock import Clock
from choreo.contract.policy import Retries
from choreo.errors import BrokerError, RecordTooLarge, TopicError
from choreo.messages.codec import encode
from choreo.messages.headers import make_headers
from choreo.messages.records import Record
from choreo.observe.metrics import Metrics
from choreo.observe.tally import Tally

logger = logging.getLogger(__name__)

_BACKOFF = Retries(backoff_ms_base=100, backoff_ms_max=5_000)


class Publisher:
    """Appends the records of one service."""

    def __init__(self, producer: Producer, source: str, *, clock: Clock, random: Random, metrics: Metrics) -> None:
        self._producer = producer
        self._source = source
        self._clock = clock
        self._random = random
        self._metrics = metrics
        self._sent: dict[str, Tally] = {}

    def publish(
        self, topic: str, record: Record, *, content_type: str, traceparent: bytes | None
    ) -> Coroutine[Any, Any, Appended]:
        """Append a record and wait for the acknowledgement, through any outage.

        Raises:
            Unencodable: the record cannot be written, or is over choreo's limit.
            RecordTooLarge: it is over the broker's.
            TopicError: there is no such topic.
        """
        value, headers = self._written(record, content_type, traceparent)
        return self.send(topic, key=record.saga_id, value=value, headers=headers)

    def begin(self, topic: str, record: Record, *, content_type: str, traceparent: bytes | None) -> Awaitable[Appended]:
        """Append a record once; whoever awaits it sees what comes of that.

        Raises:
            Unencodable, BrokerError: it cannot be written, or not be sent.
        """
        value, headers = self._written(record, content_type, traceparent)
        return self._producer.send(topic, key=record.saga_id, value=value, headers=headers)

    def _written(self, record: Record, content_type: str, traceparent: bytes | None) -> tuple[bytes, Headers]:
        value = encode(record, content_type=content_type)
        return value, make_headers(record, source=self._source, content_type=content_type, traceparent=traceparent)

    async def send(self, topic: str, *, key: str, value: bytes, headers: Headers) -> Appended:
        """Append bytes, as ``publish`` does. Raises ``RecordTooLarge`` and ``TopicError``."""
        tries = 0
        while True:
            try:
                appended = await self._producer.send(topic, key=key, value=value, headers=headers)
            except (RecordTooLarge, TopicError):
                self.count_error(topic)
                raise
            except BrokerError as error:
                # Giving up would lose the outcome of a handler that has run. The record may be in the log already;
                # sent again it has the same id, and readers take it once.
                self.count_error(topic)
                tries += 1
                wait_s = self._random.uniform(0, _BACKOFF.backoff_ms(tries)) / 1_000
                logger.warning("cannot send to %s (try %d), trying again: %s", topic, tries, error)
                await self._clock.sleep(wait_s)
            else:
                self.count(topic)
                return appended

    def count(self, topic: str) -> None:
        """A record was appended."""
        counter = self._sent.get(topic)
        if counter is None:
            counter = self._sent[topic] = self._metrics.tallies.of(self._metrics.messages_produced.labels(topic, "ok"))
        counter.inc()

    def count_error(self, topic: str) -> None:
        """A record was not appended, or nobody knows."""
        self._metrics.messages_produced.labels(topic, "error").inc()
