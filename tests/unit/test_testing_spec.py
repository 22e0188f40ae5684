"""Given a history, when something is appended, then this is decided."""

from __future__ import annotations

import pytest

from choreo.contract import Saga, Step, when
from choreo.core import Phase
from choreo.errors import DefinitionError, SagaFailed
from choreo.messages.records import SagaCompensated
from choreo.step import AbortRetries, Continue, NothingToUndo, Reject, Retry, Service
from choreo.testing import Runner, given
from choreo.testing.clock import EPOCH_MS
from choreo.testing.spec import (
    COMPENSATED,
    COMPLETE,
    answered,
    cancelled,
    compensate,
    completed,
    crashed,
    execute,
    rejected,
    signalled,
    skip,
    started,
    stuck,
    time_passes,
    undo_failed,
)

ORDER = Saga(
    "order",
    Step("reserve", "release", deadline="10m"),
    Step("charge", "refund", after="reserve", compensate_on_failure="always"),
    Step("pack", "unpack", after="reserve"),
    Step("ship", after=("charge", "pack")),
)


def test_steps_that_follow_one_step_need_no_telling_and_a_join_does() -> None:
    given(ORDER).when(completed("reserve")).then()
    given(ORDER, completed("reserve"), completed("pack")).when(completed("charge")).then(execute("ship"))


def test_a_saga_completes_with_its_last_step() -> None:
    spec = given(ORDER, completed("reserve"), completed("charge"), completed("pack"), completed("ship", {"parcel": 7}))
    assert spec.status.phase is Phase.COMPLETED
    assert [step.effect for step in spec.status.steps] == [None, None, None, {"parcel": 7}]
    given(ORDER, completed("reserve"), completed("charge"), completed("pack")).when(completed("ship")).then(COMPLETE)


def test_the_way_back_is_told_step_by_step() -> None:
    spec = given(ORDER, completed("reserve"), completed("charge"), completed("pack")).when(rejected("ship"))
    spec = spec.then(compensate("charge"), compensate("pack")).when(answered("pack")).then()
    spec = spec.when(answered("charge")).then(compensate("reserve"))
    spec.when(answered("reserve")).then(COMPENSATED)


def test_a_history_can_be_gone_on_with_in_several_ways() -> None:
    history = given(ORDER, completed("reserve"), completed("pack"))
    history.when(completed("charge")).then(execute("ship"))
    history.when(rejected("charge", "declined")).then(compensate("charge"))
    assert history.status.phase is Phase.FORWARD


def test_a_crash_leaves_an_unknown_effect() -> None:
    line = Saga("line", Step("a", "undo_a"), Step("b", "undo_b"))
    given(line, completed("a")).when(rejected("b")).then(compensate("a"))
    given(line, completed("a")).when(crashed("b")).then(compensate("b"))


def test_time_passes_to_the_next_deadline() -> None:
    spec = given(ORDER).when(time_passes()).then(compensate("reserve"))
    assert spec.now_ms >= EPOCH_MS + 10 * 60_000
    assert spec.status.failure is not None
    assert spec.status.failure.code == "deadline"


def test_time_passes_to_the_next_round() -> None:
    spec = given(ORDER, completed("reserve"), completed("pack"), rejected("charge"))
    before_ms = spec.now_ms
    spec = spec.when(answered("charge", Retry(limit=3, base_backoff=500))).then()
    spec = spec.when(time_passes()).then(execute("charge", round=2))
    assert spec.now_ms - before_ms >= 1_000
    spec.when(completed("charge")).then(execute("ship", round=2))


def test_where_nothing_is_waited_for_no_time_can_pass() -> None:
    done = given(Saga("one", Step("a")), completed("a"))
    with pytest.raises(AssertionError, match="waits for no time"):
        done.when(time_passes())


def test_answers_decide_how_it_goes_on() -> None:
    failed = given(ORDER, completed("reserve"), completed("pack")).when(rejected("charge"))
    failed.when(answered("charge", Continue("later"))).then(execute("ship"))
    failed.when(answered("charge", AbortRetries())).then(compensate("pack"))
    failed.when(answered("charge", NothingToUndo())).then(compensate("pack"))
    failed.when(answered("charge"), answered("pack", Retry(limit=1))).then(compensate("pack"), compensate("reserve"))


def test_an_abort_forbids_the_next_round() -> None:
    line = Saga("line", Step("a", "undo_a"), Step("b"))
    given(line, completed("a"), rejected("b", abort=True)).when(answered("a", Retry(limit=9))).then(COMPENSATED)


