"""Signals, scheduled starts and pauses over a real Kafka, ended in order: no socket is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from choreo.contract import Step
from choreo.messages.records import Execute
from tests.semantics.play import Play, read, sleeps
from tests.semantics.world import BrokerWorld

pytestmark = pytest.mark.kafka

QUIET_S = 1.0
LINE = (Step("a", "undo_a"), Step("b", "undo_b"), Step("c"))


@pytest.fixture
async def world(kafka_url: str) -> AsyncIterator[BrokerWorld]:
    made = BrokerWorld(kafka_url, stops_within_s=30)
    yield made
    await made.close()
    for play in made.plays:
        play.check()


async def phase_of(world: BrokerWorld, play: Play, step: str) -> str:
    status = await world.status(play.saga, play.saga_id)
    return next(each.phase for each in status.steps if each.step == step)


async def test_a_step_waits_for_its_signal_whichever_comes_first(world: BrokerWorld) -> None:
    def pays(ctx: Any) -> Any:
        return ctx.signal("approved", dict[str, int])["limit"]

    steps = (Step("draft", "discard"), Step("pay", "refund", await_signal="approved", signal_timeout="1h"))
    play = await world.play(*steps, do={"pay": pays}, name="signals")
    await play.start("order")
    await play.is_called("do", "draft")
    await asyncio.sleep(QUIET_S)
    assert play.order() == ["draft"]
    await world.signal(play.saga, play.saga_id, "approved", {"limit": 500})
    assert read(await play.ends()) == 500
    await world.signal(play.saga, "early", "approved", {"limit": 7})
    await play.start("order", id="early")
    assert read(await play.ends()) == 7


async def test_a_wait_in_vain_and_a_scheduled_start_by_the_brokers_clock(world: BrokerWorld) -> None:
    steps = (Step("draft", "discard"), Step("pay", await_signal="approved", signal_timeout="500ms"))
    play = await world.play(*steps, name="late", grace="200ms")
    await play.start("order", at="500ms")
    assert (await world.status(play.saga, play.saga_id)).phase in ("scheduled", "forward")
    error = await play.ends_compensated()
    assert (error.step, error.code, play.story) == ("pay", "signal", "+draft -draft")


async def test_a_paused_saga_finishes_what_is_in_flight_and_goes_on_when_it_is_resumed(world: BrokerWorld) -> None:
    play = await world.play(*LINE, do={"a": sleeps(0.5)}, name="paused")
    await play.start("order")
    await play.is_called("do", "a")
    await world.pause(play.saga, play.saga_id)
    await world.until(lambda: _is(world, play, "a", "completed"))
    await asyncio.sleep(QUIET_S)
    assert play.order() == ["a"]
    [pause] = (await world.status(play.saga, play.saga_id)).paused
    assert (pause.of, pause.operator, pause.reason) == ("saga", "test", "because")
    await world.resume(play.saga, play.saga_id)
    await play.ends()
    assert play.order() == ["a", "b", "c"]
    assert len(await play.said(Execute, "b")) == 1


async def test_a_paused_type_holds_those_that_start_later_too(world: BrokerWorld) -> None:
    play = await world.play(*LINE, name="type")
    await world.pause(play.saga)
    for number in range(4):  # in more than one partition
        await play.start("order", id=f"held-{number}")
    await asyncio.sleep(QUIET_S)
    assert play.calls == []
    await world.resume(play.saga)
    for number in range(4):
        play.saga_id = f"held-{number}"
        await play.ends()
    assert len(play.order()) == 12


async def test_a_cancel_in_a_pause_takes_effect_at_the_resumption(world: BrokerWorld) -> None:
    play = await world.play(*LINE, do={"a": sleeps(0.5)}, name="cancelled")
    await play.start("order")
    await play.is_called("do", "a")
    await world.pause(play.saga, play.saga_id)
    await world.until(lambda: _is(world, play, "a", "completed"))
    await world.cancel(play.saga, play.saga_id)
    await asyncio.sleep(QUIET_S)
    assert play.order("undo") == []
    await world.resume(play.saga, play.saga_id)
    await play.ends_compensated()
    assert play.story == "+a -a"


async def _is(world: BrokerWorld, play: Play, step: str, phase: str) -> bool:
    return await phase_of(world, play, step) == phase
