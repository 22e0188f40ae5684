"""The model of large deployments: right where there is a formula, and its page as the costs that are kept say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scale
from benchmarks.queueing import Down, Group, simulate
from benchmarks.scale import Costs, costs_of, groups_of, headroom, plan, simulate_plan

COSTS = Costs(
    service_us=400, saga_log_us=800, broker_us=600, client_us=400, dropped_share=0.1, hop_ms=2.5, machine="a test"
)


@pytest.mark.parametrize("use", [0.5, 0.8])
@pytest.mark.parametrize("is_exponential", [True, False])
def test_a_single_queue_waits_as_pollaczek_and_khinchine_say(*, use: float, is_exponential: bool) -> None:
    """M/M/1 and M/D/1: the mean wait is (1 + c²)/2 · use/(1 - use) · service time, c the coefficient of variation."""
    service_s = 0.001
    seen = simulate(
        [Group("one", 1, service_s, 0.0, frozenset({0}))],
        records=2,
        sagas_per_s=use / service_s,
        seconds=150,
        is_exponential=is_exponential,
        seed=7,
    )
    mean_wait_s = sum(seen.latencies_s) / len(seen.latencies_s) - service_s
    variation = 1 if is_exponential else 0
    assert mean_wait_s == pytest.approx((1 + variation) / 2 * use / (1 - use) * service_s, rel=0.06)
    assert seen.busy["one"] == pytest.approx(use, rel=0.02)


def test_a_chain_without_waiting_takes_its_parts() -> None:
    groups = [Group(str(place), 8, 0.001, 0.0, frozenset({place})) for place in range(4)]
    seen = simulate(groups, records=5, sagas_per_s=0.5, seconds=200, wire_s=0.01, is_exponential=False)
    assert seen.percentile_s(0.5) == pytest.approx(4 * 0.001 + 5 * 0.01)


def test_who_was_away_catches_up_with_what_is_left_of_its_time() -> None:
    """While it is away work for use · away comes in, and 1 - use of its time is left for it."""
    use, away_s = 0.5, 10.0
    seen = simulate(
        [Group("one", 1, 0.002, 0.0, frozenset({0}))],
        records=2,
        sagas_per_s=use / 0.002,
        seconds=60,
        down=Down("one", 5.0, 5.0 + away_s),
    )
    assert seen.recovered_s == pytest.approx(away_s / (1 - use), rel=0.1)


def test_the_same_seed_gives_the_same_figures() -> None:
    made = plan(1_000, COSTS)
    assert simulate_plan(made, COSTS) == simulate_plan(made, COSTS)


def test_a_plan_uses_its_processes_as_it_says() -> None:
    for size in scale.SIZES:
        made = plan(size, COSTS)
        each = size / made.cells
        assert each * COSTS.saga_log_us / 1e6 / made.saga_logs <= scale.USE
        assert min(headroom(made, COSTS))[0] >= 1, "nothing is broken from the start"
    middle = plan(100_000, COSTS)
    seen = simulate_plan(middle, COSTS)
    assert seen.busy["saga-log"] == pytest.approx(scale.USE, abs=0.04)
    assert seen.busy["service 0"] == pytest.approx(scale.USE, abs=0.04)


def test_the_groups_of_a_slice_cost_what_was_measured() -> None:
    services = groups_of(1, 1, COSTS)
    a_saga_us = [group.handled_s * 1e6 + (scale.RECORDS - 1) * group.dropped_s * 1e6 for group in services]
    assert a_saga_us == pytest.approx([400, 400, 400, 800])


def test_costs_are_taken_from_a_run_of_the_benchmark(tmp_path: Path) -> None:
    about = {"layout": scale.PER_SERVICE}
    found = [
        {"benchmark": "machine", "cores": 2, "python": "3.11.7"},
        about | {"benchmark": "wire limit", "load": "1 in flight", "p50_ms": 12.5},
        about
        | {
            "benchmark": "3 steps",
            "load": "200 in flight",
            "cpu_us_each": {
                "inventory": 300,
                "payment": 400,
                "shipping": 500,
                "saga-log": 700,
                "broker": 600,
                "load": 350,
            },
        },
        {"benchmark": "service by itself", "cpu_us_handled": 80.0, "cpu_us_dropped": 4.0},
    ]
    results, kept = tmp_path / "results.jsonl", tmp_path / "costs.json"
    results.write_text("".join(f"{json.dumps(each)}\n" for each in found))
    costs = scale.keep(results, kept)
    assert costs == scale.load(kept)
    assert (costs.service_us, costs.saga_log_us, costs.hop_ms, costs.dropped_share) == (400, 700, 2.5, 0.05)
    with pytest.raises(ValueError, match="the results have no '3 steps'"):
        costs_of(found[:2])


def test_the_page_is_as_the_costs_that_are_kept_say() -> None:
    """All but what is simulated, which takes a while: its head, and the counts."""
    page, costs = scale.PAGE.read_text(), scale.load()
    assert f"of each service {costs.service_us:g} µs, of the saga-log {costs.saga_log_us:g} µs" in page
    plans = [plan(size, costs) for size in scale.SIZES]
    for name, cells in (
        ("processes (cores) of the saga-log", [each.saga_logs for each in plans]),
        ("partitions", [each.partitions for each in plans]),
    ):
        assert f"| {name} | {' | '.join(map(str, cells))} |" in page, "write it again: python -m benchmarks.scale"
