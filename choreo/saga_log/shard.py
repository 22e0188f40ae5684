"""The sagas of one partition: what is known of them, what is owed, and what has changed since the last save. No I/O.

Sagas that something will happen to are all in memory, most of them as bytes if they are many (``kept``), and of those
that rest (settled, or without their start) the last few. A record may be for a saga that has left the memory, so
folding a batch takes three calls:

1. ``missing`` names the sagas whose states have to come from the store;
2. ``admit`` takes them, those that the store does not have being new;
3. ``apply`` folds.

Then ``unsent`` gives the decisions that nobody has sent yet, ``advance`` what to save, and ``saved`` ends the batch.

A shard is *muted* until it has folded all that was in the log when the partition was assigned: until then a decision
that looks owed may have its message further on (rule 1).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

from choreo.broker.port import Message, TopicPartition
from choreo.contract.saga import Saga
from choreo.core import Decision, Entry, Folded, SagaState, Timer, fold, next_due_ms, refuse, timers
from choreo.messages.records import StepSkipped
from choreo.saga_log.census import Census
from choreo.saga_log.intake import Contracts, Refused, Unheld, contract_of, read_entry
from choreo.saga_log.kept import Kept
from choreo.saga_log.known import Known
from choreo.saga_log.timer import Timers
from choreo.saga_log.type_pause import OF_THE_TYPE, TypePause, concerned
from choreo.store.port import Advance, Checkpoint
from choreo.store.projection import is_resting, row_of

CHANGED_MAX = 500  # sagas that are left for later: while nobody asks, as in a rebuild, before they are kept as bytes


class Seen(NamedTuple):
    """A record that was folded, and is worth a word: it was noted, or something happened to the saga by it."""

    entry: Entry
    before: SagaState
    folded: Folded


class Applied(NamedTuple):
    """What came of a batch of messages.

    Attributes:
        refused: what belongs into the dead letters.
        parked: what waits for a contract (rule 18), and for which; ``None`` behind an earlier record of the saga.
    """

    seen: list[Seen]
    refused: list[tuple[Message, Refused]]
    parked: list[tuple[Message, Unheld | None]]


class Unsent(NamedTuple):
    """Decisions about one saga, in order."""

    contract: Saga
    state: SagaState
    decisions: tuple[Decision, ...]


class Shard:
    """One partition.

    Attributes:
        offset: the next record to fold.
        end: the end of the log when the partition was assigned.
        accounted: records before this were counted and, if unreadable, dead-lettered by an earlier owner.
        live: no longer muted.
        verified: the log is known to be the one that the checkpoint was taken from.
        parked: sagas whose records wait for a contract, and how many wait.
        contracts_tried: how many contracts were registered when these were last tried.
        timers: those of the sagas as they were when somebody last asked for what is due.
        census: how many sagas are where.
        known: which sagas the store may have.
    """

    def __init__(
        self,
        tp: TopicPartition,
        saga: str,
        contracts: Contracts,
        *,
        checkpoint: Checkpoint | None,
        offset: int,
        end: int,
        accounted: int = 0,
        verified: bool = True,
        active_max: int = 1_000,
    ) -> None:
        self.tp = tp
        self.saga = saga
        self.offset = offset
        self.end = end
        self.accounted = accounted
        self.verified = verified
        self.live = False
        self.parked: Counter[str] = Counter()
        self.contracts_tried = 0
        self.timers = Timers()
        self._contracts = contracts
        self._checkpoint = checkpoint
        self._type_pause = TypePause("" if checkpoint is None else checkpoint.type_pause)
        self._last: Message | None = None
        self._active = Kept(active_max)
        self.census = Census(self._active.get)
        self._resting: OrderedDict[str, SagaState] = OrderedDict()
        self.known = Known(nothing_stored=checkpoint is None)
        self._changed: dict[str, Saga] = {}
        self._owing: dict[str, None] = {}
        self._sent: dict[str, frozenset[Decision]] = {}
        self._parked_unsaved: list[Message] = []
        self._released: set[str] = set()
        self._untimed: set[str] = set()  # sagas that have changed since their timers were set

    # Reading

    def missing(self, messages: Iterable[Message]) -> set[str]:
        """The sagas of these messages whose states may be in the store, and are not here."""
        found: set[str] = set()
        active, resting = self._active, self._resting
        for message in messages:
            if (key := message.key) is not None:
                saga_id = key.decode("utf-8", "replace")
                if saga_id not in active and saga_id not in resting and self.known.may_have(saga_id):
                    found.add(saga_id)
        return found

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What the store has of this partition, as far as we know."""
        return self._checkpoint

    def admit(self, states: Iterable[SagaState]) -> None:
        """Take states from the store."""
        for state in states:
            self._put(state)
            if not is_resting(state):  # looked at now, because most of many are soon kept as bytes
                self.census.changed.discard(state.saga_id)
                self.census.count(state)
                self._untimed.discard(state.saga_id)
                self._set_timer(state)

    def is_same_log(self, first: Message) -> bool:
        """Whether the record before the checkpoint is in the log as it was; ``first`` was read there."""
        assert self._checkpoint is not None, "only a checkpoint can be of another log"
        self.verified = first.offset == self._checkpoint.offset - 1 and mark_of(first) == self._checkpoint.mark
        return self.verified

    def apply(self, messages: Iterable[Message]) -> Applied:
        """Fold the next messages of the partition. Those that were folded before are passed over."""
        applied = Applied([], [], [])
        for message in messages:
            if message.offset >= self.offset:
                self._take(message, applied)
                self.offset = message.offset + 1
                self._last = message
        if len(self.census.changed) > CHANGED_MAX:
            self.census.count_changed()
        if len(self._untimed) > CHANGED_MAX:
            self._set_timers()
        return applied

    def release(self, saga_id: str, messages: Sequence[Message]) -> Applied:
        """Try the parked records of a saga again: those that were saved, and after them those that were not yet."""
        applied = Applied([], [], [])
        if saga_id in self._released:
            messages = ()  # tried since the last save, so that the unsaved ones are all of them
        unsaved = [message for message in self._parked_unsaved if message.key == saga_id.encode()]
        self._parked_unsaved = [message for message in self._parked_unsaved if message.key != saga_id.encode()]
        del self.parked[saga_id]
        self._released.add(saga_id)
        for message in (*messages, *unsaved):
            self._take(message, applied)
        return applied

    # Deciding

    def unsent(self) -> list[Unsent]:
        """All decisions that are owed and were not given out by this shard before. Not for a muted shard."""
        assert self.live, "a muted shard does not know yet which messages are in the log"
        found: list[Unsent] = []
        owing, self._owing = self._owing, {}
        for saga_id in owing:
            state = self._active[saga_id]
            contract = self._contract(state)
            if contract is None:
                self._owing[saga_id] = None  # its contract was there once, and may come back
                continue
            given = self._sent.get(saga_id, frozenset())
            fresh = tuple(decision for decision in state.owed if decision not in given)
            if fresh:
                self._sent[saga_id] = given.union(fresh)
                found.append(Unsent(contract, state, fresh))
        return found

    @property
    def has_untimed(self) -> bool:
        """Whether sagas have changed since somebody asked for what is due."""
        return bool(self._untimed)

    def due(self, now_ms: int, limit: int) -> list[tuple[SagaState, list[Timer]]]:
        """Sagas with timers that are due, to be appended and told about with ``timers.fired``. Not while muted."""
        assert self.live, "a muted shard does not know yet which outcomes are in the log"
        self._set_timers()
        found = []
        for saga_id in self.timers.due(now_ms, limit):
            state = self._active[saga_id]
            contract = self._contract(state)
            assert contract is not None, "without its contract a saga has no timer"
            found.append((state, [timer for timer in timers(contract, state) if timer.at_ms <= now_ms]))
        return found

    def postpone(self, saga_id: str, at_ms: int, now_ms: int) -> None:
        """Its timer of ``at_ms`` was due and could not be appended."""
        self.timers.pause(saga_id, at_ms, now_ms)

    def next_due_ms(self) -> int | None:
        """When ``due`` will have something; ``None`` if no timer is set."""
        if not self.live:
            return None
        self._set_timers()
        return self.timers.next_ms()

    # Saving

    def advance(self) -> Advance | None:
        """What has to be saved; ``None`` if nothing has changed."""
        checkpoint = self._checkpoint
        if self._last is not None:
            checkpoint = Checkpoint(self.offset, mark_of(self._last), self._type_pause.stored)
        if checkpoint is None or (checkpoint == self._checkpoint and not self._changed and not self._released):
            return None
        return Advance(
            self.tp,
            None if self._checkpoint is None else self._checkpoint.offset,
            checkpoint,
            [row_of(contract, self._state(saga_id), self.tp) for saga_id, contract in self._changed.items()],
            tuple(self._released),
            tuple(self._parked_unsaved),
        )

    def saved(self, advance: Advance, *, resting_max: int) -> None:
        """``advance`` is in the store, so that resting sagas beyond ``resting_max`` can leave the memory."""
        self._checkpoint = advance.checkpoint
        self._changed.clear()
        self._released.clear()
        self._parked_unsaved.clear()
        while len(self._resting) > resting_max:
            saga_id, _ = self._resting.popitem(last=False)
            self.known.add(saga_id)

    # Watching

    def stuck(self) -> list[SagaState]:
        """The sagas that wait for an operator."""
        return [self._active[saga_id] for saga_id in self.census.stuck]

    def states(self) -> Mapping[str, SagaState]:
        """All states in memory, those that rest included."""
        return {**self._resting, **{saga_id: self._active[saga_id] for saga_id in self._active}}

    # Inside

    def _take(self, message: Message, applied: Applied) -> None:
        entry = read_entry(message, self.saga)
        if isinstance(entry, Refused):
            self._refuse(message, entry, applied)
            return
        record = entry.record
        if isinstance(record, OF_THE_TYPE):
            self._type_pause.see(entry)
            for state in (each for saga_id in tuple(self._active) for each in concerned([self._active[saga_id]])):
                if (held := self._contract(state)) is not None:
                    self._fold(held, state, entry, applied)
            return
        saga_id = record.saga_id
        if saga_id in self.parked:
            self._park(message, None, applied)  # it waits behind the first one
            return
        before = self._active.get(saga_id) or self._resting.get(saga_id) or SagaState(saga_id)
        contract = contract_of(self._contracts, before, record)
        if isinstance(contract, Refused):
            self._refuse(message, contract, applied)
        elif isinstance(contract, Unheld):
            self._park(message, contract, applied)
        else:
            if (pause := self._type_pause.before(before, record)) is not None:
                before = self._fold(contract, before, pause, applied)
            self._fold(contract, before, entry, applied)

    def _fold(self, contract: Saga, before: SagaState, entry: Entry, applied: Applied) -> SagaState:
        folded = fold(contract, before, entry)
        state, owed, note = folded
        self._put(state)
        self._changed[state.saga_id] = contract
        if (
            owed
            or note is not None
            or state.start != before.start
            or state.finished_ms != before.finished_ms
            or isinstance(entry.record, StepSkipped)
        ):
            applied.seen.append(Seen(entry, before, folded))
        return state

    def _refuse(self, message: Message, why: Refused, applied: Applied) -> None:
        """It goes to the dead letters; the saga whose key it has, if there is one, is marked."""
        applied.refused.append((message, why))
        before = self._state((message.key or b"").decode("utf-8", "replace"))
        contract = self._contract(before)
        if before.started and contract is not None and before.saga_id not in self.parked:
            self._put(refuse(before, message.offset, message.timestamp_ms))
            self._changed[before.saga_id] = contract

    def _park(self, message: Message, why: Unheld | None, applied: Applied) -> None:
        assert message.key is not None, "what was decoded has a key"
        self.parked[message.key.decode()] += 1
        self._parked_unsaved.append(message)
        applied.parked.append((message, why))

    def _state(self, saga_id: str) -> SagaState:
        return self._active.get(saga_id) or self._resting.get(saga_id) or SagaState(saga_id)

    def _contract(self, state: SagaState) -> Saga | None:
        return self._contracts(self.saga, state.version)

    def _put(self, state: SagaState) -> None:
        saga_id = state.saga_id
        if (state.outcome is not None or not state.start) and is_resting(state):  # that takes a look at all of it
            self._rest(saga_id, state)
            return
        if self._resting:
            self._resting.pop(saga_id, None)
        self._active.put(state)
        self._untimed.add(saga_id)
        self.census.changed.add(saga_id)
        if state.owed:
            self._owing[saga_id] = None
        else:
            self._owing.pop(saga_id, None)
        if (given := self._sent.pop(saga_id, None)) and (still := given.intersection(state.owed)):
            self._sent[saga_id] = still  # a decision whose message was read may be owed anew later

    def _rest(self, saga_id: str, state: SagaState) -> None:
        self._active.discard(saga_id)
        self._resting[saga_id] = state
        self._resting.move_to_end(saga_id)
        self._owing.pop(saga_id, None)
        self._sent.pop(saga_id, None)
        self._untimed.discard(saga_id)
        self.timers.drop(saga_id)
        self.census.drop(saga_id)

    def _set_timers(self) -> None:
        untimed, self._untimed = self._untimed, set()
        for saga_id in untimed:
            self._set_timer(self._active[saga_id])

    def _set_timer(self, state: SagaState) -> None:
        contract = self._contract(state)
        if contract is None:
            self._untimed.add(state.saga_id)
        else:
            self.timers.set(state.saga_id, next_due_ms(contract, state), state.offset)


def mark_of(message: Message) -> str:
    """What tells a record from another one at the same offset of another log."""
    return f"{message.timestamp_ms}:{crc32(message.value):08x}"
