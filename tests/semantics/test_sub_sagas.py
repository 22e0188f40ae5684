"""Steps that are sagas of their own: ``Step(saga=…)`` (rule 19)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from choreo.contract import Saga, Step, when
from choreo.core import Phase
from choreo.errors import DefinitionError
from choreo.messages.family import SagaUndone, UndoRequested
from choreo.messages.records import (
    CompensationFailed,
    SagaCompensated,
    SagaCompleted,
    SagaStarted,
    StepCompleted,
    StepFailed,
)
from choreo.step import Retry, Service
from tests.semantics.play import Play, hangs, in_round, in_turn, raises, read, rejects, returns, sleeps, undoes
from tests.semantics.world import BrokerWorld, RunnerWorld

World = RunnerWorld | BrokerWorld

TRIP = (Step("hotel", "cancel_hotel"), Step("flight", "cancel_flight"))


class Family:
    """A parent saga ``order``: ``reserve``, the saga ``trip``, ``ship``; and the plays of both."""

    def __init__(self, world: Any, parent: Play, child: Play) -> None:
        self.world, self.parent, self.child = world, parent, child

    @property
    def child_id(self) -> str:
        return self.child_of(1)

    def child_of(self, saga_round: int) -> str:
        return f"{self.parent.saga.name}/{self.parent.saga_id}/trip/{saga_round}"

    def child_story(self, saga_round: int = 1) -> str:
        return self.child.ledger.story(self.child_of(saga_round))

    async def child_said(self, kind: type[Any]) -> list[Any]:
        records = await self.world.history(self.child.saga, self.child_id)
        return [record for record in records if isinstance(record, kind)]


async def family(
    world: Any,
    *,
    name: str = "order",
    trip: tuple[Step, ...] = TRIP,
    do: dict[str, Any] | None = None,
    undo: dict[str, Any] | None = None,
    step: dict[str, Any] | None = None,
    trip_options: dict[str, Any] | None = None,
    **options: Any,
) -> Family:
    do, undo = do or {}, undo or {}
    child_saga = Saga(world.named(f"{name}-trip"), *trip, **(trip_options or {}))
    parent_saga = Saga(
        world.named(name),
        Step("reserve", "release"),
        Step("trip", saga=child_saga, **(step or {})),
        Step("ship", "recall"),
        **options,
    )
    plays = []
    for prefix, saga in (("p-", parent_saga), ("c-", child_saga)):
        names = {each.name for each in saga.steps}
        behaviours = [{one: how for one, how in given.items() if one in names} for given in (do, undo)]
        plays.append(Play(world, saga, *behaviours, {}, prefix))
    world.plays += plays
    await world.serve(*plays[0].services, *plays[1].services)
    return Family(world, *plays)


async def test_a_step_may_be_a_saga_whose_result_is_its_effect(world: World) -> None:
    both = await family(world, do={"flight": returns({"seat": "12A"})})
    outcome = await both.parent.run({"city": "Rome"})
    assert read(outcome, "trip") == {"seat": "12A"}
    assert both.parent.calls[-1].effects["trip"] == {"seat": "12A"}
    assert both.child.calls[0].input == {"city": "Rome"}
    assert both.child_story() == "+hotel +flight"
    [started] = await both.child_said(SagaStarted)
    assert (started.parent.saga_id, started.parent.step, started.parent.round) == (both.parent.saga_id, "trip", 1)
    status = await world.status(both.child.saga, both.child_id)
    assert status.phase is Phase.COMPLETED


async def test_its_input_may_be_made_from_the_parents_context(world: World) -> None:
    made_from = {"to": when.input("city"), "shelf": when.effect("reserve", "shelf"), "seats": 2, "no": when.input("x")}
    both = await family(world, do={"reserve": returns({"shelf": "B7"})}, step={"input": made_from}, name="mapped")
    await both.parent.run({"city": "Rome"})
    assert both.child.calls[0].input == {"to": "Rome", "shelf": "B7", "seats": 2, "no": None}


async def test_its_failure_is_the_steps_with_its_cause(world: World) -> None:
    both = await family(world, do={"flight": rejects("no seats", code="sold_out")}, name="failing")
    error = await both.parent.fails()
    assert (error.step, error.kind, error.code) == ("trip", "rejected", "sold_out")
    assert "no seats" in str(error)
    assert both.child_id in str(error)
    assert both.child_story() == "+hotel -hotel"
    assert both.parent.story == "+reserve -reserve"
    assert await both.child_said(UndoRequested) == []


async def test_a_completed_one_is_undone_before_what_it_builds_on(world: World) -> None:
    both = await family(world, do={"ship": rejects()}, name="undoing")
    error = await both.parent.fails()
    assert both.child_story() == "+hotel +flight -flight -hotel"
    assert both.parent.story == "+reserve -reserve"
    undone = [call for play in (both.child, both.parent) for call in play.calls if call.act == "undo"]
    assert [call.step for call in sorted(undone, key=lambda call: call.at_ms)] == ["flight", "hotel", "reserve"]
    assert [(one.step, one.how) for one in error.outcome.compensations] == [("trip", "undone"), ("reserve", "undone")]
    [answer] = await both.child_said(SagaUndone)
    assert answer.undone
    assert answer.id == f"{both.child_id}/undo-outcome/1"
    status = await world.status(both.child.saga, both.child_id)
    assert status.phase is Phase.COMPENSATED
    assert await both.child_said(SagaCompensated) == [], "its outcome stays what it was"


async def test_a_running_one_is_cancelled_when_the_parent_no_longer_waits(world: World) -> None:
    both = await family(world, do={"flight": sleeps(1.5)}, name="cancelled", settle="300ms", grace="100ms")
    await both.parent.start()
    await both.child.is_called("do", "flight")
    await world.cancel(both.parent.saga, both.parent.saga_id)
    await both.parent.ends_compensated()
    assert both.child_story() == "+hotel +flight -flight -hotel"
    assert both.parent.story == "+reserve -reserve"
    [outcome] = await both.child_said(SagaCompensated)
    assert outcome.cause == "cancelled"


async def test_a_stuck_one_is_a_stuck_parent_until_somebody_frees_it(world: World) -> None:
    trip = (Step("hotel", "cancel_hotel", compensation_retries=0), TRIP[1])
    both = await family(
        world,
        do={"ship": rejects()},
        undo={"hotel": in_turn(raises(RuntimeError("closed")), undoes)},
        trip=trip,
        name="stuck",
    )
    await both.parent.start()
    status = await both.parent.is_stuck()
    assert [step.phase for step in status.steps if step.step == "trip"] == ["stuck"]
    [failed] = await both.parent.said(CompensationFailed)
    assert "closed" in failed.failure.message
    both.child.saga_id = both.child_id
    await both.child.is_stuck()
    await world.act(both.child.saga, both.child_id, "retry", "hotel")
    await both.parent.ends_compensated()
    assert both.child_story() == "+hotel +flight -flight -hotel"
    assert both.parent.story == "+reserve -reserve"


async def test_one_that_is_stuck_while_it_fails_turns_the_parent_round(world: World) -> None:
    trip = (Step("hotel", "cancel_hotel", compensation_retries=0), TRIP[1])
    both = await family(
        world,
        do={"flight": rejects("no seats")},
        undo={"hotel": in_turn(raises(RuntimeError("closed")), undoes)},
        trip=trip,
        name="stuck-failing",
    )
    await both.parent.start()
    await both.parent.is_stuck()
    assert [failed.effect for failed in await both.parent.said(StepFailed)] == ["unknown"]
    await world.act(both.child.saga, both.child_id, "retry", "hotel")
    error = await both.parent.ends_compensated()
    assert error.step == "trip"
    assert both.child_story() == "+hotel -hotel"
    assert both.parent.story == "+reserve -reserve"


async def test_a_new_round_is_a_new_saga(world: World) -> None:
    both = await family(
        world,
        do={"ship": in_round({1: rejects()})},
        undo={"reserve": returns(Retry(limit=2))},
        name="rounds",
    )
    await both.parent.run()
    assert both.child_story(1) == "+hotel +flight -flight -hotel"
    assert both.child_story(2) == "+hotel +flight"


async def test_its_deadline_is_at_most_the_steps(world: World) -> None:
    both = await family(
        world,
        do={"flight": hangs},
        step={"deadline": "700ms"},
        trip_options={"grace": "100ms"},
        name="late",
        grace="5s",
    )
    error = await both.parent.fails()
    assert (error.step, error.kind) == ("trip", "timed_out")
    assert both.child_story() == "+hotel -hotel"


async def test_one_with_a_pivot_makes_the_step_a_pivot(world: World) -> None:
    both = await family(
        world,
        trip=(TRIP[0], Step("flight", pivot=True)),
        do={"ship": in_turn(rejects(), returns("shipped"))},
        name="pivot",
    )
    assert both.parent.saga["trip"].pivot
    await both.parent.run()
    assert both.child_story() == "+hotel +flight"
    assert both.parent.story == "+reserve +ship"


async def test_sagas_may_be_nested(world: World) -> None:
    inner = Saga(world.named("inner"), Step("x", "undo_x"), Step("y", "undo_y"))
    middle = Saga(world.named("middle"), Step("m", "undo_m"), Step("inner", saga=inner))
    outer = Saga(world.named("outer"), Step("middle", saga=middle), Step("last"))
    plays = [
        Play(world, outer, {"last": in_turn(returns("done"), rejects())}, {}, {}, "o-"),
        Play(world, middle, {}, {}, {}, "m-"),
        Play(world, inner, {"y": returns("deep")}, {}, {}, "i-"),
    ]
    world.plays += plays
    await world.serve(*(service for play in plays for service in play.services))
    outcome = await plays[0].run()
    assert read(outcome, "middle") == "deep"
    await plays[0].fails()
    middle_id = f"{outer.name}/{plays[0].saga_id}/middle/1"
    assert plays[1].ledger.story(middle_id) == "+m -m"
    assert plays[2].ledger.story(f"{middle.name}/{middle_id}/inner/1") == "+x +y -y -x"


async def test_the_saga_log_may_die_anywhere(world: World) -> None:
    both = await family(world, do={"ship": rejects()}, name="dying")
    await both.parent.start()
    for act, step in (("do", "reserve"), ("do", "hotel"), ("do", "ship"), ("undo", "flight"), ("undo", "hotel")):
        await (both.parent if step in ("reserve", "ship") else both.child).is_called(act, step)
        await world.kill("saga-log")
        await world.revive("saga-log")
    await both.parent.ends_compensated()
    assert both.child_story() == "+hotel +flight -flight -hotel"
    assert both.parent.story == "+reserve -reserve"


async def test_an_id_that_somebody_else_has_taken_fails_the_step(world: World) -> None:
    both = await family(world, name="taken")
    child_id = f"{both.parent.saga.name}/order-1/trip/1"
    await world.start(both.child.saga, None, id=child_id)
    await world.wait(both.child.saga, child_id)
    both.parent.saga_id = await both.parent.start(id="order-1")
    error = await both.parent.ends_compensated()
    assert error.code == "saga_id_taken"
    assert both.child.ledger.standing(child_id) == ["hotel", "flight"]


async def test_a_handler_for_a_step_that_is_a_saga_is_refused(world: World) -> None:
    both = await family(world, name="refused")
    with pytest.raises(DefinitionError, match="bind its steps instead"):
        Service("wrong").step(both.parent.saga, "trip")(lambda: None)
    await both.parent.run()
    assert len(await both.parent.said(StepCompleted)) == 3


async def test_a_paused_parent_takes_up_what_its_child_came_to_when_it_is_resumed(world: World) -> None:
    both = await family(world, do={"hotel": sleeps(0.5)}, name="paused")
    await both.parent.start("order")
    await both.child.is_called("do", "hotel")
    await world.pause(both.parent.saga, both.parent.saga_id)
    await world.until(lambda: both.child_said(SagaCompleted))
    await asyncio.sleep(1)
    assert both.child.order() == ["hotel", "flight"], "the child is a saga of its own"
    assert both.parent.order() == ["reserve"]
    await world.resume(both.parent.saga, both.parent.saga_id)
    await both.parent.ends()
    assert both.parent.order() == ["reserve", "ship"]


async def test_a_cancel_of_a_paused_parent_reaches_its_child_at_the_resumption(world: World) -> None:
    both = await family(world, do={"hotel": sleeps(0.5)}, name="paused-cancelled")
    await both.parent.start("order")
    await both.child.is_called("do", "hotel")
    await world.pause(both.parent.saga, both.parent.saga_id)
    await world.cancel(both.parent.saga, both.parent.saga_id)
    await world.until(lambda: both.child_said(SagaCompleted))
    assert both.child.order("undo") == []
    await world.resume(both.parent.saga, both.parent.saga_id)
    await both.parent.ends_compensated()
    await world.until(lambda: both.child_said(SagaUndone))
    assert (both.child_story(), both.parent.story) == ("+hotel +flight -flight -hotel", "+reserve -reserve")


async def test_a_child_that_is_paused_itself_is_waited_for(world: World) -> None:
    both = await family(world, do={"hotel": sleeps(0.5)}, name="child-paused")
    await both.parent.start("order")
    await both.child.is_called("do", "hotel")
    await world.pause(both.child.saga, both.child_id)
    await asyncio.sleep(2)
    assert both.child.order() == ["hotel"]
    await world.resume(both.child.saga, both.child_id)
    await both.parent.ends()
    assert both.child.order() == ["hotel", "flight"]
