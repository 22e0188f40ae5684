"""What the Kafka adapter does about its client's and its broker's bad days. The promises that all brokers share are in
``tests/conformance``."""

from __future__ import annotations

import asyncio
import struct
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterable
from io import BytesIO
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.codec import gzip_encode
from aiokafka.errors import NotLeaderForPartitionError, OutOfOrderSequenceNumber
from aiokafka.partitioner import murmur2 as aiokafkas_murmur2
from aiokafka.protocol.fetch import FetchRequest, FetchResponse_v11
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition as KafkaTopicPartition
from hypothesis import given
from hypothesis import strategies as st

from choreo import Saga, Step
from choreo.broker.kafka import KafkaBroker, Quarantined, internals
from choreo.broker.kafka.fetch_codec import FetchResponse, LeanFetch
from choreo.broker.kafka.partitioner import murmur2
from choreo.broker.kafka.patience import TIMES
from choreo.broker.kafka.salvage import Salvage, salvage
from choreo.broker.kafka.settings import KafkaSettings
from choreo.broker.kafka.stalls import StallWatch
from choreo.broker.port import Appended, Committed, Consumer, Message, Reader, TopicPartition, TopicSpec
from choreo.broker.registry import ensure_saga_topics
from choreo.errors import (
    BrokerError,
    BrokerUnavailable,
    ChoreoError,
    ConfigurationError,
    RecordTooLarge,
    TopicError,
    Undecodable,
)
from choreo.messages.codec import decode
from choreo.messages.headers import MISPLACED, UNREADABLE
from deploy.kafka.local_kafka import LocalKafka

DEADLINE_S = 60  # for what happens soon in a good adapter; only a broken one gets here

kafka = pytest.mark.kafka


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


async def ignore(_: Collection[TopicPartition]) -> None:
    """A listener that has nothing to do."""


async def collect(source: Consumer | Reader, count: int) -> list[Message]:
    messages: list[Message] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(messages) < count:
            messages += await source.poll(timeout_s=0.5)
    return messages


async def read_all(broker: KafkaBroker, topic: str) -> list[Message]:
    reader = await broker.reader()
    tps = [TopicPartition(topic, partition) for partition in range(await broker.partitions(topic))]
    for tp in tps:
        reader.seek(tp, 0)
    messages: list[Message] = []
    ends = {tp: end for tp, (_, end) in (await broker.offsets(tps)).items()}
    async with asyncio.timeout(DEADLINE_S):
        while any(reader.position(tp) < end for tp, end in ends.items()):
            messages += await reader.poll(timeout_s=0.2)
    await reader.close()
    return messages


def first_copies(messages: Iterable[Message]) -> dict[bytes | None, list[bytes]]:
    """The values of each key, in order, without later copies of what was there before."""
    values: defaultdict[bytes | None, dict[bytes, None]] = defaultdict(dict)
    for message in messages:
        values[message.key].setdefault(message.value)
    return {key: list(found) for key, found in values.items()}


class Poison:
    """Collects what was quarantined."""

    def __init__(self) -> None:
        self.records: list[Quarantined] = []

    def __call__(self, record: Quarantined) -> None:
        self.records.append(record)

    def places(self) -> list[tuple[str, int, int]]:
        return [record[:3] for record in self.records]


@pytest.fixture
def poison() -> Poison:
    return Poison()


@pytest.fixture
async def broker(kafka_url: str, poison: Poison) -> AsyncIterator[KafkaBroker]:
    opened = await KafkaBroker.open(kafka_url, quarantine=poison)
    yield opened
    await opened.close()


async def make_topic(broker: KafkaBroker, partitions: int = 1, **spec: Any) -> str:
    name = str(spec.pop("name", unique("topic")))
    await broker.ensure_topics([TopicSpec(name=name, partitions=partitions, **spec)])
    return name


