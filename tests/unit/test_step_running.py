"""A service runs its steps: which records it reacts to, what handlers are told, and what it answers."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import msgspec
import pytest

from choreo import ids
from choreo.contract import Retries, Saga, Step
from choreo.messages.codec import LIMITS
from choreo.messages.family import Parent
from choreo.messages.headers import MSGPACK, read_route
from choreo.messages.records import SagaStarted, StepCompleted, StepFailed
from choreo.step import Abort, Context, Reject, Service
from tests.unit.step_world import (
    FAR_MS,
    ORDER,
    compensate,
    completed,
    execute,
    make_world,
    of,
    payment,
    raw,
    running,
    started,
    until_committed,
    value,
)


class Order(msgspec.Struct):
    amount: int


class Reservation(msgspec.Struct):
    reservation: str


def plain(value: msgspec.Raw) -> Any:
    return msgspec.json.decode(value)


def service_of(saga: Saga, **steps: Any) -> Service:
    service = Service("payment")
    for name, function in steps.items():
        service.step(saga, name)(function)
    return service


async def test_the_start_runs_the_first_step_and_its_return_value_is_the_effect() -> None:
    world = await make_world()
    service = Service("stock")

    @service.step(ORDER, "reserve_stock")
    async def reserve(order: Order) -> Reservation:
        return Reservation(f"r-{order.amount}")

    service.compensation(ORDER, "reserve_stock")(lambda: None)
    async with running(world, service):
        start = await world.start("s-1")
        answer = await world.answer(StepCompleted)
    assert (answer.saga_id, answer.step, answer.round, answer.attempts) == ("s-1", "reserve_stock", 1, 1)
    assert plain(answer.effect) == {"reservation": "r-10"}
    assert plain(answer.input) == {"amount": 10}
    assert answer.effects == {}
    assert answer.saga_due_ms == answer.due_ms == start.timestamp_ms + ORDER.deadline_ms
    assert answer.start == started().start


async def test_a_child_s_steps_are_due_no_later_than_its_parent() -> None:
    parent = Parent(saga="trip", version=1, saga_id="t-1", start="0" * 16, step="order", round=1, due_ms=FAR_MS)
    world, service = await make_world(), service_of(ORDER, reserve_stock=lambda: None)
    service.compensation(ORDER, "reserve_stock")(lambda: None)
    async with running(world, service):
        start = await world.send(started(saga_deadline_ms=2**51, parent=parent))
        answer = await world.answer(StepCompleted)
    assert start.timestamp_ms + 2**51 > FAR_MS
    assert answer.saga_due_ms == answer.due_ms == FAR_MS


async def test_a_completion_runs_the_next_step_with_the_effects_so_far() -> None:
    world = await make_world()
    seen: list[Any] = []

    def charge(order: Order, ctx: Context) -> dict[str, str]:
        seen.append((order, ctx.input, dict(ctx.effects), ctx.effect("reserve_stock", Reservation)))
        return {"charge": "c-1"}

    async with running(world, payment(charge)):
        await world.send(completed(effects={}, effect=raw({"reservation": "r-1"})))
        answer = await world.answer(StepCompleted)
    assert seen == [(Order(10), {"amount": 10}, {"reserve_stock": {"reservation": "r-1"}}, Reservation("r-1"))]
    assert answer.step == "charge_card"
    assert {step: plain(effect) for step, effect in answer.effects.items()} == {"reserve_stock": {"reservation": "r-1"}}


async def test_a_context_says_who_and_when() -> None:
    world = await make_world()
    seen: list[Any] = []

    async def charge(ctx: Context) -> None:
        seen.append(
            {
                "saga": ctx.saga,
                "version": ctx.version,
                "saga_id": ctx.saga_id,
                "step": ctx.step,
                "round": ctx.round,
                "attempt": ctx.attempt,
                "key": ctx.idempotency_key,
                "trace": ctx.traceparent,
                "due_ms": ctx.due_ms,
            }
        )
        assert 0 < ctx.time_left_s() <= 30
        assert len(ctx.run) == 16

    async with running(world, payment(charge)):
        await world.send(completed(round=2, saga_due_ms=FAR_MS), traceparent=b"00-aa-bb-01")
        await world.answer(StepCompleted)
    assert seen == [
        {
            "saga": "order",
            "version": 1,
            "saga_id": "s-1",
            "step": "charge_card",
            "round": 2,
            "attempt": 1,
            "key": ids.idempotency_key("s-1", of()["start"], "charge_card", 2),
            "trace": "00-aa-bb-01",
            "due_ms": FAR_MS,
        }
    ]


async def test_execute_runs_a_step_with_the_effects_of_the_command() -> None:
    world = await make_world()

    def charge(ctx: Context) -> Any:
        return [ctx.round, dict(ctx.effects)]

    async with running(world, payment(charge)):
        await world.send(execute(round=3, effects={"reserve_stock": raw(1)}))
        answer = await world.answer(StepCompleted)
    assert plain(answer.effect) == [3, {"reserve_stock": 1}]
    assert answer.round == 3


async def test_one_record_can_run_several_steps() -> None:
    fork = Saga("fork", Step("left", after=()), Step("right", after=()), Step("join", after=("left", "right")))
    world = await make_world(fork)
    service = service_of(fork, left=lambda: "l", right=lambda: "r", join=lambda: "j")
    async with running(world, service):
        await world.send(started(contract=fork))
        answers = await world.answers(StepCompleted, count=2, saga="fork")
        await until_committed(world, saga="fork")
    assert {answer.step: plain(answer.effect) for answer in answers} == {"left": "l", "right": "r"}
    assert await world.end("fork") == 3, "the join waits for its Execute"


async def test_records_for_others_are_dropped_and_the_commit_moves_on() -> None:
    world = await make_world()
    calls: list[str] = []
    async with running(world, payment(lambda: calls.append("called"))):
        await world.start()  # runs reserve_stock, which is not ours
        await world.send(completed(step="charge_card"))
        await world.send(execute(step="send_receipt"))
        await world.send(compensate(step="reserve_stock"))
        await world.send_raw("s-1", b"no record", (("ce_type", b"other.thing"),))
        await world.send_raw("s-1", b"no headers", ())
        await until_committed(world)
    assert calls == []
    assert await world.dead_letters() == []


async def test_a_late_completion_is_ignored() -> None:
    world = await make_world()
    calls: list[str] = []

    def charge(ctx: Context) -> None:
        calls.append(ctx.saga_id)

    service = payment(charge)
    async with running(world, service) as handle:
        await world.send(completed("late", due_ms=1_000))
        await world.send(completed("on-time"))
        await world.answer(StepCompleted)
        skipped = value(handle, "choreo_step_events_total", result="skipped_late")
    assert calls == ["on-time"]
    assert skipped == 1


async def test_a_sync_handler_runs_in_a_thread_and_blocks_nobody() -> None:
    world = await make_world()
    gate = threading.Event()

    def charge(ctx: Context) -> str:
        if ctx.saga_id == "slow":
            gate.wait(20)
        return threading.current_thread().name

    async with running(world, payment(charge)):
        await world.send(completed("slow"))
        await world.send(completed("quick"))
        first = await world.answer(StepCompleted)
        gate.set()
        await world.answers(StepCompleted, count=2)
    assert first.saga_id == "quick"
    assert plain(first.effect).startswith("choreo-handler")


@pytest.mark.parametrize("is_async", [False, True])
async def test_reject_is_a_definite_failure_without_effect_and_never_retried(is_async: bool) -> None:
    saga = Saga("order", Step("charge_card", retries=5))
    world = await make_world(saga)
    calls: list[int] = []

    def refuse(ctx: Context) -> None:
        calls.append(ctx.attempt)
        raise Reject("the card was declined", code="card_declined")

    async def refuse_async(ctx: Context) -> None:
        refuse(ctx)

    async with running(world, service_of(saga, charge_card=refuse_async if is_async else refuse)):
        await world.send(started(contract=saga))
        answer = await world.answer(StepFailed)
    assert calls == [1]
    assert (answer.failure.kind, answer.failure.code) == ("rejected", "card_declined")
    assert answer.failure.message == "the card was declined"
    assert (answer.effect, answer.abort, answer.attempts) == ("none", False, 1)


async def test_abort_rejects_and_forbids_later_retries_of_the_saga() -> None:
    world = await make_world()

    def charge() -> None:
        raise Abort("stolen card")

    async with running(world, payment(charge)):
        await world.send(completed())
        answer = await world.answer(StepFailed)
    assert (answer.abort, answer.effect, answer.failure.kind) == (True, "none", "rejected")


async def test_an_exception_is_a_crash_with_type_message_and_traceback() -> None:
    world = await make_world()

    async def charge() -> None:
        raise LookupError("no such card \udcff")

    async with running(world, payment(charge)):
        await world.send(completed())
        answer = await world.answer(StepFailed)
    assert (answer.effect, answer.failure.kind) == ("unknown", "crashed")
    assert answer.failure.exception_type == "builtins.LookupError"
    assert answer.failure.message == "no such card ?"
    assert answer.failure.traceback is not None
    assert "in charge" in answer.failure.traceback


@pytest.mark.parametrize("error", [SystemExit(3), StopIteration(), asyncio.CancelledError(), GeneratorExit()])
@pytest.mark.parametrize("is_async", [False, True])
async def test_no_exception_of_a_handler_ends_the_service(error: BaseException, is_async: bool) -> None:
    world = await make_world()

    def charge(ctx: Context) -> str:
        if ctx.saga_id == "bad":
            raise error
        return "fine"

    async def charge_async(ctx: Context) -> str:
        return charge(ctx)

    async with running(world, payment(charge_async if is_async else charge)):
        await world.send(completed("bad"))
        failed = await world.answer(StepFailed)
        await world.send(completed("good"))
        done = await world.answer(StepCompleted)
    assert (failed.saga_id, failed.failure.kind, failed.effect) == ("bad", "crashed", "unknown")
    assert done.saga_id == "good"


async def test_an_exception_that_cannot_say_what_it_is_is_still_a_failure() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    world = await make_world()

    def charge() -> None:
        raise MuteError

    async with running(world, payment(charge)):
        await world.send(completed())
        answer = await world.answer(StepFailed)
    assert "Mute" in answer.failure.message


async def test_a_return_value_that_cannot_be_encoded_is_a_crash_with_an_effect() -> None:
    world = await make_world()
    async with running(world, payment(lambda: object())):
        await world.send(completed())
        answer = await world.answer(StepFailed)
    assert (answer.failure.kind, answer.failure.code, answer.effect) == ("crashed", "unencodable_effect", "unknown")
    assert "type object cannot be encoded" in answer.failure.message


async def test_an_effect_over_the_limit_is_a_failure_with_an_unknown_effect() -> None:
    world = await make_world()
    async with running(world, payment(lambda: "x" * (LIMITS.effect_bytes_max + 1))):
        await world.send(completed())
        answer = await world.answer(StepFailed)
    assert (answer.failure.code, answer.effect) == ("unencodable_effect", "unknown")


async def test_a_context_that_grows_over_the_limit_is_a_failure_with_an_unknown_effect() -> None:
    world = await make_world()
    large = raw("x" * 220_000)
    effects = dict.fromkeys(("a", "b", "c"), large)
    async with running(world, payment(lambda: "x" * 220_000)):
        await world.send(completed(effects=effects, effect=raw(1), input=raw("x" * 20_000)))
        answer = await world.answer(StepFailed)
    assert (answer.failure.code, answer.effect) == ("context_too_large", "unknown")


async def test_an_input_that_does_not_fit_is_rejected_before_the_handler_runs() -> None:
    world = await make_world()
    calls: list[Order] = []

    async def charge(order: Order) -> None:
        calls.append(order)

    async with running(world, payment(charge)):
        await world.send(completed(input=raw({"amount": "ten"})))
        answer = await world.answer(StepFailed)
    assert calls == []
    assert (answer.failure.kind, answer.failure.code, answer.effect) == ("rejected", "invalid_input", "none")
    assert answer.failure.message == "input: Expected `int`, got `str` - at `$.amount`"


async def test_an_effect_that_does_not_fit_is_rejected_without_a_retry_but_in_doubt() -> None:
    saga = Saga("order", Step("reserve_stock"), Step("charge_card", retries=3))
    world = await make_world(saga)

    def charge(ctx: Context) -> None:
        ctx.effect("reserve_stock", Order)

    async with running(world, service_of(saga, charge_card=charge)):
        await world.send(completed())
        answer = await world.answer(StepFailed)
    # The handler was already at work, so nobody knows what it had done before it looked.
    assert (answer.failure.code, answer.effect, answer.attempts) == ("invalid_input", "unknown", 1)
    assert answer.failure.message.startswith("effect of step 'reserve_stock': Object missing required field `amount`")


async def test_answers_are_written_in_the_codec_of_the_trigger_and_carry_its_trace() -> None:
    world = await make_world()
    world.content_type = MSGPACK

    def charge(ctx: Context) -> Any:
        return {"seen": [ctx.input, ctx.effects["reserve_stock"]]}

    async with running(world, payment(charge)):
        trigger = completed(input=raw({"amount": 1}, MSGPACK), effect=raw([2], MSGPACK))
        await world.send(trigger, traceparent=b"00-0af7-b7ad-01")
        answer = await world.answer(StepCompleted)
    entry = (await world.log())[-1]
    route = read_route(entry.message.headers)
    assert (route.content_type, route.traceparent) == (MSGPACK, b"00-0af7-b7ad-01")
    assert msgspec.msgpack.decode(answer.effect) == {"seen": [{"amount": 1}, [2]]}
    assert entry.message.header("ce_source") == b"/choreo/payment"


async def test_the_step_is_due_after_its_own_deadline_but_never_after_the_saga() -> None:
    saga = Saga("order", Step("charge_card", deadline="1m", timeout="1s"), deadline="1h")
    world = await make_world(saga)
    async with running(world, service_of(saga, charge_card=lambda: None)):
        start = await world.send(started("own", contract=saga))
        own = (await world.answers(StepCompleted, count=1))[0]
        command = await world.send(execute("saga", saga_due_ms=start.timestamp_ms + 30_000))
        capped = (await world.answers(StepCompleted, count=2))[1]
    assert own.due_ms == start.timestamp_ms + 60_000
    assert own.saga_due_ms == start.timestamp_ms + 3_600_000
    assert capped.due_ms == start.timestamp_ms + 30_000 < command.timestamp_ms + 60_000


async def test_services_serve_all_versions_that_they_hold() -> None:
    second = Saga("order", Step("charge_card"), version=2)
    world = await make_world(ORDER, second)
    service = payment(lambda ctx: ctx.version)
    service.step(second, "charge_card")(lambda ctx: ctx.version)
    async with running(world, service):
        await world.send(completed("old"))
        await world.send(started("new", contract=second))
        answers = await world.answers(StepCompleted, count=2)
        # In version 1 charge_card is not the first step, so a start of version 1 does not run it.
        await world.send(started("other"))
        await until_committed(world)
        entries = await world.log()
    assert {answer.saga_id: plain(answer.effect) for answer in answers} == {"old": 1, "new": 2}
    assert not [entry for entry in entries if entry.record.saga_id == "other" and type(entry.record) is not SagaStarted]


async def test_a_start_under_another_contract_of_the_same_version_runs_nothing() -> None:
    world = await make_world()
    service = Service("inventory")
    runs: list[str] = []
    service.step(ORDER, "reserve_stock")(lambda ctx: runs.append(ctx.saga_id))
    service.compensation(ORDER, "reserve_stock")(lambda: None)
    async with running(world, service):
        await world.send(msgspec.structs.replace(started("other"), contract_hash="f" * 32))
        await world.send(started("ours"))
        await world.answer(StepCompleted)
    assert runs == ["ours"]


async def test_several_services_run_in_one_process() -> None:
    world = await make_world()
    stock = Service("stock")
    stock.step(ORDER, "reserve_stock")(lambda: "reserved")
    stock.compensation(ORDER, "reserve_stock")(lambda: None)
    receipts = Service("receipts")
    receipts.step(ORDER, "send_receipt")(lambda: "sent")
    async with running(world, stock, payment(), receipts):
        await world.start()
        answers = await world.answers(StepCompleted, count=3)
    assert [answer.step for answer in answers] == ["reserve_stock", "charge_card", "send_receipt"]
    assert set(answers[-1].effects) == {"reserve_stock", "charge_card"}


async def test_metrics_count_what_happens() -> None:
    saga = Saga("order", Step("charge_card", retries=Retries(1, backoff_ms_base=1)))
    world = await make_world(saga)

    def charge(ctx: Context) -> None:
        if ctx.saga_id == "bad" or ctx.attempt == 1:
            raise ValueError

    async with running(world, service_of(saga, charge_card=charge)) as handle:
        await world.send(started("good", contract=saga))
        await world.send(started("bad", contract=saga))
        await world.answers((StepCompleted, StepFailed), count=2)
        await until_committed(world)
        labels = {"saga": "order", "step": "charge_card"}
        assert value(handle, "choreo_step_events_total", result="completed", **labels) == 1
        assert value(handle, "choreo_step_events_total", result="failed", **labels) == 1
        assert value(handle, "choreo_step_attempts_total", result="crashed", **labels) == 3
        assert value(handle, "choreo_step_attempts_total", result="ok", **labels) == 1
        assert value(handle, "choreo_step_retries_total", **labels) == 2
        assert value(handle, "choreo_step_duration_seconds_count", result="completed", **labels) == 1
        assert value(handle, "choreo_step_in_flight", **labels) == 0
        assert value(handle, "choreo_messages_consumed_total", topic="choreo.order") == 4
        assert value(handle, "choreo_messages_produced_total", topic="choreo.order", result="ok") == 2
        assert value(handle, "choreo_message_delivery_delay_seconds_count", topic="choreo.order") == 2
        assert value(handle, "choreo_consumer_lag_records", topic="choreo.order", partition="0") == 0
        assert value(handle, "choreo_consumer_rebalances_total", reason="assigned") == 1
        assert (value(handle, "choreo_last_poll_timestamp_seconds") or 0) > 1e9
    assert value(handle, "choreo_consumer_lag_records") is None, "the lag of a partition that was left is not shown"
