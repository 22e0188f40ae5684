"""Siblings that are cancelled when one of them fails, or the saga is cancelled: ``on_sibling_failure="cancel"``."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from choreo.contract import Retries, Saga, Step
from choreo.messages.records import CancelStep, Compensate, Execute, StepFailed
from choreo.step import Context, Continue, Retry
from tests.semantics.play import Play, done, hangs, in_round, raises, read, rejects, returns, sleeps
from tests.semantics.world import BrokerWorld, RunnerWorld

World = RunnerWorld | BrokerWorld

SLOW_S = 600.0
CANCEL: dict[str, Any] = {"on_sibling_failure": "cancel"}
FORK = (Step("a", "undo_a"), Step("b", "undo_b", after="a"), Step("c", "undo_c", after="a", timeout="1h"))
DIAMOND = (*FORK, Step("d", "undo_d", after=("b", "c")))

slow = sleeps(SLOW_S)


async def lasted_s(world: World, play: Play) -> float:
    status = await world.status(play.saga, play.saga_id)
    return float(status.updated_ms - status.started_ms) / 1_000


async def test_s16_a_sibling_at_work_is_cancelled_in_its_middle_and_its_possible_effect_undone(world: World) -> None:
    play = await world.play(*DIAMOND, do={"b": sleeps(0.2, rejects()), "c": slow}, **CANCEL)
    failed = await play.fails()
    assert failed.step == "b"
    assert await lasted_s(world, play) < SLOW_S / 10
    [command] = await play.said(CancelStep)
    assert (command.step, command.failed) == ("c", "b")
    _, cancelled = await play.said(StepFailed)
    assert (cancelled.step, cancelled.failure.kind, cancelled.failure.code) == ("c", "cancelled", "sibling_failed")
    assert cancelled.failure.message == "step 'b' has failed"
    assert (cancelled.effect, cancelled.attempts) == ("unknown", 1)
    assert play.order("undo") == ["c", "a"]
    assert play.called("undo", "c")[0].effect is None
    assert play.story == "+a -a"


async def test_s16_only_the_siblings_that_may_be_are_cancelled(world: World) -> None:
    steps = (
        Step("a", "undo_a"),
        Step("b", after="a"),
        Step("c", "undo_c", after="a", on_sibling_failure="cancel"),
        Step("e", "undo_e", after="a"),
    )
    play = await world.play(*steps, do={"b": sleeps(0.2, rejects()), "c": hangs, "e": sleeps(0.5)})
    await play.fails()
    assert [command.step for command in await play.said(CancelStep)] == ["c"]
    assert play.story == "+a +e -e -a"


async def test_s16_one_that_has_ended_by_itself_is_compensated_as_ever(world: World) -> None:
    play = await world.play(*DIAMOND, do={"b": sleeps(0.3, rejects())}, **CANCEL)
    await play.fails()
    assert await play.said(CancelStep) == []
    assert play.story == "+a +c -c -a"


async def test_s16_a_wait_between_two_attempts_is_cut_short_and_no_more_attempts_are_made(world: World) -> None:
    minutes = Retries(5, backoff_ms_base=300_000, backoff_ms_max=300_000, jitter=False)
    fork = (*FORK[:2], Step("c", "undo_c", after="a", retries=minutes))
    play = await world.play(*fork, do={"b": sleeps(0.3, rejects()), "c": raises(ValueError())}, **CANCEL)
    await play.fails()
    assert len(play.called("do", "c")) == 1
    assert await lasted_s(world, play) < 60
    (cancelled,) = await play.said(StepFailed, "c")
    assert (cancelled.failure.kind, cancelled.effect, cancelled.attempts) == ("cancelled", "unknown", 1)


async def test_s16_a_handler_that_does_not_let_itself_be_cancelled_completes(world: World) -> None:
    async def stubborn(ctx: Context) -> str:
        try:
            await asyncio.sleep(SLOW_S)
        except asyncio.CancelledError:
            return done(ctx)
        raise AssertionError("it was to be cancelled")

    play = await world.play(*DIAMOND, do={"b": sleeps(0.2, rejects()), "c": stubborn}, **CANCEL)
    await play.fails()
    assert play.story == "+a +c -c -a"


async def test_s16_what_a_branch_triggers_behind_the_failure_is_cancelled_too(world: World) -> None:
    steps = (*FORK, Step("e", "undo_e", after="c", timeout="1h", **CANCEL), Step("d", after=("b", "e")))
    play = await world.play(*steps, do={"b": sleeps(0.2, rejects()), "c": sleeps(0.4), "e": slow})
    await play.fails()
    assert [command.step for command in await play.said(CancelStep)] == ["e"]
    (cancelled,) = await play.said(StepFailed, "e")
    assert cancelled.failure.kind == "cancelled"
    assert play.ledger.standing(play.saga_id) == []


async def test_s16_who_knows_of_the_failure_says_that_nothing_was_done(world: World) -> None:
    steps = (
        Step("a", "undo_a"),
        Step("b", "undo_b", after="a"),
        Step("c", "undo_c", after="a", on_sibling_failure="settle"),
        Step("f", "undo_f", after="a", timeout="1h"),
        Step("e", "undo_e", after="c"),
    )
    do = {"b": sleeps(0.2, rejects()), "c": sleeps(0.5), "f": slow}
    play = await world.play(*steps, do=do, **CANCEL)
    await play.fails()
    assert play.called("do", "e") == []
    assert {record.step: record.effect for record in await play.said(StepFailed)} == {
        "b": "none",
        "f": "unknown",
        "e": "none",
    }
    assert play.order("undo") == ["f", "c", "a"]


async def test_s16_where_a_substitute_may_mend_the_failure_siblings_settle(world: World) -> None:
    fork = (FORK[0], Step("b", "undo_b", after="a", recover_from="rejected"), *DIAMOND[2:])
    play = await world.play(
        *fork, do={"b": rejects(), "c": sleeps(0.3)}, undo={"b": returns(Continue("spare"))}, **CANCEL
    )
    outcome = await play.run()
    assert await play.said(CancelStep) == []
    assert (read(outcome, "b"), read(outcome, "c"), read(outcome, "d")) == ("spare", "c 1", "d 1")


async def test_s16_in_the_next_round_what_was_cancelled_runs_again(world: World) -> None:
    play = await world.play(
        *DIAMOND,
        do={"b": in_round({1: sleeps(0.2, rejects())}), "c": in_round({1: slow})},
        undo={"a": returns(Retry(limit=2))},
        **CANCEL,
    )
    outcome = await play.run()
    assert {step: read(outcome, step) for step in outcome.effects} == {step: f"{step} 2" for step in "abcd"}


async def test_s16_several_failures_the_cancelled_ones_are_never_the_failure(world: World) -> None:
    steps = (*FORK, Step("e", "undo_e", after="a", timeout="1h"), Step("f", "undo_f", after="a", timeout="1h"))
    do = {"b": slow, "c": sleeps(0.2, rejects("this one")), "e": slow, "f": slow}
    play = await world.play(steps[0], Step("b", "undo_b", after="a", timeout="1h"), *steps[2:], do=do, **CANCEL)
    failed = await play.fails()
    assert failed.step == "c"
    assert "this one" in str(failed)
    kinds = [record.failure.kind for record in await play.said(StepFailed)]
    assert kinds == ["rejected", "cancelled", "cancelled", "cancelled"]
    assert sorted(play.order("undo")) == ["a", "b", "e", "f"]


async def test_s16_a_client_that_cancels_the_saga_cancels_what_may_be(world: World) -> None:
    play = await world.play(*DIAMOND, do={"b": slow, "c": slow}, **CANCEL, name="cancelled")
    await play.start()
    await play.is_called("do", "c")
    await play.is_called("do", "b")
    await world.cancel(play.saga, play.saga_id)
    failed = await play.ends_compensated()
    assert failed.step == ""
    assert [record.failure.code for record in await play.said(StepFailed)] == ["saga_cancelled", "saga_cancelled"]
    assert [record.failed for record in await play.said(CancelStep)] == [None, None]


async def test_s16_a_step_whose_service_is_down_is_cancelled_when_it_comes_back(world: World) -> None:
    play = await world.play(*DIAMOND, do={"b": sleeps(0.2, rejects()), "c": slow}, **CANCEL)
    await play.start()
    await play.is_called("do", "c")
    await world.kill("c")
    await world.until(lambda: play.said(CancelStep, "c"))
    await world.revive("c")
    await play.ends_compensated()
    assert len(play.called("do", "c")) == 1, "what the log says is cancelled does not run again"
    (cancelled,) = await play.said(StepFailed, "c")
    assert (cancelled.failure.kind, cancelled.effect) == ("cancelled", "unknown")
    assert play.order("undo") == ["c", "a"]


async def test_s16_a_step_that_waits_for_a_signal_is_not_waited_for(world: World) -> None:
    steps = (*FORK[:2], Step("c", "undo_c", after="a", await_signal="go", **CANCEL))
    play = await world.play(*steps, do={"b": sleeps(0.2, rejects())})
    await play.fails()
    assert await play.said(CancelStep) == []
    assert await play.said(Execute) == []
    assert await lasted_s(world, play) < 10


async def test_s16_a_saga_that_is_a_step_is_cancelled_as_an_operator_would(world: World) -> None:
    child = Saga(world.named("leg"), Step("x", "undo_x"), Step("y", "undo_y", timeout="1h"))
    play = Play(
        world,
        Saga(
            world.named("trip"),
            Step("a", "undo_a"),
            Step("b", after="a"),
            Step("c", after="a", saga=child, on_sibling_failure="cancel"),
        ),
        {"b": sleeps(1, rejects())},
        {},
        {},
    )
    inner = Play(world, child, {"y": sleeps(3)}, {}, {}, prefix="leg-")
    world.plays += [play, inner]
    await world.serve(*play.services, *inner.services)
    failed = await play.fails()
    assert failed.step == "b"
    assert inner.order("do") == ["x", "y"]
    assert inner.order("undo") == ["y", "x"]
    (cancelled,) = await play.said(StepFailed, "c")
    assert (cancelled.failure.kind, cancelled.effect) == ("cancelled", "none")
    assert [command.step for command in await play.said(Compensate)] == ["a"]


async def test_s16_cancelled_attempts_are_counted_as_such(world: World) -> None:
    play = await world.play(*DIAMOND, do={"b": sleeps(0.2, rejects()), "c": slow}, **CANCEL, name="counted")
    await play.fails()
    labels = {"saga": play.saga.name, "step": "c", "result": "cancelled"}
    assert world.metrics.registry.get_sample_value("choreo_step_attempts_total", labels) == 1


def test_s16_a_policy_that_can_mean_nothing_is_refused() -> None:
    with pytest.raises(Exception, match="no step runs beside it"):
        Saga("line", Step("a", **CANCEL), Step("b"))
