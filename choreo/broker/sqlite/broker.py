"""The broker behind ``sqlite:///file``: the port's operations as jobs for the two threads."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import unquote

from choreo.broker.embedded.broker import EmbeddedBroker
from choreo.broker.embedded.changes import Changes
from choreo.broker.embedded.group import Group, Membership, Standing
from choreo.broker.embedded.log import Batch
from choreo.broker.embedded.rules import HEARTBEAT_MS, SESSION_TIMEOUT_MS, info_of, options_of, session_times
from choreo.broker.partitioning import partition_of_key
from choreo.broker.port import (
    Appended,
    Committed,
    GroupInfo,
    Headers,
    TopicInfo,
    TopicPartition,
    TopicSpec,
)
from choreo.broker.sqlite.file import LogFile
from choreo.broker.sqlite.horizon import Horizon
from choreo.broker.sqlite.tables import Snapshot, Transaction
from choreo.broker.sqlite.threads import Follower, Writer
from choreo.clock import Clock, SystemClock
from choreo.errors import BrokerError, ConfigurationError
from choreo.url import shown_url, split_url

T = TypeVar("T")

_OPTIONS = {
    "session_timeout_ms": str(SESSION_TIMEOUT_MS),
    "heartbeat_ms": str(HEARTBEAT_MS),
    "synchronous": "full",
}
_FLUSH_DEADLINE_S = 10.0


class SqliteBroker(EmbeddedBroker["SqliteLog"]):
    """A handle on a log in a file."""

    @classmethod
    async def open(cls, url: str, *, clock: Clock | None = None) -> Self:
        """The log in that file, which is made if it is not there.

        Args:
            url: ``sqlite:///relative.db`` or ``sqlite:////absolute.db``. Options: ``session_timeout_ms`` and
                ``heartbeat_ms`` of the consumers made here; ``synchronous=normal`` to be quicker and lose the
                last records when the machine (not just a process) dies.
            clock: for tests; leases assume that all processes use the same.

        Raises:
            ConfigurationError: the URL, the path or the file cannot be used; the message says why.
            BrokerUnavailable: other processes keep the file locked.
        """
        parts = split_url(url)
        options = options_of(parts, _OPTIONS)
        if options["synchronous"] not in ("full", "normal"):
            raise ConfigurationError(f"broker URL {shown_url(url)!r}: synchronous must be full or normal")
        log = SqliteLog(
            LogFile(_path(url, parts.netloc, parts.path), synchronous=options["synchronous"]),
            *session_times(parts, options),
            clock or SystemClock(),
        )
        await log.open()
        return cls(url, log)

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        await self._log.write(lambda transaction: transaction.ensure_topics(specs))

    async def partitions(self, topic: str) -> int:
        return await self._log.partitions(topic)

    async def topics(self) -> frozenset[str]:
        return await self._log.look(Snapshot.topic_names)

    async def partition_of(self, topic: str, key: str) -> int:
        return partition_of_key(key, await self._log.partitions(topic))

    async def topic_info(self, topic: str) -> TopicInfo:
        return info_of(await self._log.look(lambda snapshot: snapshot.topic(topic)))

    async def group_info(self, group: str) -> GroupInfo:
        return await self._log.group_info(group)

    async def producer(self) -> SqliteProducer:
        producer = SqliteProducer(self._log)
        self._keep(producer)
        return producer

    async def close(self) -> None:
        await super().close()
        await self._log.close()


def _path(url: str, netloc: str, path: str) -> Path:
    if netloc:
        raise ConfigurationError(
            f"broker URL {shown_url(url)!r} names a host ({netloc.rpartition('@')[2]}); a file has three slashes, "
            "sqlite:///relative.db, or four, sqlite:////absolute.db"
        )
    name = unquote(path.removeprefix("/"))
    if not name:
        raise ConfigurationError(f"broker URL {shown_url(url)!r} names no file; use sqlite:///path/to/file.db")
    if name == ":memory:":
        raise ConfigurationError(f"broker URL {shown_url(url)!r}: a log in memory is memory://name")
    return Path(name).absolute()


class SqliteProducer:
    """Appends to a log in a file."""

    def __init__(self, log: SqliteLog) -> None:
        self._log = log
        self._in_flight: set[asyncio.Future[Appended]] = set()
        self.closed = False

    async def send(self, topic: str, *, key: str, value: bytes, headers: Headers = ()) -> Appended:
        if self.closed:
            raise BrokerError("the producer is closed")
        # Nothing is awaited before this line, so that sends side by side keep the order of the calls.
        sent = self._log.write(lambda transaction: transaction.append(topic, key, value, headers))
        self._in_flight.add(sent)
        sent.add_done_callback(self._in_flight.discard)
        return await sent

    async def close(self) -> None:
        self.closed = True
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=_FLUSH_DEADLINE_S)


class SqliteLog:
    """Topics and groups in a file. An ``EmbeddedLog``."""

    def __init__(self, file: LogFile, session_timeout_ms: int, heartbeat_ms: int, clock: Clock) -> None:
        self.changes = Changes()
        self.heartbeat_s = heartbeat_ms / 1_000
        self._session_timeout_ms = session_timeout_ms
        self._clock = clock
        self._horizon = Horizon(self.changes)
        self._writer = Writer("choreo-sqlite-writer", file, self._horizon, clock)
        self._follower = Follower("choreo-sqlite-follower", file, self._horizon, clock)
        self._partitions: dict[str, int] = {}  # of topics that were asked for; they never change

    async def open(self) -> None:
        await self._writer.open()  # first, since it makes the tables
        try:
            await self._follower.open()
        except BaseException:
            await self._writer.close()
            raise

    async def close(self) -> None:
        await self._follower.close()
        await self._writer.close()

    def write(self, work: Callable[[Transaction], T]) -> asyncio.Future[T]:
        """Do ``work`` in the next write transaction; the result comes when it is durable."""
        return self._writer.submit(work)

    def look(self, work: Callable[[Snapshot], T]) -> asyncio.Future[T]:
        """Do ``work`` in a read transaction."""
        return self._follower.submit(work)

    async def partitions(self, topic: str) -> int:
        if topic not in self._partitions:
            self._partitions[topic] = (await self.look(lambda snapshot: snapshot.topic(topic))).partitions
        return self._partitions[topic]

    def end_known(self, tp: TopicPartition) -> int | None:
        return self._horizon.ends.get(tp)

    def generation_known(self, group: str) -> int:
        return self._horizon.generations.get(group, 0)

    async def read(self, positions: Mapping[TopicPartition, int], records_max: int) -> Batch:
        batch, news = await self.look(lambda snapshot: snapshot.read(positions, records_max))
        self._horizon.hear(news)
        return batch

    async def offsets(self, tps: Collection[TopicPartition]) -> Mapping[TopicPartition, tuple[int, int]]:
        return await self.look(lambda snapshot: snapshot.offsets(tps))

    async def join(self, group: str, topics: Collection[str]) -> str:
        member = f"{os.getpid()}-{secrets.token_hex(6)}"

        def join(transaction: Transaction) -> None:
            membership = Membership(tuple(topics), transaction.monotonic_ms, self._session_timeout_ms)
            state = transaction.group(group)
            state.join(member, membership, transaction.partitions(topics))
            transaction.save(group, state)

        await self.write(join)
        return member

    async def sync(self, group: str, member: str) -> Standing | None:
        def sync(transaction: Transaction) -> Standing | None:
            state = transaction.group(group)
            known = state.heartbeat(member, transaction.monotonic_ms)
            standing = state.claim(member) if known else None
            transaction.save(group, state)
            return standing

        return await self.write(sync)

    async def release(self, group: str, member: str, tps: Collection[TopicPartition]) -> None:
        await self._change(group, lambda state: state.release(member, tps))

    async def leave(self, group: str, member: str) -> None:
        await self._change(group, lambda state: state.leave(member))

    async def commit(self, group: str, member: str, offsets: Mapping[TopicPartition, Committed]) -> None:
        await self.write(lambda transaction: transaction.commit(group, member, offsets))

    async def committed(self, group: str, tps: Collection[TopicPartition]) -> Mapping[TopicPartition, Committed]:
        return await self.look(lambda snapshot: snapshot.committed(group, tps))

    async def group_info(self, group: str) -> GroupInfo:
        now_ms = int(self._clock.monotonic() * 1_000)  # the clock by which leases are renewed

        def look(snapshot: Snapshot) -> GroupInfo:
            members = snapshot.group(group).alive(now_ms)
            return GroupInfo(name=group, members=members, committed=snapshot.committed_all(group))

        return await self.look(look)

    async def _change(self, group: str, change: Callable[[Group], None]) -> None:
        def work(transaction: Transaction) -> None:
            state = transaction.group(group)
            change(state)
            transaction.save(group, state)

        await self.write(work)
