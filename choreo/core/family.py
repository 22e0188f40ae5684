"""What a decision says in another saga's log: to the saga that a step is, or to the step that this saga is (rule 19).

Such a record is appended before the decision's own message. If a crash comes between them the decision is still owed,
and both are said again; their ids and runs are derived, so the second is a duplicate. So nothing else has to remember
what was said to whom.
"""

from __future__ import annotations

from typing import Any

import msgspec

from choreo import ids
from choreo.contract.child import Child
from choreo.contract.condition import Value
from choreo.contract.policy import NO_DUE_MS
from choreo.contract.saga import Saga
from choreo.core.condition import MISSING, Values
from choreo.core.order import completed_with, context_of, effect_of
from choreo.core.state import UNTOUCHED, Decision, SagaState
from choreo.messages.codec import encode_user_value
from choreo.messages.family import Parent, UndoRequested
from choreo.messages.records import (
    AnyRecord,
    CancelRequested,
    CompensationFailed,
    Failure,
    SagaStarted,
    StepCompensated,
    StepCompleted,
    StepFailed,
)

RUN = "saga"
"""The run of a step that is a saga: there is one for each round."""

CANCELLED = Failure(kind="cancelled", code="cancelled", message="the saga was cancelled")
PAST_PIVOT = Failure(kind="rejected", code="past_pivot", message="the saga is past its pivot and cannot be undone")
ID_TAKEN = Failure(kind="rejected", code="saga_id_taken", message="another saga has the id that this step's saga needs")
_UNDONE = ("undone", "skipped", "resolved")


def said_elsewhere(contract: Saga, state: SagaState, decision: Decision) -> AnyRecord | None:
    """The record for another saga's log that goes before the decision's own message; ``None`` for most."""
    child = contract[decision.step].child if decision.step else None
    if child is not None and decision.kind in ("execute", "cancel", "compensate"):
        return _to_child(contract, state, decision, child)
    if decision.kind == "refuse_start":
        refused = next((foreign for foreign in state.foreign if foreign.start == decision.reference), None)
        if refused is not None and refused.parent is not None:
            return StepFailed(**_about(refused.parent), failure=ID_TAKEN, effect="none", run=RUN)
        return None
    if state.parent is None:
        return None
    return _to_parent(contract, state, decision, state.parent)


def child_start(contract: Saga, state: SagaState, decision: Decision, child: Child) -> tuple[str, str, msgspec.Raw]:
    """Id, start hash and input of the saga that a step is in a round."""
    saga_id = ids.child_id(contract.name, state.saga_id, decision.step, decision.round)
    user_input = _input(contract, state, decision, child)
    start = ids.child_start_hash(contract.name, state.saga_id, state.start, user_input)
    return saga_id, start, msgspec.Raw(user_input)


def _to_child(contract: Saga, state: SagaState, decision: Decision, child: Child) -> AnyRecord:
    step = contract[decision.step]
    saga_id, start, user_input = child_start(contract, state, decision, child)
    forward = decision.step in contract.forward_only
    parent = Parent(
        saga=state.saga,
        version=state.version,
        saga_id=state.saga_id,
        start=state.start,
        step=decision.step,
        round=decision.round,
        due_ms=NO_DUE_MS if forward else state.due_ms,
    )
    about: dict[str, Any] = {"saga": child.saga, "version": child.version, "saga_id": saga_id, "start": start}
    if decision.kind == "cancel":
        return CancelRequested(**about, request=RUN, reason="its parent goes back", parent=parent)
    if decision.kind == "compensate":
        return UndoRequested(**about, generation=decision.generation, parent=parent)
    deadlines = [child.deadline_ms, *([step.deadline_ms] if step.deadline_ms is not None and not forward else [])]
    return SagaStarted(
        **about,
        contract_hash=child.contract_hash,
        request=RUN,
        saga_deadline_ms=min(deadlines),
        input=user_input,
        parent=parent,
    )


def _to_parent(contract: Saga, state: SagaState, decision: Decision, parent: Parent) -> AnyRecord | None:
    about = _about(parent)
    match decision.kind:
        case "complete":
            result = effect_of(completed_with(contract, state).get(contract.steps[-1].name, UNTOUCHED))
            return StepCompleted(
                **about,
                run=RUN,
                due_ms=parent.due_ms,
                saga_due_ms=parent.due_ms,
                input=msgspec.Raw(_null(state)),
                effects={},
                effect=msgspec.Raw(_null(state) if result is None else result),
            )
        case "compensated":
            return StepFailed(**about, failure=_cause(state), effect="none", run=RUN)
        case "stuck" if decision.undo:
            failure = _stuck_failure(state, decision)
            return CompensationFailed(**about, generation=decision.undo, failure=failure, run=_stuck_run(decision))
        case "stuck" if state.outcome is None and not state.only_forward and not state.undo:
            failure = _stuck_failure(state, decision)
            return StepFailed(**about, failure=failure, effect="unknown", run=_stuck_run(decision))
        case "undone" if state.pivot == "passed":
            return CompensationFailed(**about, generation=decision.generation, failure=PAST_PIVOT, run=RUN)
        case "undone":
            undone = was_undone(state)
            return StepCompensated(**about, generation=decision.generation, run=RUN, undone=undone)
    return None


def was_undone(state: SagaState) -> bool:
    """Whether anything of the saga had to be undone."""
    return any(one.how in _UNDONE for one in state.undone)


def _about(parent: Parent) -> dict[str, Any]:
    """The fields of a record about the parent's step."""
    return {
        "saga": parent.saga,
        "version": parent.version,
        "saga_id": parent.saga_id,
        "start": parent.start,
        "step": parent.step,
        "round": parent.round,
    }


def _cause(state: SagaState) -> Failure:
    """The child's failure, as that of the step that it is."""
    outcome = state.outcome
    if outcome is None or outcome.failure is None:
        return msgspec.structs.replace(CANCELLED, message=f"saga {state.saga_id} was cancelled: {state.cancel_reason}")
    return _of_step(state, outcome.step or "", outcome.failure)


def _stuck_run(decision: Decision) -> str:
    """A stuck saga may be freed and answer otherwise, or get stuck anew: each time under an id of its own."""
    return f"{RUN}-stuck-{decision.step}-{decision.round}-{decision.generation}"


def _stuck_failure(state: SagaState, decision: Decision) -> Failure:
    instance = state.instance((decision.step, decision.round))
    failure = instance.compensation_failure or instance.failure or Failure(kind="crashed")
    return _of_step(state, decision.step, failure, "stuck at ")


def _of_step(state: SagaState, step: str, failure: Failure, how: str = "") -> Failure:
    message = f"saga {state.saga_id} {how}step {step!r}: {failure.message or failure.code or failure.kind}"
    return msgspec.structs.replace(failure, message=message[:4_000])


def _input(contract: Saga, state: SagaState, decision: Decision, child: Child) -> bytes:
    if child.input is None:
        return state.input
    context = context_of(contract, state, (decision.step, decision.round))
    values = Values({**context, "": state.input}, state.content_type)

    def value_of(source: Any) -> Any:
        found = values.at(source) if isinstance(source, Value) else source
        return None if found is MISSING else found

    made = (
        value_of(child.input)
        if isinstance(child.input, Value)
        else {name: value_of(source) for name, source in child.input}
    )
    return encode_user_value(made, content_type=state.content_type)


def _null(state: SagaState) -> bytes:
    return encode_user_value(None, content_type=state.content_type)
