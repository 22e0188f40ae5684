"""What every broker promises, whatever it is made of: the promises of ``choreo/broker/port.py``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection

import pytest

from choreo.broker import Appended, Broker, Committed, Consumer, Message, TopicPartition, TopicSpec
from choreo.broker.port import COMMIT_METADATA_MAX_CHARS
from choreo.errors import ChoreoError, CommitRefused, RecordTooLarge, TopicError
from tests.conformance.conftest import MakeTopic, StartMember, StartMortal
from tests.conformance.members import DEADLINE_S, all_of, collect, consume, unique, until

KEYS = [f"saga-{number}" for number in range(40)]  # enough that each of four partitions has some


async def send_all(broker: Broker, topic: str, keys: Collection[str] = KEYS, value: bytes = b"v") -> list[Appended]:
    producer = await broker.producer()
    return [await producer.send(topic, key=key, value=value) for key in keys]


async def read_all(broker: Broker, topic: str, count: int, partitions: int = 4) -> list[Message]:
    reader = await broker.reader()
    for tp in all_of(topic, partitions):
        reader.seek(tp, 0)
    return await collect(reader, count)


def coordinates(messages: Collection[Message]) -> list[Appended]:
    return sorted(Appended(m.topic, m.partition, m.offset, m.timestamp_ms) for m in messages)


# Topics


async def test_ensuring_a_topic_twice_is_fine(broker: Broker) -> None:
    spec = TopicSpec(name=unique("topic"), partitions=3, retention_ms=86_400_000)
    await broker.ensure_topics([spec])
    await broker.ensure_topics([spec])
    assert await broker.partitions(spec.name) == 3
    assert spec.name in await broker.topics()


async def test_a_topic_with_other_partitions_is_refused_with_both_numbers(broker: Broker) -> None:
    name = unique("topic")
    await broker.ensure_topics([TopicSpec(name=name, partitions=3)])
    with pytest.raises(TopicError, match=rf"(?s)(?=.*{name})(?=.*\b3\b)(?=.*\b5\b)"):
        await broker.ensure_topics([TopicSpec(name=name, partitions=5)])
    assert await broker.partitions(name) == 3


async def test_all_differences_are_told_at_once(broker: Broker) -> None:
    first, second = unique("topic"), unique("topic")
    await broker.ensure_topics(
        [
            TopicSpec(name=first, partitions=1, retention_ms=3_600_000),
            TopicSpec(name=second, partitions=1, retention_ms=3_600_000),
        ]
    )
    with pytest.raises(TopicError) as refusal:
        await broker.ensure_topics(
            [
                TopicSpec(name=first, partitions=1, retention_ms=7_200_000),
                TopicSpec(name=second, partitions=1, compacted=True),
            ]
        )
    assert first in str(refusal.value)
    assert second in str(refusal.value)
    assert "7200000" in str(refusal.value)
    assert "compact" in str(refusal.value)


async def test_a_topic_that_does_not_exist_is_a_topic_error(broker: Broker) -> None:
    producer = await broker.producer()
    with pytest.raises(TopicError):
        await producer.send(unique("missing"), key="k", value=b"v")
    with pytest.raises(TopicError):
        await broker.partitions(unique("missing"))


# Sending


async def test_a_record_is_where_and_when_its_send_said(broker: Broker, topic: str) -> None:
    appended = await send_all(broker, topic)
    assert coordinates(await read_all(broker, topic, len(KEYS))) == sorted(appended)


async def test_records_of_a_key_keep_the_order_of_their_sends(broker: Broker, topic: str) -> None:
    producer = await broker.producer()
    for number in range(30):
        await producer.send(topic, key=KEYS[number % 3], value=b"%d" % number)
    messages = await read_all(broker, topic, 30)
    for which, key in enumerate(KEYS[:3]):
        values = [int(message.value) for message in messages if message.key == key.encode()]
        assert values == list(range(which, 30, 3))


async def test_sends_side_by_side_keep_the_order_of_the_calls_for_each_key(broker: Broker, topic: str) -> None:
    producer = await broker.producer()
    sends = [
        asyncio.ensure_future(producer.send(topic, key=KEYS[number % 7], value=b"%d" % number)) for number in range(300)
    ]
    appended = await asyncio.gather(*sends)
    messages = await read_all(broker, topic, 300)
    assert coordinates(messages) == sorted(appended)
    for which, key in enumerate(KEYS[:7]):
        values = [int(message.value) for message in messages if message.key == key.encode()]
        assert values == list(range(which, 300, 7))


async def test_records_of_a_key_are_in_the_partition_that_the_broker_names(broker: Broker, topic: str) -> None:
    keys = [*KEYS, "Zürich", "", "注文-1"]
    appended = await send_all(broker, topic, keys)
    assert [place.partition for place in appended] == [await broker.partition_of(topic, key) for key in keys]
    assert [place.partition for place in await send_all(broker, topic, keys)] == [p.partition for p in appended]
    assert {place.partition for place in appended} == {0, 1, 2, 3}


async def test_append_times_do_not_fall_within_a_partition(broker: Broker, make_topic: MakeTopic) -> None:
    topic = await make_topic(partitions=1)
    appended = await send_all(broker, topic)
    times = [place.timestamp_ms for place in appended]
    assert times == sorted(times)
    assert times[0] > 1_700_000_000_000  # milliseconds since 1970, not seconds, not since some boot
    assert [place.offset for place in appended] == list(range(len(KEYS)))


async def test_headers_keep_order_duplicates_and_bytes(broker: Broker, topic: str) -> None:
    headers = (("a", b"1"), ("b", b""), ("a", b"2"), ("bin", bytes(range(256))), ("ünï", b"x"))
    producer = await broker.producer()
    await producer.send(topic, key="k", value=b"v", headers=headers)
    await producer.send(topic, key="k", value=b"v")
    first, second = await read_all(broker, topic, 2)
    assert first.headers == headers
    assert first.header("a") == b"1"
    assert second.headers == ()


async def test_keys_and_values_are_kept_as_they_are(broker: Broker, topic: str) -> None:
    producer = await broker.producer()
    values = [b"", bytes(range(256)), os.urandom(100_000)]
    for value in values:
        await producer.send(topic, key="Zürich", value=value)
    messages = await read_all(broker, topic, 3)
    assert [message.value for message in messages] == values
    assert {message.key for message in messages} == {"Zürich".encode()}


async def test_a_record_that_is_too_large_is_refused_and_harms_no_other(broker: Broker, make_topic: MakeTopic) -> None:
    topic = await make_topic(partitions=1, message_bytes_max=20_000)
    producer = await broker.producer()
    before, refused, after = await asyncio.gather(
        producer.send(topic, key="k", value=b"before"),
        producer.send(topic, key="k", value=os.urandom(40_000)),
        producer.send(topic, key="k", value=b"after"),
        return_exceptions=True,
    )
    assert isinstance(refused, RecordTooLarge)
    assert isinstance(before, Appended)
    assert isinstance(after, Appended)
    assert [message.value for message in await read_all(broker, topic, 2, 1)] == [b"before", b"after"]


# Reading


async def test_a_reader_reads_from_any_offset(broker: Broker, make_topic: MakeTopic) -> None:
    topic = await make_topic(partitions=1)
    await send_all(broker, topic)
    reader = await broker.reader()
    for offset in (0, 17, len(KEYS) - 1, 3):
        reader.seek(TopicPartition(topic, 0), offset)
        messages = await collect(reader, 1)
        assert messages[0].offset == offset


async def test_a_reader_follows_new_records(broker: Broker, topic: str) -> None:
    reader = await broker.reader()
    for tp in all_of(topic):
        reader.seek(tp, 0)
    assert len(await reader.poll(timeout_s=0.05)) == 0
    waiting = asyncio.create_task(collect(reader, 1))
    await asyncio.sleep(0.1)
    (appended,) = await send_all(broker, topic, ["k"])
    assert coordinates(await waiting) == [appended]


async def test_the_position_of_a_reader_passes_the_end(broker: Broker, topic: str) -> None:
    await send_all(broker, topic)
    reader = await broker.reader()
    for tp in all_of(topic):
        reader.seek(tp, 0)
        assert reader.position(tp) == 0
    ends = {tp: end for tp, (_, end) in (await broker.offsets(all_of(topic))).items()}
    async with asyncio.timeout(DEADLINE_S):
        while any(reader.position(tp) < end for tp, end in ends.items()):
            await reader.poll(timeout_s=0.2)
    assert sum(ends.values()) == len(KEYS)


async def test_a_poll_brings_no_more_than_it_was_asked_for(broker: Broker, topic: str) -> None:
    await send_all(broker, topic)
    reader = await broker.reader()
    for tp in all_of(topic):
        reader.seek(tp, 0)
    messages: list[Message] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(messages) < len(KEYS):
            batch = await reader.poll(timeout_s=0.5, records_max=7)
            assert len(batch) <= 7
            messages += batch
    assert len(set(coordinates(messages))) == len(KEYS)


async def test_offsets_tell_the_earliest_and_the_next(broker: Broker, make_topic: MakeTopic) -> None:
    topic = await make_topic(partitions=2)
    busy, idle = TopicPartition(topic, await broker.partition_of(topic, "k")), None
    idle = TopicPartition(topic, 1 - busy.partition)
    await send_all(broker, topic, ["k"] * 5)
    assert dict(await broker.offsets([busy, idle])) == {busy: (0, 5), idle: (0, 0)}


# Groups: where they start, what they commit


async def test_a_group_starts_at_the_earliest_record_without_a_commit(broker: Broker, topic: str, group: str) -> None:
    appended = await send_all(broker, topic)
    consumer = await consume(broker, group, topic)
    assert coordinates(await collect(consumer, len(KEYS))) == sorted(appended)
    assert consumer.assignment() == all_of(topic)
    assert [await consumer.committed(tp) for tp in sorted(all_of(topic))] == [None] * 4


async def test_a_group_goes_on_at_the_committed_offset(broker: Broker, topic: str, group: str) -> None:
    await send_all(broker, topic)
    first = await consume(broker, group, topic)
    seen = await collect(first, len(KEYS))
    ends = {message.tp: Committed(message.offset + 1) for message in seen}
    await first.commit(ends)
    await first.close()

    appended = await send_all(broker, topic)
    second = await consume(broker, group, topic)
    assert coordinates(await collect(second, len(KEYS))) == sorted(appended)


async def test_what_was_not_committed_is_delivered_again(broker: Broker, make_topic: MakeTopic, group: str) -> None:
    topic = await make_topic(partitions=1)
    await send_all(broker, topic)
    first = await consume(broker, group, topic)
    await collect(first, len(KEYS))
    await first.commit({TopicPartition(topic, 0): Committed(25)})
    await first.close()

    second = await consume(broker, group, topic)
    assert [message.offset for message in await collect(second, 15)] == list(range(25, 40))


async def test_groups_do_not_take_records_from_each_other(broker: Broker, topic: str) -> None:
    appended = await send_all(broker, topic)
    for consumer in (await consume(broker, unique("group"), topic), await consume(broker, unique("group"), topic)):
        assert coordinates(await collect(consumer, len(KEYS))) == sorted(appended)


async def test_the_metadata_of_a_commit_comes_back(broker: Broker, topic: str, group: str) -> None:
    tp, place = TopicPartition(topic, 1), Committed(0, "m" * COMMIT_METADATA_MAX_CHARS)
    consumer = await consume(broker, group, topic)
    await _until_assigned(consumer, topic)
    await consumer.commit({tp: place, TopicPartition(topic, 2): Committed(0)})
    assert await consumer.committed(tp) == place
    assert await consumer.committed(TopicPartition(topic, 2)) == Committed(0, "")
    await consumer.close()
    next_owner = await consume(broker, group, topic)
    assert await next_owner.committed(tp) == place


async def test_too_much_metadata_is_refused(broker: Broker, topic: str, group: str) -> None:
    consumer = await consume(broker, group, topic)
    await _until_assigned(consumer, topic)
    with pytest.raises(ChoreoError, match="metadata") as refusal:
        await consumer.commit({TopicPartition(topic, 1): Committed(0, "m" * (COMMIT_METADATA_MAX_CHARS + 1))})
    assert not refusal.value.retriable
    assert await consumer.committed(TopicPartition(topic, 1)) is None


async def _until_assigned(consumer: Consumer, topic: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while consumer.assignment() != all_of(topic):
            assert len(await consumer.poll(timeout_s=0.1)) == 0


# Groups: who has which partition


async def test_two_members_share_the_partitions(broker: Broker, topic: str, start_member: StartMember) -> None:
    one, two = await start_member(), await start_member()
    await until(lambda: len(one.assignment()) == len(two.assignment()) == 2, one, two)
    assert one.assignment() | two.assignment() == all_of(topic)

    appended = await send_all(broker, topic)
    await until(lambda: len(one.received) + len(two.received) >= len(KEYS), one, two)
    assert coordinates([*one.received, *two.received]) == sorted(appended)
    assert {message.tp for message in one.received} == one.assignment()
    assert {message.tp for message in two.received} == two.assignment()


async def test_a_member_that_joins_takes_over_a_part(broker: Broker, topic: str, start_member: StartMember) -> None:
    one = await start_member()
    earlier = await send_all(broker, topic)
    await until(lambda: len(one.received) == len(KEYS), one)

    two = await start_member()
    await until(lambda: len(two.assignment()) == 2, one, two)
    later = await send_all(broker, topic)
    await until(lambda: len(one.received) + len(two.received) >= 2 * len(KEYS), one, two)
    assert set(coordinates(two.received)) == {p for p in later if TopicPartition(*p[:2]) in two.assignment()}
    assert set(coordinates([*one.received, *two.received])) == {*earlier, *later}


async def test_a_partition_is_given_up_before_another_gets_it(topic: str, start_member: StartMember) -> None:
    events: list[tuple[str, TopicPartition]] = []

    async def slowly(tps: Collection[TopicPartition]) -> None:
        await asyncio.sleep(0.5)
        events.extend(("released", tp) for tp in tps)

    async def at_once(_: Consumer, tps: Collection[TopicPartition]) -> None:
        events.extend(("assigned", tp) for tp in tps)

    one = await start_member(before_release=slowly)
    await until(lambda: one.assignment() == all_of(topic), one)
    two = await start_member(after_assign=at_once)
    await until(lambda: len(two.assignment()) == 2, one, two)
    for tp in two.assignment():
        assert events.index(("released", tp)) < events.index(("assigned", tp))


async def test_a_member_that_leaves_hands_over_at_once(broker: Broker, topic: str, start_member: StartMember) -> None:
    one, two = await start_member(), await start_member()
    await until(lambda: len(one.assignment()) == len(two.assignment()) == 2, one, two)
    await one.leave()
    await until(lambda: two.assignment() == all_of(topic), two)
    appended = await send_all(broker, topic)
    await until(lambda: set(coordinates(two.received)) >= set(appended), two)


async def test_a_member_that_dies_is_replaced(
    broker: Broker, topic: str, start_member: StartMember, start_mortal: StartMortal
) -> None:
    mortal = await start_mortal()
    await until(lambda: mortal.assignment() == all_of(topic))
    survivor = await start_member()
    await until(lambda: len(survivor.assignment()) == 2, survivor)
    await mortal.die()
    await until(lambda: survivor.assignment() == all_of(topic), survivor)
    appended = await send_all(broker, topic)
    await until(lambda: set(coordinates(survivor.received)) >= set(appended), survivor)


async def test_a_commit_for_a_partition_that_was_lost_is_refused(topic: str, start_member: StartMember) -> None:
    one = await start_member()
    await until(lambda: one.assignment() == all_of(topic), one)
    two = await start_member()
    await until(lambda: len(one.assignment()) == len(two.assignment()) == 2, one, two)
    lost = min(two.assignment())
    with pytest.raises(CommitRefused):
        await one.consumer.commit({lost: Committed(0)})
    assert await two.consumer.committed(lost) is None


async def test_the_next_owner_goes_on_where_the_last_one_committed(
    broker: Broker, topic: str, start_member: StartMember
) -> None:
    one = await start_member()
    await send_all(broker, topic)
    await until(lambda: len(one.received) == len(KEYS), one)
    two = await start_member()  # one commits what it has when its partitions are revoked
    await until(lambda: len(two.assignment()) == 2, one, two)
    await send_all(broker, topic, value=b"later")
    await until(lambda: {message.tp for message in two.received} == two.assignment(), one, two)
    assert {message.value for message in two.received} == {b"later"}


# What a consumer can be told


async def test_a_listener_may_seek_and_read_commits(broker: Broker, make_topic: MakeTopic, group: str) -> None:
    topic = await make_topic(partitions=1)
    tp = TopicPartition(topic, 0)
    await send_all(broker, topic)
    first = await consume(broker, group, topic)
    await collect(first, len(KEYS))
    await first.commit({tp: Committed(30, "note")})
    await first.close()
    seen: list[Committed | None] = []

    async def on_assigned(tps: Collection[TopicPartition]) -> None:
        for assigned in tps:
            seen.append(await consumer.committed(assigned))
            consumer.seek(assigned, 12)

    async def on_revoked(tps: Collection[TopicPartition]) -> None:
        seen.extend(None for _ in tps)

    consumer = await broker.consumer(group, [topic], on_assigned=on_assigned, on_revoked=on_revoked)
    messages = await collect(consumer, len(KEYS) - 12)
    assert seen == [Committed(30, "note")]
    assert [message.offset for message in messages] == list(range(12, len(KEYS)))


async def test_seeking_back_delivers_again(broker: Broker, make_topic: MakeTopic, group: str) -> None:
    topic = await make_topic(partitions=1)
    await send_all(broker, topic)
    consumer = await consume(broker, group, topic)
    await collect(consumer, len(KEYS))
    consumer.seek(TopicPartition(topic, 0), 35)
    assert [message.offset for message in await collect(consumer, 5)] == [35, 36, 37, 38, 39]


async def test_a_paused_partition_waits_until_it_is_resumed(broker: Broker, topic: str, group: str) -> None:
    consumer = await consume(broker, group, topic)
    await _until_assigned(consumer, topic)
    quiet = TopicPartition(topic, await broker.partition_of(topic, KEYS[0]))
    consumer.pause([quiet])
    appended = await send_all(broker, topic)
    held_back = [place for place in appended if place.partition == quiet.partition]

    heard = await collect(consumer, len(KEYS) - len(held_back))
    heard += await consumer.poll(timeout_s=0.3)
    assert coordinates(heard) == sorted(set(appended) - set(held_back))
    consumer.resume([quiet])
    assert coordinates(await collect(consumer, len(held_back))) == sorted(held_back)


async def test_lag_and_end_offset_tell_how_far_behind_a_consumer_is(
    broker: Broker, make_topic: MakeTopic, group: str
) -> None:
    topic = await make_topic(partitions=1)
    tp = TopicPartition(topic, 0)
    await send_all(broker, topic)
    consumer = await consume(broker, group, topic)
    messages: list[Message] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(messages) < 10:
            messages += await consumer.poll(timeout_s=0.5, records_max=10 - len(messages))
    assert await consumer.end_offset(tp) == len(KEYS)
    assert consumer.lag(tp) == len(KEYS) - 10
    await collect(consumer, len(KEYS) - 10)
    assert consumer.lag(tp) == 0
    assert consumer.lag(TopicPartition(topic, 99)) is None


async def test_a_poll_ends_when_a_record_comes(broker: Broker, topic: str, group: str) -> None:
    consumer = await consume(broker, group, topic)
    await _until_assigned(consumer, topic)
    polling = asyncio.create_task(consumer.poll(timeout_s=DEADLINE_S * 10))
    await asyncio.sleep(0.1)
    (appended,) = await send_all(broker, topic, ["k"])
    async with asyncio.timeout(DEADLINE_S):
        assert coordinates(await polling) == [appended]


async def test_closing_twice_is_harmless(broker: Broker, topic: str, group: str) -> None:
    producer, reader = await broker.producer(), await broker.reader()
    consumer = await consume(broker, group, topic)
    await producer.send(topic, key="k", value=b"v")
    for part in (producer, reader, consumer, broker, producer, reader, consumer, broker):
        await part.close()


async def test_a_closed_producer_sends_nothing(broker: Broker, topic: str) -> None:
    producer = await broker.producer()
    await producer.close()
    with pytest.raises(ChoreoError):
        await producer.send(topic, key="k", value=b"v")
    tps = all_of(topic)
    assert {end for _, end in (await broker.offsets(tps)).values()} == {0}


async def test_a_topic_may_keep_records_longer_than_is_needed(broker: Broker) -> None:
    name = unique("keeps-long")
    await broker.ensure_topics([TopicSpec(name=name, partitions=1, retention_ms=2 * 86_400_000)])
    await broker.ensure_topics([TopicSpec(name=name, partitions=1, retention_ms=86_400_000)])
    with pytest.raises(TopicError, match=name):
        await broker.ensure_topics([TopicSpec(name=name, partitions=1, retention_ms=3 * 86_400_000)])


# Looking from outside


async def test_a_topic_is_described_as_it_was_made(broker: Broker, make_topic: MakeTopic) -> None:
    info = await broker.topic_info(await make_topic(partitions=3, retention_ms=86_400_000))
    assert (info.partitions, info.retention_ms, info.retention_bytes) == (3, 86_400_000, None)
    assert (info.compacted, info.log_append_time) == (False, True)
    assert info.replication_factor >= 1
    assert info.in_sync_min >= 1
    assert info.message_bytes_max == 1_048_576
    info = await broker.topic_info(await make_topic(partitions=1, compacted=True))
    assert info.compacted
    info = await broker.topic_info(await make_topic(partitions=1))
    assert info.retention_ms is None
    with pytest.raises(TopicError):
        await broker.topic_info(unique("missing"))


async def test_a_group_that_nobody_joined_is_empty(broker: Broker) -> None:
    info = await broker.group_info(unique("nobody"))
    assert (info.members, dict(info.committed)) == ((), {})


async def test_a_group_shows_who_has_what(broker: Broker, topic: str, group: str, start_member: StartMember) -> None:
    first, second = await start_member(), await start_member()
    await until(lambda: len(first.assignment()) == len(second.assignment()) == 2, first, second)
    info = await broker.group_info(group)
    assert sorted(member.partitions for member in info.members) == sorted(
        tuple(sorted(member.assignment())) for member in (first, second)
    )
    await first.leave()
    await until(lambda: len(second.assignment()) == 4, second)
    assert [frozenset(m.partitions) for m in (await broker.group_info(group)).members] == [all_of(topic)]
    await second.leave()
    assert (await broker.group_info(group)).members == ()


async def test_a_group_shows_how_far_it_is_and_what_it_said(broker: Broker, topic: str, group: str) -> None:
    await send_all(broker, topic)
    consumer = await consume(broker, group, topic)
    messages = await collect(consumer, len(KEYS))
    places = {message.tp: Committed(message.offset + 1, "f1:2") for message in messages if message.partition < 2}
    await consumer.commit(places)
    await consumer.close()
    assert dict((await broker.group_info(group)).committed) == places


async def test_a_dead_member_is_not_shown_for_long(
    broker: Broker, group: str, start_mortal: StartMortal, topic: str
) -> None:
    mortal = await start_mortal()
    async with asyncio.timeout(DEADLINE_S):
        while not any(member.partitions for member in (await broker.group_info(group)).members):
            await asyncio.sleep(0.05)
    await mortal.die()
    async with asyncio.timeout(DEADLINE_S):
        while (await broker.group_info(group)).members:
            await asyncio.sleep(0.05)
