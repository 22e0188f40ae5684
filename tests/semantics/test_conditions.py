"""Steps that run only sometimes: ``Step(when=…)``."""

from __future__ import annotations

from typing import Any

from choreo.contract import Step, when
from choreo.core import Phase
from choreo.messages.records import Compensate, Execute, StepSkipped
from choreo.observe.events import OutcomeEvent
from choreo.step import Continue, Retry
from tests.semantics.play import Play, in_round, read, rejects, returns, works
from tests.semantics.world import BrokerWorld, RunnerWorld

World = RunnerWorld | BrokerWorld

PARCEL = (
    Step("pick", "put_back"),
    Step("wrap", "unwrap", when=when.input("gift") & (when.effect("pick", "count") > 0)),
    Step("ship", "recall"),
)
PICKED = {"pick": returns({"count": 2})}


def phases(status: Any) -> dict[str, str]:
    return {step.step: step.phase for step in status.steps}


async def test_a_step_whose_condition_holds_runs_like_any_other(world: World) -> None:
    play = await world.play(*PARCEL, do=PICKED)
    outcome = await play.run({"gift": True})
    assert play.order() == ["pick", "wrap", "ship"]
    assert outcome.skipped == ()
    assert await play.said(StepSkipped) == []
    assert [command.step for command in await play.said(Execute)] == ["wrap"]


async def test_a_step_whose_condition_does_not_hold_is_skipped_and_seen_to_be(world: World) -> None:
    told: list[OutcomeEvent] = []

    def prepare(play: Play) -> None:
        play.service("ship").on_outcome(play.saga)(told.append)

    play = await world.play(*PARCEL, do=PICKED, prepare=prepare, name="skipping")
    outcome = await play.run({"gift": False})
    assert play.order() == ["pick", "ship"]
    assert outcome.skipped == ("wrap",)
    assert list(outcome.effects) == ["pick", "ship"]
    assert play.calls[-1].effects == {"pick": {"count": 2}}
    [skipped] = await play.said(StepSkipped)
    assert (skipped.step, skipped.condition) == ("wrap", "input.gift == true and pick.count > 0")
    status = await world.status(play.saga, play.saga_id)
    assert status.phase is Phase.COMPLETED
    assert phases(status) == {"pick": "completed", "wrap": "skipped", "ship": "completed"}
    await world.until(lambda: told)
    assert told[0].skipped == ("wrap",)


async def test_what_was_skipped_has_nothing_to_undo(world: World) -> None:
    play = await world.play(*PARCEL, do={**PICKED, "ship": rejects()})
    error = await play.fails({"gift": False})
    assert play.order("undo") == ["pick"]
    assert [each.step for each in error.outcome.compensations] == ["pick"]
    assert phases(await world.status(play.saga, play.saga_id))["wrap"] == "skipped"


async def test_a_new_round_asks_again(world: World) -> None:
    play = await world.play(
        *PARCEL,
        do={"pick": in_round({1: returns({"count": 0}), 2: returns({"count": 1})}), "ship": in_round({1: rejects()})},
        undo={"pick": returns(Retry(limit=2))},
    )
    outcome = await play.run({"gift": True})
    assert play.order() == ["pick", "ship", "pick", "wrap", "ship"]
    assert outcome.skipped == ()
    assert [skipped.round for skipped in await play.said(StepSkipped)] == [1]


async def test_a_step_that_ran_may_be_skipped_in_a_later_round(world: World) -> None:
    play = await world.play(
        *PARCEL,
        do={"pick": in_round({1: returns({"count": 1}), 2: returns({"count": 0})}), "ship": in_round({1: rejects()})},
        undo={"pick": returns(Retry(limit=2))},
    )
    outcome = await play.run({"gift": True})
    assert outcome.skipped == ("wrap",)
    assert play.story == "+pick +wrap -wrap -pick +pick +ship"
    assert play.calls[-1].effects == {"pick": {"count": 0}}, "nothing of what was undone"


async def test_a_condition_sees_a_substitute(world: World) -> None:
    steps = (Step("rate", "guess", recover_from="rejected"), Step("check", when=when.effect("rate", "guessed")))
    play = await world.play(*steps, do={"rate": rejects()}, undo={"rate": returns(Continue({"guessed": True}))})
    outcome = await play.run()
    assert play.order() == ["rate", "check"]
    assert outcome.skipped == ()


async def test_a_join_waits_for_the_branch_that_runs_and_not_for_the_one_that_is_skipped(world: World) -> None:
    play = await world.play(
        Step("left", after=(), when=when.input("left")),
        Step("right", after=(), when=when.input("right")),
        Step("join", after=("left", "right")),
        do={"join": lambda ctx: sorted(ctx.effects)},
    )
    assert read(await play.run({"right": True})) == ["right"]
    assert read(await play.run({"left": True, "right": True})) == ["left", "right"]
    assert read(await play.run(None)) == []


async def test_a_saga_of_which_nothing_is_to_be_done_completes(world: World) -> None:
    play = await world.play(Step("a", when=when.input("x")), Step("b", when=when.effect("a").exists()))
    outcome = await play.run(None)
    assert (read(outcome), outcome.effects, outcome.skipped) == (None, {}, ("a", "b"))
    assert play.calls == []


async def test_behind_a_pivot_a_skipped_step_is_done(world: World) -> None:
    play = await world.play(
        Step("pay", pivot=True), Step("thank", when=when.input("polite")), Step("file"), do={"file": works}
    )
    assert (await play.run({})).skipped == ("thank",)


async def test_the_decision_outlives_the_death_of_everything(world: World) -> None:
    play = await world.play(*PARCEL, do=PICKED, name="dying")
    saga_id = await play.start({"gift": False}, id="parcel-1")
    await play.is_called("do", "pick")
    await world.kill()
    await world.revive()
    outcome = await play.ends()
    assert saga_id == outcome.saga_id
    assert outcome.skipped == ("wrap",)
    assert await play.said(Compensate) == []
