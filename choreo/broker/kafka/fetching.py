"""Polling aiokafka without losing anything.

Three of its habits would lose or block records, and this module is the answer to them:

- A call of ``getmany`` that is cancelled may take a batch with it. ``LeanFetcher`` waits before it takes any. What
  is done when it raises runs in a task of its own, which outlives the poll that began it, and a later poll takes its
  result.
- When ``getmany`` raises, batches of other partitions that it had in hand are gone, and their positions moved. So we
  know ourselves what was delivered, and go back there.
- A record whose header key is not UTF-8, or whose batch has a wrong checksum, makes ``getmany`` raise at the same place
  for ever. So the next batch of each partition is then fetched as bytes and taken apart by ``salvage``: what can be
  read is delivered as it is, what cannot goes to quarantine and is delivered under a mark, so that it becomes a dead
  letter like other bytes that are no record; and reading goes on behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence

import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import CorruptRecordException, IllegalStateError, KafkaError
from aiokafka.structs import TopicPartition as KafkaTopicPartition

from choreo.broker.kafka import internals
from choreo.broker.kafka.partitioner import Partitioner
from choreo.broker.kafka.salvage import Quarantined, marked, salvage
from choreo.broker.port import Message, TopicPartition
from choreo.broker.topics import is_saga_topic
from choreo.messages.headers import MISPLACED

log = logging.getLogger(__name__)

FETCH_WAIT_MS = 250  # a partition that is sought or resumed waits until the fetch under way is answered

# What parsing raises: aiokafka's word for a wrong checksum, and Python's for bytes that are no text (ValueError is the
# base of UnicodeDecodeError) or that lead nowhere.
UNREADABLE = (CorruptRecordException, ValueError, LookupError, OverflowError)


Quarantine = Callable[[Quarantined], None]
StartOf = Callable[[KafkaTopicPartition], Awaitable[int]]
Batches = dict[KafkaTopicPartition, list[Message]]


def log_quarantined(record: Quarantined) -> None:
    """What happens to a record that cannot be read unless somebody asks for more."""
    log.error("record %s[%d]@%d cannot be read: %s", *record[:4])


class Fetching:
    """Safe polls of one aiokafka consumer.

    Args:
        start_of: where reading a partition begins that nothing was delivered of yet.
        partitioner: says in which partition a key belongs.
    """

    def __init__(
        self, kafka: AIOKafkaConsumer, quarantine: Quarantine, start_of: StartOf, partitioner: Partitioner
    ) -> None:
        self._kafka = kafka
        self._quarantine = quarantine
        self._start_of = start_of
        self._partitioner = partitioner
        self._next: dict[KafkaTopicPartition, int] = {}
        self._moved: set[KafkaTopicPartition] = set()
        self._paused: set[KafkaTopicPartition] = set()
        self._recovery: asyncio.Task[Batches] | None = None

    async def poll(self, timeout_s: float, records_max: int) -> list[Message]:
        """The next records.

        Raises:
            KafkaError: the consumer itself is broken; positions are kept.
        """
        if self._recovery is None:
            fetched = await self._getmany(timeout_s, records_max)
        else:
            fetched = await self._recovered(timeout_s)
        messages: list[Message] = []
        for tp, records in fetched.items():
            if tp in self._moved:
                continue  # somebody has sought elsewhere since, or the partition is not ours any more
            if tp in self._paused:
                self._kafka.seek(tp, records[0].offset)
                continue
            messages += self._in_their_place(tp, records)
            self._next[tp] = internals.position(self._kafka, tp) or records[-1].offset + 1
        return messages

    def _in_their_place(self, tp: KafkaTopicPartition, records: list[Message]) -> list[Message]:
        """The records; of a saga's topic those that do not belong into this partition are marked."""
        partitions = self._kafka.partitions_for_topic(tp.topic) if is_saga_topic(tp.topic) else None
        if not partitions:
            return records
        keys = [each.key for each in records]
        astray = self._partitioner.strangers(tp.topic, keys, len(partitions), tp.partition)
        if not astray:
            return records
        log.error("%d record(s) in %s[%d] belong into other partitions: their writer chooses them otherwise",
                  len(astray), tp.topic, tp.partition)  # fmt: skip
        return [misplaced(each) if each.key in astray else each for each in records]

    def assigned(self, tps: Collection[KafkaTopicPartition]) -> None:
        """All partitions are new: forget what we knew."""
        self._moved.update(self._next, tps)
        self._next.clear()
        self._paused.clear()

    def seek(self, tp: KafkaTopicPartition, offset: int) -> None:
        self._kafka.seek(tp, offset)
        self._next[tp] = offset
        self._moved.add(tp)

    def worked_on(self, places: Sequence[tuple[TopicPartition, int]]) -> None:
        """As ``Consumer.worked_on``."""
        internals.worked_on(self._kafka, places)

    def pause(self, tps: Collection[KafkaTopicPartition]) -> None:
        self._kafka.pause(*tps)
        self._paused.update(tps)

    def resume(self, tps: Collection[KafkaTopicPartition]) -> None:
        self._kafka.resume(*tps)
        self._paused.difference_update(tps)

    def paused(self, tp: KafkaTopicPartition) -> bool:
        return tp in self._paused

    def position(self, tp: KafkaTopicPartition) -> int | None:
        """The next offset to deliver; ``None`` while that is not known."""
        if self._recovery is None:
            # Fetching may have passed over a hole since the last delivery.
            position = internals.position(self._kafka, tp)
            return self._next.get(tp) if position is None else position
        return self._next.get(tp)

    def lag(self, tp: KafkaTopicPartition) -> int | None:
        position, end = self.position(tp), self._kafka.highwater(tp)
        return None if position is None or end is None else max(0, end - position)

    async def close(self) -> None:
        """Forget a recovery that is under way; the consumer is stopped by now, or will be."""
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.wait({self._recovery})
            if not self._recovery.cancelled():
                self._recovery.exception()
            self._recovery = None

    async def _getmany(self, timeout_s: float, records_max: int) -> Batches:
        await asyncio.sleep(0)  # who polls without a pause lets others work
        try:
            fetched = await self._kafka.getmany(timeout_ms=int(timeout_s * 1_000), max_records=records_max)
        except (*UNREADABLE, KafkaError) as error:
            self._recovery = asyncio.create_task(self._recover(error, records_max), name="kafka/recover")
            return await self._recovered(timeout_s)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not by us: aiokafka hands on what ended its own task, as if our caller had been cancelled.
            raise KafkaError("a task of the consumer was cancelled") from None
        self._moved.clear()
        return dict(fetched)

    async def _recovered(self, timeout_s: float) -> Batches:
        assert self._recovery is not None
        done, _ = await asyncio.wait({self._recovery}, timeout=timeout_s)
        if not done:
            return {}
        recovery, self._recovery = self._recovery, None
        if recovery.cancelled():
            raise KafkaError("a task of the consumer was cancelled")
        return recovery.result()

    async def _recover(self, error: Exception, records_max: int) -> Batches:
        await self._go_back()
        if not isinstance(error, UNREADABLE):
            raise error
        log.warning("a poll failed, its batches are taken apart: %r", error)
        try:
            return await self._isolate(records_max)
        except KafkaError:
            await self._go_back()
            raise

    async def _go_back(self) -> None:
        """To what was delivered: the call that failed may have moved positions beyond it."""
        for tp in self._kafka.assignment():
            position = internals.position(self._kafka, tp)
            if position is None:
                continue  # nothing was fetched of it
            delivered = self._next.get(tp)
            if delivered is None:
                delivered = self._next[tp] = await self._start_of(tp)
            if delivered != position:
                with contextlib.suppress(IllegalStateError):  # it may have been revoked while we asked
                    self._kafka.seek(tp, delivered)

    async def _isolate(self, records_max: int) -> Batches:
        """One batch of each partition, taken apart by ourselves: nobody has told us which one it was."""
        collected: Batches = {}
        room = records_max
        for tp in self._kafka.assignment():
            if room <= 0:
                break
            if tp not in self._paused and (messages := await self._salvage(tp, room)):
                collected[tp] = messages
                room -= len(messages)
        return collected

    async def _salvage(self, tp: KafkaTopicPartition, records_max: int) -> list[Message]:
        self._moved.discard(tp)
        position = internals.position(self._kafka, tp)
        if position is None:
            return []  # revoked in this moment, or not begun yet
        raw, aborted = await internals.fetch_raw(self._kafka, tp, position)
        found = salvage(raw, tp.topic, tp.partition, position, aborted, records_max)
        if found is None or tp in self._moved:
            return []
        for record in found.quarantined:
            self._quarantine(record)
        with contextlib.suppress(IllegalStateError):
            self._kafka.seek(tp, found.offset_next)
            if not found.messages and not found.quarantined:
                self._next[tp] = found.offset_next
        messages = [*found.messages, *map(marked, found.quarantined)]
        return sorted(messages, key=lambda message: message.offset)


def misplaced(message: Message) -> Message:
    """The message under the mark of one that is in a partition where its key does not belong."""
    why = b"its key belongs into another partition than %d; its writer must choose as Kafka's own clients do (murmur2)"
    return msgspec.structs.replace(message, headers=((MISPLACED, why % message.partition), *message.headers))
