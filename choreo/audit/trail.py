"""One saga's part of the log, folded record by record: what history, explanation and proof all begin with.

A ``Fact`` is a record with the states before and after it. Who brought what about is found on the way: the fold says
when a step instance is triggered and when a decision is taken, and the records that follow name the instance or the
decision they belong to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from choreo.audit.decisions import decision_said, stuck_id
from choreo.broker.port import Broker, Message, TopicPartition
from choreo.broker.registry import Registry
from choreo.broker.topics import saga_topic
from choreo.contract.saga import Saga
from choreo.core import Decision, Entry, SagaState, fold, refuse
from choreo.core.state import Key, Note
from choreo.errors import SagaNotFound
from choreo.ids import compensate_id, is_partition_key
from choreo.messages.records import (
    CompensationFailed,
    Execute,
    OperatorActed,
    Record,
    RoundStarted,
    StepCompensated,
    StepCompleted,
    StepFailed,
)
from choreo.saga_log.intake import Contracts, Refused, Unheld, contract_of, read_entry
from choreo.saga_log.replay import records
from choreo.saga_log.type_pause import TypePause, concerned
from choreo.saga_log.window import Problem


class Fact(NamedTuple):
    """A record of the saga.

    Attributes:
        contract: under which it was folded.
        before, state: the saga without it and with it.
        owed: the decisions that it brought about.
        note: what was remarkable about it.
        caused_by: offset of the record that it answers or says; ``None`` for what comes from outside.
    """

    message: Message
    entry: Entry
    contract: Saga
    before: SagaState
    state: SagaState
    owed: tuple[Decision, ...]
    note: Note | None
    caused_by: int | None


class Trail:
    """The facts of a saga so far. ``take`` its messages in order; no I/O.

    Attributes:
        problems: records under its key that could not be folded.
        state: what all of it together implies.
        triggered: step instance → offset and append time of the record from which on it is in flight, or waits for its
            signal.
        decided: decision → offset and append time of the record that implied it last.
    """

    def __init__(self, saga: str, saga_id: str, tp: TopicPartition, contracts: Contracts) -> None:
        self.saga = saga
        self.saga_id = saga_id
        self.tp = tp
        self.facts: list[Fact] = []
        self.problems: list[Problem] = []
        self.triggered: dict[Key, tuple[int, int]] = {}
        self.decided: dict[Decision, tuple[int, int]] = {}
        self._contracts = contracts
        self.state = SagaState(saga_id)
        self._waiting = False
        self._type_pause = TypePause()
        self._offsets: dict[str, int] = {}  # of each record, by its id
        self._retry_asked: int | None = None

    @property
    def contract(self) -> Saga | None:
        """The contract under which the last fact was folded."""
        return self.facts[-1].contract if self.facts else None

    def take_all(self, messages: Iterable[Message]) -> None:
        """Fold the next messages; those of other sagas are passed over."""
        key = self.saga_id.encode()
        for message in messages:
            if message.key == key or is_partition_key((message.key or b"").decode("utf-8", "replace")):
                self._take(message)

    def _take(self, message: Message) -> None:
        entry = read_entry(message, self.saga)
        if isinstance(entry, Refused):
            self._refuse(message, entry)
            return
        before = self.state
        if self._type_pause.see(entry):
            if self.contract is not None and concerned([before]) and not self._waiting:
                self._fold(message, self.contract, entry)
            return
        contract = contract_of(self._contracts, before, entry.record)
        if isinstance(contract, Unheld):
            self._waiting = True
        if not isinstance(contract, Saga) or self._waiting:
            if not isinstance(contract, Saga):
                self._refuse(message, contract)
            return
        if (pause := self._type_pause.before(before, entry.record)) is not None:
            self._fold(message, contract, pause)
        self._fold(message, contract, entry)

    def _fold(self, message: Message, contract: Saga, entry: Entry) -> None:
        before = self.state
        state, owed, note = fold(contract, before, entry)
        self.state = state
        caused_by = self._cause(entry.record, before)
        self.facts.append(Fact(message, entry, contract, before, state, owed, note, caused_by))
        self._note_effects(entry, before, state, owed)

    def _refuse(self, message: Message, why: Refused | Unheld) -> None:
        self.problems.append(Problem(message.tp, message.offset, message.timestamp_ms, message.key, why))
        if isinstance(why, Refused) and not self._waiting:
            self.state = refuse(self.state, message.offset, message.timestamp_ms)

    def _note_effects(self, entry: Entry, before: SagaState, state: SagaState, owed: tuple[Decision, ...]) -> None:
        here = (entry.offset, entry.at_ms)
        for key, instance in state.instances.items():
            earlier = before.instance(key)
            if (instance.triggered and not earlier.triggered) or (instance.signal_due_ms and not earlier.signal_due_ms):
                self.triggered[key] = here
        for decision in owed:
            self.decided[decision] = here
        record = entry.record
        self._offsets.setdefault(record.id, entry.offset)
        if isinstance(record, Execute) and (saga_round := state.fold_round(record.start, record.round)) is not None:
            self.triggered[record.step, saga_round] = here
        if state.retry_at_ms is not None and state.retry_at_ms != before.retry_at_ms:
            self._retry_asked = entry.offset

    def _cause(self, record: Record, before: SagaState) -> int | None:
        if isinstance(record, RoundStarted):
            return self._retry_asked
        decision = decision_said(before, record)
        if decision is not None:
            return self.decided.get(decision, (None, 0))[0]
        match record:
            case StepCompleted() | StepFailed():
                saga_round = before.fold_round(record.start, record.round)
                return None if saga_round is None else self.triggered.get((record.step, saga_round), (None, 0))[0]
            case StepCompensated() | CompensationFailed():
                return self._offsets.get(compensate_id(record.instance, record.generation))
            case OperatorActed():
                return self._offsets.get(stuck_id(record.instance, record.generation))
        return None


async def read_trail(broker: Broker, saga: str, saga_id: str, *, registry: Registry) -> Trail:
    """All that the log has of a saga now. Only its partition is read, and of that only its records are decoded.

    Args:
        registry: refreshed before the first record is folded.

    Raises:
        SagaNotFound: the log has no record under this id.
        TopicError: the saga has no topic.
        BrokerUnavailable: the log cannot be read.
    """
    topic = saga_topic(saga)
    tp = TopicPartition(topic, await broker.partition_of(topic, saga_id))
    first, end = (await broker.offsets([tp]))[tp]
    await registry.refresh()  # after the end is read: a contract is published before the first saga under it is started
    trail = Trail(saga, saga_id, tp, registry.get)
    async for messages in records(broker, tp, first, end):
        trail.take_all(messages)
    if not trail.facts and not trail.problems:
        raise SagaNotFound(saga_id, f"no saga {saga_id!r} in the log of {saga!r} at {broker.url}")
    return trail
