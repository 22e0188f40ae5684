"""The handler of compensation errors: asked when all attempts have failed, before the saga is stuck."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from choreo.contract import Retries, Saga, Step
from choreo.errors import DefinitionError
from choreo.messages.records import CompensationFailed, StepCompensated
from choreo.observe.events import AttemptEvent
from choreo.step import CompensationContext, CompensationError, Resolved, RetryLater, Service, Stuck
from tests.unit.step_world import ORDER, Running, compensate, make_world, running, until, until_committed, value

AT_ONCE = Retries(1, backoff_ms_base=1, backoff_ms_max=1)
TWICE = Saga("order", Step("charge_card", compensation="refund_card", compensation_retries=AT_ONCE, timeout="100ms"))

Reply = StepCompensated | CompensationFailed


class Refund:
    """A compensation that fails so often, then works."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    def __call__(self, ctx: CompensationContext) -> None:
        self.calls += 1
        if self.calls <= self.failures:
            raise LookupError(f"failure {self.calls}")


def service_of(refund: Any, on_error: Any) -> Service:
    service = Service("payment")
    service.step(TWICE, "charge_card")(lambda: None)
    service.compensation(TWICE, "charge_card")(refund)
    if on_error is not None:
        service.on_compensation_error(TWICE)(on_error)
    return service


async def answer_of(refund: Any, on_error: Any, **changes: Any) -> tuple[Reply, float | None]:
    """The answer to one Compensate, and how many handlers of errors have failed."""
    world = await make_world(TWICE)
    async with running(world, service_of(refund, on_error)) as handle:
        await world.send(compensate(**changes))
        reply: Reply = (await world.answers((StepCompensated, CompensationFailed)))[0]
        await until_committed(world)
        return reply, errors_of(handle)


def errors_of(handle: Running) -> float | None:
    return value(handle, "choreo_observer_errors_total", kind="compensation_error_handler")


@pytest.mark.parametrize("handler_is_async", [True, False])
async def test_it_is_told_the_error_what_remains_and_the_context(handler_is_async: bool) -> None:
    told: list[CompensationError] = []

    def stuck(event: CompensationError) -> Stuck:
        told.append(event)
        return Stuck()

    async def stuck_async(event: CompensationError) -> None:
        told.append(event)

    reply, _ = await answer_of(
        Refund(9),
        stuck_async if handler_is_async else stuck,
        generation=2,
        remaining=("reserve_stock", "check"),
    )
    assert isinstance(reply, CompensationFailed)
    (event,) = told
    assert (event.saga, event.version, event.saga_id, event.step, event.round) == ("order", 1, "s-1", "charge_card", 1)
    assert (event.generation, event.attempts, event.asked) == (2, 2, 1)
    assert event.remaining == ("reserve_stock", "check")
    assert isinstance(event.error, LookupError)
    assert event.failure == reply.failure
    assert (event.context.effect, event.context.step) == ({"charge": "c-1"}, "charge_card")
    assert event.context.time_left_s() > 0


async def test_it_is_not_asked_while_attempts_are_left_or_when_one_succeeds() -> None:
    told: list[CompensationError] = []
    reply, _ = await answer_of(Refund(1), told.append)
    assert isinstance(reply, StepCompensated)
    assert not told


async def test_without_a_handler_a_failed_compensation_is_said_at_once() -> None:
    reply, _ = await answer_of(Refund(9), None)
    assert isinstance(reply, CompensationFailed)


async def test_resolved_sends_the_saga_on_back() -> None:
    reply, errors = await answer_of(Refund(9), lambda event: Resolved())
    assert isinstance(reply, StepCompensated)
    assert (reply.undone, reply.verdict, reply.attempts, errors) == (True, "proceed", 2, 0)


async def test_retry_later_gives_a_fresh_set_of_attempts() -> None:
    refund = Refund(3)
    runs: list[tuple[str, int]] = []

    class Runs:
        async def before_compensation(self, event: AttemptEvent) -> None:
            runs.append((event.run, event.attempt))

    asked: list[int] = []

    async def later(event: CompensationError) -> RetryLater:
        asked.append(event.asked)
        return RetryLater("10ms")

    world = await make_world(TWICE)
    service = service_of(refund, later)
    service.trace(Runs())
    async with running(world, service):
        await world.send(compensate())
        reply = await world.answer(StepCompensated)
    assert (reply.attempts, asked) == (4, [1])
    assert [attempt for _, attempt in runs] == [1, 2, 1, 2]
    assert len({run for run, _ in runs}) == 2
    assert reply.run == runs[-1][0]
    assert reply.duration_ms >= 10


