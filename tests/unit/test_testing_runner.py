"""The in-process runner: the deployed runtimes, over a log in memory, in virtual time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from choreo.contract import Retries, Saga, Step
from choreo.core import Phase
from choreo.errors import (
    ConfigurationError,
    DefinitionError,
    NotStuck,
    SagaFailed,
    SagaNotFound,
    StartRefused,
    WaitTimeout,
)
from choreo.messages.headers import MSGPACK
from choreo.messages.records import SagaCompensated, SagaStuck
from choreo.observe.events import OutcomeEvent
from choreo.saga_log.tracers import SagaEvent
from choreo.step import CompensationContext, Context, Reject, Retry, Service
from choreo.testing import Runner, run_saga

ORDER = Saga(
    "order",
    Step("reserve_stock", compensation="release_stock"),
    Step("charge_card", compensation="refund_card", retries=2),
    Step("send_receipt"),
)


class Shop:
    """Two services, what they have done, and how they behave."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.charge: Any = None
        self.inventory = Service("inventory")
        self.payment = Service("payment")

        @self.inventory.step(ORDER, "reserve_stock")
        def reserve(order: dict[str, Any]) -> dict[str, Any]:
            self.done.append("reserve")
            return {"item": order.get("item")}

        @self.inventory.compensation(ORDER, "reserve_stock")
        def release(ctx: CompensationContext) -> None:
            self.done.append(f"release {ctx.effect['item']}")

        @self.payment.step(ORDER, "charge_card")
        async def charge(order: dict[str, Any], ctx: Context) -> Any:
            self.done.append("charge")
            return await self.charge(ctx) if self.charge else 30

        @self.payment.compensation(ORDER, "charge_card")
        async def refund(ctx: CompensationContext) -> None:
            self.done.append("refund")

        @self.payment.step(ORDER, "send_receipt")
        def send(ctx: Context) -> str:
            return f"receipt over {ctx.effect('charge_card', int)}"

    @property
    def services(self) -> tuple[Service, Service]:
        return self.inventory, self.payment


def kinds(records: list[Any]) -> list[str]:
    return [type(record).__name__ for record in records]


def read(value: Any) -> Any:
    import msgspec

    return msgspec.json.decode(value)


async def no_card(_: Context) -> None:
    raise Reject("no such card", code="card_declined")


async def hang(_: Context) -> None:
    await asyncio.sleep(10**6)


async def test_a_saga_runs_to_its_outcome() -> None:
    shop = Shop()
    async with Runner(*shop.services) as runner:
        outcome = await runner.run(ORDER, {"item": "kite"})
        assert read(outcome.result) == "receipt over 30"
        assert kinds(runner.history(outcome.saga_id)) == ["SagaStarted", *["StepCompleted"] * 3, "SagaCompleted"]


async def test_a_saga_that_fails_is_undone_and_raised() -> None:
    shop = Shop()
    shop.charge = no_card
    async with Runner(*shop.services) as runner:
        with pytest.raises(SagaFailed, match="no such card") as failed:
            await runner.run(ORDER, {"item": "kite"})
        assert (failed.value.step, failed.value.code) == ("charge_card", "card_declined")
        assert shop.done == ["reserve", "charge", "release kite"]
        assert isinstance(runner.history(failed.value.saga_id)[-1], SagaCompensated)


async def test_tracers_of_whole_sagas_are_told() -> None:
    told: list[SagaEvent] = []

    class Tracer:
        saga_started = compensating = saga_compensated = staticmethod(told.append)

    shop = Shop()
    shop.charge = no_card
    async with Runner(*shop.services, saga_tracers=[Tracer()]) as runner:
        with pytest.raises(SagaFailed):
            await runner.run(ORDER, {"item": "kite"})
        await asyncio.sleep(1)
    assert [(each.kind, each.step) for each in told] == [
        ("saga_started", ""),
        ("compensating", "reserve_stock"),
        ("saga_compensated", ""),
    ]


async def test_backoffs_timeouts_and_handlers_sleeps_pass_at_once() -> None:
    shop = Shop()
    shop.charge = hang
    began = time.monotonic()
    async with Runner(*shop.services) as runner:
        before_ms = runner.clock.now_ms()
        with pytest.raises(SagaFailed, match="timeout of 30 s"):
            await runner.run(ORDER, {})
        assert runner.clock.now_ms() - before_ms >= 3 * 30_000
    assert shop.done.count("charge") == 3
    assert time.monotonic() - began < 10


def histories_of(seed: int) -> list[Any]:
    async def flaky(ctx: Context) -> int:
        if ctx.attempt < 3:
            raise ConnectionError("try again")
        return 30

    async def main() -> list[Any]:
        shop = Shop()
        shop.charge = flaky
        async with Runner(*shop.services, seed=seed) as runner:
            ids = [await runner.start(ORDER, {"item": number}) for number in range(3)]
            for saga_id in ids:
                await runner.wait(ORDER, saga_id)
            return [(message.timestamp_ms, message.headers, message.value) for message in runner.messages()]

    return asyncio.run(main())


