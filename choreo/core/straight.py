"""The straight way: a saga to which nothing out of the ordinary has happened starts, goes on a step, or ends.

One that fails goes back on it: ``straight_back``. Nearly all records are of this kind, and most of what ``evolve`` and
``decide`` ask about them is answered beforehand, by the contract and by what the saga is. The straight way is never
surer than the rules: where one of them might have something to say, ``straight_on`` gives nothing, and they are asked.
Tests compare both in all situations that the exploration of the core comes to, and on any records in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from choreo.contract.saga import Saga
from choreo.core import straight_back
from choreo.core.due import step_due_ms
from choreo.core.start import begin_with
from choreo.core.state import Decision, Entry, Instance, Key, Outcome, SagaState
from choreo.messages.records import (
    Compensate,
    Record,
    SagaCompensated,
    SagaCompleted,
    SagaStarted,
    StepCompensated,
    StepCompleted,
    StepFailed,
)


def straight_on(contract: Saga, state: SagaState, entry: Entry) -> SagaState | None:
    """The state after a record that is newer than it; ``None`` if it has to be folded by the rules."""
    way = WAYS.get(type(entry.record))
    if way is None or state.pause is not None or state.type_pause is not None or state.undo:
        return None
    after = way(contract, state, entry, entry.record)
    if after is not None:
        after.offset, after.updated_ms = entry.offset, entry.at_ms
    return after


def _started(contract: Saga, state: SagaState, entry: Entry, record: SagaStarted) -> SagaState | None:
    """The saga's first record, or its first that means anything: the steps that begin are triggered (rule 4)."""
    triggered, commanded = contract.hops[""]
    if state.failing or state.started or state.cancelled or commanded or record.is_scheduled:
        return None
    after = state.shared()
    begin_with(after, entry, record)
    after.instances = {}
    _trigger(after.instances, triggered, 1, entry.at_ms, after.due_ms)
    return after


def _step_completed(contract: Saga, state: SagaState, entry: Entry, record: StepCompleted) -> SagaState | None:
    """A step at work completes in time, and stands (rule 7); those after it are triggered, or the saga has ended."""
    step, saga_round = key = (record.step, record.round)
    hop, instance = contract.hops.get(step), state.instances.get(key)
    if (
        hop is None
        or instance is None
        or not instance.is_at_work
        or state.failing
        or record.start != state.start
        or saga_round != state.round
        or record.is_late(entry.at_ms)
        or entry.content_type != state.content_type
        or state.outcome is not None
        or state.scheduled
    ):
        return None
    standing = {**state.standing, step: saga_round}
    triggered, commanded = hop
    for needs in commanded:
        if needs.issubset(standing):
            return None
    if not _is_quiet(state.instances, standing):
        return None
    instances = state.instances.copy()
    instances[key] = replace(
        instance,
        first="completed",
        completed=True,
        effect=bytes(record.effect),
        runs=(f"completed:{record.run}",),
        may_stand=True,
    )
    if triggered and not _trigger(instances, triggered, saga_round, entry.at_ms, state.due_ms):
        return None
    after = state.shared()
    after.standing, after.instances = standing, instances
    if len(standing) == len(contract.steps):
        for each in instances.values():
            if each.triggered and each.first is None:
                return None
        after.outcome = Outcome("completed", compensations=state.undone)
        after.owed = (*state.owed, COMPLETE)
    return after


def _saga_completed(_contract: Saga, state: SagaState, entry: Entry, _record: SagaCompleted) -> SagaState | None:
    """The message of the outcome (rule 1), and nothing is left to be done beside it."""
    if state.failing or state.owed != (COMPLETE,) or not _is_quiet(state.instances, state.standing):
        return None
    after = state.shared()
    after.owed = ()
    after.finished_ms = state.finished_ms or entry.at_ms
    return after


COMPLETE = Decision("complete")

WAYS: dict[type[Record], Callable[[Saga, SagaState, Entry, Any], SagaState | None]] = {
    SagaStarted: _started,
    StepCompleted: _step_completed,
    SagaCompleted: _saga_completed,
    StepFailed: straight_back.step_failed,
    Compensate: straight_back.compensate,
    StepCompensated: straight_back.step_compensated,
    SagaCompensated: straight_back.saga_compensated,
}
"""The records that have a straight way."""


def _is_quiet(instances: Mapping[Key, Instance], standing: Mapping[str, int]) -> bool:
    """Nothing has to settle, is being undone, or is unwanted (rules 4, 7, 12)."""
    for (step, saga_round), each in instances.items():
        if each.settling or each.awaits_answer or each.stuck:
            return False
        if each.may_stand and (standing.get(step) != saga_round or each.offer):
            return False
    return True


def _trigger(
    instances: dict[Key, Instance],
    steps: Iterable[tuple[str, int | None]],
    saga_round: int,
    at_ms: int,
    saga_due_ms: int,
) -> bool:
    """Put the next steps in flight. False if one of them has been heard of before."""
    for step, deadline_ms in steps:
        if (key := (step, saga_round)) in instances:
            return False
        instances[key] = Instance(triggered=True, due_ms=step_due_ms(deadline_ms, at_ms, saga_due_ms))
    return True
