"""The audit is the judge of the end-to-end tests, so it is tried itself: each kind of wrong must be found."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from choreo.messages.records import (
    AnyRecord,
    Compensate,
    Failure,
    SagaCompensated,
    SagaCompleted,
    SagaStarted,
    StepCompensated,
    StepCompleted,
)
from services.demo.audit import EFFECTS, Databases, Row, audit
from services.demo.log import Line
from services.order import ORDER

RAW = msgspec.Raw(b"{}")
SAGA: dict[str, Any] = {"saga": "order", "version": 1, "saga_id": "o", "start": "0" * 16}

STARTED = SagaStarted(**SAGA, contract_hash=ORDER.content_hash, request="r", saga_deadline_ms=1, input=RAW)
COMPLETED = SagaCompleted(**SAGA, result=RAW, effects={})
COMPENSATED = SagaCompensated(**SAGA, cause="failed", compensations=(), failure=Failure(kind="rejected"))


def returned(step: str, run: str = "run") -> StepCompleted:
    return StepCompleted(**SAGA, step=step, run=run, due_ms=1, saga_due_ms=1, input=RAW, effects={}, effect=RAW)


def asked(step: str) -> Compensate:
    return Compensate(**SAGA, step=step, generation=1, deadline_ms=1, input=RAW, effects={})


def answered(step: str, *, undone: bool = True) -> StepCompensated:
    return StepCompensated(**SAGA, step=step, generation=1, run="run", undone=undone)


def standing(*steps: str, state: str = "standing") -> list[Row]:
    return [Row(step, "o", f"o/{step}", state) for step in steps]


def problems(records: list[AnyRecord], rows: list[Row], *, mails: int = 0, on_hand: int = 10) -> list[str]:
    databases = Databases(rows, stock={"kettle": (10, on_hand)}, reserved={}, mails={"o": mails} if mails else {})
    return audit({"o": [Line(0, "", record) for record in records]} if records else {}, databases).problems


def undoing(*steps: str) -> list[AnyRecord]:
    forward = [returned(step) for step in reversed(steps)]
    return [STARTED, *forward, *(record for step in steps for record in (asked(step), answered(step))), COMPENSATED]


ALL = tuple(EFFECTS)


def test_a_completed_saga_whose_effects_all_stand_is_right() -> None:
    assert problems([STARTED, *map(returned, ALL), COMPLETED], standing(*ALL), mails=1) == []


def test_a_compensated_saga_whose_effects_were_undone_in_reverse_is_right() -> None:
    rows = standing("reserve_stock", "charge_card", state="undone")
    assert problems(undoing("charge_card", "reserve_stock"), rows) == []


def test_the_same_outcome_said_twice_is_right() -> None:
    records = [STARTED, *map(returned, ALL), COMPLETED, COMPLETED]
    assert problems(records, standing(*ALL), mails=1) == []


def test_a_repair_after_the_outcome_that_finds_nothing_is_right() -> None:
    rows = standing("reserve_stock", state="undone") + standing("charge_card", state="barred")
    late = [asked("charge_card"), answered("charge_card", undone=False)]
    assert problems([*undoing("reserve_stock"), *late], rows) == []


WRONG = {
    "no start": ([], standing("charge_card"), "effects, but no start in the log"),
    "no outcome": ([STARTED], [], "no outcome"),
    "two outcomes": ([STARTED, COMPENSATED, COMPLETED], [], "two different outcomes"),
    "missing": ([STARTED, COMPLETED], standing(*ALL[1:]), "completed, but the effects of reserve_stock are missing"),
    "undone": (
        [STARTED, COMPLETED],
        standing("reserve_stock", state="undone") + standing(*ALL[1:]),
        "completed, but the effects of reserve_stock are ['undone']",
    ),
    "twice": ([STARTED, COMPLETED], standing("reserve_stock", *ALL), "are ['standing', 'standing']"),
    "left": ([STARTED, COMPENSATED], standing("charge_card"), "compensated, but an effect of charge_card is standing"),
    "undone twice": (
        undoing("charge_card"),
        standing("charge_card", "charge_card", state="undone"),
        "2 effects of charge_card were undone, one was made",
    ),
    "lost": (undoing("charge_card"), [], "charge_card returned an effect, but its database has none"),
    "order": (
        undoing("reserve_stock", "charge_card"),
        standing("reserve_stock", "charge_card", state="undone"),
        "reserve_stock was compensated before charge_card, which built on it",
    ),
    "unanswered": (
        [STARTED, asked("charge_card"), COMPENSATED],
        standing("charge_card", state="undone"),
        "compensated, but charge_card has not answered",
    ),
    "mails": ([STARTED, COMPLETED], standing(*ALL), "0 mails were sent"),
}


@pytest.mark.parametrize(("records", "rows", "problem"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_found(records: list[AnyRecord], rows: list[Row], problem: str) -> None:
    assert any(problem in found for found in problems(records, rows))


def test_stock_that_is_neither_on_hand_nor_reserved_is_found() -> None:
    assert problems([], [], on_hand=7) == ["stock of kettle: 3 pieces are neither on hand nor reserved"]
