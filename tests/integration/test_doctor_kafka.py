"""The doctor and the explainer before a real Kafka: settings that are deliberately wrong, groups that nobody is in."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from choreo import Client, Saga, Service, Step
from choreo.audit import explain
from choreo.broker import Broker, open_broker
from choreo.broker.registry import Registry, ensure_saga_topics, register
from choreo.broker.topics import dead_letter_topic, saga_topic
from choreo.clock import SystemClock
from choreo.doctor import Diagnosis, Finding, examine
from choreo.step import StepRuntime
from tests.conformance.members import unique

pytestmark = pytest.mark.kafka

RIGHT = {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime", "retention.ms": "604800000"}


@pytest.fixture
async def broker(kafka_url: str) -> AsyncIterator[Broker]:
    opened = await open_broker(kafka_url)
    yield opened
    await opened.close()


@pytest.fixture
async def admin(kafka_url: str) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=urlsplit(kafka_url).netloc)
    await client.start()
    yield client
    await client.close()


@pytest.fixture
def saga() -> Saga:
    return Saga(unique("doctored"), Step("a", compensation="undo_a"), Step("b"))


async def create(admin: AIOKafkaAdminClient, topics: Mapping[str, tuple[int, Mapping[str, str]]]) -> None:
    response = await admin.create_topics(
        [
            NewTopic(name, partitions, 1, topic_configs=dict(RIGHT | config))
            for name, (partitions, config) in topics.items()
        ]
    )
    assert all(code == 0 for _, code, _ in response.topic_errors), response


async def examined(broker: Broker, saga: Saga) -> Diagnosis:
    return await examine(broker, [saga.name], now_ms=SystemClock().now_ms())


def about_topics(found: Diagnosis, topic: str) -> dict[str, Finding]:
    return {one.check: one for one in found.findings if one.subject == topic and one.check != "topic_replication"}


async def test_each_wrong_setting_is_found_and_its_fix_mends_it(
    broker: Broker, admin: AIOKafkaAdminClient, saga: Saga
) -> None:
    topic = saga_topic(saga.name)
    wrong = {
        "cleanup.policy": "compact,delete",
        "message.timestamp.type": "CreateTime",
        "retention.ms": "3600000",
        "max.message.bytes": "100000",
    }
    await create(admin, {topic: (2, wrong), dead_letter_topic(saga.name): (3, {})})
    await broker.ensure_topics([])
    await ensure_contracts(broker)
    await register(broker, [saga])
    found = await examined(broker, saga)
    problems = about_topics(found, topic)
    assert set(problems) == {"topic_compaction", "topic_timestamps", "topic_retention", "topic_record_size"}
    assert set(about_topics(found, dead_letter_topic(saga.name))) == {"topic_partitions"}
    assert not found.healthy
    # The fixes are commands for Kafka's own tool; what they would set is set here.
    settings = dict(
        re.search(r"--add-config (\S+)=(\S+)$", finding.fix).groups()  # type: ignore[union-attr]
        for finding in problems.values()
    )
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=RIGHT | settings)])
    assert about_topics(await examined(broker, saga), topic) == {}


async def test_a_bound_on_size_and_a_missing_topic_are_found(
    broker: Broker, admin: AIOKafkaAdminClient, saga: Saga
) -> None:
    await create(admin, {saga_topic(saga.name): (1, {"retention.bytes": "1000000"})})
    await ensure_contracts(broker)
    await register(broker, [saga])
    found = await examined(broker, saga)
    assert "1,000,000 bytes" in about_topics(found, saga_topic(saga.name))["topic_retention"].text
    assert set(about_topics(found, dead_letter_topic(saga.name))) == {"topic_missing"}
    one_copy = [one for one in found.findings if one.check == "topic_replication"]
    assert {one.level for one in one_copy} == {"warning"}


async def ensure_contracts(broker: Broker) -> None:
    other = Saga(unique("other"), Step("a"))
    await ensure_saga_topics(broker, [other], partitions=1)


async def test_a_service_that_lives_and_one_that_does_not(broker: Broker, saga: Saga) -> None:
    service = Service(unique("payment"))
    service.step(saga, "a")(slow)
    service.compensation(saga, "a")(lambda: None)
    service.step(saga, "b")(lambda: None)
    await ensure_saga_topics(broker, [saga], partitions=2)
    registry = Registry(broker)
    async with Client(broker) as client:
        await client.start(saga, {"x": 1}, id="s")
        why = await explain(broker, saga.name, "s", registry=registry, now_ms=SystemClock().now_ms())
        assert "no service has said that it runs a" in why.headline
        async with running(service, broker):
            why = await explained(broker, saga, "has it in hand")
            [waited] = why.reasons[0].waits_on
            assert (waited.group, waited.members, waited.lag) == (service.group, 1, 1)
            found = await examined(broker, saga)
            assert not [one for one in found.findings if one.subject == service.group]
        why = await explained(broker, saga, "has no members")
        assert f"group {service.group} has no members; lag 1" in why.headline
        found = await examined(broker, saga)
        dead = next(one for one in found.findings if one.subject == service.group)
        assert (dead.check, dead.text) == ("group_without_members", "the group has no members; 1 records wait for it")


async def slow() -> None:
    await asyncio.sleep(60)


@contextlib.asynccontextmanager
async def running(service: Service, broker: Broker) -> AsyncIterator[Any]:
    from choreo.step.options import Options

    runtime = StepRuntime(service, broker, options=Options(shutdown_timeout_s=0.1))
    task = asyncio.create_task(runtime.run())
    yield runtime
    await runtime.stop()
    await task


async def explained(broker: Broker, saga: Saga, words: str) -> Any:
    async with asyncio.timeout(60):
        while True:
            why = await explain(broker, saga.name, "s", registry=Registry(broker), now_ms=SystemClock().now_ms())
            if words in why.headline:
                return why
            await asyncio.sleep(0.1)
