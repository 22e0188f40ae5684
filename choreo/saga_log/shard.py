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
from heapq import heappop, heappush
from typing import NamedTuple
from zlib import crc32

from choreo.broker.port import Message, TopicPartition
from choreo.contract.saga import Saga
from choreo.core import Decision, Entry, Folded, Phase, SagaState, Timer, fold, next_due_ms, refuse, timers
from choreo.saga_log.intake import Contracts, Refused, Unheld, contract_of, read_entry
from choreo.saga_log.kept import Kept
from choreo.saga_log.known import Known
from choreo.saga_log.timer import Timers
from choreo.saga_log.type_pause import TypePause, concerned
from choreo.store.port import Advance, Checkpoint
from choreo.store.projection import is_resting, row_of

IN_PROGRESS = (Phase.SCHEDULED, Phase.FORWARD, Phase.COMPENSATING, Phase.STUCK)


class Seen(NamedTuple):
    """A record that was folded."""

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
        phases: how many sagas are in each of the phases of ``IN_PROGRESS``.
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
        self.phases: Counter[Phase] = Counter()
        self.timers = Timers()
        self._contracts = contracts
        self._checkpoint = checkpoint
        self._type_pause = TypePause("" if checkpoint is None else checkpoint.type_pause)
        self._paused: set[str] = set()
        self._last: Message | None = None
        self._active = Kept(active_max)
        self._resting: OrderedDict[str, SagaState] = OrderedDict()
        self.known = Known(nothing_stored=checkpoint is None)
        self._changed: dict[str, Saga] = {}
        self._owing: dict[str, None] = {}
        self._untimed: set[str] = set()
        self._sent: dict[str, frozenset[Decision]] = {}
        self._parked_unsaved: list[Message] = []
        self._released: set[str] = set()
        self._phase_counted: dict[str, Phase] = {}
        self._starts: list[tuple[int, str]] = []  # heap of starts of sagas in progress, with entries left behind

    # Reading

    def missing(self, messages: Iterable[Message]) -> set[str]:
        """The sagas of these messages whose states may be in the store, and are not here."""
        keys = {message.key for message in messages if message.key is not None}
        found = {key.decode("utf-8", "replace") for key in keys}
        return {
            saga_id
            for saga_id in found
            if saga_id not in self._active and saga_id not in self._resting and self.known.may_have(saga_id)
        }

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What the store has of this partition, as far as we know."""
        return self._checkpoint

    def admit(self, states: Iterable[SagaState]) -> None:
        """Take states from the store."""
        for state in states:
            self._put(SagaState(state.saga_id), state)

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

    def oldest_start_ms(self) -> int | None:
        """When the oldest saga in progress began, or will begin; ``None`` if none is in progress."""
        while self._starts:
            state = self._active.get(self._starts[0][1])
            if state is not None and state.began_ms == self._starts[0][0] and state.outcome is None:
                return self._starts[0][0]
            heappop(self._starts)
        return None

    def stuck(self) -> list[SagaState]:
        """The sagas that wait for an operator."""
        if not self.phases[Phase.STUCK]:
            return []
        return [self._active[saga_id] for saga_id, phase in self._phase_counted.items() if phase is Phase.STUCK]

    @property
    def paused(self) -> int:
        """How many sagas that are not over are paused."""
        return len(self._paused)

    def states(self) -> Mapping[str, SagaState]:
        """All states in memory, those that rest included."""
        return {**self._resting, **{saga_id: self._active[saga_id] for saga_id in self._active}}

    # Inside

    def _take(self, message: Message, applied: Applied) -> None:
        entry = read_entry(message, self.saga)
        if isinstance(entry, Refused):
            self._refuse(message, entry, applied)
            return
        if self._type_pause.see(entry):
            for state in (each for saga_id in tuple(self._active) for each in concerned([self._active[saga_id]])):
                if (held := self._contract(state)) is not None:
                    self._fold(held, state, entry, applied)
            return
        saga_id = entry.record.saga_id
        if saga_id in self.parked:
            self._park(message, None, applied)  # it waits behind the first one
            return
        before = self._state(saga_id)
        contract = contract_of(self._contracts, before, entry.record)
        if isinstance(contract, Refused):
            self._refuse(message, contract, applied)
        elif isinstance(contract, Unheld):
            self._park(message, contract, applied)
        else:
            if (pause := self._type_pause.before(before, entry.record)) is not None:
                before = self._fold(contract, before, pause, applied)
            self._fold(contract, before, entry, applied)

    def _fold(self, contract: Saga, before: SagaState, entry: Entry, applied: Applied) -> SagaState:
        folded = fold(contract, before, entry)
        self._put(before, folded.state)
        self._changed[before.saga_id] = contract
        applied.seen.append(Seen(entry, before, folded))
        return folded.state

    def _refuse(self, message: Message, why: Refused, applied: Applied) -> None:
        """It goes to the dead letters; the saga whose key it has, if there is one, is marked."""
        applied.refused.append((message, why))
        before = self._state((message.key or b"").decode("utf-8", "replace"))
        contract = self._contract(before)
        if before.started and contract is not None and before.saga_id not in self.parked:
            self._put(before, refuse(before, message.offset, message.timestamp_ms))
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

    def _put(self, before: SagaState, state: SagaState) -> None:
        saga_id = state.saga_id
        if state.is_paused and not is_resting(state):
            self._paused.add(saga_id)
        elif self._paused:
            self._paused.discard(saga_id)
        if is_resting(state):
            self._active.discard(saga_id)
            self._resting[saga_id] = state
            self._resting.move_to_end(saga_id)
            self._owing.pop(saga_id, None)
            self._sent.pop(saga_id, None)
            self._untimed.discard(saga_id)
            self.timers.set(saga_id, None, state.offset)
        else:
            self._resting.pop(saga_id, None)
            self._active.put(state)
            self._untimed.add(saga_id)
            if state.owed:
                self._owing[saga_id] = None
            else:
                self._owing.pop(saga_id, None)
            given = self._sent.pop(saga_id, frozenset())
            if still := given.intersection(state.owed):  # a decision whose message was read may be owed anew later
                self._sent[saga_id] = still
        self._count(before, state)

    def _count(self, before: SagaState, state: SagaState) -> None:
        phase = state.phase if state.started else None
        if phase not in IN_PROGRESS:
            phase = None
        if phase is not None and not before.started:
            heappush(self._starts, (state.began_ms, state.saga_id))
        counted = self._phase_counted.get(state.saga_id)
        if phase is counted:
            return
        if counted is not None:
            self.phases[counted] -= 1
            del self._phase_counted[state.saga_id]
        if phase is not None:
            self.phases[phase] += 1
            self._phase_counted[state.saga_id] = phase

    def _set_timers(self) -> None:
        untimed, self._untimed = self._untimed, set()
        for saga_id in untimed:
            state = self._active[saga_id]
            contract = self._contract(state)
            if contract is None:
                self._untimed.add(saga_id)
            else:
                self.timers.set(saga_id, next_due_ms(contract, state), state.offset)


def mark_of(message: Message) -> str:
    """What tells a record from another one at the same offset of another log."""
    return f"{message.timestamp_ms}:{crc32(message.value):08x}"
