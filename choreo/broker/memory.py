"""The broker that lives in this process: ``memory://name``, for tests, simulations and trials.

One log for each event loop and name, however often it is opened; it lasts as long as the loop. It keeps the
promises of the port, those about members that die included (see ``abandon`` of its consumers and the options
``session_timeout_ms`` and ``heartbeat_ms`` of the URL), except that nothing survives the process.

There is no thread and no look at the real time: leases run on the loop's clock and append times come from
``now_ms``, so that the broker runs on a loop with virtual time, and the same calls have the same result.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Self

from choreo.broker.embedded.broker import EmbeddedBroker
from choreo.broker.embedded.changes import Changes
from choreo.broker.embedded.group import Group, Membership, Standing
from choreo.broker.embedded.log import Batch
from choreo.broker.embedded.rules import (
    HEARTBEAT_MS,
    SESSION_TIMEOUT_MS,
    check_size,
    check_spec,
    differences,
    info_of,
    options_of,
    session_times,
)
from choreo.broker.partitioning import partition_of_key
from choreo.broker.port import (
    Appended,
    Committed,
    GroupInfo,
    Headers,
    Message,
    TopicInfo,
    TopicPartition,
    TopicSpec,
)
from choreo.clock import SystemClock
from choreo.errors import BrokerError, CommitRefused, TopicError
from choreo.url import split_url

_OPTIONS = {"session_timeout_ms": str(SESSION_TIMEOUT_MS), "heartbeat_ms": str(HEARTBEAT_MS)}


class MemoryBroker(EmbeddedBroker["MemoryLog"]):
    """A handle on a log in memory."""

    @classmethod
    async def open(cls, url: str, *, now_ms: Callable[[], int] | None = None) -> Self:
        """The log of that name on the running loop, made if there is none.

        Args:
            url: ``memory://name``; the options ``session_timeout_ms`` and ``heartbeat_ms`` count when it is made.
            now_ms: the clock for append times of everybody who uses this log, from now on.

        Raises:
            ConfigurationError: the URL has an option that does not exist, or a value that is not possible.
        """
        parts = split_url(url)
        session_timeout_ms, heartbeat_ms = session_times(parts, options_of(parts, _OPTIONS))
        logs = _logs_of_running_loop()
        name = parts.netloc + parts.path
        log = logs.get(name)
        if log is None:
            log = logs[name] = MemoryLog(SystemClock().now_ms, session_timeout_ms, heartbeat_ms)
        if now_ms is not None:
            log.now_ms = now_ms
        return cls(url, log)

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        self._log.ensure_topics(specs)

    async def partitions(self, topic: str) -> int:
        return self._log.spec(topic).partitions

    async def topics(self) -> frozenset[str]:
        return frozenset(self._log.specs)

    async def partition_of(self, topic: str, key: str) -> int:
        return partition_of_key(key, self._log.spec(topic).partitions)

    async def topic_info(self, topic: str) -> TopicInfo:
        return info_of(self._log.spec(topic))

    async def group_info(self, group: str) -> GroupInfo:
        return self._log.group_info(group)

    async def producer(self) -> MemoryProducer:
        producer = MemoryProducer(self._log)
        self._keep(producer)
        return producer


class MemoryProducer:
    """Appends to a log in memory."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self.closed = False

    async def send(self, topic: str, *, key: str, value: bytes, headers: Headers = ()) -> Appended:
        if self.closed:
            raise BrokerError("the producer is closed")
        appended = self._log.append(topic, key, value, headers)
        await asyncio.sleep(0)  # as a send over a network does, let others run before it returns
        return appended

    async def close(self) -> None:
        self.closed = True


class _Partition:
    """The records of one partition that are still there, by offset."""

    def __init__(self, spec: TopicSpec, number: int) -> None:
        self._spec = spec
        self._number = number
        self._records: dict[int, Message] = {}
        self._offset_of_key: dict[bytes | None, int] = {}  # of a compacted topic
        self._appended_ms = 0
        self.start = 0
        self.end = 0

    def append(self, key: str, value: bytes, headers: Headers, now_ms: int) -> Appended:
        self._appended_ms = max(self._appended_ms, now_ms)
        message = Message(
            self._spec.name, self._number, self.end, self._appended_ms, key.encode(), bytes(value), tuple(headers)
        )
        self._records[message.offset] = message
        self.end += 1
        if self._spec.compacted:
            older = self._offset_of_key.pop(message.key, None)
            if older is not None:
                del self._records[older]
            self._offset_of_key[message.key] = message.offset
        self._drop_expired()
        return Appended(message.topic, message.partition, message.offset, message.timestamp_ms)

    def read(self, position: int, records_max: int) -> tuple[list[Message], int]:
        """Records from ``position`` on, and where to read on."""
        if position > self.end:
            position = 0
        offset = max(position, self.start)
        found: list[Message] = []
        while offset < self.end and len(found) < records_max:
            if (message := self._records.get(offset)) is not None:
                found.append(message)
            offset += 1
        return found, offset

    def _drop_expired(self) -> None:
        retention_ms = self._spec.retention_ms
        while self.start < self.end:
            first = self._records.get(self.start)
            if first is not None:
                if retention_ms is None or first.timestamp_ms >= self._appended_ms - retention_ms:
                    return
                del self._records[self.start]
            self.start += 1


