"""Tracers of whole sagas, in the saga-log."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from choreo.errors import DefinitionError
from choreo.observe.metrics import Metrics
from choreo.saga_log.tracers import METHODS, SagaEvent
from tests.unit.by_hand import LINE, a_broker, a_pen
from tests.unit.test_saga_log import quiet, running, serve, value


class Told:
    """A tracer that keeps what it is told."""

    def __init__(self, *, is_async: bool) -> None:
        self.events: list[SagaEvent] = []
        for name in METHODS:
            setattr(self, name, self._hear if is_async else self.events.append)

    async def _hear(self, event: SagaEvent) -> None:
        await asyncio.sleep(0)
        self.events.append(event)


class Broken:
    def saga_started(self, _: SagaEvent) -> None:
        raise RuntimeError("the screen is dark")

    async def saga_completed(self, _: SagaEvent) -> None:
        raise RuntimeError("still dark")


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_tracer_is_told_of_start_compensations_and_outcome_in_order(*, is_async: bool) -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    told = Told(is_async=is_async)
    async with running(broker, LINE, tracers=[told]) as log:
        await pen.start("s")
        await pen.completed("s", "a")
        await pen.completed("s", "b")
        await pen.failed("s", "c")
        await serve(pen, log)
    assert [(each.kind, each.step) for each in told.events] == [
        ("saga_started", ""),
        ("compensating", "b"),
        ("compensating", "a"),
        ("saga_compensated", ""),
    ]
    started, *_, ended = told.events
    assert started.steps == ("a", "b", "c")
    assert ended.duration_s >= 0
    assert ended.failure is not None
    assert {each.saga_id for each in told.events} == {"s"}


async def test_a_tracer_is_told_at_what_a_saga_is_stuck_and_what_remains() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    told = Told(is_async=True)
    async with running(broker, LINE, tracers=[told]) as log:
        await pen.start("s")
        await pen.completed("s", "a")
        await pen.completed("s", "b")
        await pen.failed("s", "c")
        await quiet(pen, log)
        await pen.compensation_failed("s", "b")
        await quiet(pen, log)
    stuck = told.events[-1]
    assert (stuck.kind, stuck.step, stuck.remaining) == ("saga_stuck", "b", ("b", "a"))
    assert stuck.failure is not None


async def test_a_tracer_that_fails_harms_no_saga_and_no_other_tracer() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    told, metrics = Told(is_async=True), Metrics()
    async with running(broker, LINE, tracers=[Broken(), told], metrics=metrics) as log:
        await pen.whole_line("s")
        await quiet(pen, log)
    assert [each.kind for each in told.events] == ["saga_started", "saga_completed"]
    assert value(metrics, "choreo_observer_errors_total", kind="tracer") == 2


async def test_what_was_told_is_not_told_again_after_a_restart() -> None:
    broker = await a_broker(LINE)
    pen = await a_pen(broker, LINE)
    first, second = Told(is_async=True), Told(is_async=True)
    async with running(broker, LINE, tracers=[first]) as log:
        await pen.whole_line("s")
        await quiet(pen, log)
    async with running(broker, LINE, tracers=[second]) as log:
        await quiet(pen, log)
    assert len(first.events) == 2
    assert second.events == []


async def test_an_object_without_a_method_of_a_tracer_is_refused() -> None:
    broker: Any = await a_broker(LINE)
    with pytest.raises(DefinitionError, match="has none of the methods"):
        async with running(broker, LINE, tracers=[object()]):
            pass
