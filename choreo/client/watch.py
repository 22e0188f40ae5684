"""Follows a saga topic for outcomes. It is at the log's end before a saga is started, so no outcome is missed."""

from __future__ import annotations

import asyncio

from choreo.broker.port import Broker, Message, Reader, TopicPartition
from choreo.broker.topics import saga_topic
from choreo.errors import BrokerError, StartRefused, Undecodable
from choreo.messages.codec import decode
from choreo.messages.headers import CE_TYPE
from choreo.messages.records import SagaCompensated, SagaCompleted
from choreo.messages.records import StartRefused as StartRefusedRecord

Outcome = SagaCompleted | SagaCompensated

_WATCHED = frozenset(CE_TYPE[kind] for kind in (SagaCompleted, SagaCompensated, StartRefusedRecord))


_Entry = tuple[str | None, asyncio.Future[Outcome]]
"""Which start's outcome, and where it goes."""


class Expected:
    """A wait for an outcome, as long as the block lasts: a class, which costs a client less than a generator."""

    __slots__ = ("_entry", "_key", "_waiting")

    def __init__(self, waiting: dict[bytes, list[_Entry]], key: bytes, entry: _Entry) -> None:
        self._waiting = waiting
        self._key = key
        self._entry = entry

    def __enter__(self) -> asyncio.Future[Outcome]:
        self._waiting.setdefault(self._key, []).append(self._entry)
        return self._entry[1]

    def __exit__(self, *_: object) -> None:
        waiting, future = self._waiting[self._key], self._entry[1]
        waiting.remove(self._entry)
        if not waiting:
            del self._waiting[self._key]
        if future.done() and not future.cancelled():
            future.exception()  # taken note of, whether or not anybody awaited it
        future.cancel()


class OutcomeWatch:
    """Outcomes of one saga topic, as they are appended.

    One reader and one task serve all waits of a client; a record is decoded only if somebody waits for its saga.
    """

    def __init__(self, broker: Broker, saga: str) -> None:
        self._broker = broker
        self._topic = saga_topic(saga)
        self._reader: Reader | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiting: dict[bytes, list[_Entry]] = {}
        self._failure: BrokerError | None = None

    @property
    def is_following(self) -> bool:
        """Whether ``subscribe`` has nothing to do."""
        return self._task is not None and not self._task.done()

    async def subscribe(self) -> None:
        """Be at the end of the log. Everything that is appended after this returns will be seen."""
        if self.is_following:
            return
        tps = [TopicPartition(self._topic, n) for n in range(await self._broker.partitions(self._topic))]
        ends = await self._broker.offsets(tps)
        self._reader = await self._broker.reader()
        for tp, (_, end) in ends.items():
            self._reader.seek(tp, end)
        self._failure = None
        self._task = asyncio.create_task(self._follow(self._reader), name=f"client/watch/{self._topic}")

    def expect(self, saga_id: str, start: str | None) -> Expected:
        """A future for the saga's outcome: that of the given start, or of whichever start counts."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if self._failure is not None:
            future.set_exception(self._failure)
        return Expected(self._waiting, saga_id.encode(), (start, future))

    async def close(self) -> None:
        """Stop following. Waits that are left are cancelled by their own tasks."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._reader is not None:
            await self._reader.close()

    async def _follow(self, reader: Reader) -> None:
        while True:
            try:
                messages = await reader.poll(timeout_s=1.0)
            except BrokerError as error:
                self._fail(error)
                return
            waiting = self._waiting
            ours = []
            for message in messages:
                if message.key in waiting and message.header("ce_type") in _WATCHED:
                    self._deliver(message)
                    ours.append((message.tp, message.offset))
            if ours:
                reader.worked_on(ours)

    def _deliver(self, message: Message) -> None:
        try:
            record = decode(message.key, message.value, message.headers)
        except Undecodable:
            return  # the saga-log dead-letters it; it is no outcome of ours
        for start, future in self._waiting.get(message.key or b"", ()):
            if future.done():
                continue
            if isinstance(record, StartRefusedRecord):
                if start == record.start:
                    future.set_exception(refusal(record.saga_id))
            elif isinstance(record, (SagaCompleted, SagaCompensated)) and start in (None, record.start):
                future.set_result(record)

    def _fail(self, error: BrokerError) -> None:
        self._failure = error
        for waiting in self._waiting.values():
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)


def refusal(saga_id: str) -> StartRefused:
    """What a caller is told whose id is taken."""
    return StartRefused(
        saga_id,
        f"saga id {saga_id!r} is taken by a saga with another input; what this start has done is being undone. "
        "Use another id, or the same input",
    )
