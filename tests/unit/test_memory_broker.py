"""The broker in memory, on a loop whose time is virtual: leases lapse, records expire, and nobody waits."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

import pytest

from choreo.broker.memory import MemoryBroker
from choreo.broker.port import Committed, Message, TopicPartition, TopicSpec
from choreo.errors import BrokerError, ConfigurationError

T = TypeVar("T")

TOPIC = "choreo.order"
TP = TopicPartition(TOPIC, 0)
EPOCH_MS = 1_800_000_000_000


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop that jumps to its next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None) -> Any:
            self._now_s += timeout or 0.0
            return select(0)

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now_s

    def now_ms(self) -> int:
        return EPOCH_MS + int(self._now_s * 1_000)


def simulated(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


async def opened(name: str = "log") -> MemoryBroker:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return await MemoryBroker.open(f"memory://{name}", now_ms=loop.now_ms)


async def read_all(broker: MemoryBroker) -> list[Message]:
    reader = await broker.reader()
    reader.seek(TP, 0)
    return list(await reader.poll(timeout_s=0))


async def ignore(_: Collection[TopicPartition]) -> None:
    """A listener that has nothing to do."""


async def test_one_name_is_one_log_on_one_loop() -> None:
    name = uuid.uuid4().hex
    one, same, other = [await MemoryBroker.open(f"memory://{which}") for which in (name, name, name + "-other")]
    await one.ensure_topics([TopicSpec(name=TOPIC, partitions=1)])
    assert await same.topics() == {TOPIC}
    assert await other.topics() == frozenset()
    await one.close()
    assert await (await MemoryBroker.open(f"memory://{name}")).topics() == {TOPIC}


def test_another_loop_has_another_log() -> None:
    async def topics_then_one_more() -> frozenset[str]:
        broker = await opened()
        topics = await broker.topics()
        await broker.ensure_topics([TopicSpec(name=TOPIC, partitions=1)])
        return topics

    assert simulated(topics_then_one_more()) == simulated(topics_then_one_more()) == frozenset()


async def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no option 'retention'"):
        await MemoryBroker.open("memory://log?retention=3")


def test_append_times_are_those_of_the_given_clock() -> None:
    async def scenario() -> list[int]:
        broker = await opened()
        await broker.ensure_topics([TopicSpec(name=TOPIC, partitions=1)])
        producer = await broker.producer()
        first = await producer.send(TOPIC, key="k", value=b"")
        await asyncio.sleep(86_400)
        by_url_alone = await MemoryBroker.open("memory://log")
        second = await (await by_url_alone.producer()).send(TOPIC, key="k", value=b"")
        return [first.timestamp_ms, second.timestamp_ms]

    assert simulated(scenario()) == [EPOCH_MS, EPOCH_MS + 86_400_000]


def test_a_member_that_was_abandoned_loses_its_partitions_with_its_lease() -> None:
    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        broker = await opened()
        await broker.ensure_topics([TopicSpec(name=TOPIC, partitions=2)])
        dead, heir = [await broker.consumer("g", [TOPIC], on_assigned=ignore, on_revoked=ignore) for _ in range(2)]
        await asyncio.gather(dead.poll(timeout_s=1), heir.poll(timeout_s=1))
        assert len(dead.assignment()) == len(heir.assignment()) == 1
        dead.abandon()
        with pytest.raises(BrokerError, match="closed"):
            await dead.poll(timeout_s=1)
        died_s = loop.time()
        while len(heir.assignment()) < 2:
            await heir.poll(timeout_s=0.1)
        return loop.time() - died_s

    assert 5 < simulated(scenario()) < 8


def test_a_member_that_does_not_poll_loses_its_partitions_and_is_told() -> None:
    async def scenario() -> list[str]:
        events: list[str] = []

        async def lost(tps: Collection[TopicPartition]) -> None:
            events.append(f"lost {len(tps)}")

        broker = await opened()
        await broker.ensure_topics([TopicSpec(name=TOPIC, partitions=2)])
        idle = await broker.consumer("g", [TOPIC], on_assigned=ignore, on_revoked=lost)
        await idle.poll(timeout_s=0)
        heir = await broker.consumer("g", [TOPIC], on_assigned=ignore, on_revoked=ignore)
        await heir.poll(timeout_s=10)
        events.append(f"heir has {len(heir.assignment())}")
        polling = asyncio.create_task(heir.poll(timeout_s=3))
        await idle.poll(timeout_s=3)
        await polling
        events.append(f"then {len(idle.assignment())} and {len(heir.assignment())}")
        return events

    assert simulated(scenario()) == ["heir has 2", "lost 2", "then 1 and 1"]


def test_a_listener_may_take_longer_than_a_lease() -> None:
    async def scenario() -> int:
        async def slowly(_: Collection[TopicPartition]) -> None:
            await asyncio.sleep(60)

        broker = await opened()
        await broker.ensure_topics([TopicSpec(name=TOPIC, partitions=1)])
        slow = await broker.consumer("g", [TOPIC], on_assigned=slowly, on_revoked=ignore)
        polling = asyncio.create_task(slow.poll(timeout_s=0))
        await asyncio.sleep(1)
        other = await broker.consumer("g", [TOPIC], on_assigned=ignore, on_revoked=ignore)
        await other.poll(timeout_s=40)
        await polling
        await slow.commit({TP: Committed(0)})
        return len(other.assignment())

    assert simulated(scenario()) == 0


def test_records_expire_and_offsets_go_on() -> None:
    async def scenario() -> tuple[list[int], tuple[int, int]]:
        broker = await opened()
        await broker.ensure_topics([TopicSpec(name=TOPIC, partitions=1, retention_ms=60_000)])
        producer = await broker.producer()
        for _ in range(3):
            await producer.send(TOPIC, key="k", value=b"")
            await asyncio.sleep(40)
        return [message.offset for message in await read_all(broker)], (await broker.offsets([TP]))[TP]

    assert simulated(scenario()) == ([1, 2], (1, 3))


def test_a_compacted_topic_keeps_the_last_record_of_each_key() -> None:
    async def scenario() -> list[tuple[int, bytes | None]]:
        broker = await opened()
        await broker.ensure_topics([TopicSpec(name=TOPIC, partitions=1, compacted=True)])
        producer = await broker.producer()
        for key in "abacb":
            await producer.send(TOPIC, key=key, value=b"")
        return [(message.offset, message.key) for message in await read_all(broker)]

    assert simulated(scenario()) == [(2, b"a"), (3, b"c"), (4, b"b")]
