"""Gauges of the saga-log: sagas are counted when somebody asks, not at each of their records."""

from __future__ import annotations

from choreo.core import Instance, Phase, SagaState
from choreo.core.state import Pause
from choreo.saga_log.census import Census


class Sagas(dict[str, SagaState]):
    """Sagas that do not rest, and what counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.census = Census(self.get)

    def put(self, saga_id: str, **fields: object) -> None:
        self[saga_id] = SagaState(saga_id, start="s", **fields)  # type: ignore[arg-type]
        self.census.changed.add(saga_id)

    def rest(self, saga_id: str) -> None:
        del self[saga_id]
        self.census.drop(saga_id)


def test_a_saga_is_counted_in_the_phase_that_it_has_when_somebody_asks() -> None:
    sagas = Sagas()
    sagas.put("a", started_ms=5)
    sagas.put("a", started_ms=5, failing=True)
    sagas.put("b", started_ms=3)
    assert sagas.census.phases == {Phase.COMPENSATING: 1, Phase.FORWARD: 1}
    sagas.put("a", started_ms=5, failing=True, instances={("x", 1): Instance(stuck=True)})
    assert +sagas.census.phases == {Phase.STUCK: 1, Phase.FORWARD: 1}
    assert sagas.census.stuck == ["a"]


def test_a_saga_that_rests_is_counted_no_more_whether_it_had_been_or_not() -> None:
    sagas = Sagas()
    sagas.put("a", started_ms=5, pause=Pause(6))
    assert (sagas.census.paused, sagas.census.oldest_start_ms()) == (1, 5)
    sagas.put("b", started_ms=3)
    sagas.rest("a")
    sagas.rest("b")
    assert sagas.census.phases.total() == sagas.census.paused == 0
    assert sagas.census.oldest_start_ms() is None


def test_the_oldest_start_is_that_of_a_saga_still_in_progress() -> None:
    sagas = Sagas()
    sagas.put("old", started_ms=1)
    for number in range(3_000):  # starts of sagas that are over do not pile up behind the oldest
        sagas.put(f"young-{number}", started_ms=10 + number)
        assert sagas.census.oldest_start_ms() == 1
        sagas.rest(f"young-{number}")
    assert len(sagas.census._starts) < 1_100
    sagas.rest("old")
    sagas.put("young", started_ms=9_000)
    assert sagas.census.oldest_start_ms() == 9_000
