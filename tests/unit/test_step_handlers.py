"""Handlers and services as they are defined: what a signature may be, and how all its problems are told."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
import pytest

from choreo.clock import SystemClock
from choreo.contract import Saga, Step
from choreo.errors import DefinitionError
from choreo.step import CompensationContext, Context, InvalidInput, Service, StepRuntime
from choreo.step.handler import Handler, UnfitInput
from tests.unit.step_world import ORDER, a_job, make_world, payment


class OrderStruct(msgspec.Struct):
    amount: int


@dataclass
class OrderDataclass:
    amount: int


class OrderDict(TypedDict):
    amount: int


def context(order: object = None) -> Context:
    return Context(a_job(order=order), 1, 1e9, SystemClock())


def call(function: Any, order: object = None) -> Any:
    handler = Handler(function, Context)
    positional, keywords = handler.arguments(context(order))
    return function(*positional, **keywords)


def problems_of(function: Any, context_type: Any = Context) -> tuple[str, ...]:
    with pytest.raises(DefinitionError) as caught:
        Handler(function, context_type)
    return caught.value.problems


@pytest.mark.parametrize("kind", [OrderStruct, OrderDataclass])
def test_the_input_is_converted_to_the_type_of_the_parameter(kind: Any) -> None:
    def step(order: Any) -> Any:
        return order

    step.__annotations__["order"] = kind
    assert call(step) == kind(10)


def test_the_input_may_be_a_typed_dict_a_dict_anything_or_not_annotated() -> None:
    def typed(order: OrderDict) -> Any:
        return order

    def plain(order: dict[str, int]) -> Any:
        return order

    def anything(order: Any) -> Any:
        return order

    assert all(call(step) == {"amount": 10} for step in (typed, plain, anything, lambda order: order))


def test_the_context_is_found_by_annotation_in_any_place_or_by_the_name_ctx() -> None:
    def behind(order: OrderStruct, where: Context) -> Any:
        return order.amount, where.saga_id

    def before(where: Context, order: OrderStruct) -> Any:
        return order.amount, where.saga_id

    def by_keyword(order: OrderStruct, *, ctx: Context) -> Any:
        return order.amount, ctx.saga_id

    assert {call(step) for step in (behind, before, by_keyword)} == {(10, "s-1")}
    assert call(lambda order, ctx: (order, ctx.saga_id)) == ({"amount": 10}, "s-1")
    assert call(lambda ctx: ctx.saga_id) == "s-1"


def test_other_parameters_keep_their_defaults() -> None:
    def step(order: OrderStruct, rate: float = 0.5, ctx: Context | None = None, *rest: Any, **more: Any) -> Any:
        return order.amount, rate, rest, more

    assert call(step) == (10, 0.5, (), {})


def test_methods_partials_and_objects_can_be_handlers() -> None:
    class Desk:
        def method(self, order: OrderStruct) -> int:
            return order.amount

        def __call__(self, order: OrderStruct) -> int:
            return order.amount

    def scaled(factor: int, order: OrderStruct) -> int:
        return factor * order.amount

    assert call(Desk().method) == 10
    assert call(Desk()) == 10
    assert call(functools.partial(scaled, 3)) == 30


def test_an_object_with_an_async_call_is_async() -> None:
    class Desk:
        async def __call__(self, order: OrderStruct) -> int:
            return order.amount

    assert Handler(Desk(), Context).is_async
    assert not Handler(lambda: None, Context).is_async


def test_an_input_that_does_not_fit_says_where() -> None:
    def step(order: OrderStruct) -> None: ...

    with pytest.raises(UnfitInput, match=r"input: Expected `int`, got `str` - at `\$.amount`"):
        call(step, {"amount": "ten"})


def test_an_effect_is_read_as_builtins_or_as_a_type() -> None:
    class Reservation(msgspec.Struct):
        reservation: str

    class Other(msgspec.Struct):
        seat: str

    where = context()
    assert where.effects["reserve_stock"] == {"reservation": "r-1"}
    assert list(where.effects) == ["reserve_stock"]
    assert where.effect("reserve_stock", Reservation).reservation == "r-1"
    with pytest.raises(InvalidInput, match=r"effect of step 'reserve_stock': .*missing required field `seat`"):
        where.effect("reserve_stock", Other)
    with pytest.raises(KeyError, match="no effect of step 'charge_card' is known here; there are reserve_stock"):
        where.effects["charge_card"]


def test_all_problems_of_a_signature_are_told_at_once() -> None:
    class Unreadable:
        pass

    def step(order: Unreadable, second: int, where: CompensationContext) -> Iterator[Any]:
        yield order

    step.__annotations__["order"] = Unreadable
    problems = problems_of(step)
    assert len(problems) == 4
    assert "it is a generator" in problems[0]
    assert "'order': the input cannot be converted" in problems[1]
    assert "'second' cannot be filled" in problems[2]
    assert "'where' is a CompensationContext; here it must be a Context" in problems[3]


def test_annotations_that_cannot_be_resolved_are_a_problem() -> None:
    def step(order: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert "its annotations cannot be resolved (name 'Missing' is not defined)" in problems_of(step)[0]


def test_a_signature_that_cannot_be_read_is_a_problem() -> None:
    assert any("signature cannot be read" in problem for problem in problems_of(dict))


def test_a_compensation_gets_a_context_of_its_own() -> None:
    def undo(ctx: CompensationContext) -> None: ...

    def wrong(ctx: Context) -> None: ...

    Handler(undo, CompensationContext)
    assert "here it must be a CompensationContext" in problems_of(wrong, CompensationContext)[0]


def test_a_binding_tells_the_problems_of_contract_and_signature_together() -> None:
    service = payment()
    with pytest.raises(DefinitionError) as caught:

        @service.step(ORDER, "charge_card")
        def again(order: dict[str, int], other: int) -> None: ...

    assert len(caught.value.problems) == 2
    assert "already bound to" in caught.value.problems[0]
    with pytest.raises(DefinitionError, match="no such step; it has reserve_stock, charge_card, send_receipt"):
        service.step(ORDER, "charge_cart")(lambda: None)
    with pytest.raises(DefinitionError, match="'send_receipt' has no compensation in the contract"):
        service.compensation(ORDER, "send_receipt")(lambda: None)


def test_a_version_with_another_content_is_refused() -> None:
    other = Saga("order", Step("charge_card"))
    with pytest.raises(DefinitionError, match="version 1 is held with another content"):
        payment().step(other, "charge_card")(lambda: None)


def test_a_decorator_returns_the_function() -> None:
    def charge() -> None: ...

    assert payment().step(ORDER, "send_receipt")(charge) is charge


@pytest.mark.parametrize("name", ["", "Payment", "pay ment", "1payment", "payment\n"])
def test_a_service_needs_a_name_that_can_be_part_of_a_group(name: str) -> None:
    with pytest.raises(DefinitionError, match="its name must match"):
        Service(name)


async def test_missing_handlers_are_told_before_anything_runs() -> None:
    world = await make_world()
    service = Service("half")
    service.step(ORDER, "charge_card")(lambda: None)
    service.compensation(ORDER, "reserve_stock")(lambda: None)
    with pytest.raises(DefinitionError) as caught:
        StepRuntime(service, world.broker)
    assert "'reserve_stock' of saga 'order' version 1 has a compensation handler but no handler" in str(caught.value)
    assert "needs a handler for its compensation 'refund_card'" in str(caught.value)
    with pytest.raises(DefinitionError, match="it runs no steps"):
        StepRuntime(Service("empty"), world.broker)


async def test_a_step_in_two_services_is_refused() -> None:
    world = await make_world()
    other = Service("billing")
    other.step(ORDER, "charge_card")(lambda: None)
    other.compensation(ORDER, "charge_card")(lambda: None)
    with pytest.raises(DefinitionError, match="is in services 'payment' and 'billing'; keep one"):
        StepRuntime([payment(), other], world.broker)
