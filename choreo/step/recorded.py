"""What an inbox's row means for a record that asks for work, and what becomes of it: pure decisions (rules 5, 6, 11).

A step's handler is *inside* if it asks for the database: then its effect is in the transaction that records it, and a
run that was not recorded has left nothing. Otherwise it works *outside*: that it has begun is committed beforehand, so
that a run which was cut off is known to have been there, and what it may have left is undone.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from choreo import ids
from choreo.inbox.table import Row
from choreo.messages.codec import decode, encode
from choreo.messages.records import (
    AnyRecord,
    CompensationFailed,
    Failure,
    StepCompensated,
    StepCompleted,
    StepFailed,
)
from choreo.step.job import CompensationJob, StepJob

StepOutcome = StepCompleted | StepFailed
UndoAnswer = StepCompensated | CompensationFailed

COMPENSATED = "compensated"
"""The run that a step's answer names once it was undone: always the same, so that the answer is."""

_BARRED = Failure(
    kind="cancelled", code="compensated", message="the step was compensated before it came; it is not run any more"
)
_OVERTAKEN = Failure(
    kind="cancelled",
    code="overtaken",
    message="another run was recorded first, without an effect or undone, but this one may have left one",
)


class Subject(NamedTuple):
    """A step instance, in the words of all records about it."""

    saga: str
    version: int
    saga_id: str
    start: str
    step: str
    round: int

    @property
    def key(self) -> str:
        """Of its row. Ids do not say which saga they are of, and services may share a table."""
        return f"{self.saga}/{ids.instance_id(self.saga_id, self.start, self.step, self.round)}"

    def begun(self, content_type: str) -> Row:
        """The row with which a run begins."""
        return Row(self.key, "begun", content_type)

    def barred(self, content_type: str) -> Row:
        """The row that keeps a step from running."""
        return Row(self.key, "barred", content_type)


def subject_of(about: StepJob | CompensationJob) -> Subject:
    """The step instance of a job."""
    return Subject(about.saga.name, about.saga.version, about.saga_id, about.start, about.step.name, about.round)


def recorded_outcome(row: Row, subject: Subject) -> StepOutcome | None:
    """What is to be published for a step that has this row; ``None`` if there is no outcome yet.

    A step that was undone, or barred before it came, never answers that it has completed (rule 6).
    """
    if row.state in ("undone", "barred"):
        return StepFailed(**subject._asdict(), run=COMPENSATED, failure=_BARRED, effect="none", attempts=0)
    outcome = _read(row, subject, row.outcome)
    return outcome if isinstance(outcome, StepCompleted | StepFailed) else None


def completed_row(row: Row, outcome: StepCompleted, content_type: str) -> Row:
    """The row of a step that has completed. Raises ``Unencodable`` if the record cannot be written (rule 20)."""
    return row._replace(
        state="completed", content_type=content_type, outcome=encode(outcome, content_type=content_type)
    )


class Concluded(NamedTuple):
    """What to publish for a run, and the row to write for it, if any."""

    outcome: StepOutcome
    row: Row | None


def conclude(row: Row, subject: Subject, outcome: StepOutcome, content_type: str, *, is_inside: bool) -> Concluded:
    """Bring a run's outcome together with the row that stands by now. The first outcome of an instance stays.

    Except where a run outside may have left an effect of which the recorded outcome denies knowledge: that has to be
    said, or nobody would undo it.
    """
    standing = recorded_outcome(row, subject)
    if standing is None:
        return Concluded(outcome, _with_outcome(row, outcome, content_type))
    may_have_effect = not is_inside and (isinstance(outcome, StepCompleted) or outcome.effect == "unknown")
    if may_have_effect and isinstance(standing, StepFailed) and standing.effect == "none":
        late = StepFailed(
            **subject._asdict(),
            run=outcome.run,
            failure=_OVERTAKEN,
            effect="unknown",
            attempts=outcome.attempts,
            duration_ms=outcome.duration_ms,
        )
        return Concluded(late, _with_outcome(row, late, content_type))
    return Concluded(standing, None)


def replaced(row: Row, outcome: StepFailed, content_type: str) -> Row:
    """The row of a step whose completion turned out to be too large for the log: its effect stands, and is unknown."""
    return row._replace(outcome=encode(outcome, content_type=content_type))


