"""Whether a store is the fold of the log: each partition is folded up to the store's checkpoint and compared.

A partition is read from the store in one moment, and the log before a checkpoint does not change, so that this can be
done beside a saga-log at work. One partition is in memory at a time, the sagas that rest as bytes.

Not all that differs is a fault. Retention cuts off the log's beginning, and a saga whose start is gone cannot be folded
any more: it is *truncated*, and if it is not finished, the store is the only place that knows it (rule 21). And the
saga-log drops what has rested for longer than the retention.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import msgspec

from choreo.broker.port import Broker, Message, TopicPartition
from choreo.broker.registry import Registry
from choreo.broker.topics import saga_topic
from choreo.contract.saga import Saga
from choreo.core import SagaState, fold, refuse
from choreo.saga_log.intake import Refused, Unheld, contract_of, read_entry
from choreo.saga_log.replay import records
from choreo.saga_log.shard import mark_of
from choreo.saga_log.type_pause import TypePause, concerned
from choreo.store.inspection import Contents, Inspection
from choreo.store.port import Row
from choreo.store.projection import encoded, is_resting, row_of, state_of

DIFFERENCES_KEPT = 1_000
_TEXT_MAX = 200


class Difference(msgspec.Struct, frozen=True):
    """Something that the store has otherwise than the log.

    Attributes:
        saga_id: empty if it is about the partition as a whole.
        field: a column of the row; ``state.…`` is in the blob; ``saga`` is about all of it.
        stored, folded: the two values, shortened.
    """

    partition: int
    saga_id: str
    field: str
    stored: str
    folded: str


class Truncated(msgspec.Struct, frozen=True):
    """A saga in the store whose start is no longer in the log.

    Attributes:
        phase: as stored.
        resting: nothing will happen to it. If not, the store alone knows what is owed.
    """

    partition: int
    saga_id: str
    phase: str
    resting: bool


class PartitionChecked(msgspec.Struct, frozen=True):
    """A partition that was compared.

    Attributes:
        offset: the store's checkpoint; ``None`` if nothing is stored.
        end: the log's end.
        sagas: how many were compared.
    """

    partition: int
    offset: int | None
    end: int
    sagas: int


class Checked(msgspec.Struct):
    """What came out for one saga's topic.

    Attributes:
        differences: the first ``DIFFERENCES_KEPT`` of ``differences_total``.
        dropped: in the log and not in the store, because they have rested for longer than the retention.
    """

    saga: str
    partitions: list[PartitionChecked] = []
    differences: list[Difference] = []
    differences_total: int = 0
    truncated: list[Truncated] = []
    dropped: int = 0

    @property
    def agrees(self) -> bool:
        """The store is the fold of the log, and the log still has all that is unfinished."""
        return not self.differences_total and all(each.resting for each in self.truncated)

    def differ(self, tp: TopicPartition, saga_id: str, field: str, stored: object, folded: object) -> None:
        self.differences_total += 1
        if len(self.differences) < DIFFERENCES_KEPT:
            self.differences.append(Difference(tp.partition, saga_id, field, _text(stored), _text(folded)))


async def check(
    broker: Broker, inspection: Inspection, saga: str, *, registry: Registry, dropped_before_ms: int
) -> Checked:
    """Compare what the store has of a saga's topic with the log.

    Args:
        registry: refreshed before the first record is folded.
        dropped_before_ms: a resting saga whose last record is older may be missing in the store.

    Raises:
        TopicError: the saga has no topic.
        BrokerUnavailable: the log cannot be read.
        StoreError: the store cannot be read.
    """
    topic = saga_topic(saga)
    checked = Checked(saga)
    for number in range(await broker.partitions(topic)):
        tp = TopicPartition(topic, number)
        contents = await inspection.contents(tp)
        # After the store: what it has was folded from records that are in the log, under contracts that are registered.
        first, end = (await broker.offsets([tp]))[tp]
        await registry.refresh()
        offset = contents.checkpoint.offset if contents.checkpoint is not None else None
        compared = 0
        if _is_of_this_log(checked, tp, contents, first, end):
            compared = await _check(broker, checked, tp, contents, registry, first, dropped_before_ms)
        checked.partitions.append(PartitionChecked(number, offset, end, compared))
    return checked


def _is_of_this_log(checked: Checked, tp: TopicPartition, contents: Contents, first: int, end: int) -> bool:
    if contents.checkpoint is None:
        if contents.rows:
            checked.differ(tp, "", "checkpoint", None, f"{len(contents.rows)} sagas are stored without one")
        return False
    if contents.of_another_release:
        checked.differ(tp, "", "format", "of another release", "the saga-log that gets the partition folds it again")
        return False
    if not first <= contents.checkpoint.offset <= end:
        checked.differ(tp, "", "checkpoint", contents.checkpoint.offset, f"the log has {first} to {end}")
        return False
    return True


async def _check(
    broker: Broker,
    checked: Checked,
    tp: TopicPartition,
    contents: Contents,
    registry: Registry,
    first: int,
    dropped_before_ms: int,
) -> int:
    """Compare one partition; says how many sagas were compared."""
    assert contents.checkpoint is not None, "without one there is nothing to fold to"
    part = _Part(checked, tp, registry, contents.parked)
    mark = contents.checkpoint.mark
    async for messages in records(broker, tp, first, contents.checkpoint.offset):
        for message in messages:
            part.take(message)
            if message.offset == contents.checkpoint.offset - 1 and mark_of(message) != mark:
                checked.differ(tp, "", "checkpoint.mark", mark, f"{mark_of(message)}: the store is of another log")
                return 0
    if part.type_pause.stored != contents.checkpoint.type_pause:
        checked.differ(tp, "", "checkpoint.type_pause", contents.checkpoint.type_pause, part.type_pause.stored)
    sagas = sorted(contents.rows.keys() | part.ids())
    for saga_id in sagas:
        row = contents.rows.get(saga_id)
        state = part.state(saga_id)
        if row is None:
            assert state is not None, "it is in one of the two"
            if is_resting(state) and state.updated_ms < dropped_before_ms:
                checked.dropped += 1
            else:
                checked.differ(tp, saga_id, "saga", None, f"in phase {state.phase}, last record {state.offset}")
        elif saga_id not in part.unfolded:
            _compare(checked, tp, row, state, part.contract(saga_id), first, dropped_before_ms)
    return len(sagas)


def _compare(
    checked: Checked,
    tp: TopicPartition,
    row: Row,
    state: SagaState | None,
    contract: Saga | None,
    first: int,
    dropped_before_ms: int,
) -> None:
    try:
        stored = state_of(row.blob)
    except msgspec.MsgspecError as error:
        checked.differ(tp, row.saga_id, "blob", f"no state: {error}", "a state")
        return
    cut = first > 0 and (state is None or not state.started)
    if (cut and (state is not None or stored.offset < first)) or _came_back(stored, state, dropped_before_ms):
        checked.truncated.append(Truncated(tp.partition, row.saga_id, row.phase, is_resting(stored)))
        return
    if state is None or contract is None:
        checked.differ(tp, row.saga_id, "saga", f"in phase {row.phase}, last record {stored.offset}", None)
        return
    expected = row_of(contract, state, tp)
    for field in Row.__struct_fields__:
        ours, theirs = getattr(row, field), getattr(expected, field)
        if field != "blob" and ours != theirs and ours != _as_stored(theirs):
            checked.differ(tp, row.saga_id, field, ours, theirs)
    for field, ours, theirs in _different(stored, state):
        checked.differ(tp, row.saga_id, f"state.{field}", ours, theirs)


def _came_back(stored: SagaState, state: SagaState | None, dropped_before_ms: int) -> bool:
    """A record for it came when it had been dropped: its start may still be in the log, but nobody looks for it."""
    return not stored.started and state is not None and state.started and state.started_ms < dropped_before_ms


def _different(stored: SagaState, folded: SagaState) -> Iterator[tuple[str, object, object]]:
    """The fields in which two states differ; of mappings, the entries."""
    for field in SagaState.__struct_fields__:
        ours, theirs = getattr(stored, field), getattr(folded, field)
        if ours == theirs:
            continue
        if isinstance(ours, dict) and isinstance(theirs, dict):
            for key in sorted(ours.keys() | theirs.keys(), key=str):
                if ours.get(key) != theirs.get(key):
                    name = ", ".join(map(str, key)) if isinstance(key, tuple) else key
                    yield f"{field}[{name}]", ours.get(key), theirs.get(key)
        else:
            yield field, ours, theirs


class _Part:
    """The fold of a partition, up to the checkpoint and without what is parked. No I/O.

    Attributes:
        unfolded: sagas that cannot be folded here, because their contract is not registered any more.
        type_pause: of all sagas, if it is in force.
    """

    def __init__(
        self, checked: Checked, tp: TopicPartition, registry: Registry, parked: Mapping[str, Collection[int]]
    ) -> None:
        self.unfolded: set[str] = set()
        self._checked = checked
        self._tp = tp
        self._registry = registry
        self._parked = parked
        self._states: dict[str, SagaState] = {}
        self._resting: dict[str, bytes] = {}
        self._contracts: dict[str, Saga] = {}
        self.type_pause = TypePause()

    def take(self, message: Message) -> None:
        """Fold the next message as a saga-log would have."""
        entry = read_entry(message, self._checked.saga)
        if isinstance(entry, Refused):
            self._refuse(message)
            return
        if self.type_pause.see(entry):
            for each in concerned(self._states.values()):
                self._put(each.saga_id, fold(self._contracts[each.saga_id], each, entry).state)
            return
        saga_id = entry.record.saga_id
        if saga_id in self.unfolded or message.offset in self._parked.get(saga_id, ()):
            return
        state = self.state(saga_id) or SagaState(saga_id)
        contract = contract_of(self._registry.get, state, entry.record)
        if isinstance(contract, Refused):
            self._refuse(message)
            return
        if isinstance(contract, Unheld):
            self.unfolded.add(saga_id)
            self._checked.differ(self._tp, saga_id, "saga", "not compared", str(contract))
            return
        self._contracts[saga_id] = contract
        if (pause := self.type_pause.before(state, entry.record)) is not None:
            state = fold(contract, state, pause).state
        self._put(saga_id, fold(contract, state, entry).state)

    def _refuse(self, message: Message) -> None:
        saga_id = (message.key or b"").decode("utf-8", "replace")
        if saga_id not in self.unfolded and (state := self.state(saga_id)) is not None:
            self._put(saga_id, refuse(state, message.offset, message.timestamp_ms))

    def _put(self, saga_id: str, folded: SagaState) -> None:
        if is_resting(folded):
            self._states.pop(saga_id, None)
            self._resting[saga_id] = encoded(folded)
        else:
            self._resting.pop(saga_id, None)
            self._states[saga_id] = folded

    def ids(self) -> set[str]:
        """The sagas that were folded."""
        return self._states.keys() | self._resting.keys()

    def state(self, saga_id: str) -> SagaState | None:
        """What the log says of a saga; ``None`` if nothing."""
        if (blob := self._resting.get(saga_id)) is not None:
            return state_of(blob)
        return self._states.get(saga_id)

    def contract(self, saga_id: str) -> Saga | None:
        """The contract under which its last record was folded."""
        return self._contracts.get(saga_id)


def _as_stored(value: object) -> object:
    """PostgreSQL takes no NUL in a text."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value


def _text(value: object) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else repr(value)
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}…"
