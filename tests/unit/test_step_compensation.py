"""Compensations: what they are told, what they can answer, and that they stay behind what they undo."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from random import Random
from typing import Any, Protocol

import msgspec
import pytest

from choreo import ids
from choreo.contract import Retries, Saga, Step
from choreo.messages.records import CompensationFailed, Failure, StepCompensated, StepCompleted
from choreo.step import AbortRetries, CompensationContext, Continue, InvalidInput, NothingToUndo, Retry, Service
from tests.unit.step_world import compensate, completed, make_world, of, payment, running, value


class Charge(msgspec.Struct):
    charge: str


class Undo(Protocol):
    def __call__(
        self, function: Callable[..., Any], **changes: Any
    ) -> Awaitable[StepCompensated | CompensationFailed]: ...


@pytest.fixture(params=["in a thread", "in one go"])
def undo(request: pytest.FixtureRequest) -> Undo:
    """Gives the answer to one Compensate, of a function that is called as it is, or is made async."""

    async def answer(function: Callable[..., Any], **changes: Any) -> StepCompensated | CompensationFailed:
        @wraps(function)
        async def in_one_go(*args: Any, **keywords: Any) -> Any:
            return function(*args, **keywords)

        world = await make_world()
        async with running(world, payment(undo=function if request.param == "in a thread" else in_one_go)):
            await world.send(compensate(**changes))
            return (await world.answers((StepCompensated, CompensationFailed)))[0]

    return answer


async def test_a_compensation_that_returns_nothing_has_undone_the_step(undo: Undo) -> None:
    def refund() -> None: ...

    answer = await undo(refund, generation=3)
    assert isinstance(answer, StepCompensated)
    assert (answer.undone, answer.verdict, answer.generation, answer.step) == (True, "proceed", 3, "charge_card")


async def test_a_step_that_is_asked_to_settle_answers_and_undoes_nothing() -> None:
    called: list[str] = []
    world = await make_world()
    async with running(world, payment(undo=lambda: called.append("undo"))):
        await world.send(compensate(settle=True))
        answer = (await world.answers((StepCompensated, CompensationFailed)))[0]
    assert isinstance(answer, StepCompensated)
    assert (answer.undone, answer.verdict, answer.generation, called) == (False, "proceed", 1, [])


async def test_a_step_without_a_compensation_can_be_asked_to_settle() -> None:
    contract = Saga("order", Step("charge_card"), Step("ship"))
    service = Service("payment")
    service.step(contract, "charge_card")(lambda: None)
    world = await make_world(contract)
    async with running(world, service):
        await world.send(compensate(settle=True))
        answer = (await world.answers((StepCompensated, CompensationFailed)))[0]
    assert isinstance(answer, StepCompensated)
    assert not answer.undone


async def test_a_compensation_is_told_effect_failure_and_context(undo: Undo) -> None:
    seen: dict[str, Any] = {}

    def refund(ctx: CompensationContext) -> None:
        seen.update(
            effect=ctx.effect,
            typed=ctx.effect_as(Charge),
            failure=ctx.failure and (ctx.failure.kind, ctx.failure.code),
            generation=ctx.generation,
            own=ctx.own,
            key=ctx.idempotency_key,
            step_key=ctx.step_key,
            input=ctx.input,
            effects=dict(ctx.effects),
            before=ctx.effect_of("reserve_stock", dict),
        )

    await undo(refund, generation=2, round=4)
    start = of()["start"]
    assert seen == {
        "effect": {"charge": "c-1"},
        "typed": Charge("c-1"),
        "failure": ("rejected", "no_courier"),
        "generation": 2,
        "own": False,
        "key": ids.compensation_key("s-1", start, "charge_card", 4, 2),
        "step_key": ids.idempotency_key("s-1", start, "charge_card", 4),
        "input": {"amount": 10},
        "effects": {"reserve_stock": {"reservation": "r-1"}},
        "before": {"reservation": "r-1"},
    }


@pytest.mark.parametrize(
    ("own", "kind", "recover_from", "may"),
    [
        (True, "rejected", None, True),
        (True, "crashed", None, False),
        (True, "crashed", ("crashed",), True),
        (True, "rejected", ("crashed",), False),
        (False, "rejected", None, False),
        (True, None, None, False),
    ],
)
async def test_a_compensation_is_told_whether_it_may_continue(
    own: bool, kind: Any, recover_from: Any, may: bool
) -> None:
    seen: list[bool] = []
    saga = Saga(
        "order", Step("reserve_stock"), Step("charge_card", compensation="refund_card", recover_from=recover_from)
    )
    failure = None if kind is None else Failure(kind=kind)
    service = Service("payment")
    service.step(saga, "charge_card")(lambda: None)

    @service.compensation(saga, "charge_card")
    def refund(ctx: CompensationContext) -> None:
        seen.append(ctx.may_continue)

    world = await make_world()
    async with running(world, service):
        await world.send(compensate(own=own, failure=failure))
        await world.answers((StepCompensated,))
    assert seen == [may]


async def test_a_step_that_never_completed_has_no_effect_to_show(undo: Undo) -> None:
    seen: list[Any] = []

    def refund(ctx: CompensationContext) -> NothingToUndo:
        seen.append((ctx.effect, ctx.effect_as(Charge), ctx.failure, ctx.own))
        return NothingToUndo()

    answer = await undo(refund, effect=msgspec.UNSET, failure=None, own=True)
    assert seen == [(None, None, None, True)]
    assert isinstance(answer, StepCompensated)
    assert answer.undone is False


async def test_retry_sends_the_saga_forward_again_after_a_backoff(undo: Undo) -> None:
    answer = await undo(lambda: Retry(limit=5, base_backoff=10, max_backoff=90, jitter=False), round=2)
    assert isinstance(answer, StepCompensated)
    assert (answer.verdict, answer.retry_limit, answer.backoff_ms, answer.undone) == ("retry", 5, 90, True)


@pytest.mark.parametrize(
    ("retry", "saga_round", "expected"),
    [
        (Retry(3, 10, jitter=False), 1, 20),
        (Retry(3, 10, jitter=False), 2, 400),
        (Retry(3, 10, jitter=False), 3, 5_000),
        (Retry(3, 10, max_backoff=100_000, jitter=False), 3, 8_000),
        (Retry(3, 1, jitter=False), 1_000_000, 5_000),
        (Retry(3), 5, 0),
    ],
)
def test_backoff_is_two_times_the_base_to_the_power_of_the_round_and_saturates(
    retry: Retry, saga_round: int, expected: int
) -> None:
    assert retry.backoff_ms(saga_round, Random(1)) == expected


def test_jitter_draws_from_zero_to_one_less_than_the_backoff() -> None:
    random = Random(1)
    drawn = {Retry(3, base_backoff=2).backoff_ms(1, random) for _ in range(200)}
    assert drawn == {0, 1, 2, 3}
    assert Retry(3, base_backoff=2, max_backoff=0).backoff_ms(1, random) == 0
    with pytest.raises(ValueError, match="limit is -1; it must be a whole number"):
        Retry(-1)
    with pytest.raises(ValueError, match=r"base_backoff is 1\.5"):
        Retry(3, 1.5)  # type: ignore[arg-type]


async def test_continue_replaces_the_effect_of_the_step_that_failed(undo: Undo) -> None:
    answer = await undo(lambda: Continue({"charge": "later"}), own=True)
    assert isinstance(answer, StepCompensated)
    assert answer.verdict == "continue"
    assert msgspec.json.decode(answer.effect) == {"charge": "later"}  # type: ignore[arg-type]


async def test_continue_of_a_step_that_has_not_failed_goes_on_back(undo: Undo) -> None:
    answer = await undo(lambda: Continue(1), own=False)
    assert isinstance(answer, StepCompensated)
    assert (answer.verdict, answer.undone, answer.effect) == ("proceed", True, msgspec.UNSET)


async def test_abort_retries_forbids_every_later_retry(undo: Undo) -> None:
    answer = await undo(lambda: AbortRetries())
    assert isinstance(answer, StepCompensated)
    assert (answer.verdict, answer.undone) == ("abort", True)


async def test_a_compensation_that_raises_is_retried_and_then_given_up() -> None:
    saga = Saga(
        "order",
        Step("reserve_stock"),
        Step(
            "charge_card",
            compensation="refund_card",
            compensation_retries=Retries(2, backoff_ms_base=1, backoff_ms_max=1),
        ),
    )
    world = await make_world(saga)
    calls: list[int] = []

    async def refund(ctx: CompensationContext) -> None:
        calls.append(ctx.attempt)
        if ctx.saga_id == "poison" or ctx.attempt == 1:
            raise OSError("bank is away")

    service = Service("payment")
    service.step(saga, "charge_card")(lambda: None)
    service.compensation(saga, "charge_card")(refund)
    async with running(world, service) as handle:
        await world.send(compensate("flaky"))
        undone = await world.answer(StepCompensated)
        await world.send(compensate("poison"))
        failed = await world.answer(CompensationFailed)
        labels = {"saga": "order", "step": "charge_card"}
        assert value(handle, "choreo_compensations_total", result="undone", **labels) == 1
        assert value(handle, "choreo_compensations_total", result="failed", **labels) == 1
        assert value(handle, "choreo_compensation_duration_seconds_count", **labels) == 2
    assert undone.attempts == 2
    assert (failed.attempts, failed.failure.kind, failed.generation) == (3, "crashed", 1)
    assert failed.failure.message == "bank is away"
    assert calls == [1, 2, 1, 2, 3]


@pytest.mark.parametrize(
    ("function", "code"),
    [(lambda: True, "malformed_answer"), (lambda: Continue(object()), "unencodable_effect")],
)
async def test_an_answer_that_cannot_be_given_fails_the_compensation(undo: Undo, function: Any, code: str) -> None:
    answer = await undo(function, own=True)
    assert isinstance(answer, CompensationFailed)
    assert (answer.failure.kind, answer.failure.code) == ("crashed", code)


async def test_an_input_that_does_not_fit_fails_the_compensation_without_a_retry(undo: Undo) -> None:
    def refund(order: Charge) -> None: ...

    def peeking(ctx: CompensationContext) -> None:
        with pytest.raises(InvalidInput):
            ctx.input_as(Charge)
        ctx.effect_as(int)

    for function in (refund, peeking):
        answer = await undo(function)
        assert isinstance(answer, CompensationFailed)
        assert (answer.failure.kind, answer.failure.code, answer.attempts) == ("rejected", "invalid_input", 1)


async def test_a_compensation_past_its_deadline_is_not_run() -> None:
    world = await make_world()
    calls: list[str] = []
    world.broker._log.now_ms = lambda: 1_000_000
    await world.send(compensate(deadline_ms=1_000))
    world.broker._log.now_ms = lambda: 1_002_000
    await world.send(completed(step="send_receipt"))
    async with running(world, payment(undo=lambda: calls.append("called"))):
        answer = await world.answer(CompensationFailed)
    assert calls == []
    assert (answer.failure.kind, answer.failure.code) == ("timed_out", "deadline")


async def test_a_compensate_waits_in_its_lane_for_the_trigger_that_it_undoes() -> None:
    world = await make_world()
    gate = asyncio.Event()
    order: list[str] = []

    async def charge() -> str:
        order.append("charge begins")
        await gate.wait()
        order.append("charge ends")
        return "c-1"

    async def refund() -> None:
        order.append("refund")

    async with running(world, payment(charge, refund)):
        await world.send(completed())
        await world.send(compensate())
        await world.send(compensate("other"))
        assert (await world.answer(StepCompensated)).saga_id == "other"
        gate.set()
        await world.answers(StepCompensated, count=2)
    assert order == ["charge begins", "refund", "charge ends", "refund"]
    ours = [type(entry.record) for entry in await world.log() if entry.record.saga_id == "s-1"]
    assert ours[-2:] == [StepCompleted, StepCompensated]


async def test_each_generation_is_answered_and_a_repeated_command_is_not() -> None:
    world = await make_world()
    keys: list[str] = []
    async with running(world, payment(undo=lambda ctx: keys.append(ctx.idempotency_key))) as handle:
        await world.send(compensate(generation=1))
        await world.send(compensate(generation=1))
        await world.send(compensate(generation=2))
        answers = await world.answers(StepCompensated, count=2)
        assert value(handle, "choreo_compensations_total", result="skipped_duplicate") == 1
    assert [answer.generation for answer in answers] == [1, 2]
    assert len(set(keys)) == len(keys) == 2
