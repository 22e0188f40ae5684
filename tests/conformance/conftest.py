"""The logs that the suite runs against, and what a test needs of one."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from choreo.broker import Broker, TopicSpec, open_broker
from tests.conformance.members import Member, MemberProcess, Mortal, unique

SHORT_SESSION = "session_timeout_ms=3000&heartbeat_ms=200"


@pytest.fixture(params=["memory", "sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """One log of each kind. Kafka's is shared by all tests, so names of topics and groups must be unique."""
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}?{SHORT_SESSION}"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/log.db?{SHORT_SESSION}"
    kafka_url: str = request.getfixturevalue("kafka_url")
    return kafka_url


@pytest.fixture
async def broker(url: str) -> AsyncIterator[Broker]:
    opened = await open_broker(url)
    yield opened
    await opened.close()


MakeTopic = Callable[..., Awaitable[str]]


@pytest.fixture
def make_topic(broker: Broker) -> MakeTopic:
    async def make(*, partitions: int = 4, **spec: Any) -> str:
        name = unique("topic")
        await broker.ensure_topics([TopicSpec(name=name, partitions=partitions, **spec)])
        return name

    return make


@pytest.fixture
async def topic(make_topic: MakeTopic) -> str:
    return await make_topic()


@pytest.fixture
def group() -> str:
    return unique("group")


StartMember = Callable[..., Awaitable["Member"]]


@pytest.fixture
async def start_member(broker: Broker, topic: str, group: str) -> AsyncIterator[StartMember]:
    """Starts members of the group that read the topic; each runs until the test ends, leaves or dies."""
    members: list[Member] = []

    async def start(**options: Any) -> Member:
        member = Member(**options)
        members.append(member)
        await member.start(broker, group, topic)
        return member

    yield start
    for member in members:
        await member.leave()


StartMortal = Callable[[], Awaitable["Mortal"]]


@pytest.fixture
async def start_mortal(url: str, topic: str, group: str, start_member: StartMember) -> AsyncIterator[StartMortal]:
    """Starts a member that can be killed: in a process of its own, except where the log is in this process."""
    processes: list[MemberProcess] = []

    async def start() -> Mortal:
        if url.startswith("memory:"):
            return await start_member()
        process = await MemberProcess.start(url, group, topic)
        processes.append(process)
        return process

    yield start
    for process in processes:
        await process.die()
