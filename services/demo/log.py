"""The order saga's topic, read by anybody: no group, no offsets to commit, nothing but records in order."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from choreo.broker import Broker, Message, TopicPartition
from choreo.broker.topics import saga_topic
from choreo.errors import Undecodable
from choreo.messages.codec import decode
from choreo.messages.records import AnyRecord
from services.order import ORDER

TOPIC = saga_topic(ORDER.name)


class Line(NamedTuple):
    """One record as it stands in the log.

    Attributes:
        at_ms: append time by the broker's clock.
        source: who wrote it ("payment", "saga-log"), as the record's header says.
    """

    at_ms: int
    source: str
    record: AnyRecord


History = list[Line]


def read_line(message: Message) -> Line | None:
    """The record in a message; ``None`` if it is none of choreo's."""
    try:
        record = decode(message.key, message.value, message.headers)
    except Undecodable:
        return None
    source = (message.header("ce_source") or b"").decode(errors="replace")
    return Line(message.timestamp_ms, source.removeprefix("/choreo/"), record)


async def partitions_of(broker: Broker) -> list[TopicPartition]:
    return [TopicPartition(TOPIC, partition) for partition in range(await broker.partitions(TOPIC))]


async def read_histories(broker: Broker) -> dict[str, History]:
    """All sagas of the topic, each with its records in order, up to the topic's end as it is now."""
    ends = {tp: end for tp, (_, end) in (await broker.offsets(await partitions_of(broker))).items()}
    histories: dict[str, History] = defaultdict(list)
    reader = await broker.reader()
    try:
        for tp in ends:
            reader.seek(tp, 0)
        while any(reader.position(tp) < end for tp, end in ends.items()):
            for message in await reader.poll(timeout_s=1.0, records_max=5_000):
                if message.offset < ends[message.tp] and (line := read_line(message)) is not None:
                    histories[line.record.saga_id].append(line)
    finally:
        await reader.close()
    return dict(histories)


class Follower:
    """Reads the topic as it grows, from the end that it has when ``open`` returns.

    Attributes:
        histories: what was read, by saga.
    """

    def __init__(self, broker: Broker, on_line: Callable[[Line], None]) -> None:
        self.histories: dict[str, History] = defaultdict(list)
        self._broker = broker
        self._on_line = on_line
        self._news = asyncio.Condition()
        self._ends: dict[TopicPartition, int] = {}

    async def open(self) -> None:
        """Find the end. What is appended from now on will be read."""
        self._ends = {
            tp: end for tp, (_, end) in (await self._broker.offsets(await partitions_of(self._broker))).items()
        }

    async def run(self) -> None:
        """Read until cancelled."""
        reader = await self._broker.reader()
        try:
            for tp, end in self._ends.items():
                reader.seek(tp, end)
            while True:
                messages = await reader.poll(timeout_s=0.2)
                lines = [line for line in map(read_line, messages) if line is not None]
                for line in lines:
                    self.histories[line.record.saga_id].append(line)
                    self._on_line(line)
                if lines:
                    async with self._news:
                        self._news.notify_all()
        finally:
            await reader.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what was read fulfils the condition."""
        async with self._news:
            await self._news.wait_for(condition)
