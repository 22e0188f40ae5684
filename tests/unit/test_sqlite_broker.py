"""The file behind ``sqlite:///``: what can be wrong with it, and what is deleted from it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from choreo.broker.embedded.group import Group
from choreo.broker.port import Committed, Message, TopicPartition, TopicSpec
from choreo.broker.sqlite import SqliteBroker, file
from choreo.broker.sqlite.file import LogFile
from choreo.broker.sqlite.horizon import News
from choreo.broker.sqlite.retention import RECORDS_MAX, Janitor
from choreo.broker.sqlite.tables import Snapshot
from choreo.clock import SystemClock
from choreo.errors import BrokerUnavailable, CommitRefused, ConfigurationError

TOPIC = "choreo.order"
TP = TopicPartition(TOPIC, 0)
NOW_MS = 1_800_000_000_000


class SetClock(SystemClock):
    """A wall clock that can be set back."""

    wall_ms = NOW_MS

    def now_ms(self) -> int:
        return self.wall_ms


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
async def broker(path: Path, clock: SetClock) -> AsyncIterator[SqliteBroker]:
    opened = await SqliteBroker.open(f"sqlite:///{path}", clock=clock)
    yield opened
    await opened.close()


async def send(broker: SqliteBroker, *keys: str) -> list[int]:
    """Append a record for each key; their append times."""
    producer = await broker.producer()
    return [(await producer.send(TOPIC, key=key, value=key.encode())).timestamp_ms for key in keys]


async def read(broker: SqliteBroker, position: int = 0) -> list[Message]:
    reader = await broker.reader()
    reader.seek(TP, position)
    messages: list[Message] = []
    while batch := await reader.poll(timeout_s=0):
        messages += batch
    return messages


def clean(path: Path, now_ms: int) -> bool:
    """What the writer does now and then."""
    connection = LogFile(path).connect()
    try:
        return file.in_transaction(connection, "IMMEDIATE", lambda: Janitor(connection).clean(now_ms))
    finally:
        connection.close()


# The URL and the file


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite://file.db", "three slashes"),
        ("sqlite:////nowhere/at/all/log.db", "no directory /nowhere/at/all"),
        ("sqlite:////tmp", "is a directory"),
        ("sqlite:////tmp/never.db?session=3", "no option 'session'"),
        ("sqlite:////tmp/never.db?session_timeout_ms=soon", "not a positive number"),
        ("sqlite:////tmp/never.db?session_timeout_ms=1000&heartbeat_ms=900", "more than half"),
        ("sqlite:////tmp/never.db?heartbeat_ms=10&heartbeat_ms=20", "given twice"),
        ("sqlite:////tmp/never.db?synchronous=off", "full or normal"),
    ],
)
async def test_a_url_that_cannot_be_used_says_why(url: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        await SqliteBroker.open(url)
    assert not Path("/tmp/never.db").exists()


async def test_a_relative_path_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broker = await SqliteBroker.open("sqlite:///some%20log.db")
    await broker.close()
    assert (tmp_path / "some log.db").is_file()


async def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("dear diary, " * 1_000)
    with pytest.raises(ConfigurationError, match="not a SQLite database"):
        await SqliteBroker.open(f"sqlite:///{path}")
    assert path.read_text() == "dear diary, " * 1_000


async def test_the_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE customers (name)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="another program"):
        await SqliteBroker.open(f"sqlite:///{path}")
    assert path.read_bytes() == before


async def test_a_log_of_another_release_is_refused(path: Path, broker: SqliteBroker) -> None:
    await broker.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigurationError, match="schema version 99"):
        await SqliteBroker.open(f"sqlite:///{path}")


async def test_a_lock_that_others_hold_for_a_moment_is_waited_for(path: Path, broker: SqliteBroker) -> None:
    await broker.ensure_topics([TopicSpec(name=TOPIC, partitions=1)])
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    letting_go = threading.Timer(0.5, lambda: other.execute("COMMIT"))
    letting_go.start()
    await send(broker, "a")
    letting_go.join()
    other.close()
    assert [message.value for message in await read(broker)] == [b"a"]


async def test_a_lock_that_is_never_let_go_is_an_outage(
    path: Path, broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await broker.ensure_topics([TopicSpec(name=TOPIC, partitions=1)])
    monkeypatch.setattr(file, "LOCK_DEADLINE_S", 0.2)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BrokerUnavailable, match="locked"):
        await send(broker, "a")
    other.execute("COMMIT")
    other.close()
    await send(broker, "b")
    assert [message.value for message in await read(broker)] == [b"b"]


async def test_a_log_is_written_ahead_and_flushed_with_each_transaction(path: Path) -> None:
    connection = LogFile(path).create()
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


# Append times


async def test_append_times_do_not_fall_when_the_clock_is_set_back(
    path: Path, broker: SqliteBroker, clock: SetClock
) -> None:
    await broker.ensure_topics([TopicSpec(name=TOPIC, partitions=1)])
    assert await send(broker, "a") == [NOW_MS]
    clock.wall_ms -= 5_000
    assert await send(broker, "b") == [NOW_MS]
    another = await SqliteBroker.open(f"sqlite:///{path}", clock=clock)
    assert await send(another, "c") == [NOW_MS]
    await another.close()
    clock.wall_ms += 5_001
    assert await send(broker, "d") == [NOW_MS + 1]


# Retention


async def test_records_older_than_the_retention_are_deleted_and_offsets_go_on(
    path: Path, broker: SqliteBroker, clock: SetClock
) -> None:
    await broker.ensure_topics([TopicSpec(name=TOPIC, partitions=1, retention_ms=60_000)])
    await send(broker, "a", "b", "c")
    clock.wall_ms += 30_000
    await send(broker, "d")
    assert not clean(path, NOW_MS + 60_000)
    assert len(await read(broker)) == 4
    assert not clean(path, NOW_MS + 60_001)
    assert [message.offset for message in await read(broker)] == [3]
    assert not clean(path, NOW_MS + 90_001)
    assert await broker.offsets([TP]) == {TP: (4, 4)}
    await send(broker, "e")
    assert [(message.offset, message.value) for message in await read(broker)] == [(4, b"e")]


async def test_much_is_deleted_in_parts(path: Path, broker: SqliteBroker) -> None:
    await broker.ensure_topics([TopicSpec(name=TOPIC, partitions=1, retention_ms=1)])
    await broker._log.write(
        lambda transaction: [transaction.append(TOPIC, "k", b"v", ()) for _ in range(RECORDS_MAX + 10)]
    )
    assert clean(path, NOW_MS + 10)
    assert await broker.offsets([TP]) == {TP: (RECORDS_MAX, RECORDS_MAX + 10)}
    assert not clean(path, NOW_MS + 10)
    assert await broker.offsets([TP]) == {TP: (RECORDS_MAX + 10, RECORDS_MAX + 10)}


async def test_a_compacted_topic_keeps_the_last_record_of_each_key(path: Path, broker: SqliteBroker) -> None:
    await broker.ensure_topics([TopicSpec(name=TOPIC, partitions=1, compacted=True)])
    await send(broker, "a", "b", "a", "c", "b")
    clean(path, NOW_MS)
    assert [(message.offset, message.value) for message in await read(broker)] == [(2, b"a"), (3, b"c"), (4, b"b")]
    assert await broker.offsets([TP]) == {TP: (2, 5)}


async def test_a_position_beyond_the_end_starts_again_at_the_earliest(broker: SqliteBroker) -> None:
    await broker.ensure_topics([TopicSpec(name=TOPIC, partitions=1)])
    await send(broker, "a", "b")
    assert [message.offset for message in await read(broker, position=1_000)] == [0, 1]


# Groups


async def test_a_member_whose_lease_has_lapsed_is_told_and_starts_anew(path: Path, broker: SqliteBroker) -> None:
    await broker.ensure_topics([TopicSpec(name=TOPIC, partitions=1)])
    events: list[str] = []

    async def on_assigned(_: object) -> None:
        events.append("assigned")

    async def on_revoked(_: object) -> None:
        events.append("revoked")
        with pytest.raises(CommitRefused):
            await consumer.commit({TP: Committed(0)})

    consumer = await broker.consumer("g", [TOPIC], on_assigned=on_assigned, on_revoked=on_revoked)
    await consumer.poll(timeout_s=0)
    assert consumer.assignment() == {TP}
    await broker._log.write(lambda transaction: transaction.save("g", _emptied(transaction.group("g"))))
    with pytest.raises(CommitRefused):
        await consumer.commit({TP: Committed(0)})
    await consumer.poll(timeout_s=0)
    assert consumer.assignment() == {TP}
    assert events == ["assigned", "revoked", "assigned"]


def _emptied(group: Group) -> Group:
    for member in list(group.members):
        group.leave(member)
    return group


async def test_a_consumer_rides_out_an_outage(
    path: Path, broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await broker.ensure_topics([TopicSpec(name=TOPIC, partitions=1)])
    await send(broker, "a")
    monkeypatch.setattr(file, "LOCK_DEADLINE_S", 0.1)

    async def listen(_: object) -> None:
        heard.append(_)

    heard: list[object] = []
    consumer = await broker.consumer("g", [TOPIC], on_assigned=listen, on_revoked=listen)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert await consumer.poll(timeout_s=0.3) == ()
    other.execute("COMMIT")
    other.close()
    assert [message.value for message in await consumer.poll(timeout_s=30)] == [b"a"]
    assert heard == [[TP]]


async def test_a_look_that_waited_long_for_a_lock_leaves_nobody_deaf(
    path: Path, broker: SqliteBroker, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await broker.ensure_topics([TopicSpec(name=TOPIC, partitions=1)])
    other = await SqliteBroker.open(f"sqlite:///{path}")
    reader = await broker.reader()
    reader.seek(TP, 0)
    look, waited_s = Snapshot.news, 0.0

    def look_for_a_minute(snapshot: Snapshot) -> News:
        nonlocal waited_s
        waited_s += 60.0
        return look(snapshot)

    monkeypatch.setattr(clock, "monotonic", lambda: time.monotonic() + waited_s)
    monkeypatch.setattr(Snapshot, "news", look_for_a_minute)
    async with asyncio.timeout(20):
        for number in range(3):
            await send(other, f"s-{number}")
            assert [message.key for message in await reader.poll(timeout_s=20)] == [b"s-%d" % number]
    await other.close()
