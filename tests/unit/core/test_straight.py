"""The straight way is taken where all goes well, and only there.

That it leads where the rules do, ``spec`` asks in all other examples, and the exploration on every transition.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from choreo.contract.saga import Saga
from choreo.core import Entry, SagaState
from choreo.core.fold import fold_by_the_rules
from choreo.core.state import Outcome, Pause
from choreo.core.straight import straight_on
from choreo.messages.headers import MSGPACK
from tests.unit.core.spec import COMPLETE, SAGA_ID, History, completed, given, given_log, message, saga, started, step

LINE = saga(step("a"), step("b", deadline="1m"), step("c"))
BRANCHES = saga(step("a"), step("b", "a"), step("c", "a"), step("d", "b"))


def by_the_rules(history: History) -> list[str]:
    """The records of a history that were not folded by the straight way."""
    state, found = SagaState(SAGA_ID), []
    for entry in history.log:
        if straight_on(history.contract, state, entry) is None:
            found.append(type(entry.record).__name__)
        state = fold_by_the_rules(history.contract, state, entry).state
    return found


@pytest.mark.parametrize("contract", [LINE, BRANCHES], ids=["line", "branches"])
def test_a_saga_that_goes_well_goes_straight_from_its_start_to_its_end(contract: Saga) -> None:
    history = given(contract, *(completed(each.name) for each in contract.steps)).when_sent()
    assert history.state.finished_ms
    assert by_the_rules(history) == []


def test_a_join_is_decided_by_the_rules_and_only_that() -> None:
    contract = saga(step("a", "nothing"), step("b", "nothing"), step("c", "a", "b"), step("d"))
    history = given(contract, completed("a"), completed("b")).when_sent()
    history = history.when(completed("c"), completed("d")).then(COMPLETE).when_sent()
    assert by_the_rules(history) == ["StepCompleted", "Execute"]


def test_what_is_said_again_is_looked_at_by_the_rules() -> None:
    history = given(saga(step("a")), completed("a"), completed("a"), message(COMPLETE), message(COMPLETE))
    assert by_the_rules(history) == ["StepCompleted", "SagaCompleted"]


STARTS = given_log(LINE, started())
GOES_ON = given(LINE, completed("a"), completed("b"))
ENDS = given(LINE, *map(completed, "abc"), message(COMPLETE))


def before_the_last(history: History) -> tuple[SagaState, Entry]:
    """The state before the last record, for a test to change, and that record."""
    state = SagaState(SAGA_ID)
    for entry in history.log[:-1]:
        state = fold_by_the_rules(history.contract, state, entry).state
    assert straight_on(history.contract, state, history.log[-1]) is not None
    return state.copy(), history.log[-1]


@pytest.mark.parametrize(
    "known",
    [
        {"triggered": False},
        {"first": "failed"},
        {"runs": ("failed:another",)},
        {"held": True},
        {"settling": True},
        {"awaits_answer": True},
        {"stuck": True},
        {"offer": "offered"},
    ],
    ids=str,
)
def test_a_step_of_which_more_is_known_completes_by_the_rules(known: dict[str, Any]) -> None:
    state, entry = before_the_last(GOES_ON)
    state.update(("b", 1), **known)
    assert straight_on(LINE, state, entry) is None


@pytest.mark.parametrize(
    "known", [{"settling": True}, {"awaits_answer": True}, {"stuck": True}, {"offer": "taken"}], ids=str
)
@pytest.mark.parametrize("history", [GOES_ON, ENDS], ids=["goes on", "ends"])
def test_beside_another_step_that_is_not_done_with_a_saga_goes_by_the_rules(
    history: History, known: dict[str, Any]
) -> None:
    state, entry = before_the_last(history)
    state.update(("a", 1), **known)
    assert straight_on(LINE, state, entry) is None


@pytest.mark.parametrize("history", [GOES_ON, ENDS], ids=["goes on", "ends"])
def test_beside_an_effect_that_nobody_wants_a_saga_goes_by_the_rules(history: History) -> None:
    state, entry = before_the_last(history)
    state.standing["a"] = 2
    assert straight_on(LINE, state, entry) is None


@pytest.mark.parametrize(
    "known",
    [{"failing": True}, {"pause": Pause(1)}, {"type_pause": Pause(1)}, {"undo": 1}],
    ids=str,
)
@pytest.mark.parametrize("history", [STARTS, GOES_ON, ENDS], ids=["starts", "goes on", "ends"])
def test_a_saga_that_is_not_on_its_way_goes_by_the_rules(history: History, known: dict[str, Any]) -> None:
    state, entry = before_the_last(history)
    assert straight_on(LINE, msgspec.structs.replace(state, **known), entry) is None


@pytest.mark.parametrize(
    "known",
    [
        {"round": 2},
        {"start": "b" * 16},
        {"content_type": MSGPACK},
        {"scheduled": True},
        {"outcome": Outcome("completed")},
    ],
    ids=str,
)
def test_a_step_completes_by_the_rules_where_its_saga_is_elsewhere(known: dict[str, Any]) -> None:
    state, entry = before_the_last(GOES_ON)
    assert straight_on(LINE, msgspec.structs.replace(state, **known), entry) is None


@pytest.mark.parametrize("known", [{"start": "b" * 16}, {"cancelled": True}], ids=str)
def test_a_start_that_is_not_the_first_word_goes_by_the_rules(known: dict[str, Any]) -> None:
    state, entry = before_the_last(STARTS)
    assert straight_on(LINE, msgspec.structs.replace(state, **known), entry) is None
