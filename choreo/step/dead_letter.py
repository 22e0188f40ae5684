"""Records that nobody here can handle: kept as they are, with the reason, in a topic of their own (rule 18)."""

from __future__ import annotations

import logging

from choreo.broker.dead_letter import dead_letter_headers
from choreo.broker.port import Message
from choreo.broker.topics import dead_letter_topic
from choreo.errors import BrokerError
from choreo.observe.metrics import DeadLetterReason, Metrics
from choreo.step.publish import Publisher

logger = logging.getLogger(__name__)


class DeadLetters:
    """Writes the dead letters of a service."""

    def __init__(self, publisher: Publisher, service: str, metrics: Metrics) -> None:
        self._publisher = publisher
        self._service = service
        self._metrics = metrics

    async def bury(self, message: Message, saga: str, reason: DeadLetterReason, about: str) -> None:
        """Append the original key, value and headers, and after those where they were found and why they are here."""
        topic = dead_letter_topic(saga)
        logger.warning(
            "dead letter (%s): %s",
            reason,
            about,
            extra={"topic": message.topic, "partition": message.partition, "offset": message.offset},
        )
        key = (message.key or b"").decode("utf-8", "replace")
        ours = dead_letter_headers(message, error=reason, about=about, source=f"/choreo/{self._service}")
        try:
            await self._publisher.send(topic, key=key, value=message.value, headers=(*message.headers, *ours))
        except BrokerError as error:
            # With its reason a record at the size limit can be over it. The original stays where it was found.
            logger.error("the record cannot be kept in %s: %s", topic, error)  # noqa: TRY400  # no bug to trace
        self._metrics.dead_letters.labels(message.topic, reason).inc()
