"""Folding the log again, from its start to its end as it is now: status, audit and ``choreo replay`` are this.

Partitions are read one after the other, so only the unfinished sagas of one partition are in memory at a time, and the
last few that have settled (``window``). A saga that got a record after it was given out is given out again, from a
second pass.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import NamedTuple

from choreo.broker.port import Broker, Message, TopicPartition
from choreo.broker.registry import Registry
from choreo.broker.topics import saga_topic
from choreo.contract.saga import Saga
from choreo.core import Decision, Entry, SagaState
from choreo.core.state import Note
from choreo.saga_log.window import PROBLEMS_KEPT, Folding, Problem, Revived, Window

REVIVED_AT_ONCE = 20_000  # sagas of one further pass

_FOR_EVER = 2**63
_RECORDS_PER_POLL = 2_000


class Line(NamedTuple):
    """One record of a saga's history.

    Attributes:
        note: what was remarkable about it.
        owed: the decisions that it brought about.
    """

    entry: Entry
    note: Note | None
    owed: tuple[Decision, ...]


class Replayed(NamedTuple):
    """A saga as the log has it.

    Attributes:
        history: its records in order, if one saga was asked for; empty otherwise.
    """

    state: SagaState
    history: tuple[Line, ...]


class Progress(NamedTuple):
    """How far a replay is: ``records_read`` of about ``records_total`` (offsets may have holes)."""

    records_read: int
    records_total: int


def replay(
    broker: Broker,
    saga: str,
    *,
    registry: Registry,
    saga_id: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Replay:
    """Fold the topic of ``saga`` from its start to the end that it has when the iteration begins.

        async for state, history in replay(broker, "order", registry=registry, saga_id="order-4711"):
            ...

    Args:
        registry: refreshed before the first record is folded.
        saga_id: fold this saga alone and give its history; only its partition is read, and of that only the records
            with its key are decoded.
        on_progress: called after every batch.

    Returns:
        An async iterable of ``Replayed``: settled sagas soon after they settle, the rest at the end of each
        partition. Where a saga comes twice, the later one counts. What could not be folded is in ``problems``.
        Iterating raises ``TopicError`` if the saga has no topic, ``BrokerUnavailable`` if the log cannot be read.
    """
    return Replay(broker, saga, registry, saga_id, on_progress)


async def fold_saga(broker: Broker, saga: Saga, saga_id: str, *, registry: Registry) -> tuple[Saga, SagaState] | None:
    """One saga as the log has it now, and the contract under which it was folded.

    Returns:
        ``None`` if the log has no record of it that could be folded. For a saga whose start is not in the log, the
        contract is the given one.

    Raises:
        TopicError: the saga has no topic.
        BrokerUnavailable: the log cannot be read.
    """
    found = None
    async for state, _ in replay(broker, saga.name, registry=registry, saga_id=saga_id):
        found = state
    if found is None:
        return None
    return registry.get(saga.name, found.version) or saga, found


class Replay:
    """A replay, to be iterated over once. Made by ``replay``.

    Attributes:
        problems: the first ``PROBLEMS_KEPT`` messages that were not folded: no records, or of a contract that is not
            registered (then one for each saga, whose later records are passed over).
        problems_total: how many there were.
        records_read: messages seen so far, those of other keys included.
        repeated: sagas that have been given out twice; the first time they had settled.
    """

    def __init__(
        self,
        broker: Broker,
        saga: str,
        registry: Registry,
        saga_id: str | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.problems: list[Problem] = []
        self.problems_total = 0
        self.records_read = 0
        self.repeated: set[str] = set()
        self._broker = broker
        self._saga = saga
        self._registry = registry
        self._saga_id = saga_id
        self._on_progress = on_progress
        self._records_total = 0

    async def __aiter__(self) -> AsyncIterator[Replayed]:
        topic = saga_topic(self._saga)
        if self._saga_id is None:
            tps = [TopicPartition(topic, number) for number in range(await self._broker.partitions(topic))]
        else:
            tps = [TopicPartition(topic, await self._broker.partition_of(topic, self._saga_id))]
        offsets = await self._broker.offsets(tps)
        # After the ends are read: a contract is published before the first saga under it is started.
        await self._registry.refresh()
        self._records_total = sum(end - first for first, end in offsets.values())
        for tp in tps:
            async for replayed in self._partition(tp, *offsets[tp]):
                yield replayed

    async def _partition(self, tp: TopicPartition, first: int, end: int) -> AsyncIterator[Replayed]:
        lines: list[Line] = []

        def remember(each: Folding) -> None:
            lines.append(Line(each.entry, each.folded.note, each.folded.owed))

        window = Window(
            self._saga,
            self._registry.get,
            records_max=end - first,
            only=None if self._saga_id is None else {self._saga_id: Revived(0, _FOR_EVER)},
            watch=None if self._saga_id is None else remember,
        )
        async for messages in records(self._broker, tp, first, end):
            window.take(messages)
            self.records_read += len(messages)
            if self._on_progress is not None:
                self._on_progress(Progress(self.records_read, self._records_total))
            for state in window.let_go():
                yield Replayed(state, ())
        for state in window.rest():
            yield Replayed(state, tuple(lines))
        self.problems += window.problems[: max(PROBLEMS_KEPT - len(self.problems), 0)]
        self.problems_total += window.problems_total
        for revived in batches(window.revived):
            again = Window(self._saga, self._registry.get, records_max=end - first, only=revived)
            async for messages in records(self._broker, tp, first, end_of(revived)):
                again.take(messages)
                for state in again.let_go():
                    if state.saga_id not in again.fresh:
                        self.repeated.add(state.saga_id)
                    yield Replayed(state, ())


def end_of(revived: Mapping[str, Revived]) -> int:
    """How far a further pass has to read."""
    return max(each.last for each in revived.values()) + 1


def batches(revived: Mapping[str, Revived]) -> Iterator[dict[str, Revived]]:
    """The sagas of each further pass, those that are folded to an early end together."""
    by_end = sorted(revived.items(), key=lambda item: item[1].last)
    for first in range(0, len(by_end), REVIVED_AT_ONCE):
        yield dict(by_end[first : first + REVIVED_AT_ONCE])


async def records(broker: Broker, tp: TopicPartition, first: int, end: int) -> AsyncIterator[list[Message]]:
    """The messages of a partition from ``first`` to before ``end``, in batches."""
    if first >= end:
        return
    reader = await broker.reader()
    try:
        reader.seek(tp, first)
        while reader.position(tp) < end:
            messages = await reader.poll(timeout_s=0.5, records_max=_RECORDS_PER_POLL)
            if messages:
                yield [message for message in messages if message.offset < end]
    finally:
        await reader.close()