class Undo(NamedTuple):
    """What a command to undo asks for, in view of the row.

    Attributes:
        answer: it is answered already, or there is nothing to do; no handler runs then.
        row: to be written with the answer; ``None`` if that is done.
        job: what the handler is told: with the effect that is recorded, where the command has none.
        is_empty: there is no effect, so whatever the handler does, nothing is undone.
    """

    answer: UndoAnswer | None
    row: Row | None
    job: CompensationJob
    is_empty: bool


def plan_undo(row: Row | None, job: CompensationJob, *, is_inside: bool) -> Undo:
    """What to do about a command.

    Args:
        row: of the step; ``None`` if it never began.
        is_inside: whether the step's handler works in the transaction.
    """
    subject = subject_of(job)
    if row is not None and (answered := _answered(row, job)) is not None:
        return answered
    if row is None or row.state == "barred":
        is_empty = True
    elif row.state == "completed":
        is_empty, job = False, _with_effect(job, row, subject)
    else:
        outcome = recorded_outcome(row, subject)
        is_empty = (is_inside and outcome is not None) or (isinstance(outcome, StepFailed) and outcome.effect == "none")
    standing = row if row is not None else subject.barred(job.content_type)
    if is_empty and not is_asked_anyway(job):
        return Undo(*_nothing_to_undo(standing, job), job, is_empty=True)
    return Undo(None, None, job, is_empty)


def is_asked_anyway(job: CompensationJob) -> bool:
    """Whether the contract wants to hear the failed step's own compensation, though there is nothing to undo.

    Its answer may be a substitute or another round.
    """
    asks = job.step.compensate_on_failure == "always"
    return job.own and (asks or (job.failure is not None and job.step.is_asked_after(job.failure.kind)))


def undone_row(row: Row, answer: UndoAnswer, content_type: str, *, is_empty: bool) -> Row:
    """The row behind a command that was answered. Raises ``Unencodable`` if the answer cannot be written."""
    state = row.state
    if isinstance(answer, StepCompensated):
        state = "barred" if is_empty else "undone"
    encoded = encode(answer, content_type=content_type)
    return row._replace(state=state, generation=answer.generation, content_type=content_type, answer=encoded)


def recorded_answer(row: Row, job: CompensationJob) -> UndoAnswer | None:
    """What is to be published for a command, or for one that came before the last; ``None`` if it is not answered."""
    answer = _read(row, subject_of(job), row.answer)
    if not isinstance(answer, StepCompensated | CompensationFailed) or row.generation < job.generation:
        return None
    return msgspec.structs.replace(answer, generation=job.generation)


def emptied(answer: UndoAnswer) -> UndoAnswer:
    """The same answer where the inbox knows that there was nothing to undo."""
    return msgspec.structs.replace(answer, undone=False) if isinstance(answer, StepCompensated) else answer


def _answered(row: Row, job: CompensationJob) -> Undo | None:
    """The command is answered, or one before it has done all there is to do."""
    if (answer := recorded_answer(row, job)) is not None:
        return Undo(answer, None, job, is_empty=False)
    before = _read(row, subject_of(job), row.answer)
    if isinstance(before, StepCompensated) and row.state == "undone":
        again = msgspec.structs.replace(before, generation=job.generation)
        return Undo(again, undone_row(row, again, job.content_type, is_empty=False), job, is_empty=False)
    return None


def _nothing_to_undo(row: Row, job: CompensationJob) -> tuple[StepCompensated, Row]:
    answer = StepCompensated(
        **subject_of(job)._asdict(),
        generation=job.generation,
        run=job.run,
        undone=False,
        attempts=0,
    )
    return answer, undone_row(row, answer, job.content_type, is_empty=True)


def _with_effect(job: CompensationJob, row: Row, subject: Subject) -> CompensationJob:
    outcome = recorded_outcome(row, subject)
    if not isinstance(job.effect, msgspec.UnsetType) or not isinstance(outcome, StepCompleted):
        return job
    return msgspec.structs.replace(job, effect=outcome.effect)


def _with_outcome(row: Row, outcome: StepOutcome, content_type: str) -> Row:
    if isinstance(outcome, StepCompleted):
        return completed_row(row, outcome, content_type)
    return row._replace(state="failed", content_type=content_type, outcome=encode(outcome, content_type=content_type))


def _read(row: Row, subject: Subject, value: bytes | None) -> AnyRecord | None:
    """A record of the row; it was checked when it was written."""
    if value is None:
        return None
    return decode(subject.saga_id.encode(), value, (("content-type", row.content_type.encode()),))
