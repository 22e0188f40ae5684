"""The wire limit: a bare aiokafka relay chain with as many hops as the saga has, and no saga logic.

A record goes through four processes (three steps and the saga-log have as many), each of which consumes it from its
own topic and sends it on, in batches, idempotent with acks=all, its offset committed twice a second. Values have the
size of a saga's events. Nothing is decoded. It is what Kafka and aiokafka leave to any system of this shape.

``python -m benchmarks.wire_limit BOOTSTRAP SOURCE TARGET GROUP`` runs one relay.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import OffsetAndMetadata

HOPS = 4
VALUE = b"x" * 400
COMMIT_INTERVAL_S = 0.5


async def relay(bootstrap: str, source: str, target: str, group: str) -> None:
    """Consume ``source``, send to ``target``, commit what is acknowledged. Runs until it is killed."""
    consumer = _consumer(bootstrap, source, group=group)
    producer = _producer(bootstrap)
    await consumer.start()
    await producer.start()
    committed = time.monotonic()
    ends: dict[Any, OffsetAndMetadata] = {}
    while True:
        batches = await consumer.getmany(timeout_ms=100)
        sent = []
        for tp, records in batches.items():
            for record in records:
                future = await producer.send(target, value=record.value, key=record.key)
                sent.append(future)
            ends[tp] = OffsetAndMetadata(records[-1].offset + 1, "")
        if sent:
            await asyncio.gather(*sent)
        if ends and time.monotonic() - committed > COMMIT_INTERVAL_S:
            await consumer.commit(ends)
            committed, ends = time.monotonic(), {}


class Chain:
    """The ends of the relay chain, in the load's process."""

    def __init__(self, bootstrap: str, first: str, last: str) -> None:
        self._first = first
        self._consumer = _consumer(bootstrap, last, group=None)
        self._producer = _producer(bootstrap)
        self._waiting: dict[bytes, asyncio.Future[None]] = {}
        self._count = 0
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Be ready to send and to see what comes out."""
        await self._consumer.start()
        await self._consumer.seek_to_end()
        for tp in self._consumer.assignment():
            await self._consumer.position(tp)
        await self._producer.start()
        self._task = asyncio.create_task(self._collect(), name="wire-limit/collect")

    async def send_through(self) -> None:
        """One record through the whole chain."""
        self._count += 1
        key = b"%032d" % self._count
        future = self._waiting[key] = asyncio.get_running_loop().create_future()
        await self._producer.send(self._first, value=VALUE, key=key)
        await future

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._producer.stop()
        await self._consumer.stop()

    async def _collect(self) -> None:
        while True:
            for records in (await self._consumer.getmany(timeout_ms=100)).values():
                for record in records:
                    future = self._waiting.pop(record.key, None)
                    if future is not None and not future.done():
                        future.set_result(None)


def _producer(bootstrap: str) -> AIOKafkaProducer:
    return AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, linger_ms=0, max_batch_size=262_144
    )


def _consumer(bootstrap: str, topic: str, *, group: str | None) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        fetch_max_wait_ms=500,
    )


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(relay(*sys.argv[1:5]))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(relay(*sys.argv[1:5]))