def test_equal_seeds_give_equal_histories_and_others_do_not() -> None:
    # Durations in the records are measured by the virtual clock, so they are equal, too.
    assert histories_of(1) == histories_of(1)
    assert histories_of(1) != histories_of(2)


async def test_it_runs_in_real_time_if_asked() -> None:
    shop = Shop()

    async def slow(_: Context) -> int:
        await asyncio.sleep(0.05)
        return 30

    shop.charge = slow
    async with Runner(*shop.services, time="real") as runner:
        began = time.monotonic()
        await runner.run(ORDER, {})
        assert time.monotonic() - began >= 0.05


async def test_its_sagas_can_be_written_in_messagepack() -> None:
    async with Runner(*Shop().services, content_type=MSGPACK) as runner:
        outcome = await runner.run(ORDER, {"item": "kite"})
        assert dict(runner.messages()[-1].headers)["content-type"] == MSGPACK.encode()
        assert len(runner.history(outcome.saga_id)) == 5


async def test_status_answers_while_a_step_runs_and_a_cancel_undoes_it() -> None:
    shop = Shop()
    released = asyncio.Event()

    async def wait(_: Context) -> int:
        await released.wait()
        return 30

    shop.charge = wait
    async with Runner(*shop.services) as runner:
        saga_id = await runner.start(ORDER, {"item": "kite"}, id="s")
        while "charge" not in shop.done:
            await asyncio.sleep(0)
        status = await runner.status(ORDER, saga_id)
        assert (status.phase, status.steps[1].phase) == (Phase.FORWARD, "running")
        await runner.cancel(ORDER, saga_id, reason="changed my mind")
        released.set()
        with pytest.raises(SagaFailed, match="changed my mind"):
            await runner.wait(ORDER, saga_id)
    assert shop.done == ["reserve", "charge", "refund", "release kite"]


async def test_ids_are_idempotent_and_unknown_ones_are_not_found() -> None:
    async with Runner(*Shop().services) as runner:
        first = await runner.run(ORDER, {"item": "kite"}, id="s")
        assert await runner.run(ORDER, {"item": "kite"}, id="s") == first
        with pytest.raises(StartRefused):
            await runner.run(ORDER, {"item": "yacht"}, id="s")
        with pytest.raises(SagaNotFound):
            await runner.status(ORDER, "other")
        with pytest.raises(SagaNotFound):
            await runner.wait(ORDER, "other")


async def test_a_wait_may_end_before_the_saga() -> None:
    shop = Shop()
    shop.charge = hang
    async with Runner(*shop.services) as runner:
        with pytest.raises(WaitTimeout) as waited:
            await runner.run(ORDER, {}, timeout_s=10)
        with pytest.raises(SagaFailed):
            await runner.wait(ORDER, waited.value.saga_id)


async def test_a_saga_that_is_stuck_ends_the_wait_and_an_operator_can_act() -> None:
    saga = Saga(
        "stubborn", Step("a", compensation="undo_a", compensation_retries=Retries(2)), Step("b", compensation="undo_b")
    )
    service, mended = Service("stubborn"), False
    service.step(saga, "a")(lambda: 1)
    service.compensation(saga, "b")(lambda: None)

    @service.compensation(saga, "a")
    def undo() -> None:
        if not mended:
            raise ConnectionError("the bank is closed")

    @service.step(saga, "b")
    def fail() -> None:
        raise Reject("no")

    async with Runner(service) as runner:
        with pytest.raises(WaitTimeout, match=r"is stuck at step 'a', .*the bank is closed"):
            await runner.run(saga, {}, id="s")
        assert any(isinstance(record, SagaStuck) for record in runner.history("s"))
        with pytest.raises(WaitTimeout, match="is stuck"):
            await runner.wait(saga, "s")
        with pytest.raises(NotStuck, match="not stuck at step 'b'"):
            await runner.act(saga, "s", "skip", "b")
        mended = True
        await runner.act(saga, "s", "retry", "a", reason="it is open again")
        with pytest.raises(SagaFailed):
            await runner.wait(saga, "s")


async def test_a_killed_service_does_what_it_was_about_again_when_it_is_revived() -> None:
    shop = Shop()
    keys: list[str] = []

    async def hang_once(ctx: Context) -> int:
        keys.append(ctx.idempotency_key)
        if len(keys) == 1:
            await asyncio.Event().wait()
        return 30

    shop.charge = hang_once
    async with Runner(*shop.services) as runner:
        saga_id = await runner.start(ORDER, {})
        while not keys:
            await asyncio.sleep(0)
        await runner.kill("payment", "saga-log")
        await asyncio.sleep(3_600)
        await runner.revive()
        await runner.wait(ORDER, saga_id)
    assert shop.done == ["reserve", "charge", "charge"]
    assert keys[0] == keys[1]


