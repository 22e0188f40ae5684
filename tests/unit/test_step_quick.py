"""Steps that are done in one go: what the short way must not do otherwise than the long one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import Any

import pytest

from choreo.broker.port import Appended, Headers, Message
from choreo.contract import Retries, Saga, Step
from choreo.errors import BrokerUnavailable
from choreo.messages.records import CompensationFailed, StepCompensated, StepCompleted, StepFailed
from choreo.step import Context, NothingToUndo, Options, Reject, Retry, Service
from choreo.step.lanes import TURNS_MAX, Lanes, Sent, Work
from choreo.step.route import Delivery
from tests.unit.step_world import (
    DEADLINE_S,
    QUICK,
    World,
    compensate,
    completed,
    make_world,
    payment,
    running,
    until,
    until_committed,
    value,
)


class Held:
    """A producer whose answers are futures, as Kafka's, and come when they are let."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self.waiting: list[tuple[asyncio.Future[Appended], dict[str, Any]]] = []

    def send(self, topic: str, *, key: str, value: bytes, headers: Headers = ()) -> Awaitable[Appended]:
        record = {"topic": topic, "key": key, "value": value, "headers": headers}
        if topic != "choreo.order":
            sent: Awaitable[Appended] = self._producer.send(**record)
            return sent
        acknowledgement: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self.waiting.append((acknowledgement, record))
        return acknowledgement

    async def acknowledge(self) -> None:
        """Append what waits."""
        waiting, self.waiting = self.waiting, []
        for acknowledgement, record in waiting:
            acknowledgement.set_result(await self._producer.send(**record))

    def refuse(self) -> None:
        """Tell those who wait that nobody knows."""
        waiting, self.waiting = self.waiting, []
        for acknowledgement, _ in waiting:
            acknowledgement.set_exception(BrokerUnavailable("no acknowledgement"))

    async def close(self) -> None:
        await self._producer.close()


async def held(world: World, monkeypatch: pytest.MonkeyPatch) -> Held:
    """The producer of the services that are started from here on; the world's own is as it was."""
    real = world.broker.producer
    producer = Held(await real())

    async def once() -> Any:
        monkeypatch.setattr(world.broker, "producer", real)
        return producer

    # The first two are the registry's: it writes the contracts, and what runs here.
    async def registrys() -> Any:
        monkeypatch.setattr(world.broker, "producer", announces)
        return await real()

    async def announces() -> Any:
        monkeypatch.setattr(world.broker, "producer", once)
        return await real()

    monkeypatch.setattr(world.broker, "producer", registrys)
    return producer


