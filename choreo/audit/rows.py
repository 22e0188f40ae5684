"""A topic's history as flat rows, one a record, for tables and tools of other trades. Streams; nothing is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import msgspec

from choreo.audit.histories import about, decision_text, plain
from choreo.broker.port import Broker, TopicPartition
from choreo.broker.registry import Registry
from choreo.broker.topics import saga_topic
from choreo.core.state import Key
from choreo.messages.records import StepRecord
from choreo.saga_log.replay import Progress, batches, end_of, records
from choreo.saga_log.window import Folding, Revived, Window


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A record. Empty texts and zeros where it has nothing of the kind.

    Attributes:
        at_ms: append time by the broker's clock, Unix epoch.
        type: as on the wire.
        writer: who wrote it, as it says itself.
        note: what the fold found remarkable.
        decided: what it brought about, separated by semicolons.
        phase: of the saga from then on.
        worked_ms: what the handler took, by the worker's clock.
        about: the rest in words.
        record: all of it as JSON text; empty where values were not wanted.
    """

    saga: str
    saga_id: str
    version: int
    partition: int
    offset: int
    at_ms: int
    type: str
    id: str
    step: str
    round: int
    generation: int
    writer: str
    note: str
    decided: str
    phase: str
    failure_kind: str
    failure_code: str
    attempts: int
    worked_ms: int
    about: str
    record: str


class Exported(NamedTuple):
    """A row, and what began to exist with it.

    Attributes:
        is_first: the saga has no earlier record.
        begun: the step instances that nothing was known of before.
        instance: the one that it is about; ``None`` if about none that the saga has.
        contract_hash: of the saga's contract.
    """

    row: Row
    is_first: bool
    begun: tuple[Key, ...]
    instance: Key | None
    contract_hash: str


async def exported(
    broker: Broker,
    saga: str,
    *,
    registry: Registry,
    since_ms: int = 0,
    until_ms: int = 2**63,
    with_values: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
) -> AsyncIterator[list[Exported]]:
    """All records of a topic that can be folded, in batches.

    Partition by partition, in order; but those of sagas that came back after they were let go follow behind the others
    of their partition.

    Args:
        registry: refreshed before the first record is folded.
        since_ms, until_ms: only records that were appended then; both ends included.
        with_values: whether rows have their records in full, inputs and effects included.

    Raises:
        TopicError: the saga has no topic.
        BrokerUnavailable: the log cannot be read.
    """
    topic = saga_topic(saga)
    tps = [TopicPartition(topic, number) for number in range(await broker.partitions(topic))]
    offsets = await broker.offsets(tps)
    await registry.refresh()
    total, read = sum(end - first for first, end in offsets.values()), 0
    for tp in tps:
        first, end = offsets[tp]
        batch = _Batch(since_ms, until_ms, with_values=with_values)
        window = Window(saga, registry.get, records_max=end - first, watch=batch.take)
        async for messages in records(broker, tp, first, end):
            window.take(messages)
            window.let_go()
            read += len(messages)
            if on_progress is not None:
                on_progress(Progress(read, total))
            yield batch.rows()
        for revived in batches(window.revived):
            again = _Batch(since_ms, until_ms, with_values=with_values, revived=revived)
            second = Window(saga, registry.get, records_max=0, only=revived, watch=again.take)
            async for messages in records(broker, tp, first, end_of(revived)):
                second.take(messages)
                second.let_go()
                yield again.rows()


class _Batch:
    def __init__(
        self, since_ms: int, until_ms: int, *, with_values: bool, revived: dict[str, Revived] | None = None
    ) -> None:
        self._since_ms = since_ms
        self._until_ms = until_ms
        self._with_values = with_values
        self._revived = revived
        self._rows: list[Exported] = []

    def take(self, each: Folding) -> None:
        """A record was folded; in a second pass, those before the saga came back have been given."""
        if not self._since_ms <= each.entry.at_ms <= self._until_ms:
            return
        if each.entry.record.saga_id != each.before.saga_id:
            return  # a pause of the type is folded into each saga, and is no record of any
        if self._revived is None or each.entry.offset >= self._revived[each.before.saga_id].first:
            self._rows.append(_exported(each, with_values=self._with_values))

    def rows(self) -> list[Exported]:
        out, self._rows = self._rows, []
        return out


def _exported(each: Folding, *, with_values: bool) -> Exported:
    record, entry, state = each.entry.record, each.entry, each.folded.state
    failure = getattr(record, "failure", None)
    source = each.message.header("ce_source") or b""
    value = msgspec.json.encode(plain(record, entry.content_type)).decode() if with_values else ""
    row = Row(
        saga=record.saga,
        saga_id=record.saga_id,
        version=state.version or record.version,
        partition=each.message.partition,
        offset=entry.offset,
        at_ms=entry.at_ms,
        type=str(type(record).__struct_config__.tag),
        id=record.id,
        step=_field(record, "step") or "",
        round=_field(record, "round") or 0,
        generation=_field(record, "generation") or 0,
        writer=source.decode("utf-8", "replace").removeprefix("/choreo/"),
        note=each.folded.note or "",
        decided="; ".join(decision_text(one) for one in each.folded.owed),
        phase=state.phase.value if state.started else "unstarted",
        failure_kind=failure.kind if failure else "",
        failure_code=failure.code if failure else "",
        attempts=_field(record, "attempts") or 0,
        worked_ms=_field(record, "duration_ms") or 0,
        about=about(record),
        record=value,
    )
    begun = tuple(key for key in state.instances if key not in each.before.instances)
    instance = None
    if isinstance(record, StepRecord) and (saga_round := state.fold_round(record.start, record.round)) is not None:
        key = (record.step, saga_round)
        instance = key if key in state.instances else None
    return Exported(row, each.before.offset < 0, begun, instance, state.contract_hash)


def _field(record: Any, name: str) -> Any:
    return getattr(record, name, None)
