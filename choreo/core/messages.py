"""Records that are only the message of a decision: each pays for what was owed, and at most sets a due (rule 1)."""

from __future__ import annotations

from choreo.contract.saga import Saga
from choreo.core.due import step_due_ms
from choreo.core.state import Decision, Entry, Key, Note, SagaState
from choreo.messages.family import SagaUndone
from choreo.messages.records import (
    CancelRefused,
    CancelStep,
    Compensate,
    Execute,
    SagaCompensated,
    SagaCompleted,
    SagaStuck,
    StartRefused,
    StepSkipped,
)


def execute(contract: Saga, state: SagaState, entry: Entry, record: Execute, key: Key) -> Note | None:
    """The message of a decision: from its append time the step's due is counted."""
    if not paid(state, Decision("execute", *key)):
        return "duplicate" if state.instance(key).triggered else "not_decided"
    if not state.instance(key).due_ms:
        state.update(key, due_ms=step_due_ms(contract[key[0]].deadline_ms, entry.at_ms, record.saga_due_ms))
    return None


def compensate(contract: Saga, state: SagaState, entry: Entry, record: Compensate, key: Key) -> Note | None:
    """The message of a decision: from its append time the compensation's due is counted."""
    if not paid(state, Decision("settle" if record.settle else "compensate", *key, record.generation)):
        return "duplicate" if record.generation <= state.instance(key).generation else "not_decided"
    if record.generation == state.instance(key).generation:
        state.update(key, compensation_due_ms=entry.at_ms + contract[key[0]].compensation_deadline_ms)
    return None


def step_skipped(_contract: Saga, state: SagaState, _entry: Entry, _record: StepSkipped, key: Key) -> Note | None:
    """The notice of a decision."""
    if paid(state, Decision("skip", *key)):
        return None
    return "duplicate" if state.instance(key).skipped else "not_decided"


def cancel_step(_contract: Saga, state: SagaState, _entry: Entry, _record: CancelStep, key: Key) -> Note | None:
    """The message of a decision: the step's outcome answers it."""
    if paid(state, Decision("cancel", *key)):
        return None
    return "duplicate" if state.instance(key).cancelling else "not_decided"


def saga_stuck(_contract: Saga, state: SagaState, _entry: Entry, record: SagaStuck, key: Key) -> Note | None:
    """The notice of a decision."""
    if paid(state, Decision("stuck", *key, record.generation, undo=record.undo)):
        return None
    return "duplicate" if record.generation <= state.instance(key).generation else "not_decided"


def saga_ended(_contract: Saga, state: SagaState, entry: Entry, record: SagaCompleted | SagaCompensated) -> Note | None:
    """The message of the outcome."""
    kind = "completed" if isinstance(record, SagaCompleted) else "compensated"
    if state.outcome is None or state.outcome.kind != kind:
        return "not_decided"
    was_owed = paid(state, Decision("complete" if kind == "completed" else "compensated"))
    state.finished_ms = state.finished_ms or entry.at_ms
    return None if was_owed else "duplicate"


def start_refused(_contract: Saga, state: SagaState, _entry: Entry, record: StartRefused) -> Note | None:
    """The message of a refusal."""
    if paid(state, Decision("refuse_start", reference=record.start)):
        return None
    return "duplicate" if state.fold_round(record.start, 1) is not None else "not_decided"


def cancel_refused(_contract: Saga, state: SagaState, _entry: Entry, record: CancelRefused) -> Note | None:
    """The message of a refusal."""
    if paid(state, Decision("refuse_cancel", reference=record.request)):
        return None
    return "duplicate" if record.request in state.cancels else "not_decided"


def saga_undone(_contract: Saga, state: SagaState, _entry: Entry, record: SagaUndone) -> Note | None:
    """The message of the answer to the parent."""
    if paid(state, Decision("undone", generation=record.generation)):
        return None
    return "duplicate" if record.generation <= state.undo_answered else "not_decided"


def owe(state: SagaState, decision: Decision) -> None:
    """The decision is made; its message is to be said."""
    if decision not in state.owed:
        state.owed = (*state.owed, decision)


def paid(state: SagaState, decision: Decision) -> bool:
    """The decision's message is in the log. False if it was not owed."""
    if decision not in state.owed:
        return False
    state.owed = tuple(owed for owed in state.owed if owed != decision)
    return True
