"""Which exceptions are retried, as a binding says it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from choreo.contract import Retries, Saga, Step
from choreo.errors import DefinitionError
from choreo.messages.records import CompensationFailed, StepCompensated, StepCompleted, StepFailed
from choreo.step import InvalidInput, Reject, Service
from tests.unit.step_world import ORDER, compensate, make_world, running, started

AT_ONCE = Retries(2, backoff_ms_base=1, backoff_ms_max=1)
FLAKY = Saga("order", Step("charge_card", retries=AT_ONCE, compensation="refund_card", compensation_retries=AT_ONCE))


class GatewayError(Exception):
    pass


class GatewayDown(GatewayError):  # noqa: N818  # as a user may call it
    pass


class CardStolen(GatewayError):  # noqa: N818
    pass


async def charged(error: BaseException, saga: Saga = FLAKY, **rule: Any) -> StepCompleted | StepFailed:
    """The answer of a step that raises the error in its first attempt, and would return in the second."""
    attempts = 0
    service = Service("payment")

    @service.step(saga, "charge_card", **rule)
    async def charge() -> str:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise error
        return "c-1"

    if saga["charge_card"].compensation:
        service.compensation(saga, "charge_card")(lambda: None)
    world = await make_world(saga)
    async with running(world, service):
        await world.send(started(contract=saga))
        return (await world.answers((StepCompleted, StepFailed)))[0]


@pytest.mark.parametrize("error", [GatewayDown(), CardStolen(), OSError(), SystemExit()])
async def test_everything_is_retried_by_default(error: BaseException) -> None:
    answer = await charged(error)
    assert isinstance(answer, StepCompleted)
    assert answer.attempts == 2


async def test_what_is_named_in_retry_on_is_retried_and_subclasses_too() -> None:
    assert isinstance(await charged(GatewayDown(), retry_on=(GatewayError,)), StepCompleted)


async def test_what_is_not_in_retry_on_ends_the_run_at_once_with_an_unknown_effect() -> None:
    answer = await charged(KeyError("card"), retry_on=(GatewayError, OSError))
    assert isinstance(answer, StepFailed)
    assert (answer.failure.kind, answer.effect, answer.attempts) == ("crashed", "unknown", 1)
    assert answer.failure.exception_type == "builtins.KeyError"


async def test_never_retry_beats_retry_on() -> None:
    answer = await charged(CardStolen(), retry_on=(GatewayError,), never_retry=(CardStolen,))
    assert isinstance(answer, StepFailed)
    assert (answer.failure.kind, answer.attempts) == ("crashed", 1)


async def test_never_retry_alone_leaves_the_rest_retried() -> None:
    assert isinstance(await charged(GatewayDown(), never_retry=(CardStolen,)), StepCompleted)


@pytest.mark.parametrize(("rule", "attempts"), [({"retry_on": (GatewayDown,)}, 1), ({"retry_on": (TimeoutError,)}, 3)])
async def test_a_cancelled_attempt_counts_as_a_timeout_error(rule: dict[str, Any], attempts: int) -> None:
    saga = Saga("order", Step("charge_card", retries=AT_ONCE, timeout="10ms"))
    service = Service("payment")

    @service.step(saga, "charge_card", **rule)
    async def charge() -> None:
        await asyncio.sleep(10)

    world = await make_world(saga)
    async with running(world, service):
        await world.send(started(contract=saga))
        answer = await world.answer(StepFailed)
    assert (answer.failure.kind, answer.attempts) == ("timed_out", attempts)


@pytest.mark.parametrize(("never_retry", "kind"), [((CardStolen,), CompensationFailed), ((), StepCompensated)])
async def test_a_compensation_has_the_same_rule(never_retry: tuple[type[BaseException], ...], kind: type) -> None:
    attempts = 0
    service = Service("payment")
    service.step(FLAKY, "charge_card")(lambda: None)

    @service.compensation(FLAKY, "charge_card", never_retry=never_retry)
    def refund() -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise CardStolen

    world = await make_world(FLAKY)
    async with running(world, service):
        await world.send(compensate())
        answer = (await world.answers((StepCompensated, CompensationFailed)))[0]
    assert isinstance(answer, kind)


def test_a_rule_that_cannot_hold_is_refused_when_it_is_bound() -> None:
    service = Service("payment")
    with pytest.raises(DefinitionError) as wrong:
        service.step(ORDER, "charge_card", retry_on=(Reject, InvalidInput))(lambda: None)
    assert wrong.value.problems == (
        "retry_on: Reject is a decision of the handler and never retried",
        "retry_on: InvalidInput is a decision of the handler and never retried",
    )
    with pytest.raises(DefinitionError) as wrong:
        service.step(ORDER, "charge_card", retry_on=KeyError, never_retry=("KeyError",))(lambda: None)  # type: ignore[arg-type]
    assert wrong.value.problems == (
        "retry_on is <class 'KeyError'>; it must be a tuple of exception types: retry_on=(TimeoutError,)",
        "never_retry: 'KeyError' is no exception type",
    )
