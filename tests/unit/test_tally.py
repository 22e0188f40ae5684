"""Plain numbers of the hot path show up in the metrics, whenever somebody looks at those."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from choreo.observe.tally import Tallies


def test_counts_are_in_the_metric_whenever_it_is_looked_at() -> None:
    registry = CollectorRegistry(auto_describe=True)
    tallies = Tallies(registry)
    tally = tallies.of(Counter("seen", "What was seen.", ["kind"], registry=registry).labels("kite"))

    assert registry.get_sample_value("seen_total", {"kind": "kite"}) == 0
    tally.inc()
    tally.inc(2)
    assert registry.get_sample_value("seen_total", {"kind": "kite"}) == 3
    assert registry.get_sample_value("seen_total", {"kind": "kite"}) == 3, "looking counts nothing"
    tally.inc()
    assert registry.get_sample_value("seen_total", {"kind": "kite"}) == 4


def test_two_tallies_of_a_counter_add_up() -> None:
    registry = CollectorRegistry(auto_describe=True)
    tallies = Tallies(registry)
    counter = Counter("seen", "What was seen.", registry=registry)

    tallies.of(counter).inc()
    tallies.of(counter).inc(4)

    assert registry.get_sample_value("seen_total") == 5


def test_observations_fall_into_the_buckets_that_the_histogram_would_choose() -> None:
    bounds = (0.1, 1.0, 10.0)
    registry = CollectorRegistry(auto_describe=True)
    tallies = Tallies(registry)
    told = Histogram("told", "By a tally.", registry=registry, buckets=bounds)
    shown = Histogram("shown", "By itself.", registry=registry, buckets=bounds)
    observations = tallies.observations(told, bounds)
    for value in (0.0, 0.1, 0.100001, 1.0, 7.0, 10.0, 11.0):
        observations.observe(value)
        shown.observe(value)

    def of(name: str) -> list[float | None]:
        buckets = [registry.get_sample_value(f"{name}_bucket", {"le": le}) for le in ("0.1", "1.0", "10.0", "+Inf")]
        return [*buckets, registry.get_sample_value(f"{name}_count"), registry.get_sample_value(f"{name}_sum")]

    assert of("told") == of("shown")
    assert of("told") == of("shown"), "looking observes nothing"
