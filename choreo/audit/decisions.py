"""Which records are the saga-log's own, and which decision each of them says: ``record_of`` the other way round."""

from __future__ import annotations

from choreo.core import Decision, SagaState
from choreo.ids import compensate_id
from choreo.messages.family import SagaUndone
from choreo.messages.records import (
    CancelRefused,
    CancelStep,
    Compensate,
    Execute,
    Record,
    SagaCompensated,
    SagaCompleted,
    SagaStuck,
    StartRefused,
    StepRecord,
    StepSkipped,
)


def stuck_id(instance: str, generation: int) -> str:
    """The id of the notice that a generation of a step instance's compensation is stuck."""
    return f"{compensate_id(instance, generation)}/stuck"


def decision_said(state: SagaState, record: Record) -> Decision | None:
    """The decision that a record is the message of.

    Args:
        state: of the saga before the record.

    Returns:
        ``None`` for records of clients and services, for those that the saga-log's timers append, and for a command
        whose start is not known.
    """
    match record:
        case SagaCompleted():
            return Decision("complete")
        case SagaCompensated():
            return Decision("compensated")
        case StartRefused():
            return Decision("refuse_start", reference=record.start)
        case CancelRefused():
            return Decision("refuse_cancel", reference=record.request)
        case SagaUndone():
            return Decision("undone", generation=record.generation)
    if not isinstance(record, StepRecord):
        return None
    saga_round = state.fold_round(record.start, record.round)
    return None if saga_round is None else _about_step(record, saga_round)


def _about_step(record: StepRecord, saga_round: int) -> Decision | None:
    match record:
        case Execute():
            return Decision("execute", record.step, saga_round)
        case StepSkipped():
            return Decision("skip", record.step, saga_round)
        case CancelStep():
            return Decision("cancel", record.step, saga_round)
        case Compensate():
            return Decision("settle" if record.settle else "compensate", record.step, saga_round, record.generation)
        case SagaStuck():
            return Decision("stuck", record.step, saga_round, record.generation, undo=record.undo)
    return None
