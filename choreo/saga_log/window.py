"""One pass over a partition with only the unfinished sagas in memory. No I/O.

A saga that has settled is let go when ``SETTLED_KEPT`` others have settled after it. Should a record for it come later
still (an effect that is found long after the outcome), it is *revived*: noted with the offset of its last record, to be
folded anew in another pass, which keeps each of these sagas only up to that record.

That a saga was let go is remembered in a Bloom filter of bounded size. It may take a new saga for one that was let go;
that one is then folded in the second pass like those that were.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from choreo.broker.port import Message, TopicPartition
from choreo.contract.saga import Saga
from choreo.core import Entry, SagaState, fold, refuse
from choreo.core.fold import Folded
from choreo.ids import is_partition_key
from choreo.saga_log.bloom import BloomFilter
from choreo.saga_log.intake import Contracts, Refused, Unheld, contract_of, read_entry
from choreo.saga_log.type_pause import TypePause, concerned

SETTLED_KEPT = 2_000
PROBLEMS_KEPT = 1_000

_RECORDS_PER_SAGA = 4  # a guess from below: the filter may be too large, not too small


class Problem(NamedTuple):
    """A message that could not be folded, and the key it has."""

    tp: TopicPartition
    offset: int
    at_ms: int
    key: bytes | None
    why: Refused | Unheld


class Folding(NamedTuple):
    """A record that was folded, for those who watch."""

    message: Message
    entry: Entry
    contract: Saga
    before: SagaState
    folded: Folded


class Revived(NamedTuple):
    """A saga that got records after it was let go: the offsets of the first and of the last of them."""

    first: int
    last: int


class Window:
    """The sagas of one partition that are in memory while it is read once.

    Attributes:
        problems: the first ``PROBLEMS_KEPT`` messages that were not folded: no records, or of a contract that is not
            registered (then one for each saga, whose later records are passed over).
        problems_total: how many there were.
        revived: sagas that got a record after they were let go, or seemed to.
        fresh: of those that were to be folded alone, the ones that only seemed to: no record came before their first.
    """

    def __init__(
        self,
        saga: str,
        contracts: Contracts,
        *,
        records_max: int,
        only: Mapping[str, Revived] | None = None,
        watch: Callable[[Folding], None] | None = None,
    ) -> None:
        """Begin before the partition's first record.

        Args:
            records_max: how many records it can have.
            only: fold these sagas alone, each up to its last offset; of all others nothing is decoded.
            watch: told of every record that is folded.
        """
        self.problems: list[Problem] = []
        self.problems_total = 0
        self.revived: dict[str, Revived] = {}
        self.fresh: set[str] = set()
        self._saga = saga
        self._contracts = contracts
        self._only = None if only is None else {saga_id.encode(): each for saga_id, each in only.items()}
        self._watch = watch
        self._states: dict[str, SagaState] = {}
        self._settled: OrderedDict[str, None] = OrderedDict()
        self._ended: list[SagaState] = []
        # So few wrong answers that a further pass, which reads everything again, is seldom for them alone.
        self._let_go = BloomFilter(records_max // _RECORDS_PER_SAGA, bits_each=32, probes=11)
        self._waiting: set[str] = set()
        self._type_pause = TypePause()

    def take(self, messages: Iterable[Message]) -> None:
        """Fold the next messages."""
        only = self._only
        for message in messages:
            if only is None or (message.key is not None and is_partition_key(message.key.decode("utf-8", "replace"))):
                self._take(message)
            elif message.key is not None and (wanted := only.get(message.key)) is not None:
                saga_id = message.key.decode()
                if message.offset == wanted.first and saga_id not in self._states:
                    self.fresh.add(saga_id)
                self._take(message)
                if message.offset >= wanted.last and (state := self._states.pop(saga_id, None)) is not None:
                    self._ended.append(state)

    def let_go(self) -> list[SagaState]:
        """The sagas that settled long enough ago, or have reached the offset up to which they were wanted."""
        out, self._ended = self._ended, []
        while len(self._settled) > SETTLED_KEPT:
            saga_id, _ = self._settled.popitem(last=False)
            self._let_go.add(saga_id)
            out.append(self._states.pop(saga_id))
        return out

    def rest(self) -> Collection[SagaState]:
        """All others, after the last message."""
        return self._states.values()

    def _take(self, message: Message) -> None:
        entry = read_entry(message, self._saga)
        if isinstance(entry, Refused):
            self._refuse(message, entry)
            return
        if self._type_pause.see(entry):
            self._fold_all(message, entry)
            return
        saga_id = entry.record.saga_id
        state = self._states.get(saga_id)
        if state is None:
            if saga_id in self._waiting:
                return
            if saga_id in self._let_go:
                self._revive(saga_id, message.offset)
                return
            state = SagaState(saga_id)
        contract = contract_of(self._contracts, state, entry.record)
        if not isinstance(contract, Saga):
            if isinstance(contract, Unheld):
                self._wait(state)
            self._refuse(message, contract)
            return
        if (pause := self._type_pause.before(state, entry.record)) is not None:  # it starts with its type paused
            state = self._fold(message, contract, state, pause)
        self._fold(message, contract, state, entry)

    def _fold_all(self, message: Message, entry: Entry) -> None:
        """A record about the type of all sagas."""
        for state in concerned(self._states.values()):
            contract = self._contracts(state.saga, state.version)
            if contract is not None:
                self._fold(message, contract, state, entry)

    def _fold(self, message: Message, contract: Saga, state: SagaState, entry: Entry) -> SagaState:
        folded = fold(contract, state, entry)
        if self._watch is not None:
            self._watch(Folding(message, entry, contract, state, folded))
        after = folded.state
        self._states[after.saga_id] = after
        if self._only is None and after.outcome is not None:  # it stays, so without one it has never settled
            self._keep_or_settle(after)
        return after

    def _keep_or_settle(self, state: SagaState) -> None:
        if state.is_settled:
            self._settled[state.saga_id] = None
            self._settled.move_to_end(state.saga_id)
        elif self._settled:
            self._settled.pop(state.saga_id, None)

    def _revive(self, saga_id: str, offset: int) -> None:
        known = self.revived.get(saga_id)
        self.revived[saga_id] = Revived(offset if known is None else known.first, offset)

    def _wait(self, state: SagaState) -> None:
        """Nothing more can be folded for this saga."""
        self._waiting.add(state.saga_id)
        if self._states.pop(state.saga_id, None) is not None:
            self._settled.pop(state.saga_id, None)
            self._ended.append(state)

    def _refuse(self, message: Message, why: Refused | Unheld) -> None:
        self.problems_total += 1
        if len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(Problem(message.tp, message.offset, message.timestamp_ms, message.key, why))
        saga_id = (message.key or b"").decode("utf-8", "replace")
        if isinstance(why, Refused) and saga_id not in self._waiting:
            if (state := self._states.get(saga_id)) is not None:
                self._states[saga_id] = refuse(state, message.offset, message.timestamp_ms)
            elif saga_id in self._let_go:
                self._revive(saga_id, message.offset)
