"""The simulated world with inboxes: naive handlers, and no weaker promise where all steps work in transactions."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest.mock import patch

import pytest

from choreo.inbox.table import Row
from choreo.step import recorded
from tests.simulation.inboxes import PER_CALL
from tests.simulation.report import failure
from tests.simulation.world import Result, simulate

SEEDS = 30
SAGAS = 8
SEEDS_FOR_BROKEN = 12


@pytest.fixture(scope="module")
def fired() -> Counter[str]:
    return Counter()


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_every_promise_is_kept_whatever_goes_wrong(first: int, fired: Counter[str]) -> None:
    for seed in range(first, first + 10):
        result = simulate(seed, sagas=SAGAS, inbox=True)
        assert not result.violations, failure(result, SAGAS)
        assert result.sagas == SAGAS
        fired.update(result.fired)


def test_every_kind_of_fault_of_a_database_has_happened(fired: Counter[str]) -> None:
    if sum(fired.values()):  # the seeds above were run too
        assert [kind for kind in PER_CALL if not fired[kind]] == []


def test_the_same_seed_takes_the_same_course() -> None:
    lines: list[str] = []
    again: list[str] = []
    simulate(4, sagas=SAGAS, say=lines.append, inbox=True)
    simulate(4, sagas=SAGAS, say=again.append, inbox=True)
    assert lines == again


def seen(*kinds: str) -> Result | None:
    """The first run in which one of the invariants is violated."""
    runs = (simulate(seed, sagas=SAGAS, inbox=True) for seed in range(SEEDS_FOR_BROKEN))
    return next((run for run in runs if any(found.startswith(kinds) for found in run.violations)), None)


def test_an_inbox_that_does_not_look_is_found_out() -> None:
    with patch.object(recorded, "recorded_outcome", lambda row, subject: None):
        assert seen("S4", "S7") is not None


def test_an_inbox_that_does_not_know_what_was_undone_is_found_out() -> None:
    plan_undo = recorded.plan_undo

    def forgetful(row: Row | None, job: Any, *, is_inside: bool) -> recorded.Undo:
        known = row and row._replace(state="completed" if row.state == "undone" else row.state, answer=None)
        return plan_undo(known, job, is_inside=is_inside)

    with patch.object(recorded, "plan_undo", forgetful):
        assert seen("S4", "S7") is not None
