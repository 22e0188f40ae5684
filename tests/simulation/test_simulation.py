"""The production runtimes in a world where everything goes wrong, on a few seeds; ``make simulate`` runs many."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.simulation.faults import KINDS
from tests.simulation.report import failure
from tests.simulation.world import simulate

SEEDS = 200
SAGAS = 8
AT_ONCE = 10


@pytest.fixture(scope="module")
def fired() -> Counter[str]:
    return Counter()


@pytest.fixture(scope="module")
def cancelled() -> Counter[str]:
    return Counter()


@pytest.fixture(scope="module")
def children() -> Counter[str]:
    return Counter()


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_every_promise_is_kept_whatever_goes_wrong(
    first: int, fired: Counter[str], cancelled: Counter[str], children: Counter[str]
) -> None:
    for seed in range(first, first + AT_ONCE):
        result = simulate(seed, sagas=SAGAS)
        assert not result.violations, failure(result, SAGAS)
        assert result.sagas == SAGAS
        fired.update(result.fired)
        cancelled.update(result.cancelled)
        children.update(result.children)


def test_steps_were_cancelled_in_their_middle(cancelled: Counter[str]) -> None:
    assert not cancelled or cancelled["unknown"] > 10


def test_steps_that_are_sagas_were_completed_and_undone(children: Counter[str]) -> None:
    assert not children or min(children["completed"], children["compensated"]) > 50


def test_every_kind_of_fault_has_happened(fired: Counter[str]) -> None:
    if sum(fired.values()):  # the seeds above were run too
        assert [kind for kind in KINDS if not fired[kind]] == []


@pytest.mark.parametrize("seed", [3, 15, 20])
def test_the_same_seed_takes_the_same_course(seed: int) -> None:
    lines: list[str] = []
    again: list[str] = []

    first = simulate(seed, sagas=SAGAS, say=lines.append)
    second = simulate(seed, sagas=SAGAS, say=again.append)

    assert lines == again
    assert first == second


def test_the_course_does_not_depend_on_the_hashes_of_a_process() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--seed", "13", "--sagas", str(SAGAS), "--trace"]

    courses = [
        subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": hashes}, capture_output=True, check=True).stdout
        for hashes in ("1", "2")
    ]

    assert courses[0].partition(b"seed 13: log ")[0] == courses[1].partition(b"seed 13: log ")[0]
    assert b"seed 13: log " in courses[0]


def test_other_seeds_take_other_courses() -> None:
    assert simulate(1, sagas=2).digest != simulate(2, sagas=2).digest
