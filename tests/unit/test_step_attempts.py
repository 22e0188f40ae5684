"""Attempts: retries with backoff, timeouts, and the due that bounds them all."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest

from choreo.clock import SystemClock
from choreo.contract import Retries, Saga, Step
from choreo.messages.records import StepCompleted, StepFailed
from choreo.observe.metrics import Metrics
from choreo.step import Context, Options, Reject, Service
from choreo.step.attempts import Attempts
from choreo.step.counts import StepCounts
from choreo.step.handler import Handler
from choreo.step.lanes import Lane, Slots
from choreo.step.place import BrokerTime
from tests.unit.step_world import (
    World,
    a_job,
    compensate,
    completed,
    execute,
    make_world,
    running,
    started,
    until,
    until_committed,
    value,
)


def at_once(limit: int) -> Retries:
    return Retries(limit, backoff_ms_base=1, backoff_ms_max=1)


def flaky(**changes: Any) -> Saga:
    return Saga("order", Step("charge_card", **changes))


def service_of(saga: Saga, charge: Any) -> Service:
    service = Service("payment")
    service.step(saga, "charge_card")(charge)
    return service


async def outcome(saga: Saga, charge: Any, **settings: Any) -> StepCompleted | StepFailed:
    """The first answer to one start."""
    world = await make_world(saga)
    async with running(world, service_of(saga, charge), **settings):
        await world.send(started(contract=saga))
        return (await world.answers((StepCompleted, StepFailed)))[0]


async def test_a_crash_is_retried_with_the_same_input_and_idempotency_key_in_one_run() -> None:
    seen: list[tuple[Any, ...]] = []

    async def charge(order: dict[str, int], ctx: Context) -> str:
        seen.append((order, ctx.idempotency_key, ctx.run))
        if ctx.attempt < 3:
            raise OSError("bank is away")
        return "charged"

    answer = await outcome(flaky(retries=at_once(5)), charge)
    assert isinstance(answer, StepCompleted)
    assert answer.attempts == 3
    assert len(seen) == 3
    assert len(set(map(repr, seen))) == 1


async def test_a_step_fails_when_its_retries_are_used_up() -> None:
    calls: list[int] = []

    def charge(ctx: Context) -> None:
        calls.append(ctx.attempt)
        raise OSError("bank is away")

    answer = await outcome(flaky(retries=at_once(2)), charge)
    assert calls == [1, 2, 3]
    assert isinstance(answer, StepFailed)
    assert (answer.failure.kind, answer.effect, answer.attempts) == ("crashed", "unknown", 3)


async def test_a_reject_after_a_crash_does_not_know_what_the_crash_has_left() -> None:
    async def charge(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise OSError("connection lost, card perhaps charged")
        raise Reject("declined")

    answer = await outcome(flaky(retries=at_once(2)), charge)
    assert isinstance(answer, StepFailed)
    assert (answer.failure.kind, answer.effect, answer.attempts) == ("rejected", "unknown", 2)


async def test_backoff_that_would_pass_the_due_is_not_begun() -> None:
    saga = flaky(retries=Retries(5, backoff_ms_base=60_000, backoff_ms_max=60_000, jitter=False), deadline="30s")

    async def charge() -> None:
        raise OSError("bank is away")

    answer = await outcome(saga, charge)
    assert isinstance(answer, StepFailed)
    assert (answer.failure.kind, answer.attempts) == ("crashed", 1)


async def test_an_async_handler_is_cancelled_at_its_timeout_and_in_doubt() -> None:
    ended: list[str] = []

    async def charge() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    answer = await outcome(flaky(timeout="20ms"), charge)
    assert ended == ["cancelled"]
    assert isinstance(answer, StepFailed)
    assert (answer.failure.kind, answer.failure.code, answer.effect) == ("timed_out", "timeout", "unknown")
    assert answer.failure.message == "cancelled after its timeout of 0.02 s"


async def test_a_timeout_is_retried() -> None:
    async def charge(ctx: Context) -> str:
        if ctx.attempt == 1:
            await asyncio.sleep(60)
        return "charged"

    answer = await outcome(flaky(timeout="20ms", retries=at_once(1)), charge)
    assert isinstance(answer, StepCompleted)
    assert answer.attempts == 2


async def test_a_timeout_error_of_the_handlers_own_is_a_crash() -> None:
    async def charge() -> None:
        raise TimeoutError("the bank's, not ours")

    answer = await outcome(flaky(), charge)
    assert isinstance(answer, StepFailed)
    assert (answer.failure.kind, answer.failure.exception_type) == ("crashed", "builtins.TimeoutError")


async def test_a_handler_is_cancelled_when_its_step_is_due() -> None:
    left: list[float] = []

    async def charge(ctx: Context) -> None:
        left.append(ctx.time_left_s())
        await asyncio.sleep(60)

    saga = flaky(timeout="100ms", deadline="100ms", retries=3)
    answer = await outcome(saga, charge)
    assert isinstance(answer, StepFailed)
    assert (answer.failure.kind, answer.failure.code, answer.effect) == ("timed_out", "deadline", "unknown")
    assert left[0] <= 0.1


async def test_a_trigger_that_is_due_before_its_first_attempt_is_not_run() -> None:
    saga = flaky()
    world = await make_world(saga)
    calls: list[str] = []

    async with running(world, service_of(saga, lambda: calls.append("called"))):
        await world.send(execute(saga_due_ms=1_000))
        answer = await world.answer(StepFailed)
    assert calls == []
    assert (answer.failure.kind, answer.failure.code, answer.attempts) == ("timed_out", "deadline", 0)


async def test_the_time_left_of_a_redelivered_record_is_measured_from_the_newest_append_time() -> None:
    """Nobody compares two clocks: what the log itself says about the time is enough to see that a record is due."""
    saga = flaky(deadline="1m", timeout="1s")
    world = await make_world(saga)
    calls: list[str] = []
    world.broker._log.now_ms = lambda: 1_000_000
    await world.send(started("old", contract=saga))
    world.broker._log.now_ms = lambda: 1_070_000
    await world.send(started("new", contract=saga))
    async with running(world, service_of(saga, lambda ctx: calls.append(ctx.saga_id))):
        failed = await world.answer(StepFailed)
        done = await world.answer(StepCompleted)
    assert (failed.saga_id, failed.failure.code) == ("old", "deadline")
    assert done.saga_id == "new"
    assert calls == ["new"]


def test_the_brokers_time_is_the_latest_that_any_record_proves() -> None:
    time = BrokerTime()
    time.see(10_000, monotonic=5.0)
    assert time.now_ms(6.0) == 11_000
    time.see(10_500, monotonic=7.0)  # read late: proves less than what is known
    assert time.now_ms(7.0) == 12_000
    time.see(20_000, monotonic=8.0)
    assert time.now_ms(8.0) == 20_000


async def test_a_thread_past_its_timeout_does_not_delay_the_failure_but_keeps_its_lane_busy() -> None:
    saga = Saga("order", Step("charge_card", timeout="20ms", compensation="refund_card"))
    world = await make_world(saga)
    gate = threading.Event()
    order: list[str] = []

    def charge() -> str:
        gate.wait(20)
        order.append("charge ended")
        return "too late"

    service = service_of(saga, charge)
    service.compensation(saga, "charge_card")(lambda: order.append("refund"))
    async with running(world, service):
        await world.send(started(contract=saga))
        failed = await world.answer(StepFailed)
        assert (failed.failure.kind, failed.effect) == ("timed_out", "unknown")
        await world.send(compensate(effects={}))
        await world.send(started("other", contract=saga))
        await world.answers(StepFailed, count=2)
        assert order == [], "the compensation waits until the thread that it undoes has ended"
        assert await world.committed() in (None, 0)
        gate.set()
        await until_committed(world)
    assert order.index("charge ended") < order.index("refund")
    assert not [entry for entry in await world.log() if isinstance(entry.record, StepCompleted)]


async def test_a_further_attempt_waits_for_the_thread_of_the_one_before() -> None:
    running_now: list[int] = []
    most: list[int] = []

    def charge(ctx: Context) -> str:
        running_now.append(1)
        most.append(len(running_now))
        if ctx.attempt == 1:
            time.sleep(0.1)
        running_now.pop()
        return "charged"

    answer = await outcome(flaky(timeout="20ms", retries=at_once(1)), charge)
    assert isinstance(answer, StepCompleted)
    assert max(most) == 1
    assert answer.attempts == 2


async def test_a_lane_in_backoff_holds_no_slot() -> None:
    saga = flaky(retries=Retries(1, backoff_ms_base=20_000, backoff_ms_max=20_000, jitter=False))
    world = await make_world(saga)

    async def charge(ctx: Context) -> None:
        if ctx.saga_id.startswith("flaky"):
            raise OSError

    options = Options(concurrency=2, poll_timeout_s=0.02, commit_interval_s=0.02, shutdown_timeout_s=0.1)
    async with running(world, service_of(saga, charge), options=options) as handle:
        for number in range(8):
            await world.send(started(f"flaky-{number}", contract=saga))
        await until(lambda: value(handle, "choreo_step_attempts_total", result="crashed") == 8)
        await world.send(started("healthy", contract=saga))
        assert (await world.answer(StepCompleted)).saga_id == "healthy"


@pytest.mark.parametrize("jitter", [False, True])
async def test_backoff_is_drawn_from_the_random_that_was_handed_in(jitter: bool) -> None:
    class Sleeps(SystemClock):
        def __init__(self) -> None:
            self.slept: list[float] = []

        async def sleep(self, seconds: float) -> None:
            self.slept.append(seconds)

    async def charge() -> None:
        raise OSError

    waits = []
    for _ in range(2):
        clock = Sleeps()
        metrics = Metrics()
        await Attempts(clock, Random(3), ThreadPoolExecutor(1)).run(
            Handler(charge, Context),
            Context,
            a_job(due_at=clock.monotonic() + 3_600),
            Lane((b"s-1", "charge_card"), Slots(1)),
            retries=Retries(4, backoff_ms_base=100, backoff_ms_max=500, jitter=jitter),
            timeout_s=1,
            counters=StepCounts(metrics, "order", "charge_card").attempts,
        )
        waits.append(clock.slept)
    assert waits[0] == waits[1]
    longest = [0.1, 0.2, 0.4, 0.5]
    if jitter:
        assert all(0 <= wait <= bound for wait, bound in zip(waits[0], longest, strict=True))
        assert waits[0] != longest
    else:
        assert waits[0] == longest


async def test_a_completion_due_by_now_still_runs_the_successor_if_it_was_appended_on_time() -> None:
    """Late is a fact of the record (its own append time against its own due), not of when somebody reads it."""
    saga = Saga("order", Step("reserve_stock", deadline="1m"), Step("charge_card"))
    world: World = await make_world(saga)
    world.broker._log.now_ms = lambda: 1_000_000
    await world.send(completed(due_ms=1_000_000))
    world.broker._log.now_ms = lambda: 9_000_000
    async with running(world, service_of(saga, lambda: "charged")):
        assert (await world.answer(StepCompleted)).step == "charge_card"


async def test_slots_are_given_in_the_order_of_asking_and_not_lost_by_who_gives_up() -> None:
    slots = Slots(1)
    order: list[str] = []

    async def take(name: str) -> None:
        await slots.take()
        order.append(name)

    assert slots.try_take()
    assert not slots.try_take()
    tasks = [asyncio.create_task(take(name)) for name in ("first", "gives up", "gives up late", "last")]
    await asyncio.sleep(0)
    tasks[1].cancel()
    slots.give_back()
    await tasks[0]
    assert not slots.try_take(), "those who wait go first"
    slots.give_back()
    tasks[2].cancel()  # its turn has come, and it is cancelled before it runs
    slots.give_back()
    await tasks[3]
    await asyncio.wait(tasks)
    assert order == ["first", "last"]
    slots.give_back()
    assert slots.try_take()
