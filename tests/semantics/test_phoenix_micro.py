"""What users of PhoenixMicro.Saga know, row by row (``rows``)."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest

from choreo.cli.app import run_command
from choreo.contract import Retries, Saga, Step
from choreo.core import Phase
from choreo.errors import DefinitionError, SagaFailed, SagaNotFound, StartRefused, WaitTimeout
from choreo.messages.records import (
    CompensationFailed,
    SagaCompensated,
    SagaStuck,
    StepCompensated,
    StepCompleted,
    StepFailed,
)
from choreo.step import Context, Reject
from tests.semantics.play import (
    done,
    hangs,
    in_turn,
    raises,
    read,
    rejects,
    returns,
    sleeps,
    undoes,
    works,
)
from tests.semantics.world import BrokerWorld, RunnerWorld

World = RunnerWorld | BrokerWorld

STUBBORN = Retries(limit=2, backoff_ms_base=10, jitter=False)

LINE = (Step("a", "undo_a"), Step("b", "undo_b"), Step("c", "undo_c"))
DIAMOND = (
    Step("a", "undo_a"),
    Step("b", "undo_b", after="a"),
    Step("c", "undo_c", after="a"),
    Step("d", "undo_d", after=("b", "c")),
)


# P1


async def test_p1_steps_run_in_the_order_in_which_they_are_declared(world: World) -> None:
    play = await world.play(*LINE)
    await play.run()
    assert play.order() == [step.name for step in play.saga.steps] == ["a", "b", "c"]


def test_p1_a_step_has_a_name_a_compensation_a_timeout_and_retries() -> None:
    (step,) = Saga("play", Step("a", compensation="undo_a", timeout="5s", retries=3)).steps
    assert (step.name, step.compensation, step.timeout_ms, step.retries.limit) == ("a", "undo_a", 5_000, 3)
    (plain,) = Saga("play", Step("a")).steps
    assert (plain.compensation, plain.timeout_ms, plain.retries.limit) == (None, 30_000, 0)


def test_p1_all_that_is_wrong_is_refused_in_one_error() -> None:
    with pytest.raises(DefinitionError) as refused:
        Saga("play", Step("a"), Step("a"), Step(""), Step("b", after="nobody"), Step("c", after="d"), Step("d"))
    told = "\n".join(refused.value.problems)
    assert "step 'a' is defined 2 times" in told
    assert "step '': a step's name must match" in told
    assert "after='nobody' names no step" in told
    with pytest.raises(DefinitionError, match="wait for each other in a circle"):
        Saga("play", Step("c", after="d"), Step("d", after="c"))
    with pytest.raises(DefinitionError, match="it has no steps"):
        Saga("play")


# P2


async def test_p2_a_step_begins_when_the_one_before_it_has_ended(world: World) -> None:
    running: list[str] = []

    async def alone(ctx: Context) -> str:
        running.append(ctx.step)
        assert running == [ctx.step]
        await asyncio.sleep(0.05)
        running.remove(ctx.step)
        return done(ctx)

    play = await world.play(*LINE, do={"a": alone, "b": alone, "c": alone})
    await play.run()


async def test_p2_steps_after_the_same_one_run_side_by_side(world: World) -> None:
    both = asyncio.Barrier(2)

    async def together(ctx: Context) -> str:
        await both.wait()  # passes only if the other one is there, too
        return done(ctx)

    play = await world.play(*DIAMOND, do={"b": together, "c": together})
    await play.run()
    assert play.order()[0] == "a"
    assert play.order()[-1] == "d"


# P3


async def test_p3_each_step_sees_the_input_and_the_effects_of_those_before_it(world: World) -> None:
    play = await world.play(*LINE, do={"a": returns({"x": 1}), "b": returns([2])})
    await play.run({"item": "kite"})
    assert [call.input for call in play.calls] == [{"item": "kite"}] * 3
    assert [call.effects for call in play.calls] == [{}, {"a": {"x": 1}}, {"a": {"x": 1}, "b": [2]}]


class Reservation(msgspec.Struct):
    number: int


async def test_p3_a_step_gets_values_of_the_types_that_it_names(world: World) -> None:
    def typed(ctx: Context) -> int:
        return ctx.effect("a", Reservation).number + ctx.input_as(dict[str, int])["amount"]

    play = await world.play(*LINE, do={"a": returns(Reservation(40)), "b": typed})
    assert read(await play.run({"amount": 2}), "b") == 42


# P4


class Unwritable:
    """No codec has a form for it."""


@pytest.mark.parametrize(
    ("behaviour", "exception", "text"),
    [
        (raises(ValueError("half a kite")), "builtins.ValueError", "half a kite"),
        (raises(SystemExit(3)), "builtins.SystemExit", "3"),
        (raises(asyncio.CancelledError()), "asyncio.exceptions.CancelledError", ""),
        (returns(Unwritable()), "choreo.errors.Unencodable", "Unwritable"),
    ],
    ids=["exception", "exit", "cancelled", "unfit return"],
)
async def test_p4_whatever_a_handler_does_wrong_is_a_failure_of_its_step_and_the_service_lives_on(
    world: World, behaviour: Any, exception: str, text: str
) -> None:
    play = await world.play(*LINE, do={"b": in_turn(behaviour, works)})
    failed = await play.fails({"n": 1})
    (record,) = await play.said(StepFailed)
    assert (failed.step, failed.kind) == ("b", "crashed")
    assert record.failure.exception_type == exception
    assert text in record.failure.message
    assert exception.rsplit(".", 1)[-1] in record.failure.traceback
    await play.run({"n": 2})


# P5


async def test_p5_a_step_has_n_extra_attempts_with_the_same_input_and_key(world: World) -> None:
    flaky = in_turn(raises(ConnectionError()), raises(ConnectionError()), works)
    play = await world.play(Step("a", retries=Retries(2, backoff_ms_base=20)), do={"a": flaky})
    await play.run({"item": "kite"})
    calls = play.called("do", "a")
    assert [call.attempt for call in calls] == [1, 2, 3]
    assert len({call.key for call in calls}) == 1
    assert [call.input for call in calls] == [{"item": "kite"}] * 3


async def test_p5_between_attempts_the_worker_backs_off_exponentially(world: World) -> None:
    retries = Retries(3, backoff_ms_base=50, backoff_ms_max=100, jitter=False)
    play = await world.play(Step("a", retries=retries), do={"a": raises(ConnectionError())})
    await play.fails()
    waits = [later.at_ms - earlier.at_ms for earlier, later in itertools.pairwise(play.called("do", "a"))]
    assert [wait >= least for wait, least in zip(waits, (50, 100, 100), strict=True)] == [True] * 3


async def test_p5_when_no_attempt_is_left_the_step_fails(world: World) -> None:
    play = await world.play(
        Step("a", retries=Retries(2, backoff_ms_base=10)), do={"a": raises(ConnectionError("away"))}
    )
    failed = await play.fails()
    assert (failed.step, len(play.called("do", "a"))) == ("a", 3)
    (record,) = await play.said(StepFailed)
    assert record.attempts == 3


async def test_p5_a_rejection_is_never_retried(world: World) -> None:
    play = await world.play(Step("a", retries=5), do={"a": rejects("over the limit", code="card_declined")})
    failed = await play.fails()
    assert (failed.kind, failed.code) == ("rejected", "card_declined")
    assert len(play.called("do", "a")) == 1


async def test_p5_the_attempts_of_one_step_take_nothing_from_those_of_another(world: World) -> None:
    once = Retries(1, backoff_ms_base=10)
    flaky = {step: in_turn(raises(ConnectionError()), works) for step in ("a", "b")}
    play = await world.play(Step("a", retries=once), Step("b", retries=once), do=flaky)
    await play.run()
    assert [call.attempt for call in play.calls] == [1, 2, 1, 2]


async def test_p5_a_binding_says_which_exceptions_are_retried(world: World) -> None:
    play = await world.play(
        Step("a", retries=Retries(2, backoff_ms_base=10)),
        do={"a": in_turn(raises(TimeoutError()), raises(ValueError("not worth it")))},
        bind={"a": {"retry_on": (OSError,)}},  # a TimeoutError is an OSError
    )
    failed = await play.fails()
    assert "not worth it" in str(failed)
    assert len(play.called("do", "a")) == 2


async def test_p5_a_binding_says_which_exceptions_are_not_retried(world: World) -> None:
    play = await world.play(
        Step("a", retries=Retries(2, backoff_ms_base=10)),
        do={"a": in_turn(raises(ConnectionError()), raises(ValueError()))},
        bind={"a": {"never_retry": (ValueError,)}},
    )
    await play.fails()
    assert len(play.called("do", "a")) == 2


# P6


async def test_p6_an_attempt_is_cancelled_at_its_timeout_and_counts_as_one(world: World) -> None:
    step = Step("a", "undo_a", timeout="200ms", retries=Retries(1, backoff_ms_base=10))
    play = await world.play(step, do={"a": in_turn(hangs, works)})
    await play.run()
    first, second = play.called("do", "a")
    assert second.at_ms - first.at_ms >= 200


async def test_p6_a_timed_out_step_leaves_an_unknown_effect_which_is_compensated(world: World) -> None:
    play = await world.play(Step("a", "undo_a", timeout="200ms"), do={"a": hangs})
    failed = await play.fails()
    assert (failed.kind, failed.code) == ("timed_out", "timeout")
    assert play.order("undo") == ["a"]


async def test_p6_a_deadline_bounds_a_step_with_all_its_attempts(world: World) -> None:
    endless = Retries(1_000, backoff_ms_base=100, backoff_ms_max=100, jitter=False)
    step = Step("a", "undo_a", timeout="100ms", deadline="500ms", retries=endless)
    play = await world.play(step, do={"a": raises(ConnectionError())}, grace="200ms")
    await play.fails()
    assert 2 <= len(play.called("do", "a")) <= 6


async def test_p6_a_deadline_passes_even_when_the_service_is_down(world: World) -> None:
    play = await world.play(Step("a", "undo_a"), Step("b", deadline="400ms", timeout="100ms"), grace="100ms")
    await world.kill("b")
    failed = await play.fails()
    assert (failed.step, failed.kind, failed.code) == ("b", "timed_out", "deadline")
    assert play.story == "+a -a"


async def test_p6_what_completes_after_its_deadline_is_a_failure_and_undone(world: World) -> None:
    play = await world.play(
        Step("a", "undo_a"), Step("b", "undo_b", timeout="100ms", deadline="300ms"), Step("c", "undo_c"), grace="100ms"
    )
    await world.kill("b")
    await play.start()
    await world.until(lambda: play.story == "+a")
    await asyncio.sleep(1)
    await world.revive("b")
    failed = await play.ends_compensated()
    assert (failed.step, failed.kind) == ("b", "timed_out")
    assert "c" not in play.order()
    assert play.ledger.standing(play.saga_id) == []


async def test_p6_a_saga_has_a_deadline_too(world: World) -> None:
    play = await world.play(Step("a", "undo_a"), Step("b"), deadline="500ms", grace="100ms", settle="100ms")
    await world.kill("b")
    failed = await play.fails()
    assert (failed.step, failed.code) == ("b", "deadline")
    assert play.story == "+a -a"


# P7


async def test_p7_compensations_run_in_reverse_order_of_completion(world: World) -> None:
    play = await world.play(*LINE, do={"c": rejects()})
    await play.fails()
    assert play.story == "+a +b -b -a"


async def test_p7_a_step_is_undone_only_after_all_that_built_on_it(world: World) -> None:
    play = await world.play(*DIAMOND, Step("e", after="d"), do={"e": rejects()})
    await play.fails()
    undone = play.order("undo")
    assert undone[0] == "d"
    assert set(undone[1:3]) == {"b", "c"}
    assert undone[3:] == ["a"]


# P8


async def test_p8_a_step_that_rejects_is_not_compensated_itself(world: World) -> None:
    play = await world.play(*LINE, do={"b": rejects()})
    await play.fails()
    assert play.order("undo") == ["a"]


async def test_p8_later_steps_are_not_executed(world: World) -> None:
    play = await world.play(*LINE, do={"b": rejects()})
    await play.fails()
    assert play.order() == ["a", "b"]


async def test_p8_never_leaves_the_failing_step_alone_even_when_its_effect_is_unknown(world: World) -> None:
    play = await world.play(*LINE, do={"b": raises(ValueError())}, compensate_on_failure="never")
    await play.fails()
    assert play.order("undo") == ["a"]


# P9


async def test_p9_a_compensation_gets_its_own_effect_the_context_of_its_step_and_the_failure(world: World) -> None:
    play = await world.play(*LINE, do={"c": rejects("no courier", code="no_courier")})
    await play.fails({"item": "kite"})
    second, first = (call for call in play.calls if call.act == "undo")
    assert (second.step, second.effect, second.effects) == ("b", "b 1", {"a": "a 1"})
    assert (first.step, first.effect, first.effects) == ("a", "a 1", {})
    for call in (first, second):
        assert call.input == {"item": "kite"}
        assert call.failure is not None
        assert (call.failure.kind, call.failure.code, call.failure.message) == ("rejected", "no_courier", "no courier")


# P10


async def test_p10_a_step_without_compensation_is_skipped_and_the_history_shows_it(world: World) -> None:
    play = await world.play(Step("a", "undo_a"), Step("b"), Step("c"), do={"c": rejects()})
    failed = await play.fails()
    assert play.order("undo") == ["a"]
    outcome = failed.outcome
    assert isinstance(outcome, SagaCompensated)
    assert [(each.step, each.how) for each in outcome.compensations] == [("b", "no_compensation"), ("a", "undone")]


# P11


def stubborn() -> tuple[Step, ...]:
    return (
        Step("a", "undo_a"),
        Step("b", "undo_b", compensation_retries=STUBBORN),
        Step("c", "undo_c"),
    )


async def test_p11_a_compensation_is_retried_by_its_policy(world: World) -> None:
    play = await world.play(
        *stubborn(),
        do={"c": rejects()},
        undo={"b": in_turn(raises(ConnectionError()), raises(ConnectionError()), undoes)},
    )
    await play.fails()
    assert [call.attempt for call in play.called("undo", "b")] == [1, 2, 3]
    assert len({call.key for call in play.called("undo", "b")}) == 1
    assert play.story == "+a +b -b -a"


async def test_p11_then_the_saga_is_stuck_and_remembers_what_is_left(world: World) -> None:
    play = await world.play(*stubborn(), do={"c": rejects()}, undo={"b": raises(ConnectionError("closed"))})
    await play.start()
    status = await play.is_stuck()
    assert status.remaining == ("b", "a")
    assert play.order("undo") == ["b"] * 3
    assert play.story == "+a +b"
    (failed,) = await play.said(CompensationFailed)
    (notice,) = await play.said(SagaStuck)
    assert failed.failure.message == "closed"
    assert (notice.step, notice.remaining) == ("b", ("b", "a"))


async def test_p11_a_stuck_saga_holds_up_no_other(world: World) -> None:
    fragile = in_turn(rejects(), works)
    play = await world.play(*stubborn(), do={"c": fragile}, undo={"b": raises(ConnectionError())})
    await play.start(id="s-1")
    await play.is_stuck()
    await play.run(id="s-2")


async def test_p11_an_operator_can_have_it_tried_again(world: World) -> None:
    closed = raises(ConnectionError())
    play = await world.play(*stubborn(), do={"c": rejects()}, undo={"b": in_turn(closed, closed, closed, undoes)})
    await play.start()
    await play.is_stuck()
    await world.act(play.saga, play.saga_id, "retry", "b")
    await play.ends_compensated()
    assert play.story == "+a +b -b -a"
    assert [call.generation for call in play.called("undo", "b")] == [1, 1, 1, 2]
    assert len({call.key for call in play.called("undo", "b")}) == 2


async def test_p11_an_operator_can_skip_it_and_older_steps_are_undone(world: World) -> None:
    play = await world.play(*stubborn(), do={"c": rejects()}, undo={"b": raises(ConnectionError())})
    await play.start()
    await play.is_stuck()
    play.ledger.undo_by_hand(play.saga_id, "b")
    await world.act(play.saga, play.saga_id, "skip", "b")
    outcome = (await play.ends_compensated()).outcome
    assert isinstance(outcome, SagaCompensated)
    assert [(each.step, each.how) for each in outcome.compensations] == [("b", "skipped"), ("a", "undone")]
    assert play.order("undo")[-1] == "a"


async def test_p11_an_operator_can_resolve_the_saga_by_hand(world: World) -> None:
    play = await world.play(*stubborn(), do={"c": rejects()}, undo={"b": raises(ConnectionError())})
    await play.start()
    await play.is_stuck()
    await world.act(play.saga, play.saga_id, "resolve", "b")
    outcome = (await play.ends_compensated()).outcome
    assert isinstance(outcome, SagaCompensated)
    assert {(each.step, each.how) for each in outcome.compensations} == {("b", "resolved"), ("a", "resolved")}
    assert "a" not in play.order("undo")


async def test_p11_a_compensation_whose_service_is_down_is_stuck_at_its_deadline(world: World) -> None:
    released = asyncio.Event()

    async def reject(_: Any) -> None:
        await released.wait()
        raise Reject("no")

    play = await world.play(
        Step("a", "undo_a", compensation_deadline="400ms"), Step("b"), do={"b": reject}, grace="100ms"
    )
    await play.start()
    await play.is_called("do", "b")
    await world.kill("a")
    released.set()
    status = await play.is_stuck()
    assert status.remaining == ("a",)
    await world.revive("a")
    await world.act(play.saga, play.saga_id, "retry", "a")
    await play.ends_compensated()
    assert play.story == "+a -a"


# P12


async def test_p12_run_returns_the_result_and_all_effects(world: World) -> None:
    play = await world.play(*LINE)
    outcome = await play.run()
    assert read(outcome) == "c 1"
    assert {step: read(outcome, step) for step in outcome.effects} == {"a": "a 1", "b": "b 1", "c": "c 1"}


async def test_p12_run_raises_with_the_failed_step_and_the_reason(world: World) -> None:
    play = await world.play(*LINE, do={"b": rejects("over the limit", code="card_declined")})
    failed = await play.fails()
    assert (failed.step, failed.kind, failed.code) == ("b", "rejected", "card_declined")
    assert "over the limit" in str(failed)
    assert failed.saga_id == play.saga_id


async def test_p12_no_outcome_is_missed_however_fast_it_is(world: World) -> None:
    play = await world.play(Step("a"))
    outcomes = await asyncio.gather(*(world.run(play.saga, number) for number in range(50)))
    assert len({outcome.saga_id for outcome in outcomes}) == 50


async def test_p12_a_wait_that_ends_does_not_end_the_saga(world: World) -> None:
    play = await world.play(Step("a", timeout="10s"), do={"a": sleeps(1)})
    with pytest.raises(WaitTimeout) as waited:
        await play.run(timeout_s=0.2)
    play.saga_id = waited.value.saga_id
    assert read(await play.ends()) == "a 1"


async def test_p12_an_outcome_can_be_waited_for_after_it_is_there(world: World) -> None:
    play = await world.play(*LINE)
    outcome = await play.run()
    assert (await play.ends()).effects.keys() == outcome.effects.keys()


# P13


async def test_p13_start_returns_the_id_before_the_first_step_has_ended(world: World) -> None:
    released = asyncio.Event()

    async def wait(ctx: Context) -> str:
        await released.wait()
        return done(ctx)

    play = await world.play(Step("a"), do={"a": wait})
    assert await play.start()
    assert play.story == ""
    released.set()
    await play.ends()


async def test_p13_the_caller_may_choose_the_id(world: World) -> None:
    play = await world.play(Step("a"))
    assert await play.start(id="order-4711") == "order-4711"
    await play.ends()


async def test_p13_the_same_id_and_input_again_is_the_same_saga(world: World) -> None:
    play = await world.play(*LINE)
    await play.start({"n": 1}, id="s")
    await play.start({"n": 1}, id="s")
    await play.ends()
    await play.run({"n": 1}, id="s")
    assert play.story == "+a +b +c"


async def test_p13_the_same_id_with_another_input_is_an_error_and_changes_nothing(world: World) -> None:
    play = await world.play(*LINE)
    outcome = await play.run({"n": 1}, id="s")
    with pytest.raises(StartRefused):
        await world.run(play.saga, {"n": 2}, id="s")
    assert (await play.ends()).start == outcome.start
    # What the second start set going is undone; what the first one did stands.
    await world.until(lambda: play.ledger.standing("s") == ["a", "b", "c"])


# P14


async def test_p14_status_answers_while_a_step_runs(world: World) -> None:
    released = asyncio.Event()

    async def wait(ctx: Context) -> str:
        await released.wait()
        return done(ctx)

    play = await world.play(*LINE, do={"b": wait})
    await play.start()
    await play.is_called("do", "b")
    status = await world.status(play.saga, play.saga_id)
    assert status.phase is Phase.FORWARD
    assert [(step.step, step.phase) for step in status.steps] == [
        ("a", "completed"),
        ("b", "running"),
        ("c", "waiting"),
    ]
    released.set()
    await play.ends()


async def test_p14_status_says_how_a_saga_has_ended_even_after_restarts(world: World) -> None:
    play = await world.play(*LINE, do={"c": in_turn(works, rejects())})
    await play.run(id="good")
    await play.fails(id="bad")
    await world.clock.sleep(1)  # what was answered is committed: a failure that is said again is one in doubt
    await world.kill()
    await world.revive()
    good, bad = await world.status(play.saga, "good"), await world.status(play.saga, "bad")
    assert (good.phase, bad.phase) == (Phase.COMPLETED, Phase.COMPENSATED)
    assert (bad.step, [step.phase for step in bad.steps]) == ("c", ["undone", "undone", "failed"])


async def test_p14_an_unknown_id_is_not_found(world: World) -> None:
    play = await world.play(Step("a"))
    await play.run()
    with pytest.raises(SagaNotFound, match="no saga 'nobody'"):
        await world.status(play.saga, "nobody")


# P15


def counted(world: World, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    return sum(
        sample.value
        for metric in world.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def test_p15_metrics_tell_of_sagas_steps_and_compensations(world: World) -> None:
    play = await world.play(*LINE, do={"c": in_turn(works, rejects())})
    await play.run(id="good")
    await play.fails(id="bad")
    saga = play.saga.name

    def all_told() -> bool:
        return counted(world, "choreo_sagas_finished_total", saga=saga) == 2

    await world.until(all_told)
    assert counted(world, "choreo_sagas_started_total", saga=saga) == 2
    assert counted(world, "choreo_sagas_finished_total", saga=saga, outcome="completed") == 1
    assert counted(world, "choreo_sagas_finished_total", saga=saga, outcome="compensated") == 1
    assert counted(world, "choreo_saga_duration_seconds_count", saga=saga) == 2
    for step, completed, failed in (("a", 2, 0), ("b", 2, 0), ("c", 1, 1)):
        assert counted(world, "choreo_step_events_total", saga=saga, step=step, result="completed") == completed
        assert counted(world, "choreo_step_events_total", saga=saga, step=step, result="failed") == failed
        assert counted(world, "choreo_step_duration_seconds_count", saga=saga, step=step) == 2
    for step in ("a", "b"):
        assert counted(world, "choreo_compensations_total", saga=saga, step=step, result="undone") == 1


async def test_p15_the_history_has_each_step_compensation_and_duration(world: World) -> None:
    play = await world.play(*LINE, do={"b": sleeps(0.2), "c": rejects()})
    await play.fails()
    (slow,) = await play.said(StepCompleted, "b")
    assert slow.duration_ms >= 200
    assert [record.step for record in await play.said(StepCompensated)] == ["b", "a"]


async def test_p15_a_stuck_saga_is_logged_and_shown(world: World, caplog: pytest.LogCaptureFixture) -> None:
    play = await world.play(*stubborn(), do={"c": rejects()}, undo={"b": raises(ConnectionError())})
    await play.start(id="s-stuck")
    await play.is_stuck()

    async def is_told() -> bool:
        # Not the gauge: two saga-logs share the registry of this world, and each sets it to what it has itself.
        shown = (await world.status(play.saga, "s-stuck")).phase is Phase.STUCK
        return shown and "saga s-stuck is stuck: the compensation of step 'b'" in caplog.text

    await world.until(is_told)


# P16


@pytest.fixture
def trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A generated package, importable."""
    assert run_command(["gen", "saga", "trip", "--steps", "flight,hotel", "--directory", str(tmp_path)]) == 0
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TRIP_DATA", str(tmp_path / "data"))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "trip"]:
        del sys.modules[name]


