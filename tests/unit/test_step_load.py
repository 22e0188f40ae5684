"""Many sagas at once: nobody waits for a slow one, and nobody is handed more than can be held."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from choreo.broker.offsets import OffsetTracker
from choreo.errors import ConfigurationError
from choreo.messages.records import StepCompleted
from choreo.step import Context, Options
from tests.unit.step_world import QUICK, completed, make_world, payment, running, until, until_committed, value


async def test_a_hundred_sagas_are_not_delayed_by_a_slow_one() -> None:
    world = await make_world()
    gate = asyncio.Event()

    async def charge(ctx: Context) -> None:
        if ctx.saga_id == "slow":
            await gate.wait()

    async with running(world, payment(charge)):
        await world.send(completed("slow"))
        for number in range(100):
            await world.send(completed(f"quick-{number}"))
        answers = await world.answers(StepCompleted, count=100)
        assert "slow" not in {answer.saga_id for answer in answers}
        assert await world.committed() in (None, 0), "the lowest unfinished offset is the slow one's"
        gate.set()
        await until_committed(world)


async def test_so_many_handlers_run_at_once_and_no_more() -> None:
    world = await make_world()
    at_once, most = 0, 0

    async def charge() -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.005)
        at_once -= 1

    options = msgspec.structs.replace(QUICK, concurrency=5)
    async with running(world, payment(charge), options=options):
        for number in range(50):
            await world.send(completed(f"s-{number}"))
        await world.answers(StepCompleted, count=50)
    assert most == 5


async def test_records_of_one_saga_and_step_run_one_at_a_time_in_log_order() -> None:
    world = await make_world()
    order: list[tuple[int, str]] = []

    async def charge(ctx: Context) -> None:
        order.append((ctx.round, "begins"))
        await asyncio.sleep(0.01 / ctx.round)
        order.append((ctx.round, "ends"))

    async with running(world, payment(charge)):
        for saga_round in (1, 2, 3):
            await world.send(completed(round=saga_round))
        await world.answers(StepCompleted, count=3)
    assert order == [(number, what) for number in (1, 2, 3) for what in ("begins", "ends")]


async def test_a_partition_with_too_much_in_work_is_paused_and_goes_on_later() -> None:
    world = await make_world()
    gate = asyncio.Event()

    async def charge() -> None:
        await gate.wait()

    options = msgspec.structs.replace(QUICK, unfinished_max=10, concurrency=3)
    for number in range(600):
        await world.send(completed(f"s-{number}"))
    async with running(world, payment(charge), options=options) as handle:
        worker = handle.runtime._workers[0]
        await until(lambda: worker._paused)
        taken = value(handle, "choreo_messages_consumed_total")
        await asyncio.sleep(0.1)
        assert value(handle, "choreo_messages_consumed_total") == taken, "nothing is taken while it is paused"
        assert taken is not None
        assert taken < 600
        assert handle.runtime.not_ready_because() is None
        gate.set()
        await world.answers(StepCompleted, count=600)
        await until_committed(world)
        assert not worker._paused


async def test_a_partition_whose_commit_is_nearly_full_is_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await make_world()
    monkeypatch.setattr(OffsetTracker, "tail_is_nearly_full", True)
    async with running(world, payment()) as handle:
        await until(lambda: handle.runtime._workers[0]._paused)
        await world.send(completed())
        await asyncio.sleep(0.05)
        assert value(handle, "choreo_messages_consumed_total") is None
        monkeypatch.setattr(OffsetTracker, "tail_is_nearly_full", False)
        await world.answer(StepCompleted)


async def test_a_commit_is_made_after_so_many_records() -> None:
    world = await make_world()
    options = msgspec.structs.replace(QUICK, commit_interval_s=3_600, commit_records=10)
    async with running(world, payment(), options=options):
        for number in range(10):
            await world.send(completed(f"s-{number}"))
        await world.answers(StepCompleted, count=10)
        await until_committed(world, up_to=1)


async def test_no_task_is_left_when_a_runtime_has_ended() -> None:
    world = await make_world()
    before = asyncio.all_tasks()
    async with running(world, payment()):
        for number in range(20):
            await world.send(completed(f"s-{number}"))
        await world.answers(StepCompleted, count=20)
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize(
    "changes",
    [{"concurrency": 0}, {"threads": 0}, {"unfinished_max": 0}, {"poll_timeout_s": -1}, {"park_limit_s": float("nan")}],
)
def test_options_that_cannot_work_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(changes))):
        Options(**changes)  # type: ignore[arg-type]
