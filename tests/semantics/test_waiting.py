"""Sagas that wait: for a signal, for their time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from choreo.contract import Step
from choreo.errors import DefinitionError
from choreo.messages.records import Execute, RoundStarted, SignalReceived, StepFailed
from choreo.step import Retry
from tests.semantics.play import in_round, read, rejects, returns
from tests.semantics.world import BrokerWorld, RunnerWorld

World = RunnerWorld | BrokerWorld

APPROVAL = (
    Step("draft", "discard"),
    Step("pay", "refund", await_signal="approved", signal_timeout="1h"),
    Step("book", "unbook"),
)


def pays(ctx: Any) -> Any:
    return {"limit": ctx.signal("approved", dict[str, int])["limit"], **ctx.signals}


async def test_a_step_waits_for_its_signal_and_gets_the_payload(world: World) -> None:
    play = await world.play(*APPROVAL, do={"pay": pays})
    saga_id = await play.start("order")
    await play.is_called("do", "draft")
    waiting = await world.until(lambda: waits(world, play, saga_id))
    assert waiting.signal == "approved"
    assert waiting.signal_due_ms > world.clock.now_ms()
    assert play.order() == ["draft"]
    await world.signal(play.saga, saga_id, "approved", {"limit": 500}, sent_by="ada", reason="called them")
    outcome = await play.ends()
    assert read(outcome, "pay") == {"limit": 500, "approved": {"limit": 500}}
    assert play.order() == ["draft", "pay", "book"]
    [signal] = await play.said(SignalReceived)
    assert (signal.sent_by, signal.reason) == ("ada", "called them")


async def waits(world: World, play: Any, saga_id: str) -> Any:
    found = next(step for step in (await world.status(play.saga, saga_id)).steps if step.step == "pay")
    return found if found.signal else None


async def test_a_signal_may_come_first_and_counts_in_every_round(world: World) -> None:
    play = await world.play(
        *APPROVAL,
        do={"pay": pays, "book": in_round({1: rejects()})},
        undo={"pay": returns(Retry(limit=2))},
        name="early",
    )
    await world.signal(play.saga, "saga-1", "approved", {"limit": 1})
    play.saga_id = await play.start("order", id="saga-1")
    outcome = await play.ends()
    assert read(outcome, "pay")["limit"] == 1
    assert play.order() == ["draft", "pay", "book", "pay", "book"]


async def test_the_compensation_sees_the_signal_too(world: World) -> None:
    seen: list[Any] = []
    play = await world.play(
        *APPROVAL, do={"book": rejects()}, undo={"pay": lambda ctx: seen.append(dict(ctx.signals))}, name="undone"
    )
    saga_id = await play.start("order")
    await world.signal(play.saga, saga_id, "approved", {"limit": 2})
    await play.ends_compensated()
    assert seen == [{"approved": {"limit": 2}}]


async def test_a_wait_in_vain_sends_the_saga_back(world: World) -> None:
    steps = (APPROVAL[0], Step("pay", "refund", await_signal="approved", signal_timeout="200ms"))
    play = await world.play(*steps, name="late", grace="100ms")
    error = await play.fails("order")
    assert (error.step, error.kind, error.code) == ("pay", "timed_out", "signal")
    assert play.order() == ["draft"]
    assert play.order("undo") == ["draft"]
    [gave_up] = await play.said(StepFailed)
    assert gave_up.effect == "none"


async def test_the_first_signal_of_its_name_counts_through_the_death_of_everything(world: World) -> None:
    play = await world.play(*APPROVAL, do={"pay": pays}, name="death")
    saga_id = await play.start("order")
    await play.is_called("do", "draft")
    await world.kill()
    for limit in (3, 4):
        await world.signal(play.saga, saga_id, "approved", {"limit": limit}, id=f"call-{limit}")
    await world.revive()
    assert read(await play.ends(), "pay")["limit"] == 3


async def test_a_signal_that_nobody_waits_for_is_refused_with_the_names_that_are_known(world: World) -> None:
    play = await world.play(*APPROVAL, name="unknown")
    with pytest.raises(DefinitionError, match="they wait for approved"):
        await world.signal(play.saga, "saga-1", "aproved")


async def test_a_scheduled_saga_begins_when_its_time_has_come(world: World) -> None:
    play = await world.play(Step("a", "undo_a"), Step("b"), do={"b": returns("done")}, name="scheduled")
    at = datetime.fromtimestamp(world.clock.now_ms() / 1_000, UTC) + timedelta(seconds=1)
    saga_id = await play.start("order", at=at)
    status = await world.status(play.saga, saga_id)
    assert status.phase == "scheduled"
    assert status.begins_ms == round(at.timestamp() * 1_000)
    assert read(await play.ends()) == "done"
    assert play.calls[0].at_ms >= status.begins_ms
    history = await play.history()
    assert isinstance(history[1], RoundStarted)
    assert isinstance(history[2], Execute)
    after = await world.status(play.saga, saga_id)
    assert after.due_ms == status.begins_ms + play.saga.deadline_ms


async def test_a_scheduled_saga_can_be_cancelled_before_it_begins(world: World) -> None:
    play = await world.play(Step("a", "undo_a"), name="cancelled")
    saga_id = await play.start("order", at="1h")
    await world.cancel(play.saga, saga_id, reason="not needed")
    await play.ends_compensated()
    assert play.calls == []


async def test_the_same_scheduled_start_again_is_the_same_saga(world: World) -> None:
    play = await world.play(Step("a", "undo_a"), name="twice")
    for _ in range(2):
        await play.start("order", id="saga-1", at="300ms")
    await play.ends()
    assert play.order() == ["a"]
