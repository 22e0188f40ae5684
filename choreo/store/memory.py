"""The store that keeps nothing: each run folds the log from its start. A broker alone runs choreo."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import msgspec

from choreo.broker.port import Message, TopicPartition
from choreo.broker.topics import saga_topic
from choreo.core import SagaState
from choreo.errors import StoreConflict
from choreo.store.port import PAGE, Activity, Advance, Checkpoint, Query, Row
from choreo.store.projection import state_of
from choreo.store.query import is_asked_for, place_of

_DROPPED_AT_ONCE = 5_000


class MemoryStore:
    """States in this process. They are kept as bytes, as in any store, so that nobody shares a value with it."""

    def __init__(self) -> None:
        self._checkpoints: dict[TopicPartition, Checkpoint] = {}
        self._rows: dict[tuple[str, str], Row] = {}
        self._active: dict[TopicPartition, set[str]] = {}
        self._parked: dict[TopicPartition, dict[str, list[Message]]] = {}

    async def checkpoint(self, tp: TopicPartition) -> Checkpoint | None:
        return self._checkpoints.get(tp)

    async def load_active(self, tp: TopicPartition, *, after: str = "") -> Sequence[SagaState]:
        wanted = sorted(saga_id for saga_id in self._active.get(tp, ()) if saga_id > after)
        return [state_of(self._rows[tp.topic, saga_id].blob) for saga_id in wanted[:PAGE]]

    async def saga_ids(self, tp: TopicPartition, *, after: str = "") -> Sequence[str]:
        here = (row.saga_id for row in self._rows.values() if (row.topic, row.partition) == tp)
        return sorted(saga_id for saga_id in here if saga_id > after)  # nothing here is in order: all at once

    async def load(self, tp: TopicPartition, saga_ids: Collection[str]) -> Mapping[str, SagaState]:
        rows = self._rows
        return {each: state_of(rows[tp.topic, each].blob) for each in saga_ids if (tp.topic, each) in rows}

    async def parked_sagas(self, tp: TopicPartition) -> Mapping[str, int]:
        return {saga_id: len(messages) for saga_id, messages in self._parked.get(tp, {}).items()}

    async def load_parked(self, tp: TopicPartition, saga_id: str) -> Sequence[Message]:
        return tuple(self._parked.get(tp, {}).get(saga_id, ()))

    async def save(self, advances: Sequence[Advance]) -> None:
        for advance in advances:
            found = self._checkpoints.get(advance.tp)
            if (found.offset if found else None) != advance.expected:
                raise StoreConflict(
                    f"{advance.tp}: the checkpoint is at {found.offset if found else None}, not at {advance.expected}"
                )
        for advance in advances:
            self._checkpoints[advance.tp] = advance.checkpoint
            active = self._active.setdefault(advance.tp, set())
            for row in advance.rows:
                self._rows[row.topic, row.saga_id] = row
                (active.discard if row.resting else active.add)(row.saga_id)
            parked = self._parked.setdefault(advance.tp, {})
            for saga_id in advance.released:
                parked.pop(saga_id, None)
            for message in advance.parked:
                parked.setdefault((message.key or b"").decode(), []).append(message)

    async def wipe(self, tp: TopicPartition) -> None:
        self._checkpoints.pop(tp, None)
        self._active.pop(tp, None)
        self._parked.pop(tp, None)
        self._rows = {key: row for key, row in self._rows.items() if (row.topic, row.partition) != tp}

    async def drop_resting(self, before_ms: int) -> int:
        old = [key for key, row in self._rows.items() if row.resting and row.updated_ms < before_ms]
        for key in old[:_DROPPED_AT_ONCE]:
            del self._rows[key]
        return len(old[:_DROPPED_AT_ONCE]) + self._drop_parked(before_ms)

    def _drop_parked(self, before_ms: int) -> int:
        dropped = 0
        for parked in self._parked.values():
            for saga_id, messages in list(parked.items()):
                kept = [message for message in messages if message.timestamp_ms >= before_ms]
                dropped += len(messages) - len(kept)
                if kept:
                    parked[saga_id] = kept
                else:
                    del parked[saga_id]
        return dropped

    async def find(self, saga: str, saga_id: str) -> SagaState | None:
        row = self._rows.get((saga_topic(saga), saga_id))
        return None if row is None or row.saga != saga else state_of(row.blob)

    async def search(self, query: Query) -> Sequence[Row]:
        found = [row for row in self._rows.values() if is_asked_for(row, query)]
        found.sort(key=place_of, reverse=query.newest_first)
        return [msgspec.structs.replace(row, blob=b"") for row in found[: query.limit]]

    async def counts(self) -> Mapping[tuple[str, str], int]:
        return Counter((row.saga, row.phase) for row in self._rows.values())

    async def activity(self, since_ms: int, stretch_ms: int) -> Sequence[Activity]:
        counted: Counter[tuple[str, str, int]] = Counter()
        for row in self._rows.values():
            for what, at_ms in (("started", row.started_ms), (row.phase, row.finished_ms)):
                if at_ms >= max(since_ms, 1):
                    counted[row.saga, what, (at_ms - since_ms) // stretch_ms] += 1
        return [Activity(*key, number) for key, number in counted.items()]

    async def close(self) -> None:
        """Nothing is held that would have to be let go."""
