"""A process that can die, be stalled and come back; and what it reaches the world through: its broker, store, clock.

Whatever it asks of them passes its *gate*. A stalled process waits there; a dead one gets no further, so that what it
was about to do has never happened. The ports are those of production around the ones in memory, and all that goes
wrong goes wrong here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from choreo.broker.embedded.reading import EmbeddedConsumer, EmbeddedReader
from choreo.broker.memory import MemoryBroker, MemoryLog
from choreo.broker.port import (
    Appended,
    AssignmentListener,
    Committed,
    GroupInfo,
    Headers,
    Message,
    TopicInfo,
    TopicPartition,
    TopicSpec,
)
from choreo.core import SagaState
from choreo.errors import BrokerUnavailable, StoreError
from choreo.store.memory import MemoryStore
from choreo.store.port import Advance, Checkpoint, Query, Row
from choreo.testing import VirtualClock
from tests.simulation.faults import Faults

T = TypeVar("T")

Commits = Callable[["Process", str, TopicPartition, Committed], None]


class Log(MemoryLog):
    """A log in memory that tells of every record as it is appended, and who sent it.

    Attributes:
        sender: of the next record.
        away: nobody reaches the broker.
        wrong_ms: what its clock is wrong by; it jumps forward or stands still, as append times never go back.
        fetch_s: how long a fetch of a group's member is on its way; what comes meanwhile comes with it.
    """

    def __init__(
        self,
        now_ms: Callable[[], int],
        on_append: Callable[[Message, Sender | None], None],
        *,
        session_timeout_ms: int,
    ) -> None:
        super().__init__(lambda: now_ms() + self.wrong_ms, session_timeout_ms, session_timeout_ms // 3)
        self.away = False
        self.wrong_ms = 0
        self.fetch_s = 0.0
        self.sender: Sender | None = None
        self.messages: list[Message] = []
        self._on_append = on_append

    def append(self, topic: str, key: str, value: bytes, headers: Headers) -> Appended:
        appended = super().append(topic, key, value, headers)
        sender, self.sender = self.sender, None
        message = Message(*appended, key.encode(), bytes(value), tuple(headers))
        self.messages.append(message)
        self._on_append(message, sender)
        return appended


class Sender(Protocol):
    """Who has sent a record."""

    def owns(self, tp: TopicPartition) -> bool: ...


class Process:
    """One life of a process.

    Attributes:
        is_mortal: false for clients, whose deaths are nobody's concern.
        cut_off: it does not reach the broker, and does not know.
    """

    def __init__(
        self,
        name: str,
        faults: Faults,
        clock: VirtualClock,
        log: Log,
        say: Callable[[str], None],
        *,
        is_mortal: bool = True,
    ) -> None:
        self.name = name
        self.is_mortal = is_mortal
        self.log = log
        self.faults = faults
        self.clock = clock
        self.is_dead = False
        self.cut_off = False
        self.task: asyncio.Task[None] | None = None
        self.consumers: list[FaultyConsumer] = []
        self._way: asyncio.Future[None] | None = None  # there while it is stalled
        self._say = say

    @property
    def is_stalled(self) -> bool:
        return self._way is not None

    async def gate(self) -> None:
        """Go on if the process does."""
        while self._way is not None:
            await asyncio.wait((self._way,))
        if self.is_dead:
            raise asyncio.CancelledError

    @property
    def reaches_broker(self) -> bool:
        return not self.cut_off and not self.log.away

    async def reach(self) -> None:
        """Go on if the process does. Raises ``BrokerUnavailable`` if it does not reach the broker."""
        await self.gate()
        if not self.reaches_broker:
            raise BrokerUnavailable("no way to the broker")

    async def pause(self, seconds: float) -> None:
        """Wait, and go on if the process does then."""
        await asyncio.sleep(seconds)
        await self.gate()

    def stall(self) -> None:
        self._say(f"{self.name} is stalled")
        self._way = asyncio.get_running_loop().create_future()

    def resume(self) -> None:
        if self._way is not None:
            self._say(f"{self.name} goes on")
            self._way.set_result(None)
            self._way = None

    def die(self) -> None:
        """End here and now: nothing is committed, closed or released."""
        if self.is_dead:
            return
        self._say(f"{self.name} dies")
        self.is_dead = True
        self.resume()
        for consumer in self.consumers:
            consumer.abandon()
        if self.task is not None:
            self.task.cancel()

    def may_die(self, kind: str) -> None:
        """A point at which the process may come to its end."""
        if self.is_mortal and self.faults.happens(kind):
            self._say(kind)
            self.die()
            raise asyncio.CancelledError

    def owns(self, tp: TopicPartition) -> bool:
        """Whether the partition is the process's, as the group sees it and not as the process does."""
        return any(consumer.owns(tp) for consumer in self.consumers)