async def test_nothing_is_committed_before_its_acknowledgement(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await make_world()
    producer = await held(world, monkeypatch)

    async def charge() -> str:
        return "charged"

    async with running(world, payment(charge)):
        first = await world.send(completed("s-1"))
        await world.send(completed("s-2"))
        await until(lambda: len(producer.waiting) == 2)
        await asyncio.sleep(5 * QUICK.commit_interval_s)
        assert (await world.committed() or 0) <= first.offset
        await producer.acknowledge()
        assert len(await world.answers(StepCompleted, count=2)) == 2
        await until_committed(world, up_to=2)


async def test_the_next_record_of_a_lane_waits_for_the_acknowledgement_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await make_world()
    producer = await held(world, monkeypatch)
    rounds: list[int] = []

    async def charge(ctx: Context) -> str:
        rounds.append(ctx.round)
        return "charged"

    async with running(world, payment(charge)):
        await world.send(completed(round=1))
        await world.send(completed(round=2))
        await world.send(completed("s-2"))
        await until(lambda: len(producer.waiting) == 2)
        assert rounds == [1, 1]
        await producer.acknowledge()
        await until(lambda: rounds == [1, 1, 2])
        await until(lambda: producer.waiting)
        await producer.acknowledge()
        await until_committed(world, up_to=3)


async def test_an_answer_that_is_not_acknowledged_is_sent_again_under_the_same_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await make_world()
    producer = await held(world, monkeypatch)
    calls: list[int] = []

    async def charge() -> str:
        calls.append(1)
        return "charged"

    async with running(world, payment(charge)) as handle:
        await world.send(completed())
        await until(lambda: producer.waiting)
        (_, first), *_ = producer.waiting
        producer.refuse()
        await until(lambda: producer.waiting)
        (_, again), *_ = producer.waiting
        assert first == again
        await producer.acknowledge()
        await until_committed(world, up_to=1)
        assert value(handle, "choreo_messages_produced_total", result="error") == 1
        assert value(handle, "choreo_step_events_total", result="completed") == 1
    assert calls == [1]


async def test_an_undoing_that_is_not_acknowledged_is_answered_again_under_the_same_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await make_world()
    producer = await held(world, monkeypatch)
    calls: list[int] = []

    async def refund() -> None:
        calls.append(1)

    async with running(world, payment(undo=refund)) as handle:
        sent = await world.send(compensate())
        await until(lambda: producer.waiting)
        await asyncio.sleep(5 * QUICK.commit_interval_s)
        assert (await world.committed() or 0) <= sent.offset
        (_, first), *_ = producer.waiting
        producer.refuse()
        await until(lambda: producer.waiting)
        (_, again), *_ = producer.waiting
        assert first == again
        await producer.acknowledge()
        await until_committed(world, up_to=1)
        assert value(handle, "choreo_compensations_total", result="undone") == 1
        assert value(handle, "choreo_compensation_duration_seconds_count") == 1
    assert calls == [1]


@pytest.mark.parametrize("about", ["a step", "a refused step", "an undoing", "an undoing of nothing"])
async def test_what_ends_without_a_wait_has_no_task_of_its_own(about: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await make_world()
    producer = await held(world, monkeypatch)

    async def charge() -> str:
        if about == "a refused step":
            raise Reject("no funds")
        return "charged"

    async def refund() -> NothingToUndo | None:
        return NothingToUndo() if about == "an undoing of nothing" else None

    async with running(world, payment(charge, refund)):
        for number in range(3):
            saga_id = f"s-{number}"
            await world.send(compensate(saga_id) if "undoing" in about else completed(saga_id))
        await until(lambda: len(producer.waiting) == 3)
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("lane")]
        await producer.acknowledge()
        await until_committed(world, up_to=3)


async def test_the_undoing_of_a_step_waits_for_the_acknowledgement_of_what_it_undoes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await make_world()
    producer = await held(world, monkeypatch)
    done: list[str] = []

    async def charge() -> None:
        done.append("charge")

    async def refund() -> None:
        done.append("refund")

    async with running(world, payment(charge, refund)):
        await world.send(completed())
        await world.send(compensate())
        await until(lambda: producer.waiting)
        await asyncio.sleep(0.02)
        assert done == ["charge"]
        await producer.acknowledge()
        await until(lambda: done == ["charge", "refund"])
        await until(lambda: producer.waiting)
        await producer.acknowledge()
        await until_committed(world, up_to=2)


@pytest.mark.parametrize("answer", [Retry(3), True], ids=["that asks for a retry", "that is malformed"])
async def test_a_compensation_whose_answer_takes_more_is_called_once(answer: object) -> None:
    world = await make_world()
    calls: list[int] = []

    async def refund() -> Any:
        calls.append(1)
        return answer

    async with running(world, payment(undo=refund)):
        await world.send(compensate())
        await world.answers((StepCompensated, CompensationFailed))
        await until_committed(world)
    assert calls == [1]


async def test_a_stop_waits_for_acknowledgements_and_commits_what_they_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await make_world()
    producer = await held(world, monkeypatch)

    async def charge() -> str:
        return "charged"

    async with running(world, payment(charge)) as handle:
        await world.send(completed("s-1"))
        await until(lambda: producer.waiting)
        stopping = asyncio.create_task(handle.runtime.stop())
        await asyncio.sleep(0.05)
        assert not stopping.done()
        await producer.acknowledge()
        await stopping
    assert await world.committed() == 1


async def test_a_crash_leaves_what_is_not_acknowledged_unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await make_world()
    producer = await held(world, monkeypatch)

    async def charge() -> str:
        return "charged"

    async with running(world, payment(charge)) as handle:
        sent = await world.send(completed())
        await until(lambda: producer.waiting)
        await handle.crash()
    ((acknowledgement, _),) = producer.waiting
    acknowledgement.set_result(Appended("choreo.order", 0, 1, 0))
    await asyncio.sleep(0.02)
    assert (await world.committed() or 0) <= sent.offset


async def test_a_drain_meets_an_answer_that_is_just_about_to_be_sent_again() -> None:
    finished: list[Delivery] = []
    sent_again = asyncio.Event()

    class Refused(Sent):
        def __init__(self) -> None:
            self.acknowledgement = asyncio.get_running_loop().create_future()

        def acknowledged(self) -> Work:
            async def send_again() -> None:
                sent_again.set()

            return send_again()

    refused = Refused()
    message = Message("choreo.order", 0, 0, 0, b"s-1", b"", ())
    async with asyncio.TaskGroup() as tasks:
        lanes = Lanes("order[0]", tasks, lambda *_: refused, finished.append, concurrency=1)
        lanes.add(Delivery(message, "charge_card"))
        await asyncio.sleep(0)
        refused.acknowledgement.set_exception(BrokerUnavailable("no acknowledgement"))
        await asyncio.sleep(0)
        assert not sent_again.is_set()
        assert await lanes.drain(DEADLINE_S) == ()
    assert sent_again.is_set()
    assert finished == [Delivery(message, "charge_card")]


async def test_a_handler_sees_no_context_variable_of_another_one() -> None:
    """Each has a context of its own, as in a task of its own, also when it goes on after a wait."""
    world = await make_world()
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    seen: list[tuple[str, str]] = []

    async def charge(ctx: Context) -> str:
        before = tenant.get()
        tenant.set(ctx.saga_id)
        if ctx.saga_id != "s-2":
            await asyncio.sleep(0.01)
        seen.append((before, tenant.get()))
        return "charged"

    async with running(world, payment(charge)):
        for number in range(4):
            await world.send(completed(f"s-{number}"))
        await world.answers(StepCompleted, count=4)
    assert sorted(seen) == [("nobody", f"s-{number}") for number in range(4)]


async def test_a_time_out_that_a_handler_sets_for_itself_ends_nobody_else() -> None:
    world = await make_world()
    tasks: dict[str, Any] = {}

    async def charge(ctx: Context) -> str:
        tasks[ctx.saga_id] = asyncio.current_task()
        try:
            async with asyncio.timeout(0.02 if ctx.saga_id == "s-1" else 30):
                await asyncio.sleep(30 if ctx.saga_id == "s-1" else 0.1)
        except TimeoutError:
            raise Reject("too slow", code="slow") from None
        assert asyncio.current_task() is tasks[ctx.saga_id]
        return "charged"

    async with running(world, payment(charge)):
        for number in range(4):
            await world.send(completed(f"s-{number}"))
        (failed,) = await world.answers(StepFailed)
        others = await world.answers(StepCompleted, count=3)
    assert failed.saga_id == "s-1"
    assert {each.saga_id for each in others} == {"s-0", "s-2", "s-3"}
    assert len(set(tasks.values())) == 4


async def test_a_handler_that_raises_in_its_first_step_is_tried_again_by_its_policy() -> None:
    saga = Saga("order", Step("reserve_stock"), Step("charge_card", retries=Retries(3, backoff_ms_base=1)))
    world = await make_world(saga)
    attempts: list[int] = []

    async def charge(ctx: Context) -> str:
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise OSError
        return "charged"

    service = Service("payment")
    service.step(saga, "charge_card")(charge)
    async with running(world, service):
        await world.send(completed())
        answer = await world.answer(StepCompleted)
    assert attempts == [1, 2, 3]
    assert answer.attempts == 3


async def test_many_quick_handlers_let_others_have_their_turn() -> None:
    """Heartbeats and fetches go on beside a long batch."""
    world = await make_world()
    turns = 0
    turns_at: list[int] = []

    async def charge() -> str:
        turns_at.append(turns)
        return "charged"

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    for number in range(400):
        await world.send(completed(f"s-{number}"))
    beside = asyncio.create_task(others())
    async with running(world, payment(charge), options=Options(poll_timeout_s=0.02, concurrency=400)):
        await world.answers(StepCompleted, count=400)
    beside.cancel()
    assert len(set(turns_at)) >= 400 / TURNS_MAX