def raw_batch(values: Collection[bytes], *, gzip: bool = False, producer_id: int = -1) -> bytearray:
    """One batch as a foreign writer may write it: the header key of a record with the value ``bad`` is not UTF-8."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=producer_id >= 0, producer_id=producer_id, producer_epoch=0,
        base_sequence=0, batch_size=65_536,
    )  # fmt: skip
    for number, value in enumerate(values):
        name = "PLACEHOLDER" if value == b"bad" else "good"
        builder.append(number, timestamp=0, key=b"key", value=value, headers=[(name, b"1")])
    batch = bytearray(bytes(builder.build()).replace(b"PLACEHOLDER", b"\xff" * len("PLACEHOLDER")))
    if gzip:
        batch[61:] = gzip_encode(bytes(batch[61:]))
        batch[22] |= 1
        batch[8:12] = struct.pack(">i", len(batch) - 12)
    return sealed(batch)


def sealed(batch: bytearray) -> bytearray:
    """The batch with a checksum that is right."""
    batch[17:21] = struct.pack(">I", calc_crc32c(bytes(batch[21:])))
    return batch


async def append_raw(broker: KafkaBroker, tp: TopicPartition, values: Collection[bytes]) -> None:
    batch = raw_batch(values)
    admin = broker._admin
    assert admin is not None
    request = ProduceRequest(
        transactional_id=None, required_acks=-1, timeout=10_000, topics=[(tp.topic, [(tp.partition, bytes(batch))])]
    )
    async with asyncio.timeout(DEADLINE_S):
        while True:
            response = await admin._client.send(admin._client.get_random_node(), request)
            error_code = response.topics[0][1][0][1]
            if error_code != NotLeaderForPartitionError.errno:  # of a topic that is quite new
                break
    assert error_code == 0


async def append_with_a_hole_behind(broker: KafkaBroker, topic: str) -> None:
    """A record at offset 0, and the marker that ends its transaction at offset 1."""
    foreign = AIOKafkaProducer(**broker.settings.connection(), transactional_id=unique("transaction"))
    await foreign.start()
    async with foreign.transaction():
        await foreign.send_and_wait(topic, b"0", partition=0)
    await foreign.stop()
    tp = TopicPartition(topic, 0)
    async with asyncio.timeout(DEADLINE_S):
        while (await broker.offsets([tp]))[tp] != (0, 2):  # the marker is written after the commit is answered
            await asyncio.sleep(0.01)


# Records that cannot be read


@kafka
@pytest.mark.parametrize("role", ["consumer", "reader"])
async def test_a_header_key_that_is_not_text_is_delivered_under_a_mark_and_keeps_no_other_record_back(
    broker: KafkaBroker, poison: Poison, role: str
) -> None:
    topic = await make_topic(broker, partitions=3)
    await append_raw(broker, TopicPartition(topic, 0), [b"0-a", b"0-b"])
    await append_raw(broker, TopicPartition(topic, 1), [b"1-a", b"bad", b"1-b", b"bad", b"bad", b"1-c"])
    await append_raw(broker, TopicPartition(topic, 2), [b"bad"])
    await append_raw(broker, TopicPartition(topic, 2), [b"2-a"])

    source: Consumer | Reader
    if role == "consumer":
        source = await broker.consumer(unique("group"), [topic], on_assigned=ignore, on_revoked=ignore)
    else:
        source = await broker.reader()
        for partition in range(3):
            source.seek(TopicPartition(topic, partition), 0)
    found = await collect(source, 10)

    unreadable = [message for message in found if message.header(UNREADABLE) is not None]
    places = sorted((message.topic, message.partition, message.offset) for message in unreadable)
    assert places == [(topic, 1, 1), (topic, 1, 3), (topic, 1, 4), (topic, 2, 0)]
    assert {(message.key, message.value, message.headers[1:]) for message in unreadable} == {
        (b"key", b"bad", (("\\xff" * 11, b"1"),))
    }
    assert all(message.timestamp_ms > 0 for message in unreadable)
    with pytest.raises(Undecodable, match="cannot be taken apart: UnicodeDecodeError"):
        decode(unreadable[0].key, unreadable[0].value, unreadable[0].headers)
    messages = [message for message in found if message.header(UNREADABLE) is None]
    values = [message.value for message in sorted(messages, key=lambda message: (message.partition, message.offset))]
    assert values == [b"0-a", b"0-b", b"1-a", b"1-b", b"1-c", b"2-a"]
    assert sorted(poison.places()) == [(topic, 1, 1), (topic, 1, 3), (topic, 1, 4), (topic, 2, 0)]
    assert "UnicodeDecodeError" in poison.records[0].error
    assert {record.value for record in poison.records} == {b"bad"}
    assert poison.records[0].headers == ((b"\xff" * 11, b"1"),)


@kafka
@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_a_topic_that_somebody_else_has_made_may_be_compressed(
    broker: KafkaBroker, kafka_url: str, codec: str
) -> None:
    topic = await make_compressed_topic(kafka_url, codec)
    await append_raw(broker, TopicPartition(topic, 0), [b"a" * 1_000, b"b" * 1_000])
    consumer = await broker.consumer(unique("group"), [topic], on_assigned=ignore, on_revoked=ignore)
    reader = await broker.reader()
    reader.seek(TopicPartition(topic, 0), 0)
    for source in (consumer, reader):
        assert [message.value for message in await collect(source, 2)] == [b"a" * 1_000, b"b" * 1_000]


@kafka
async def test_a_codec_that_is_not_installed_is_told_of_with_what_to_do(
    broker: KafkaBroker, kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = await make_compressed_topic(kafka_url, "zstd")
    await append_raw(broker, TopicPartition(topic, 0), [b"a" * 1_000])
    monkeypatch.setattr("aiokafka.codec.cramjam", None)
    consumer = await broker.consumer(unique("group"), [topic], on_assigned=ignore, on_revoked=ignore)
    with pytest.raises(BrokerError, match=r"zstd.*pip install 'choreo-sagas\[compression\]'"):
        await collect(consumer, 1)


async def make_compressed_topic(kafka_url: str, codec: str) -> str:
    """A topic of one partition whose records the broker itself compresses."""
    name = unique("compressed")
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_url.removeprefix("kafka://").partition("?")[0])
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, 1, topic_configs={"compression.type": codec})])
    finally:
        await admin.close()
    return name


@kafka
async def test_a_topic_that_was_grown_is_refused_with_what_to_do(broker: KafkaBroker, kafka_url: str) -> None:
    name = unique("grown")
    saga = Saga(name, Step("one"))
    await ensure_saga_topics(broker, [saga], partitions=2)
    await ensure_saga_topics(broker, [saga])
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_url.removeprefix("kafka://").partition("?")[0])
    await admin.start()
    await admin.create_partitions({f"choreo.{name}": NewPartitions(4)})
    await admin.close()
    async with asyncio.timeout(DEADLINE_S):
        while await broker.partitions(f"choreo.{name}") != 4:
            await asyncio.sleep(0.1)
    with pytest.raises(TopicError, match=r"has 4 partitions and .* has 2: one of them was grown") as refusal:
        await ensure_saga_topics(broker, [saga])
    assert "More partitions" in str(refusal.value)
    with pytest.raises(TopicError, match="Growing it would move sagas"):
        await ensure_saga_topics(broker, [saga], partitions=2)


@kafka
async def test_a_record_of_a_saga_in_another_partition_than_its_keys_is_marked_and_leads_no_other_record_there(
    broker: KafkaBroker,
) -> None:
    topic = await make_topic(broker, partitions=3, name=f"choreo.{unique('saga')}")
    home = await broker.partition_of(topic, "key")  # the key of raw batches
    astray = (home + 1) % 3
    await append_raw(broker, TopicPartition(topic, astray), [b"astray"])
    await append_raw(broker, TopicPartition(topic, home), [b"at home"])
    reader = await broker.reader()
    for partition in range(3):
        reader.seek(TopicPartition(topic, partition), 0)
    found = {message.value: message for message in await collect(reader, 2)}
    assert found[b"at home"].header(MISPLACED) is None
    assert found[b"astray"].headers[0][0] == MISPLACED
    assert found[b"astray"].headers[1:] == (("good", b"1"),)
    producer = await broker.producer()
    assert (await producer.send(topic, key="key", value=b"an answer")).partition == home


@given(st.binary(max_size=70))
def test_keys_are_hashed_as_kafkas_own_clients_do(key: bytes) -> None:
    assert murmur2(key) == aiokafkas_murmur2(key) & 0xFFFFFFFF


@kafka
async def test_a_record_that_cannot_be_read_is_found_behind_a_hole_in_the_offsets(
    broker: KafkaBroker, poison: Poison
) -> None:
    topic = await make_topic(broker)
    await append_with_a_hole_behind(broker, topic)
    await append_raw(broker, TopicPartition(topic, 0), [b"bad", b"3"])

    reader = await broker.reader()
    reader.seek(TopicPartition(topic, 0), 0)
    assert [message.value for message in await collect(reader, 3)] == [b"0", b"bad", b"3"]
    assert poison.places() == [(topic, 0, 2)]


@kafka
async def test_a_reader_gets_to_the_end_of_a_log_that_ends_with_a_hole(broker: KafkaBroker) -> None:
    topic = await make_topic(broker)
    await append_with_a_hole_behind(broker, topic)
    assert [message.value for message in await read_all(broker, topic)] == [b"0"]


# The producer


@kafka
@pytest.mark.parametrize("death", ["cancelled", "failed"])
async def test_a_producer_whose_sender_task_dies_is_replaced_and_nothing_is_lost(
    broker: KafkaBroker, death: str
) -> None:
    topic = await make_topic(broker, partitions=3)
    producer = await broker.producer()
    supervised = broker._producer
    assert supervised is not None
    acked: defaultdict[bytes, list[bytes]] = defaultdict(list)

    async def saga(key: str) -> None:
        for number in range(100):
            value = b"%d" % number
            await producer.send(topic, key=key, value=value)
            acked[key.encode()].append(value)

    async with asyncio.TaskGroup() as sagas:
        for number in range(20):
            sagas.create_task(saga(f"saga-{number}"))
        for replacements in range(3):
            while len(acked) < 20 or supervised.replaced < replacements or supervised._kafka is None:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            if death == "cancelled":
                internals.sender_task(supervised._kafka).cancel()
            else:
                supervised._kafka._message_accumulator.fail_all(OutOfOrderSequenceNumber())

    assert supervised.replaced == 3
    assert first_copies(await read_all(broker, topic)) == acked
    assert {len(values) for values in acked.values()} == {100}


@kafka
async def test_records_that_were_sent_side_by_side_keep_their_order_when_the_producer_is_replaced(
    broker: KafkaBroker,
) -> None:
    topic = await make_topic(broker)
    producer = await broker.producer()
    supervised = broker._producer
    assert supervised is not None
    sends = [asyncio.ensure_future(producer.send(topic, key="k", value=b"%d" % number)) for number in range(500)]
    while not any(send.done() for send in sends):
        await asyncio.sleep(0)
    assert supervised._kafka is not None
    supervised._kafka._message_accumulator.fail_all(OutOfOrderSequenceNumber())
    await asyncio.gather(*sends)
    assert first_copies(await read_all(broker, topic)) == {b"k": [b"%d" % number for number in range(500)]}


@kafka
async def test_a_batch_may_be_too_large_for_a_topic_though_its_records_are_not(broker: KafkaBroker) -> None:
    topic = await make_topic(broker, message_bytes_max=2_000)
    producer = await broker.producer()
    sends = [producer.send(topic, key="k", value=b"%d" % number * 100) for number in range(40)]
    sends.insert(20, producer.send(topic, key="k", value=b"x" * 3_000))
    answers = await asyncio.gather(*sends, return_exceptions=True)
    assert isinstance(answers.pop(20), RecordTooLarge)
    assert all(isinstance(answer, Appended) for answer in answers)
    values = first_copies(await read_all(broker, topic))
    assert values == {b"k": [b"%d" % number * 100 for number in range(40)]}


# The consumer


@kafka
@pytest.mark.parametrize("part", ["_fetch_task", "_coordination_task"])
async def test_a_consumer_that_has_gone_deaf_is_replaced(kafka_url: str, part: str) -> None:
    broker = await KafkaBroker.open(f"{kafka_url}&stall_timeout_ms=1000")
    topic, group = await make_topic(broker), unique("group")
    producer = await broker.producer()
    consumer = await broker.consumer(group, [topic], on_assigned=ignore, on_revoked=ignore)
    await producer.send(topic, key="k", value=b"before")
    assert [message.value for message in await collect(consumer, 1)] == [b"before"]
    await consumer.commit({TopicPartition(topic, 0): Committed(1, "text")})

    inner = consumer._kafka
    assert inner is not None
    getattr(inner._fetcher if part == "_fetch_task" else inner._coordinator, part).cancel()
    await producer.send(topic, key="k", value=b"1")  # the fetch under way may still bring this one
    await consumer.poll(timeout_s=0.5)
    await producer.send(topic, key="k", value=b"2")
    async with asyncio.timeout(DEADLINE_S):
        while consumer.replaced == 0:
            await consumer.poll(timeout_s=0.1)
    # What was not committed comes again.
    assert [message.value for message in await collect(consumer, 2)] == [b"1", b"2"]
    assert consumer.replaced == 1
    assert await consumer.committed(TopicPartition(topic, 0)) == Committed(1, "text")
    await broker.close()


@kafka
async def test_a_slow_listener_does_not_cost_the_membership(kafka_url: str) -> None:
    url = kafka_url.partition("?")[0]
    broker = await KafkaBroker.open(f"{url}?session_timeout_ms=1500&heartbeat_interval_ms=200")
    topic, calls = await make_topic(broker), list[str]()

    async def on_assigned(_: Collection[TopicPartition]) -> None:
        calls.append("assigned")
        await asyncio.sleep(3)  # two sessions
        calls.append("ready")

    async def on_revoked(_: Collection[TopicPartition]) -> None:
        calls.append("revoked")

    producer = await broker.producer()
    await producer.send(topic, key="k", value=b"v")
    consumer = await broker.consumer(unique("group"), [topic], on_assigned=on_assigned, on_revoked=on_revoked)
    await collect(consumer, 1)
    await consumer.commit({TopicPartition(topic, 0): Committed(1)})
    assert calls == ["assigned", "ready"]
    await broker.close()


@kafka
async def test_what_a_listener_raises_is_raised_by_poll_and_its_partitions_stay_silent(broker: KafkaBroker) -> None:
    topic = await make_topic(broker)
    await (await broker.producer()).send(topic, key="k", value=b"v")

    async def on_assigned(_: Collection[TopicPartition]) -> None:
        raise ConfigurationError("not ready for it")

    consumer = await broker.consumer(unique("group"), [topic], on_assigned=on_assigned, on_revoked=ignore)
    with pytest.raises(ConfigurationError, match="not ready for it"):
        await collect(consumer, 1)
    assert await consumer.poll(timeout_s=0.5) == []


@kafka
async def test_a_poll_that_is_cancelled_loses_nothing(broker: KafkaBroker) -> None:
    topic = await make_topic(broker)
    producer = await broker.producer()
    consumer = await broker.consumer(unique("group"), [topic], on_assigned=ignore, on_revoked=ignore)
    seen: list[int] = []
    for number in range(30):
        poll = asyncio.create_task(consumer.poll(timeout_s=1))
        await producer.send(topic, key="k", value=b"%d" % number)
        await asyncio.sleep(0.001 * (number % 5))
        poll.cancel()
        await asyncio.wait({poll})
        if not poll.cancelled():
            seen += [message.offset for message in poll.result()]
    seen += [message.offset for message in await collect(consumer, 30 - len(seen))]
    assert seen == list(range(30))


# What aiokafka does not promise


@kafka
async def test_a_reader_is_not_woken_for_what_is_not_for_it_and_still_gets_all_of_it(broker: KafkaBroker) -> None:
    topic = await make_topic(broker, 3)
    reader, producer = await broker.reader(), await broker.producer()
    for number in range(3):
        reader.seek(TopicPartition(topic, number), 0)
    sent: list[bytes] = []
    got: list[bytes] = []

    async def is_sent(value: bytes, key: str) -> None:
        await producer.send(topic, key=key, value=value)
        sent.append(value)

    async def is_got() -> int:
        """All that was sent; in how many polls."""
        polls = 0
        async with asyncio.timeout(DEADLINE_S):
            while len(got) < len(sent):
                messages = await reader.poll(timeout_s=0.5)
                got.extend(message.value for message in messages)
                if ours := [(message.tp, message.offset) for message in messages if message.value.startswith(b"ours")]:
                    reader.worked_on(ours)
                polls += bool(messages)
        return polls

    for turn in range(TIMES):
        for value in (b"other 1", b"other 2", b"ours"):
            await is_sent(value + b" of %d" % turn, f"saga-{turn}")
            assert await is_got() == 1, "each comes as soon as it is there"
    together = 0
    for turn in range(TIMES):
        for value in (b"other 3", b"other 4", b"ours 2"):
            await is_sent(value + b" of %d" % turn, f"saga-{turn}")
        together += await is_got() == 1
    assert together, "the broker has answered when the one for us was there, and not before"
    await is_sent(b"other 5", "saga-1")  # nothing that is for us follows
    await is_got()
    assert sorted(got) == sorted(sent)


@kafka
async def test_positions_and_commits_are_where_internals_look_for_them(broker: KafkaBroker) -> None:
    topic = await make_topic(broker)
    tp, inner_tp = TopicPartition(topic, 0), KafkaTopicPartition(topic, 0)
    await (await broker.producer()).send(topic, key="k", value=b"v")
    consumer = await broker.consumer(unique("group"), [topic], on_assigned=ignore, on_revoked=ignore)
    await collect(consumer, 1)
    inner = consumer._kafka
    assert inner is not None
    assert internals.position(inner, inner_tp) == 1
    assert internals.position(inner, KafkaTopicPartition(topic, 7)) is None
    assert await internals.fetch_committed(inner, inner_tp) is None
    await consumer.commit({tp: Committed(1, "done: 3-5")})
    committed = await internals.fetch_committed(inner, inner_tp)
    assert committed is not None
    assert (committed.offset, committed.metadata) == (1, "done: 3-5")


# The broker comes and goes


@kafka
@pytest.mark.timeout(120)
async def test_a_broker_that_is_killed_under_load_loses_nothing_that_was_acknowledged(own_kafka: LocalKafka) -> None:
    broker = await KafkaBroker.open(f"{own_kafka.url}?session_timeout_ms=6000&heartbeat_interval_ms=300")
    topic = await make_topic(broker, partitions=3)
    producer = await broker.producer()
    consumer = await broker.consumer(unique("group"), [topic], on_assigned=ignore, on_revoked=ignore)
    acked: defaultdict[bytes, list[bytes]] = defaultdict(list)
    received: set[tuple[bytes | None, bytes]] = set()
    enough = asyncio.Event()

    async def send(key: str) -> None:
        number = 0
        while not enough.is_set():
            value = b"%d" % number
            await producer.send(topic, key=key, value=value)
            acked[key.encode()].append(value)
            number += 1

    async def receive() -> None:
        while not enough.is_set() or any((key, value) not in received for key in acked for value in acked[key]):
            messages = await consumer.poll(timeout_s=0.2)
            received.update((message.key, message.value) for message in messages)

    def sent() -> int:
        return sum(map(len, acked.values()))

    async def until_more(count: int) -> None:
        goal = sent() + count
        while sent() < goal:
            await asyncio.sleep(0.01)

    async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:
        for number in range(30):
            tasks.create_task(send(f"saga-{number}"))
        tasks.create_task(receive())
        for _ in range(2):
            await until_more(1_000)
            own_kafka.kill()
            await asyncio.sleep(0.5)
            await asyncio.to_thread(own_kafka.start)
        await until_more(1_000)
        enough.set()

    assert first_copies(await read_all(broker, topic)) == acked
    await broker.close()


@kafka
async def test_a_broker_that_is_gone_is_told_as_such(own_kafka: LocalKafka) -> None:
    broker = await KafkaBroker.open(f"{own_kafka.url}?delivery_timeout_ms=1000&commit_timeout_ms=1000")
    topic = await make_topic(broker)
    tp = TopicPartition(topic, 0)
    producer = await broker.producer()
    consumer = await broker.consumer(unique("group"), [topic], on_assigned=ignore, on_revoked=ignore)
    await producer.send(topic, key="k", value=b"v")
    await collect(consumer, 1)
    own_kafka.kill()

    with pytest.raises(BrokerUnavailable):
        await producer.send(topic, key="k", value=b"v")
    with pytest.raises(BrokerUnavailable):
        await consumer.commit({tp: Committed(1)})
    with pytest.raises(BrokerUnavailable):
        await broker.topics()
    assert await consumer.poll(timeout_s=0.1) == []
    await broker.close()


async def test_a_url_where_nobody_listens_is_refused_in_one_line() -> None:
    url = "kafka://127.0.0.1:1?open_timeout_ms=300"
    with pytest.raises(BrokerUnavailable) as refusal:
        await KafkaBroker.open(url)
    assert str(refusal.value) == f"no Kafka broker answers at {url} (tried for 300 ms)"


# Topics


@kafka
async def test_every_setting_that_differs_is_named_with_its_remedy(broker: KafkaBroker) -> None:
    foreign = unique("topic")
    admin = AIOKafkaAdminClient(**broker.settings.connection())
    await admin.start()
    await admin.create_topics(
        [
            NewTopic(
                foreign, 2, 1,
                topic_configs={"cleanup.policy": "compact", "retention.ms": "5000", "max.message.bytes": "9999",
                               "retention.bytes": "777777"},
            )
        ]
    )  # fmt: skip
    await admin.close()
    own = TopicSpec(name=unique("topic"), partitions=1)
    wanted = TopicSpec(name=foreign, partitions=6, retention_ms=86_400_000, replication_factor=3)
    with pytest.raises(TopicError) as refusal:
        await broker.ensure_topics([own, wanted])
    told = str(refusal.value)
    for difference in (
        "2 partitions instead of 6",
        "replication factor 1 instead of 3",
        "cleanup.policy=compact instead of delete",
        "message.timestamp.type=CreateTime instead of LogAppendTime",
        "retention.ms=5000 instead of 86400000",
        "retention.bytes=777777 instead of -1",
        "max.message.bytes=9999 instead of 1048576",
        f"--entity-name {foreign} --add-config retention.ms=86400000",
    ):
        assert difference in told
    assert own.name not in told
    assert own.name in await broker.topics()


@kafka
async def test_new_topics_are_as_the_specification_says(broker: KafkaBroker) -> None:
    kept, limited, compacted = (
        TopicSpec(name=unique("kept"), partitions=2),
        TopicSpec(name=unique("limited"), partitions=1, retention_ms=60_000, message_bytes_max=50_000),
        TopicSpec(name=unique("compacted"), partitions=1, compacted=True, replication_factor=1),
    )
    await broker.ensure_topics([kept, limited, compacted])
    configs = await broker._configs([kept.name, limited.name, compacted.name])
    assert configs[kept.name]["retention.ms"] == "-1"
    assert configs[limited.name]["retention.ms"] == "60000"
    assert configs[limited.name]["max.message.bytes"] == "50000"
    assert configs[compacted.name]["cleanup.policy"] == "compact"
    assert {config["message.timestamp.type"] for config in configs.values()} == {"LogAppendTime"}
    assert {config["compression.type"] for config in configs.values()} == {"uncompressed"}


@kafka
async def test_a_topic_that_cannot_be_created_is_a_topic_error(broker: KafkaBroker) -> None:
    with pytest.raises(TopicError, match="could not be created"):
        await broker.ensure_topics([TopicSpec(name=unique("topic"), partitions=1, replication_factor=7)])


# Batches that are taken apart


def apart(raw: bytes | bytearray, offset_from: int = 0, records_max: int = 500, **options: Any) -> Salvage:
    found = salvage(bytes(raw), "t", 0, offset_from, options.get("aborted", ()), records_max)
    assert found is not None
    return found


@pytest.mark.parametrize("gzip", [False, True])
def test_a_batch_gives_up_its_good_records_and_the_bytes_of_the_bad_ones(gzip: bool) -> None:
    found = apart(raw_batch([b"0", b"bad", b"2"], gzip=gzip))
    assert [(message.offset, message.key, message.value) for message in found.messages] == [
        (0, b"key", b"0"),
        (2, b"key", b"2"),
    ]
    assert found.messages[0].headers == (("good", b"1"),)
    assert [(record.offset, record.key, record.value) for record in found.quarantined] == [(1, b"key", b"bad")]
    assert found.offset_next == 3


def test_a_batch_is_read_in_portions() -> None:
    raw = raw_batch([b"0", b"bad", b"2", b"bad", b"4"])
    first = apart(raw, 0, records_max=1)
    second = apart(raw, first.offset_next, records_max=4)
    assert first.offset_next == 1
    assert [message.offset for message in [*first.messages, *second.messages]] == [0, 2, 4]
    assert [record.offset for record in [*first.quarantined, *second.quarantined]] == [1, 3]
    assert second.offset_next == 5


def test_a_batch_whose_checksum_is_wrong_is_passed_over_as_a_whole() -> None:
    raw = raw_batch([b"0", b"1", b"2"])
    raw[-1] ^= 1
    found = apart(raw, 1)
    assert found.messages == []
    assert [record.offset for record in found.quarantined] == [1]
    assert found.offset_next == 3


def test_records_behind_a_broken_frame_are_passed_over() -> None:
    raw = raw_batch([b"0", b"1", b"2"])
    frame_bytes = (len(raw) - 61) // 3
    raw[61 + frame_bytes] = 0x7E  # the second record says that it is much longer than the batch
    raw[61 + frame_bytes + 1 :] = raw[61 + frame_bytes + 1 :][: frame_bytes * 2 - 1]
    found = apart(sealed(raw))
    assert [message.offset for message in found.messages] == [0]
    assert [record.offset for record in found.quarantined] == [1]
    assert found.offset_next == 3


def test_a_batch_of_an_aborted_transaction_is_not_delivered() -> None:
    raw = raw_batch([b"0", b"bad"], producer_id=7)
    assert apart(raw, aborted=[(7, 0)]) == Salvage([], [], 2)
    assert len(apart(raw, aborted=[(8, 0)]).messages) == 1


@given(cut=st.integers(0, 300), noise=st.binary(max_size=80), at=st.integers(0, 300))
def test_no_bytes_whatever_make_taking_apart_fail_or_stand_still(cut: int, noise: bytes, at: int) -> None:
    raw = raw_batch([b"0", b"bad", b"2" * 50])
    raw[at : at + len(noise)] = noise
    header_is_whole = at >= 61
    found = salvage(bytes(sealed(raw) if header_is_whole else raw)[: len(raw) - cut], "t", 0, 1, (), 500)
    assert found is None or found.offset_next > 1


# The URL


def test_a_url_names_hosts_and_options() -> None:
    settings = KafkaSettings.parse(
        "kafka://one:1234,two,[::1]:9?session_timeout_ms=6000&heartbeat_interval_ms=300&security=plaintext"
    )
    assert settings.bootstrap == ("one:1234", "two:9092", "[::1]:9")
    assert (settings.session_timeout_ms, settings.heartbeat_interval_ms) == (6_000, 300)
    assert settings.connection()["security_protocol"] == "PLAINTEXT"


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("kafka://", "names no host"),
        ("kafka://one,,two", "names no host"),
        ("kafka://:9092", "names no host"),
        ("kafka://one:0", "'0' is no port"),
        ("kafka://one:99999", "'99999' is no port"),
        ("kafka://one:abc", "'abc' is no port"),
        ("kafka://one/topic", "nothing may follow the hosts"),
        ("kafka://one?sesion_timeout_ms=1", "no option 'sesion_timeout_ms'"),
        ("kafka://one?linger_ms=1&linger_ms=2", "given twice"),
        ("kafka://one?linger_ms=-1", "linger_ms='-1' is no whole number of at least 0"),
        ("kafka://one?session_timeout_ms=0", "session_timeout_ms='0' is no whole number of at least 1"),
        ("kafka://localhost?heartbeat_interval_ms=9000", "more than a third"),
        ("kafka://one?security=tsl", "security='tsl' is none of plaintext, tls, sasl_tls, sasl_plaintext"),
        ("kafka://user:secret@one", "credentials"),
        ("sqlite:///file", "the scheme is not kafka"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_the_reason(url: str, fault: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        KafkaSettings.parse(url)
    assert fault in str(refusal.value)
    assert "secret" not in str(refusal.value)
    assert isinstance(refusal.value, ChoreoError)


# Stalls


def test_a_partition_that_lags_at_one_place_has_stalled_and_one_that_moves_has_not() -> None:
    watch = StallWatch(10.0, now=0.0)
    stuck, busy = KafkaTopicPartition("t", 0), KafkaTopicPartition("t", 1)
    ends = {stuck: 5, busy: 100}
    assert not watch.stalled({stuck: 5, busy: 10}, ends, now=0.0)
    assert not watch.stalled({stuck: 5, busy: 20}, ends, now=20.0)  # stuck has nothing to read
    assert not watch.stalled({stuck: 5, busy: 30}, {**ends, stuck: 6}, now=25.0)
    assert not watch.stalled({stuck: 5, busy: 40}, {**ends, stuck: 7}, now=34.0)
    assert watch.stalled({stuck: 5, busy: 50}, {**ends, stuck: 7}, now=35.0)
    watch.reset()
    assert not watch.stalled({stuck: 5, busy: 50}, {**ends, stuck: 7}, now=99.0)


def test_the_log_is_asked_for_its_ends_a_few_times_per_timeout() -> None:
    watch = StallWatch(10.0, now=0.0)
    assert [second for second in range(12) if watch.due(float(second))] == [2, 4, 6, 8, 10]


FETCHED = [
    ("choreo.order", [(0, 0, 7, 7, 0, [], -1, b"records"), (3, 0, 9, 8, 2, [(4_001, 5), (4_002, 6)], -1, b"")]),
    ("choreo.ordér", [(1, 6, -1, -1, -1, None, -1, None)]),
]


def test_a_fetch_is_written_as_the_client_library_writes_it() -> None:
    request = FetchRequest(250, 1, 52_428_800, 1, [("choreo.order", [(0, 7, 1_048_576), (3, 2**40, 1_048_576)])])
    lean = LeanFetch(request).prepare({1: (4, 17)})
    usual = request.prepare({1: (4, 17)})
    assert usual.API_VERSION == lean.API_VERSION == 11
    assert lean.encode() == usual.encode()
    assert lean.build_request_header(7, "choreo").encode() == usual.build_request_header(7, "choreo").encode()


def test_an_old_broker_is_asked_in_its_own_version() -> None:
    assert LeanFetch(FetchRequest(250, 1, 1, 1, [])).prepare({1: (0, 4)}).API_VERSION == 4


def test_what_was_fetched_is_read_as_the_client_library_reads_it() -> None:
    data = struct.pack(">i", 7) + FetchResponse_v11(0, 0, 0, FETCHED).encode()
    usual, lean = BytesIO(data), BytesIO(data)
    assert LeanFetch(FetchRequest(0, 0, 0, 0, [])).parse_response_header(lean).correlation_id == 7
    usual.read(4)
    assert FetchResponse.decode(lean).topics == FetchResponse_v11.decode(usual).topics == FETCHED


@pytest.mark.parametrize("cut", [1, 8, 20, 60])
def test_a_response_that_ends_too_early_is_an_error(cut: int) -> None:
    data = FetchResponse_v11(0, 0, 0, FETCHED).encode()
    with pytest.raises((struct.error, IndexError, UnicodeDecodeError)):
        FetchResponse.decode(BytesIO(data[:-cut]))