class Late(NamedTuple):
    """A process that has given up a send, whose record comes all the same."""

    process: Process

    def owns(self, tp: TopicPartition) -> bool:
        """As the process if it has died over it. One that lives is no longer what it was when it sent the record."""
        return self.process.is_dead and self.process.owns(tp)


class ProcessClock:
    """A process's clock: its wall clock may be wrong; its sleeps last as long as it is stalled."""

    def __init__(self, process: Process) -> None:
        self.wrong_ms = 0
        self._process = process

    def now_ms(self) -> int:
        return self._process.clock.now_ms() + self.wrong_ms

    def monotonic(self) -> float:
        return self._process.clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._process.pause(seconds)


class FaultyBroker:
    """A process's way to the broker."""

    def __init__(self, log: Log, process: Process, on_commit: Commits) -> None:
        self.url = "memory://simulation"
        self._log = log
        self._inner = MemoryBroker(self.url, log)
        self._process = process
        self._on_commit = on_commit

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        await self._ask(lambda: self._inner.ensure_topics(specs))

    async def partitions(self, topic: str) -> int:
        return await self._ask(lambda: self._inner.partitions(topic))

    async def topics(self) -> frozenset[str]:
        return await self._ask(self._inner.topics)

    async def partition_of(self, topic: str, key: str) -> int:
        return await self._inner.partition_of(topic, key)

    async def topic_info(self, topic: str) -> TopicInfo:
        return await self._ask(lambda: self._inner.topic_info(topic))

    async def group_info(self, group: str) -> GroupInfo:
        return await self._ask(lambda: self._inner.group_info(group))

    async def offsets(self, tps: Collection[TopicPartition]) -> Mapping[TopicPartition, tuple[int, int]]:
        return await self._ask(lambda: self._inner.offsets(tps))

    async def producer(self) -> FaultyProducer:
        await self._process.gate()
        return FaultyProducer(self._log, self._process)

    async def consumer(
        self,
        group: str,
        topics: Collection[str],
        *,
        on_assigned: AssignmentListener,
        on_revoked: AssignmentListener,
    ) -> FaultyConsumer:
        await self._process.gate()
        inner = await self._inner.consumer(group, topics, on_assigned=on_assigned, on_revoked=on_revoked)
        consumer = FaultyConsumer(inner, group, self._process, self._on_commit)
        self._process.consumers.append(consumer)
        return consumer

    async def reader(self) -> FaultyReader:
        return FaultyReader(await self._inner.reader(), self._process)

    async def close(self) -> None:
        await self._inner.close()

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        await self._process.reach()
        if self._process.faults.happens("question_unanswered"):
            raise BrokerUnavailable("no answer")
        return await question()