async def test_it_is_asked_again_after_each_set_and_may_change_its_mind() -> None:
    refund = Refund(99)
    reply, _ = await answer_of(refund, lambda event: RetryLater(0.001) if event.asked < 3 else Stuck())
    assert isinstance(reply, CompensationFailed)
    assert (reply.attempts, refund.calls, reply.failure.message) == (6, 6, "failure 6")


async def test_a_retry_past_the_compensations_due_is_stuck_at_once() -> None:
    began = time.monotonic()
    reply, _ = await answer_of(Refund(9), lambda event: RetryLater("1h"), deadline_ms=60_000)
    assert isinstance(reply, CompensationFailed)
    assert reply.attempts == 2
    assert time.monotonic() - began < 10


async def test_another_saga_is_served_while_one_waits() -> None:
    world = await make_world(TWICE)
    refund = Refund(2)
    async with running(world, service_of(refund, lambda event: RetryLater("20s"))):
        await world.send(compensate("waits"))
        await until(lambda: refund.calls == 2)
        await world.send(compensate("goes-on"))
        assert (await world.answer(StepCompensated)).saga_id == "goes-on"


@pytest.mark.parametrize("wrong", [LookupError("x"), SystemExit(1), asyncio.CancelledError(), "nonsense"])
async def test_a_crash_in_it_is_stuck_logged_and_counted(wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def crash(event: CompensationError) -> Any:
        if isinstance(wrong, BaseException):
            raise wrong
        return wrong

    reply, errors = await answer_of(Refund(9), crash)
    assert isinstance(reply, CompensationFailed)
    assert reply.failure.exception_type == "builtins.LookupError", "of the compensation, not of its handler"
    assert errors == 1
    assert "the handler of compensation errors failed: the saga is stuck" in caplog.messages


async def test_one_that_hangs_is_stuck_after_the_steps_timeout() -> None:
    release = threading.Event()

    async def hang(event: CompensationError) -> None:
        await asyncio.sleep(60)

    def hang_in_thread(event: CompensationError) -> None:
        release.wait(20)

    _, errors = await answer_of(Refund(9), hang)
    assert errors == 1
    world = await make_world(TWICE)
    async with running(world, service_of(Refund(9), hang_in_thread)) as handle:
        await world.send(compensate())
        await world.answer(CompensationFailed)
        assert errors_of(handle) == 1
        assert not await world.committed(), "finished means that every handler has ended"
        release.set()
        await until_committed(world)


async def test_an_answer_that_is_none_is_an_error_of_the_compensation_too() -> None:
    told: list[CompensationError] = []

    def ask(event: CompensationError) -> Resolved:
        told.append(event)
        return Resolved()

    reply, _ = await answer_of(lambda: "done", ask)
    assert isinstance(reply, StepCompensated)
    assert (told[0].error, told[0].failure.code) == (None, "malformed_answer")


async def test_a_crash_of_the_service_while_it_waits_begins_again_with_the_attempts() -> None:
    world, refund = await make_world(TWICE), Refund(99)
    async with running(world, service_of(refund, lambda event: RetryLater("20s"))) as handle:
        await world.send(compensate())
        await until(lambda: refund.calls == 2)
        await handle.crash()
    async with running(world, service_of(Refund(0), None)):
        reply = await world.answer(StepCompensated)
    assert reply.attempts == 1


def test_there_is_one_for_all_versions_of_a_saga() -> None:
    service = service_of(Refund(0), None)

    def one(event: CompensationError) -> None: ...

    service.on_compensation_error(TWICE)(one)
    service.on_compensation_error(TWICE)(one)
    with pytest.raises(DefinitionError, match="saga 'order' has another one already"):
        service.on_compensation_error(TWICE)(lambda event: None)
    with pytest.raises(DefinitionError, match="must be callable with a CompensationError alone"):
        service.on_compensation_error(TWICE)(lambda: None)
    with pytest.raises(DefinitionError, match="held with another content"):
        service.on_compensation_error(ORDER)(one)


@pytest.mark.parametrize("delay", ["soon", -1, 0])
def test_a_delay_that_is_none_is_refused(delay: Any) -> None:
    with pytest.raises(ValueError, match="duration"):
        RetryLater(delay)
