"""What is owed. Forward, each step reacts for itself; here is what needs memory: joins, new rounds, the way back.

``decide`` runs after every record, on the same state, and what it yields is part of the state at once (rule 1).
"""

from __future__ import annotations

from zlib import crc32

from choreo.contract.saga import Saga
from choreo.core.condition import runs
from choreo.core.order import builds_on
from choreo.core.siblings import to_cancel
from choreo.core.state import Decision, Instance, Key, Outcome, SagaState
from choreo.core.survey import Survey
from choreo.ids import instance_id
from choreo.messages.records import Undone


def decide(contract: Saga, state: SagaState) -> list[Decision]:
    """All that the state implies now, in order. Changes the state (the caller's own): every decision takes effect."""
    made: list[Decision] = []
    if state.started and not state.is_paused:
        while _decide_once(contract, state, made):
            continue
        if state.undo != state.undo_answered:
            _answer_parent(state, made)
    return made


def _answer_parent(state: SagaState, made: list[Decision]) -> None:
    """Tell the parent that nothing of the saga stands any more, or that it is past its pivot (rule 19)."""
    if state.pivot == "passed" or (state.is_unwanted and Survey(state).is_settled):
        state.undo_answered = state.undo
        if state.is_unwanted:
            state.standing.clear()  # only substitutes are left in it
        _owe(state, Decision("undone", generation=state.undo), made)


def _decide_once(contract: Saga, state: SagaState, made: list[Decision]) -> bool:
    """One round of decisions. True if the state changed, so that more may follow."""
    survey = Survey(state)
    state.round_ready = False
    if survey.given_up:
        _settle(state, survey, made)
        return True
    if state.failing and state.outcome is None:
        return _go_back(contract, state, survey, made)
    # Forward, or after the outcome: what is unwanted is undone beside it (rule 12).
    if survey.candidates and _compensate(contract, state, survey, survey.candidates, made):
        return True
    if state.outcome is not None or state.scheduled:
        return False
    return _go_forward(contract, state, made, settled=survey.is_settled)


def _go_back(contract: Saga, state: SagaState, survey: Survey, made: list[Decision]) -> bool:
    if survey.in_flight:  # settle first (rule 4)
        return _cancel(contract, state, survey, made)
    begun = any(instance.taken_down == state.round for instance in state.instances.values())
    own = [] if begun else [key for key in survey.candidates if _is_own(contract, state, survey, key)]
    own_pending = any(state.instance(key).own for key in (*survey.awaiting, *survey.stuck))
    if own or own_pending:  # the failed steps' own compensations first and alone (rule 8)
        return _compensate(contract, state, survey, own, made, own=True)
    if not begun and _may_continue(state):
        _take_substitutes(contract, state)
        return True
    todo = survey.candidates
    if state.retry_at_ms is not None:  # only what the next round redoes is undone (rule 9)
        todo = [key for key in todo if _is_redone(contract, state, key)]
    if _compensate(contract, state, survey, todo, made):
        return True
    if todo or survey.awaiting or survey.stuck:
        return False
    if state.retry_at_ms is not None:
        state.round_ready = True  # RoundStarted follows when its backoff is over
        return False
    if state.only_forward:
        return _retry_forward(contract, state, made)
    state.standing.clear()  # only substitutes are left in it
    failed = state.first_failure()
    state.outcome = Outcome(
        "compensated",
        step=failed[0] if failed else None,
        failure=failed[1] if failed else None,
        compensations=state.undone,
    )
    _owe(state, Decision("compensated"), made)
    return True


def _settle(state: SagaState, survey: Survey, made: list[Decision]) -> None:
    """Ask for what was given up before its due: it may still complete in time and trigger what builds on it (rule 15).

    What a pause held is asked for likewise: a worker that knew nothing of the pause may be at it (rule 24).
    The command waits in the step's lane behind all that may complete it (rule 3), so its answer is the proof.
    """
    for key in survey.given_up:
        generation = state.instance(key).generation + 1
        state.update(key, awaits_answer=True, generation=generation, own=True, compensation_due_ms=0)
        _owe(state, Decision("settle", key[0], key[1], generation), made)


def _cancel(contract: Saga, state: SagaState, survey: Survey, made: list[Decision]) -> bool:
    """Ask what need not go on to end at once. Nothing else depends on it: it settles one way or the other (rule 25)."""
    todo = to_cancel(contract, state, survey)
    for key in todo:
        state.update(key, cancelling=True)
        _owe(state, Decision("cancel", *key), made)
    return bool(todo)


def _retry_forward(contract: Saga, state: SagaState, made: list[Decision]) -> bool:
    """No way back: what has failed gets another round, or an operator's attention (rule 17)."""
    failed = [
        key
        for key, instance in state.instances.items()
        if key[1] == state.round and instance.first not in (None, "completed") and instance.offer != "taken"
    ]
    if not failed:  # an operator took the last of them as done
        state.failing, state.failing_since_ms = False, 0
        return True
    spent = [key for key in failed if _failures(state, key) > contract[key[0]].forward_retries.limit]
    for key in spent:
        generation = state.instance(key).generation + 1
        state.update(key, stuck=True, exhausted=True, own=False, generation=generation)
        _owe(state, Decision("stuck", key[0], key[1], generation, undo=state.undo_waited_for), made)
    if not spent:
        state.retry_at_ms = state.updated_ms + max(_backoff_ms(contract, state, key) for key in failed)
    return True


