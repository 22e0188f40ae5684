"""What services say they run, beside the contracts."""

from __future__ import annotations

import asyncio

from choreo.broker.announcement import announcement
from choreo.broker.port import TopicPartition
from choreo.broker.registry import Registry, announce
from choreo.broker.topics import CONTRACTS_TOPIC
from choreo.step import Service, StepRuntime
from tests.unit.by_hand import LINE, a_broker, messages_of


async def test_the_last_word_of_a_service_counts() -> None:
    broker = await a_broker(LINE)
    registry = Registry(broker)
    await registry.refresh()
    await announce(broker, registry, [announcement("one", "choreo.one", [("order", 1, "b"), ("order", 1, "a")])])
    await announce(broker, registry, [announcement("two", "choreo.two", [("order", 1, "c")])])
    await registry.refresh()
    assert [word.service for word in registry.services] == ["one", "two"]
    assert [word.group for word in registry.hosts("order", 1, "a")] == ["choreo.one"]
    assert registry.hosts("order", 2, "a") == ()
    await announce(broker, registry, [announcement("one", "choreo.one", [("order", 2, "a")])])
    await registry.refresh()
    assert registry.hosts("order", 1, "a") == ()
    assert [word.service for word in registry.hosts("order", 2, "a")] == ["one"]
    assert registry.contracts == (LINE,)
    assert registry.unreadable == ()


async def test_what_is_known_is_not_said_again() -> None:
    broker = await a_broker(LINE)
    registry = Registry(broker)
    for _ in range(3):
        await registry.refresh()
        await announce(broker, registry, [announcement("one", "choreo.one", [("order", 1, "a")])])
    assert len([m for m in await messages_of(broker, CONTRACTS_TOPIC) if m.key == b"service:one"]) == 1
    assert (await broker.offsets([TopicPartition(CONTRACTS_TOPIC, 0)]))[CONTRACTS_TOPIC, 0] == (0, 2)  # and a contract


async def test_words_that_nobody_can_read_harm_nothing() -> None:
    broker = await a_broker(LINE)
    producer = await broker.producer()
    for value in (b"", b"{", b'{"service":1}'):
        await producer.send(CONTRACTS_TOPIC, key="service:odd", value=value)
    registry = Registry(broker)
    await registry.refresh()
    assert len(registry.unreadable) >= 1
    assert registry.services == ()
    assert registry.contracts == (LINE,)


async def test_a_service_that_starts_says_what_it_runs() -> None:
    broker = await a_broker(LINE)
    service = Service("payment")
    for step in ("a", "b"):
        service.step(LINE, step)(lambda: None)
        service.compensation(LINE, step)(lambda: None)
    runtime = StepRuntime(service, broker)
    running = asyncio.create_task(runtime.run())
    registry = Registry(broker)
    async with asyncio.timeout(10):
        while not registry.services:
            await asyncio.sleep(0.01)
            await registry.refresh()
    await runtime.stop()
    await running
    [word] = registry.services
    assert (word.service, word.group) == ("payment", "choreo.payment")
    assert [(each.saga, each.version, each.step) for each in word.steps] == [("order", 1, "a"), ("order", 1, "b")]
