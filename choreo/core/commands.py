"""A decision as the record that says it: built when it is sent, from what no later record changes."""

from __future__ import annotations

import msgspec

from choreo.contract.condition import text
from choreo.contract.saga import Saga
from choreo.core.family import was_undone
from choreo.core.order import completed_with, context_of, effect_of
from choreo.core.state import Decision, Instance, Key, SagaState
from choreo.core.survey import Survey
from choreo.errors import Undecodable
from choreo.messages.codec import transcode
from choreo.messages.family import SagaUndone
from choreo.messages.records import (
    NO_START,
    AnyRecord,
    CancelRefused,
    CancelStep,
    Compensate,
    Execute,
    Failure,
    SagaCompensated,
    SagaCompleted,
    SagaStuck,
    StartRefused,
    StepSkipped,
)

CONDITION_TEXT_MAX = 1_000
NULL = {"application/json": b"null", "application/msgpack": b"\xc0"}


def record_of(contract: Saga, state: SagaState, decision: Decision) -> AnyRecord:
    """The record to append for an owed decision."""
    common = {"saga": state.saga, "version": state.version, "saga_id": state.saga_id}
    match decision.kind:
        case "complete":
            return _completed(contract, state, common)
        case "compensated":
            return _compensated(state, common)
        case "undone":
            return SagaUndone(
                **common,  # type: ignore[arg-type]
                start=state.start or NO_START,
                generation=decision.generation,
                undone=was_undone(state),
                compensations=state.undone,
            )
        case "refuse_start":
            return StartRefused(**common, start=decision.reference, standing_start=state.start)  # type: ignore[arg-type]
        case "refuse_cancel":
            return CancelRefused(
                **common,  # type: ignore[arg-type]
                start=state.start,
                request=decision.reference,
                reason=f"the saga has {state.outcome.kind}" if state.outcome else "the saga is past its pivot",
            )
    key = (decision.step, decision.round)
    start, wire_round = state.wire_round(decision.round)
    user_input, saga_due_ms = state.lineage(decision.round)
    common |= {"start": start, "step": decision.step, "round": wire_round}
    instance = state.instance(key)
    if decision.kind == "stuck":
        return SagaStuck(
            **common,  # type: ignore[arg-type]
            generation=decision.generation,
            failure=_stuck_by(instance),
            remaining=remaining(contract, state),
            undo=decision.undo,
        )
    if decision.kind == "settle":
        return Compensate(
            **common,  # type: ignore[arg-type]
            generation=decision.generation,
            deadline_ms=contract[decision.step].compensation_deadline_ms,
            input=msgspec.Raw(user_input),
            effects={},
            settle=True,
        )
    if decision.kind in ("skip", "cancel"):
        return _not_run(contract, state, decision, common)
    context = {step: msgspec.Raw(effect) for step, effect in context_of(contract, state, key).items()}
    if decision.kind == "execute":
        return Execute(
            **common,  # type: ignore[arg-type]
            saga_due_ms=saga_due_ms,
            input=msgspec.Raw(user_input),
            effects=context,
            key_round=_key_round(contract, state, key),
            signals=_signals(contract, state, decision.step),
        )
    failed = state.first_failure()
    return Compensate(
        **common,  # type: ignore[arg-type]
        generation=decision.generation,
        deadline_ms=contract[decision.step].compensation_deadline_ms,
        input=msgspec.Raw(user_input),
        effects=context,
        effect=msgspec.UNSET if instance.effect is None else msgspec.Raw(instance.effect),
        failure=instance.failure or (failed[1] if failed else None),
        own=instance.own,
        remaining=tuple(
            step
            for step in remaining(contract, state)
            if step != decision.step and contract[step].compensation is not None
        ),
        signals=_signals(contract, state, decision.step) if instance.triggered else {},
    )


def remaining(contract: Saga, state: SagaState) -> tuple[str, ...]:
    """The steps still to be undone: the stuck ones, then the others as the way back takes them, deepest first.

    Where there is only the way forward: the steps still to be done, the stuck ones first.
    """
    survey = Survey(state)
    if state.only_forward:
        stuck_steps = {step for step, _ in survey.stuck}
        todo = [step.name for step in contract.steps if step.name not in state.standing]
        return tuple(sorted(todo, key=lambda step: step not in stuck_steps))
    stuck, left = {step for step, _ in survey.stuck}, {step for step, _ in survey.uncompensated}
    backwards = [step.name for step in reversed(contract.steps) if step.name in left]
    return tuple(sorted(backwards, key=lambda step: (step not in stuck, -contract.graph.depth[step])))


def _not_run(
    contract: Saga, state: SagaState, decision: Decision, common: dict[str, object]
) -> StepSkipped | CancelStep:
    if decision.kind == "cancel":
        failed = state.first_failure()
        return CancelStep(**common, failed=failed[0] if failed else None)  # type: ignore[arg-type]
    condition = contract[decision.step].when
    assert condition is not None, "a step without a condition is never skipped"
    return StepSkipped(**common, condition=text(condition)[:CONDITION_TEXT_MAX])  # type: ignore[arg-type]


def _stuck_by(instance: Instance) -> Failure:
    failure = instance.failure if instance.exhausted else instance.compensation_failure
    return failure or Failure(kind="crashed", message="the compensation failed")


def _signals(contract: Saga, state: SagaState, step: str) -> dict[str, msgspec.Raw]:
    """The signal that the step waited for, in the saga's codec."""
    name = contract[step].await_signal
    signal = None if name is None else state.signals.get(name)
    if name is None or signal is None:
        return {}
    try:
        payload = transcode(signal.payload, signal.content_type, state.content_type)
    except Undecodable:
        payload = NULL[state.content_type]
    return {name: msgspec.Raw(payload)}


def _key_round(contract: Saga, state: SagaState, key: Key) -> int:
    """The round whose key the step runs with; 0 for its own.

    A new round has a new key because the one before was undone. Where nothing undoes a possible effect, the key stays,
    so that the handler finds it.
    """
    step, saga_round = key
    if step not in contract.forward_only or contract[step].compensation is not None:
        return 0
    while state.instance((step, saga_round - 1)).first not in (None, "failed"):
        saga_round -= 1
    return saga_round if saga_round < key[1] else 0


def _completed(contract: Saga, state: SagaState, common: dict[str, object]) -> SagaCompleted:
    ended_with = completed_with(contract, state)
    effects = {step: effect for step, instance in ended_with.items() if (effect := effect_of(instance)) is not None}
    return SagaCompleted(
        **common,  # type: ignore[arg-type]
        start=state.start,
        result=msgspec.Raw(effects.get(contract.steps[-1].name, NULL[state.content_type])),
        effects={step: msgspec.Raw(effect) for step, effect in effects.items()},
        skipped=tuple(step for step in contract.graph.before if step in ended_with and ended_with[step].skipped),
    )


def _compensated(state: SagaState, common: dict[str, object]) -> SagaCompensated:
    outcome = state.outcome
    assert outcome is not None, "an outcome is owed only after it was decided"
    return SagaCompensated(
        **common,  # type: ignore[arg-type]
        start=state.start,
        cause="cancelled" if outcome.failure is None else "failed",
        compensations=outcome.compensations,
        step=outcome.step,
        failure=outcome.failure,
        reason=state.cancel_reason,
    )