def test_a_compensation_that_fails_makes_it_stuck() -> None:
    line = Saga("line", Step("a", "undo_a"), Step("b"))
    spec = given(line, completed("a"), rejected("b")).when(undo_failed("a")).then(stuck("a"))
    assert spec.status.phase is Phase.STUCK


def test_a_cancel_settles_what_is_in_flight_first() -> None:
    spec = given(ORDER, completed("reserve"), completed("pack")).when(cancelled("enough")).then()
    spec.when(completed("charge")).then(compensate("charge"), compensate("pack"))
    given(ORDER, cancelled()).when(completed("reserve"), completed("charge"), completed("pack")).then(
        compensate("charge"), compensate("pack")
    )


def test_a_saga_starts_with_the_input_that_is_given() -> None:
    spec = given(ORDER, started({"item": "kite"}))
    assert spec.state.input == b'{"item":"kite"}'
    assert given(ORDER).state.input == b"null"


def test_what_was_decided_instead_is_told_with_the_history() -> None:
    with pytest.raises(
        AssertionError,
        match=r"expected compensate\(reserve\), stuck\(pack\); decided was execute\(ship\)\n"
        r"history: SagaStarted, StepCompleted reserve/1, StepCompleted pack/1, StepCompleted charge/1, Execute ship/1",
    ):
        given(ORDER, completed("reserve"), completed("pack")).when(completed("charge")).then(
            compensate("reserve"), stuck("pack")
        )
    with pytest.raises(AssertionError, match=r"expected nothing; decided was execute\(ship\)"):
        given(ORDER, completed("reserve"), completed("pack")).when(completed("charge")).then()
    with pytest.raises(AssertionError, match=r"expected complete; decided was nothing"):
        given(ORDER).when(completed("reserve")).then(COMPLETE)


def test_round_and_generation_count_where_they_are_named() -> None:
    spec = given(ORDER, completed("reserve"), completed("pack")).when(rejected("charge"))
    spec.then(compensate("charge", round=1, generation=1))
    with pytest.raises(AssertionError, match=r"compensate\(charge, generation=2\)"):
        spec.then(compensate("charge", generation=2))
    with pytest.raises(AssertionError, match=r"compensate\(charge, round=2\)"):
        spec.then(compensate("charge", round=2))


def test_a_step_that_the_contract_does_not_have_is_refused() -> None:
    for fact in (completed("fly"), rejected("fly"), crashed("fly"), answered("fly"), undo_failed("fly")):
        with pytest.raises(DefinitionError, match="has no such step"):
            given(ORDER).when(fact)


async def test_a_recorded_history_can_be_asked() -> None:
    line, service = Saga("line", Step("a", "undo_a"), Step("b", deadline="1h")), Service("line")
    service.step(line, "a")(lambda: 1)
    service.compensation(line, "a")(lambda: Retry(limit=2, base_backoff=50))

    @service.step(line, "b")
    def no() -> None:
        raise Reject("no")

    async with Runner(service) as runner:
        with pytest.raises(SagaFailed):
            await runner.run(line, {"n": 1}, id="s-7")
        history = runner.history("s-7")
    assert isinstance(history[-1], SagaCompensated)
    spec = given(line, *history)
    assert (spec.state.saga_id, spec.status.phase, spec.status.round) == ("s-7", Phase.COMPENSATED, 2)
    given(line, *history[:-2]).when(history[-2]).then(COMPENSATED)


def test_a_step_can_wait_for_a_signal() -> None:
    approval = Saga("approval", Step("draft", "discard"), Step("pay", await_signal="approved", signal_timeout="1h"))
    given(approval).when(completed("draft")).then()
    given(approval, completed("draft")).when(signalled("approved", {"limit": 7})).then(execute("pay"))
    given(approval, signalled("approved")).when(completed("draft")).then(execute("pay"))
    late = given(approval, completed("draft")).when(time_passes()).then(compensate("draft"))
    assert late.status.failure is not None
    assert late.status.failure.code == "signal"


def test_a_start_can_be_scheduled() -> None:
    given(ORDER, started(at="2h")).when(time_passes()).then(execute("reserve"))
    given(ORDER, started(at="2h")).when(cancelled()).then(COMPENSATED)


def test_a_condition_is_asked_of_the_history() -> None:
    saga = Saga("order", Step("pick"), Step("wrap", when=when.input("gift")), Step("ship"))
    history = given(saga, started({"gift": False}))
    history.when(completed("pick")).then(skip("wrap"), execute("ship"))
    given(saga, started({"gift": True})).when(completed("pick")).then(execute("wrap"))
