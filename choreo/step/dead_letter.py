"""Triggers that nobody here can handle, kept as they are, with the reason, in a topic of their own (rule 18).

What is no record at all is the saga-log's to keep: it reads everything, and one letter for each is enough.
"""

from __future__ import annotations

import logging

from choreo.broker.dead_letter import dead_letter_headers, letter_key
from choreo.broker.port import Message
from choreo.broker.topics import dead_letter_topic
from choreo.broker.wrapped import as_written
from choreo.errors import BrokerError, RecordTooLarge
from choreo.observe.metrics import DeadLetterReason, Metrics
from choreo.step.publish import Publisher

logger = logging.getLogger(__name__)


class DeadLetters:
    """Writes the dead letters of a service."""

    def __init__(self, publisher: Publisher, service: str, metrics: Metrics) -> None:
        self._publisher = publisher
        self._service = service
        self._metrics = metrics

    async def bury(self, message: Message, saga: str, reason: DeadLetterReason, error: str, about: str) -> None:
        """Append the original key, value and headers, and after those where they were found and why they are here."""
        topic = dead_letter_topic(saga)
        logger.warning(
            "dead letter (%s): %s",
            reason,
            about,
            extra={"topic": message.topic, "partition": message.partition, "offset": message.offset},
        )
        source = f"/choreo/{self._service}"
        original = as_written(message).value  # what is encrypted stays so
        for cut, value, own in (
            ("", original, message.headers),
            ("headers", original, ()),
            ("value", b"", ()),
        ):
            ours = dead_letter_headers(message, reason=reason, error=error, about=about, source=source, cut=cut)
            try:
                await self._publisher.send(topic, key=letter_key(message), value=value, headers=(*own, *ours))
            except RecordTooLarge:
                continue
            except BrokerError as failure:
                logger.error("the record cannot be kept in %s: %s", topic, failure)  # noqa: TRY400  # no bug to trace
            break
        self._metrics.dead_letters.labels(message.topic, reason).inc()