def _failures(state: SagaState, key: Key) -> int:
    """In how many rounds in a row the step has failed."""
    step, saga_round = key
    while state.instance((step, saga_round)).first not in (None, "completed"):
        saga_round -= 1
    return key[1] - saga_round


def _backoff_ms(contract: Saga, state: SagaState, key: Key) -> int:
    """The wait before the step's next round. The jitter is drawn from the instance's name: all who fold draw alike."""
    policy = contract[key[0]].forward_retries
    longest = policy.backoff_ms(_failures(state, key))
    if not policy.jitter:
        return longest
    return crc32(instance_id(state.saga_id, state.start, *key).encode()) % (longest + 1)


def _go_forward(contract: Saga, state: SagaState, made: list[Decision], *, settled: bool) -> bool:
    """Whoever stands nowhere, has all predecessors standing, and was not triggered, gets Execute (rule 10).

    Unless its condition does not hold: what is skipped stands without an effect, as what was done by hand does.
    """
    standing = state.standing
    if len(standing) == len(contract.steps):
        if not settled:
            return False
        state.outcome = Outcome("completed", compensations=state.undone)
        _owe(state, Decision("complete"), made)
        return True
    changed = False
    for step, needs in contract.graph.needs.items():
        if step in standing or not needs.issubset(standing):
            continue
        instance = state.instance((step, state.round))
        if instance.triggered or instance.first is not None:
            continue
        if not instance.signal_due_ms and not runs(contract, state, (step, state.round)):
            state.update((step, state.round), skipped=True, offer="taken", substitute=None)
            standing[step] = state.round
            _owe(state, Decision("skip", step, state.round), made)
            changed = True
            continue
        if contract[step].await_signal not in (None, *state.signals):
            if not instance.signal_due_ms:
                state.update((step, state.round), signal_due_ms=_signal_due_ms(contract, state, step))
            continue
        state.update((step, state.round), triggered=True)
        if contract[step].pivot and not state.pivot:
            state.pivot = "open"
        _owe(state, Decision("execute", step, state.round), made)
        changed = True
    return changed


def _signal_due_ms(contract: Saga, state: SagaState, step: str) -> int:
    """When a wait for the step's signal is over that begins with the record just folded."""
    timeout_ms = contract[step].signal_timeout_ms
    return state.due_ms if timeout_ms is None else min(state.due_ms, state.updated_ms + timeout_ms)


def _compensate(
    contract: Saga, state: SagaState, survey: Survey, todo: list[Key], made: list[Decision], *, own: bool = False
) -> bool:
    """Undo all of these on which nothing uncompensated and nothing in flight builds (rules 4, 8)."""
    if not todo:
        return False
    back = (state.failing and not state.only_forward) or state.is_unwanted
    blockers = (*survey.uncompensated, *survey.in_flight)
    free = [
        key
        for key in sorted(todo)
        if not any(other != key and builds_on(contract, state, other, key) for other in blockers)
    ]
    for key in free:
        instance = state.instance(key)
        generation = instance.generation + 1
        if state.standing.get(key[0]) == key[1] and (instance.offer != "taken" or back):
            del state.standing[key[0]]  # a step stands until its Compensate is decided, not until that is answered
            if state.failing:
                state.update(key, taken_down=state.round)
        if contract[key[0]].compensation is None:
            state.update(key, may_stand=False, generation=generation)
            account = Undone(step=key[0], round=key[1], how="no_compensation")
            if key[1] > 0 and account not in state.undone:
                state.undone = (*state.undone, account)
            continue
        state.update(
            key,
            awaits_answer=True,
            generation=generation,
            ran_again=False,
            own=own,
            compensation_due_ms=0,
        )
        _owe(state, Decision("compensate", key[0], key[1], generation), made)
    return bool(free)


def _is_own(contract: Saga, state: SagaState, survey: Survey, key: Key) -> bool:
    """A failed step of this round, in whatever generation, which neither completed nor has anything built on it."""
    instance = state.instance(key)
    return (
        key[1] == state.round
        and instance.first != "completed"
        and not instance.completed
        and (instance.generation == 0 or instance.own)
        and instance.offer != "taken"
        and not any(other != key and builds_on(contract, state, other, key) for other in survey.uncompensated)
    )


def _failed(state: SagaState) -> list[Instance]:
    return [
        instance
        for (_, saga_round), instance in state.instances.items()
        if saga_round == state.round and instance.first not in (None, "completed")
    ]


def _may_continue(state: SagaState) -> bool:
    """Every failed step of the round has answered with a substitute, and nothing forbids to take them (rule 8)."""
    if state.retry_at_ms is not None or ((state.cancelled or state.aborted) and not state.only_forward):
        return False
    failed = _failed(state)
    return any(i.offer == "offered" for i in failed) and all(i.offer and not i.completed for i in failed)


def _take_substitutes(contract: Saga, state: SagaState) -> None:
    for key, instance in list(state.instances.items()):
        if key[1] == state.round and instance.offer == "offered":
            state.update(key, offer="taken")
            state.standing[key[0]] = key[1]
            if contract[key[0]].pivot:
                state.pass_pivot()
    state.failing, state.failing_since_ms = False, 0


def _is_redone(contract: Saga, state: SagaState, key: Key) -> bool:
    """Whether the next round cannot build on this: it does not stand, or something before it does not."""
    if state.standing.get(key[0]) != key[1]:
        return True
    return any(other not in state.standing for other in contract.graph.ancestors[key[0]])


def _owe(state: SagaState, decision: Decision, made: list[Decision]) -> None:
    state.owed = (*state.owed, decision)
    made.append(decision)
