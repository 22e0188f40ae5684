"""The simulated world with more in it: services with inboxes, operators who pause (rule 24), and the promises there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from choreo.broker.port import Message
from choreo.inbox.table import Row
from choreo.step import recorded
from choreo.step.pauses import Pauses
from tests.simulation.inboxes import PER_CALL
from tests.simulation.report import failure
from tests.simulation.world import Result, simulate
from tests.unit.core.switches import decide_all_the_same

SAGAS = 8
AT_ONCE = 10


class World(NamedTuple):
    """What is in it besides, and how many seeds of it are run."""

    inbox: bool = False
    pauses: bool = False
    seeds: int = 30

    def run(self, seed: int, **options: Any) -> Result:
        return simulate(seed, sagas=SAGAS, inbox=self.inbox, pauses=self.pauses, **options)

    def sees(self, seeds: int, *kinds: str) -> bool:
        """Whether one of the invariants is violated in some run."""
        runs = (self.run(seed) for seed in range(seeds))
        return any(found.startswith(kinds) for run in runs for found in run.violations)


INBOXES, PAUSES = World(inbox=True), World(pauses=True, seeds=40)
WORLDS = {"inboxes": INBOXES, "pauses": PAUSES}


@pytest.fixture(scope="module")
def fired() -> Counter[str]:
    return Counter()


@pytest.fixture(scope="module")
def paused() -> Counter[str]:
    return Counter()


@pytest.mark.parametrize(
    ("name", "first"), [(name, first) for name, world in WORLDS.items() for first in range(0, world.seeds, AT_ONCE)]
)
def test_every_promise_is_kept_whatever_goes_wrong(
    name: str, first: int, fired: Counter[str], paused: Counter[str]
) -> None:
    for seed in range(first, first + AT_ONCE):
        result = WORLDS[name].run(seed)
        assert not result.violations, failure(result, SAGAS)
        assert result.sagas == SAGAS
        fired.update(result.fired)
        paused.update(result.paused)


def test_every_kind_of_fault_of_a_database_has_happened(fired: Counter[str]) -> None:
    if sum(fired.values()):  # the seeds above were run too
        assert [kind for kind in PER_CALL if not fired[kind]] == []


def test_sagas_and_types_were_paused_and_triggers_held(paused: Counter[str]) -> None:
    assert not paused or min(paused["saga"], paused["type"], paused["held"]) > 20


def test_pauses_change_nothing_where_there_are_none() -> None:
    assert simulate(5, sagas=2).paused == Counter()


def test_the_same_seed_takes_the_same_course_with_inboxes() -> None:
    lines: list[str] = []
    again: list[str] = []
    INBOXES.run(4, say=lines.append)
    INBOXES.run(4, say=again.append)
    assert lines == again


def forgetful_inbox() -> AbstractContextManager[Any]:
    """It does not know what was undone."""
    plan_undo = recorded.plan_undo

    def plan(row: Row | None, job: Any, *, is_inside: bool) -> recorded.Undo:
        known = row and row._replace(state="completed" if row.state == "undone" else row.state, answer=None)
        return plan_undo(known, job, is_inside=is_inside)

    return patch.object(recorded, "plan_undo", plan)


def worker_that_holds_for_ever() -> AbstractContextManager[Any]:
    def see(self: Pauses, message: Message) -> None:
        self._is_type_paused = True

    return patch.object(Pauses, "see", see)


BROKEN: dict[str, tuple[World, int, Callable[[], AbstractContextManager[Any]], tuple[str, ...]]] = {
    "an inbox that does not look": (
        INBOXES,
        12,
        lambda: patch.object(recorded, "recorded_outcome", lambda row, subject: None),
        ("S4", "S7"),
    ),
    "an inbox that forgets what was undone": (INBOXES, 12, forgetful_inbox, ("S4", "S7")),
    "a saga-log that decides in a pause": (
        PAUSES,
        40,
        lambda: patch.object(import_module("choreo.core.fold"), "decide", decide_all_the_same),
        ("S6",),
    ),
    "a worker that holds for ever": (PAUSES, 40, worker_that_holds_for_ever, ("L1", "S13")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_build_is_found_out(name: str) -> None:
    world, seeds, broken, kinds = BROKEN[name]
    with broken():
        assert world.sees(seeds, *kinds)
