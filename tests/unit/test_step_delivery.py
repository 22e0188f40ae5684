"""Delivery: what survives crashes, redelivery, rebalances and outages, and in what order offsets are committed."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import msgspec
import pytest

from choreo.broker.memory import MemoryBroker
from choreo.broker.port import Appended, Headers, TopicPartition
from choreo.broker.registry import ensure_saga_topics
from choreo.contract import Retries, Saga, Step
from choreo.errors import BrokerUnavailable
from choreo.messages.codec import encode
from choreo.messages.headers import JSON, make_headers
from choreo.messages.records import (
    CompensationFailed,
    Failure,
    StepCompensated,
    StepCompleted,
    StepFailed,
)
from choreo.step import Context, Options, Reject, Service
from choreo.step.answered import Answer, Answered, Instance
from tests.unit.step_world import (
    ORDER,
    QUICK,
    World,
    compensate,
    completed,
    eventually,
    make_world,
    of,
    payment,
    running,
    started,
    until,
    until_committed,
    value,
)


def own_answer(saga_id: str = "s-1", **changes: Any) -> StepCompleted:
    return completed(saga_id, step="charge_card", **changes)


def own_failure(saga_id: str = "s-1", *, effect: Any, run: str = "run-0") -> StepFailed:
    return StepFailed(
        **of(saga_id), run=run, failure=Failure(kind="rejected", code="declined"), effect=effect, attempts=1
    )


def quiet(**changes: Any) -> Options:
    """No commit before the stop, as between two commits of a busy service."""
    return msgspec.structs.replace(QUICK, commit_interval_s=3_600, **changes)


async def test_what_was_not_finished_at_a_crash_is_delivered_again_with_the_same_key() -> None:
    world = await make_world()
    keys: list[str] = []
    begun = asyncio.Event()
    bank_is_away = True

    async def charge(ctx: Context) -> str:
        keys.append(ctx.idempotency_key)
        begun.set()
        if bank_is_away:
            await asyncio.sleep(60)
        return "charged"

    async with running(world, payment(charge)) as handle:
        await world.send(completed())
        await begun.wait()
        await handle.crash()
    bank_is_away = False
    async with running(world, payment(charge)):
        await world.answer(StepCompleted)
    assert len(keys) == 2
    assert len(set(keys)) == 1


async def test_a_trigger_answered_before_a_crash_is_not_run_again() -> None:
    world = await make_world()
    calls: list[str] = []

    async def charge(ctx: Context) -> None:
        calls.append(ctx.saga_id)

    async with running(world, payment(charge), options=quiet()) as handle:
        await world.send(completed())
        await world.answer(StepCompleted)
        await handle.crash()
    assert await world.committed() is None
    async with running(world, payment(charge)) as handle:
        await until_committed(world)
        assert value(handle, "choreo_step_events_total", result="skipped_duplicate") == 1
        assert value(handle, "choreo_log_replayed_records_total", source="scan") == 2
    assert calls == ["s-1"]
    assert len(await world.answers(StepCompleted)) == 1


async def test_a_compensate_answered_before_a_crash_is_not_run_again() -> None:
    world = await make_world()
    calls: list[int] = []
    undo = payment(undo=lambda ctx: calls.append(ctx.generation))
    async with running(world, undo, options=quiet()) as handle:
        await world.send(compensate(generation=1))
        await world.answer(StepCompensated)
        await handle.crash()
    await world.send(compensate(generation=2))
    async with running(world, undo):
        await world.answers(StepCompensated, count=2)
        await until_committed(world)
    assert calls == [1, 2]


async def test_only_answers_of_this_service_count_as_answers() -> None:
    world = await make_world()
    await world.send(completed())
    await world.send(own_answer(), source="/choreo/somebody-else")
    await world.send(StepFailed(**of(), failure=Failure(kind="timed_out")), source="/choreo/saga-log")
    calls: list[str] = []
    async with running(world, payment(lambda ctx: calls.append(ctx.saga_id))):
        await until_committed(world)
    assert calls == ["s-1"]


async def test_a_failure_without_effect_found_after_a_crash_is_said_again_as_unknown_once() -> None:
    """Another replica may have run the trigger since (rule 6)."""
    world = await make_world()
    await world.send(completed())
    await world.send(own_failure(effect="none"), source="/choreo/payment")
    calls: list[str] = []
    service = payment(lambda ctx: calls.append(ctx.saga_id))
    async with running(world, service, options=quiet()) as handle:
        failures = await world.answers(StepFailed, count=2)
        await handle.crash()
    async with running(world, service):
        await until_committed(world)
    assert calls == []
    assert [failure.effect for failure in failures] == ["none", "unknown"]
    assert failures[0].run != failures[1].run
    assert failures[1].failure.code == "redelivered"
    assert len(await world.answers(StepFailed)) == 2


async def test_a_failure_that_cannot_be_read_any_more_is_said_anew() -> None:
    """Nobody has taken it; were the trigger held for answered, the saga would wait for its deadline."""
    world = await make_world()
    failure = own_failure(effect="none")
    headers = make_headers(failure, source="/choreo/payment", content_type=JSON)
    await world.send_raw("s-1", encode(failure)[:-1], headers)
    await world.send(completed())
    calls: list[str] = []
    async with running(world, payment(lambda ctx: calls.append(ctx.saga_id))):
        said = await world.answer(StepFailed)
        await until_committed(world)
    assert calls == []
    assert (said.effect, said.failure.code) == ("unknown", "redelivered")


async def test_a_failure_with_unknown_effect_found_after_a_crash_is_left_alone() -> None:
    world = await make_world()
    await world.send(completed())
    await world.send(own_failure(effect="none"), source="/choreo/payment")
    await world.send(own_failure(effect="unknown", run="run-1"), source="/choreo/payment")
    calls: list[str] = []
    async with running(world, payment(lambda ctx: calls.append(ctx.saga_id))):
        await until_committed(world)
    assert calls == []
    assert len(await world.answers(StepFailed)) == 2


async def test_a_reject_of_what_may_be_a_redelivery_does_not_know_the_effect() -> None:
    """An earlier run may have crashed behind its effect; only a record that is surely new has none (rule 5)."""
    world = await make_world()

    def charge() -> None:
        raise Reject("declined")

    await world.send(completed("before"))
    async with running(world, payment(charge)):
        await world.answer(StepFailed)
        await world.send(completed("after"))
        before, after = await world.answers(StepFailed, count=2)
    assert (before.saga_id, before.effect) == ("before", "unknown")
    assert (after.saga_id, after.effect) == ("after", "none")


async def test_a_trigger_that_is_in_the_log_twice_runs_once() -> None:
    world = await make_world()
    calls: list[str] = []
    async with running(world, payment(lambda ctx: calls.append(ctx.saga_id))) as handle:
        for _ in range(3):
            await world.send(completed())
        await world.send(completed(round=2))
        await world.answers(StepCompleted, count=2)
        await until_committed(world)
        assert value(handle, "choreo_step_events_total", result="skipped_duplicate") == 2
    assert calls == ["s-1", "s-1"], "once for each round"


def test_the_memory_of_answers_is_bounded_but_holds_all_that_were_found() -> None:
    answered = Answered(capacity=2)
    instances = [Instance(b"s", "0" * 16, "charge_card", number) for number in range(6)]
    for instance in instances[:3]:
        answered.settle(instance)
    assert answered.get(instances[0]) is None
    assert answered.get(instances[2]) is Answer.SETTLED
    for instance in instances[:4]:
        answered.found(instance, Answer.NO_EFFECT)
    assert len(answered) == 4
    assert answered.get(instances[2]) is Answer.SETTLED, "what is settled stays so"
    answered.settle(instances[5])
    assert len(answered) == 4


async def test_a_finished_record_behind_an_unfinished_one_is_not_redone() -> None:
    world = await make_world()
    gate = asyncio.Event()
    calls: list[str] = []

    async def charge(ctx: Context) -> None:
        calls.append(ctx.saga_id)
        if ctx.saga_id == "slow":
            await gate.wait()

    async with running(world, payment(charge)) as handle:
        await world.send(completed("slow"))
        await world.send(completed("quick"))
        await world.answer(StepCompleted)
        await eventually(lambda: metadata_of(world))
        await handle.crash()
    gate.set()
    async with running(world, payment(charge)):
        await until_committed(world)
    assert sorted(calls) == ["quick", "slow", "slow"]


async def metadata_of(world: World) -> str:
    tp = TopicPartition("choreo.order", 0)
    places = await world.broker._log.committed("choreo.payment", [tp])
    return places[tp].metadata if tp in places else ""


async def test_a_stop_lets_handlers_end_and_commits_what_they_did() -> None:
    world = await make_world()
    begun, gate = asyncio.Event(), asyncio.Event()

    async def charge() -> str:
        begun.set()
        await gate.wait()
        return "charged"

    async with running(world, payment(charge), options=quiet()) as handle:
        await world.send(completed())
        await begun.wait()
        stopping = asyncio.create_task(handle.runtime.stop())
        await asyncio.sleep(0.05)
        await world.send(completed("too-late"))
        assert not stopping.done()
        assert handle.runtime.not_ready_because() == "choreo.payment is stopping"
        gate.set()
        await stopping
    answers = await world.answers(StepCompleted)
    assert [answer.saga_id for answer in answers] == ["s-1"]
    assert await world.committed() == 1
    assert handle.runtime.not_ready_because() == "the services are not running"


async def test_a_stop_abandons_what_takes_too_long_and_commits_the_rest() -> None:
    world = await make_world()
    ended: list[str] = []

    async def charge(ctx: Context) -> None:
        if ctx.saga_id == "endless":
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("cancelled")

    async with running(world, payment(charge), options=quiet(shutdown_timeout_s=0.05)) as handle:
        await world.send(completed("quick"))
        await world.send(completed("endless"))
        await world.answer(StepCompleted)
        await handle.runtime.stop()
    assert ended == ["cancelled"]
    assert await world.committed() == 1, "the endless one will be delivered again"
    assert [answer.saga_id for answer in await world.answers(StepCompleted)] == ["quick"]


async def test_a_stop_does_not_wait_for_backoffs() -> None:
    slow = Saga("order", Step("charge_card", retries=Retries(3, 30_000, 30_000, jitter=False)))
    world = await make_world(slow)
    service = Service("payment")

    @service.step(slow, "charge_card")
    async def charge() -> None:
        raise OSError

    async with running(world, service, options=quiet(shutdown_timeout_s=20)) as handle:
        await world.send(started(contract=slow))
        await until(lambda: value(handle, "choreo_step_attempts_total", result="crashed") == 1)
        async with asyncio.timeout(10):
            await handle.runtime.stop()
    assert [entry for entry in await world.log() if isinstance(entry.record, StepFailed)] == []


async def test_a_partition_that_is_given_up_is_drained_and_committed_first() -> None:
    world = await make_world()
    gate = asyncio.Event()
    runs: list[str] = []

    async def charge(ctx: Context) -> str:
        runs.append(ctx.saga_id)
        await gate.wait()
        return "charged"

    async with running(world, payment(charge), options=quiet()) as first:
        await world.send(completed())
        await until(lambda: runs)
        consumer = first.runtime._workers[0]._consumer.result()  # type: ignore[union-attr]
        giving_up = asyncio.create_task(first.runtime._workers[0]._revoked(consumer.assignment()))
        await asyncio.sleep(0.05)
        assert not giving_up.done(), "a running handler gets its time"
        gate.set()
        await giving_up
        assert await world.committed() == 1
        assert value(first, "choreo_consumer_lag_records") is None
        assert value(first, "choreo_consumer_rebalances_total", reason="revoked") == 1
    assert runs == ["s-1"]


async def test_a_handler_that_does_not_end_in_time_is_cancelled_when_its_partition_goes() -> None:
    world = await make_world()
    begun = asyncio.Event()

    async def charge() -> None:
        begun.set()
        await asyncio.sleep(60)

    async with running(world, payment(charge), options=quiet(drain_timeout_s=0.05)) as first:
        await world.send(completed())
        await begun.wait()
        worker = first.runtime._workers[0]
        await worker._revoked(tuple(worker._partitions))
        assert await world.committed() is None
        assert value(first, "choreo_step_in_flight") == 0
    assert await world.end() == 1, "nothing is answered for a handler that was cancelled"


async def test_two_members_share_the_partitions_and_every_saga_is_answered_once() -> None:
    broker = await MemoryBroker.open("memory://shared")
    await ensure_saga_topics(broker, [ORDER], partitions=4)
    world = World(broker)

    async def charge() -> str:
        await asyncio.sleep(0.01)
        return "charged"

    async with running(world, payment(charge)):
        for number in range(40):
            await world.send(completed(f"early-{number}"))
        async with running(world, payment(charge)):
            for number in range(40):
                await world.send(completed(f"late-{number}"))
            answers = await eventually(lambda: all_answers(broker, 80))
    assert len(answers) == len(set(answers)) == 80


async def all_answers(broker: Any, count: int, partitions: int = 4) -> list[str] | None:
    reader = await broker.reader()
    tps = [TopicPartition("choreo.order", number) for number in range(partitions)]
    for tp in tps:
        reader.seek(tp, 0)
    found: list[str] = []
    while messages := await reader.poll(timeout_s=0):
        found += [m.key.decode() for m in messages if m.header("ce_source") == b"/choreo/payment"]
    await reader.close()
    return found if len(found) >= count else None


class Flaky:
    """A producer that is away for a while, in one of two ways: before the append, or behind it."""

    def __init__(self, producer: Any, failures: int, *, is_behind: bool) -> None:
        self.producer = producer
        self.failures = failures
        self.is_behind = is_behind

    async def send(self, topic: str, *, key: str, value: bytes, headers: Headers = ()) -> Appended:
        if self.failures > 0 and topic == "choreo.order":
            self.failures -= 1
            if self.is_behind:
                await self.producer.send(topic, key=key, value=value, headers=headers)
            raise BrokerUnavailable("no acknowledgement")
        appended: Appended = await self.producer.send(topic, key=key, value=value, headers=headers)
        return appended

    async def close(self) -> None:
        await self.producer.close()


@pytest.mark.parametrize("is_behind", [False, True])
async def test_an_answer_is_sent_until_it_is_acknowledged_under_the_same_id(
    is_behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await make_world()
    real = world.broker.producer
    service = payment(lambda: "charged")

    async def flaky() -> Any:
        return Flaky(await real(), 2, is_behind=is_behind)

    monkeypatch.setattr(world.broker, "producer", flaky)
    async with running(world, service) as handle:
        monkeypatch.setattr(world.broker, "producer", real)
        await world.send(completed())
        answers = await world.answers(StepCompleted, count=3 if is_behind else 1)
        await until_committed(world)
        assert value(handle, "choreo_messages_produced_total", result="error") == 2
    assert len({answer.id for answer in answers}) == 1


async def test_an_outage_at_the_assignment_is_ridden_out(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await make_world()
    await world.send(completed())
    real = world.broker.offsets
    tries: list[int] = []

    async def flaky(tps: Any) -> Any:
        if next(iter(tps)).topic == "choreo.order":
            tries.append(1)
            if len(tries) == 1:
                raise BrokerUnavailable("away")
        return await real(tps)

    monkeypatch.setattr(world.broker, "offsets", flaky)
    async with running(world, payment()):
        await world.answer(StepCompleted)
    assert len(tries) >= 2


async def test_a_hanging_thread_does_not_keep_a_stop_from_ending() -> None:
    world = await make_world()
    gate = threading.Event()
    begun = threading.Event()

    def charge() -> None:
        begun.set()
        gate.wait(20)

    async with running(world, payment(charge), options=quiet(shutdown_timeout_s=0.05)) as handle:
        await world.send(completed())
        await asyncio.to_thread(begun.wait, 20)
        async with asyncio.timeout(10):
            await handle.runtime.stop()
    gate.set()
    assert await world.committed() is None
    assert not [entry for entry in await world.log() if isinstance(entry.record, CompensationFailed | StepFailed)]


async def test_a_handler_of_ten_minutes_delays_nobody_and_survives_a_rebalance() -> None:
    broker = await MemoryBroker.open("memory://ten-minutes")
    slow = Saga("order", Step("reserve_stock"), Step("charge_card", timeout="20m"), version=3)
    await ensure_saga_topics(broker, [slow], partitions=2)
    world = World(broker)
    ten_minutes = asyncio.Event()  # they are over when the test says so
    runs: list[str] = []

    def service() -> Service:
        one = Service("payment")

        @one.step(slow, "charge_card")
        async def charge(ctx: Context) -> str:
            if ctx.saga_id == "slow":
                runs.append(ctx.idempotency_key)
                await ten_minutes.wait()
            return ctx.idempotency_key

        return one

    options = msgspec.structs.replace(QUICK, drain_timeout_s=0.1, shutdown_timeout_s=0.1)
    async with running(world, service(), options=options) as first:
        await world.send(completed("slow", version=3))
        await until(lambda: runs)
        for number in range(300):
            await world.send(completed(f"quick-{number}", version=3))
        await eventually(lambda: all_answers(broker, 300, partitions=2))
        async with running(world, service(), options=options):
            await first.runtime.stop()  # its partitions go to the other one, the slow handler's among them
            for number in range(300, 400):
                await world.send(completed(f"quick-{number}", version=3))
            await eventually(lambda: all_answers(broker, 400, partitions=2))
            await until(lambda: len(runs) == 2)
            ten_minutes.set()
            answers = await eventually(lambda: all_answers(broker, 401, partitions=2))
    assert sorted(answers) == sorted(["slow", *(f"quick-{number}" for number in range(400))]), "each once"
    assert len(set(runs)) == 1, "both runs have the same idempotency key"
