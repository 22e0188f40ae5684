"""A broker that costs next to nothing and holds nothing: for measuring the saga-log by itself, with millions of sagas.

It delivers what a generator makes, batch by batch, and acknowledges at once. The CPU time that making the records took
is kept apart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Collection, Iterator, Mapping, Sequence

from choreo.broker.memory import MemoryBroker
from choreo.broker.port import (
    Appended,
    AssignmentListener,
    Committed,
    Consumer,
    GroupInfo,
    Headers,
    Message,
    Producer,
    Reader,
    TopicInfo,
    TopicPartition,
    TopicSpec,
)

Batches = Iterator[Sequence[Message]]


class FreeBroker:
    """One saga topic whose records are made up; all other topics are a memory broker's.

    Attributes:
        making_s: CPU seconds that the records took.
        appended: records that were sent to it.
        exhausted: set when all batches were delivered and polled past.
    """

    url = "free://"

    def __init__(self, inner: MemoryBroker, topic: str, partitions: int, batches: Batches) -> None:
        """Take a broker for all topics but one, whose consumer gets ``batches``."""
        self._inner = inner
        self._tps = [TopicPartition(topic, number) for number in range(partitions)]
        self._batches = batches
        self.making_s = 0.0
        self.appended = 0
        self.exhausted = asyncio.Event()

    def next(self) -> Sequence[Message]:
        """The next batch; empty at the end."""
        began = time.process_time()
        batch = next(self._batches, ())
        self.making_s += time.process_time() - began
        return batch

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        await self._inner.ensure_topics(specs)

    async def partitions(self, topic: str) -> int:
        return await self._inner.partitions(topic)

    async def topics(self) -> frozenset[str]:
        return await self._inner.topics()

    async def partition_of(self, topic: str, key: str) -> int:
        return await self._inner.partition_of(topic, key)

    async def offsets(self, tps: Collection[TopicPartition]) -> Mapping[TopicPartition, tuple[int, int]]:
        if any(tp in self._tps for tp in tps):
            return dict.fromkeys(tps, (0, 0))
        return await self._inner.offsets(tps)

    async def topic_info(self, topic: str) -> TopicInfo:
        return await self._inner.topic_info(topic)

    async def group_info(self, group: str) -> GroupInfo:
        return await self._inner.group_info(group)

    async def producer(self) -> Producer:
        return _Producer(self, await self._inner.producer())

    async def consumer(
        self, group: str, topics: Collection[str], *, on_assigned: AssignmentListener, on_revoked: AssignmentListener
    ) -> Consumer:
        del group, topics, on_revoked
        return _Consumer(self, frozenset(self._tps), on_assigned)

    async def reader(self) -> Reader:
        return await self._inner.reader()

    async def close(self) -> None:
        await self._inner.close()


class _Producer:
    def __init__(self, broker: FreeBroker, inner: Producer) -> None:
        self._broker = broker
        self._inner = inner

    def send(self, topic: str, *, key: str, value: bytes, headers: Headers = ()) -> Awaitable[Appended]:
        if topic == "choreo.contracts":
            return self._inner.send(topic, key=key, value=value, headers=headers)
        self._broker.appended += 1
        loop = asyncio.get_running_loop()
        acknowledgement: asyncio.Future[Appended] = loop.create_future()
        loop.call_soon(acknowledgement.set_result, Appended(topic, 0, 2**40, 0))
        return acknowledgement

    async def close(self) -> None:
        await self._inner.close()


class _Consumer:
    def __init__(self, broker: FreeBroker, tps: frozenset[TopicPartition], on_assigned: AssignmentListener) -> None:
        self._broker = broker
        self._tps = tps
        self._on_assigned: AssignmentListener | None = on_assigned

    async def poll(self, *, timeout_s: float, records_max: int = 500) -> Sequence[Message]:
        del records_max
        if self._on_assigned is not None:
            on_assigned, self._on_assigned = self._on_assigned, None
            await on_assigned(self._tps)
            return ()  # what comes now would be for partitions that nobody has opened yet
        await asyncio.sleep(0)
        batch = self._broker.next()
        if not batch:
            self._broker.exhausted.set()
            await asyncio.sleep(min(timeout_s, 0.01))
        return batch

    def assignment(self) -> frozenset[TopicPartition]:
        return self._tps

    async def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Kept nowhere."""

    async def committed(self, tp: TopicPartition) -> Committed | None:
        del tp
        return None

    async def end_offset(self, tp: TopicPartition) -> int:
        del tp
        return 0

    def worked_on(self, places: Sequence[tuple[TopicPartition, int]]) -> None:
        """Learns nothing from it."""

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """Goes on where it is."""

    def pause(self, tps: Collection[TopicPartition]) -> None:
        """Is never full."""

    def resume(self, tps: Collection[TopicPartition]) -> None:
        """See ``pause``."""

    def lag(self, tp: TopicPartition) -> int | None:
        del tp
        return 0

    async def close(self) -> None:
        """Holds nothing."""
