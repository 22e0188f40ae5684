"""The log of a runner: that of ``memory://``, kept in one list, with readers that have all the time in the world."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from choreo.broker.embedded.reading import EmbeddedConsumer, EmbeddedReader
from choreo.broker.memory import MemoryBroker, MemoryLog
from choreo.broker.port import Appended, Headers, Message, TopicPartition
from choreo.broker.topics import is_saga_topic

FAR_S = 10.0**7
"""Some months: longer than any wait of a saga, so that nothing wakes for nothing and virtual time jumps far."""


class Journal(MemoryLog):
    """A log in memory that tells of every record as it is appended.

    Attributes:
        messages: all that was ever appended, in that order over all topics.
    """

    def __init__(self, now_ms: Callable[[], int], on_append: Callable[[Message], None]) -> None:
        # Members live and die with the runner, which ends them in order: no lease ever has to lapse.
        super().__init__(now_ms, session_timeout_ms=round(FAR_S * 4_000), heartbeat_ms=round(FAR_S * 1_000))
        self.messages: list[Message] = []
        self._of_key: dict[tuple[bool, str], list[Message]] = {}
        self._on_append = on_append

    def append(self, topic: str, key: str, value: bytes, headers: Headers) -> Appended:
        appended = super().append(topic, key, value, headers)
        message = Message(*appended, key.encode(), bytes(value), tuple(headers))
        self.messages.append(message)
        self._of_key.setdefault((is_saga_topic(topic), key), []).append(message)
        self._on_append(message)
        return appended

    def of_key(self, saga_id: str) -> Sequence[Message]:
        """A saga's history: what has its key in the topics of sagas, dead letters left out."""
        return self._of_key.get((True, saga_id), ())


class PatientReader(EmbeddedReader):
    """Waits for news however long it takes; a poll without news would only wake somebody who polls again."""

    async def poll(self, *, timeout_s: float, records_max: int = 500) -> Sequence[Message]:
        return await super().poll(timeout_s=max(timeout_s, FAR_S), records_max=records_max)


class PatientConsumer(EmbeddedConsumer):
    """Comes back from a poll without news only when its time is over, or at once where something else is new: its
    assignment, or its position. Whoever polls has something to do then, and would otherwise do it after the wait.
    """  # noqa: D205  # the sentence is worth its length

    _is_sought = False

    async def poll(self, *, timeout_s: float, records_max: int = 500) -> Sequence[Message]:
        assigned = self.assignment()
        messages = await super().poll(timeout_s=0, records_max=records_max)
        is_new = self._is_sought or self.assignment() != assigned
        self._is_sought = False
        if messages or is_new:
            return messages
        return await super().poll(timeout_s=timeout_s, records_max=records_max)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        super().seek(tp, offset)
        self._is_sought = True


class JournalBroker(MemoryBroker):
    """A handle on a journal."""

    consumer_type = PatientConsumer
    reader_type = PatientReader

    def __init__(self, journal: Journal) -> None:
        super().__init__("memory://runner", journal)
