"""What the Kafka client forces on us, held against a real broker: settings, bombs, aborted records, what is left over.

``test_kafka_adapter`` has the other half: replaced producers and consumers, records that cannot be taken apart, polls
that are cancelled. Here are also whole runtimes: that they pause again after a rebalance, and leave nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError, RecordTooLargeError

from choreo.broker.kafka import KafkaBroker
from choreo.broker.port import TopicPartition, TopicSpec
from choreo.broker.registry import ensure_saga_topics, register
from choreo.broker.topics import saga_topic
from choreo.client import Client
from choreo.contract import Saga, Step
from choreo.messages.headers import CE_TYPE
from choreo.messages.records import StepCompleted
from choreo.saga_log import SagaLog
from choreo.step import Options, Service, StepRuntime
from choreo.step.route import ce_type_of
from choreo.store.memory import MemoryStore
from tests.conformance.members import ignore, unique

pytestmark = pytest.mark.kafka

DEADLINE_S = 60
QUICK = Options(poll_timeout_s=0.05, commit_interval_s=0.1, drain_timeout_s=1, shutdown_timeout_s=5)


@pytest.fixture
async def broker(kafka_url: str) -> AsyncIterator[KafkaBroker]:
    opened = await KafkaBroker.open(kafka_url)
    yield opened
    await opened.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            held = condition()
            if await held if asyncio.iscoroutine(held) else held:
                return
            await asyncio.sleep(0.02)


async def test_the_settings_that_keep_records_are_ours_and_not_the_librarys(broker: KafkaBroker) -> None:
    topic = unique("topic")
    await broker.ensure_topics([TopicSpec(name=topic, partitions=1)])
    await broker.producer()
    consumer = await broker.consumer(unique("group"), [topic], on_assigned=ignore, on_revoked=ignore)
    supervised = broker._producer
    assert supervised is not None
    produces, consumes = supervised._kafka, consumer._kafka
    assert produces is not None
    assert consumes is not None
    assert produces._sender._acks == -1, "all replicas in sync have it"
    assert produces._txn_manager is not None, "idempotence"
    assert produces._txn_manager.transactional_id is None
    assert (consumes._enable_auto_commit, consumes._auto_offset_reset) == (False, "earliest")
    assert consumes._isolation_level == "read_committed"
    assert consumes._key_deserializer is consumes._value_deserializer is None


async def test_a_record_that_unpacks_to_many_times_its_size_is_refused_at_the_door(broker: KafkaBroker) -> None:
    topic = saga_topic(unique("saga"))
    await broker.ensure_topics([TopicSpec(name=topic, partitions=1)])
    foreign = AIOKafkaProducer(**broker.settings.connection(), compression_type="gzip", max_request_size=64 * 2**20)
    await foreign.start()
    try:
        with pytest.raises((MessageSizeTooLargeError, RecordTooLargeError)):
            await foreign.send_and_wait(topic, bytes(16 * 2**20), key=b"k")
        await foreign.send_and_wait(topic, bytes(1_000), key=b"k")
    finally:
        await foreign.stop()
    tp = TopicPartition(topic, 0)
    assert (await broker.offsets([tp]))[tp] == (0, 1)


async def test_what_a_transaction_has_aborted_is_not_delivered(broker: KafkaBroker) -> None:
    topic = unique("topic")
    await broker.ensure_topics([TopicSpec(name=topic, partitions=1)])
    foreign = AIOKafkaProducer(**broker.settings.connection(), transactional_id=unique("transaction"))
    await foreign.start()
    await foreign.begin_transaction()
    await foreign.send_and_wait(topic, b"aborted", partition=0)
    await foreign.abort_transaction()
    async with foreign.transaction():
        await foreign.send_and_wait(topic, b"committed", partition=0)
    await foreign.stop()
    consumer = await broker.consumer(unique("group"), [topic], on_assigned=ignore, on_revoked=ignore)
    reader = await broker.reader()
    reader.seek(TopicPartition(topic, 0), 0)
    for source in (consumer, reader):
        found: list[bytes] = []

        async def take(source: Any = source, found: list[bytes] = found) -> bool:
            found += [message.value for message in await source.poll(timeout_s=0.2)]
            return bool(found)

        await until(take)
        assert found == [b"committed"]


async def make_saga(broker: KafkaBroker, partitions: int = 2) -> Saga:
    saga = Saga(unique("sup").replace("_", "-"), Step("only"))
    await ensure_saga_topics(broker, [saga], partitions=partitions)
    await register(broker, [saga])
    return saga


async def test_runtimes_that_are_cancelled_leave_no_task_and_no_connection(kafka_url: str) -> None:
    before = asyncio.all_tasks()
    broker = await KafkaBroker.open(kafka_url)
    saga = await make_saga(broker)
    service = Service(unique("svc"))
    service.step(saga, "only")(lambda: None)
    services = StepRuntime(service, broker, options=QUICK, random=Random(1))
    log = SagaLog(broker, MemoryStore(), [saga], group=unique("log"), poll_timeout_s=0.1)
    running = [asyncio.create_task(services.run()), asyncio.create_task(log.run())]
    async with Client(broker) as client:
        await client.run(saga, 1, timeout_s=DEADLINE_S)
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    assert all(task.cancelled() for task in running)
    assert all(opened.closed for opened in broker._opened), "each has closed its clients itself"
    await broker.close()
    await asyncio.sleep(0.1)
    left = asyncio.all_tasks() - before
    assert not left, left


async def test_a_partition_that_is_full_is_paused_again_after_a_rebalance(broker: KafkaBroker) -> None:
    saga = await make_saga(broker)
    gate = asyncio.Event()
    name = unique("svc")

    def runtime() -> StepRuntime:
        service = Service(name)

        @service.step(saga, "only")
        async def only() -> None:
            await gate.wait()

        options = msgspec.structs.replace(QUICK, unfinished_max=20, concurrency=4)
        return StepRuntime(service, broker, options=options, random=Random(1))

    def taken(one: StepRuntime) -> float:
        return sum(
            sample.value
            for metric in one.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == "choreo_messages_consumed_total"
        )

    async with Client(broker) as client, asyncio.TaskGroup() as starts:
        for number in range(3_000):
            starts.create_task(client.start(saga, number, id=f"s-{number}"))
    first, second = runtime(), runtime()
    running = [asyncio.create_task(first.run())]
    await until(lambda: first._workers and len(first._workers[0]._paused) == 2)
    running.append(asyncio.create_task(second.run()))
    await until(lambda: second._workers and len(second._workers[0]._partitions) == 1)
    await until(lambda: all(len(one._workers[0]._paused) == 1 for one in (first, second)))
    before = [taken(one) for one in (first, second)]
    await asyncio.sleep(1)
    assert [taken(one) for one in (first, second)] == before, "nothing is taken while they are full"
    gate.set()

    async def answered() -> bool:
        found = set()
        reader = await broker.reader()
        for number in range(2):
            reader.seek(TopicPartition(saga_topic(saga.name), number), 0)
        while messages := await reader.poll(timeout_s=0.5, records_max=5_000):
            found |= {message.key for message in messages if ce_type_of(message.headers) == CE_TYPE[StepCompleted]}
        await reader.close()
        return len(found) == 3_000

    await until(answered)
    for one in (first, second):
        await one.stop()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*running)