class FaultyProducer:
    """Keeps the port's promise on order: what is sent to one partition waits for what was sent there before."""

    def __init__(self, log: Log, process: Process) -> None:
        self._log = log
        self._process = process
        self._turns: dict[str, asyncio.Lock] = {}

    async def send(self, topic: str, *, key: str, value: bytes, headers: Headers = ()) -> Appended:
        process, faults = self._process, self._process.faults

        def append(sender: Sender = process) -> Appended:
            self._log.sender = sender
            return self._log.append(topic, key, value, headers)

        await process.gate()
        async with self._turns.setdefault(topic, asyncio.Lock()):
            try:
                if faults.happens("send_delayed"):
                    await process.pause(faults.seconds())
                await asyncio.sleep(0)
                await process.reach()
            except asyncio.CancelledError:
                if faults.happens("append_after_death"):  # the bytes had left the process
                    asyncio.get_running_loop().call_later(faults.seconds(), append, Late(process))
                raise
            process.may_die("dies_before_send")
            if faults.happens("send_refused"):
                raise BrokerUnavailable("not appended")
            appended = append()
            if faults.happens("record_twice"):
                append()
        process.may_die("dies_after_append")
        if faults.happens("ack_lost"):
            raise BrokerUnavailable("appended, but who knows")
        if faults.happens("ack_delayed"):
            await process.pause(faults.seconds())
        await asyncio.sleep(0)
        await process.gate()
        return appended

    async def close(self) -> None:
        """The broker is shared; nothing is left to do."""


class FaultyConsumer:
    """A member of a group, with a way to the broker that fails."""

    def __init__(self, inner: EmbeddedConsumer, group: str, process: Process, on_commit: Commits) -> None:
        self.inner = inner
        self.group = group
        self._process = process
        self._on_commit = on_commit
        self._member_at_death: str | None = None

    def owns(self, tp: TopicPartition) -> bool:
        """Whether the group knows it as the owner; of the dead, too, until their session ends."""
        member = self.inner._member or self._member_at_death
        return member is not None and self._process.log._groups[self.group].owns(member, tp)

    def abandon(self) -> None:
        """End without a word to the group."""
        self._member_at_death = self._member_at_death or self.inner._member
        self.inner.abandon()

    async def poll(self, *, timeout_s: float, records_max: int = 500) -> Sequence[Message]:
        process, faults = self._process, self._process.faults
        await process.gate()
        if not process.reaches_broker:
            await process.pause(min(max(timeout_s, 0.05), 0.5))
            return ()
        if faults.happens("batch_torn"):
            records_max = faults.random.randint(1, 3)
        if process.log.fetch_s:
            await process.pause(process.log.fetch_s)
        messages = await self.inner.poll(timeout_s=timeout_s, records_max=records_max)
        if messages:
            process.may_die("dies_after_poll")
            if faults.happens("poll_delayed"):
                await asyncio.sleep(faults.seconds())
        await process.gate()
        return messages

    def assignment(self) -> frozenset[TopicPartition]:
        return self.inner.assignment()

    async def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        process, faults = self._process, self._process.faults
        await process.reach()
        if faults.happens("commit_late"):
            await process.pause(faults.seconds(longest=15.0))
            await process.reach()
        process.may_die("dies_before_commit")
        if faults.happens("commit_lost"):
            raise BrokerUnavailable("not committed")
        await self.inner.commit(offsets)
        for tp, place in offsets.items():
            self._on_commit(process, self.group, tp, place)
        process.may_die("dies_after_commit")
        if faults.happens("commit_ack_lost"):
            raise BrokerUnavailable("committed, but who knows")

    async def committed(self, tp: TopicPartition) -> Committed | None:
        await self._process.reach()
        if self._process.faults.happens("question_unanswered"):
            raise BrokerUnavailable("no answer")
        return await self.inner.committed(tp)

    async def end_offset(self, tp: TopicPartition) -> int:
        await self._process.reach()
        return await self.inner.end_offset(tp)

    def worked_on(self, places: Sequence[tuple[TopicPartition, int]]) -> None:
        self.inner.worked_on(places)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.inner.seek(tp, offset)

    def pause(self, tps: Collection[TopicPartition]) -> None:
        self.inner.pause(tps)

    def resume(self, tps: Collection[TopicPartition]) -> None:
        self.inner.resume(tps)

    def lag(self, tp: TopicPartition) -> int | None:
        return self.inner.lag(tp)

    async def close(self) -> None:
        if self._process.is_dead:
            self.abandon()
        else:
            await self.inner.close()


