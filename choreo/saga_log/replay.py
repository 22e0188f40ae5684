"""Folding the log again, from its start to its end as it is now: status, audit and ``choreo replay`` are this.

Partitions are read one after the other, so only the unfinished sagas of one partition are in memory at a time. A
settled saga is given out once ``SETTLED_KEPT`` others have settled after it; should a record for it come later still
(an effect that is found long after the outcome), the saga is folded anew in a second pass and given out again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection
from typing import NamedTuple

from choreo.broker.port import Broker, Message, TopicPartition
from choreo.broker.registry import Registry
from choreo.broker.topics import saga_topic
from choreo.contract.saga import Saga
from choreo.core import Decision, Entry, SagaState, fold, refuse
from choreo.core.state import Note
from choreo.saga_log.intake import Contracts, Refused, Unheld, contract_of, read_entry

SETTLED_KEPT = 2_000
PROBLEMS_KEPT = 1_000
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


class Problem(NamedTuple):
    """A message that could not be folded, and the key it has."""

    tp: TopicPartition
    offset: int
    at_ms: int
    key: bytes | None
    why: Refused | Unheld


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
            wanted = None
        else:
            tps = [TopicPartition(topic, await self._broker.partition_of(topic, self._saga_id))]
            wanted = {self._saga_id.encode()}
        offsets = await self._broker.offsets(tps)
        # After the ends are read: a contract is published before the first saga under it is started.
        await self._registry.refresh()
        self._records_total = sum(end - first for first, end in offsets.values())
        for tp in tps:
            part = _Part(self._saga, self._registry.get, wanted, with_history=self._saga_id is not None)
            async for messages in records(self._broker, tp, *offsets[tp]):
                part.take(messages)
                self.records_read += len(messages)
                if self._on_progress is not None:
                    self._on_progress(Progress(self.records_read, self._records_total))
                for state in part.settled():
                    yield Replayed(state, ())
            for replayed in part.rest():
                yield replayed
            self.problems += part.problems[: max(PROBLEMS_KEPT - len(self.problems), 0)]
            self.problems_total += len(part.problems)
            if part.revived:
                again = _Part(self._saga, self._registry.get, part.revived, with_history=False)
                async for messages in records(self._broker, tp, *offsets[tp]):
                    again.take(messages)
                for replayed in again.rest():  # nothing is given out before the end, so there is no third pass
                    yield replayed


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


class _Part:
    """The sagas of one partition, as far as it has been read. No I/O.

    Attributes:
        revived: keys of sagas that got a record after they were given out.
    """

    def __init__(self, saga: str, contracts: Contracts, wanted: set[bytes] | None, *, with_history: bool) -> None:
        self.problems: list[Problem] = []
        self.revived: set[bytes] = set()
        self._saga = saga
        self._contracts = contracts
        self._wanted = wanted
        self._with_history = with_history
        self._states: dict[str, SagaState] = {}
        self._settled: OrderedDict[str, None] = OrderedDict()
        self._given: set[str] = set()
        self._waiting: set[str] = set()
        self._history: dict[str, list[Line]] = {}

    def take(self, messages: Collection[Message]) -> None:
        """Fold the next messages."""
        for message in messages:
            if self._wanted is None or message.key in self._wanted:
                self._take(message)

    def settled(self) -> list[SagaState]:
        """The sagas that settled long enough ago to be let go."""
        out: list[SagaState] = []
        while self._wanted is None and len(self._settled) > SETTLED_KEPT:
            saga_id, _ = self._settled.popitem(last=False)
            self._given.add(saga_id)
            out.append(self._states.pop(saga_id))
        return out

    def rest(self) -> list[Replayed]:
        """All others, after the last message."""
        return [Replayed(state, tuple(self._history.get(saga_id, ()))) for saga_id, state in self._states.items()]

    def _take(self, message: Message) -> None:
        entry = read_entry(message, self._saga)
        if isinstance(entry, Refused):
            self._refuse(message, entry)
            return
        saga_id = entry.record.saga_id
        if saga_id in self._waiting:
            return
        if saga_id in self._given:
            self.revived.add(saga_id.encode())
            return
        state = self._states.get(saga_id) or SagaState(saga_id)
        contract = contract_of(self._contracts, state, entry.record)
        if isinstance(contract, Refused):
            self._refuse(message, contract)
            return
        if isinstance(contract, Unheld):
            self._waiting.add(saga_id)
            self._refuse(message, contract)
            return
        folded = fold(contract, state, entry)
        self._states[saga_id] = folded.state
        if self._with_history:
            self._history.setdefault(saga_id, []).append(Line(entry, folded.note, folded.owed))
        elif folded.state.is_settled:
            self._settled[saga_id] = None
            self._settled.move_to_end(saga_id)
        else:
            self._settled.pop(saga_id, None)

    def _refuse(self, message: Message, why: Refused | Unheld) -> None:
        self.problems.append(Problem(message.tp, message.offset, message.timestamp_ms, message.key, why))
        saga_id = (message.key or b"").decode("utf-8", "replace")
        if isinstance(why, Refused) and saga_id not in self._waiting:
            if saga_id in self._given:
                self.revived.add(saga_id.encode())
            elif (state := self._states.get(saga_id)) is not None:
                self._states[saga_id] = refuse(state, message.offset, message.timestamp_ms)
