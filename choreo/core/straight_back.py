"""The straight way back: a step fails without an effect, and what stands is undone, step by step, to the outcome.

As in ``straight``, and held to the rules by the same tests. It is straight while nothing else is at work, nothing is
stuck, nothing substituted, no other round asked for, and every step that is to be undone has completed in time in this
round and has a compensation: then those go back on which nothing builds that is still to be undone.
"""

from __future__ import annotations

from msgspec.structs import replace

from choreo.contract.saga import Saga
from choreo.core.state import Decision, Entry, Instance, Key, Outcome, SagaState
from choreo.messages.records import Compensate, SagaCompensated, StepCompensated, StepFailed, Undone


def step_failed(contract: Saga, state: SagaState, entry: Entry, record: StepFailed) -> SagaState | None:
    """A step at work fails, certainly without an effect: the saga turns round (rules 5, 8)."""
    step, saga_round = key = (record.step, record.round)
    instance = state.instances.get(key)
    if (
        instance is None
        or not instance.is_at_work
        or state.failing
        or record.start != state.start
        or saga_round != state.round
        or record.effect != "none"
        or not record.run
        or record.abort
        or state.outcome is not None
        or state.owed
    ):
        return None
    spec = contract[step]
    if spec.compensate_on_failure == "always" or spec.is_asked_after(record.failure.kind):
        return None
    after = state.shared()
    after.instances = state.instances.copy()
    after.instances[key] = replace(instance, first="failed", failure=record.failure, runs=(f"failed:{record.run}",))
    after.failures = (*state.failures, (step, saga_round, record.failure))
    after.failing, after.failing_since_ms = True, entry.at_ms
    return _go_back(contract, after)


def compensate(contract: Saga, state: SagaState, entry: Entry, record: Compensate) -> SagaState | None:
    """The message of a decision (rule 1): from its append time the compensation's due is counted."""
    key = (record.step, record.round)
    decision = Decision("compensate", *key, record.generation)
    if decision not in state.owed or record.settle or record.start != state.start:
        return None
    instance = state.instances[key]
    if record.generation != instance.generation:
        return None
    after = state.shared()
    after.owed = tuple(owed for owed in state.owed if owed != decision)
    after.instances = state.instances.copy()
    due_ms = entry.at_ms + contract[record.step].compensation_deadline_ms
    after.instances[key] = replace(instance, compensation_due_ms=due_ms)
    return after


def step_compensated(contract: Saga, state: SagaState, _entry: Entry, record: StepCompensated) -> SagaState | None:
    """A step is undone, and that is all its service has to say; the next one follows, or the outcome (rules 8, 14)."""
    step, saga_round = key = (record.step, record.round)
    instance = state.instances.get(key)
    if (
        instance is None
        or not instance.awaits_answer
        or record.generation != instance.generation
        or record.start != state.start
        or record.verdict != "proceed"
        or not state.failing
        or state.outcome is not None
    ):
        return None
    after = state.shared()
    after.instances = state.instances.copy()
    after.instances[key] = replace(
        instance,
        awaits_answer=False,
        stuck=False,
        compensation_failure=None,
        may_stand=instance.ran_again and not record.undone,
        ran_again=False,
    )
    account = Undone(step=step, round=saga_round, how="undone" if record.undone else "nothing_to_undo")
    after.undone = (*state.undone, account)
    return _go_back(contract, after)


def saga_compensated(_contract: Saga, state: SagaState, entry: Entry, _record: SagaCompensated) -> SagaState | None:
    """The message of the outcome (rule 1)."""
    if state.owed != (COMPENSATED,):
        return None
    after = state.shared()
    after.owed = ()
    after.finished_ms = state.finished_ms or entry.at_ms
    return after


COMPENSATED = Decision("compensated")


def _go_back(contract: Saga, after: SagaState) -> SagaState | None:
    """Decide what is undone next, or that nothing is left. Changes the state, which has instances of its own."""
    left = _uncompensated(after)
    if left is None:
        return None
    if not left:
        _end(after)
        return after
    after.standing = after.standing.copy()
    steps, descendants = {step for step, _ in left}, contract.graph.descendants
    for key in sorted(left):
        if not left[key].awaits_answer and descendants[key[0]].isdisjoint(steps):
            if contract[key[0]].compensation is None:
                return None
            _undo(after, key)
    return after


def _uncompensated(state: SagaState) -> dict[Key, Instance] | None:
    """What is still to be undone, asked for or not; ``None`` if that is not all that there is to look at."""
    if state.only_forward or state.retry_at_ms is not None:
        return None
    found: dict[Key, Instance] = {}
    for key, each in state.instances.items():
        if each.settling or each.stuck or each.offer or each.in_flight:
            return None
        if each.awaits_answer or each.may_stand:
            if key[1] != state.round or each.own or each.first != "completed":
                return None
            found[key] = each
    return found


def _undo(after: SagaState, key: Key) -> None:
    """A step stands until its compensation is decided (rule 7)."""
    step, saga_round = key
    instance = after.instances[key]
    stood = after.standing.get(step) == saga_round
    if stood:
        del after.standing[step]
    generation = instance.generation + 1
    after.instances[key] = replace(
        instance,
        awaits_answer=True,
        generation=generation,
        ran_again=False,
        own=False,
        compensation_due_ms=0,
        taken_down=saga_round if stood else instance.taken_down,
    )
    after.owed = (*after.owed, Decision("compensate", step, saga_round, generation))


def _end(after: SagaState) -> None:
    """Nothing is left to undo."""
    after.standing = {}
    step, failure = after.first_failure() or (None, None)
    after.outcome = Outcome("compensated", step=step, failure=failure, compensations=after.undone)
    after.owed = (*after.owed, COMPENSATED)
