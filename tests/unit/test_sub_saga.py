"""Steps that are sagas: how contracts say so, what is refused, and what goes around the protocol."""

from __future__ import annotations

import pytest

from choreo.audit.explanation import explain
from choreo.audit.verification import verify
from choreo.broker import open_broker
from choreo.broker.registry import Registry, ensure_saga_topics, register
from choreo.cli.app import run_command
from choreo.contract import Retries, Saga, Step, when
from choreo.contract.document import from_json, to_json
from choreo.contract.render import mermaid
from choreo.errors import DefinitionError, SagaFailed
from choreo.messages.records import StepFailed
from choreo.step import Reject, Service
from choreo.testing import Runner

TRIP = Saga("trip", Step("hotel", "cancel_hotel"), Step("flight"), deadline="2h")
ORDER = Saga(
    "order", Step("pay", "refund"), Step("trip", saga=TRIP, input={"city": when.input("city"), "n": 2}), Step("ship")
)


def test_a_contract_refers_to_the_saga_that_a_step_is_and_comes_back_from_its_document() -> None:
    child = ORDER["trip"].child
    assert child is not None
    assert (child.saga, child.version, child.contract_hash) == ("trip", 1, TRIP.content_hash)
    assert from_json(to_json(ORDER)) == ORDER
    assert from_json(to_json(ORDER)).content_hash == ORDER.content_hash
    other = Saga("order", Step("pay", "refund"), Step("trip", saga=TRIP), Step("ship"))
    assert other.content_hash != ORDER.content_hash


def test_a_contract_without_sub_sagas_keeps_its_hash() -> None:
    assert b"child" not in to_json(TRIP)


def test_the_step_and_what_comes_directly_after_it_is_triggered_by_no_event() -> None:
    assert ORDER.graph.chained == {"pay": (), "trip": (), "ship": ()}
    assert ORDER["trip"].compensation == "undo"


def test_a_contract_knows_all_sagas_in_it() -> None:
    outer = Saga("outer", Step("order", saga=ORDER), Step("again", saga=TRIP))
    assert outer.children == (ORDER, TRIP)
    assert outer.extend(Step("last")).children == (ORDER, TRIP)


def test_a_saga_with_a_pivot_makes_its_step_one_through_all_levels() -> None:
    pivoted = Saga("pivoted", Step("a"), Step("p", pivot=True))
    middle = Saga("middle", Step("inner", saga=pivoted))
    assert Saga("outer", Step("middle", saga=middle))["middle"].pivot


def test_it_is_drawn() -> None:
    assert "-> trip    <- undo             saga trip v1" in str(ORDER)
    assert '    do_trip[["trip"]]' in mermaid(ORDER).splitlines()


