"""Every crash point of a scenario, alone and in pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.crash_points.scenarios import ALL, Scenario
from tests.crash_points.world import run


class Wrong(NamedTuple):
    """A run in which something was wrong, how to see it again, and where the processes died."""

    scenario: str
    planned: tuple[int, ...]
    only_effects: bool
    deaths: tuple[str, ...]
    violations: tuple[str, ...]

    def __str__(self) -> str:
        again = f"--only '{self.scenario}' --at {','.join(map(str, self.planned))}"
        return (
            f"{self.scenario}: {', '.join(self.deaths)}: {self.violations[0][:500]}\n"
            f"again: python -m tests.crash_points {again}{' --effects' if self.only_effects else ''}"
        )


class Tried(NamedTuple):
    """How many runs there were, and what was wrong in them."""

    runs: int
    wrong: tuple[Wrong, ...]


class Search(NamedTuple):
    """A scenario, and whether its crash points are all awaits or only what has an effect."""

    scenario: str
    only_effects: bool
    pairs: bool = False


def points_of(search: Search) -> int:
    """How many crash points the scenario has when nobody dies. Raises ``AssertionError`` if even that goes wrong."""
    undisturbed = run(ALL[search.scenario], only_effects=search.only_effects)
    assert not undisturbed.violations, undisturbed
    return undisturbed.points


def die_at(search: Search, first: int) -> Tried:
    """The run that dies at one point, and if pairs are asked for, those that die once more at each point after it."""
    scenario, runs, wrong = ALL[search.scenario], 0, []
    for planned in _plans(scenario, search, first):
        seen = run(scenario, frozenset(planned), only_effects=search.only_effects)
        if len(seen.deaths) < len(planned):
            break  # the run has come to its end before
        runs += 1
        if seen.violations:
            wrong.append(Wrong(search.scenario, planned, search.only_effects, seen.deaths, seen.violations))
    return Tried(runs, tuple(wrong))


def _plans(scenario: Scenario, search: Search, first: int) -> Iterator[tuple[int, ...]]:
    yield (first,)
    second = first
    while search.pairs:
        second += 1
        yield (first, second)
