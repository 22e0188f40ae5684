"""The straight way back is taken where a step fails without an effect and the others are undone, and only there.

That it leads where the rules do is asked where that of the straight way forward is.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from choreo.contract.saga import Saga
from choreo.core.state import Decision, Outcome
from choreo.core.straight import straight_on
from tests.unit.core.spec import (
    LINE,
    History,
    bare,
    compensate,
    completed,
    failed,
    given,
    message,
    saga,
    step,
    undone,
)
from tests.unit.core.test_straight import before_the_last, by_the_rules

COMPENSATED = Decision("compensated")
BRANCHES = saga(step("a"), step("b", "a"), step("c", "a"), step("d", "b"))

FAILS = given(LINE, completed("a"), completed("b"), failed("c"))
SAYS = FAILS.when(message(compensate("b")))
GOES_BACK = SAYS.when(undone("b"))
IS_OVER = GOES_BACK.when(message(compensate("a")), undone("a"))
ENDS = IS_OVER.when(message(COMPENSATED))


def test_a_saga_that_fails_goes_straight_back_to_its_end() -> None:
    assert ENDS.state.finished_ms
    assert [each.step for each in ENDS.state.undone] == ["b", "a"]
    assert by_the_rules(ENDS) == []


def test_a_saga_that_fails_at_its_first_step_is_over_at_once() -> None:
    history = given(LINE, failed("a")).then(COMPENSATED).when_sent()
    assert history.state.finished_ms
    assert by_the_rules(history) == []


def test_what_was_not_there_to_be_undone_is_no_obstacle() -> None:
    history = SAYS.when(undone("b", nothing=True)).then(compensate("a"))
    assert by_the_rules(history) == []


def test_branches_that_have_settled_go_back_side_by_side() -> None:
    history = given(BRANCHES, completed("a"), completed("b"), completed("c"), failed("d"))
    history = history.then(compensate("b"), compensate("c")).when_sent().when(undone("b")).then()
    history = history.when(undone("c")).then(compensate("a")).when_sent().when(undone("a")).when_sent()
    assert history.state.finished_ms
    assert by_the_rules(history) == []


def test_a_failure_beside_what_is_at_work_goes_by_the_rules() -> None:
    history = given(BRANCHES, completed("a"), failed("b")).then()
    history = history.when(completed("c")).then(compensate("c"))
    assert by_the_rules(history) == ["StepFailed", "StepCompleted"]


def test_a_step_that_cannot_be_undone_is_passed_by_the_rules() -> None:
    history = given(saga(bare("a"), step("b"), step("c")), completed("a"), completed("b"), failed("c")).when_sent()
    assert by_the_rules(history) == []
    assert by_the_rules(history.when(undone("b"))) == ["StepCompensated"]


@pytest.mark.parametrize(
    "said",
    [failed("c", "unknown"), failed("c", run=""), failed("c", abort=True), failed("c", saga_round=2), failed("a")],
    ids=["unknown", "of the saga-log", "abort", "another round", "of a step that is done"],
)
def test_another_failure_than_a_refusal_goes_by_the_rules(said: Any) -> None:
    history = given(LINE, completed("a"), completed("b"), said)
    assert by_the_rules(history) == ["StepFailed"]


@pytest.mark.parametrize(
    "option", [{"compensate_on_failure": "always"}, {"recover_from": ("rejected",)}], ids=["always", "to recover"]
)
def test_a_failed_step_that_is_undone_itself_goes_by_the_rules(option: dict[str, Any]) -> None:
    contract = saga(step("a"), step("b"), step("c", **option))
    history = given(contract, completed("a"), completed("b"), failed("c")).then(compensate("c"))
    assert by_the_rules(history) == ["StepFailed"]
    assert by_the_rules(history.when_sent()) == ["StepFailed"], "a message decides nothing"
    assert by_the_rules(history.when_sent().when(undone("c"))) == ["StepFailed"]


@pytest.mark.parametrize("verdict", ["retry", "abort"])
def test_an_answer_that_asks_for_more_goes_by_the_rules(verdict: str) -> None:
    assert by_the_rules(SAYS.when(undone("b", verdict=verdict, retry_limit=3))) == ["StepCompensated"]


def test_what_is_said_again_is_looked_at_by_the_rules() -> None:
    history = SAYS.when(message(compensate("b")), undone("b"), undone("b"))
    assert by_the_rules(history) == ["Compensate", "StepCompensated"]


HISTORIES = {
    "fails": FAILS,
    "fails at once": given(LINE, failed("a")),
    "says": SAYS,
    "goes back": GOES_BACK,
    "is over": IS_OVER,
    "ends": ENDS,
}


def goes_by_the_rules(history: History, contract: Saga = LINE, **known: Any) -> bool:
    """Whether the last record is not folded straight in another state."""
    state, entry = before_the_last(history)
    return straight_on(contract, msgspec.structs.replace(state, **known), entry) is None


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("fails", {"failing": True}),
        ("fails", {"start": "b" * 16}),
        ("fails at once", {"round": 2}),
        ("fails", {"outcome": Outcome("completed")}),
        ("fails", {"owed": (Decision("execute", "c", 1),)}),
        ("fails", {"pivot": "open"}),
        ("fails", {"retry_at_ms": 1}),
        ("says", {"start": "b" * 16}),
        ("says", {"owed": ()}),
        ("goes back", {"failing": False}),
        ("goes back", {"start": "b" * 16}),
        ("goes back", {"round": 2}),
        ("goes back", {"outcome": Outcome("compensated")}),
        ("goes back", {"pivot": "open"}),
        ("goes back", {"retry_at_ms": 1}),
        ("ends", {"owed": ()}),
        ("ends", {"owed": (COMPENSATED, Decision("refuse_cancel"))}),
    ],
    ids=str,
)
def test_a_saga_that_is_elsewhere_goes_back_by_the_rules(name: str, known: dict[str, Any]) -> None:
    assert goes_by_the_rules(HISTORIES[name], **known)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("fails", {"triggered": False}),
        ("fails", {"first": "completed"}),
        ("fails", {"runs": ("failed:another",)}),
        ("fails", {"held": True}),
        ("fails", {"offer": "offered"}),
        ("says", {"generation": 2}),
        ("goes back", {"generation": 2}),
        ("goes back", {"settling": True}),
        ("goes back", {"awaits_answer": False}),
    ],
    ids=str,
)
def test_a_step_of_which_more_is_known_is_undone_by_the_rules(name: str, known: dict[str, Any]) -> None:
    state, entry = before_the_last(HISTORIES[name])
    record: Any = entry.record
    state.update((record.step, 1), **known)
    assert straight_on(LINE, state, entry) is None


@pytest.mark.parametrize(
    "known",
    [
        {"settling": True},
        {"stuck": True},
        {"offer": "taken"},
        {"first": None},
        {"first": "late"},
        {"own": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["fails", "goes back"])
def test_beside_another_step_that_is_not_like_the_others_a_saga_goes_back_by_the_rules(
    name: str, known: dict[str, Any]
) -> None:
    state, entry = before_the_last(HISTORIES[name])
    state.update(("a", 1), **known)
    assert straight_on(LINE, state, entry) is None


def test_a_command_to_settle_is_not_one_to_undo() -> None:
    state, entry = before_the_last(SAYS)
    entry = msgspec.structs.replace(entry, record=msgspec.structs.replace(entry.record, settle=True))
    assert straight_on(LINE, state, entry) is None


def test_an_effect_of_an_older_round_is_undone_by_the_rules() -> None:
    state, entry = before_the_last(GOES_BACK)
    state.instances["a", 0] = state.instances["a", 1]
    assert straight_on(LINE, state, entry) is None
