"""The story of a saga as lines of the log."""

from __future__ import annotations

import io
import logging
from typing import Any

import msgspec
import pytest

from choreo.contract import Retries, Saga, Step
from choreo.messages.records import CompensationFailed, StepCompensated, StepCompleted, StepFailed
from choreo.observe.log import JsonFormatter
from choreo.observe.log_tracer import LogTracer
from choreo.step import Context, Reject, Service
from tests.unit.step_world import compensate, completed, make_world, payment, running, until_committed
from tests.unit.test_step_outcome import saga_compensated, saga_completed


class Lines:
    """A logger whose lines can be read back."""

    def __init__(self) -> None:
        self.output = io.StringIO()
        self.logger = logging.getLogger(f"tests.story.{id(self)}")
        self.logger.setLevel(logging.INFO)
        self.logger.propagate = False
        handler = logging.StreamHandler(self.output)
        handler.setFormatter(JsonFormatter())
        self.logger.addHandler(handler)

    def tracer(self) -> LogTracer:
        return LogTracer(self.logger)

    def read(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(line) for line in self.output.getvalue().splitlines()]

    def events(self) -> list[tuple[str, str]]:
        return [(line["event"], line["level"]) for line in self.read()]


@pytest.fixture
def lines() -> Lines:
    return Lines()


async def test_a_step_is_told_with_its_duration(lines: Lines) -> None:
    world, service = await make_world(), payment()
    service.trace(lines.tracer())
    async with running(world, service):
        await world.send(completed())
        await world.answer(StepCompleted)
    started, ended = lines.read()
    about = {"service": "payment", "saga": "order", "saga_id": "s-1", "step": "charge_card", "round": 1, "attempt": 1}
    assert {**started, **about, "event": "step_started"} == started
    assert {**ended, **about, "event": "step_completed", "result": "ok"} == ended
    assert ended["duration_ms"] >= 0


async def test_retries_and_the_failure_are_warnings_with_the_reason(lines: Lines) -> None:
    saga = Saga("order", Step("charge_card", retries=Retries(2, backoff_ms_base=1, backoff_ms_max=1)))
    service = Service("payment", tracers=[lines.tracer()])

    @service.step(saga, "charge_card")
    def charge(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise LookupError("no card")
        raise Reject("not enough money", "declined")

    world = await make_world(saga)
    async with running(world, service):
        await world.start(contract=saga)
        await world.answer(StepFailed)
    assert lines.events() == [("step_started", "INFO"), ("step_retried", "WARNING"), ("step_failed", "WARNING")]
    assert lines.read()[-1]["message"] == "step_failed charge_card: declined: not enough money"
    assert lines.read()[-1]["result"] == "rejected"


@pytest.mark.parametrize(
    ("fails", "words"),
    [(False, ["compensating", "step_compensated"]), (True, ["compensating", "compensation_failed"])],
)
async def test_every_compensation_is_told_by_step(lines: Lines, fails: bool, words: list[str]) -> None:
    def refund() -> None:
        if fails:
            raise LookupError

    world, service = await make_world(), payment(undo=refund)
    service.trace(lines.tracer())
    async with running(world, service):
        await world.send(compensate())
        await world.answers((StepCompensated, CompensationFailed))
    assert [line["event"] for line in lines.read()] == words
    assert {line["step"] for line in lines.read()} == {"charge_card"}


async def test_outcomes_are_told_with_what_they_come_from(lines: Lines) -> None:
    world, service = await make_world(), payment()
    service.trace(lines.tracer())
    async with running(world, service):
        await world.send(saga_completed("s-1"))
        await until_committed(world)
        await world.send(saga_compensated("s-2"))
        await until_committed(world)
        await world.send(saga_compensated("s-3", cause="cancelled", failure=None, step=None))
        await until_committed(world)
    assert [(line["event"], line["message"]) for line in lines.read()] == [
        ("saga_completed", "saga completed"),
        ("saga_compensated", "saga compensated: declined at charge_card"),
        ("saga_compensated", "saga cancelled"),
    ]
