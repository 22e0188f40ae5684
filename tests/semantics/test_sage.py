"""What users of Sage know, row by row (``rows``), with the cases of Sage's own tests and those that it lacks."""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path
from random import Random
from typing import Any

import pytest
import sqlalchemy

from choreo.contract import Retries, Saga, Step
from choreo.contract.render import mermaid
from choreo.errors import DefinitionError, SagaFailed
from choreo.inbox import Inbox
from choreo.messages.records import (
    Compensate,
    CompensationFailed,
    RoundStarted,
    SagaCompensated,
    StepCompensated,
    StepFailed,
)
from choreo.step import AbortRetries, CompensationContext, Context, Continue, Reject, Retry, Service
from tests.semantics.play import (
    Behaviour,
    aborts,
    done,
    hangs,
    in_round,
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

LINE = (Step("a", "undo_a"), Step("b", "undo_b"), Step("c", "undo_c"))
FORK = (Step("a", "undo_a"), Step("b", "undo_b", after="a"), Step("c", "undo_c", after="a"))
DIAMOND = (*FORK, Step("d", "undo_d", after=("b", "c")))

ALWAYS: dict[str, Any] = {"compensate_on_failure": "always"}  # as Sage does

AGAIN = returns(Retry(limit=2))

CRASHES = {
    "returned error": rejects(),
    "exception": raises(ValueError("half a kite")),
    "exit": raises(SystemExit(1)),
    "cancelled": raises(asyncio.CancelledError()),
    "malformed return": returns(object()),
    "timeout": hangs,
}


@pytest.fixture(params=CRASHES, ids=lambda name: name.replace(" ", "-"))
def crash(request: pytest.FixtureRequest) -> Behaviour:
    """Each way in which a step can go wrong."""
    return CRASHES[request.param]


def wrong_once(crash: Behaviour) -> Behaviour:
    return in_round({1: crash})


# S1


def test_s1_a_contract_is_a_value() -> None:
    assert Saga("play", *LINE) == Saga("play", *LINE)
    assert hash(Saga("play", *LINE)) == hash(Saga("play", *LINE))
    assert Saga("play", *LINE).content_hash == Saga("play", *LINE).content_hash
    with pytest.raises(AttributeError):
        Saga("play", *LINE).name = "other"  # type: ignore[misc]


async def test_s1_contracts_are_made_of_contracts(world: World) -> None:
    def with_receipt(saga: Saga) -> Saga:
        return saga.extend(Step("receipt"), version=saga.version + 1)

    base = Saga("play", *LINE)
    play = await world.play(*with_receipt(base).steps)
    await play.run()
    assert play.order() == ["a", "b", "c", "receipt"]
    assert [step.name for step in base.steps] == ["a", "b", "c"]


async def test_s1_a_group_of_steps_is_used_twice_under_names_of_its_own(world: World) -> None:
    def payment(who: str) -> tuple[Step, ...]:
        return Step(f"{who}_charge", f"{who}_refund"), Step(f"{who}_receipt")

    steps = (Step("a"), *payment("buyer"), *payment("seller"))
    play = await world.play(*steps, do={"seller_receipt": rejects()})
    await play.fails()
    assert play.order() == [step.name for step in steps]
    assert play.order("undo") == ["seller_charge", "buyer_charge"]


def test_s1_the_same_step_twice_is_refused() -> None:
    with pytest.raises(DefinitionError, match="step 'a' is defined 2 times"):
        Saga("play", *LINE).extend(Step("a"))


# S2


async def test_s2_a_step_gets_the_effects_so_far_and_the_input(world: World) -> None:
    play = await world.play(*LINE)
    await play.run({"attrs": True})
    assert [dict(call.effects) for call in play.calls] == [{}, {"a": "a 1"}, {"a": "a 1", "b": "b 1"}]
    assert all(call.input == {"attrs": True} for call in play.calls)


async def test_s2_a_compensation_is_optional(world: World) -> None:
    play = await world.play(Step("a"), Step("b", "undo_b"), Step("c"), do={"c": rejects()})
    await play.fails()
    assert play.order("undo") == ["b"]


async def test_s2_neither_needs_a_parallel_step_any(world: World) -> None:
    play = await world.play(
        Step("a"),
        Step("b", after="a"),
        Step("c", "undo_c", after="a"),
        Step("d", after=("b", "c")),
        do={"d": rejects()},
    )
    await play.fails()
    assert play.order("undo") == ["c"]


# S3


@pytest.mark.parametrize("effect", [None, 0, "", [], {"nested": [1, None]}, 1.5])
async def test_s3_what_a_step_returns_is_its_effect(world: World, effect: Any) -> None:
    play = await world.play(Step("a"), do={"a": returns(effect)})
    assert read(await play.run()) == effect


async def test_s3_reject_fails_the_step_with_a_reason_and_leaves_no_effect(world: World) -> None:
    play = await world.play(Step("a", "undo_a"), do={"a": rejects("sold out", code="sold_out")})
    failed = await play.fails()
    (record,) = await play.said(StepFailed)
    assert (record.effect, record.abort) == ("none", False)
    assert (failed.kind, failed.code) == ("rejected", "sold_out")
    assert "sold out" in str(failed)


async def test_s3_abort_is_a_rejection_that_forbids_retries(world: World) -> None:
    play = await world.play(*LINE, do={"c": aborts()}, undo={"a": AGAIN, "b": AGAIN})
    failed = await play.fails()
    (record,) = await play.said(StepFailed)
    assert (failed.kind, record.effect, record.abort) == ("rejected", "none", True)
    assert play.story == "+a +b -b -a"


# S4


async def test_s4_the_outcome_has_all_effects_and_the_last_step_gives_the_result(world: World) -> None:
    play = await world.play(*DIAMOND)
    outcome = await play.run()
    assert read(outcome) == "d 1"
    assert set(outcome.effects) == {"a", "b", "c", "d"}


async def test_s4_the_last_step_declared_gives_the_result_also_where_the_last_ones_are_parallel(world: World) -> None:
    play = await world.play(*FORK, do={"b": sleeps(0.1), "c": works})
    assert read(await play.run()) == "c 1"


async def test_s4_a_failure_says_which_step_why_and_what_was_compensated(world: World) -> None:
    play = await world.play(*LINE, do={"c": rejects("no courier")})
    outcome = (await play.fails()).outcome
    assert isinstance(outcome, SagaCompensated)
    assert outcome.failure is not None
    assert (outcome.cause, outcome.step, outcome.failure.message) == ("failed", "c", "no courier")
    assert [(each.step, each.round, each.how) for each in outcome.compensations] == [
        ("b", 1, "undone"),
        ("a", 1, "undone"),
    ]


# S6


async def test_s6_always_runs_the_failing_steps_own_compensation_first(world: World) -> None:
    play = await world.play(*LINE, do={"b": rejects()}, **ALWAYS)
    await play.fails()
    assert play.order("undo") == ["b", "a"]
    assert [call.own for call in play.calls if call.act == "undo"] == [True, False]


async def test_s6_by_default_it_runs_when_the_effect_is_unknown_and_not_otherwise(world: World) -> None:
    play = await world.play(*LINE, do={"b": in_turn(rejects(), raises(ValueError()))})
    await play.fails(id="rejected")
    assert play.order("undo") == ["a"]
    await play.fails(id="crashed")
    assert play.order("undo") == ["a", "b", "a"]


async def test_s6_a_step_can_have_a_policy_of_its_own(world: World) -> None:
    steps = (
        Step("a", "undo_a"),
        Step("b", "undo_b", compensate_on_failure="always"),
        Step("c", "undo_c", compensate_on_failure="never"),
    )
    play = await world.play(*steps, do={"b": in_turn(rejects(), works), "c": raises(ValueError())})
    await play.fails(id="at-b")
    assert play.order("undo") == ["b", "a"]
    await play.fails(id="at-c")
    assert play.order("undo") == ["b", "a", "b", "a"]


# S7


async def test_s7_a_compensation_gets_its_steps_effect_or_none_and_the_failure(world: World, crash: Behaviour) -> None:
    play = await world.play(Step("a", "undo_a"), Step("b", "undo_b", timeout="200ms"), do={"b": crash}, **ALWAYS)
    await play.fails()
    own, older = (call for call in play.calls if call.act == "undo")
    assert (own.step, own.effect, older.step, older.effect) == ("b", None, "a", "a 1")
    assert own.failure is not None
    assert own.failure == older.failure
    (record,) = await play.said(StepFailed)
    assert own.failure.kind == record.failure.kind


async def test_s7_a_parallel_step_gets_its_own_failure(world: World, crash: Behaviour) -> None:
    fork = (Step("a", "undo_a"), Step("b", "undo_b", after="a", timeout="200ms"), Step("c", "undo_c", after="a"))
    play = await world.play(*fork, do={"b": crash, "c": sleeps(0.5, rejects("me too"))}, **ALWAYS)
    await play.fails()
    (second,) = play.called("undo", "c")
    assert second.failure is not None
    assert (second.effect, second.failure.message) == (None, "me too")


# S8


async def test_s8_a_compensation_sees_the_context_that_its_step_saw(world: World) -> None:
    play = await world.play(*DIAMOND, Step("e", after="d"), do={"e": rejects()})
    await play.fails()
    for undo in (call for call in play.calls if call.act == "undo"):
        (do,) = play.called("do", undo.step)
        assert undo.effects == do.effects


async def test_s8_no_effect_leaks_into_the_next_round(world: World) -> None:
    # Sage keeps the effects of stages without compensation: c would see its own effect and b's of the round before.
    steps = (Step("a", "undo_a"), Step("b"), Step("c"), Step("d"))
    play = await world.play(*steps, do={"d": in_round({1: rejects()})}, undo={"a": AGAIN})
    await play.run()
    assert [(call.step, dict(call.effects)) for call in play.calls if call.round == 2] == [
        ("a", {}),
        ("b", {"a": "a 2"}),
        ("c", {"a": "a 2", "b": "b 2"}),
        ("d", {"a": "a 2", "b": "b 2", "c": "c 2"}),
    ]


# S10


def limited(limit: int, **options: Any) -> Behaviour:
    return returns(Retry(limit=limit, **options))


async def test_s10_a_retry_runs_the_step_again_and_all_that_was_undone(world: World) -> None:
    play = await world.play(*LINE, do={"c": in_round({1: rejects()})}, undo={"b": AGAIN})
    outcome = await play.run()
    assert play.story == "+a +b -b +b +c"
    assert {step: read(outcome, step) for step in outcome.effects} == {"a": "a 1", "b": "b 2", "c": "c 2"}
    (started,) = await play.said(RoundStarted)
    assert started.round == 2


async def test_s10_earlier_steps_keep_their_effects_and_the_next_round_sees_them(world: World) -> None:
    play = await world.play(*LINE, do={"b": in_round({1: rejects()})}, undo={"b": AGAIN}, **ALWAYS)
    await play.run()
    assert play.story == "+a +b +c"
    assert play.called("do", "b")[-1].effects == {"a": "a 1"}
    assert len(play.called("do", "a")) == 1


async def test_s10_limit_n_is_n_rounds(world: World) -> None:
    play = await world.play(
        *LINE, do={"c": in_round({1: rejects(), 2: rejects()})}, undo={"b": limited(3)}
    )  # fmt: skip
    await play.run()
    assert [call.round for call in play.called("do", "c")] == [1, 2, 3]


async def test_s10_a_retry_beyond_its_limit_is_a_plain_undone(world: World) -> None:
    play = await world.play(*LINE, do={"c": rejects()}, undo={"b": limited(3)})
    await play.fails()
    assert [call.round for call in play.called("do", "c")] == [1, 2, 3]
    assert play.story == "+a +b -b +b -b +b -b -a"


@pytest.mark.parametrize("limit", [0, 1])
async def test_s10_a_limit_below_two_never_retries(world: World, limit: int) -> None:
    play = await world.play(*LINE, do={"c": rejects()}, undo={"a": limited(limit), "b": limited(limit)})
    await play.fails()
    assert play.story == "+a +b -b -a"


async def test_s10_a_step_with_a_lower_limit_may_have_none_left(world: World) -> None:
    # Round 1 fails at b, whose limit is 3: the second round. Round 2 fails at c, whose limit is 2: 2 > 2 is false.
    play = await world.play(
        *LINE,
        do={"b": in_round({1: rejects()}), "c": in_round({2: rejects()})},
        undo={"b": in_round({1: limited(3)}, undoes), "c": limited(2)},
        **ALWAYS,
    )
    failed = await play.fails()
    assert failed.step == "c"
    assert [(call.step, call.round) for call in play.calls if call.act == "do"] == [
        ("a", 1),
        ("b", 1),
        ("b", 2),
        ("c", 2),
    ]


async def test_s10_a_step_with_a_higher_limit_may_go_on(world: World) -> None:
    play = await world.play(
        *LINE,
        do={"b": in_round({1: rejects()}), "c": in_round({2: rejects()})},
        undo={"b": limited(2), "c": limited(3)},
        **ALWAYS,
    )
    await play.run()
    assert [(call.step, call.round) for call in play.calls if call.act == "do"] == [
        ("a", 1),
        ("b", 1),
        ("b", 2),
        ("c", 2),
        ("c", 3),
    ]


async def test_s10_a_round_has_idempotency_keys_of_its_own(world: World) -> None:
    play = await world.play(*LINE, do={"c": in_round({1: rejects()})}, undo={"b": AGAIN})
    await play.run()
    assert len({call.key for call in play.called("do", "b")}) == 2


async def test_s10_an_older_steps_compensation_may_ask_for_the_retry(world: World) -> None:
    play = await world.play(*LINE, do={"c": in_round({1: rejects()})}, undo={"a": AGAIN})
    await play.run()
    assert play.story == "+a +b -b -a +a +b +c"


async def test_s10_a_retry_is_honoured_after_any_kind_of_failure(world: World, crash: Behaviour) -> None:
    steps = (Step("a", "undo_a"), Step("b", "undo_b", timeout="200ms"), Step("c"))
    play = await world.play(*steps, do={"b": wrong_once(crash)}, undo={"a": AGAIN})
    await play.run()
    assert play.ledger.standing(play.saga_id) == ["a", "b", "c"]
    assert [call.round for call in play.called("do", "a")] == [1, 2]


async def test_s10_retries_are_ignored_when_a_compensation_has_aborted_the_saga(world: World) -> None:
    play = await world.play(*LINE, do={"c": rejects()}, undo={"b": returns(AbortRetries()), "a": AGAIN})
    await play.fails()
    assert play.story == "+a +b -b -a"


async def test_s10_retries_are_ignored_when_a_step_has_aborted_the_saga(world: World) -> None:
    play = await world.play(*LINE, do={"c": aborts()}, undo={"b": AGAIN, "a": AGAIN})
    await play.fails()
    assert play.story == "+a +b -b -a"


async def test_s10_retries_are_ignored_when_the_saga_was_cancelled(world: World) -> None:
    play = await world.play(*LINE, do={"b": sleeps(0.3)}, undo={"a": AGAIN, "b": AGAIN})
    await play.start()
    await play.is_called("do", "b")
    await world.cancel(play.saga, play.saga_id, reason="enough")
    failed = await play.ends_compensated()
    assert "enough" in str(failed)
    # b's completion is what c reacts to, and c knows of no cancel: what it has done is undone as well.
    assert play.ledger.standing(play.saga_id) == []
    assert {call.round for call in play.calls} == {1}


# S11


def backoffs(retry: Retry, rounds: int) -> list[int]:
    return [retry.backoff_ms(saga_round, Random(0)) for saga_round in range(1, rounds + 1)]


def test_s11_the_backoff_is_the_base_doubled_to_the_power_of_the_round_up_to_a_maximum() -> None:
    assert backoffs(Retry(limit=9, base_backoff=10, jitter=False), 4) == [20, 400, 5_000, 5_000]
    assert backoffs(Retry(limit=9, base_backoff=7, jitter=False), 4) == [14, 196, 2_744, 5_000]
    assert backoffs(Retry(limit=9, base_backoff=10, max_backoff=100, jitter=False), 3) == [20, 100, 100]
    assert backoffs(Retry(limit=9), 3) == [0, 0, 0]


def test_s11_a_large_round_saturates_instead_of_overflowing() -> None:
    retry = Retry(limit=10**6, base_backoff=10, jitter=False)
    assert retry.backoff_ms(10**6, Random(0)) == 5_000


def test_s11_jitter_draws_evenly_from_zero_to_one_less() -> None:
    retry, random = Retry(limit=9, base_backoff=10), Random(4)
    drawn = [retry.backoff_ms(1, random) for _ in range(2_000)]
    assert set(drawn) == set(range(20))


async def test_s11_the_next_round_waits_for_its_backoff(world: World) -> None:
    again = limited(3, base_backoff=20, jitter=False)  # 40 ms, then 1,600
    play = await world.play(*LINE, do={"c": in_round({1: rejects(), 2: rejects()})}, undo={"b": again})
    await play.run()
    undone, begun = play.called("undo", "b"), play.called("do", "b")
    assert begun[1].at_ms - undone[0].at_ms >= 40
    assert begun[2].at_ms - undone[1].at_ms >= 1_600


async def test_s11_the_backoff_survives_a_restart_of_everything(world: World) -> None:
    again = limited(2, base_backoff=500, max_backoff=1_000, jitter=False)
    play = await world.play(*LINE, do={"c": in_round({1: rejects()})}, undo={"b": again})
    await play.start()
    await play.is_called("undo", "b")
    await world.until(lambda: play.said(StepCompensated))
    await world.kill()
    await world.revive()
    await play.ends()
    assert play.called("do", "b")[1].at_ms - play.called("undo", "b")[0].at_ms >= 1_000
    assert len(play.called("undo", "b")) == 1


# S12

BREAKER = returns(Continue("from the cache"))


async def test_s12_the_failing_steps_own_compensation_may_continue_with_a_substitute(world: World) -> None:
    play = await world.play(*LINE, do={"b": rejects()}, undo={"b": BREAKER}, **ALWAYS)
    outcome = await play.run()
    assert play.story == "+a ~b +c"
    assert read(outcome, "b") == "from the cache"
    assert play.called("do", "c")[0].effects == {"a": "a 1", "b": "from the cache"}


async def test_s12_the_substitute_of_the_last_step_is_the_result(world: World) -> None:
    play = await world.play(*LINE, do={"c": rejects()}, undo={"c": BREAKER}, **ALWAYS)
    assert read(await play.run()) == "from the cache"


async def test_s12_parallel_branches_go_on_from_the_substitute(world: World) -> None:
    play = await world.play(*DIAMOND, do={"b": rejects()}, undo={"b": BREAKER}, **ALWAYS)
    await play.run()
    assert play.called("do", "d")[0].effects == {"a": "a 1", "b": "from the cache", "c": "c 1"}
    assert play.order("undo") == ["b"]


async def test_s12_it_is_ignored_from_a_step_that_has_not_failed(world: World) -> None:
    play = await world.play(*LINE, do={"c": rejects()}, undo={"b": BREAKER})
    await play.fails()
    assert play.story == "+a +b -b -a"


async def test_s12_it_is_ignored_after_an_abort(world: World) -> None:
    play = await world.play(*LINE, do={"b": aborts()}, undo={"b": BREAKER}, **ALWAYS)
    await play.fails()
    assert play.order("undo") == ["b", "a"]
    assert "c" not in play.order()


async def test_s12_a_failure_after_the_substitute_undoes_what_stands(world: World) -> None:
    play = await world.play(*LINE, do={"b": rejects(), "c": rejects()}, undo={"b": BREAKER}, **ALWAYS)
    failed = await play.fails()
    assert failed.step == "c"
    assert play.ledger.standing(play.saga_id) == []


@pytest.mark.parametrize("name", ["exception", "exit", "cancelled", "malformed return", "timeout"])
async def test_s12_by_default_it_is_ignored_after_a_crash_or_a_timeout(world: World, name: str) -> None:
    steps = (Step("a", "undo_a"), Step("b", "undo_b", timeout="200ms"), Step("c"))
    play = await world.play(*steps, do={"b": CRASHES[name]}, undo={"b": BREAKER})
    await play.fails()
    assert "c" not in play.order()


@pytest.mark.parametrize(
    ("kind", "name"), [("crashed", "exception"), ("crashed", "malformed return"), ("timed_out", "timeout")]
)
async def test_s12_a_step_may_recover_from_a_crash_or_a_timeout_if_the_contract_says_so(
    world: World, kind: Any, name: str
) -> None:
    steps = (Step("a", "undo_a"), Step("b", "undo_b", timeout="200ms", recover_from=(kind,)), Step("c"))
    play = await world.play(*steps, do={"b": CRASHES[name]}, undo={"b": BREAKER})
    outcome = await play.run()
    assert read(outcome, "b") == "from the cache"
    assert play.order("undo") == ["b"]


async def test_s12_a_step_recovers_from_those_failures_alone(world: World) -> None:
    steps = (Step("a", "undo_a"), Step("b", "undo_b", recover_from=("timed_out",)), Step("c"))
    play = await world.play(*steps, do={"b": rejects()}, undo={"b": BREAKER}, **ALWAYS)
    await play.fails()
    assert "c" not in play.order()


async def test_s12_all_failed_branches_must_continue(world: World) -> None:
    play = await world.play(*DIAMOND, do={"b": rejects(), "c": rejects()}, undo={"b": BREAKER}, **ALWAYS)
    await play.fails()
    assert "d" not in play.order()
    assert sorted(play.order("undo")) == ["a", "b", "c"]


# S13


async def test_s13_an_abort_is_not_cleared_by_a_parallel_sibling(world: World) -> None:
    # In Sage the sibling's plain error, handled after the abort, makes retries possible again.
    play = await world.play(
        *FORK, do={"b": aborts(), "c": sleeps(0.2, rejects())}, undo={"a": AGAIN, "c": AGAIN}, **ALWAYS
    )
    failed = await play.fails()
    assert failed.step == "b"
    assert {call.round for call in play.calls} == {1}


async def test_s13_an_abort_counts_when_it_comes_second(world: World) -> None:
    play = await world.play(
        *FORK, do={"b": sleeps(0.2, aborts()), "c": rejects()}, undo={"a": AGAIN, "c": AGAIN}, **ALWAYS
    )
    await play.fails()
    assert {call.round for call in play.calls} == {1}


async def test_s13_an_abort_beats_a_retry_that_another_compensation_has_asked_for(world: World) -> None:
    play = await world.play(
        *FORK,
        do={"b": rejects(), "c": rejects()},
        undo={"b": AGAIN, "c": sleeps(0.2, returns(AbortRetries()))},
        **ALWAYS,
    )
    await play.fails()
    assert {call.round for call in play.calls} == {1}


# S14


async def test_s14_all_is_compensated_before_the_caller_is_told(world: World, crash: Behaviour) -> None:
    steps = (Step("a", "undo_a"), Step("b", "undo_b"), Step("c", "undo_c", timeout="200ms"))
    play = await world.play(*steps, do={"c": crash})
    await play.fails()
    assert play.ledger.standing(play.saga_id) == []
    assert play.order("undo")[-2:] == ["b", "a"]


async def test_s14_what_went_wrong_in_parallel_steps_is_compensated_too(world: World, crash: Behaviour) -> None:
    fork = (Step("a", "undo_a"), Step("b", "undo_b", after="a", timeout="200ms"), Step("c", "undo_c", after="a"))
    play = await world.play(*fork, Step("d", after=("b", "c")), do={"b": crash})
    await play.fails()
    assert play.ledger.standing(play.saga_id) == []
    assert play.order("undo")[-1] == "a"


class Kaputt(Exception):  # noqa: N818
    """An error of the service's own."""


async def test_s14_the_caller_sees_the_remote_traceback_and_the_exceptions_type(world: World) -> None:
    def break_down(_: Any) -> None:
        raise Kaputt("the printer is on fire")

    play = await world.play(*LINE, do={"b": break_down})
    failed = await play.fails()
    told = "".join(traceback.format_exception(failed))
    assert "the printer is on fire" in str(failed)
    assert "in break_down" in told
    outcome = failed.outcome
    assert isinstance(outcome, SagaCompensated)
    assert outcome.failure is not None
    assert outcome.failure.exception_type == f"{__name__}.Kaputt"
    assert isinstance(failed.__cause__, Kaputt), "its class is known here"


# S15


async def test_s15_parallel_steps_run_side_by_side_and_the_join_sees_all_of_them(world: World) -> None:
    both = asyncio.Barrier(2)

    async def together(ctx: Context) -> str:
        await both.wait()
        return done(ctx)

    play = await world.play(*DIAMOND, do={"b": together, "c": together})
    await play.run()
    assert play.called("do", "d")[0].effects == {"a": "a 1", "b": "b 1", "c": "c 1"}


async def test_s15_a_parallel_step_sees_only_what_had_ended_before_it_began(world: World) -> None:
    play = await world.play(*DIAMOND, do={"c": sleeps(0.2)})
    await play.run()
    assert play.called("do", "b")[0].effects == play.called("do", "c")[0].effects == {"a": "a 1"}


async def test_s15_parallel_steps_without_a_join_end_the_saga_together(world: World) -> None:
    play = await world.play(*FORK, do={"b": sleeps(0.2)})
    outcome = await play.run()
    assert set(outcome.effects) == {"a", "b", "c"}


async def test_s15_steps_can_start_side_by_side(world: World) -> None:
    steps = (Step("a", "undo_a"), Step("b", "undo_b", after=()), Step("c", after=("a", "b")))
    play = await world.play(*steps)
    await play.run()
    assert play.called("do", "c")[0].effects == {"a": "a 1", "b": "b 1"}


# S16


async def test_s16_siblings_settle_before_anything_is_undone(world: World) -> None:
    play = await world.play(*DIAMOND, do={"b": rejects(), "c": sleeps(0.4)})
    await play.fails()
    assert play.story == "+a +c -c -a"
    assert "d" not in play.order()


async def test_s16_what_completes_on_a_branch_goes_on_until_the_join_and_all_of_it_is_undone(world: World) -> None:
    steps = (*FORK, Step("e", "undo_e", after="c"), Step("d", after=("b", "e")))
    play = await world.play(*steps, do={"b": rejects(), "c": sleeps(0.3)})
    await play.fails()
    assert play.ledger.standing(play.saga_id) == []
    assert play.story in ("+a +c -c -a", "+a +c +e -e -c -a")


async def test_s16_of_several_failures_the_first_in_the_log_is_the_failure_and_the_others_are_kept(
    world: World,
) -> None:
    play = await world.play(
        *DIAMOND, do={"b": sleeps(0.3, rejects("second")), "c": rejects("first")}
    )  # fmt: skip
    failed = await play.fails()
    assert failed.step == "c"
    assert "first" in str(failed)
    assert [record.failure.message for record in await play.said(StepFailed)] == ["first", "second"]


async def test_s16_several_failures_at_once_are_all_compensated(world: World) -> None:
    fork = (
        Step("a", "undo_a"),
        Step("b", "undo_b", after="a"),
        Step("c", "undo_c", after="a"),
        Step("e", "undo_e", after="a"),
    )
    wrong = {step: raises(ValueError(step)) for step in ("b", "c", "e")}
    play = await world.play(*fork, do=wrong)
    await play.fails()
    undone = play.order("undo")
    assert sorted(undone[:3]) == ["b", "c", "e"]
    assert undone[3:] == ["a"]


async def test_s16_a_siblings_deadline_is_counted_from_its_trigger(world: World) -> None:
    fork = (
        Step("a", "undo_a"),
        Step("b", after="a"),
        Step("c", "undo_c", after="a", deadline="600ms", timeout="100ms"),
    )
    play = await world.play(*fork, do={"b": rejects()}, grace="100ms")
    await world.kill("c")
    await play.start()
    begun = await play.is_called("do", "a")
    await world.until(lambda: play.said(StepFailed, "c"))
    assert world.clock.now_ms() - begun.at_ms >= 700
    await world.revive("c")
    await play.ends_compensated()


async def test_s16_a_sibling_that_never_answers_is_given_up_after_the_settle_limit(world: World) -> None:
    play = await world.play(
        Step("a", "undo_a"),
        Step("b", after="a"),
        Step("c", after="a"),
        do={"b": rejects()},
        grace="100ms",
        settle="400ms",
    )
    await world.kill("c")
    failed = await play.fails()
    assert failed.step == "b"
    (given_up,) = await play.said(StepFailed, "c")
    assert given_up.failure.code == "settle"


# S16b


async def test_s16b_a_step_behind_a_failed_parallel_group_runs_in_the_next_round(world: World) -> None:
    # Sage drops the stage in front of which it noticed the failure: the saga would complete without d.
    play = await world.play(*DIAMOND, do={"b": in_round({1: rejects()})}, undo={"a": AGAIN})
    outcome = await play.run()
    assert play.called("do", "d")[0].round == 2
    assert read(outcome) == "d 2"
    assert set(outcome.effects) == {"a", "b", "c", "d"}


async def test_s16b_also_when_only_the_failed_branch_is_redone(world: World) -> None:
    play = await world.play(*DIAMOND, do={"b": in_round({1: rejects()})}, undo={"b": AGAIN}, **ALWAYS)
    outcome = await play.run()
    assert len(play.called("do", "c")) == 1
    assert {step: read(outcome, step) for step in outcome.effects} == {"a": "a 1", "b": "b 2", "c": "c 1", "d": "d 2"}


async def test_s16b_also_when_the_failed_branch_continues(world: World) -> None:
    play = await world.play(*DIAMOND, do={"b": rejects()}, undo={"b": BREAKER}, **ALWAYS)
    outcome = await play.run()
    assert len(play.called("do", "d")) == 1
    assert set(outcome.effects) == {"a", "b", "c", "d"}


# S17

ONCE = Retries(0)


@pytest.mark.parametrize(
    "answer",
    [raises(ValueError("no way back")), raises(SystemExit(1)), returns("what is this?")],
    ids=["exception", "exit", "malformed answer"],
)
async def test_s17_while_a_compensation_crashes_older_effects_stay_and_no_retry_is_made(
    world: World, answer: Behaviour
) -> None:
    steps = (Step("a", "undo_a"), Step("b", "undo_b", compensation_retries=ONCE), Step("c"))
    play = await world.play(*steps, do={"c": rejects()}, undo={"a": AGAIN, "b": answer})
    await play.start()
    status = await play.is_stuck()
    assert status.remaining == ("b", "a")
    assert play.order("undo") == ["b"]
    assert [record.step for record in await play.said(Compensate)] == ["b"]
    (failed,) = await play.said(CompensationFailed)
    assert failed.failure.kind == "crashed"
    assert not await play.said(SagaCompensated)


async def test_s17_a_parallel_compensation_that_works_is_not_held_up(world: World) -> None:
    fork = (
        Step("a", "undo_a"),
        Step("b", "undo_b", after="a", compensation_retries=ONCE),
        Step("c", "undo_c", after="a"),
    )
    steps = (*fork, Step("d", after=("b", "c")))
    play = await world.play(*steps, do={"d": rejects()}, undo={"b": raises(ValueError())})
    await play.start()
    await play.is_stuck()
    await play.is_called("undo", "c")
    assert play.called("undo", "a") == []


# S22


@pytest.mark.only("runner")
async def test_s22_all_steps_are_one_transaction_which_a_failure_rolls_back(world: RunnerWorld) -> None:
    engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.pool.StaticPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (step TEXT)")
    saga, service = Saga("play", *LINE), Service("orders")

    def handler(step: str) -> Any:
        def handle(order: dict[str, Any], connection: sqlalchemy.Connection) -> None:
            connection.exec_driver_sql("INSERT INTO orders VALUES (?)", (step,))
            if step == order["fails_at"]:
                raise Reject("no")

        return handle

    for step in saga.steps:
        service.step(saga, step.name)(handler(step.name))
        service.compensation(saga, step.name)(lambda: None)
    world.options["transaction"] = engine
    await world.serve(service)

    def orders() -> list[str]:
        with engine.connect() as connection:
            return [row[0] for row in connection.exec_driver_sql("SELECT step FROM orders")]

    with pytest.raises(SagaFailed):
        await world.run(saga, {"fails_at": "c"})
    assert orders() == []
    await world.run(saga, {"fails_at": ""})
    assert orders() == ["a", "b", "c"]
    engine.dispose()


async def test_s22_each_step_is_one_transaction_with_what_is_said_of_it(world: World, tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/orders.db")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (step TEXT)")
    saga = Saga(world.named("play"), *LINE)
    service = Service(world.named("orders"), inbox=Inbox(engine, create_tables=True))

    def bind(step: str) -> None:
        @service.step(saga, step)
        def do(order: dict[str, Any], connection: sqlalchemy.Connection) -> None:
            connection.exec_driver_sql("INSERT INTO orders VALUES (?)", (step,))
            if step == order["fails_at"]:
                raise Reject("no")

        @service.compensation(saga, step)
        def undo(ctx: CompensationContext, connection: sqlalchemy.Connection) -> None:
            assert connection.exec_driver_sql("DELETE FROM orders WHERE step = ?", (step,)).rowcount == 1

    for step in saga.steps:
        bind(step.name)
    await world.serve(service)
    with pytest.raises(SagaFailed):
        await world.run(saga, {"fails_at": "c"})
    with engine.connect() as connection:
        assert list(connection.exec_driver_sql("SELECT step FROM orders")) == []
    await world.run(saga, {"fails_at": ""})
    with engine.connect() as connection:
        assert [row[0] for row in connection.exec_driver_sql("SELECT step FROM orders")] == ["a", "b", "c"]
    engine.dispose()


# S23


def test_s23_a_contract_is_drawn_with_compensations_retries_and_timeouts() -> None:
    saga = Saga("play", Step("a", "undo_a", retries=3, timeout="5s"), Step("b"), Step("c", "undo_c", after="a"))
    text = str(saga)
    for word in ("-> a", "<- undo_a", "timeout 5s", "-> b", "nothing to undo", "<- undo_c"):
        assert word in text
    assert "3" in next(line for line in text.splitlines() if "-> a" in line)
    drawn = mermaid(saga)
    assert drawn.startswith("flowchart")
    assert "do_a --> do_c" in drawn
    assert 'undo_a(["undo_a"])' in drawn


# S24


async def test_s24_a_saga_survives_the_death_of_the_service_that_works_for_it(world: World) -> None:
    released = asyncio.Event()

    async def wait(ctx: Context) -> str:
        await released.wait()
        return done(ctx)

    play = await world.play(*LINE, do={"b": wait})
    await play.start()
    await play.is_called("do", "b")
    await world.kill("b")
    released.set()
    await world.revive("b")
    await play.ends()
    assert play.story == "+a +b +c"


async def test_s24_a_saga_survives_the_death_of_the_saga_log_on_the_way_back(world: World) -> None:
    released = asyncio.Event()

    async def wait(_: Any) -> None:
        await released.wait()

    play = await world.play(*LINE, do={"c": rejects()}, undo={"b": wait})
    await play.start()
    await play.is_called("undo", "b")
    await world.kill("saga-log")
    released.set()
    await world.revive("saga-log")
    await play.ends_compensated()
    assert play.story == "+a +b -b -a"


async def test_s24_steps_go_on_without_the_saga_log(world: World) -> None:
    play = await world.play(*LINE)
    await world.kill("saga-log")
    await play.start()
    await world.until(lambda: play.story == "+a +b +c")
    await world.revive("saga-log")
    await play.ends()


# S25


async def test_s25_a_circuit_breaker_answers_from_a_cache_while_it_is_open(world: World) -> None:
    cache: dict[str, str] = {}
    failures = 0

    def rates(ctx: Context) -> str:
        nonlocal failures
        if ctx.input == "away":
            failures += 1
            raise Reject("the bank does not answer", code="unavailable")
        cache["rates"] = f"rates of {ctx.input}"
        return cache["rates"]

    def breaker(ctx: CompensationContext) -> Any:
        if ctx.failure is not None and ctx.failure.code == "unavailable" and "rates" in cache:
            return Continue(cache["rates"])
        return None

    play = await world.play(
        Step("rates", "fall_back", compensate_on_failure="always"), Step("convert"),
        do={"rates": rates}, undo={"rates": breaker},
    )  # fmt: skip
    await play.fails("away", id="cold")
    await play.run("monday", id="warm")
    outcome = await play.run("away", id="open")
    assert read(outcome, "rates") == "rates of monday"
    assert failures == 2


async def test_s25_rounds_back_off_exponentially(world: World) -> None:
    again = limited(4, base_backoff=5, jitter=False)  # 10, 100, 1,000 ms
    play = await world.play(Step("a", "undo_a"), Step("b"), do={"b": rejects()}, undo={"a": again})
    await play.fails()
    begun, undone = play.called("do", "a"), play.called("undo", "a")
    waits = [later.at_ms - earlier.at_ms for earlier, later in zip(undone, begun[1:], strict=False)]
    assert [wait >= least for wait, least in zip(waits, (10, 100, 1_000), strict=True)] == [True] * 3


async def test_s25_an_idempotent_compensation_undoes_once_however_often_it_is_called(world: World) -> None:
    refunds: dict[str, int] = {}

    def refund(ctx: CompensationContext) -> None:
        refunds.setdefault(ctx.step_key, 0)
        refunds[ctx.step_key] += refunds[ctx.step_key] == 0
        if ctx.attempt == 1:
            raise ConnectionError("the answer was lost")

    play = await world.play(
        Step("a", "undo_a", compensation_retries=Retries(2, backoff_ms_base=10)), Step("b"),
        do={"b": rejects()}, undo={"a": refund},
    )  # fmt: skip
    await play.fails()
    assert list(refunds.values()) == [1]
    assert len(play.called("undo", "a")) == 2
