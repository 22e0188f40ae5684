"""A simulation that finds nothing proves nothing: each of these builds is broken, and is found out."""

from __future__ import annotations

import pytest

from tests.simulation.broken import BROKEN, broken
from tests.simulation.world import simulate

SAGAS = 10

FOUND_WITHIN_SEEDS = {
    "commit_before_acknowledgement": 10,
    "random_run_ids": 10,
    "no_scan_on_assignment": 10,
    "no_memory_of_answers": 20,
    "timers_lost_on_restart": 100,
    "store_leads_the_log": 20,
    "owed_not_sent_on_takeover": 40,
    "lanes_not_serial": 10,
    "reject_is_always_certain": 100,
}

FOUND_AS = {
    "commit_before_acknowledgement": ("S13",),
    "random_run_ids": ("S8",),
    "no_scan_on_assignment": ("S7",),
    "no_memory_of_answers": ("S7",),
    "timers_lost_on_restart": ("L1",),
    "store_leads_the_log": ("S12", "S8", "S1", "L1"),
    "owed_not_sent_on_takeover": ("L1",),
    "lanes_not_serial": ("R3",),
    "reject_is_always_certain": ("S3", "S2"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_build_is_found_out(name: str) -> None:
    with broken(name):
        for seed in range(FOUND_WITHIN_SEEDS[name]):
            violations = simulate(seed, sagas=SAGAS).violations
            if any(violation.startswith(FOUND_AS[name]) for violation in violations):
                return
    pytest.fail(f"{name} was not found out within {FOUND_WITHIN_SEEDS[name]} seeds")


def test_every_broken_build_is_tried() -> None:
    assert FOUND_WITHIN_SEEDS.keys() == FOUND_AS.keys() == BROKEN.keys()