async def test_p16_a_generated_saga_runs_and_is_undone_as_it_stands(world: World, trip: Path) -> None:
    contract = import_module("trip.contract")
    await world.serve(*(import_module(f"trip.{step}").service for step in ("flight", "hotel")))
    outcome = await world.run(contract.TRIP, contract.Input())
    assert set(outcome.effects) == {"flight", "hotel"}
    with pytest.raises(SagaFailed) as failed:
        await world.run(contract.TRIP, contract.Input(refuse="hotel"))
    assert failed.value.step == "hotel"
    assert import_module("trip.flight").effects.standing(failed.value.saga_id) == 0


def test_p16_tests_are_generated_with_it_and_nothing_is_overwritten(
    trip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = {path.name for path in (trip / "trip").rglob("*") if path.is_file()}
    assert {"contract.py", "flight.py", "hotel.py", "compose.yaml"} <= written
    assert any(name.startswith("test_") for name in written)
    again = ["gen", "saga", "trip", "--steps", "flight,hotel", "--directory", str(trip)]
    (trip / "trip" / "flight.py").write_text("mine")
    assert run_command(again) != 0
    assert "would be overwritten" in capsys.readouterr().err
    assert (trip / "trip" / "flight.py").read_text() == "mine"
    assert run_command([*again, "--force"]) == 0
    assert (trip / "trip" / "flight.py").read_text() != "mine"


# P17


async def test_p17_after_a_crash_of_everything_a_saga_goes_on_where_the_log_says(world: World) -> None:
    released = asyncio.Event()

    async def wait(ctx: Context) -> str:
        await released.wait()
        return done(ctx)

    play = await world.play(*LINE, do={"b": wait})
    await play.start()
    await play.is_called("do", "b")
    await world.kill()
    await world.revive()
    await play.is_called("do", "b", 2)
    released.set()
    await play.ends()
    assert play.order() == ["a", "b", "b", "c"]
    first, second = play.called("do", "b")
    assert first.key == second.key


async def test_p17_a_crash_on_the_way_back_undoes_nothing_twice(world: World) -> None:
    released = asyncio.Event()

    async def wait(_: Any) -> None:
        await released.wait()

    play = await world.play(*LINE, do={"c": rejects()}, undo={"a": wait})
    await play.start()
    await play.is_called("undo", "a")
    await world.kill()
    await world.revive()
    released.set()
    await play.ends_compensated()
    assert play.story == "+a +b -b -a"
    assert len(play.called("undo", "b")) == 1


async def test_p17_a_step_that_was_rejected_is_not_run_again(world: World) -> None:
    def no(_: Any) -> None:
        raise Reject("no")

    play = await world.play(*LINE, do={"c": no})
    await world.kill("saga-log")
    await play.start()
    await play.is_called("do", "c")
    await world.until(lambda: play.said(StepFailed))
    await world.kill()
    await world.revive()
    await play.ends_compensated()
    assert len(play.called("do", "c")) == 1
