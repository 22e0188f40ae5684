"""Outcome hooks: run on every outcome, in any service, at least once, and what they raise harms nobody."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import msgspec
import pytest

from choreo.contract import Saga, Step
from choreo.errors import DefinitionError, Undecodable
from choreo.messages.codec import encode
from choreo.messages.headers import JSON, make_headers
from choreo.messages.records import Failure, SagaCompensated, SagaCompleted, StepCompleted, Undone
from choreo.observe.events import OutcomeEvent
from choreo.step import Service
from tests.unit.step_world import (
    ORDER,
    QUICK,
    completed,
    make_world,
    of,
    payment,
    raw,
    running,
    until,
    until_committed,
    value,
)

FAILURE = Failure(kind="rejected", code="declined")


def saga_completed(saga_id: str = "s-1", version: int = 1) -> SagaCompleted:
    start = of(saga_id)["start"]
    effects = {"reserve_stock": raw({"shelf": 7}), "send_receipt": raw("sent")}
    return SagaCompleted(
        saga="order", version=version, saga_id=saga_id, start=start, result=raw("sent"), effects=effects
    )


def saga_compensated(saga_id: str = "s-1", **changes: Any) -> SagaCompensated:
    fields: dict[str, Any] = {"cause": "failed", "compensations": (), "step": "charge_card", "failure": FAILURE}
    return SagaCompensated(saga="order", version=1, saga_id=saga_id, start=of()["start"], **{**fields, **changes})


class Told:
    """A hook that remembers its events."""

    def __init__(self) -> None:
        self.events: list[OutcomeEvent] = []

    async def __call__(self, event: OutcomeEvent) -> None:
        self.events.append(event)


def audit(hook: Any, **settings: Any) -> Service:
    """A service that has only a hook."""
    service = Service("payment")
    service.on_outcome(ORDER, **settings)(hook)
    return service


async def test_a_service_may_have_only_hooks_and_they_run_on_both_outcomes() -> None:
    told, world = Told(), await make_world()
    async with running(world, audit(told)):
        await world.send(saga_completed("s-1"), traceparent=b"00-x")
        await world.send(saga_compensated("s-2", compensations=(Undone(step="reserve_stock", round=1, how="undone"),)))
        await until(lambda: len(told.events) == 2)
        await until_committed(world)
    good, bad = sorted(told.events, key=lambda event: event.saga_id)
    assert (good.saga, good.version, good.outcome, good.cancelled, good.resolved) == (
        "order",
        1,
        "completed",
        False,
        False,
    )
    assert good.effects == {"reserve_stock": {"shelf": 7}, "send_receipt": "sent"}
    assert good.effect("reserve_stock", dict[str, int]) == {"shelf": 7}
    assert (good.service, good.group, good.topic, good.offset) == ("payment", "choreo.payment", "choreo.order", 0)
    assert good.traceparent == "00-x"
    assert (bad.outcome, bad.cancelled, bad.step, bad.failure, bad.effects) == (
        "compensated",
        False,
        "charge_card",
        FAILURE,
        {},
    )
    assert [undone.step for undone in bad.compensations] == ["reserve_stock"]
    with pytest.raises(Undecodable):
        good.effect("send_receipt", int)


@pytest.mark.parametrize(("how", "resolved"), [("undone", False), ("skipped", True), ("resolved", True)])
async def test_a_hook_is_told_of_cancels_and_of_what_an_operator_resolved(how: Any, resolved: bool) -> None:
    told, world = Told(), await make_world()
    async with running(world, audit(told)):
        undone = (Undone(step="reserve_stock", round=1, how=how),)
        await world.send(
            saga_compensated(
                cause="cancelled", reason="no longer wanted", failure=None, step=None, compensations=undone
            )
        )
        await until(lambda: told.events)
    (event,) = told.events
    assert (event.cancelled, event.reason, event.resolved, event.failure) == (True, "no longer wanted", resolved, None)


async def test_hooks_run_beside_the_steps_of_a_service_and_each_for_itself() -> None:
    one, other, world = Told(), Told(), await make_world()
    service = payment()
    service.on_outcome(ORDER, name="one")(one)
    service.on_outcome(ORDER, name="other")(other)
    async with running(world, service):
        await world.send(completed())
        await world.send(saga_completed())
        await world.answer(StepCompleted)
        await until(lambda: one.events and other.events)
        await until_committed(world)


async def test_an_outcome_that_is_told_again_runs_no_hook_twice() -> None:
    told, world = Told(), await make_world()
    async with running(world, audit(told)):
        for _ in range(3):
            await world.send(saga_completed())
        await world.send(saga_completed("s-2"))
        await until_committed(world)
    assert sorted(event.saga_id for event in told.events) == ["s-1", "s-2"]


@pytest.mark.parametrize("error", [LookupError("x"), SystemExit(1), StopIteration(), asyncio.CancelledError()])
@pytest.mark.parametrize("hook_is_async", [True, False])
async def test_what_a_hook_raises_is_logged_counted_and_ignored(
    error: BaseException, hook_is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_async(event: OutcomeEvent) -> None:
        raise error

    def fail(event: OutcomeEvent) -> None:
        raise error

    told, world = Told(), await make_world()
    service = audit(fail_async if hook_is_async else fail, name="failing")
    service.on_outcome(ORDER)(told)
    async with running(world, service) as handle:
        await world.send(saga_completed())
        await until_committed(world)
        assert value(handle, "choreo_observer_errors_total", kind="hook") == 1
    assert len(told.events) == 1, "the others run all the same"
    assert "outcome hook 'failing' failed, which is ignored" in caplog.messages


async def test_the_offset_is_finished_only_when_the_hook_has_ended() -> None:
    began, may_end = asyncio.Event(), asyncio.Event()

    async def hook(event: OutcomeEvent) -> None:
        began.set()
        await may_end.wait()

    world = await make_world()
    async with running(world, audit(hook)):
        await world.send(saga_completed())
        await began.wait()
        await asyncio.sleep(0.1)
        assert not await world.committed()
        may_end.set()
        await until_committed(world)


async def test_a_hook_that_a_crash_interrupts_runs_again() -> None:
    began, world, told = asyncio.Event(), await make_world(), Told()

    async def hook(event: OutcomeEvent) -> None:
        began.set()
        await asyncio.sleep(60)

    async with running(world, audit(hook)) as handle:
        await world.send(saga_completed())
        await began.wait()
        await handle.crash()
    async with running(world, audit(told)):
        await until(lambda: told.events)


async def test_a_hook_past_its_timeout_is_cancelled_and_a_thread_is_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    release, world = threading.Event(), await make_world()

    async def slow(event: OutcomeEvent) -> None:
        await asyncio.sleep(60)

    def slow_in_thread(event: OutcomeEvent) -> None:
        release.wait(20)

    service = audit(slow, timeout="20ms", name="slow")
    service.on_outcome(ORDER, timeout="20ms", name="thread")(slow_in_thread)
    async with running(world, service) as handle:
        await world.send(saga_completed())
        await until(lambda: value(handle, "choreo_observer_errors_total", kind="hook") == 2)
        await asyncio.sleep(0.1)
        assert not await world.committed()
        release.set()
        await until_committed(world)
    assert "outcome hook 'thread' goes on in its thread past its time; its lane waits for it" in caplog.messages


async def test_a_hook_runs_for_every_version_and_once_where_it_is_bound_to_several() -> None:
    told, world = Told(), await make_world()
    newer = Saga("order", Step("reserve_stock"), version=2)
    service = audit(told)
    service.on_outcome(newer)(told)
    async with running(world, service):
        await world.send(saga_completed("s-1", version=1))
        await world.send(saga_completed("s-2", version=2))
        await world.send(saga_completed("s-3", version=3))
        await until_committed(world)
    assert sorted(event.version for event in told.events) == [1, 2, 3]


async def test_an_outcome_that_cannot_be_read_runs_no_hook_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    told, world = Told(), await make_world()
    record = saga_completed()
    headers = make_headers(record, source="/test", content_type=JSON)
    async with running(world, audit(told)) as handle:
        await world.send_raw("s-1", b"{", headers)
        await world.send_raw("s-1", encode(completed()), headers)
        foreign = msgspec.structs.replace(record, saga="other")
        await world.send_raw("s-1", encode(foreign), headers)
        await world.send(saga_completed("s-2"))
        await until_committed(world)
        assert value(handle, "choreo_observer_errors_total", kind="hook") == 3
    assert [event.saga_id for event in told.events] == ["s-2"]
    assert [entry.record.saga_id for entry in await world.log()] == ["s-1", "s-1", "s-2"], "and nothing is answered"


async def test_no_more_hooks_run_at_once_than_the_options_say() -> None:
    at_once, most, world = 0, 0, await make_world()

    async def hook(event: OutcomeEvent) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.005)
        at_once -= 1

    async with running(world, audit(hook), options=msgspec.structs.replace(QUICK, concurrency=2)):
        for number in range(6):
            await world.send(saga_completed(f"s-{number}"))
        await until_committed(world)
    assert most == 2


async def test_tracers_are_told_of_outcomes_of_the_services_sagas(caplog: pytest.LogCaptureFixture) -> None:
    class Tracer:
        def __init__(self, *, fails: bool) -> None:
            self.outcomes: list[str] = []
            self.fails = fails

        def on_outcome(self, event: OutcomeEvent) -> None:
            self.outcomes.append(event.outcome)
            if self.fails:
                raise LookupError

    failing, fine, world = Tracer(fails=True), Tracer(fails=False), await make_world()
    service = payment()
    service.trace(failing)
    service.trace(fine)
    caplog.set_level(logging.ERROR)
    async with running(world, service) as handle:
        await world.send(saga_completed())
        await world.send(saga_completed())
        await until_committed(world)
        assert value(handle, "choreo_observer_errors_total", kind="tracer") == 1
    assert failing.outcomes == fine.outcomes == ["completed"]


def test_what_cannot_be_a_hook_is_refused_with_all_reasons() -> None:
    service = audit(Told())
    with pytest.raises(DefinitionError) as wrong:
        service.on_outcome(ORDER, timeout="soon")(lambda: None)
    assert "it must be callable with an OutcomeEvent alone" in wrong.value.problems[0]
    assert "timeout: duration 'soon'" in wrong.value.problems[1]

    def generator(event: OutcomeEvent) -> Any:
        yield event

    with pytest.raises(DefinitionError, match="it is a generator"):
        service.on_outcome(ORDER)(generator)
    with pytest.raises(DefinitionError, match="another hook of saga 'order' has this name"):
        service.on_outcome(ORDER)(Told())
    with pytest.raises(DefinitionError, match="held with another content"):
        service.on_outcome(Saga("order", Step("other")))(lambda event: None)


async def test_two_services_must_hold_the_same_contract_also_where_one_has_only_hooks() -> None:
    world = await make_world()
    other = Service("audit")
    other.on_outcome(Saga("order", Step("other")))(Told())
    with pytest.raises(DefinitionError, match="service 'audit' holds saga 'order' version 1 with another content"):
        async with running(world, payment(), other):
            pass
