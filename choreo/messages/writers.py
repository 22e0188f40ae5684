"""Who writes which record: the one place that says so.

A service writes how its steps ended; the saga-log decides; clients ask. What goes from a saga to the saga that is one
of its steps is written by the parent's saga-log; what comes back is written about the parent's step, by the child's
saga-log in the place of a service (rule 19).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from choreo.messages.family import SagaUndone, UndoRequested
from choreo.messages.records import (
    TYPE_BY_TAG,
    CancelRefused,
    CancelRequested,
    CancelStep,
    Compensate,
    CompensationFailed,
    Execute,
    OperatorActed,
    Record,
    RoundStarted,
    SagaCompensated,
    SagaCompleted,
    SagaPaused,
    SagaResumed,
    SagaStarted,
    SagaStuck,
    SignalReceived,
    StartRefused,
    StepCompensated,
    StepCompleted,
    StepFailed,
    StepSkipped,
    TypePaused,
    TypeResumed,
)


class Writer(Enum):
    """A part of a deployment, as far as it writes records of a saga."""

    CLIENT = "client"
    STEP = "step"
    SAGA_LOG = "saga-log"
    PARENT = "parent"


WRITERS: Mapping[type[Record], Writer] = {
    SagaStarted: Writer.CLIENT,
    CancelRequested: Writer.CLIENT,
    SignalReceived: Writer.CLIENT,
    SagaPaused: Writer.CLIENT,
    SagaResumed: Writer.CLIENT,
    TypePaused: Writer.CLIENT,
    TypeResumed: Writer.CLIENT,
    OperatorActed: Writer.CLIENT,
    StepCompleted: Writer.STEP,
    StepFailed: Writer.STEP,
    StepCompensated: Writer.STEP,
    CompensationFailed: Writer.STEP,
    Execute: Writer.SAGA_LOG,
    StepSkipped: Writer.SAGA_LOG,
    CancelStep: Writer.SAGA_LOG,
    Compensate: Writer.SAGA_LOG,
    RoundStarted: Writer.SAGA_LOG,
    SagaStuck: Writer.SAGA_LOG,
    SagaCompleted: Writer.SAGA_LOG,
    SagaCompensated: Writer.SAGA_LOG,
    StartRefused: Writer.SAGA_LOG,
    CancelRefused: Writer.SAGA_LOG,
    SagaUndone: Writer.SAGA_LOG,
    UndoRequested: Writer.PARENT,
}
"""Each kind of record and who writes it, but for the cases that ``writer_of`` tells apart."""

CONTEXT_TOO_LARGE = "context_too_large"
"""The run of a failure that the saga-log writes in place of a command that cannot be encoded (rule 20)."""

SAGA_LOG_FAILS: tuple[type[Record], ...] = (StepFailed, CompensationFailed)
"""What the saga-log writes for a step or compensation that nobody answers for, or cannot be asked for."""

_SAGA_LOG_RUNS = frozenset({"", CONTEXT_TOO_LARGE})


def writer_of(tag: str, *, run: str = "", has_parent: bool = False) -> Writer | None:
    """Who writes a record, by what it says of itself; ``None`` if there is no such kind of record.

    Args:
        run: of an outcome; a time-out has none.
        has_parent: whether it names the step of another saga that its saga is.
    """
    kind = TYPE_BY_TAG.get(tag)
    if kind is None:
        return None
    if kind in (SagaStarted, CancelRequested) and has_parent:
        return Writer.PARENT
    if kind in SAGA_LOG_FAILS and run in _SAGA_LOG_RUNS:
        return Writer.SAGA_LOG
    return WRITERS[kind]