class MemoryLog:
    """Topics, and the groups that read them. An ``EmbeddedLog``."""

    def __init__(self, now_ms: Callable[[], int], session_timeout_ms: int, heartbeat_ms: int) -> None:
        self.now_ms = now_ms
        self.changes = Changes()
        self.heartbeat_s = heartbeat_ms / 1_000
        self.specs: dict[str, TopicSpec] = {}
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._groups: dict[str, Group] = {}
        self._committed: dict[tuple[str, TopicPartition], Committed] = {}
        self._session_timeout_ms = session_timeout_ms
        self._members = 0

    def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        problems: list[str] = []
        for spec in specs:
            check_spec(spec)
            if spec.name in self.specs:
                problems += differences(self.specs[spec.name], spec)
        if problems:
            raise TopicError("; ".join(problems))
        for spec in specs:
            if spec.name not in self.specs:
                self.specs[spec.name] = spec
                for number in range(spec.partitions):
                    self._partitions[TopicPartition(spec.name, number)] = _Partition(spec, number)

    def spec(self, topic: str) -> TopicSpec:
        try:
            return self.specs[topic]
        except KeyError:
            raise TopicError(f"there is no topic {topic}") from None

    def append(self, topic: str, key: str, value: bytes, headers: Headers) -> Appended:
        spec = self.spec(topic)
        check_size(topic, key, value, headers, spec.message_bytes_max)
        tp = TopicPartition(topic, partition_of_key(key, spec.partitions))
        appended = self._partitions[tp].append(key, value, headers, self.now_ms())
        self.changes.notify(tp)
        return appended

    def end_known(self, tp: TopicPartition) -> int | None:
        partition = self._partitions.get(tp)
        return None if partition is None else partition.end

    def generation_known(self, group: str) -> int:
        return self._groups[group].generation if group in self._groups else 0

    async def read(self, positions: Mapping[TopicPartition, int], records_max: int) -> Batch:
        messages: list[Message] = []
        positions_next: dict[TopicPartition, int] = {}
        for tp, position in positions.items():
            if len(messages) >= records_max:
                break
            found, positions_next[tp] = self._partition(tp).read(position, records_max - len(messages))
            messages += found
        return Batch(messages, positions_next)

    async def offsets(self, tps: Collection[TopicPartition]) -> Mapping[TopicPartition, tuple[int, int]]:
        return {tp: (self._partition(tp).start, self._partition(tp).end) for tp in tps}

    async def join(self, group: str, topics: Collection[str]) -> str:
        partitions = {topic: self.spec(topic).partitions for topic in topics}
        self._members += 1
        member = f"member-{self._members}"
        membership = Membership(tuple(topics), self._loop_ms(), self._session_timeout_ms)
        self._groups.setdefault(group, Group()).join(member, membership, partitions)
        self.changes.notify()
        return member

    async def sync(self, group: str, member: str) -> Standing | None:
        state = self._groups[group]
        generation = state.generation
        known = state.heartbeat(member, self._loop_ms())
        standing = state.claim(member) if known else None
        self._tell_if_grown(state, generation)
        return standing

    async def release(self, group: str, member: str, tps: Collection[TopicPartition]) -> None:
        state = self._groups[group]
        generation = state.generation
        state.release(member, tps)
        self._tell_if_grown(state, generation)

    async def leave(self, group: str, member: str) -> None:
        state = self._groups[group]
        generation = state.generation
        state.leave(member)
        self._tell_if_grown(state, generation)

    async def commit(self, group: str, member: str, offsets: Mapping[TopicPartition, Committed]) -> None:
        for tp in offsets:
            if not self._groups[group].owns(member, tp):
                raise CommitRefused(f"{tp} is no longer ours in group {group}")
        for tp, place in offsets.items():
            self._committed[group, tp] = place

    async def committed(self, group: str, tps: Collection[TopicPartition]) -> Mapping[TopicPartition, Committed]:
        return {tp: self._committed[group, tp] for tp in tps if (group, tp) in self._committed}

    def group_info(self, group: str) -> GroupInfo:
        state = self._groups.get(group)
        return GroupInfo(
            name=group,
            members=() if state is None else state.alive(self._loop_ms()),
            committed={tp: place for (name, tp), place in self._committed.items() if name == group},
        )

    def _tell_if_grown(self, group: Group, generation: int) -> None:
        if group.generation != generation:
            self.changes.notify()

    def _partition(self, tp: TopicPartition) -> _Partition:
        try:
            return self._partitions[tp]
        except KeyError:
            raise TopicError(f"there is no partition {tp}") from None

    def _loop_ms(self) -> int:
        return int(asyncio.get_running_loop().time() * 1_000)


_logs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, MemoryLog]] = weakref.WeakKeyDictionary()


def _logs_of_running_loop() -> dict[str, MemoryLog]:
    loop = asyncio.get_running_loop()
    if loop not in _logs:
        # A log may hold its loop (by a clock that belongs to it), so weak references alone would keep both.
        for closed in [other for other in _logs if other.is_closed()]:
            del _logs[closed]
        _logs[loop] = {}
    return _logs[loop]
