"""A handle on a log without a server: it opens consumers and readers, and closes what it opened."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import ClassVar, Generic, Protocol, TypeVar

from choreo.broker.embedded.log import EmbeddedLog
from choreo.broker.embedded.reading import EmbeddedConsumer, EmbeddedReader
from choreo.broker.port import AssignmentListener, TopicPartition

Log = TypeVar("Log", bound=EmbeddedLog)


class Opened(Protocol):
    """A producer, consumer or reader."""

    closed: bool

    async def close(self) -> None: ...


class EmbeddedBroker(Generic[Log]):
    """A handle on a log; an adapter adds topics and producers.

    Attributes:
        consumer_type, reader_type: made here; a log for one purpose may have its own.
    """

    consumer_type: ClassVar[type[EmbeddedConsumer]] = EmbeddedConsumer
    reader_type: ClassVar[type[EmbeddedReader]] = EmbeddedReader

    def __init__(self, url: str, log: Log) -> None:
        self.url = url
        self._log = log
        self._opened: list[Opened] = []

    async def offsets(self, tps: Collection[TopicPartition]) -> Mapping[TopicPartition, tuple[int, int]]:
        return await self._log.offsets(tps)

    async def consumer(
        self,
        group: str,
        topics: Collection[str],
        *,
        on_assigned: AssignmentListener,
        on_revoked: AssignmentListener,
    ) -> EmbeddedConsumer:
        consumer = self.consumer_type(self._log, group, topics, on_assigned, on_revoked)
        await consumer.join()
        self._keep(consumer)
        return consumer

    async def reader(self) -> EmbeddedReader:
        reader = self.reader_type(self._log)
        self._keep(reader)
        return reader

    def _keep(self, opened: Opened) -> None:
        self._opened = [*(each for each in self._opened if not each.closed), opened]

    async def close(self) -> None:
        opened, self._opened = self._opened, []
        await asyncio.gather(*(each.close() for each in opened))
