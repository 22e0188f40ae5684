"""What nobody could read, kept as it was, with the reason and the place where it was found (rule 18)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from choreo.broker.dead_letter import dead_letter_headers, letter_key
from choreo.broker.port import Message
from choreo.broker.topics import dead_letter_topic
from choreo.broker.wrapped import as_written
from choreo.errors import RecordTooLarge
from choreo.observe.metrics import Metrics
from choreo.saga_log.intake import Refused
from choreo.saga_log.outbound import SOURCE, Outbound

logger = logging.getLogger(__name__)


class DeadLetters:
    """Writes the dead letters of the saga topics."""

    def __init__(self, outbound: Outbound, metrics: Metrics) -> None:
        self._outbound = outbound
        self._metrics = metrics

    async def put(self, saga: str, message: Message, why: Refused, wanted: Callable[[], bool]) -> bool:
        """Append the message to the dead letters of ``saga``: key, value and headers as they are, and ours behind.

        Where that is too large for a record, the foreign headers are left out, then the value: the original is still
        at the coordinates in our headers, for as long as its topic keeps it.

        Returns:
            False if the broker is away and we are no longer wanted.
        """
        original = as_written(message).value  # what is encrypted stays so
        for cut, value, own in (
            ("", original, message.headers),
            ("headers", original, ()),
            ("value", b"", ()),
        ):
            ours = dead_letter_headers(
                message, reason=why.reason, error=why.error_type, about=why.message, source=SOURCE, cut=cut
            )
            try:
                appended = await self._outbound.bytes(
                    dead_letter_topic(saga),
                    key=letter_key(message),
                    value=value,
                    headers=(*own, *ours),
                    wanted=wanted,
                )
            except RecordTooLarge:
                continue
            if appended is not None:
                self._count(saga, message, why)
            return appended is not None
        self._count(saga, message, why)  # not even our headers fit; the log line has the coordinates
        return True

    def _count(self, saga: str, message: Message, why: Refused) -> None:
        self._metrics.dead_letters.labels(message.topic, why.reason).inc()
        logger.error(
            "%s at %s offset %s was refused and put into the dead letters: %s",
            why.error_type,
            message.tp,
            message.offset,
            why.message,
            extra={"saga": saga, "topic": message.topic, "partition": message.partition, "offset": message.offset},
        )