async def test_parts_are_known_by_name() -> None:
    async with Runner(*Shop().services) as runner:
        with pytest.raises(ConfigurationError, match="there are saga-log, inventory, payment"):
            await runner.revive("shipping")
        with pytest.raises(ConfigurationError, match="'payment' is running already"):
            await runner.revive("payment")
        await runner.kill("payment")
        with pytest.raises(ConfigurationError, match="'payment' is not running; running are saga-log, inventory"):
            await runner.kill("payment")


async def test_a_wait_is_told_when_a_part_breaks_down(monkeypatch: pytest.MonkeyPatch) -> None:
    from choreo.saga_log import SagaLog

    async def broken(_: SagaLog) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(SagaLog, "run", broken)
    async with Runner(*Shop().services) as runner:
        with pytest.raises(OSError, match="the disk is full"):
            await runner.run(ORDER, {})


def test_steps_that_no_service_runs_are_refused_unless_they_may_be_missing() -> None:
    shop = Shop()
    with pytest.raises(DefinitionError, match=r"'charge_card'.*has no handler(.|\n)*'send_receipt'.*has no handler"):
        Runner(shop.inventory)
    Runner(shop.inventory, allow_missing_steps=True)


def test_a_step_in_two_services_is_refused() -> None:
    shop, other = Shop(), Service("other")
    other.step(ORDER, "send_receipt")(lambda: None)
    with pytest.raises(DefinitionError, match="is in services"):
        Runner(*shop.services, other)


async def test_a_contract_that_no_service_runs_is_refused() -> None:
    async with Runner(*Shop().services) as runner:
        with pytest.raises(DefinitionError, match="no service of this runner runs it; there are order version 1"):
            await runner.run(Saga("holiday", Step("book")), {})


async def test_it_is_opened_once() -> None:
    runner = Runner(*Shop().services)
    with pytest.raises(ConfigurationError, match="not open"):
        runner.history("s")
    async with runner:
        pass
    with pytest.raises(ConfigurationError, match="has been open already"):
        async with runner:
            pass


async def test_two_runners_side_by_side_do_not_see_each_other() -> None:
    async with Runner(*Shop().services) as one, Runner(*Shop().services) as other:
        await asyncio.gather(one.run(ORDER, {"item": 1}, id="s"), other.run(ORDER, {"item": 2}, id="s"))
        assert len(one.history("s")) == len(other.history("s")) == 5


async def test_a_forward_retry_waits_out_its_backoff() -> None:
    saga = Saga("again", Step("a"), Step("b", compensation="undo_b", compensate_on_failure="always"))
    service, rounds = Service("again"), []
    service.step(saga, "a")(lambda: 1)

    @service.step(saga, "b")
    def b(ctx: Context) -> int:
        rounds.append(ctx.round)
        if ctx.round == 1:
            raise Reject("not yet")
        return 2

    service.compensation(saga, "b")(lambda: Retry(limit=2, base_backoff=1_800_000, max_backoff=10**8, jitter=False))
    async with Runner(service) as runner:
        before_ms = runner.clock.now_ms()
        await runner.run(saga, {})
        assert runner.clock.now_ms() - before_ms == 3_600_000
    assert rounds == [1, 2]


def test_run_saga_runs_one_saga_without_a_loop() -> None:
    shop = Shop()
    assert read(run_saga(ORDER, {"item": "kite"}, services=shop.services).result) == "receipt over 30"
    shop.charge = no_card
    with pytest.raises(SagaFailed):
        run_saga(ORDER, {}, services=shop.services, seed=3)


async def test_outcome_hooks_have_run_when_a_run_returns() -> None:
    shop, told = Shop(), []
    audit = Service("audit")

    @audit.on_outcome(ORDER)
    async def file(event: OutcomeEvent) -> None:
        await asyncio.sleep(0)
        told.append(event.outcome)

    async with Runner(*shop.services, audit) as runner:
        await runner.run(ORDER, {})
        assert told == ["completed"]
        shop.charge = no_card
        with pytest.raises(SagaFailed):
            await runner.run(ORDER, {})
        assert told == ["completed", "compensated"]


def test_outcome_hooks_have_run_when_run_saga_returns_in_real_time_too() -> None:
    shop, told = Shop(), []

    @shop.inventory.on_outcome(ORDER)
    def file(event: OutcomeEvent) -> None:
        time.sleep(0.05)
        told.append(event.outcome)

    run_saga(ORDER, {}, services=shop.services, time="real")
    assert told == ["completed"]


async def test_what_can_be_done_now_is_done_when_it_has_settled() -> None:
    shop = Shop()
    shop.charge = hang
    async with Runner(*shop.services) as runner:
        before_ms = runner.clock.now_ms()
        await runner.start(ORDER, {})
        await runner.settle()
        assert shop.done == ["reserve", "charge"]
        assert runner.clock.now_ms() == before_ms
