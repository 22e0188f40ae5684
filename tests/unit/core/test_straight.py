"""The straight way is taken where all goes well; that it leads where the rules do, ``spec`` asks in all other tests."""

from __future__ import annotations

import pytest

from choreo.contract.saga import Saga
from choreo.core import SagaState
from choreo.core.fold import fold_by_the_rules
from choreo.core.straight import straight_on
from tests.unit.core.spec import COMPLETE, SAGA_ID, History, completed, given, message, saga, step

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
