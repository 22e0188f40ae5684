"""A saga that is a step of another one: every order of events in both, with saga-logs that die (rule 19)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import pytest

from choreo.contract.saga import Saga
from choreo.core import Decision, Entry, evolve, fold, record_of, said_elsewhere
from choreo.core.state import Instance, SagaState
from choreo.messages.family import Parent, UndoRequested
from choreo.messages.headers import JSON, make_headers
from choreo.messages.records import CompensationFailed, Failure, StepFailed
from tests.unit.core.family import BESIDE, CHILD, CHILD_ID, PARENT, PAST_PIVOT, PIVOTED, Budget, explore

FAMILY, SIBLINGS, WITH_PIVOT = (PARENT, CHILD), (BESIDE, CHILD), (PAST_PIVOT, PIVOTED)

CASES: list[tuple[tuple[Saga, Saga], Budget]] = [
    (FAMILY, Budget(failure=2, crash=2)),
    (FAMILY, Budget(failure=1, cancel=1, child_cancel=1, crash=1)),
    (FAMILY, Budget(failure=1, undo_failure=1, act=1, crash=1)),
    (FAMILY, Budget(failure=1, timeout=1, crash=1)),
    (FAMILY, Budget(timeout=1, undo_failure=1, act=1, cancel=1)),
    (FAMILY, Budget(timeout=2, child_cancel=1, crash=1)),
    (SIBLINGS, Budget(failure=2, crash=1)),
    (SIBLINGS, Budget(failure=1, undo_failure=1, cancel=1)),
    (WITH_PIVOT, Budget(failure=1, cancel=1, child_cancel=1, crash=1)),
    (WITH_PIVOT, Budget(failure=1, undo_failure=1, act=1, cancel=1)),
]


def named(cases: list[tuple[tuple[Saga, Saga], Budget]]) -> list[str]:
    """What may happen in each, and whether there is a pivot."""
    return [
        " ".join(
            (
                {FAMILY: "", SIBLINGS: "cancelled", WITH_PIVOT: "pivot"}[family],
                *(f"{what}={n}" for what, n in budget._asdict().items() if n),
            )
        )
        for family, budget in cases
    ]


@pytest.mark.parametrize(("family", "budget"), CASES, ids=named(CASES))
def test_no_order_of_events_breaks_a_family(family: tuple[Saga, Saga], budget: Budget) -> None:
    seen = explore(*family, budget)
    assert not seen.wrong, "\n".join(line for message, way in seen.wrong.values() for line in (message, *way))
    assert seen.complete
    print(f"{seen.situations:,} situations")
    assert seen.situations > 100, "too few to mean anything"


def ignored(*_: Any) -> None:
    return None


SWITCHES: list[tuple[str, Callable[[], AbstractContextManager[Any]], Budget, bool]] = [
    ("its own log first, then the other", nullcontext, Budget(crash=1), False),
    (
        "a request to undo means nothing",
        lambda: mock.patch.dict(evolve.OF_SAGA, {UndoRequested: ignored}),
        Budget(failure=1),
        True,
    ),
    (
        "what a child has completed stays, whatever becomes of its parent",
        lambda: mock.patch.object(
            SagaState,
            "is_unwanted",
            property(lambda state: state.outcome is not None and state.outcome.kind == "compensated"),
        ),
        Budget(failure=1),
        True,
    ),
    (
        "a stuck child keeps it to itself",
        lambda: mock.patch("tests.unit.core.family.said_elsewhere", said_unless_stuck),
        Budget(failure=1, undo_failure=1),
        True,
    ),
]


def said_unless_stuck(contract: Saga, state: SagaState, decision: Any) -> Any:
    return None if decision.kind in ("stuck", "undone") else said_elsewhere(contract, state, decision)


@pytest.mark.parametrize(("off", "without", "budget", "elsewhere_first"), SWITCHES, ids=[each[0] for each in SWITCHES])
def test_no_part_of_it_can_be_left_out(
    off: str, without: Callable[[], AbstractContextManager[Any]], budget: Budget, elsewhere_first: bool
) -> None:
    with without():
        seen = explore(*FAMILY, budget, elsewhere_first=elsewhere_first)
    assert seen.wrong, f"nothing goes wrong in {seen.situations} situations"
    assert not explore(*FAMILY, budget).wrong


def child_with(**what: Any) -> SagaState:
    parent = Parent(saga="parent", version=1, saga_id="p", start="0" * 16, step="s", round=1, due_ms=2_000_000)
    return SagaState("parent/p/s/1", saga="child", version=1, start="1" * 16, parent=parent, **what)


def test_what_a_completed_child_says_again_is_the_same_whatever_came_between() -> None:
    complete = Decision("complete")

    first = said_elsewhere(CHILD, child_with(started_ms=1, updated_ms=60), complete)

    assert first == said_elsewhere(CHILD, child_with(started_ms=1, updated_ms=7_000), complete)


@pytest.mark.parametrize("undo", [0, 1])
def test_a_child_that_gets_stuck_anew_or_is_freed_says_so_under_another_id(undo: int) -> None:
    state = child_with(undo=undo)

    said = [said_elsewhere(CHILD, state, Decision("stuck", "x", 1, generation, undo=undo)) for generation in (1, 2)]
    freed = said_elsewhere(CHILD, state, Decision("undone", generation=1))

    assert len({ids_of(record) for record in (*said, freed)}) == 3


def test_a_child_that_is_asked_while_it_says_that_it_is_stuck_answers_all_the_same() -> None:
    contract, about = CHILD, {"saga": "child", "version": 1, "saga_id": CHILD_ID, "start": "1" * 16}
    state = child_with(
        started_ms=1,
        due_ms=2_000_000,
        failing=True,
        instances={
            ("x", 1): Instance(
                triggered=True, completed=True, first="completed", may_stand=True, generation=1, awaits_answer=True
            )
        },
    )
    step = {**about, "step": "x", "round": 1, "generation": 1}

    def fold_in(record: Any) -> tuple[Decision, ...]:
        nonlocal state
        state, owed, _ = fold(contract, state, Entry(record, state.offset + 1, 1_000))
        return owed

    (stuck,) = fold_in(CompensationFailed(**step, run="u", failure=Failure(kind="crashed")))
    early, notice = said_elsewhere(contract, state, stuck), record_of(contract, state, stuck)
    assert isinstance(early, StepFailed), "nobody has asked for anything yet"
    # The parent reads that, and asks, before the saga-log has said anything in the child's own log.
    (again,) = fold_in(UndoRequested(**about, generation=1, parent=state.parent))
    assert fold_in(notice) == ()
    answer = said_elsewhere(contract, state, again)
    assert isinstance(answer, CompensationFailed)
    assert (answer.generation, answer.step) == (1, "s")
    assert state.owed == (again,), "so it is said even if the saga-log dies now"
    fold_in(record_of(contract, state, again))
    assert state.owed == ()


def ids_of(record: Any) -> bytes:
    assert record is not None
    return dict(make_headers(record, source="saga-log", content_type=JSON, traceparent=None))["ce_id"]
