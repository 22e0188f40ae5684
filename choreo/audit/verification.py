"""Verifying a whole topic: every decision was owed, none is missing or forged, no effect is there twice.

What was sealed has to be what it was, too. Partitions are read one after the other; in memory are the unfinished sagas
of one, as in a replay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable

import msgspec

from choreo.audit.findings import Fault, FaultKind, Notice, NoticeKind
from choreo.audit.judge import KEPT, Judge
from choreo.audit.segments import Checkpoint, RootWatch, read_checkpoints
from choreo.broker.port import Broker, TopicPartition
from choreo.broker.registry import Registry
from choreo.broker.topics import saga_topic
from choreo.core import SagaState
from choreo.saga_log.intake import Refused
from choreo.saga_log.replay import Progress, batches, end_of, records
from choreo.saga_log.window import Window

PATIENCE_MS = 60_000
"""How long after the record that implies it a decision may be unsaid: a saga-log that restarts is no fault of a log."""


class PartitionVerified(msgspec.Struct, frozen=True, kw_only=True):
    """A partition that was read, from ``first`` to before ``end``.

    Attributes:
        unfinished: how many sagas are under way at its end.
        segments: sealed ones whose root was compared.
    """

    partition: int
    first: int
    end: int
    unfinished: int
    segments: int


class Verified(msgspec.Struct, kw_only=True):
    """The outcome of a verification.

    Attributes:
        records: messages read.
        faults, notices: the first ``KEPT`` of each.
        faults_total, notices_total: how many there were, by kind.
    """

    saga: str
    records: int = 0
    partitions: list[PartitionVerified] = []
    faults: list[Fault] = []
    notices: list[Notice] = []
    faults_total: Counter[FaultKind] = msgspec.field(default_factory=Counter)
    notices_total: Counter[NoticeKind] = msgspec.field(default_factory=Counter)

    @property
    def sound(self) -> bool:
        """There is no fault."""
        return not self.faults_total


async def verify(
    broker: Broker,
    saga: str,
    *,
    registry: Registry,
    now_ms: int,
    patience_ms: int = PATIENCE_MS,
    on_progress: Callable[[Progress], None] | None = None,
) -> Verified:
    """Judge every record of the topic of ``saga``, from its start to the end that it has now.

    Args:
        registry: refreshed before the first record is folded.
        now_ms: the time by the broker's clock; decisions and timers older than ``patience_ms`` must have been said.
        on_progress: called after every batch.

    Raises:
        TopicError: the saga has no topic.
        BrokerUnavailable: the log cannot be read.
    """
    topic = saga_topic(saga)
    tps = [TopicPartition(topic, number) for number in range(await broker.partitions(topic))]
    offsets = await broker.offsets(tps)
    await registry.refresh()  # after the ends are read: a contract is published before the first saga under it
    total = sum(end - first for first, end in offsets.values())
    sealed = await read_checkpoints(broker, saga)
    verified = Verified(saga=saga)
    for tp in tps:
        first, end = offsets[tp]
        judge = Judge(tp, first=first)
        for at, why in sealed.odd if tp.partition == 0 else ():
            judge.odd_checkpoint(at, why)
        roots = RootWatch(sealed.chains.get(tp.partition, ()), first)
        partition = _Verifying(broker, registry, saga, tp, judge, roots, (now_ms, patience_ms))
        async for number in partition.read(first, end):
            verified.records += number
            if on_progress is not None:
                on_progress(Progress(verified.records, total))
        verified.partitions.append(
            PartitionVerified(
                partition=tp.partition, first=first, end=end, unfinished=partition.unfinished, segments=roots.checked
            )
        )
        verified.faults += judge.faults[: KEPT - len(verified.faults)]
        verified.notices += judge.notices[: KEPT - len(verified.notices)]
        verified.faults_total += judge.faults_total
        verified.notices_total += judge.notices_total
    return verified


class _Verifying:
    """One partition."""

    def __init__(
        self,
        broker: Broker,
        registry: Registry,
        saga: str,
        tp: TopicPartition,
        judge: Judge,
        roots: RootWatch,
        times: tuple[int, int],
    ) -> None:
        self.unfinished = 0
        self._broker = broker
        self._registry = registry
        self._saga = saga
        self._tp = tp
        self._judge = judge
        self._roots = roots
        self._times = times

    async def read(self, first: int, end: int) -> AsyncIterator[int]:
        """Judge all of it; gives how many messages were read, batch by batch."""
        judge = self._judge
        window = Window(self._saga, self._registry.get, records_max=end - first, watch=judge.record)
        async for messages in records(self._broker, self._tp, first, end):
            for message in messages:
                judge.message(message)
                self._differing(self._roots.message(message))
            window.take(messages)
            for state in window.let_go():
                judge.forget(state.saga_id)
            yield len(messages)
        self._differing(self._roots.upto(end))
        self._problems(window)
        self._end(window.rest())
        for revived in batches(window.revived):
            again = Window(self._saga, self._registry.get, records_max=0, only=revived, watch=judge.record)
            for saga_id in revived:
                judge.forget(saga_id)
            async for messages in records(self._broker, self._tp, first, end_of(revived)):
                again.take(messages)
                self._end(again.let_go())

    def _differing(self, checkpoints: Iterable[Checkpoint]) -> None:
        for checkpoint in checkpoints:
            self._judge.other_root(checkpoint.first, checkpoint.end)

    def _problems(self, window: Window) -> None:
        for problem in window.problems:
            saga_id = (problem.key or b"").decode("utf-8", "replace")
            if isinstance(problem.why, Refused):
                self._judge.unreadable(problem.offset, saga_id, problem.why.message)
            else:
                self._judge.waits(problem.offset, saga_id, str(problem.why))

    def _end(self, states: Iterable[SagaState]) -> None:
        """Judge what these sagas owe."""
        for state in states:
            self._judge.end(self._registry.get(state.saga, state.version), state, *self._times)
            self._judge.forget(state.saga_id)
            self.unfinished += state.started and not state.is_settled
