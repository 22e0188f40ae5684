"""What if sagas had another contract? Recorded history folded through a candidate, beside the one that they have.

A saga keeps the contract that it started under; what is asked here is whether that would have to be so: what the
candidate would have decided otherwise, and for the sagas in flight, whether they could go on under it. Two kinds of
answer: what *breaks* (an effect that nobody would undo any more, a step that would be undone because nothing triggers
it, a saga that would turn back or time out at once, or wait for ever), and what merely *changes*.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Literal, NamedTuple

import msgspec

from choreo.audit.histories import decision_text
from choreo.audit.preview import preview_cancel
from choreo.broker.port import Broker, TopicPartition
from choreo.broker.registry import Registry
from choreo.broker.topics import saga_topic
from choreo.contract.policy import duration_text
from choreo.contract.saga import Saga
from choreo.core import Decision, SagaState, fold, next_due_ms
from choreo.core.state import Key
from choreo.saga_log.replay import Progress, batches, end_of, records
from choreo.saga_log.window import Folding, Window

KEPT = 1_000

Break = Literal[
    "lost_step",  # an effect, or a step in flight, of a step that the candidate does not have
    "lost_compensation",  # an effect that the candidate has nothing to undo with
    "unwanted",  # a step stands or is in flight, and the candidate would undo it: nothing would have triggered it
    "no_way_back",  # the candidate's pivot lies before what could still be undone
    "turns_back",  # the saga would go back, as it is
    "times_out",  # a time would be over at once
    "waits_for_ever",  # nothing would be in flight, owed or timed, and no outcome
]
Change = Literal[
    "decides_otherwise",  # some record would have led to other decisions
    "undoes_otherwise",  # a cancel would undo other steps, in another order or by other compensations
    "times_otherwise",  # the next time-out is another one
    "ends_otherwise",  # a finished saga would have had the other outcome, or none
]


class Consequence(msgspec.Struct, frozen=True, kw_only=True):
    """What the candidate would mean for one saga.

    Attributes:
        version: the one it has.
        offset: of the record that shows it; -1 for how things are at the end of the log.
    """

    kind: Break | Change
    breaks: bool
    saga_id: str
    version: int
    offset: int
    text: str


class WhatIf(msgspec.Struct, kw_only=True):
    """The outcome.

    Attributes:
        version, contract_hash: of the candidate.
        records: folded.
        sagas, in_flight: how many were looked at.
        broken: sagas in flight of which something breaks.
        totals: consequences by kind.
        consequences: the first ``KEPT`` of each of the two kinds, those that break first.
    """

    saga: str
    version: int
    contract_hash: str
    records: int = 0
    sagas: int = 0
    in_flight: int = 0
    broken: int = 0
    totals: Counter[str] = msgspec.field(default_factory=Counter)
    consequences: list[Consequence] = []

    @property
    def safe(self) -> bool:
        """Nothing in flight breaks."""
        return not self.broken


async def what_if(
    broker: Broker,
    candidate: Saga,
    *,
    registry: Registry,
    now_ms: int,
    versions: Collection[int] = (),
    on_progress: Callable[[Progress], None] | None = None,
) -> WhatIf:
    """Fold the topic of a saga through its registered contracts and through ``candidate``, and compare.

    Args:
        candidate: need not be registered.
        registry: refreshed before the first record is folded.
        now_ms: the time by the broker's clock.
        versions: only sagas of these; all by default.

    Raises:
        TopicError: the saga has no topic.
        BrokerUnavailable: the log cannot be read.
    """
    topic = saga_topic(candidate.name)
    tps = [TopicPartition(topic, number) for number in range(await broker.partitions(topic))]
    offsets = await broker.offsets(tps)
    await registry.refresh()
    total = sum(end - first for first, end in offsets.values())
    compare = _Comparing(candidate, registry, now_ms, frozenset(versions))
    read = 0
    for tp in tps:
        first, end = offsets[tp]
        window = Window(candidate.name, registry.get, records_max=end - first, watch=compare.record)
        async for messages in records(broker, tp, first, end):
            window.take(messages)
            compare.ended(window.let_go())
            read += len(messages)
            if on_progress is not None:
                on_progress(Progress(read, total))
        compare.ended(window.rest())
        for revived in batches(window.revived):
            again = Window(candidate.name, registry.get, records_max=0, only=revived, watch=compare.record)
            async for messages in records(broker, tp, first, end_of(revived)):
                again.take(messages)
                compare.ended(again.let_go())
    return compare.outcome(read)


class _Other(NamedTuple):
    """A saga under the candidate, and the first record that would have led to other decisions."""

    state: SagaState
    differs_at: int
    text: str


class _Comparing:
    def __init__(self, candidate: Saga, registry: Registry, now_ms: int, versions: frozenset[int]) -> None:
        self._candidate = candidate
        self._registry = registry
        self._now_ms = now_ms
        self._versions = versions
        self._others: dict[str, _Other] = {}
        self._found = WhatIf(saga=candidate.name, version=candidate.version, contract_hash=candidate.content_hash)
        self._changes: list[Consequence] = []

    def record(self, each: Folding) -> None:
        """A record was folded; fold it under the candidate too."""
        saga_id = each.before.saga_id
        other = self._others.get(saga_id)
        if other is None or each.before.offset < 0:
            other = _Other(SagaState(saga_id), -1, "")
        state, owed, _ = fold(self._candidate, other.state, each.entry)
        differs_at, text = other.differs_at, other.text
        if differs_at < 0 and set(owed) != set(each.folded.owed):
            differs_at = each.entry.offset
            text = (
                f"{type(each.entry.record).__name__} would lead to {_said(owed)} instead of {_said(each.folded.owed)}"
            )
        self._others[saga_id] = _Other(state, differs_at, text)

    def ended(self, states: Iterable[SagaState]) -> None:
        """These sagas are at their last record."""
        for state in states:
            other = self._others.pop(state.saga_id, None)
            contract = self._registry.get(state.saga, state.version)
            if other is None or contract is None or (self._versions and state.version not in self._versions):
                continue
            self._found.sagas += 1
            if other.differs_at >= 0:
                self._change("decides_otherwise", state, other.text, offset=other.differs_at)
            if state.is_settled:
                self._finished(state, other.state)
            elif state.started:
                self._in_flight(contract, state, other.state)

    def outcome(self, read: int) -> WhatIf:
        found = self._found
        found.records = read
        found.consequences += self._changes
        return found

    def _finished(self, state: SagaState, other: SagaState) -> None:
        kinds = [one.outcome.kind if one.outcome else "no outcome" for one in (state, other)]
        if kinds[0] != kinds[1]:
            self._change("ends_otherwise", state, f"it has {kinds[0]}; under the candidate: {kinds[1]}")

    def _in_flight(self, contract: Saga, state: SagaState, other: SagaState) -> None:
        self._found.in_flight += 1
        breaks = list(self._breaks(contract, state, other))
        for kind, text in breaks:
            self._note(kind, state, text, breaks=True)
        self._found.broken += bool(breaks)
        ours, theirs = preview_cancel(contract, state), preview_cancel(self._candidate, other)
        undo = [[(one.step, one.compensation) for one in each.undo] for each in (ours, theirs)]
        if (ours.verdict, undo[0]) != (theirs.verdict, undo[1]):
            text = (
                f"a cancel would be {theirs.verdict} ({_steps(undo[1])}) instead of {ours.verdict} ({_steps(undo[0])})"
            )
            self._change("undoes_otherwise", state, text)
        due = [next_due_ms(contract, state), next_due_ms(self._candidate, other)]
        if due[0] != due[1] and not any(kind == "times_out" for kind, _ in breaks):
            text = " instead of ".join("no time-out" if at is None else self._in(at) for at in reversed(due))
            self._change("times_otherwise", state, text)

    def _breaks(self, contract: Saga, state: SagaState, other: SagaState) -> Iterator[tuple[Break, str]]:
        for key, instance in state.instances.items():
            if instance.in_flight or instance.may_stand or instance.awaits_answer or instance.stuck:
                yield from self._step_breaks(contract, state, other, key)
        if other.only_forward and not state.only_forward:
            yield "no_way_back", "under the candidate it is past its pivot, and could not be undone any more"
        if other.failing and not state.failing:
            yield "turns_back", "under the candidate it would go back now"
        due_ms, old_ms = next_due_ms(self._candidate, other), next_due_ms(contract, state)
        if due_ms is not None and due_ms <= self._now_ms and (old_ms is None or old_ms > self._now_ms):
            yield "times_out", f"a time of the candidate is over since {duration_text(max(self._now_ms - due_ms, 1))}"
        if not other.is_settled and not other.owed and due_ms is None and not _moves(other) and _moves(state):
            yield "waits_for_ever", "nothing would be in flight, owed or timed"

    def _step_breaks(self, contract: Saga, state: SagaState, other: SagaState, key: Key) -> Iterator[tuple[Break, str]]:
        step, candidate = key[0], self._candidate
        what = "is in flight" if state.instance(key).in_flight else "may stand"
        if step not in candidate:
            yield "lost_step", f"step {step} {what}, and the candidate does not have it"
            return
        if contract[step].compensation is not None and candidate[step].compensation is None:
            yield "lost_compensation", f"step {step} {what}, and the candidate has nothing to undo it with"
        stands = state.standing.get(step) == key[1] and other.standing.get(step) != key[1]
        if stands or (state.instance(key).in_flight and not other.instance(key).triggered):
            yield "unwanted", f"step {step} {what}, and under the candidate nothing would have triggered it"

    def _in(self, at_ms: int) -> str:
        ahead = at_ms - self._now_ms
        return f"a time-out in {duration_text(ahead)}" if ahead > 0 else "a time-out that is due"

    def _change(self, kind: Change, state: SagaState, text: str, *, offset: int = -1) -> None:
        self._note(kind, state, text, offset=offset)

    def _note(
        self, kind: Break | Change, state: SagaState, text: str, *, offset: int = -1, breaks: bool = False
    ) -> None:
        self._found.totals[kind] += 1
        kept = self._found.consequences if breaks else self._changes
        if len(kept) < KEPT:
            saga_id, version = state.saga_id, state.version
            kept.append(
                Consequence(kind=kind, breaks=breaks, saga_id=saga_id, version=version, offset=offset, text=text)
            )


def _moves(state: SagaState) -> bool:
    """Whether somebody is expected to do something."""
    return bool(state.owed) or any(one.in_flight or one.awaits_answer or one.stuck for one in state.instances.values())


def _said(owed: Iterable[Decision]) -> str:
    return ", ".join(decision_text(one) for one in owed) or "nothing"


def _steps(undo: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{compensation} of {step}" for step, compensation in undo) or "nothing"
