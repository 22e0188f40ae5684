"""What the file keeps to when several processes share it, and when some of them are killed."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from choreo.broker import Broker, TopicPartition, TopicSpec, open_broker
from tests.conformance.members import DEADLINE_S, MemberProcess, all_of, collect, start_script, until

TOPIC, GROUP, PARTITIONS = "choreo.order", "order-saga-log", 6
ALL = all_of(TOPIC, PARTITIONS)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/log.db?session_timeout_ms=4000&heartbeat_ms=250"


@pytest.fixture
async def broker(url: str) -> AsyncIterator[Broker]:
    opened = await open_broker(url)
    await opened.ensure_topics([TopicSpec(name=TOPIC, partitions=PARTITIONS)])
    yield opened
    await opened.close()


class Group:
    """Member processes, those that are gone included."""

    def __init__(self, url: str) -> None:
        self.members: list[MemberProcess] = []
        self._url = url

    async def add(self) -> MemberProcess:
        member = await MemberProcess.start(self._url, GROUP, TOPIC)
        self.members.append(member)
        return member

    def received(self) -> list[str]:
        return [value for member in self.members for value in member.received]


@pytest.fixture
async def members(url: str, broker: Broker) -> AsyncIterator[Group]:
    group = Group(url)
    yield group
    for member in group.members:
        await member.die()


async def produced(url: str, names: Iterable[str], count: int) -> list[str]:
    """What producers of these names, a process each, had acknowledged: all that they sent."""
    processes = [await start_script("producer_process.py", url, TOPIC, name, str(count)) for name in names]
    outputs = await asyncio.gather(*(process.communicate() for process in processes))
    assert [process.returncode for process in processes] == [0] * len(processes)
    values = [json.loads(line)[2] for output, _ in outputs for line in output.splitlines()]
    assert len(values) == count * len(processes)
    return values


async def test_processes_share_the_work_and_nothing_is_lost_or_doubled(url: str, members: Group) -> None:
    three = [await members.add() for _ in range(3)]
    await until(lambda: all(len(member.assignment()) == 2 for member in three), *three)
    values = await produced(url, ["a", "b", "c"], 300)
    await until(lambda: len(members.received()) >= len(values), *three)
    assert Counter(members.received()) == Counter(values)
    assert frozenset().union(*(member.assignment() for member in three)) == ALL
    assert all(member.received for member in three)


async def test_members_come_and_go_and_nothing_is_lost_or_doubled(url: str, members: Group) -> None:
    first = await members.add()
    producing = asyncio.create_task(produced(url, ["a", "b"], 1_000))
    await until(lambda: len(first.received) > 0, first)
    second = await members.add()
    await until(lambda: len(second.assignment()) == 3, first, second)
    await first.leave()
    third = await members.add()
    await until(lambda: len(third.assignment()) == 3, second, third)
    values = await producing
    values += await produced(url, ["c"], 100)
    await until(lambda: len(members.received()) >= len(values), second, third)
    assert Counter(members.received()) == Counter(values)


async def test_a_process_that_is_killed_is_replaced_and_nothing_is_lost(url: str, members: Group) -> None:
    victim, survivor = await members.add(), await members.add()
    await until(lambda: len(victim.assignment()) == len(survivor.assignment()) == 3, victim, survivor)
    producing = asyncio.create_task(produced(url, ["a", "b"], 1_000))
    await until(lambda: len(victim.received) > 50, victim, survivor)
    await victim.die()
    await until(lambda: survivor.assignment() == ALL, survivor)
    values = await producing
    await until(lambda: set(members.received()) >= set(values), survivor)
    assert set(members.received()) == set(values)
    assert max(Counter(survivor.received).values()) == 1


async def test_what_was_acknowledged_survives_the_death_of_its_writer(url: str, broker: Broker) -> None:
    process = await start_script("producer_process.py", url, TOPIC, "a", "1000000")
    assert process.stdout is not None
    lines: list[bytes] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(lines) < 200:
            lines.append(await process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    rest, _ = await process.communicate()
    lines += [line + b"\n" for line in rest.split(b"\n")[:-1]]  # a line without an end was cut by the kill
    acknowledged = {(TopicPartition(TOPIC, line[0]), line[1]): line[2] for line in map(json.loads, lines)}

    reopened = await open_broker(url)
    reader = await reopened.reader()
    ends = {tp: end for tp, (_, end) in (await reopened.offsets(ALL)).items()}
    for tp in ALL:
        reader.seek(tp, 0)
    found = {(m.tp, m.offset): m.value.decode() for m in await collect(reader, sum(ends.values()))}
    await reopened.close()
    assert acknowledged.items() <= found.items()
    assert {tp: max(offset for at, offset in found if at == tp) + 1 for tp in ALL} == ends


async def test_a_record_of_one_process_ends_the_poll_of_another(url: str, broker: Broker) -> None:
    reader = await broker.reader()
    for tp in ALL:
        reader.seek(tp, 0)
    polling = asyncio.create_task(reader.poll(timeout_s=DEADLINE_S * 10))
    values = await produced(url, ["a"], 1)
    async with asyncio.timeout(DEADLINE_S):
        assert [message.value.decode() for message in await polling] == values
    assert await reader.poll(timeout_s=0) == ()


async def test_many_processes_may_make_one_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    brokers = await asyncio.gather(*(open_broker(url) for _ in range(8)))
    spec = TopicSpec(name=TOPIC, partitions=PARTITIONS)
    await asyncio.gather(*(broker.ensure_topics([spec]) for broker in brokers))
    assert [await broker.partitions(TOPIC) for broker in brokers] == [PARTITIONS] * 8
    await asyncio.gather(*(broker.close() for broker in brokers))
