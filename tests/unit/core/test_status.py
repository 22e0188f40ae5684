"""The status that people see, folded from histories."""

from __future__ import annotations

import msgspec
import pytest

from choreo.contract import Saga, Step
from choreo.core import Entry, SagaState, fold, record_of
from choreo.core.state import Phase
from choreo.core.status import SagaStatus, status_of
from choreo.messages.records import (
    Failure,
    Record,
    SagaStarted,
    StepCompensated,
    StepCompleted,
    StepFailed,
)

NULL = msgspec.Raw(b"null")
ORDER = Saga("order", Step("reserve", compensation="release"), Step("mail"), Step("charge", compensation="refund"))
START = "0" * 16


def status_after(*records: Record) -> SagaStatus:
    """The status when these are in the log, and all that is owed after each."""
    state = SagaState("o-1")
    offset = 0
    for record in records:
        todo = [record]
        while todo:
            folded = fold(ORDER, state, Entry(todo.pop(0), offset, 1_000 + offset))
            state, offset = folded.state, offset + 1
            todo += [record_of(ORDER, state, one) for one in folded.owed]
    return status_of(ORDER, state)


def phases(status: SagaStatus) -> dict[str, str]:
    return {step.step: step.phase for step in status.steps}


def started() -> SagaStarted:
    return SagaStarted(
        saga="order",
        version=1,
        saga_id="o-1",
        start=START,
        contract_hash=ORDER.content_hash,
        request="q",
        saga_deadline_ms=1_000_000,
        input=NULL,
    )


def completed(step: str) -> StepCompleted:
    return StepCompleted(
        saga="order",
        version=1,
        saga_id="o-1",
        start=START,
        step=step,
        run=step,
        due_ms=10**9,
        saga_due_ms=10**9,
        input=NULL,
        effects={},
        effect=msgspec.Raw(b'{"is":"done"}'),
    )


def crashed(step: str) -> StepFailed:
    failure = Failure(kind="crashed", code="gateway_down")
    return StepFailed(saga="order", version=1, saga_id="o-1", start=START, step=step, run=step, failure=failure)


def compensated(step: str, *, undone: bool) -> StepCompensated:
    return StepCompensated(
        saga="order", version=1, saga_id="o-1", start=START, step=step, generation=1, run=f"u-{step}", undone=undone
    )


def test_a_running_saga_shows_what_runs_and_what_waits() -> None:
    status = status_after(started(), completed("reserve"))
    assert status.phase is Phase.FORWARD
    assert phases(status) == {"reserve": "completed", "mail": "running", "charge": "waiting"}
    assert status.steps[0].effect == {"is": "done"}


def test_a_saga_on_its_way_back_shows_what_remains() -> None:
    status = status_after(started(), completed("reserve"), completed("mail"), crashed("charge"))
    assert status.phase is Phase.COMPENSATING
    assert (status.step, status.failure and status.failure.code) == ("charge", "gateway_down")
    assert phases(status) == {"reserve": "completed", "mail": "completed", "charge": "compensating"}
    assert status.remaining == ("charge", "mail", "reserve")


@pytest.mark.parametrize(("undone", "phase"), [(True, "undone"), (False, "failed")])
def test_a_failed_step_is_undone_only_if_there_was_something_to_undo(undone: bool, phase: str) -> None:
    status = status_after(
        started(),
        completed("reserve"),
        completed("mail"),
        crashed("charge"),
        compensated("charge", undone=undone),
        compensated("reserve", undone=True),
    )
    assert status.phase is Phase.COMPENSATED
    assert phases(status) == {"reserve": "undone", "mail": "no_compensation", "charge": phase}
