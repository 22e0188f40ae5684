"""What the saga-log says in place of a record that cannot be written (rule 20)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from choreo.core import SagaState
from choreo.core.commands import NULL
from choreo.messages.records import (
    AnyRecord,
    Compensate,
    CompensationFailed,
    Execute,
    Failure,
    SagaCompensated,
    SagaCompleted,
    SagaStuck,
    StepFailed,
)
from choreo.messages.writers import CONTEXT_TOO_LARGE

_TEXT_MAX = 1_000


def smaller(record: AnyRecord, state: SagaState, why: str) -> Sequence[AnyRecord]:
    """What to say in place of the record, in order of preference.

    A command that cannot be given fails its step. An outcome is told without what makes it large: it has been decided,
    and readers who need the effects find them in the records of the steps.
    """
    match record:
        case Execute():
            return (
                StepFailed(
                    saga=record.saga,
                    version=record.version,
                    saga_id=record.saga_id,
                    start=record.start,
                    step=record.step,
                    round=record.round,
                    failure=_too_large(why),
                    effect="none",
                    run=CONTEXT_TOO_LARGE,
                ),
            )
        case Compensate():
            return (
                CompensationFailed(
                    saga=record.saga,
                    version=record.version,
                    saga_id=record.saga_id,
                    start=record.start,
                    step=record.step,
                    round=record.round,
                    generation=record.generation,
                    failure=_too_large(why),
                    run=CONTEXT_TOO_LARGE,
                ),
            )
        case SagaCompleted():
            without_effects = msgspec.structs.replace(record, effects={})
            null = msgspec.Raw(NULL[state.content_type])
            return (without_effects, msgspec.structs.replace(without_effects, result=null))
        case SagaCompensated():
            shorter = msgspec.structs.replace(record, failure=_shortened(record.failure))
            return (shorter, msgspec.structs.replace(shorter, compensations=()))
        case SagaStuck():
            return (msgspec.structs.replace(record, failure=_shortened(record.failure) or record.failure),)
        case _:
            return ()


def _too_large(why: str) -> Failure:
    return Failure(kind="rejected", code=CONTEXT_TOO_LARGE, message=why[:_TEXT_MAX])


def _shortened(failure: Failure | None) -> Failure | None:
    if failure is None:
        return None
    return msgspec.structs.replace(failure, message=failure.message[:_TEXT_MAX], traceback=None)