class FaultyReader:
    """Reads late, as readers do."""

    def __init__(self, inner: EmbeddedReader, process: Process) -> None:
        self._inner = inner
        self._process = process

    async def poll(self, *, timeout_s: float, records_max: int = 500) -> Sequence[Message]:
        await self._process.gate()
        if not self._process.reaches_broker:
            await self._process.pause(max(timeout_s, 0.2))
            return ()
        if self._process.faults.happens("batch_torn"):
            records_max = self._process.faults.random.randint(1, 3)
        messages = await self._inner.poll(timeout_s=timeout_s, records_max=records_max)
        if self._process.faults.happens("poll_delayed"):
            await asyncio.sleep(self._process.faults.seconds(longest=1.0))
        await self._process.gate()
        return messages

    def worked_on(self, places: Sequence[tuple[TopicPartition, int]]) -> None:
        self._inner.worked_on(places)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self._inner.seek(tp, offset)

    def position(self, tp: TopicPartition) -> int:
        return self._inner.position(tp)

    async def close(self) -> None:
        await self._inner.close()


class Disk:
    """Where a saga-log's store is kept between its lives: it can be lost, or be replaced by an older copy.

    Attributes:
        replaced: how often it was.
    """

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.replaced = 0
        self._copies: list[MemoryStore] = []

    def copy(self) -> None:
        """Make a copy to go back to."""
        copy = MemoryStore()
        copy._checkpoints = dict(self.store._checkpoints)
        copy._rows = dict(self.store._rows)
        copy._active = {tp: set(sagas) for tp, sagas in self.store._active.items()}
        copy._parked = {
            tp: {key: list(each) for key, each in found.items()} for tp, found in self.store._parked.items()
        }
        self._copies.append(copy)

    def lose(self) -> None:
        self.replaced += 1
        self.store = MemoryStore()

    def go_back(self, draw: Callable[[Sequence[MemoryStore]], MemoryStore]) -> bool:
        """Restore one of the copies. False if there is none."""
        if not self._copies:
            return False
        self.replaced += 1
        self.store = draw(self._copies)
        self._copies.remove(self.store)
        return True


class FaultyStore:
    """A process's way to a store."""

    def __init__(self, disk: Disk, process: Process) -> None:
        self._disk = disk
        self._process = process

    async def save(self, advances: Sequence[Advance]) -> None:
        process = self._process
        await process.gate()
        process.may_die("dies_before_save")
        if process.faults.happens("save_refused"):
            raise StoreError("the disk is full")
        await asyncio.sleep(0)
        await self._disk.store.save(advances)
        process.may_die("dies_after_save")

    async def checkpoint(self, tp: TopicPartition) -> Checkpoint | None:
        await self._process.gate()
        return await self._disk.store.checkpoint(tp)

    async def load_active(self, tp: TopicPartition, *, after: str = "") -> Sequence[SagaState]:
        await asyncio.sleep(0)
        return await self._disk.store.load_active(tp, after=after)

    async def saga_ids(self, tp: TopicPartition, *, after: str = "") -> Sequence[str]:
        await asyncio.sleep(0)
        return await self._disk.store.saga_ids(tp, after=after)

    async def load(self, tp: TopicPartition, saga_ids: Collection[str]) -> Mapping[str, SagaState]:
        await asyncio.sleep(0)
        return await self._disk.store.load(tp, sorted(saga_ids))

    async def parked_sagas(self, tp: TopicPartition) -> Mapping[str, int]:
        return await self._disk.store.parked_sagas(tp)

    async def load_parked(self, tp: TopicPartition, saga_id: str) -> Sequence[Message]:
        return await self._disk.store.load_parked(tp, saga_id)

    async def wipe(self, tp: TopicPartition) -> None:
        await self._process.gate()
        await self._disk.store.wipe(tp)

    async def drop_resting(self, before_ms: int) -> int:
        return await self._disk.store.drop_resting(before_ms)

    async def find(self, saga: str, saga_id: str) -> SagaState | None:
        return await self._disk.store.find(saga, saga_id)

    async def search(self, query: Query) -> Sequence[Row]:
        return await self._disk.store.search(query)

    async def counts(self) -> Mapping[tuple[str, str], Any]:
        return await self._disk.store.counts()

    async def close(self) -> None:
        """The disk outlives us."""