def test_describe_shows_the_child_behind_its_parent(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["describe", f"{__name__}:ORDER"]) == 0
    said = capsys.readouterr().out
    assert said.index("saga order v1") < said.index("\n\nsaga trip v1")
    assert "cancel_hotel" in said


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (Step("b", "undo_b", saga=TRIP), "it is undone by undoing saga 'trip'; leave out its compensation"),
        (
            Step("b", input={"x": 1}),
            "input is for a step that is a saga; give it saga=",
        ),
        (Step("b", saga=TRIP, retries=2), "retries are of handlers; give them to the steps of saga 'trip'"),
        (Step("b", saga=TRIP, recover_from="crashed"), "recover_from is for compensations that can answer Continue"),
        (
            Step("b", saga=TRIP, input={"x": when.effect("c")}),
            "input: it looks at the effect of 'c', which may not have run by then",
        ),
        (Step("b", saga=TRIP, input={"x": [1]}), "input: it compares with a list"),
        (
            Step("b", saga=Saga("p", Step("x", pivot=True)), when=when.input("x")),
            "a pivot cannot be skipped",
        ),
    ],
    ids=lambda each: each[:40] if isinstance(each, str) else "",
)
def test_what_cannot_be_is_refused(step: Step, problem: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        Saga("order", Step("a"), step, Step("c"))
    assert any(problem in found for found in refused.value.problems), refused.value.problems


async def test_topics_and_contracts_of_children_come_with_those_of_their_parents() -> None:
    broker = await open_broker("memory://sub-saga-topics")
    await ensure_saga_topics(broker, [ORDER])
    assert {"choreo.order", "choreo.trip"} <= set(await broker.topics())
    await register(broker, [ORDER])
    registry = Registry(broker)
    await registry.refresh()
    assert registry.get("trip", 1) == TRIP


def services() -> list[Service]:
    """One for the parent's steps, one for the child's."""
    shop, travel = Service("shop"), Service("travel")
    for service, saga in ((shop, ORDER), (travel, TRIP)):
        for step in saga.steps:
            if step.child is None:
                service.step(saga, step.name)(lambda: None)
                if step.compensation is not None:
                    service.compensation(saga, step.name)(lambda: None)
    return [shop, travel]


async def test_a_runner_wants_handlers_for_the_steps_of_children_but_none_for_the_step_itself() -> None:
    shop, travel = services()
    with pytest.raises(DefinitionError, match="step 'hotel' of saga 'trip' version 1 has no handler"):
        Runner(shop)
    async with Runner(shop, travel) as runner:
        await runner.run(ORDER, {"city": "Rome"})


async def test_a_parent_without_services_of_its_own_is_given_as_a_contract() -> None:
    only = Saga("only", Step("trip", saga=TRIP))
    _, travel = services()
    async with Runner(travel, contracts=[only]) as runner:
        await runner.run(only, None)


async def test_an_id_that_grows_too_long_fails_the_step() -> None:
    async with Runner(*services()) as runner:
        with pytest.raises(SagaFailed) as failed:
            await runner.run(ORDER, {"city": "Rome"}, id="x" * 195)
        [said] = [record for record in runner.history("x" * 195) if isinstance(record, StepFailed)]
    assert (failed.value.step, failed.value.code, said.effect) == ("trip", "context_too_large", "none")
    assert "saga_id" in said.failure.message


async def test_the_status_of_the_parent_names_its_child() -> None:
    async with Runner(*services()) as runner:
        outcome = await runner.run(ORDER, {"city": "Rome"})
        status = await runner.status(ORDER, outcome.saga_id)
    assert [step.child for step in status.steps] == [None, f"order/{outcome.saga_id}/trip/1", None]


def test_policies_of_handlers_stay_those_of_the_childs_steps() -> None:
    assert ORDER["trip"].retries == Retries(limit=0)


async def test_the_logs_of_parent_and_child_stand_up_to_the_audit() -> None:
    shop, travel = Service("shop"), Service("travel")

    @shop.step(ORDER, "pay")
    @travel.step(TRIP, "hotel")
    @travel.step(TRIP, "flight")
    async def works() -> str:
        return "done"

    @shop.compensation(ORDER, "pay")
    @travel.compensation(TRIP, "hotel")
    async def undoes() -> None:
        pass

    @shop.step(ORDER, "ship")
    async def ships(order: dict[str, str]) -> None:
        if order["city"] == "Atlantis":
            raise Reject("where is that?")

    async with Runner(shop, travel) as runner:
        await runner.run(ORDER, {"city": "Rome"}, id="o-1")
        with pytest.raises(SagaFailed):
            await runner.run(ORDER, {"city": "Atlantis"}, id="o-2")
        broker = runner._broker
        for saga in (ORDER, TRIP):
            found = await verify(broker, saga.name, registry=Registry(broker), now_ms=runner.clock.now_ms())
            assert found.faults == []
            assert found.records > 10
        why = await explain(broker, "order", "o-2", registry=Registry(broker), now_ms=runner.clock.now_ms())
    assert "ship failed" in why.headline
