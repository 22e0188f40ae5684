"""Operators who pause sagas, and all of them, in the world where everything goes wrong (rule 24)."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from unittest.mock import patch

import pytest

from choreo.broker.port import Message
from choreo.step.pauses import Pauses
from tests.simulation.report import failure
from tests.simulation.world import simulate
from tests.unit.core.switches import decide_all_the_same

SEEDS = 40
SAGAS = 8


@pytest.fixture(scope="module")
def paused() -> Counter[str]:
    return Counter()


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_every_promise_is_kept_through_pauses(first: int, paused: Counter[str]) -> None:
    for seed in range(first, first + 10):
        result = simulate(seed, sagas=SAGAS, pauses=True)
        assert not result.violations, failure(result, SAGAS)
        assert result.sagas == SAGAS
        paused.update(result.paused)


def test_sagas_and_types_were_paused_and_triggers_held(paused: Counter[str]) -> None:
    assert not paused or min(paused["saga"], paused["type"], paused["held"]) > 20


def test_pauses_change_nothing_where_there_are_none() -> None:
    assert simulate(5, sagas=2).paused == Counter()


def test_a_saga_log_that_decides_in_a_pause_is_found_out() -> None:
    with patch.object(import_module("choreo.core.fold"), "decide", decide_all_the_same):
        assert seen("S6")


def test_a_worker_that_holds_for_ever_is_found_out() -> None:
    def see(self: Pauses, message: Message) -> None:
        self._is_type_paused = True

    with patch.object(Pauses, "see", see):
        assert seen("L1", "S13")


def seen(*kinds: str) -> bool:
    """Whether one of the invariants is violated in some run."""
    runs = (simulate(seed, sagas=SAGAS, pauses=True) for seed in range(SEEDS))
    return any(found.startswith(kinds) for run in runs for found in run.violations)
