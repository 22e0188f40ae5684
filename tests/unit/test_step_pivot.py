"""The step runtime at a pivot and behind it: triggered by Execute alone, never late, under a key that stays."""

from __future__ import annotations

from typing import Any

from choreo import ids
from choreo.contract import Saga, Step
from choreo.contract.policy import NO_DUE_MS
from choreo.messages.records import StepCompleted
from choreo.step import Context, Reject, Service
from choreo.testing import Runner
from tests.unit.step_world import completed, execute, make_world, of, running, started

ORDER = Saga(
    "order", Step("reserve_stock"), Step("charge_card", pivot=True, deadline="1m"), Step("send_receipt", deadline="1m")
)


def hosting(step: str, seen: list[Any]) -> Service:
    service = Service("payment")

    @service.step(ORDER, step)
    def note(ctx: Context) -> None:
        seen.append((ctx.step, ctx.round, ctx.idempotency_key, ctx.due_ms))

    return service


async def test_a_pivot_runs_on_execute_and_on_no_event() -> None:
    seen: list[Any] = []
    world = await make_world()
    async with running(world, hosting("charge_card", seen)):
        await world.send(started())
        await world.send(completed(step="reserve_stock"))
        await world.send(execute(step="charge_card"))
        answer = (await world.answers((StepCompleted,)))[0]
    assert isinstance(answer, StepCompleted)
    assert answer.due_ms == NO_DUE_MS
    assert [(step, saga_round) for step, saga_round, _, _ in seen] == [("charge_card", 1)]


async def test_a_step_behind_the_pivot_has_no_due() -> None:
    seen: list[Any] = []
    world = await make_world()
    async with running(world, hosting("send_receipt", seen)):
        await world.send(completed(step="charge_card"))
        await world.answers((StepCompleted,))
    assert seen[0][3] == NO_DUE_MS


async def test_a_handler_gets_the_key_of_the_round_that_execute_names() -> None:
    seen: list[Any] = []
    world = await make_world()
    async with running(world, hosting("charge_card", seen)):
        await world.send(execute(step="charge_card", round=3, key_round=2))
        await world.answers((StepCompleted,))
    key = ids.idempotency_key("s-1", of()["start"], "charge_card", 2)
    assert [(saga_round, seen_key) for _, saga_round, seen_key, _ in seen] == [(3, key)]


async def test_a_saga_is_retried_forward_from_an_uncertain_pivot_on_and_undoes_nothing() -> None:
    shop = Saga(
        "order",
        Step("pay", compensation="refund"),
        Step("ship", pivot=True),
        Step("write_mail"),
        Step("give_bonus", after="ship"),
        Step("close", after=("write_mail", "give_bonus")),
    )
    service, failures = Service("shop"), {"ship": 2, "write_mail": 3}
    seen: list[tuple[str, int, str]] = []

    def run(ctx: Context) -> str:
        seen.append((ctx.step, ctx.round, ctx.idempotency_key.rsplit("/", 1)[1]))
        failures[ctx.step] = failures.get(ctx.step, 0) - 1
        if failures[ctx.step] >= 0:
            raise RuntimeError("nobody knows") if ctx.step == "ship" else Reject("not now")
        return ctx.step

    for step in shop.steps:
        service.step(shop, step.name)(run)
    service.compensation(shop, "pay")(lambda: seen.append(("REFUND", 0, "")))
    async with Runner(service) as runner:
        await runner.run(shop, {})
    assert sorted(seen) == sorted(
        [
            ("pay", 1, "1"),
            *(("ship", saga_round, "1") for saga_round in (1, 2, 3)),  # it may have happened: the same key
            *(("write_mail", saga_round, str(saga_round)) for saga_round in (3, 4, 5, 6)),  # certainly not: another
            ("give_bonus", 3, "3"),
            ("close", 6, "6"),
        ]
    )
