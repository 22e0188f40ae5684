"""Whoever dies, and whatever it was about to do: the saga ends as if nobody had; ``make crash-points`` tries all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.crash_points.scenarios import ALL
from tests.crash_points.search import Search, die_at, points_of
from tests.crash_points.world import run
from tests.mutants import runtimes


@pytest.mark.parametrize("graph", ["fork-3", "chain-5", "fork-5", "child"])
def test_a_death_before_any_effect_changes_no_saga(graph: str) -> None:
    tried = 0
    for name in [name for name in ALL if name.startswith(graph)]:
        search = Search(name, only_effects=True)
        for first in range(1, points_of(search) + 1):
            runs, wrong = die_at(search, first)
            assert not wrong, str(wrong[0])
            tried += runs
    print(f"{tried} deaths")
    assert tried > 60


@pytest.mark.parametrize("name", ["chain-2, b crashes", "fork-3, c rejects", "child, x crashes"])
def test_a_death_at_any_await_changes_no_saga(name: str) -> None:
    search = Search(name, only_effects=False)
    for first in range(1, points_of(search) + 1):
        runs, wrong = die_at(search, first)
        assert runs == 1, f"nobody died at {first}"
        assert not wrong, str(wrong[0])


@pytest.mark.parametrize("name", ["chain-1, a crashes"])
def test_two_deaths_change_no_saga(name: str) -> None:
    search = Search(name, only_effects=True, pairs=True)
    for first in range(1, points_of(search) + 1):
        runs, wrong = die_at(search, first)
        assert runs > 1, "somebody dies a second time"
        assert not wrong, str(wrong[0])


def test_the_same_death_takes_the_same_course() -> None:
    scenario = ALL["fork-4, d crashes"]
    assert run(scenario, frozenset({30})) == run(scenario, frozenset({30}))


@pytest.mark.parametrize(
    ("broken", "found_as"),
    [
        (runtimes.no_scan_on_assignment, "S7"),
        (runtimes.random_run_ids, "S8"),
        (runtimes.store_leads_the_log, "S12"),
    ],
)
def test_a_broken_build_is_found_out(broken: Callable[[], Any], found_as: str) -> None:
    search = Search("chain-2, b crashes", only_effects=True)
    points = points_of(search)
    with broken():
        wrong = [each for first in range(1, points + 1) for each in die_at(search, first).wrong]
    assert any(violation.startswith(found_as) for each in wrong for violation in each.violations), wrong[:3]
