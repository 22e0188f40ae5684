"""Sagas that are paused, one or all of a type."""

from __future__ import annotations

import asyncio
from typing import Any

from choreo.contract import Step
from choreo.messages.records import Execute, SagaPaused
from tests.semantics.play import Play, sleeps
from tests.semantics.world import BrokerWorld, RunnerWorld

World = RunnerWorld | BrokerWorld

LINE = (Step("a", "undo_a"), Step("b", "undo_b"), Step("c"))
QUIET_S = 1.0


async def paused(world: World, play: Play, saga_id: str) -> Any:
    """Wait until the first step is through and the saga is paused, and for a while that nothing more happens."""

    async def status() -> Any:
        found = await world.status(play.saga, saga_id)
        return found if found.paused and found.steps[0].phase == "completed" else None

    found = await world.until(status)
    await asyncio.sleep(QUIET_S)
    return found


async def test_what_is_in_flight_finishes_and_nothing_else_begins_until_the_saga_is_resumed(world: World) -> None:
    play = await world.play(*LINE, do={"a": sleeps(0.3)})
    saga_id = await play.start("order")
    await play.is_called("do", "a")
    await world.pause(play.saga, saga_id)
    status = await paused(world, play, saga_id)
    assert [each.of for each in status.paused] == ["saga"]
    assert play.order() == ["a"]
    await world.resume(play.saga, saga_id)
    await play.ends()
    assert play.order() == ["a", "b", "c"]
    assert len(await play.said(Execute, "b")) == 1
    assert (await world.status(play.saga, saga_id)).paused == ()


async def test_a_cancel_in_a_pause_takes_effect_at_the_resumption(world: World) -> None:
    play = await world.play(*LINE, do={"a": sleeps(0.3)}, name="cancelled")
    saga_id = await play.start("order")
    await play.is_called("do", "a")
    await world.pause(play.saga, saga_id)
    await paused(world, play, saga_id)
    await world.cancel(play.saga, saga_id)
    await asyncio.sleep(QUIET_S)
    assert play.order("undo") == []
    await world.resume(play.saga, saga_id)
    await play.ends_compensated()
    assert play.story == "+a -a"
    assert play.order() == ["a"], "what was held never runs"


async def test_a_pause_outlives_the_death_of_everything(world: World) -> None:
    play = await world.play(*LINE, do={"a": sleeps(0.3)}, name="death")
    saga_id = await play.start("order")
    await play.is_called("do", "a")
    await world.pause(play.saga, saga_id)
    await paused(world, play, saga_id)
    await world.kill("saga-log")
    await world.revive("saga-log")
    await asyncio.sleep(QUIET_S)
    assert play.order() == ["a"]
    await world.resume(play.saga, saga_id)
    await play.ends()
    assert play.order() == ["a", "b", "c"]


async def test_workers_that_know_nothing_of_a_pause_do_no_harm(world: World) -> None:
    play = await world.play(*LINE, do={"a": sleeps(0.3)}, name="forgetful")
    saga_id = await play.start("order")
    await play.is_called("do", "a")
    await world.pause(play.saga, saga_id)
    await paused(world, play, saga_id)
    await world.kill("b")
    await world.revive("b")  # it may begin behind the pause
    await asyncio.sleep(QUIET_S)
    await world.cancel(play.saga, saga_id)
    await world.resume(play.saga, saga_id)
    await play.ends_compensated()
    assert play.story in ("+a -a", "+a +b -b -a")


async def test_a_pause_of_the_type_holds_all_sagas_those_too_that_start_later(world: World) -> None:
    play = await world.play(*LINE, do={"a": sleeps(0.3)}, name="all")
    first = await play.start("order")
    await play.is_called("do", "a")
    await world.pause(play.saga)
    await paused(world, play, first)
    second = await play.start("later")
    await asyncio.sleep(QUIET_S)
    assert play.order() == ["a"]
    status = await world.status(play.saga, second)
    assert [each.of for each in status.paused] == ["type"]
    assert status.steps[0].phase == "waiting"
    await world.kill("saga-log")
    await world.revive("saga-log")
    await world.resume(play.saga)
    for saga_id in (first, second):
        play.saga_id = saga_id
        await play.ends()
    assert sorted(play.order()) == ["a", "a", "b", "b", "c", "c"]


async def test_a_saga_that_is_paused_itself_stays_so_when_its_type_goes_on(world: World) -> None:
    play = await world.play(*LINE, do={"a": sleeps(0.3)}, name="both")
    saga_id = await play.start("order")
    await play.is_called("do", "a")
    await world.pause(play.saga, saga_id)
    await world.pause(play.saga)
    await paused(world, play, saga_id)
    await world.resume(play.saga)
    await asyncio.sleep(QUIET_S)
    assert play.order() == ["a"]
    await world.resume(play.saga, saga_id)
    await play.ends()
    assert len(await play.said(SagaPaused)) == 1
